"""The store on a disk: its commits, its threads, other processes, and what it says when it can't."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio

from p2pnode.errors import StorageError
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.local.disk import Disk
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.rules import FOLDERS, Quotas
from p2pnode.storage.store import GRACE_S, LEASE_S, DiskFullError, OwnerKey, QuotaError
from tests.storage.store_conformance import ALICE, BLOCK, BOB, Writer, blob
from tests.storage.stores import StoreDisk, UnsyncedDisk, Wall, collect, files_of, local_store

CAROL = OwnerKey(b"\xca" * 32)
DATA = blob(1)
HASH = hash_of(DATA)
DEADLINE_S = 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data dir" / "store"


class CountingDisk(UnsyncedDisk):
    def __init__(self) -> None:
        self.count = {"sync": 0, "sync_folder": 0, "commit": 0}

    def sync(self, handle: int) -> None:
        self.count["sync"] += 1

    def sync_folder(self, path: Path) -> None:
        self.count["sync_folder"] += 1

    def commit(self, db: sqlite3.Connection) -> None:
        self.count["commit"] += 1
        super().commit(db)


class StoppingDisk(UnsyncedDisk):
    """Stops when it has come to a place, until it may go on."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.arrived, self.go_on = threading.Event(), threading.Event()

    def commit(self, db: sqlite3.Connection) -> None:
        super().commit(db)
        self._stop("after the commit")

    def unlink(self, path: Path) -> bool:
        self._stop("before the removal")
        return super().unlink(path)

    def _stop(self, place: str) -> None:
        if place == self.place:
            self.place = ""
            self.arrived.set()
            assert self.go_on.wait(DEADLINE_S)


# ---- what it costs


async def test_a_small_put_costs_one_sync_of_the_file_one_of_the_folder_and_one_commit(root: Path) -> None:
    disk, quotas, wall = CountingDisk(), Quotas(), Wall()
    with local_store(root, wall, disk=disk, in_thread=False, quotas=quotas) as store:
        await store.put(DATA, owner=ALICE, lease_s=0)
        wall.now += GRACE_S
        await collect(store)  # the folder is known now, the blob gone
        disk.count = dict.fromkeys(disk.count, 0)
        await store.put(DATA, owner=ALICE)
        assert disk.count == {"sync": 1, "sync_folder": 1, "commit": 1}
        await store.put(DATA, owner=BOB)  # what is here is only leased
        assert disk.count == {"sync": 1, "sync_folder": 1, "commit": 2}


async def test_small_writes_at_once_share_their_commits(root: Path) -> None:
    disk = StoreDisk()
    with local_store(root, disk=disk, quotas=Quotas()) as store:
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(lambda each: store.put(blob(each), owner=ALICE), number)
                nursery.start_soon(lambda each: store.set(Writer(each).entry(1), owner=ALICE), number)
        assert disk.commits < 64
        stats = await store.statistics()
        assert (stats.blobs, stats.leases, stats.keys) == (64, 64, 64)


async def test_what_one_of_a_group_is_refused_costs_the_others_nothing(root: Path) -> None:
    refused: list[int] = []
    with local_store(root) as store:  # an owner may lease 16

        async def put(number: int) -> None:
            try:
                await store.put(blob(number), owner=ALICE)
            except QuotaError:
                refused.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(put, number)
        assert len(refused) == 4
        assert (await store.statistics()).blobs == 16
        assert files_of(root) == {hash_of(blob(each)).hex() for each in range(20) if each not in refused}


async def test_a_put_that_is_cancelled_leaves_nothing_or_all_of_it(root: Path) -> None:
    with local_store(root, quotas=Quotas()) as store:
        for number in range(40):
            with trio.move_on_after(number * 0.0002):
                await store.put(blob(number, 100_000), owner=ALICE)
        assert files_of(root) == {each.id.hash.hex() for each in await store.blobs()}
        for each in await store.blobs():
            assert hash_of(await store.read(each.id.hash)) == each.id.hash


async def test_nothing_takes_time_on_a_mock_clock_without_threads(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with local_store(root, in_thread=False) as store:
        began = trio.current_time()
        await store.put(DATA, owner=ALICE)
        await store.read(HASH)
        await store.gc_step(10)
        assert trio.current_time() == began


async def test_opening_looks_at_no_blob(root: Path) -> None:
    class NoLookingDisk(UnsyncedDisk):
        def sizes(self, path: Path) -> dict[str, int]:
            raise AssertionError(path)

        def names(self, path: Path) -> list[str]:
            raise AssertionError(path)

    with local_store(root) as store:
        await store.put(DATA, owner=ALICE)
    with local_store(root, disk=NoLookingDisk()) as store:
        assert await store.read(HASH) == DATA


# ---- other processes


@pytest.mark.parametrize("place", ["after the commit", "before the removal"])
async def test_a_put_of_what_another_process_is_sweeping_is_not_lost(root: Path, place: str) -> None:
    wall = Wall()
    disk = StoppingDisk("")
    with local_store(root, wall) as here, local_store(root, wall, disk=disk) as there:
        await here.put(DATA, owner=ALICE, lease_s=0)
        wall.now += GRACE_S
        disk.place = place
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(there.gc_step, 10)
                await trio.to_thread.run_sync(disk.arrived.wait)
                if place == "after the commit":
                    await here.put(DATA, owner=BOB)  # the index doesn't name it, the file is still there
                    disk.go_on.set()
                else:
                    nursery.start_soon(lambda: here.put(DATA, owner=BOB))  # it waits for the index
                    disk.go_on.set()
        assert await here.read(HASH) == DATA
        assert await there.read(HASH) == DATA
        await collect(there)
        assert await here.read(HASH) == DATA


_PUTS = """
import sys, trio
from pathlib import Path
from tests.storage.store_conformance import BOB, blob
from tests.storage.stores import local_store

async def main(root, count):
    with local_store(root) as store:
        for turn in range(count):
            data = blob(turn % 3)
            name = await store.put(data, owner=BOB, lease_s=10**6)
            assert await store.read(name.hash) == data, turn
            await store.unpin(name.hash, owner=BOB)
    print("done")

trio.run(main, Path(sys.argv[1]), 300)
"""


def _start(program: str, root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


async def test_one_process_sweeps_what_another_puts_and_gives_up_again_and_again(root: Path) -> None:
    late = Wall()
    late.now += 2 * GRACE_S  # what is given up is due at once
    swept = 0
    with local_store(root, late, in_thread=False) as store:
        process = _start(_PUTS, root)
        while process.poll() is None:
            swept += (await store.gc_step(10)).blobs_swept
            await trio.sleep(0.001)
        out, _ = process.communicate()
        assert out == b"done\n"
        assert swept > 10
        steps = await collect(store)
        assert sum(step.files_removed + step.blobs_lost for step in steps) == 0
        assert files_of(root) == set()


_TALKS = """
import os, sys, trio
from pathlib import Path
from p2pnode.protocols.s5.entries import pointer_to
from p2pnode.storage.local.store import LocalStore
from tests.storage.store_conformance import ALICE, Writer, blob

async def put(store, first):
    writer = Writer(first)
    held = await store.get(writer.key)
    for number in range(first * 10**6 if held is None else held.revision + 1, 10**9):
        name = await store.put(blob(number, 8), owner=ALICE)
        os.write(1, b"put %d\\n" % number)
        await store.set(writer.entry(number, pointer_to(name.hash)), owner=ALICE)
        os.write(1, b"set %d\\n" % number)

async def main(root):
    store = LocalStore.open(root)
    async with trio.open_nursery() as nursery:
        for first in range(1, 4):
            nursery.start_soon(put, store, first)

trio.run(main, Path(sys.argv[1]))
"""


async def test_a_process_killed_at_any_instant_has_kept_what_it_acknowledged(root: Path) -> None:
    for lines in (1, 60, 150):
        process = _start(_TALKS, root)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        assert said[-1].startswith((b"put", b"set")), said
        process.kill()
        said += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        process.wait(DEADLINE_S)
        with local_store(root, quotas=Quotas()) as store:
            for what, number in (line.split() for line in said if line.endswith(b"\n")):
                assert await store.read(hash_of(blob(int(number), 8))) == blob(int(number), 8)
                held = await store.get(Writer(int(number) // 10**6).key)
                assert what == b"put" or (held is not None and held.revision >= int(number))
            await collect(store)
            assert files_of(root) - {each.name for each in (root / "new").iterdir()} == {
                each.id.hash.hex() for each in await store.blobs()
            }


async def test_processes_that_start_at_once_make_one_store(root: Path) -> None:
    stores = []

    async def open_one() -> None:
        stores.append(await trio.to_thread.run_sync(lambda: LocalStore.open(root, disk=UnsyncedDisk())))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(open_one)
    async with trio.open_nursery() as nursery:
        for number, store in enumerate(stores):
            nursery.start_soon(lambda s, n: s.put(blob(n), owner=ALICE), store, number)
    assert (await stores[0].statistics()).blobs == 5
    for store in stores:
        store.close()


# ---- what it says when it can't


def _everything(root: Path) -> list[Path]:
    return [root, *root.rglob("*")]


async def test_its_files_are_nobody_elses(root: Path) -> None:
    with local_store(root, disk=Disk()) as store:
        await store.put(DATA, owner=ALICE)
        await store.set(Writer().entry(1), owner=ALICE)
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in _everything(root)}
        assert modes == {path: 0o700 if path.is_dir() else 0o600 for path in modes}
        assert len(modes) > 6


async def test_an_index_that_takes_no_more_is_a_full_disk(root: Path) -> None:
    disk = StoreDisk()
    with local_store(root, disk=disk, in_thread=False, quotas=Quotas(owner_keys=10_000)) as store:
        pages = disk.connections[0].execute("PRAGMA page_count").fetchone()[0]
        disk.pragma(f"max_page_count = {pages}")
        kept: list[int] = []

        async def set_many() -> None:
            for number in range(256):
                await store.set(Writer(number).entry(1, b"x" * 64), owner=ALICE)
                kept.append(number)

        async def put_many() -> None:
            for number in range(256):
                await store.put(blob(number), owner=ALICE)

        with pytest.raises(DiskFullError, match="free some space"):
            await set_many()
        with pytest.raises(DiskFullError):
            await put_many()
        assert files_of(root) == {each.id.hash.hex() for each in await store.blobs()}
        assert [await store.get(Writer(number).key) for number in kept] == [
            Writer(number).entry(1, b"x" * 64) for number in kept
        ]
        disk.pragma("max_page_count = 100000")
        await store.set(Writer(255).entry(1), owner=ALICE)


async def test_an_index_held_by_another_is_told(root: Path) -> None:
    disk = StoreDisk()
    with local_store(root, disk=disk) as other, closing(sqlite3.connect(root / "index.sqlite")) as one:
        disk.pragma("busy_timeout = 10")
        one.execute("BEGIN IMMEDIATE")
        for refused in (
            other.put(DATA, owner=ALICE), other.unpin(HASH, owner=ALICE), other.gc_step(10),
        ):  # fmt: skip
            with pytest.raises(StorageError, match="another process held it"):
                await refused
        one.rollback()
        assert files_of(root) == set()
        await other.put(DATA, owner=ALICE)


def _open(root: Path) -> None:
    LocalStore.open(root).close()


async def test_blobs_without_their_index_are_not_taken_for_garbage(root: Path) -> None:
    with local_store(root) as store:
        await store.put(DATA, owner=ALICE)
    index = root / "index.sqlite"
    whole = index.read_bytes()
    for damage in (index.unlink, lambda: index.write_bytes(b"")):
        damage()
        with pytest.raises(StorageError, match="restore the file from your backup"):
            _open(root)
    index.write_bytes(whole)
    with local_store(root) as store:
        assert await store.read(HASH) == DATA


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("PRAGMA application_id = 1", "another program's"),
        ("PRAGMA user_version = 99", "newer p2pnode"),
    ],
)
def test_an_index_of_another_kind_is_refused(root: Path, change: str, words: str) -> None:
    _open(root)
    db = sqlite3.connect(root / "index.sqlite")
    db.execute(change)
    db.close()
    with pytest.raises(StorageError, match=words):
        _open(root)


def test_an_index_that_is_damaged_is_refused(root: Path) -> None:
    _open(root)
    (root / "index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="damaged"):
        _open(root)


def test_a_place_that_can_not_hold_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="store"):
        _open(tmp_path / "file" / "store")


async def test_lengths_below_zero_make_no_sense(root: Path) -> None:
    with local_store(root) as store:
        name = await store.put(DATA, owner=ALICE)
        for nonsense in (
            store.read(name.hash, -1), store.read(name.hash, 0, -1), store.put(DATA, owner=ALICE, lease_s=-1),
            store.pin(name.hash, owner=ALICE, lease_s=float("nan")),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"lease|bytes"):
                await nonsense


async def test_pages_show_everything_once(root: Path) -> None:
    with local_store(root) as store:
        for number in range(5):
            await store.put(blob(number), owner=ALICE)
        first = await store.blobs(limit=3)
        rest = await store.blobs(first[-1].id.hash, limit=3)
        assert sorted(each.id.hash for each in (*first, *rest)) == sorted(
            hash_of(blob(number)) for number in range(5)
        )
        assert FOLDERS == 65_536
        assert [(each.owner, each.leases) for each in await store.owners()] == [(ALICE, 5)]


_FORMAT_1 = """
DROP TRIGGER blob_went; DROP TRIGGER last_changed; DROP TRIGGER lease_ended; DROP INDEX blobs_last;
ALTER TABLE blobs DROP COLUMN last;
CREATE TRIGGER blob_went AFTER DELETE ON blobs BEGIN
    UPDATE totals SET blobs = blobs - 1, bytes = bytes - OLD.size, charged = charged - OLD.charge;
END;
CREATE TRIGGER lease_ended AFTER DELETE ON leases BEGIN
    UPDATE blobs SET leases = leases - 1, free_since = MAX(free_since, OLD.until) WHERE hash = OLD.hash;
    UPDATE owners SET leases = leases - 1,
        charged = charged - (SELECT charge FROM blobs WHERE hash = OLD.hash) WHERE owner = OLD.owner;
    DELETE FROM owners WHERE owner = OLD.owner AND leases = 0 AND keys = 0;
    UPDATE totals SET leases = leases - 1;
END;
PRAGMA user_version = 1;
"""


async def test_a_store_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    root, wall = tmp_path / "store", Wall()
    with local_store(root, wall, in_thread=False) as store:
        await store.put(blob(1, 8 * BLOCK), owner=ALICE)
    with sqlite3.connect(root / "index.sqlite") as db:
        db.executescript(_FORMAT_1)
    db.close()
    with local_store(root, wall, in_thread=False) as first, local_store(root, wall, in_thread=False) as store:
        assert await first.read(hash_of(blob(1, 8 * BLOCK))) == blob(1, 8 * BLOCK)
        await store.unpin(hash_of(blob(1, 8 * BLOCK)), owner=ALICE)
        assert [each.charged for each in await store.owners()] == [8 * BLOCK]  # until it is swept
        await store.put(blob(2, 8 * BLOCK), owner=ALICE)
        await store.put(blob(3, 8 * BLOCK), owner=ALICE)
        assert await store.size(hash_of(blob(1, 8 * BLOCK))) is None


async def test_what_a_clock_says_is_over_makes_room_for_others_only_where_the_clock_is_trusted(
    tmp_path: Path,
) -> None:
    wall = Wall()
    with local_store(tmp_path / "store", wall, in_thread=False, trusts_clock=False) as store:
        for number in (1, 2):
            await store.put(blob(number, 8 * BLOCK), owner=ALICE)
        await store.put(blob(3, 7 * BLOCK), owner=BOB)
        wall.now += LEASE_S + 1  # set wrong, perhaps
        with pytest.raises(QuotaError):
            await store.put(blob(4, 8 * BLOCK), owner=CAROL)
        await store.unpin(hash_of(blob(1, 8 * BLOCK)), owner=ALICE)  # she said so herself
        await store.put(blob(4, 7 * BLOCK), owner=CAROL)
        store.trust_clock_while(lambda: True)
        await store.put(blob(5, 8 * BLOCK), owner=CAROL)
