"""One SQLite file: made whole, told from others, brought up to date once, written in groups."""

from __future__ import annotations

import errno
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.durable import FileFormat, GroupCommit, Request, SqliteFile, Trouble, run_script, trouble_of
from p2pnode.errors import LocalError, StorageError
from tests.sqlite_disk import WatchedDisk

FIRST = FileFormat(
    application=7,
    version=1,
    tables="CREATE TABLE lines (number INTEGER PRIMARY KEY, text TEXT NOT NULL);",
    foreign="move it away",
)


class FullError(StorageError):
    """Raised where the disk is full."""


def _add_colour(db: sqlite3.Connection, found: int) -> None:
    assert found == 1
    run_script(db, "ALTER TABLE lines ADD COLUMN colour TEXT NOT NULL DEFAULT 'red';\n")


SECOND = FileFormat(
    application=7,
    version=2,
    tables="CREATE TABLE lines (number INTEGER PRIMARY KEY, text TEXT NOT NULL, colour TEXT NOT NULL);",
    foreign="move it away",
    remedies={"damaged": "look into your backup"},
    full_error=FullError,
    upgrade=_add_colour,
)


@pytest.fixture
def disk() -> WatchedDisk:
    return WatchedDisk()


@pytest.fixture
def file(tmp_path: Path, disk: WatchedDisk) -> SqliteFile:
    """A file of the first format, as a message calls it."""
    made = SqliteFile(tmp_path / "lines.sqlite", FIRST, subject="the lines", disk=disk)
    made.make_if_missing()
    return made


@pytest.fixture
def db(file: SqliteFile) -> Iterator[sqlite3.Connection]:
    connection = file.connect()
    yield connection
    connection.close()


def texts(db: sqlite3.Connection) -> list[str]:
    return [row["text"] for row in db.execute("SELECT text FROM lines ORDER BY number")]


def test_a_file_is_private_and_synced_at_every_commit(file: SqliteFile, db: sqlite3.Connection) -> None:
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_making_it_again_changes_nothing(file: SqliteFile, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO lines VALUES (1, 'kept')")
    file.make_if_missing()
    assert texts(db) == ["kept"]


def test_a_file_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    broken = FileFormat(application=7, version=1, tables="CREATE TABLE;", foreign="")
    with pytest.raises(StorageError, match="syntax error"):
        SqliteFile(tmp_path / "lines.sqlite", broken).make_if_missing()
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_folder_the_message_names_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="choose another with --data-dir"):
        SqliteFile(tmp_path / "none" / "lines.sqlite", FIRST).make_if_missing()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("PRAGMA application_id = 8", "another program's: move it away"),
        ("PRAGMA user_version = 0", "another program's: move it away"),
        ("PRAGMA user_version = 3", "written by a newer p2pnode .format 3, this one knows 1.: upgrade"),
    ],
)
def test_a_file_of_another_program_or_of_a_newer_one_is_left_alone(
    file: SqliteFile, harm: str, words: str
) -> None:
    other = sqlite3.connect(file.path)
    other.execute(harm)
    other.close()
    with pytest.raises(StorageError, match=words):
        file.connect()


def test_an_earlier_format_is_brought_up_to_date_once(file: SqliteFile, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO lines VALUES (1, 'old')")
    for _ in range(2):
        after = SqliteFile(file.path, SECOND).connect()
        assert [tuple(row) for row in after.execute("SELECT * FROM lines")] == [(1, "old", "red")]
        assert after.execute("PRAGMA user_version").fetchone()[0] == 2
        after.close()


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(file: SqliteFile, db: sqlite3.Connection) -> None:
    def fail(db: sqlite3.Connection, _found: int) -> None:
        db.execute("ALTER TABLE lines ADD COLUMN colour TEXT")
        msg = "a line is damaged"
        raise StorageError(msg)

    broken = FileFormat(application=7, version=2, tables="", foreign="", upgrade=fail)
    with pytest.raises(StorageError, match="a line is damaged"):
        SqliteFile(file.path, broken).connect()
    assert db.execute("PRAGMA user_version").fetchone()[0] == 1
    assert [row["name"] for row in db.execute("SELECT name FROM pragma_table_info('lines')")] == [
        "number",
        "text",
    ]


def test_a_script_runs_inside_the_transaction_of_its_caller(db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    run_script(
        db,
        "CREATE TABLE marks (number INTEGER);\n"
        "CREATE TRIGGER came AFTER INSERT ON lines BEGIN\n"
        "    INSERT INTO marks VALUES (NEW.number);\n"
        "    INSERT INTO marks VALUES (-NEW.number);\n"
        "END;\n",
    )
    db.execute("INSERT INTO lines VALUES (1, 'one')")
    assert [row["number"] for row in db.execute("SELECT number FROM marks")] == [1, -1]
    db.execute("ROLLBACK")
    assert texts(db) == []
    with pytest.raises(ValueError, match="has no end"):
        run_script(db, "SELECT 1;\nSELECT (")


def test_a_transaction_that_raises_is_undone(file: SqliteFile, db: sqlite3.Connection) -> None:
    def refuse(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO lines VALUES (1, 'one')")
        msg = "refused"
        raise LocalError(msg)

    with pytest.raises(LocalError, match="refused"):
        file.transact(db, refuse)
    assert texts(db) == []
    assert file.transact(db, lambda db: db.execute("SELECT 5").fetchone()[0]) == 5


# ---- groups


def adding(number: int, *, fails: Exception | None = None) -> Request[sqlite3.Connection, int]:
    def operation(db: sqlite3.Connection) -> int:
        db.execute("INSERT INTO lines VALUES (?, ?)", (number, str(number)))
        if fails is not None:
            raise fails
        return number

    return Request(operation)


def written(file: SqliteFile, db: sqlite3.Connection, *group: Request[sqlite3.Connection, int]) -> bool:
    writer = GroupCommit[sqlite3.Connection](file, db)
    return writer.commit(group, db, lambda: file.disk.commit(db))


def test_a_group_is_one_transaction(file: SqliteFile, db: sqlite3.Connection, disk: WatchedDisk) -> None:
    group = [adding(number) for number in (1, 2, 3)]
    assert written(file, db, *group)
    assert disk.commits == 1
    assert [each.result for each in group] == [1, 2, 3]
    assert texts(db) == ["1", "2", "3"]


@pytest.mark.parametrize("others", [(), (2, 3)], ids=["alone", "among others"])
@pytest.mark.parametrize("error", [LocalError("no"), KeyError("a defect"), OSError(errno.EIO, "bad sector")])
def test_an_operation_that_raises_undoes_itself_alone(
    file: SqliteFile, db: sqlite3.Connection, error: Exception, others: tuple[int, ...]
) -> None:
    failing = adding(1, fails=error)
    group = [adding(number) for number in others]
    assert written(file, db, failing, *group)
    assert failing.error is not None
    assert failing.error is error or isinstance(failing.error, StorageError)
    assert [each.error for each in group] == [None] * len(others)
    assert texts(db) == [str(number) for number in others]
    assert not db.in_transaction


def test_what_the_tables_do_not_take_ends_one_operation(file: SqliteFile, db: sqlite3.Connection) -> None:
    first, second, third = adding(1), adding(1), adding(2)
    assert written(file, db, first, second, third)
    assert "the lines does not take this" in str(second.error)
    assert texts(db) == ["1", "2"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space"), sqlite3.OperationalError("disk I/O error")]
)
def test_a_disk_that_fails_undoes_the_whole_group(
    file: SqliteFile, db: sqlite3.Connection, error: Exception
) -> None:
    def finish() -> None:
        raise error

    group = [adding(1), adding(2)]
    writer = GroupCommit[sqlite3.Connection](SqliteFile(file.path, SECOND), db)
    assert not writer.commit(group, db, finish)
    assert all(isinstance(each.error, StorageError) for each in group)
    assert isinstance(group[0].error, FullError) is isinstance(error, OSError)
    assert texts(db) == []
    assert not db.in_transaction


def failed(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (failed(sqlite3.SQLITE_FULL), "full"),
        (failed(sqlite3.SQLITE_IOERR_SHMSIZE), "full"),  # what opening on a full disk gives
        (failed(sqlite3.SQLITE_IOERR_READ), "disk"),
        (failed(sqlite3.SQLITE_BUSY), "busy"),
        (failed(sqlite3.SQLITE_CORRUPT), "damaged"),
        (failed(sqlite3.SQLITE_CANTOPEN), "denied"),
        (OSError(errno.ENOSPC, "no space"), "full"),
        (OSError(errno.EIO, "bad sector"), "disk"),
        (PermissionError(errno.EACCES, "denied"), "denied"),
    ],
)
def test_an_error_is_the_trouble_that_the_user_can_mend(error: Exception, trouble: Trouble) -> None:
    assert trouble_of(error) == trouble
