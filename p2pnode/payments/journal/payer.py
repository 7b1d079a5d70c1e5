"""The payer's half of the journal: what happens to ``bought``, ``taken`` and ``evidence``, in a transaction.

::

    signed ──> open <──> over ──> settled
        └──> expired <──┘ (a reorganisation)

Two processes that buy at once go through ``buy`` one after the other, so that what one signs away counts
for the other; so do turns, through ``reserve``. What the chain says may be heard twice.

A session whose host keeps it may be *left*: it stays ``open``, no process is its owner, and ``take`` gives it
to the next one. ``spent`` holds what was signed when: the fee with the deposit, then what each voucher adds.

The first receipt for a place is kept; a second with another root makes both evidence, once for each place, as
the contract punishes it. Whoever calls has checked that the host signed them. Receipts are bounded: of a
session the newest are kept, and of one that is over none after a month. Nothing is judged here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from p2pnode.errors import StorageError
from p2pnode.ids import PeerId, SessionId
from p2pnode.payments.journal import keys
from p2pnode.payments.journal.keys import Claim, Granted, KeyShare
from p2pnode.payments.journal.owner import ELSEWHERE
from p2pnode.payments.journal.records import (
    BoughtSession,
    BoughtState,
    Evidence,
    Spending,
    SpendingRule,
    TurnRule,
    bought_of,
    move,
    pack,
    pack_texts,
    state_of,
    unpack,
)
from p2pnode.protocols.inference.messages import Receipt, SessionTerms, Voucher

DAY_S: Final = 24 * 3600
TAKEN_MAX: Final = 8192
"""Receipts of one session: a quarter of a million tokens, some 2 MB."""
TAKEN_KEPT_S: Final = 30 * DAY_S
"""Receipts of a session that is over stay for so long, as at the host."""
SPENT_MINUTE_S: Final = 60
_LOCKED: Final = "SELECT COALESCE(SUM(deposit), 0) FROM bought WHERE state IN ('signed', 'open', 'over')"
"""A deposit counts until the chain says that the session has ended, or was never opened: its authorisation
may have been used unseen."""
_SPENT: Final = "SELECT COALESCE(SUM(units), 0) FROM spent JOIN bought USING (session) WHERE at > :since - 60"
_OF_HOST: Final = " AND (host = :host OR peer = :peer)"


def buy(
    db: sqlite3.Connection,
    record: BoughtSession,
    rule: SpendingRule,
    now: int,
    *,
    owner: str,
    alive: Callable[[str], bool],
    claim: Claim | None = None,
) -> Granted | None:
    """Insert what is about to be signed, if ``rule`` allows it beside all that was signed before.

    ``claim`` is that of the turn for which the session is opened, where a key pays for it.
    """
    rule.check(spending(db, record.terms, record.host, now, alive))
    _insert(db, record, now, owner)
    _spend(db, record.session, record.terms.session_fee, now)
    prune_receipts(db, now - TAKEN_KEPT_S)
    db.execute("DELETE FROM spent WHERE at < ?", (now - 2 * DAY_S,))
    keys.make_rough(db, now)
    if claim is None:
        return None
    return keys.claim(db, claim, record.session, record.terms, now=now, owner=owner, alive=alive)


def _spend(db: sqlite3.Connection, session: SessionId, units: int, now: int) -> None:
    """Count what was signed. One row a minute, so that a day of vouchers stays small."""
    if units > 0:
        db.execute(
            "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET units = units + excluded.units",
            (session, now - now % SPENT_MINUTE_S, units),
        )


def reserve(
    db: sqlite3.Connection,
    session: SessionId,
    rule: TurnRule,
    *,
    wanted: int,
    least: int,
    now: int,
    owner: str,
    alive: Callable[[str], bool],
    claim: Claim | None = None,
) -> tuple[int, Granted | None]:
    """Let a turn add what ``rule`` grants of ``wanted``, and hold it against all other turns until then.

    ``claim`` is there where a key pays for the turn: then it gets a part of that one's budget, too. Raises
    what the rule raises, and ``BudgetError``; then nothing is reserved.
    """
    found = one(db, session)
    if found is None:
        msg = f"session {session.hex()} is not in the journal: was an older journal restored?"
        raise StorageError(msg)
    granted = rule.grant(wanted, least, spending(db, found.terms, found.host, now, alive))
    of_key = None
    if claim is not None:
        of_key = keys.claim(db, claim, session, found.terms, now=now, owner=owner, alive=alive)
    db.execute("UPDATE bought SET reserved = reserved + ? WHERE session = ?", (granted, session))
    return granted, of_key


def release(db: sqlite3.Connection, session: SessionId, units: int) -> None:
    """A turn is over that used all but ``units`` of what was reserved for it."""
    db.execute("UPDATE bought SET reserved = MAX(0, reserved - ?) WHERE session = ?", (units, session))


def release_all(db: sqlite3.Connection, session: SessionId) -> None:
    """No turn is under way: nothing is reserved, of the day or of a key's budget."""
    db.execute("UPDATE bought SET reserved = 0 WHERE session = ?", (session,))
    keys.release_session(db, session)


def restored(db: sqlite3.Connection, record: BoughtSession, receipt: Receipt | None, now: int) -> None:
    """Insert a purchase that was recovered from elsewhere. Of one that is here nothing is lowered.

    ``receipt`` was checked there, and is the one that its voucher goes on from. A session that is not over
    may still be used there: its owner is ``ELSEWHERE``, for delivering its voucher would end it.
    """
    row = db.execute(
        "SELECT owner, state, generation FROM bought WHERE session = ?", (record.session,)
    ).fetchone()
    if row is None:
        left_there = record.left_until is not None
        _insert(db, record, now, "" if record.state == "over" or left_there else ELSEWHERE)
        amount = -1 if record.voucher is None else record.voucher.amount
        _spend(db, record.session, max(record.terms.session_fee, amount), record.opened_at)
    elif record.state == "over" and (row["owner"], row["state"]) in (
        (ELSEWHERE, "signed"),
        (ELSEWHERE, "open"),
    ):
        if record.voucher is not None:
            signed(db, record.session, record.voucher, record.opened_at)
        over(db, record.session)
    else:
        for voucher in (record.voucher, record.final):
            if voucher is not None and voucher.amount > _amount(db, record.session):
                signed(db, record.session, voucher, record.opened_at)
        if record.generation > row["generation"]:
            # Another machine has resumed it since, and perhaps left it again.
            owner = ELSEWHERE if record.left_until is None else ""
            db.execute(
                "UPDATE bought SET owner = ?, left_until = ?, generation = ? WHERE session = ?",
                (owner, record.left_until, record.generation, record.session),
            )
    if receipt is not None:
        receipt_shown(db, record.session, receipt, held=True, now=now)
    if record.voucher is not None or record.left_until is not None:
        # Vouchers go to hosts that accepted, and only what was accepted is left: it may be owed the last.
        opened(db, record.session, record.keep_s, record.settle_above)


def _amount(db: sqlite3.Connection, session: SessionId) -> int:
    query = "SELECT voucher_amount FROM bought WHERE session = ?"
    return int(db.execute(query, (session,)).fetchone()[0])


def _insert(db: sqlite3.Connection, record: BoughtSession, now: int, owner: str) -> None:
    terms = record.terms
    db.execute(
        "INSERT INTO bought (session, payer, host, peer, addresses, deposit, session_fee, tip, terms,"
        " voucher_secret, valid_before, opened_at, state, voucher, voucher_amount, spent, settled_at,"
        " final, delivered, owner, keep_s, settle_above, left_until, generation)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.session, terms.payer, terms.host, record.host, pack_texts(record.addresses),
            terms.deposit, terms.session_fee, terms.tip, pack(terms), record.voucher_secret,
            record.valid_before, record.opened_at, record.state, pack(record.voucher),
            -1 if record.voucher is None else record.voucher.amount, record.spent,
            None if record.spent is None else now,
            pack(record.final), record.delivered, owner,
            record.keep_s, record.settle_above, record.left_until, record.generation,
        ),
    )  # fmt: skip


def opened(db: sqlite3.Connection, session: SessionId, keep_s: int = 0, settle_above: int = 0) -> None:
    """The host accepted the session. Its deposit may still be in the wallet."""
    _spend_again(db, session)
    move(db, "bought", session, ("signed", "expired"), "open", same=("open", "over", "settled"))
    db.execute(
        "UPDATE bought SET accepted = 1, keep_s = MAX(keep_s, ?), settle_above = MAX(settle_above, ?)"
        " WHERE session = ?",
        (keep_s, settle_above, session),
    )


def finished(db: sqlite3.Connection, session: SessionId) -> None:
    """The host has finished a turn of the session."""
    state_of(db, "bought", session)
    db.execute("UPDATE bought SET finished = 1 WHERE session = ?", (session,))


def _spend_again(db: sqlite3.Connection, session: SessionId) -> None:
    """Count a session again that was thought to be expired: a reorganisation brought it back."""
    row = db.execute("SELECT * FROM bought WHERE session = ? AND state = 'expired'", (session,)).fetchone()
    if row is not None:
        _spend(db, session, max(row["session_fee"], row["voucher_amount"]), row["opened_at"])


def mined(db: sqlite3.Connection, session: SessionId) -> None:
    """The session is on the chain: its deposit has left the wallet."""
    _spend_again(db, session)
    move(db, "bought", session, ("signed", "expired"), "open", same=("open", "over", "settled"))
    db.execute("UPDATE bought SET seen_open = 1 WHERE session = ?", (session,))


def over(db: sqlite3.Connection, session: SessionId) -> None:
    """Nothing more will be signed for the session."""
    move(db, "bought", session, ("signed", "open", "over"), "over")
    db.execute("UPDATE bought SET left_until = NULL WHERE session = ?", (session,))
    release_all(db, session)


def left_session(
    db: sqlite3.Connection, session: SessionId, until: int | None, generation: int, settle_above: int = 0
) -> None:
    """Nobody uses the session any more. Its host keeps it until ``until``, where that is known."""
    move(db, "bought", session, ("over",), "open", same=("open", "settled"))
    db.execute(
        "UPDATE bought SET left_until = ?, generation = ?, owner = '',"
        " settle_above = MAX(settle_above, ?) WHERE session = ?",
        (until, generation, settle_above, session),
    )
    release_all(db, session)


def kept(
    db: sqlite3.Connection,
    now: int,
    alive: Callable[[str], bool],
    *,
    peer: PeerId | None = None,
    session: SessionId | None = None,
) -> list[BoughtSession]:
    """The sessions that were left, and may be resumed; the one that was opened last first. All of them, those
    with a host, or one.

    One whose process was killed counts: its host leaves it by itself. Of one that another machine may use
    nothing is known, so it doesn't.
    """
    rows = db.execute(
        "SELECT * FROM bought WHERE state = 'open' AND keep_s > 0"
        " AND (left_until IS NULL OR left_until > ?) AND peer = COALESCE(?, peer)"
        " AND session = COALESCE(?, session) ORDER BY opened_at DESC, session",
        (now, peer, session),
    )
    return [bought_of(row) for row in rows if not alive(row["owner"])]


def take(
    db: sqlite3.Connection, session: SessionId, owner: str, now: int, alive: Callable[[str], bool]
) -> BoughtSession | None:
    """Give a session that was left to ``owner``; None where another process was quicker.

    ``left_until`` stays: where the host can't be reached now, it is as it was.
    """
    found = kept(db, now, alive, session=session)
    if not found:
        return None
    db.execute("UPDATE bought SET owner = ? WHERE session = ?", (owner, session))
    release_all(db, session)
    return found[0]


def gone_on(db: sqlite3.Connection, session: SessionId, generation: int) -> None:
    """Its host gave the session to us: it is in use, under this generation."""
    db.execute(
        "UPDATE bought SET left_until = NULL, generation = MAX(generation, ?) WHERE session = ?",
        (generation, session),
    )


def close_later(db: sqlite3.Connection, session: SessionId) -> None:
    """Nothing more will be signed for it, and its host is to be told when it is there: it is owed the last
    voucher once more."""
    over(db, session)
    db.execute("UPDATE bought SET delivered = -1, owner = '' WHERE session = ?", (session,))


def used_elsewhere(db: sqlite3.Connection, session: SessionId) -> None:
    """Another machine of the user has it: this one leaves it alone until the sealed index says more."""
    db.execute("UPDATE bought SET owner = ? WHERE session = ? AND state = 'open'", (ELSEWHERE, session))


def given_back(db: sqlite3.Connection, session: SessionId) -> None:
    """Its host could not be reached: the session is left as before."""
    db.execute("UPDATE bought SET owner = '' WHERE session = ? AND state = 'open'", (session,))


def resumed(db: sqlite3.Connection, session: SessionId) -> None:
    """The session goes on."""
    move(db, "bought", session, ("over",), "open", same=("open",))


def settled(db: sqlite3.Connection, session: SessionId, spent: int, now: int) -> None:
    """The chain took ``spent`` and gave the rest back. More than was signed here was signed elsewhere."""
    row = db.execute(
        "SELECT MAX(session_fee, voucher_amount) AS counted FROM bought WHERE session = ? AND spent IS NULL",
        (session,),
    ).fetchone()
    if row is not None:
        _spend_again(db, session)
        _spend(db, session, spent - row["counted"], now)
    move(db, "bought", session, ("signed", "open", "over", "expired"), "settled", same=("settled",))
    db.execute(
        "UPDATE bought SET spent = ?, settled_at = COALESCE(settled_at, ?) WHERE session = ?",
        (spent, now, session),
    )
    db.execute("UPDATE bought SET left_until = NULL WHERE session = ?", (session,))
    release_all(db, session)


def expired(db: sqlite3.Connection, session: SessionId) -> None:
    """The session is not on the chain, and can't be opened any more: nothing was spent."""
    move(db, "bought", session, ("signed", "open", "over"), "expired", same=("expired",))
    db.execute("DELETE FROM spent WHERE session = ?", (session,))
    db.execute("UPDATE bought SET left_until = NULL WHERE session = ?", (session,))
    release_all(db, session)


def signed(
    db: sqlite3.Connection, session: SessionId, voucher: Voucher, now: int, shares: Sequence[KeyShare] = ()
) -> dict[int, int]:
    """Set the best voucher (the highest; of equal amounts the later) and the last one.

    They differ where input was paid that a host never billed: what the host is owed is the last. What the
    best one adds is spent, and comes out of what was reserved for it. ``shares`` says what of it is for turns
    that keys pay for. Returns what these turns may still add, by their claims.
    """
    row = db.execute(
        "SELECT MAX(session_fee, voucher_amount) AS before FROM bought WHERE session = ?", (session,)
    ).fetchone()
    if row is None:
        state_of(db, "bought", session)  # raises
        return {}
    if (added := voucher.amount - row["before"]) > 0:
        _spend(db, session, added, now)
        release(db, session, added)
    db.execute(
        "UPDATE bought SET voucher = ?, voucher_amount = ? WHERE session = ? AND voucher_amount <= ?",
        (pack(voucher), voucher.amount, session, voucher.amount),
    )
    db.execute("UPDATE bought SET final = ? WHERE session = ?", (pack(voucher), session))
    return keys.signed(db, session, shares, now)


def delivered(db: sqlite3.Connection, session: SessionId, amount: int) -> None:
    """The host has a voucher of this amount."""
    state_of(db, "bought", session)
    db.execute(
        "UPDATE bought SET delivered = MAX(delivered, ?) WHERE session = ?",
        (amount, session),
    )


def left(db: sqlite3.Connection, alive: Callable[[str], bool], *, owed: bool = False) -> list[BoughtSession]:
    """Purchases that nobody uses any more and that are not known to be settled, the oldest first. ``owed``:
    only those whose host may lack a voucher.
    """
    rows = db.execute(
        "SELECT * FROM bought WHERE state IN ('open', 'over') AND (NOT ? OR voucher_amount > delivered)"
        " ORDER BY opened_at, session",
        (owed,),
    )
    return [bought_of(row) for row in rows if row["state"] == "over" or not alive(row["owner"])]


# ---- receipts, and what of them is evidence


def receipt_shown(
    db: sqlite3.Connection, session: SessionId, receipt: Receipt, *, held: bool, now: int
) -> None:
    """Insert a receipt that its host signed; ``held``: it agrees with what was received."""
    checkpoint, packed = receipt.checkpoint, pack(receipt)
    place = (session, receipt.epoch, checkpoint.seq)
    known = db.execute(
        "SELECT root, held, receipt FROM taken WHERE session = ? AND epoch = ? AND seq = ?", place
    ).fetchone()
    if known is not None and known["root"] != checkpoint.root:
        db.execute(
            "INSERT INTO evidence (session, epoch, seq, one, other, noted_at) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (*place, known["receipt"], packed, now),
        )
    if known is None or held:
        db.execute(
            "INSERT INTO taken VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (session, epoch, seq) DO UPDATE"
            " SET root = excluded.root, held = excluded.held, receipt = excluded.receipt",
            (*place, checkpoint.root, int(held), packed),
        )
    if known is None:
        _prune_session(db, session, receipt.epoch, checkpoint.seq)


def _prune_session(db: sqlite3.Connection, session: SessionId, epoch: int, seq: int) -> None:
    if seq % 256:
        return
    db.execute(
        "DELETE FROM taken WHERE session = ? AND (epoch, seq) <= (SELECT epoch, seq FROM taken"
        " WHERE session = ? AND (epoch, seq) <= (?, ?) ORDER BY epoch DESC, seq DESC LIMIT 1 OFFSET ?)",
        (session, session, epoch, seq, TAKEN_MAX),
    )


def prune_receipts(db: sqlite3.Connection, before: int) -> None:
    """Drop the receipts of sessions opened before ``before`` that are over for good. Evidence stays."""
    db.execute(
        "DELETE FROM taken WHERE session IN"
        " (SELECT session FROM bought WHERE state IN ('settled', 'expired') AND opened_at < ?)",
        (before,),
    )


def evidence_submitted(
    db: sqlite3.Connection, session: SessionId, epoch: int, seq: int, outcome: str
) -> None:
    """What the contract said to the evidence."""
    db.execute(
        "UPDATE evidence SET outcome = ? WHERE session = ? AND epoch = ? AND seq = ?",
        (outcome, session, epoch, seq),
    )


# ---- questions


def some(db: sqlite3.Connection, states: tuple[BoughtState, ...]) -> list[BoughtSession]:
    """Purchases in any of these states, the oldest first."""
    marks = ", ".join("?" * len(states))
    query = f"SELECT * FROM bought WHERE state IN ({marks}) ORDER BY opened_at, session"  # noqa: S608 - marks
    return [bought_of(row) for row in db.execute(query, states)]


def one(db: sqlite3.Connection, session: SessionId) -> BoughtSession | None:
    """The purchase, or None."""
    row = db.execute("SELECT * FROM bought WHERE session = ?", (session,)).fetchone()
    return None if row is None else bought_of(row)


def spending(
    db: sqlite3.Connection, terms: SessionTerms, peer: PeerId, now: int, alive: Callable[[str], bool]
) -> Spending:
    """A deposit, and all that is locked and was spent beside it, for a rule to decide on."""
    marks = {"since": now - DAY_S, "host": terms.host, "peer": peer}
    of_host = {key: marks[key] for key in ("host", "peer")}
    reserved = db.execute("SELECT owner, reserved FROM bought WHERE reserved > 0").fetchall()
    return Spending(
        deposit=terms.deposit,
        session_fee=terms.session_fee,
        locked=_sum(db, _LOCKED, {}),
        day_spent=_sum(db, _SPENT, {"since": marks["since"]}),
        # What a process that was killed had reserved is free again.
        day_reserved=sum(row["reserved"] for row in reserved if alive(row["owner"])),
        host_locked=_sum(db, f"{_LOCKED}{_OF_HOST}", of_host),
        host_spent=_sum(db, f"{_SPENT}{_OF_HOST}", marks),
        host_ended=_sum(db, f"{_SPENT}{_OF_HOST} AND state = 'settled'", marks),
        outstanding=outstanding(db, terms.payer, now),
    )


def taken_unserved(db: sqlite3.Connection, host: bytes, since: int) -> int:
    """How many sessions since ``since`` a host's wallet took the fee of and never accepted."""
    query = (
        "SELECT COUNT(*) FROM bought WHERE host = :host AND opened_at >= :since"
        " AND state = 'settled' AND spent > 0 AND NOT accepted"
    )
    return _sum(db, query, {"host": host, "since": since})


def has_finished(db: sqlite3.Connection, payer: bytes, host: bytes) -> bool:
    """Whether a host's wallet has ever finished a turn for a payer's wallet."""
    query = "SELECT EXISTS (SELECT 1 FROM bought WHERE payer = :payer AND host = :host AND finished)"
    return bool(_sum(db, query, {"payer": payer, "host": host}))


def outstanding(db: sqlite3.Connection, payer: bytes, now: int) -> int:
    """Deposits that a host may still take from this wallet: signed, not expired, not seen on the chain."""
    query = (
        "SELECT COALESCE(SUM(deposit), 0) FROM bought WHERE payer = :payer"
        " AND state IN ('signed', 'open', 'over') AND NOT seen_open AND valid_before > :now"
    )
    return _sum(db, query, {"payer": payer, "now": now})


def _sum(db: sqlite3.Connection, query: str, marks: dict[str, object]) -> int:
    return int(db.execute(query, marks).fetchone()[0])


def receipts_held(db: sqlite3.Connection, session: SessionId) -> list[Receipt]:
    """The receipts of a session that agreed with what was received, in order."""
    rows = db.execute("SELECT receipt FROM taken WHERE session = ? AND held ORDER BY epoch, seq", (session,))
    return [unpack(Receipt, row["receipt"]) for row in rows]


def receipt_with_root(db: sqlite3.Connection, session: SessionId, root: bytes) -> Receipt | None:
    """The checked receipt that has this root, or None."""
    row = db.execute(
        "SELECT receipt FROM taken WHERE session = ? AND held AND root = ? ORDER BY epoch DESC",
        (session, root),
    ).fetchone()
    return None if row is None else unpack(Receipt, row["receipt"])


def evidence(db: sqlite3.Connection) -> list[Evidence]:
    """All evidence, the oldest first."""
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
