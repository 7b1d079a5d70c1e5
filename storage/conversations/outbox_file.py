"""The outbox's file: SQLite in WAL mode with full syncs, so that what returned survives a power cut.

It holds no text and no keys, only ids, hashes and revisions: a disk that is read tells which conversations
there are and when they grew, no more.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from p2pnode.errors import StorageError
from p2pnode.storage.store import DiskFullError

VERSION: Final = 1
BUSY_S: Final = 5.0
_APPLICATION: Final = int.from_bytes(b"p2po", "big")
_PRIMARY: Final = 0xFF
_SCHEMA: Final = f"""
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
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
"""


def connect(path: Path, writer: bytes) -> sqlite3.Connection:
    """A connection in autocommit, the file made (with ``writer`` as its id) where it isn't.

    To be used by one thread at a time. Raises ``StorageError``.
    """
    with failing_as_storage(path):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            msg = f"{path} can't be written ({error.strerror}): fix the folder's owner and permissions"
            raise StorageError(msg) from error
        db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA fullfsync = ON")  # a plain fsync on macOS does not reach the disk
            db.execute("PRAGMA trusted_schema = OFF")
            _prepare(path, db, writer)
        except BaseException:
            db.close()
            raise
    return db


def _prepare(path: Path, db: sqlite3.Connection, writer: bytes) -> None:
    db.execute("BEGIN IMMEDIATE")  # two processes may both be the first
    try:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if not (application or version or tables):
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO writer VALUES (?)", (writer,))
            application = _APPLICATION
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    if application != _APPLICATION or version > VERSION:
        msg = f"{path} is another program's, or was written by a newer p2pnode: upgrade, or move it away"
        raise StorageError(msg)


@contextmanager
def failing_as_storage(path: Path) -> Iterator[None]:
    """SQLite's errors in here become ``StorageError``s that name the file and the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        raise _storage_error(path, error) from error


def _storage_error(path: Path, error: sqlite3.Error) -> StorageError:
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY:
        case sqlite3.SQLITE_FULL:
            msg = f"{path}: the disk is full; free space. Nothing acknowledged was lost ({error})"
            return DiskFullError(msg)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            remedy = "it can't be written: fix the owner and permissions of it and of its folder"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            remedy = f"another process held it for {BUSY_S:.0f} s: end that process, or try again"
        case _:
            remedy = (
                "the disk failed, or the file is damaged: check the disk; moved away, all that reached a "
                "replica is recovered from there"
            )
    return StorageError(f"{path}: {remedy} ({error})")
