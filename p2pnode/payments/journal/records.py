"""What the journal holds, as values; how they become rows, and rows become them; and how states change.

Terms, vouchers and receipts are stored as they travel (msgpack of the wire records), so that what was
signed is what is read. Knows nothing of files, transactions or time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias, TypeVar, get_args

import msgpack

from p2pnode.errors import ProtocolError, StorageError
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.inference.messages import WINDOW, Receipt, SessionTerms, Voucher
from p2pnode.protocols.wire import decode_record, encode

HostedState: TypeAlias = Literal["relaying", "open", "over", "settled", "lost"]
BoughtState: TypeAlias = Literal["signed", "open", "over", "settled", "expired"]
HOSTED_STATES: Final[tuple[HostedState, ...]] = get_args(HostedState)
BOUGHT_STATES: Final[tuple[BoughtState, ...]] = get_args(BoughtState)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedSession:
    """A paid session that this host serves or served. Times are epoch seconds, amounts token units.

    ``relaying``: its open is on the way to the chain; ``over``: to be settled at ``settle_at``; ``lost``:
    it is not on the chain, ``detail`` says why.
    """

    session: SessionId
    terms: SessionTerms
    salt: bytes = field(repr=False)
    authorisation: bytes = field(repr=False)
    valid_before: int
    epoch: int
    peer: PeerId
    opened_at: int
    state: HostedState = "relaying"
    voucher: Voucher | None = None
    """The best voucher: the one with the highest amount."""
    settle_at: int | None = None
    amount: int | None = None
    """The amount at which it was settled."""
    detail: str = ""
    keep_s: int = 0
    """For how long this host keeps it for a client that left; 0: it lingers and is settled."""
    left_until: int | None = None
    """It is left: its client may resume it until then. None while a stream has it, and where none may."""
    generation: int = 0
    """How often a left session was resumed."""
    origin: str = ""
    """Where its client was last."""
    window: int = WINDOW
    """Output ids that it may owe, as agreed when it was opened: so much is reserved while it is used."""

    @property
    def due(self) -> int:
        """What this host earns by it, as far as is known. Every list of amounts shows this."""
        return _due(self.terms, self.voucher, self.amount, opened=self.state in ("open", "over"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoughtSession:
    """A paid session that this client signed for. Times are epoch seconds, amounts token units.

    ``signed``: the host may open it until ``valid_before``; ``over``: nothing more will be signed;
    ``expired``: it was never opened, and can't be any more.
    """

    session: SessionId
    terms: SessionTerms
    voucher_secret: bytes = field(repr=False)
    host: PeerId
    addresses: tuple[str, ...]
    valid_before: int
    opened_at: int
    state: BoughtState = "signed"
    voucher: Voucher | None = None
    """The best voucher: the one with the highest amount."""
    final: Voucher | None = None
    """The last that was signed, for exactly what was received then: what its host is owed."""
    spent: int | None = None
    """The amount at which it was settled."""
    delivered: int = -1
    """The amount of the voucher that its host is known to have; -1 for none."""
    keep_s: int = 0
    """For how long its host keeps it when it is left; 0 for not at all."""
    settle_above: int = 0
    """Its host settles it, instead of keeping it, when it owes more than this."""
    left_until: int | None = None
    """It is left: its host keeps it until then. None while it is used, and where that isn't known."""
    generation: int = 0
    """How often it was resumed after it was left."""

    @property
    def due(self) -> int:
        """What it costs this client, as far as is known. Every list of amounts shows this."""
        return _due(self.terms, self.voucher, self.spent, opened=self.state in ("open", "over"))

    @property
    def owed(self) -> Voucher | None:
        """The voucher that its host may not have yet, or None."""
        last = self.final or self.voucher
        return last if last is not None and last.amount > self.delivered else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Two receipts that a host signed for one place of one session: its stake is forfeit."""

    session: SessionId
    terms: SessionTerms
    host: PeerId
    one: Receipt
    other: Receipt
    noted_at: int
    outcome: str = ""
    """What came of submitting it; "" while nobody has."""

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and seq of both."""
        return self.one.epoch, self.one.checkpoint.seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """A deposit about to be signed, and what is signed away already. Token units."""

    deposit: int
    session_fee: int
    locked: int
    """Deposits of the sessions that have not ended on the chain, each once, whenever it was signed."""
    day_spent: int
    """What fees and vouchers added in the last 24 hours, counted when they were signed."""
    day_reserved: int
    """What the turns that are under way may still add, in all processes."""
    host_locked: int
    """``locked`` of this host alone: its wallet or its peer id."""
    host_spent: int
    """``day_spent`` at this host."""
    host_ended: int
    """The part of ``host_spent`` that was spent in sessions which have ended: nothing of it is locked."""
    outstanding: int
    """Of this payer: deposits that may still be taken out of its wallet."""


class SpendingRule(Protocol):
    """Decides whether a deposit may be signed. Called inside the transaction that records it."""

    def check(self, spending: Spending) -> None:
        """Raise an error to refuse: nothing is recorded then."""


class TurnRule(Protocol):
    """Decides how much a turn may add to what was spent. Called inside the transaction that reserves it."""

    def grant(self, wanted: int, least: int, spending: Spending) -> int:
        """Token units, ``wanted`` at most. Raises an error where not even ``least`` is left."""


def _due(terms: SessionTerms, voucher: Voucher | None, settled: int | None, *, opened: bool) -> int:
    """Token units: what it was settled at, else the best voucher, which holds the fee, else the fee alone."""
    if settled is not None:
        return settled
    if voucher is not None:
        return voucher.amount
    return terms.session_fee if opened else 0


def pack_texts(texts: tuple[str, ...]) -> bytes:
    """A list of strings as msgpack."""
    packed: bytes = msgpack.packb(list(texts), use_bin_type=True)
    return packed


def pack(record: object | None) -> bytes | None:
    """A wire record as it travels."""
    return None if record is None else encode(record)


def unpack(cls: type[T], payload: bytes) -> T:
    """A wire record from its column. Raises ``StorageError``."""
    try:
        return decode_record(cls, payload)
    except (ProtocolError, TypeError) as error:
        msg = f"a {cls.__name__} in the journal is damaged ({error}): restore the journal from your backup"
        raise StorageError(msg) from error


def hosted_of(row: sqlite3.Row) -> HostedSession:
    """A row of ``hosted``."""
    return HostedSession(
        session=SessionId(row["session"]),
        terms=unpack(SessionTerms, row["terms"]),
        salt=row["salt"],
        authorisation=row["authorisation"],
        valid_before=row["valid_before"],
        epoch=row["epoch"],
        peer=PeerId(row["peer"]),
        opened_at=row["opened_at"],
        state=row["state"],
        voucher=None if row["voucher"] is None else unpack(Voucher, row["voucher"]),
        settle_at=row["settle_at"],
        amount=row["amount"],
        detail=row["detail"],
        keep_s=row["keep_s"],
        left_until=row["left_until"],
        generation=row["generation"],
        origin=row["origin"],
        window=row["window_ids"],
    )


def bought_of(row: sqlite3.Row) -> BoughtSession:
    """A row of ``bought``."""
    return BoughtSession(
        session=SessionId(row["session"]),
        terms=unpack(SessionTerms, row["terms"]),
        voucher_secret=row["voucher_secret"],
        host=PeerId(row["peer"]),
        addresses=tuple(msgpack.unpackb(row["addresses"])),
        valid_before=row["valid_before"],
        opened_at=row["opened_at"],
        state=row["state"],
        voucher=None if row["voucher"] is None else unpack(Voucher, row["voucher"]),
        final=None if row["final"] is None else unpack(Voucher, row["final"]),
        spent=row["spent"],
        delivered=row["delivered"],
        keep_s=row["keep_s"],
        settle_above=row["settle_above"],
        left_until=row["left_until"],
        generation=row["generation"],
    )


# ---- a session's state, hosted or bought


def move(
    db: sqlite3.Connection,
    table: Literal["hosted", "bought"],
    session: SessionId,
    before: Collection[str],
    after: str,
    *,
    same: Collection[str] = (),
) -> None:
    """Change a state of ``before`` to ``after``. One of ``same`` stays; any other raises ``StorageError``."""
    state = state_of(db, table, session)
    if state in before:
        db.execute(f"UPDATE {table} SET state = ? WHERE session = ?", (after, session))  # noqa: S608 - a literal
    elif state not in same:
        msg = f"session {session.hex()} is {state} in the journal: it can't become {after}"
        raise StorageError(msg)


def state_of(db: sqlite3.Connection, table: Literal["hosted", "bought"], session: SessionId) -> str:
    """The state of a session. Raises ``StorageError`` where there is no such session."""
    query = f"SELECT state FROM {table} WHERE session = ?"  # noqa: S608 - a literal
    row = db.execute(query, (session,)).fetchone()
    if row is None:
        msg = f"session {session.hex()} is not in the journal: was an older journal restored?"
        raise StorageError(msg)
    return str(row["state"])
