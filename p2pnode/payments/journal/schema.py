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
from p2pnode.ids import SessionId
from p2pnode.payments.journal.orders import ORDERS_TABLES
from p2pnode.payments.journal.records import unpack
from p2pnode.protocols.inference.messages import Checkpoint, SessionTerms
from p2pnode.protocols.inference.receipts import ReceiptChain
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
                upgrade(db, RECEIPTS_TABLE, TAKEN_TABLES, ORDERS_TABLES)
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


# A journal of an earlier format becomes one of format 3, in one transaction.
#
# Format 2 gave receipts their epoch: in format 1 no session outlived a start of its host, so each receipt is
# of
# its session's one epoch, and follows the one before. Format 3 has orders to the chain. Knows nothing of
# files;
# who opens at the same time waits for the same lock and finds it done.


_BOUGHT = (
    "ALTER TABLE bought ADD COLUMN final BLOB",
    "ALTER TABLE bought ADD COLUMN delivered INTEGER NOT NULL DEFAULT -1",
    "ALTER TABLE bought ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
)


def upgrade(db: sqlite3.Connection, receipts_table: str, taken_tables: str, orders_tables: str) -> None:
    """Bring ``db`` (format 1 or 2) to format 3. Changes nothing when it raises ``sqlite3.Error``
    or ``StorageError``.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found == 1:
            _upgrade(db, receipts_table, taken_tables)
        if found in (1, 2):
            _run(db, orders_tables)
            db.execute("PRAGMA user_version = 3")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _upgrade(db: sqlite3.Connection, receipts_table: str, taken_tables: str) -> None:
    db.execute("ALTER TABLE receipts RENAME TO receipts_1")
    _run(db, ";\n".join((receipts_table, taken_tables, *_BOUGHT)))
    for row in db.execute("SELECT session, epoch, terms, salt FROM hosted").fetchall():
        _move(db, row)
    db.execute("DROP TABLE receipts_1")


def _run(db: sqlite3.Connection, statements: str) -> None:
    """One by one: ``executescript`` would end the transaction."""
    for statement in statements.split(";\n"):
        if statement.strip():
            db.execute(statement)


def _move(db: sqlite3.Connection, session: sqlite3.Row) -> None:
    """One session's receipts."""
    name, epoch = SessionId(session["session"]), session["epoch"]
    model = unpack(SessionTerms, session["terms"]).model
    previous = ReceiptChain.begin(name, model, session["salt"], epoch).root
    query = "SELECT seq, receipt FROM receipts_1 WHERE session = ? ORDER BY seq"
    for row in db.execute(query, (name,)).fetchall():
        values = (name, epoch, row["seq"], previous, row["receipt"])
        db.execute("INSERT INTO receipts VALUES (?, ?, ?, ?, ?)", values)
        previous = unpack(Checkpoint, row["receipt"]).root
