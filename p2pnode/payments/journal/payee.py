"""A host's half of the journal: what happens to ``hosted`` and ``receipts``, inside a transaction.

::

    relaying ──> open <──> over ──> settled
        └───> lost <──┴──────┘

What the chain says may be heard twice: ``opened`` and ``settled`` change nothing where it is known. A session
that is *left* is ``over``, to be settled when its time is up; until then its client may resume it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from p2pnode.errors import StorageError
from p2pnode.ids import SessionId
from p2pnode.payments.journal.records import (
    HostedSession,
    HostedState,
    hosted_of,
    move,
    pack,
    state_of,
    unpack,
)
from p2pnode.protocols.inference.messages import Checkpoint, Receipt, Voucher


def relaying(db: sqlite3.Connection, record: HostedSession) -> None:
    """Insert a new session. One that is known is refused: its terms were used."""
    terms = record.terms
    if one(db, record.session) is not None:
        msg = f"session {record.session.hex()} is in the journal already"
        raise StorageError(msg)
    db.execute(
        "INSERT INTO hosted (session, payer, session_fee, terms, salt, authorisation, valid_before, epoch,"
        " peer, opened_at, state, voucher, voucher_amount, settle_at, amount, detail, keep_s, left_until,"
        " generation, origin, window_ids)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.session, terms.payer, terms.session_fee, pack(terms), record.salt, record.authorisation,
            record.valid_before, record.epoch, record.peer, record.opened_at, record.state,
            pack(record.voucher), -1 if record.voucher is None else record.voucher.amount,
            record.settle_at, record.amount, record.detail, record.keep_s, record.left_until,
            record.generation, record.origin, record.window,
        ),
    )  # fmt: skip


def opened(db: sqlite3.Connection, session: SessionId) -> None:
    """The deposit is in escrow."""
    move(db, "hosted", session, ("relaying", "lost"), "open", same=("open", "over", "settled"))


def lost(db: sqlite3.Connection, session: SessionId, detail: str) -> None:
    """The session is not on the chain, or no longer."""
    move(db, "hosted", session, ("relaying", "open", "over", "lost"), "lost")
    db.execute(
        "UPDATE hosted SET detail = ?, settle_at = NULL, left_until = NULL WHERE session = ?",
        (detail, session),
    )


def over(db: sqlite3.Connection, session: SessionId, settle_at: int) -> None:
    """The session is served no more: it settles at ``settle_at``."""
    move(db, "hosted", session, ("relaying", "open", "over"), "over", same=("settled",))
    db.execute(
        "UPDATE hosted SET settle_at = ?, left_until = NULL WHERE session = ? AND state = 'over'",
        (settle_at, session),
    )


def left(db: sqlite3.Connection, session: SessionId, until: int) -> None:
    """Its client left it: it may be resumed until ``until``, and is settled then. Of one that is settled
    nothing changes.
    """
    move(db, "hosted", session, ("open", "over"), "over", same=("settled",))
    db.execute(
        "UPDATE hosted SET settle_at = ?, left_until = ? WHERE session = ? AND state = 'over'",
        (until, until, session),
    )


def taken_up(db: sqlite3.Connection, session: SessionId, epoch: int, generation: int) -> None:
    """A client resumed what was left, for the ``generation``-th time, in the start ``epoch``."""
    held = db.execute("SELECT epoch, generation FROM hosted WHERE session = ?", (session,)).fetchone()
    move(db, "hosted", session, ("over",), "open", same=("open",))
    if held["epoch"] > epoch or held["generation"] != generation - 1:
        msg = (
            f"session {session.hex()} went on elsewhere already: its receipts could contradict. Is another "
            "node using a copy of this data dir?"
        )
        raise StorageError(msg)
    db.execute(
        "UPDATE hosted SET epoch = ?, generation = ?, settle_at = NULL, left_until = NULL WHERE session = ?",
        (epoch, generation, session),
    )


def resumed(db: sqlite3.Connection, session: SessionId, epoch: int | None) -> None:
    """The client came back before it was settled; with an ``epoch``, to another start of this host."""
    move(db, "hosted", session, ("over",), "open", same=("open",))
    if epoch is not None:
        held = db.execute("SELECT epoch FROM hosted WHERE session = ?", (session,)).fetchone()
        if held["epoch"] >= epoch:
            msg = (
                f"session {session.hex()} went on at another start of this host already: its receipts could "
                "contradict. Is another node using a copy of this data dir?"
            )
            raise StorageError(msg)
        db.execute("UPDATE hosted SET epoch = ? WHERE session = ?", (epoch, session))
    db.execute("UPDATE hosted SET settle_at = NULL, left_until = NULL WHERE session = ?", (session,))


def left_open(
    db: sqlite3.Connection, session: SessionId, settle_at: int, left_until: int | None, epoch: int
) -> None:
    """An earlier start than ``epoch`` left it open: it settles at ``settle_at``, or its client comes back."""
    db.execute(
        "UPDATE hosted SET state = 'over', settle_at = ?, left_until = ?"
        " WHERE session = ? AND state IN ('open', 'relaying') AND epoch < ?",
        (settle_at, left_until, session, epoch),
    )


def settled(db: sqlite3.Connection, session: SessionId, amount: int, detail: str) -> None:
    """The chain paid ``amount``."""
    move(db, "hosted", session, ("relaying", "open", "over", "lost", "settled"), "settled")
    db.execute(
        "UPDATE hosted SET settle_at = NULL, left_until = NULL, amount = ?, detail = ? WHERE session = ?",
        (amount, detail, session),
    )


def issued(db: sqlite3.Connection, session: SessionId, receipt: Receipt) -> None:
    """Insert a receipt. A place has one for ever: a second one with another content would cost the stake."""
    packed, place = pack(receipt.checkpoint), (session, receipt.epoch, receipt.checkpoint.seq)
    held = db.execute(
        "SELECT receipt FROM receipts WHERE session = ? AND epoch = ? AND seq = ?", place
    ).fetchone()
    if held is None:
        db.execute("INSERT INTO receipts VALUES (?, ?, ?, ?, ?)", (*place, receipt.previous, packed))
    elif held["receipt"] != packed:
        msg = (
            f"session {session.hex()} has another receipt {place[2]} already: two would be evidence "
            "against this host. Is another node using a copy of this data dir?"
        )
        raise StorageError(msg)


def paid(db: sqlite3.Connection, session: SessionId, voucher: Voucher) -> None:
    """Set the best voucher. A lower one changes nothing; of equal amounts the later one says more."""
    changed = db.execute(
        "UPDATE hosted SET voucher = ?, voucher_amount = ? WHERE session = ? AND voucher_amount <= ?",
        (pack(voucher), voucher.amount, session, voucher.amount),
    )
    if not changed.rowcount:
        state_of(db, "hosted", session)


def prune(db: sqlite3.Connection, before: int) -> None:
    """Drop the receipts of sessions opened before ``before`` that are settled or lost."""
    db.execute(
        "DELETE FROM receipts WHERE session IN"
        " (SELECT session FROM hosted WHERE state IN ('settled', 'lost') AND opened_at < ?)",
        (before,),
    )


# ---- questions


def some(db: sqlite3.Connection, states: tuple[HostedState, ...]) -> list[HostedSession]:
    """Sessions in any of these states, the oldest first."""
    marks = ", ".join("?" * len(states))
    query = f"SELECT * FROM hosted WHERE state IN ({marks}) ORDER BY opened_at, session"  # noqa: S608 - marks
    return [hosted_of(row) for row in db.execute(query, states)]


def count(db: sqlite3.Connection, states: tuple[HostedState, ...]) -> int:
    """How many sessions are in any of these states."""
    marks = ", ".join("?" * len(states))
    query = f"SELECT COUNT(*) FROM hosted WHERE state IN ({marks})"  # noqa: S608 - marks
    return int(db.execute(query, states).fetchone()[0])


def by_due(db: sqlite3.Connection, until: float) -> Iterator[HostedSession]:
    """Those that are over and to be settled until then, the one that is due first first.

    Each row is read when it is asked for, so that the first one costs no more where a thousand follow it.
    None that is over lacks its time: what writes this state writes ``settle_at``, too.
    """
    query = "SELECT * FROM hosted WHERE state = 'over' AND settle_at <= ? ORDER BY settle_at, session"
    return map(hosted_of, db.execute(query, (until,)))


def one(db: sqlite3.Connection, session: SessionId) -> HostedSession | None:
    """The session, or None."""
    row = db.execute("SELECT * FROM hosted WHERE session = ?", (session,)).fetchone()
    return None if row is None else hosted_of(row)


def receipts(db: sqlite3.Connection, session: SessionId) -> list[Checkpoint]:
    """The receipts of a session, in order."""
    rows = db.execute("SELECT receipt FROM receipts WHERE session = ? ORDER BY epoch, seq", (session,))
    return [unpack(Checkpoint, row["receipt"]) for row in rows]


def receipts_after(
    db: sqlite3.Connection, session: SessionId, epoch: int, seq: int, limit: int
) -> list[Receipt]:
    """The next receipts after a place."""
    rows = db.execute(
        "SELECT epoch, previous, receipt FROM receipts WHERE session = ? AND (epoch, seq) > (?, ?)"
        " ORDER BY epoch, seq LIMIT ?",
        (session, epoch, seq, limit),
    )
    return [_receipt_of(row) for row in rows]


def last_receipt(db: sqlite3.Connection, session: SessionId) -> Receipt | None:
    """The last one issued, or None."""
    row = db.execute(
        "SELECT epoch, previous, receipt FROM receipts WHERE session = ?"
        " ORDER BY epoch DESC, seq DESC LIMIT 1",
        (session,),
    ).fetchone()
    return None if row is None else _receipt_of(row)


def receipt(db: sqlite3.Connection, session: SessionId, epoch: int, seq: int) -> Receipt | None:
    """The receipt for a place, or None."""
    row = db.execute(
        "SELECT epoch, previous, receipt FROM receipts WHERE session = ? AND epoch = ? AND seq = ?",
        (session, epoch, seq),
    ).fetchone()
    return None if row is None else _receipt_of(row)


def _receipt_of(row: sqlite3.Row) -> Receipt:
    checkpoint = unpack(Checkpoint, row["receipt"])
    return Receipt(epoch=row["epoch"], previous=row["previous"], checkpoint=checkpoint)
