"""A journal of an earlier format becomes one of format 3, in one transaction.

Format 2 gave receipts their epoch: in format 1 no session outlived a start of its host, so each receipt is of
its session's one epoch, and follows the one before. Format 3 has orders to the chain. Knows nothing of files;
who opens at the same time waits for the same lock and finds it done.
"""

from __future__ import annotations

import sqlite3

from p2pnode.ids import SessionId
from p2pnode.payments.journal.records import unpack
from p2pnode.protocols.inference.messages import Checkpoint, SessionTerms
from p2pnode.protocols.inference.receipts import ReceiptChain

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
