"""The journal's file: made whole or not at all, opened the same way by every process, never replaced.

SQLite in WAL mode with full syncs: a commit that returned survives a power cut. The file is made beside
its place and renamed into it under a lock of the folder, so that an empty journal is always a damaged one.
One of an earlier format is brought up to date when it is opened (``journal_upgrade.py``). Knows nothing of
sessions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from p2pnode import sqlite_files
from p2pnode.errors import StorageError
from p2pnode.payments.journal import migration as journal_upgrade
from p2pnode.payments.journal.orders import ORDERS_TABLES
from p2pnode.sqlite_files import BUSY_S

VERSION: Final = 3
_APPLICATION: Final = int.from_bytes(b"p2pn", "big")
RECEIPTS_TABLE: Final = """
CREATE TABLE receipts (
    session BLOB NOT NULL REFERENCES hosted (session),
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    previous BLOB NOT NULL,
    receipt BLOB NOT NULL,
    PRIMARY KEY (session, epoch, seq)
) WITHOUT ROWID;
"""
"""What a host issued."""
TAKEN_TABLES: Final = """
CREATE TABLE taken (
    session BLOB NOT NULL REFERENCES bought (session),
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    root BLOB NOT NULL,
    held INTEGER NOT NULL,
    receipt BLOB NOT NULL,
    PRIMARY KEY (session, epoch, seq)
) WITHOUT ROWID;

CREATE TABLE evidence (
    session BLOB NOT NULL REFERENCES bought (session),
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    one BLOB NOT NULL,
    other BLOB NOT NULL,
    noted_at INTEGER NOT NULL,
    outcome TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (session, epoch, seq)
) WITHOUT ROWID;
"""
"""What a client was shown, and what of it accuses a host."""
_SCHEMA: Final = f"""
CREATE TABLE hosted (
    session BLOB PRIMARY KEY,
    payer BLOB NOT NULL,
    session_fee INTEGER NOT NULL,
    terms BLOB NOT NULL,
    salt BLOB NOT NULL,
    authorisation BLOB NOT NULL,
    valid_before INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    peer TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('relaying', 'open', 'over', 'settled', 'lost')),
    voucher BLOB,
    voucher_amount INTEGER NOT NULL DEFAULT -1,
    settle_at INTEGER,
    amount INTEGER,
    detail TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX hosted_by_state ON hosted (state, opened_at);
CREATE INDEX hosted_by_payer ON hosted (payer, state);

{RECEIPTS_TABLE}

CREATE TABLE bought (
    session BLOB PRIMARY KEY,
    payer BLOB NOT NULL,
    host BLOB NOT NULL,
    peer TEXT NOT NULL,
    addresses BLOB NOT NULL,
    deposit INTEGER NOT NULL,
    session_fee INTEGER NOT NULL,
    tip INTEGER NOT NULL,
    terms BLOB NOT NULL,
    voucher_secret BLOB NOT NULL,
    valid_before INTEGER NOT NULL,
    opened_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('signed', 'open', 'over', 'settled', 'expired')),
    voucher BLOB,
    voucher_amount INTEGER NOT NULL DEFAULT -1,
    seen_open INTEGER NOT NULL DEFAULT 0,
    accepted INTEGER NOT NULL DEFAULT 0,
    spent INTEGER,
    settled_at INTEGER,
    final BLOB,
    delivered INTEGER NOT NULL DEFAULT -1,
    owner TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX bought_by_state ON bought (state, opened_at);
{TAKEN_TABLES}
{ORDERS_TABLES}

CREATE TABLE cursors (name TEXT PRIMARY KEY, block INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


def make_if_missing(path: Path) -> None:
    """Make an empty journal (0600) where there is no file. Raises ``StorageError``."""
    try:
        with sqlite_files.locked(path.parent):
            if not path.exists():
                sqlite_files.make(path, _SCHEMA, application=_APPLICATION, version=VERSION)
            elif path.stat().st_mode & 0o077:
                path.chmod(0o600)  # it holds voucher keys
    except OSError as error:
        msg = (
            f"{path} can't be made or read ({error.strerror}): fix the folder's owner and permissions, "
            "free space, or choose another with --data-dir"
        )
        raise StorageError(msg) from error
    except sqlite3.Error as error:
        raise storage_error(path, error) from error


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit, to be used by one thread at a time. Raises ``StorageError``."""
    with failing_as_storage(path):
        db = sqlite_files.connect(path)
        try:
            db.row_factory = sqlite3.Row
            version = _check_kind(path, db)
            if version < VERSION:
                journal_upgrade.upgrade(db, RECEIPTS_TABLE, TAKEN_TABLES, ORDERS_TABLES)
        except BaseException:
            db.close()
            raise
    return db


@contextmanager
def failing_as_storage(path: Path) -> Iterator[None]:
    """SQLite's errors in here become ``StorageError``s that name the file and the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: sqlite3.Error) -> StorageError:
    """What an error of SQLite means for the user. What was acknowledged before it is safe in each case."""
    match sqlite_files.trouble_of(error):
        case "full":
            remedy = "the disk is full: free space, then start again; nothing acknowledged was lost"
        case "denied":
            remedy = "it can't be written: fix the owner and permissions of it and of its folder"
        case "busy":
            remedy = f"another process held it for {BUSY_S:.0f} s: end that process, or try again"
        case "disk":
            remedy = (
                "the disk failed or takes no more: check its space, its quota and its health, "
                "then start again; nothing acknowledged was lost"
            )
        case _:
            remedy = (
                "it is damaged: restore it from your backup. It holds vouchers not yet settled and keys of "
                "sessions, so it is never replaced by itself; move it away only if you give those up"
            )
    return StorageError(f"the journal {path}: {remedy} ({error})")


def _check_kind(path: Path, db: sqlite3.Connection) -> int:
    application, version = sqlite_files.kind_of(db)
    if application != _APPLICATION or version < 1:
        msg = (
            f"{path} is empty, or another program's: it is no journal. Restore it from your backup, or "
            "move it away to begin a new one"
        )
        raise StorageError(msg)
    if version > VERSION:
        msg = f"{path} was written by a newer p2pnode (format {version}, this one knows {VERSION}): upgrade"
        raise StorageError(msg)
    return version
