"""SQLite files that must not be lost: made whole or not at all, opened to be durable, their errors sorted.

What such a file is, which tables it has and what a user should do about it, its owner knows.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias

BUSY_S: Final = 5.0
"""How long another process may hold a file before that is an error."""
Trouble: TypeAlias = Literal["full", "denied", "busy", "damaged", "disk"]
_PRIMARY: Final = 0xFF
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
)


def connect(path: Path, *, synchronous: str = "FULL") -> sqlite3.Connection:
    """A connection in autocommit, to be used by one thread at a time; what commits survives a power cut.

    Raises ``sqlite3.Error``.
    """
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute("PRAGMA fullfsync = ON")  # a plain fsync on macOS does not reach the disk
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        db.close()
        raise
    return db


def kind_of(db: sqlite3.Connection) -> tuple[int, int]:
    """The application id and the format that a file says it is of."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    return int(application), int(db.execute("PRAGMA user_version").fetchone()[0])


def make(path: Path, script: str, *, application: int, version: int) -> None:
    """Make a file with the tables of ``script`` and mode 0600; whole, or not there. Hold :func:`locked`.

    Raises ``sqlite3.Error``, ``OSError``.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    os.close(handle)
    try:
        db = sqlite3.connect(name, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            kind = f"PRAGMA application_id = {application}; PRAGMA user_version = {version};"
            db.executescript(f"BEGIN;{script}{kind}COMMIT;")
        finally:
            db.close()  # the last one out moves the log into the file
        Path(name).replace(path)
    except BaseException:
        for leftover in (name, f"{name}-wal", f"{name}-shm"):
            Path(leftover).unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time looks whether a file is there. What it made is durable when it lets go."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def trouble_of(error: Exception) -> Trouble:
    """What kind of trouble an ``sqlite3.Error`` or ``OSError`` stands for."""
    if isinstance(error, OSError):
        if error.errno in _NO_SPACE:
            return "full"
        return "denied" if isinstance(error, PermissionError) else "disk"
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    code = extended & _PRIMARY
    if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:  # no room for the log's index
        return "full"
    if code in _DENIED:
        return "denied"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "busy"
    return "disk" if code == sqlite3.SQLITE_IOERR else "damaged"
