"""Collection: what is kept, what is swept and when, and what a crash or a bad disk left behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from p2pnode.protocols.s5.entries import pointer_to
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.storage.local.store import PIECE_BYTES, LocalStore
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.rules import FOLDERS, Quotas
from p2pnode.storage.store import DAY_S, GRACE_S, LEASE_S, NoBlobError
from tests.storage.store_conformance import ALICE, BOB, Writer, blob
from tests.storage.stores import NOW, Wall, collect, files_of, local_store

DATA = blob(1)
HASH = hash_of(DATA)


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def local(root: Path, wall: Wall) -> Iterator[LocalStore]:
    with local_store(root, wall, in_thread=False, quotas=Quotas()) as store:
        yield store


@pytest.fixture(params=["memory", "local"])
def store(wall: Wall, local: LocalStore, request: pytest.FixtureRequest) -> MemoryStore | LocalStore:
    return local if request.param == "local" else MemoryStore(wall)


async def survives(store: MemoryStore | LocalStore) -> bool:
    if isinstance(store, LocalStore):
        await collect(store)
    else:
        store.gc_step(100)
    return await store.size(HASH) is not None


# ---- what is kept


async def test_a_blob_stays_while_its_lease_runs_and_a_day_longer(
    store: MemoryStore | LocalStore, wall: Wall
) -> None:
    await store.put(DATA, owner=ALICE)
    wall.now += LEASE_S + GRACE_S - 1
    assert await survives(store)
    wall.now += 1
    assert not await survives(store)
    with pytest.raises(NoBlobError):
        await store.read(HASH)


async def test_the_day_begins_when_the_last_lease_is_given_up(
    store: MemoryStore | LocalStore, wall: Wall
) -> None:
    await store.put(DATA, owner=ALICE)
    await store.pin(HASH, owner=BOB)
    await store.unpin(HASH, owner=ALICE)
    wall.now += 2 * DAY_S
    assert await survives(store)
    await store.unpin(HASH, owner=BOB)
    wall.now += GRACE_S - 1
    assert await survives(store)
    wall.now += 1
    assert not await survives(store)


async def test_a_blob_that_is_leased_again_in_its_day_of_grace_stays(
    store: MemoryStore | LocalStore, wall: Wall
) -> None:
    await store.put(DATA, owner=ALICE, lease_s=0)
    wall.now += GRACE_S - 1
    await store.pin(HASH, owner=BOB, lease_s=10)
    wall.now += GRACE_S
    assert await survives(store)
    wall.now += 10
    assert not await survives(store)


async def test_an_entry_keeps_what_its_owner_leased_until_it_points_elsewhere(
    store: MemoryStore | LocalStore, wall: Wall
) -> None:
    writer = Writer()
    await store.put(DATA, owner=ALICE, lease_s=60)
    await store.set(writer.entry(1, pointer_to(HASH)), owner=ALICE)
    await store.unpin(HASH, owner=ALICE)
    wall.now += 100 * DAY_S
    assert await survives(store)
    await store.set(writer.entry(2, pointer_to(BlobHash(b"\0" * 32))), owner=ALICE)  # a tombstone
    wall.now += GRACE_S - 1
    assert await survives(store)
    wall.now += 1
    assert not await survives(store)


async def test_an_entry_keeps_nothing_that_only_others_lease(
    store: MemoryStore | LocalStore, wall: Wall
) -> None:
    await store.put(DATA, owner=ALICE, lease_s=60)
    await store.set(Writer().entry(1, pointer_to(HASH)), owner=BOB)
    wall.now += 60 + GRACE_S
    assert not await survives(store)


async def test_an_entry_does_not_revive_a_lease_that_was_over(
    store: MemoryStore | LocalStore, wall: Wall
) -> None:
    await store.put(DATA, owner=ALICE, lease_s=60)
    wall.now += 61
    await store.set(Writer().entry(1, pointer_to(HASH)), owner=ALICE)
    wall.now += GRACE_S
    assert not await survives(store)


async def test_an_entry_that_came_before_its_blob_keeps_it_too(
    store: MemoryStore | LocalStore, wall: Wall
) -> None:
    await store.set(Writer().entry(1, pointer_to(HASH)), owner=ALICE)
    await store.put(DATA, owner=ALICE, lease_s=60)
    wall.now += 100 * DAY_S
    assert await survives(store)


# ---- in pieces


async def test_a_step_does_no_more_than_it_was_asked(local: LocalStore, wall: Wall) -> None:
    for number in range(10):
        await local.put(blob(number), owner=ALICE, lease_s=60)
    wall.now += 60 + GRACE_S
    first = await local.gc_step(4)
    assert (first.leases_ended, first.blobs_swept, first.due) == (4, 4, True)
    assert first.folders_seen == 0
    rest = await collect(local, 4)
    assert sum(step.blobs_swept for step in rest) == 6
    assert all(step.leases_ended <= 4 and step.blobs_swept <= 4 for step in rest)
    assert (await local.statistics()).blobs == 0


async def test_a_round_goes_on_where_the_last_process_stopped(
    local: LocalStore, root: Path, wall: Wall
) -> None:
    for number in range(20):
        await local.put(blob(number), owner=ALICE)
    first = await local.gc_step(8)
    assert 0 < first.folders_seen < FOLDERS
    with local_store(root, wall, in_thread=False) as other:
        second = await other.gc_step(10_000)
    assert first.folders_left == second.folders_seen
    assert (await local.gc_step(10_000)).folders_seen == FOLDERS


# ---- what a crash left


def _path(root: Path, digest: BlobHash) -> Path:
    return root / "blobs" / digest.hex()[:2] / digest.hex()[2:4] / digest.hex()


async def test_a_file_that_no_row_names_is_removed_and_a_strangers_is_not(
    local: LocalStore, root: Path
) -> None:
    await local.put(DATA, owner=ALICE)
    orphan, stranger = _path(root, hash_of(blob(2))), _path(root, HASH).parent / ".directory"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(blob(2))
    stranger.write_text("a file manager's")
    steps = await collect(local)
    assert sum(step.files_removed for step in steps) == 1
    assert not orphan.exists()
    assert stranger.exists()
    assert await local.read(HASH) == DATA


@pytest.mark.parametrize("how", ["gone", "cut"])
async def test_a_blob_whose_file_is_gone_or_cut_is_nowhere_and_is_told(
    local: LocalStore, root: Path, how: str
) -> None:
    await local.put(DATA, owner=ALICE)
    await local.put(blob(2), owner=ALICE)
    if how == "gone":
        _path(root, HASH).unlink()
    else:
        os.truncate(_path(root, HASH), 100)
    assert await local.size(HASH) is None
    for asking in (local.read(HASH), local.pin(HASH, owner=BOB)):
        with pytest.raises(NoBlobError):
            await asking
    steps = await collect(local)
    assert sum(step.blobs_lost for step in steps) == 1
    stats = await local.statistics()
    assert (stats.blobs, stats.leases) == (1, 1)
    assert files_of(root) == {hash_of(blob(2)).hex()}


@pytest.mark.parametrize("how", ["gone", "cut"])
async def test_putting_it_again_heals_it(local: LocalStore, root: Path, how: str) -> None:
    await local.put(DATA, owner=ALICE)
    if how == "gone":
        _path(root, HASH).unlink()
    else:
        os.truncate(_path(root, HASH), 100)
    await local.put(DATA, owner=BOB)
    assert await local.read(HASH) == DATA
    assert sum(step.blobs_lost for step in await collect(local)) == 0
    stats = await local.statistics()
    assert (stats.blobs, stats.bytes, stats.leases) == (1, len(DATA), 2)


async def test_an_upload_that_nobody_ends_is_removed_after_a_day(
    local: LocalStore, root: Path, wall: Wall
) -> None:
    for name, age_s in (("old", GRACE_S), ("young", GRACE_S - 10)):
        (root / "new" / name).write_bytes(b"half")
        os.utime(root / "new" / name, (NOW - age_s, NOW - age_s))
    assert sum(step.files_removed for step in await collect(local)) == 1
    assert files_of(root) == {"young"}


async def test_an_upload_that_takes_longer_than_a_day_is_not_taken_for_a_left_one(
    local: LocalStore, root: Path, wall: Wall
) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield blob(1, PIECE_BYTES)
        (upload,) = (root / "new").iterdir()
        os.utime(upload, (NOW, NOW))
        wall.now += 2 * GRACE_S
        assert sum(step.files_removed for step in await collect(local)) == 0
        yield b"the end"

    name = await local.put(slow(), owner=ALICE)
    assert await local.size(name.hash) == PIECE_BYTES + 7
    assert files_of(root) == {name.hash.hex()}
