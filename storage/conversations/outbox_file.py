"""The outbox's file: SQLite in WAL mode with full syncs, so that what returned survives a power cut.

It holds no text and no keys, only ids, hashes and revisions: a disk that is read tells which conversations
there are and when they grew, no more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from p2pnode import sqlite_files
from p2pnode.errors import StorageError
from p2pnode.sqlite_files import BUSY_S
from p2pnode.storage.store import DiskFullError

VERSION: Final = 1
_APPLICATION: Final = int.from_bytes(b"p2po", "big")
_SCHEMA: Final = """
CREATE TABLE heads (
    sid BLOB PRIMARY KEY,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    updated INTEGER NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0,
    acked INTEGER NOT NULL DEFAULT -1,
    acked_hash BLOB
) WITHOUT ROWID;
CREATE TABLE pending (
    sid BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (sid, seq, hash)
) WITHOUT ROWID;
CREATE TABLE superseded (
    sid BLOB NOT NULL, hash BLOB NOT NULL, fold INTEGER NOT NULL, PRIMARY KEY (sid, hash)
) WITHOUT ROWID;
CREATE TABLE listed (sid BLOB PRIMARY KEY, born INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE renewed (sid BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE writer (id BLOB PRIMARY KEY) WITHOUT ROWID;
"""


def connect(path: Path, writer: bytes) -> sqlite3.Connection:
    """A connection in autocommit, the file made (with ``writer`` as its id) where it isn't.

    To be used by one thread at a time. Raises ``StorageError``.
    """
    with failing_as_storage(path):
        with sqlite_files.locked(path.parent):  # two processes may both be the first
            if not path.exists():
                sqlite_files.make(path, _SCHEMA, application=_APPLICATION, version=VERSION)
        db = sqlite_files.connect(path)
        try:
            db.row_factory = sqlite3.Row
            _check_kind(path, db)
            db.execute("INSERT INTO writer SELECT ? WHERE NOT EXISTS (SELECT 1 FROM writer)", (writer,))
        except BaseException:
            db.close()
            raise
    return db


def _check_kind(path: Path, db: sqlite3.Connection) -> None:
    application, version = sqlite_files.kind_of(db)
    if application != _APPLICATION or version > VERSION:
        msg = f"{path} is another program's, or of a newer p2pnode: upgrade, or move it away"
        raise StorageError(msg)


@contextmanager
def failing_as_storage(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the disk in here become ``StorageError``s that name file and remedy."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _storage_error(path, error) from error


def _storage_error(path: Path, error: Exception) -> StorageError:
    match sqlite_files.trouble_of(error):
        case "full":
            msg = f"{path}: the disk is full; free space. Nothing acknowledged was lost ({error})"
            return DiskFullError(msg)
        case "denied":
            remedy = "it can't be written: fix the owner and permissions of it and of its folder"
        case "busy":
            remedy = f"another process held it for {BUSY_S:.0f} s: end that process, or try again"
        case _:
            remedy = (
                "the disk failed, or the file is damaged: check the disk; moved away, all that reached a "
                "replica is recovered from there"
            )
    return StorageError(f"{path}: {remedy} ({error})")
