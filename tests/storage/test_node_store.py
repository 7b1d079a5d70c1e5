"""The store of a data dir: opened by its configuration, collected as time goes by."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from p2pnode.config import NodeConfig
from p2pnode.errors import StorageError
from p2pnode.limits import Limits
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.node_store import LOCAL_OWNER, open_store, run_collection
from p2pnode.storage.rules import GcStep
from p2pnode.storage.store import GRACE_S, QuotaError
from tests.storage.store_conformance import ALICE, blob
from tests.storage.stores import NOW

LIMITS = Limits(store_gc_interval_s=60.0, store_gc_items=2, store_gc_settle_s=0)


def clock() -> float:
    """A clock that moves as time passes."""
    return NOW + trio.current_time()


async def test_it_takes_what_the_configuration_says_and_keeps_it(tmp_path: Path) -> None:
    config = NodeConfig(data_dir=tmp_path, store_owner_bytes_max=8192)
    async with open_store(config) as store:
        for number in (1, 2):
            await store.put(blob(number), owner=LOCAL_OWNER)
        with pytest.raises(QuotaError):
            await store.put(blob(3), owner=LOCAL_OWNER)
    assert (tmp_path / "store" / "index.sqlite").exists()
    async with open_store(config) as store:
        assert await store.read(hash_of(blob(2))) == blob(2)


async def test_what_is_due_is_collected_in_pieces_without_a_word_to_anybody(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    config = NodeConfig(data_dir=tmp_path)
    async with (
        open_store(config, wall=clock, in_thread=False) as store,
        trio.open_nursery() as nursery,
    ):
        for number in range(5):
            await store.put(blob(number), owner=LOCAL_OWNER, lease_s=10)
        await store.put(blob(9), owner=LOCAL_OWNER)
        nursery.start_soon(partial(run_collection, store, LIMITS, wall=clock))
        await trio.sleep(GRACE_S)
        assert (await store.statistics()).blobs == 6
        seen = []
        for _ in range(160):
            await trio.sleep(0.5)
            seen.append((await store.statistics()).blobs)
        assert sorted(set(seen), reverse=True) == [6, 4, 2, 1]
        nursery.cancel_scope.cancel()


class FailingStore:
    """Fails at first."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def trust_clock_while(self, trusts_clock: object) -> None:
        del trusts_clock

    async def gc_step(self, limit: int) -> GcStep:
        self.asked.append(trio.current_time())
        if len(self.asked) == 1:
            msg = "the disk failed"
            raise StorageError(msg)
        return GcStep(blobs_swept=limit, due=len(self.asked) < 4)


async def test_a_collection_that_fails_is_logged_and_tried_again(autojump_clock: MockClock) -> None:
    store = FailingStore()
    with capture_logs() as logs, trio.move_on_after(130):
        await run_collection(store, LIMITS, wall=clock)  # type: ignore[arg-type]
    began = store.asked[0]
    assert [round(at - began) for at in store.asked] == [0, 60, 61, 62, 122]
    assert [(each["event"], each["reason"]) for each in logs] == [
        ("storage.collection_failed", "the disk failed")
    ]


async def test_a_clock_that_is_months_ahead_for_a_while_ends_nobodys_lease(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    ahead_s = 0.0
    config = NodeConfig(data_dir=tmp_path, store_bytes_max=4096)
    limits = replace(LIMITS, store_gc_settle_s=600.0)

    def wrong() -> float:
        return clock() + ahead_s

    async with open_store(config, wall=wrong, in_thread=False) as store, trio.open_nursery() as nursery:
        await store.put(blob(1), owner=LOCAL_OWNER)
        ahead_s = 90 * 86_400.0  # it starts so, and is put right a minute later; and once more in mid-run
        nursery.start_soon(partial(run_collection, store, limits, wall=wrong))
        await trio.sleep(70)
        ahead_s = 0.0
        await trio.sleep(1200)
        ahead_s = 90 * 86_400.0
        await trio.sleep(300)
        ahead_s = 0.0
        await trio.sleep(1200)
        assert (await store.statistics()).blobs == 1
        ahead_s = 90 * 86_400.0  # it was away for so long
        with pytest.raises(QuotaError):  # who knows?
            await store.put(blob(2), owner=ALICE)
        await trio.sleep(1200)
        assert (await store.statistics()).blobs == 0
        await store.put(blob(2), owner=ALICE)
        nursery.cancel_scope.cancel()
