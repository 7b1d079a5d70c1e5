"""Lists of models between machines: through an S5 node over HTTP and through peers, whatever these do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pnode.config import NodeConfig
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.model_list import ENTRIES_MAX, LIST_BYTES_MAX, list_blob
from p2pnode.models.subscriptions import WITHDRAWN, Subscriptions, Unchanged
from p2pnode.net.memory import MemoryNet
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.datadir import DataDir
from p2pnode.node.node import Node
from p2pnode.protocols.s5.entries import Entry, EntryKey, pointer_to
from p2pnode.protocols.s5.ids import BlobHash, BlobId, hash_of
from p2pnode.storage.blob_service import BlobService
from p2pnode.storage.keys import StorageKeys
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.model_lists import (
    OWN,
    Refused,
    Taken,
    keep_lists_fresh,
    list_places,
    publish_list,
    take_list,
)
from p2pnode.storage.node_store import StoreFor
from p2pnode.storage.store import Replica
from tests.models.lists import KEY, OTHER, SIGNER, blob_of, entry, head, many, pointer
from tests.node.world import World, world
from tests.storage.s5.support import serving

KEYS = StorageKeys.from_entropy(bytes(range(16)))
MINE = KEYS.model_list("small")
NOW = 1_800_000_000


def wall() -> float:
    return float(NOW)


def signed(*names: str, revision: int = 1) -> tuple[Entry, bytes]:
    blob = list_blob(head(revision, MINE.entry_key), [entry(name) for name in names])
    return MINE.entry(revision, pointer_to(hash_of(blob))), blob


async def taken(
    places: list[Replica], folder: Path, key: EntryKey = MINE.entry_key, name: str = ""
) -> object:
    subscriptions = Subscriptions(folder)
    return await take_list(
        places, subscriptions, key, now=NOW, limits=DEFAULT_LIMITS, name=name, in_thread=False
    )


async def test_a_list_goes_through_a_real_s5_node(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with serving(tmp_path / "s5") as running, world() as w:
            node = (await w.add()).node
            config = NodeConfig(data_dir=tmp_path / "curator", s5_url=running.server.url, mdns=False)
            mine, blob = signed("a", "b")
            async with list_places(
                config, node, MINE.entry_key, own_store=True, owner=KEYS.owner, sign=_sign
            ) as places:
                outcomes = await publish_list(places, mine, blob, owner=KEYS.owner, limits=DEFAULT_LIMITS)
            assert outcomes == {OWN: "", running.server.url: ""}
            config = replace(config, data_dir=tmp_path / "reader")
            async with list_places(config, node, MINE.entry_key) as places:
                assert [each.name for each in places] == [running.server.url]
                outcome = await taken(places, tmp_path / "reader")
                assert isinstance(outcome, Taken)
                assert await taken(places, tmp_path / "reader") == Unchanged()
            assert Catalogue.of(tmp_path / "reader").find("small/b").name == "small/b"


def _sign(_owner: bytes, digest: bytes) -> bytes:
    return KEYS.owner_signing.sign(digest)


async def storing(w: World, seed: list[str], *rules: str) -> tuple[Node, MemoryStore]:
    """A node of the world that keeps blobs and entries for ``rules``."""
    member = await w.add(bootstrap=seed)
    store = MemoryStore(wall_clock, None)
    BlobService(member.node, store, store, admits=StoreFor(rules).admits).start()
    return member.node, store


async def test_a_list_goes_through_a_peer_and_a_newer_one_follows_by_itself(
    tmp_path: Path, autojump_clock: object
) -> None:
    often = replace(DEFAULT_LIMITS, lists_check_s=2.0, lists_refresh_s=20.0)
    async with world(net=MemoryNet(latency=0.02), limits=often) as w:
        first = await w.add()
        seed = list(first.node.multiaddrs)
        keeper, store = await storing(w, seed, "anyone")
        curator, reader = [(await w.add(bootstrap=seed)).node for _ in range(2)]
        config = NodeConfig(data_dir=tmp_path / "reader", stores=tuple(keeper.multiaddrs), mdns=False)
        mine, blob = signed("a")
        theirs = replace(config, data_dir=tmp_path / "curator")
        async with list_places(
            theirs, curator, MINE.entry_key, own_store=True, owner=KEYS.owner, sign=_sign, in_thread=False
        ) as places:
            outcomes = await publish_list(places, mine, blob, owner=KEYS.owner, limits=DEFAULT_LIMITS)
        assert outcomes[keeper.peer_id] == outcomes[OWN] == ""
        models = DataDir(tmp_path / "reader").models
        async with list_places(config, reader, MINE.entry_key, in_thread=False) as places:
            assert isinstance(await taken(places, models), Taken)
        newer, blob = signed("a", "b", revision=2)
        await store.put(blob, owner=KEYS.owner)
        await store.set(newer, owner=KEYS.owner)
        fresh = Subscriptions(models)
        fresh.note_asked(MINE.entry_key, int(reader.wall()))
        async with trio.open_nursery() as nursery:

            async def keep() -> None:
                await keep_lists_fresh(reader, config, in_thread=False)

            nursery.start_soon(keep)
            await trio.sleep(18)
            assert fresh.named("small").pointer.revision == 1
            await trio.sleep(10)
            assert fresh.named("small").pointer.revision == 2
            nursery.cancel_scope.cancel()


class Place(MemoryStore):
    """A place that shows one pointer and sends what it likes."""

    def __init__(self, shown: Entry | None, sent: bytes = b"", size: int | None = None) -> None:
        super().__init__(wall, None)
        self._shown, self._sent, self._size = shown, sent, size

    async def get(self, key: EntryKey) -> Entry | None:
        return self._shown

    async def size(self, digest: BlobHash) -> int | None:
        return len(self._sent) if self._size is None else self._size

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        return self._sent


def place(name: str, shown: Entry | None, sent: bytes = b"", size: int | None = None) -> Replica:
    made = Place(shown, sent, size)
    return Replica(name, made, made)


NEWER, NEWER_BLOB = signed("a", revision=3)


async def test_a_place_that_lies_costs_nothing_where_another_tells_the_truth(tmp_path: Path) -> None:
    mine, blob = signed("a", revision=2)
    old, old_blob = signed("b", revision=1)
    places = [
        place("liar", mine, blob + b"x"),
        place("forger", replace(mine, revision=9, signature=bytes(64))),
        place("slow to hear", old, old_blob),
        place("honest", mine, blob),
    ]
    outcome = await taken(places, tmp_path)
    assert isinstance(outcome, Taken)
    assert outcome.subscription.pointer == mine


@pytest.mark.parametrize(
    ("places", "why", "hostile"),
    [
        ([], "nobody who was asked has this list", False),
        ([place("p", None)], "p: it does not have this list", False),
        ([place("p", replace(NEWER, signature=bytes(64)))], "did not sign", True),
        ([place("p", pointer(NEWER_BLOB, 3, OTHER), NEWER_BLOB)], "did not sign", True),
        ([place("p", signed("b")[0])], "rolled back", True),
        (
            [place("p", NEWER, NEWER_BLOB), place("q", signed("c", revision=3)[0], NEWER_BLOB)],
            "two different lists as revision 3", True,
        ),
        ([place("p", NEWER, NEWER_BLOB + b" ")], "not those that the curator signed", False),
        ([place("p", NEWER, b"", LIST_BYTES_MAX + 1)], "at most 16777216", False),
        ([place("p", MINE.entry(3, b"odd"))], "names no document", True),
        ([place("p", MINE.entry(3, pointer_to(WITHDRAWN)))], "has withdrawn it", False),
    ],
)  # fmt: skip
async def test_what_is_refused_is_refused_in_words_and_what_was_here_stays(
    tmp_path: Path, places: list[Replica], why: str, hostile: bool
) -> None:
    known, blob = signed("kept", revision=2)
    assert isinstance(await taken([place("p", known, blob)], tmp_path), Taken)
    outcome = await taken(places, tmp_path)
    assert isinstance(outcome, Refused)
    assert why in outcome.why
    assert outcome.hostile is hostile
    assert Catalogue.of(tmp_path).find("small/kept").list_name == "small"


async def test_a_signed_document_that_is_no_list_is_refused(tmp_path: Path) -> None:
    for blob, why in (
        (b"<html>", "no list of models"),
        (blob_of("a"), "another key has signed it"),
        (signed("a", revision=2)[1], "was signed as revision 1"),
    ):
        mine = MINE.entry(1, pointer_to(hash_of(blob)))
        outcome = await taken([place("p", mine, blob)], tmp_path)
        assert isinstance(outcome, Refused)
        assert why in outcome.why
        assert outcome.hostile


async def test_a_list_whose_file_is_damaged_is_fetched_again(tmp_path: Path) -> None:
    mine, blob = signed("a")
    places = [place("p", mine, blob)]
    assert isinstance(await taken(places, tmp_path), Taken)
    (path,) = (tmp_path / "lists").glob("*.list")
    path.write_bytes(b"damaged")
    assert isinstance(await taken(places, tmp_path), Taken)
    assert await taken(places, tmp_path) == Unchanged()
    assert isinstance(await taken(places, tmp_path, name="other"), Taken)
    assert Subscriptions(tmp_path).named("other").key == MINE.entry_key


async def test_a_place_with_a_newer_revision_keeps_it(tmp_path: Path) -> None:
    store = MemoryStore(wall, None)
    newer, newer_blob = signed("b", revision=2)
    mine, blob = signed("a")
    here = [Replica("p", store, store)]
    assert await publish_list(here, newer, newer_blob, owner=KEYS.owner, limits=DEFAULT_LIMITS) == {"p": ""}
    assert await publish_list(here, newer, newer_blob, owner=KEYS.owner, limits=DEFAULT_LIMITS) == {"p": ""}
    outcome = await publish_list(here, mine, blob, owner=KEYS.owner, limits=DEFAULT_LIMITS)
    assert "revision 2 of this list already" in outcome["p"]


class Silent(MemoryStore):
    """A place that never answers."""

    async def get(self, key: EntryKey) -> Entry | None:
        await trio.sleep_forever()
        raise AssertionError

    async def put(self, *_: object, **__: object) -> BlobId:
        await trio.sleep_forever()
        raise AssertionError


async def test_nobody_waits_for_a_place_that_is_silent(tmp_path: Path, autojump_clock: object) -> None:
    silent = Silent(wall, None)
    mine, blob = signed("a")
    places = [Replica("silent", silent, silent), place("honest", mine, blob)]
    with trio.fail_after(DEFAULT_LIMITS.replica_ask_s + 1):
        assert isinstance(await taken(places, tmp_path), Taken)
    outcomes = await publish_list(places[:1], mine, blob, owner=KEYS.owner, limits=DEFAULT_LIMITS)
    assert outcomes == {"silent": "it did not answer in time"}


@pytest.mark.long
async def test_ten_thousand_models_go_through_an_s5_node_and_a_peer(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with serving(tmp_path / "s5") as running, world() as w:
            seed = list((await w.add()).node.multiaddrs)
            keeper, _store = await storing(w, seed, "anyone")
            node = (await w.add(bootstrap=seed)).node
            config = NodeConfig(
                data_dir=tmp_path / "d",
                s5_url=running.server.url,
                stores=tuple(keeper.multiaddrs),
                mdns=False,
            )
            blob = many(ENTRIES_MAX)
            signed_so = pointer(blob)
            async with list_places(config, node, KEY, owner=KEYS.owner, sign=_sign) as places:
                outcomes = await publish_list(
                    places, signed_so, blob, owner=KEYS.owner, limits=DEFAULT_LIMITS
                )
                assert outcomes[keeper.peer_id] == outcomes[running.server.url] == ""
                for each in places:
                    outcome = await taken([each], tmp_path / each.name.replace("/", "-"), KEY)
                    assert isinstance(outcome, Taken)
                    assert outcome.subscription.entries == ENTRIES_MAX


def test_each_list_of_a_user_has_a_key_of_its_own() -> None:
    names = ("small", "large", "")
    keys = {KEYS.model_list(name).entry_key for name in names}
    assert len(keys) == len(names)
    assert keys.isdisjoint({KEYS.owner, KEYS.index.entry_key, KEYS.conversation(bytes(16)).entry_key})
    assert KEYS.model_list("small").entry_key == MINE.entry_key
    assert "_signing" not in repr(MINE)
    assert MINE.entry(1, pointer_to(WITHDRAWN)).holds()
    assert MINE.entry_key != KEY
    assert SIGNER is not OTHER
