"""The journal's file: its tables, and how a file of an earlier format becomes one of this.

Format 2 gave receipts their epoch: in format 1 no session outlived a start of its host, so each receipt is of
its session's one epoch, and follows the one before. Format 3 has orders to the chain. Format 4 has sessions
that are left and resumed later, and what was spent when: of what an earlier format holds, a settled session
was spent when it was settled and any other when it was opened. Format 5 has the window of each hosted
session, and finds what is due by an index: of what format 4 holds, a session was granted at least the
smallest window. It marks purchases whose host has finished a turn: of earlier ones that is not known.
Format 6 has the keys that apps ask with, and what is spent on each.
How the file is made, opened and written is ``durable.py``'s.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from p2pnode.durable import FileFormat, SqliteDisk, SqliteFile, run_script
from p2pnode.ids import SessionId
from p2pnode.payments.journal.keys import KEY_TABLES
from p2pnode.payments.journal.orders import ORDERS_TABLES
from p2pnode.payments.journal.records import unpack
from p2pnode.protocols.inference.messages import WINDOW, Checkpoint, SessionTerms
from p2pnode.protocols.inference.receipts import ReceiptChain

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
SPENT_TABLE: Final = """
CREATE TABLE spent (
    session BLOB NOT NULL REFERENCES bought (session),
    at INTEGER NOT NULL,
    units INTEGER NOT NULL,
    PRIMARY KEY (session, at)
) WITHOUT ROWID;
CREATE INDEX spent_by_time ON spent (at);
"""
"""What fees and vouchers of a session added in the minute that began at ``at``."""
_BY_DUE: Final = "CREATE INDEX hosted_by_due ON hosted (state, settle_at);"
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
    detail TEXT NOT NULL DEFAULT '',
    keep_s INTEGER NOT NULL DEFAULT 0,
    left_until INTEGER,
    generation INTEGER NOT NULL DEFAULT 0,
    origin TEXT NOT NULL DEFAULT '',
    window_ids INTEGER NOT NULL DEFAULT {WINDOW}
) WITHOUT ROWID;
CREATE INDEX hosted_by_state ON hosted (state, opened_at);
{_BY_DUE}
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
    owner TEXT NOT NULL DEFAULT '',
    keep_s INTEGER NOT NULL DEFAULT 0,
    settle_above INTEGER NOT NULL DEFAULT 0,
    left_until INTEGER,
    generation INTEGER NOT NULL DEFAULT 0,
    reserved INTEGER NOT NULL DEFAULT 0,
    finished INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX bought_by_state ON bought (state, opened_at);
{TAKEN_TABLES}
{SPENT_TABLE}
{KEY_TABLES}
{ORDERS_TABLES}

CREATE TABLE cursors (name TEXT PRIMARY KEY, block INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


_BOUGHT: Final = """
ALTER TABLE bought ADD COLUMN final BLOB;
ALTER TABLE bought ADD COLUMN delivered INTEGER NOT NULL DEFAULT -1;
ALTER TABLE bought ADD COLUMN owner TEXT NOT NULL DEFAULT '';
"""
"""What format 2 added to a purchase."""
_LEFT: Final = """
ALTER TABLE hosted ADD COLUMN keep_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE hosted ADD COLUMN left_until INTEGER;
ALTER TABLE hosted ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE hosted ADD COLUMN origin TEXT NOT NULL DEFAULT '';
ALTER TABLE bought ADD COLUMN keep_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE bought ADD COLUMN settle_above INTEGER NOT NULL DEFAULT 0;
ALTER TABLE bought ADD COLUMN left_until INTEGER;
ALTER TABLE bought ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE bought ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0;
"""
_SPENT_BEFORE: Final = """
INSERT INTO spent SELECT session, COALESCE(settled_at, opened_at) / 60 * 60,
    CASE state WHEN 'settled' THEN spent ELSE MAX(session_fee, voucher_amount) END
    FROM bought WHERE state != 'expired';
"""
"""What format 4 added, and what earlier formats know of it."""
_WINDOW: Final = f"""
ALTER TABLE hosted ADD COLUMN window_ids INTEGER NOT NULL DEFAULT {WINDOW};
{_BY_DUE}
ALTER TABLE bought ADD COLUMN finished INTEGER NOT NULL DEFAULT 0;
"""
"""What format 5 added."""
_ORDERS_VERSION: Final = 3
_LEFT_VERSION: Final = 4
_WINDOW_VERSION: Final = 5


def journal_file(path: Path, disk: SqliteDisk | None = None) -> SqliteFile:
    """The journal at ``path``."""
    return SqliteFile(path, _FORMAT, subject=f"the journal {path}", disk=disk)


def _upgrade(db: sqlite3.Connection, found: int) -> None:
    """From an earlier format. Raises ``sqlite3.Error``, and ``StorageError`` where a record is damaged."""
    if found == 1:
        db.execute("ALTER TABLE receipts RENAME TO receipts_1")
        run_script(db, f"{RECEIPTS_TABLE}{TAKEN_TABLES}{_BOUGHT}")
        for row in db.execute("SELECT session, epoch, terms, salt FROM hosted").fetchall():
            _copy_receipts(db, row)
        db.execute("DROP TABLE receipts_1")
    if found < _ORDERS_VERSION:
        run_script(db, ORDERS_TABLES)
    if found < _LEFT_VERSION:
        for script in (_LEFT, SPENT_TABLE, _SPENT_BEFORE):
            run_script(db, script)
    if found < _WINDOW_VERSION:
        run_script(db, _WINDOW)
    run_script(db, KEY_TABLES)


def _copy_receipts(db: sqlite3.Connection, session: sqlite3.Row) -> None:
    """One session's receipts, out of the table of format 1."""
    name, epoch = SessionId(session["session"]), session["epoch"]
    model = unpack(SessionTerms, session["terms"]).model
    previous = ReceiptChain.begin(name, model, session["salt"], epoch).root
    query = "SELECT seq, receipt FROM receipts_1 WHERE session = ? ORDER BY seq"
    for row in db.execute(query, (name,)).fetchall():
        values = (name, epoch, row["seq"], previous, row["receipt"])
        db.execute("INSERT INTO receipts VALUES (?, ?, ?, ?, ?)", values)
        previous = unpack(Checkpoint, row["receipt"]).root


_FORMAT: Final = FileFormat(
    application=int.from_bytes(b"p2pn", "big"),
    version=6,
    tables=_SCHEMA,
    foreign="it is no journal. Restore it from your backup, or move it away to begin a new one",
    remedies={
        "damaged": (
            "it is damaged: restore it from your backup. It holds vouchers not yet settled and keys of "
            "sessions, so it is never replaced by itself; move it away only if you give those up"
        )
    },
    secret=True,
    upgrade=_upgrade,
)
