"""What a client was shown of its hosts' receipts, and what of it is evidence, inside a transaction.

The first receipt for a place is kept; a second with another root makes both evidence, once for each place,
as the contract punishes it. Whoever calls has checked that the host signed them. Bounded: of a session the
newest are kept, and of one that is over none after a month. It judges nothing.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from p2pnode.ids import PeerId, SessionId
from p2pnode.payments.journal.records import Evidence, pack, unpack
from p2pnode.protocols.inference.messages import Receipt, SessionTerms

TAKEN_MAX: Final = 8192
"""Receipts of one session: a quarter of a million tokens, some 2 MB."""


def shown(db: sqlite3.Connection, session: SessionId, receipt: Receipt, *, held: bool, now: int) -> None:
    """A receipt that its host signed; ``held``: it agrees with what was received."""
    told, packed = receipt.checkpoint, pack(receipt)
    place = (session, receipt.epoch, told.seq)
    known = db.execute(
        "SELECT root, held, receipt FROM taken WHERE session = ? AND epoch = ? AND seq = ?", place
    ).fetchone()
    if known is not None and known["root"] != told.root:
        db.execute(
            "INSERT INTO evidence (session, epoch, seq, one, other, noted_at) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (*place, known["receipt"], packed, now),
        )
    if known is None or held:
        db.execute(
            "INSERT INTO taken VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (session, epoch, seq) DO UPDATE"
            " SET root = excluded.root, held = excluded.held, receipt = excluded.receipt",
            (*place, told.root, int(held), packed),
        )
    if known is None:
        _prune(db, session, receipt.epoch, told.seq)


def _prune(db: sqlite3.Connection, session: SessionId, epoch: int, seq: int) -> None:
    if seq % 256:
        return
    db.execute(
        "DELETE FROM taken WHERE session = ? AND (epoch, seq) <= (SELECT epoch, seq FROM taken"
        " WHERE session = ? AND (epoch, seq) <= (?, ?) ORDER BY epoch DESC, seq DESC LIMIT 1 OFFSET ?)",
        (session, session, epoch, seq, TAKEN_MAX),
    )


def prune(db: sqlite3.Connection, before: int) -> None:
    """Drop the receipts of sessions opened before ``before`` that are over for good. Evidence stays."""
    db.execute(
        "DELETE FROM taken WHERE session IN"
        " (SELECT session FROM bought WHERE state IN ('settled', 'expired') AND opened_at < ?)",
        (before,),
    )


def submitted(db: sqlite3.Connection, session: SessionId, epoch: int, seq: int, outcome: str) -> None:
    """What came of showing it to the contract."""
    db.execute(
        "UPDATE evidence SET outcome = ? WHERE session = ? AND epoch = ? AND seq = ?",
        (outcome, session, epoch, seq),
    )


# ---- questions


def held(db: sqlite3.Connection, session: SessionId) -> list[Receipt]:
    """Those of one session that agreed with what was received, in order."""
    rows = db.execute("SELECT receipt FROM taken WHERE session = ? AND held ORDER BY epoch, seq", (session,))
    return [unpack(Receipt, row["receipt"]) for row in rows]


def with_root(db: sqlite3.Connection, session: SessionId, root: bytes) -> Receipt | None:
    """The one that was checked and has this root."""
    row = db.execute(
        "SELECT receipt FROM taken WHERE session = ? AND held AND root = ? ORDER BY epoch DESC",
        (session, root),
    ).fetchone()
    return None if row is None else unpack(Receipt, row["receipt"])


def evidence(db: sqlite3.Connection) -> list[Evidence]:
    """All there is, the oldest first."""
    rows = db.execute(
        "SELECT evidence.*, bought.terms, bought.peer FROM evidence JOIN bought USING (session)"
        " ORDER BY noted_at, session, epoch, seq"
    )
    return [
        Evidence(
            session=SessionId(row["session"]),
            terms=unpack(SessionTerms, row["terms"]),
            host=PeerId(row["peer"]),
            one=unpack(Receipt, row["one"]),
            other=unpack(Receipt, row["other"]),
            noted_at=row["noted_at"],
            outcome=row["outcome"],
        )
        for row in rows
    ]
