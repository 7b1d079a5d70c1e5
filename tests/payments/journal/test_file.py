"""The journal's file: private, named when it is damaged, never replaced, and safe when the disk is full."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnode.errors import StorageError
from p2pnode.payments.journal.journal import Journal
from tests.payments.journals import NOW, Anything, bought, hosted, receipt, session, voucher, writing
from tests.sqlite_disk import WatchedDisk


def _lines(code: str, *paths: Path) -> list[str]:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


async def test_the_file_and_what_stands_beside_it_are_private(path: Path) -> None:
    async with writing(path) as journal:
        await journal.host_relaying(hosted(1))
        beside = sorted(path.parent.iterdir())
        assert path in beside
        assert len(beside) == 3
        for each in beside:
            assert stat.S_IMODE(each.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_made_private(path: Path) -> None:
    Journal.open(path).close()
    path.chmod(0o644)
    Journal.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_commit_is_synced_to_the_disk(path: Path) -> None:
    disk = WatchedDisk()
    journal = Journal.open(path, disk=disk)
    assert len(disk.connections) == 2
    for db in disk.connections:
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db.execute("PRAGMA foreign_keys").fetchone()[0] == 1
        assert db.execute("PRAGMA busy_timeout").fetchone()[0] == 5000
    journal.close()


def _truncate(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("not a database at all, but long enough to look like something" * 20)


def _other_program(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE bookmarks (url TEXT)")
    db.close()


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize("harm", [_truncate, _text, _other_program, _half])
def test_a_damaged_file_is_named_and_never_replaced(path: Path, harm: Callable[[Path], None]) -> None:
    Journal.open(path).close()
    harm(path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"journal\.sqlite.*from your backup") as caught:
        _use(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def _use(path: Path) -> None:
    journal = Journal.open(path)
    try:
        journal.verify()
    finally:
        journal.close()


def _scratch(path: Path) -> None:
    body = bytearray(path.read_bytes())
    for at in range(len(body) - 8 * 4096, len(body), 4096):  # the rows, which came after the schema
        body[at : at + 64] = b"\xa5" * 64
    path.write_bytes(body)


async def test_a_damaged_page_in_the_middle_is_told(path: Path) -> None:
    async with writing(path) as journal:
        for number in range(60):
            await journal.host_relaying(hosted(number))
        journal.verify()
    _scratch(path)
    journal = Journal.open(path)
    with pytest.raises(StorageError, match="is damaged"):
        journal.verify()
    with pytest.raises(StorageError, match="damaged"):
        journal.hosted()
    journal.close()


async def test_a_damaged_record_is_told(path: Path) -> None:
    async with writing(path) as journal:
        await journal.host_relaying(hosted(1))
    db = sqlite3.connect(path)
    db.execute("UPDATE hosted SET terms = x'c0'")
    db.commit()
    db.close()
    journal = Journal.open(path)
    with pytest.raises(StorageError, match="SessionTerms in the journal is damaged"):
        journal.hosted()
    journal.close()


def test_a_journal_of_a_newer_version_asks_for_an_upgrade(path: Path) -> None:
    Journal.open(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StorageError, match=r"written by a newer p2pnode .format 99.*upgrade"):
        Journal.open(path)


def test_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="choose another with --data-dir"):
        Journal.open(tmp_path / "none" / "journal.sqlite")
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(StorageError, match="fix the owner and permissions"):
        Journal.open(tmp_path / "journal.sqlite")


async def test_two_writers_wait_for_one_another_and_one_that_never_ends_is_told(path: Path) -> None:
    disk = WatchedDisk()
    async with writing(path, disk) as journal:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        disk.pragma("busy_timeout = 50")
        with pytest.raises(StorageError, match="another process held it"):
            await journal.host_relaying(hosted(1))
        other.execute("ROLLBACK")
        other.close()
        await journal.host_relaying(hosted(1))
        assert len(journal.hosted()) == 1


_FULL = """
import resource, signal, sys, trio
from pathlib import Path
from p2pnode.errors import StorageError
from tests.payments.journals import hosted, receipt, session, writing

async def main(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with writing(path) as journal:
        await journal.host_relaying(hosted(1))
        size = (path.parent / (path.name + "-wal")).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 60_000, resource.RLIM_INFINITY))
        written = 0
        try:
            for seq in range(1, 1000):
                await journal.host_issued(session(1), receipt(seq))
                written = seq
        except StorageError as error:
            print(error)
        assert [each.seq for each in journal.receipts(session(1))] == list(range(1, written + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await journal.host_issued(session(1), receipt(written + 1))
        journal.verify()
        print(written + 1)

trio.run(main, Path(sys.argv[1]))
"""


async def test_a_disk_that_takes_no_more_is_told_and_nothing_acknowledged_is_lost(path: Path) -> None:
    message, written = _lines(_FULL, path)
    assert "takes no more" in message or "the disk is full" in message
    assert "nothing acknowledged was lost" in message
    assert str(path) in message
    assert 10 < int(written) < 1000
    journal = Journal.open(path)
    assert [each.seq for each in journal.receipts(session(1))] == list(range(1, int(written) + 1))
    journal.close()


async def _fill(journal: Journal) -> None:
    for seq in range(1, 1000):
        await journal.host_issued(session(1), receipt(seq))


async def test_a_full_disk_is_told_as_sqlite_knows_it(path: Path) -> None:
    disk = WatchedDisk()
    async with writing(path, disk) as journal:
        await journal.host_relaying(hosted(1))
        pages = disk.connections[0].execute("PRAGMA page_count").fetchone()[0]
        disk.pragma(f"max_page_count = {pages + 2}")
        with pytest.raises(StorageError, match="free space, then start again"):
            await _fill(journal)
        kept = len(journal.receipts(session(1)))
        assert kept > 0
        disk.pragma("max_page_count = 100000")
        await journal.host_issued(session(1), receipt(kept + 1))
        assert len(journal.receipts(session(1))) == kept + 1


_READ_ONLY = """
import os, sys, trio
from pathlib import Path
from p2pnode.errors import StorageError
from tests.payments.journals import hosted, writing

async def main(path):
    async with writing(path) as journal:
        await journal.host_relaying(hosted(2))

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for path in map(Path, sys.argv[1:]):
    try:
        trio.run(main, path, strict_exception_groups=False)
        print("written")
    except StorageError as error:
        print(error)
"""


def test_a_journal_that_can_not_be_written_is_told() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        paths = [folder / name / "journal.sqlite" for name in ("file", "both")]
        for path, folder_mode in zip(paths, (0o777, 0o555), strict=True):
            path.parent.mkdir()
            Journal.open(path).close()
            path.chmod(0o444)
            path.parent.chmod(folder_mode)
        folder.chmod(0o755)
        try:
            messages = _lines(_READ_ONLY, *paths)
        finally:
            for path in paths:
                path.parent.chmod(0o755)
    assert len(messages) == 2
    for path, message in zip(paths, messages, strict=True):
        assert str(path) in message
        assert "owner and permissions" in message


async def test_no_secret_is_in_an_error_of_the_disk(path: Path) -> None:
    disk = WatchedDisk()
    async with writing(path, disk) as journal:
        await journal.bought(bought(1), Anything(), NOW)
        disk.pragma("query_only = ON")
        with pytest.raises(StorageError, match="owner and permissions") as caught:
            await journal.signed(session(1), voucher(1, 1), NOW)
        assert bought(1).voucher_secret.hex() not in repr(caught.value)
