"""When a host settles which sessions, in which batch, and what it does where the contract refuses. Pure.

It asks nobody and changes nothing: ``settlement.py`` asks the chain, follows what is decided here, and tells
the journal. What a settlement may cost at most is ``gas_budget.py``'s. Times are epoch seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.chain.ledger import Close, EscrowState, Release
from p2pnode.contract_rules import CHALLENGE_S, CLAIMS_MAX
from p2pnode.limits import Limits
from p2pnode.payments.journal.records import BoughtSession, HostedSession
from p2pnode.protocols.inference.messages import SessionTerms

LEFT_PER_PAYER: Final = 16
LEFT_PER_ORIGIN: Final = 64
LEFT_MAX: Final = 1000
"""Sessions that a host keeps for clients which left; beyond it the one that was left first is settled."""
KEEP_MAX_S: Final = 86_400
"""The longest that a host of this version keeps one: what is owed to it should not wait longer."""
SETTLE_ABOVE_FEES: Final = 20
SETTLE_ABOVE_LEAST: Final = 100_000
"""How much may wait to be settled, in session fees and at least in token units: see ``settle_above``."""
_LATE_S: Final = 120
"""So long past its end an authorisation may still be on its way into a block that we are shown."""


@dataclass(frozen=True, slots=True)
class Settled:
    """It is settled, by somebody else."""

    amount: int
    detail: str


@dataclass(frozen=True, slots=True)
class Postpone:
    """Try it again after ``wait_s``; None: after the longest wait between two tries."""

    reason: str
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing was served: do nothing until ``at``, when the deposit can't come any more."""

    at: int


@dataclass(frozen=True, slots=True)
class BringRefund:
    """A refund pays what is on record."""


@dataclass(frozen=True, slots=True)
class BringAgain:
    """Relay the open again: a reorganisation of the chain took it away, and what it pays for was served."""


@dataclass(frozen=True, slots=True)
class Lost:
    """It won't be paid."""

    reason: str


AfterRefusal: TypeAlias = Settled | Postpone | WaitUntil | BringRefund | BringAgain | Lost


# ---- when


def due_after_restart(record: HostedSession, now: int, limits: Limits) -> int:
    """When to settle a session that an earlier start left open: its client has the linger to come back, or as
    long as this host keeps it.

    A deposit that was still on its way is due at once, and so are a session that is about to expire and one
    that owes too much to be kept.
    """
    if record.state != "open":
        return now
    wait_s = record.keep_s if keeps(record) else int(limits.linger_s)
    return left_until(record.terms, now + wait_s, wait_s, now, limits.expiry_margin_s)


def keeps(record: HostedSession) -> bool:
    """Whether its host keeps the session when its client leaves, or is lost."""
    return record.keep_s > 0 and record.due <= settle_above(record.terms.session_fee)


def settle_above(session_fee: int) -> int:
    """A session is settled, and not kept, when its host is owed more than this: so much waits at most."""
    return max(SETTLE_ABOVE_FEES * session_fee, SETTLE_ABOVE_LEAST)


def left_until(terms: SessionTerms, wanted: int, keep_s: int, now: int, margin_s: float) -> int:
    """Until when a session is kept whose client left and wants it until ``wanted``; ``now`` for not at all.

    A payer may ask the chain for its rest from the expiry on, so it is settled ``margin_s`` before.
    """
    latest = int(terms.expiry - margin_s)
    return max(now, min(wanted, now + min(keep_s, KEEP_MAX_S), latest))


def due_in_s(first: HostedSession | None, now: float) -> float:
    """Seconds until the session that is due first is to be settled; infinite where none is."""
    return math.inf if first is None or first.settle_at is None else first.settle_at - now


def expiring(records: Iterable[HostedSession], now: float, margin_s: float) -> list[HostedSession]:
    """Those whose escrow expires within ``margin_s``."""
    return [each for each in records if each.terms.expiry <= now + margin_s]


def deadline(record: HostedSession | BoughtSession, state: EscrowState) -> int:
    """From then on anybody may bring the refund: a host settles before, a payer gets its rest after."""
    return record.terms.expiry + CHALLENGE_S if state.closing_at is None else state.closing_at


def given_up_at(record: HostedSession) -> int:
    """From then on a deposit that the chain never saw can't come any more."""
    return record.valid_before + 1


def may_still_land(record: HostedSession, now: float) -> bool:
    """Whether a deposit that the chain does not show may be there all the same.

    One answer of one endpoint is no proof: for what was paid it is asked until nobody may close any more.
    """
    if record.voucher is not None:
        return now < record.terms.expiry + CHALLENGE_S
    return now < record.valid_before + _LATE_S


# ---- what, together with what


def call_of(record: HostedSession) -> Close | Release:
    """What settles it: its best voucher, or without one the session fee alone."""
    return Release(record.terms) if record.voucher is None else Close(record.terms, record.voucher)


def worth(record: HostedSession) -> int:
    """Token units that its settlement brings."""
    return record.terms.session_fee if record.voucher is None else record.voucher.amount


def batches(records: Sequence[HostedSession]) -> list[list[HostedSession]]:
    """Groups, each for one transaction: vouchers together, for they cost a third each then; others alone."""
    paid = [record for record in records if record.voucher is not None]
    groups = [paid[start : start + CLAIMS_MAX] for start in range(0, len(paid), CLAIMS_MAX)]
    return groups + [[record] for record in records if record.voucher is None]


# ---- where the contract refuses


def after_refusal(
    record: HostedSession, state: EscrowState, reason: str, now: float, *, confirmed: bool
) -> AfterRefusal:
    """What to do when the contract would not settle a session that stands in ``state``.

    ``confirmed``: where there is a second endpoint, it says so too. Somebody else may have settled it, or
    its open may never have landed.
    """
    match state.status:
        case "closed" if confirmed:
            return Settled(state.recorded, "settled by another")
        case "closed":
            # One endpoint that says "closed, 0" must not make the host write off a voucher.
            return Postpone("an RPC endpoint says that it is closed, and no second one does")
        case "open" if record.voucher is None and state.recorded > record.terms.session_fee:
            # Somebody showed a voucher that this host has lost: the refund pays it, once none can better it.
            until = deadline(record, state)
            if now >= until:
                return BringRefund()
            why = "a voucher is on record that this host does not have: its refund pays it"
            return Postpone(why, until - now + 1)
        case "open":
            return Postpone(f"it can't be settled: {reason}")
        case "none" if record.valid_before > now:
            return BringAgain() if record.voucher is not None else WaitUntil(given_up_at(record))
        case "none" if may_still_land(record, now):
            return Postpone("the chain does not show its deposit")
        case "none":
            return Lost("its deposit is not on the chain")


Landed: TypeAlias = Literal["", "settle", "open and settle"]


def after_landing(record: HostedSession) -> Landed:
    """What to do when a deposit lands: one that nobody waits for any more is settled at once, for the fee."""
    if record.state == "lost":
        return "open and settle"
    return "settle" if record.state == "over" and record.settle_at == given_up_at(record) else ""


# ---- by hand, for a payer


@dataclass(frozen=True, slots=True)
class PayerStep:
    """What a payer can do now: bring the refund, wait for it, or ask to close; ``until`` is its time."""

    action: Literal["refund", "wait", "request"]
    until: int


def payer_step(record: BoughtSession, state: EscrowState, now: int) -> PayerStep:
    """The step that brings a payer's rest back soonest, of a session that is open on the chain."""
    until = deadline(record, state)
    if now >= until:
        return PayerStep("refund", until)
    return PayerStep("request" if state.closing_at is None else "wait", until)
