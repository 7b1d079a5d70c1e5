"""The power goes or the disk fills up at any point, a sync fails: what was acknowledged is there."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pnode.errors import StorageError
from p2pnode.protocols.s5.entries import Entry, pointer_to
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.rules import Quotas
from p2pnode.storage.store import GRACE_S, DiskFullError, NoBlobError, OwnerKey
from tests.storage.local.faulty_disk import NEVER, FaultyDisk, PowerCutError
from tests.storage.store_conformance import ALICE, BOB, Writer, blob
from tests.storage.stores import Wall, collect, files_of, local_store


def _neighbours() -> tuple[bytes, bytes, bytes]:
    """Three blobs: two in one folder, and one in a folder beside that."""
    seen: dict[bytes, bytes] = {}
    for number in range(100_000):
        data = number.to_bytes(4, "big")
        twin = seen.setdefault(hash_of(data)[:2], data)
        beside = next((seen[key] for key in seen if key[0] == hash_of(data)[0] and twin != data), None)
        if twin != data and beside not in {None, twin}:
            assert beside is not None
            return twin, data, beside
    raise AssertionError


ONE, TWIN, BESIDE = _neighbours()
LONG = blob(7, 20_000)
WRITER = Writer()


class Story:
    """What somebody does with a store, and what he was told is done."""

    def __init__(self, store: LocalStore, wall: Wall) -> None:
        self.store, self.wall = store, wall
        self.kept: dict[tuple[OwnerKey, BlobHash], bytes] = {}
        self.entry: Entry | None = None
        self.refusals: list[StorageError] = []

    async def tell(self) -> None:
        await self.put(ALICE, ONE)
        await self._set(1, ONE)
        await self.put(ALICE, LONG, streamed=True)
        async with trio.open_nursery() as nursery:
            for data in (TWIN, BESIDE, ONE):
                nursery.start_soon(self.put, BOB, data)
        await self._try(partial(self.store.pin, hash_of(LONG), owner=BOB), (BOB, LONG))
        await self._set(2, LONG)
        await self._unpin(ALICE, ONE)
        await self._unpin(BOB, ONE)
        self.wall.now += GRACE_S
        with suppress(StorageError):
            await collect(self.store)
        await self.put(BOB, ONE)
        await self._set(3, ONE)

    async def put(self, owner: OwnerKey, data: bytes, *, streamed: bool = False) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield data[:100]
            yield data[100:]

        await self._try(lambda: self.store.put(pieces() if streamed else data, owner=owner), (owner, data))

    async def _set(self, revision: int, data: bytes) -> None:
        entry = WRITER.entry(revision, pointer_to(hash_of(data)))
        if await self._try(lambda: self.store.set(entry, owner=ALICE)):
            self.entry = entry

    async def _unpin(self, owner: OwnerKey, data: bytes) -> None:
        self.kept.pop((owner, hash_of(data)), None)
        await self._try(partial(self.store.unpin, hash_of(data), owner=owner))

    async def _try(
        self, act: Callable[[], Awaitable[object]], then: tuple[OwnerKey, bytes] | None = None
    ) -> bool:
        try:
            await act()
        except StorageError as error:
            self.refusals.append(error)
            return False
        if then is not None:
            self.kept[then[0], hash_of(then[1])] = then[1]
        return True

    async def check(self, store: LocalStore) -> None:
        """All that was told is so, and whatever is to be seen is whole."""
        listed = {each.id.hash: each for each in await store.blobs()}
        for (owner, digest), data in self.kept.items():
            assert await store.read(digest) == data
            assert owner in {lease.owner for lease in listed[digest].leases}
        held = await store.get(WRITER.key)
        if self.entry is not None:
            assert held is not None
            assert held.revision >= self.entry.revision
        assert held is None or held.holds()
        for digest in listed:
            with suppress(NoBlobError):
                assert hash_of(await store.read(digest)) == digest
        for path in (store.root / "blobs").rglob("*"):
            assert not path.is_file() or hash_of(path.read_bytes()).hex() == path.name


async def run_story(root: Path, disk: FaultyDisk) -> Story:
    """The story, to its end or to the cut."""
    story: Story | None = None
    wall = Wall()
    try:
        with local_store(root, wall, disk=disk, in_thread=False, quotas=Quotas()) as store:
            story = Story(store, wall)
            await story.tell()
    except* PowerCutError:
        pass
    if story is None:  # it was cut while it opened
        with local_store(root, wall, in_thread=False) as store:
            return Story(store, wall)
    return story


async def count_steps(root: Path) -> FaultyDisk:
    disk = FaultyDisk(root)
    story = await run_story(root, disk)
    assert not story.refusals
    assert len(story.kept) == 5
    return disk


async def check_after(root: Path, story: Story) -> None:
    """It opens, all is there, it stays so when it is swept, and the store goes on."""
    with local_store(root, story.wall, in_thread=False, quotas=Quotas()) as store:
        await story.check(store)
        story.wall.now += 2 * GRACE_S  # no lease is over yet: uploads that never ended are old enough
        await collect(store)
        await story.check(store)
        assert files_of(root) - {path.name for path in (root / "new").iterdir()} == {
            each.id.hash.hex() for each in await store.blobs()
        }
        again = Story(store, story.wall)
        await again.put(ALICE, LONG)
        await again.put(ALICE, TWIN)
        assert not again.refusals
        await again.check(store)


SURVIVALS: dict[str, Callable[[], bool]] = {
    "nothing unsynced stays": lambda: False,
    "all of it stays": lambda: True,
}


@pytest.mark.parametrize("survival", SURVIVALS)
async def test_a_power_cut_at_any_point_takes_nothing_acknowledged_and_leaves_no_half(
    tmp_path: Path, survival: str
) -> None:
    steps = (await count_steps(tmp_path / "count")).steps
    assert steps > 100
    for cut_at in range(steps):
        root = tmp_path / str(cut_at)
        disk = FaultyDisk(root, cut_at=cut_at)
        story = await run_story(root, disk)
        disk.lose_power(SURVIVALS[survival])
        await check_after(root, story)
        shutil.rmtree(root)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
async def test_whichever_part_of_the_unsynced_stays(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    for cut_at in range((await count_steps(tmp_path / "count")).steps):
        root = tmp_path / str(cut_at)
        disk = FaultyDisk(root, cut_at=cut_at)
        story = await run_story(root, disk)
        disk.lose_power(lambda: draw.random() < 0.5)
        await check_after(root, story)
        shutil.rmtree(root)


async def test_a_disk_that_fills_up_at_any_point_says_so_and_keeps_no_half(tmp_path: Path) -> None:
    refused = 0
    for full_at in range((await count_steps(tmp_path / "count")).steps):
        root, wall = tmp_path / str(full_at), Wall()
        disk = FaultyDisk(root)
        with local_store(root, wall, disk=disk, in_thread=False, quotas=Quotas()) as store:
            disk.full_at = disk.steps + full_at
            story = Story(store, wall)
            await story.tell()
            refused += len(story.refusals)
            assert {type(error) for error in story.refusals} <= {DiskFullError, NoBlobError}
            await story.check(store)
            assert files_of(root) == {each.id.hash.hex() for each in await store.blobs()}
            disk.full_at = NEVER  # somebody made room
            again = Story(store, wall)
            await again.put(BOB, LONG)
            await again.put(ALICE, blob(99))
            assert not again.refusals
            await again.check(store)
        shutil.rmtree(root)
    assert refused > 100


async def test_a_sync_that_fails_is_told_and_nothing_is_kept_of_it(tmp_path: Path) -> None:
    syncs = (await count_steps(tmp_path / "count")).syncs
    assert syncs > 15
    for unsynced_at in range(2, syncs + 1):  # the first is of the store's own folder
        root, wall = tmp_path / str(unsynced_at), Wall()
        disk = FaultyDisk(root, unsynced_at=unsynced_at)
        with local_store(root, wall, disk=disk, in_thread=False, quotas=Quotas()) as store:
            story = Story(store, wall)
            await story.tell()
            assert {type(error) for error in story.refusals} <= {StorageError, NoBlobError}
            assert files_of(root) == {each.id.hash.hex() for each in await store.blobs()}
        assert story.refusals
        disk.lose_power(lambda: False)
        await check_after(root, story)
        shutil.rmtree(root)
