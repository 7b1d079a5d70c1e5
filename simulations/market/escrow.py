"""What a simulated host is owed: its journal, deposits that it takes, and when and how it settles.

The decisions are the node's ``Exposure``, ``GasBudget`` and ``settlement_policy``; what follows from them is
done as ``p2pnode/payments/escrow.py`` and ``settlement.py`` do it, but for chains that don't answer. A
``HostDisk`` outlives a crash. Amounts are token units.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from p2pnode.chain.ledger import (
    Close,
    CloseMany,
    GasTooDearError,
    LedgerEvent,
    Outcome,
    Refund,
    Release,
    SessionClosed,
)
from p2pnode.chain.ledger import Open as OpenCall
from p2pnode.errors import ChainError
from p2pnode.ids import PeerId, SessionId
from p2pnode.limits import Limits
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.exposure import Exposure, ExposureLimits
from p2pnode.payments.gas_budget import DAY_S, WEI_PER_ETHER, GasBudget
from p2pnode.payments.journal.records import HostedSession
from p2pnode.protocols.inference.commands import Relay
from p2pnode.protocols.inference.messages import Receipt, Refuse, SessionTerms
from p2pnode.protocols.typed_data import amount_due
from p2pnode.simulations.market.economy import Owner
from p2pnode.simulations.market.ledger import SimulatedChain

_RETRY_S: Final = 30.0


@dataclass(slots=True)
class HostDisk:
    """What a host's disk holds: its journal. It outlives a crash."""

    epoch: int = 0
    starts: int = 0
    sessions: dict[SessionId, HostedSession] = field(default_factory=dict)
    unsettled: dict[SessionId, None] = field(default_factory=dict)
    """Of these, the ones that are neither settled nor lost, in the order in which they came."""
    receipts: dict[SessionId, list[Receipt]] = field(default_factory=dict)
    """All that were issued in sessions that are not settled."""

    def put(self, record: HostedSession) -> None:
        """Write a session down."""
        self.sessions[record.session] = record
        if record.state in ("settled", "lost"):
            self.unsettled.pop(record.session, None)
            self.receipts.pop(record.session, None)
        else:
            self.unsettled[record.session] = None

    def change(self, session: SessionId, **changes: Any) -> None:
        """Write down what changed of a session."""
        self.put(replace(self.sessions[session], **changes))

    def issue(self, session: SessionId, receipt: Receipt) -> None:
        """Write a receipt down."""
        kept = self.receipts.setdefault(session, [])
        if not kept or kept[-1] != receipt:
            kept.append(receipt)

    def in_state(self, *states: str) -> list[HostedSession]:
        """Sessions that are not settled yet, in one of these states."""
        found = (self.sessions[session] for session in self.unsettled)
        return [record for record in found if record.state in states]

    # ---- as ``HeldSessions`` reads it

    def hosted_one(self, session: SessionId) -> HostedSession | None:
        """A paid session."""
        return self.sessions.get(session)

    def last_issued(self, session: SessionId) -> Receipt | None:
        """The newest receipt of a session."""
        kept = self.receipts.get(session)
        return kept[-1] if kept else None

    def issued(self, session: SessionId, epoch: int, seq: int) -> Receipt | None:
        """The receipt of a place."""
        for receipt in reversed(self.receipts.get(session, ())):
            if (receipt.epoch, receipt.checkpoint.seq) == (epoch, seq):
                return receipt
        return None


class PaidHost(Protocol):
    """What it needs of the host that is owed."""

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        ...

    def wall(self) -> float:
        """Epoch seconds."""
        ...

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do it later, unless the host is gone by then."""
        ...

    def guarded(self, action: Callable[..., None]) -> Callable[..., None]:
        """``action``, unless the host is gone by then."""
        ...

    def settled(self, session: SessionId) -> None:
        """A session is settled: nobody goes on with it."""
        ...

    def paid_gas(self, wei: int, most: int) -> None:
        """A settlement cost so much gas, and could cost ``most``."""
        ...

    def gas_was_too_dear(self) -> None:
        """A settlement waits for cheaper gas."""
        ...


class Escrow:
    """Of one start of a host: the ``SessionBooks`` of its sessions."""

    def __init__(
        self,
        host: PaidHost,
        chain: SimulatedChain,
        wallet: bytes,
        owner: Owner,
        disk: HostDisk,
        *,
        limits: Limits,
        exposure_limits: ExposureLimits,
        budget: GasBudget,
    ) -> None:
        self._host, self._chain, self._wallet, self._owner = host, chain, wallet, owner
        self._limits, self._budget = limits, budget
        self.journal = disk
        self.exposure = Exposure(exposure_limits)
        self._relaying: dict[SessionId, Callable[[Refuse | None], None] | None] = {}
        """Deposits on their way, and who waits for each; None where it is gone."""
        self._settling: set[SessionId] = set()
        self._settles_at: float | None = None
        self._opens: deque[tuple[float, int]] = deque()
        """When deposits were taken, and their gas in wei, of the last day."""

    def prepare(self) -> None:
        """Give clients of earlier starts time to come back."""
        now = int(self._host.wall())
        for record in self.journal.in_state("open", "relaying"):
            due_at = policy.due_after_restart(record, now, self._limits)
            kept = record.state == "open" and policy.keeps(record) and due_at > now
            self.journal.change(
                record.session, state="over", settle_at=due_at, left_until=due_at if kept else None
            )

    # ---- a deposit

    def take(
        self, order: Relay, *, peer: PeerId, address: str, origin: str, epoch: int, keep_s: int,
        then: Callable[[Refuse | None], None],
    ) -> None:  # fmt: skip
        """Take a deposit into escrow; ``then`` hears how that went, once."""
        request, terms, chain = order.request, order.request.terms, self._chain
        assert terms is not None and request.authorisation is not None  # noqa: S101, PT018 - a paid open
        call = OpenCall(terms, request.valid_before, request.authorisation)
        others = sum(
            self.journal.sessions[each].terms.deposit
            for each in self._relaying
            if self.journal.sessions[each].terms.payer == terms.payer
        )
        refusal = None
        if others + terms.deposit > chain.usdc(terms.payer):
            refusal = Refuse(code="payment_required", detail="the payer's wallet lacks the deposit")
        elif why := chain.why_refused(self._wallet, call):
            refusal = Refuse(code="payment_required", detail=f"the deposit can't be taken: {why}")
        else:
            refusal = self._too_dear(terms) or self._exposed(order.session, terms, order.window, address)
        if refusal is not None:
            then(refusal)
            return
        self.journal.put(
            HostedSession(
                session=order.session,
                terms=terms,
                salt=request.salt,
                authorisation=request.authorisation,
                valid_before=request.valid_before,
                epoch=epoch,
                peer=peer,
                opened_at=int(self._host.wall()),
                keep_s=keep_s,
                origin=origin,
                window=order.window,
            )
        )
        self._relaying[order.session] = then
        fee = terms.session_fee
        most = self._budget.wei(fee) if self._budget.known and fee > 0 else None
        landed = self._host.guarded(lambda outcome: self._landed(order.session, outcome))
        chain.send(self._wallet, call, landed, fee_max_wei=most)

    def abandon(self, session: SessionId) -> bool:
        """Nobody waits for a deposit any more. Returns False where it is not on its way."""
        if session in self._relaying:
            self._relaying[session] = None
            return True
        return False

    def _too_dear(self, terms: SessionTerms) -> Refuse | None:
        price, since = self._chain.gas_price_wei, self._host.now - DAY_S
        while self._opens and self._opens[0][0] < since:
            self._opens.popleft()
        why = self._budget.why_not_open(
            fee=terms.session_fee, gas_price_wei=price, spent_day_wei=sum(wei for _, wei in self._opens)
        )
        if not why:
            return None
        return Refuse(code="capacity", detail=f"{why}: use another host", retry_after_s=_RETRY_S)

    def _exposed(self, session: SessionId, terms: SessionTerms, window: int, address: str) -> Refuse | None:
        owed = amount_due(terms, 0, window) - terms.session_fee
        why = self.exposure.reserve(session, terms.payer, address, owed, self._host.wall())
        return Refuse(code="capacity", detail=why, retry_after_s=_RETRY_S) if why else None

    def _landed(self, session: SessionId, outcome: Outcome | ChainError) -> None:
        then = self._relaying.pop(session)
        self._opens.append((self._host.now, self._pay_gas(outcome)))
        escrow = self._chain.session(session)
        if escrow.status == "open" and escrow.closing_at is None:
            self.journal.change(session, state="open")
            if then is not None:
                then(None)
                return
        elif then is not None:
            then(Refuse(code="payment_required", detail=f"the deposit can't be taken: {outcome}"))
        self._end(session, 0, linger_s=0.0)

    def _pay_gas(self, outcome: Outcome | ChainError) -> int:
        wei = (outcome.fee_wei or 0) if isinstance(outcome, Outcome) else 0
        if wei and self._budget.known:
            self._owner.gas += -(-wei * self._budget.ether_price // WEI_PER_ETHER)
        return wei

    # ---- while it is served

    def recovered(self, session: SessionId, epoch: int, address: str) -> bool:
        """Go on with a session after a restart, under ``epoch``. Returns whether it may take a turn."""
        self.journal.change(session, state="open", settle_at=None, left_until=None, epoch=epoch)
        record = self.journal.sessions[session]
        return self._exposed(session, record.terms, record.window, address) is None

    def taken_up(self, session: SessionId, epoch: int, generation: int) -> None:
        """A session that was left goes on."""
        changes = {"epoch": epoch, "generation": generation}
        self.journal.change(session, state="open", settle_at=None, left_until=None, **changes)

    def resumed(self, session: SessionId) -> None:
        """Another stream has a session: it is not settled now."""
        self.journal.change(session, state="open", settle_at=None, left_until=None)

    def readmit(
        self, session: SessionId, terms: SessionTerms, window: int, address: str | None
    ) -> Refuse | None:
        """Let a session that was left owe its window again. Returns why not."""
        owed = amount_due(terms, 0, window) - terms.session_fee
        why = self.exposure.reserve(session, terms.payer, address, owed, self._host.wall())
        return Refuse(code="rate_limited", detail=why, retry_after_s=_RETRY_S) if why else None

    def given_up(self, session: SessionId, *, unpaid: int) -> None:
        """What a session owes is lost."""
        self.exposure.lost(session, unpaid, self._host.wall())
        self.exposure.release(session)

    def note_left(self, session: SessionId, until: int) -> None:
        """A session is left, and settled at ``until``."""
        self.journal.change(session, state="over", settle_at=until, left_until=until)
        self.look()

    def over(self, session: SessionId, *, unpaid: int, lingers: bool) -> None:
        """A session's stream ended; ``unpaid`` was sent beyond the last voucher."""
        if session in self.journal.sessions and session not in self._relaying:
            self._end(session, unpaid, linger_s=self._limits.linger_s if lingers else 0.0)

    def settle(self, session: SessionId) -> None:
        """Settle a session that was left, now: another one needs its place."""
        self._end(session, 0, linger_s=0.0)

    def _end(self, session: SessionId, unpaid: int, *, linger_s: float) -> None:
        if not linger_s:
            self.given_up(session, unpaid=unpaid)
        if self.journal.sessions[session].state in ("settled", "lost"):
            return
        settle_at = int(self._host.wall() + linger_s)
        self.journal.change(session, state="over", settle_at=settle_at, left_until=None)
        self.look()

    # ---- settling

    def look(self) -> None:
        """Plan when to settle what is due first."""
        first = min(self._to_settle(), key=lambda each: each.settle_at or 0, default=None)
        wait_s = policy.due_in_s(first, self._host.wall())
        if wait_s == math.inf:
            return
        at = self._host.now + max(0.0, wait_s) + self._limits.settle_batch_s
        if self._settles_at is None or at < self._settles_at:
            self._settles_at = at
            self._host.after(at - self._host.now, self._settle, at)

    def _settle(self, planned: float) -> None:
        if self._settles_at != planned:
            return  # an earlier one was planned since
        self._settles_at = None
        chain, wall = self._chain, self._host.wall()
        due = [each for each in self._to_settle() if (each.settle_at or 0) <= wall]
        for group in policy.batches(due):
            calls = [policy.call_of(record) for record in group]
            held = [
                (record, call)
                for record, call in zip(group, calls, strict=True)
                if not chain.why_refused(self._wallet, call)
            ]
            claims = [call for _, call in held if isinstance(call, Close)]
            if len(claims) > 1:
                self._send(CloseMany(tuple(claims)), [record for record, _ in held])
            else:
                for record, call in held:
                    self._send(call, [record])
            for record, call in zip(group, calls, strict=True):
                if all(record is not each for each, _ in held):
                    self._refused(record, chain.why_refused(self._wallet, call))
        self.look()

    def _to_settle(self) -> list[HostedSession]:
        return [each for each in self.journal.in_state("over") if each.session not in self._settling]

    def _send(self, call: Close | CloseMany | Release | Refund, records: list[HostedSession]) -> None:
        self._settling.update(record.session for record in records)
        most = self._settle_max_wei(records)
        settled = self._host.guarded(lambda outcome: self._settled(records, outcome, most))
        self._chain.send(self._wallet, call, settled, fee_max_wei=most)

    def _settle_max_wei(self, records: list[HostedSession]) -> int | None:
        """The most that settling these may cost together; None for any."""
        if not self._budget.known:
            return None
        wall = self._host.wall()
        return sum(
            self._budget.settle_max_wei(
                fee=record.terms.session_fee,
                worth=policy.worth(record),
                left_s=policy.deadline(record, self._chain.session(record.session)) - wall,
            )
            for record in records
        )

    def _settled(self, records: list[HostedSession], outcome: Outcome | ChainError, most: int | None) -> None:
        wei = self._pay_gas(outcome)
        if most is not None:
            self._host.paid_gas(wei, most)
        events: tuple[LedgerEvent, ...] = outcome.events if isinstance(outcome, Outcome) else ()
        amounts = {event.session: event.amount for event in events if isinstance(event, SessionClosed)}
        for record in records:
            self._settling.discard(record.session)
            if record.session in amounts:
                self._is_settled(record, amounts[record.session])
            elif isinstance(outcome, GasTooDearError):
                self._host.gas_was_too_dear()
                self._postpone(record.session, None)
            else:
                self._refused(record, str(outcome))
        self.look()

    def _is_settled(self, record: HostedSession, amount: int) -> None:
        self.journal.change(record.session, state="settled", amount=amount)
        self._owner.settled(amount, record.terms.session_fee)
        self._host.settled(record.session)

    def _postpone(self, session: SessionId, wait_s: float | None) -> None:
        wait_s = self._limits.settle_retry_max_s if wait_s is None else wait_s
        self.journal.change(session, settle_at=int(self._host.wall() + max(1.0, wait_s)))

    def _refused(self, record: HostedSession, reason: str) -> None:
        state, session = self._chain.session(record.session), record.session
        match policy.after_refusal(record, state, reason, self._host.wall(), confirmed=True):
            case policy.Settled(amount=amount):
                self._is_settled(record, amount)
            case policy.Postpone(wait_s=wait_s):
                self._postpone(session, wait_s)
            case policy.WaitUntil(at=at):
                self.journal.change(session, settle_at=at)
            case policy.BringRefund():
                self._send(Refund(record.terms), [record])
            case policy.BringAgain():
                self._postpone(session, self._limits.settle_retry_s)
            case policy.Lost(reason=why):
                self.journal.change(session, state="lost", detail=why)
