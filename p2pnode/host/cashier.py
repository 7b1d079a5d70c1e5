"""The money side of a host: takes a payer's deposit, bounds what is unpaid, writes down before it acts.

A stranger is served once its deposit is in escrow. A payer whose sessions were settled here before is
served at once, up to ``AHEAD_UNITS``, while the deposit is on its way. It knows no stream and no engine:
``host.py`` gives it what the machines decide.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import structlog
import trio

from p2pnode.chain.ledger import AccountState, Ledger, RevertedError
from p2pnode.chain.ledger import Open as OpenCall
from p2pnode.errors import ChainError, LocalError
from p2pnode.host.exposure import Exposure, ExposureCaps
from p2pnode.host.settlement import OnEnding, Settler
from p2pnode.ids import PeerId, SessionId
from p2pnode.limits import Limits
from p2pnode.node.identity import HostIdentity
from p2pnode.node.journal import HostedSession, Journal
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.inference.commands import Escrowed, NotEscrowed
from p2pnode.protocols.inference.messages import WINDOW, Checkpoint, Open, Refuse, SessionTerms, Voucher
from p2pnode.protocols.inference.payment import HostPayment, check_open
from p2pnode.protocols.typed_data import amount_due, session_id

log = structlog.get_logger()
AHEAD_UNITS: Final = 20_000
"""What a known payer may run up while its deposit is not mined, in USDC units."""
_RETRY_S: Final = 30.0
_PLAIN_SIGNATURE: Final = 65
Report: TypeAlias = Callable[[Escrowed | NotEscrowed], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where an ``Open`` came from, and at which start of this host."""

    peer: PeerId
    address: str | None
    epoch: int


@dataclass(slots=True)
class _Deposit:
    """One that is on its way, or in escrow (``landed``)."""

    terms: SessionTerms
    decided: trio.Event = field(default_factory=trio.Event)
    landed: bool = False
    abandoned: bool = False
    """Its stream ended while it was on its way."""
    unpaid: int | None = None
    """What was delivered and not paid, once nobody can come back for it."""


class Cashier:
    """One per host that asks for money. ``run`` it for as long as the host serves."""

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        identity: HostIdentity,
        *,
        limits: Limits,
        wall: Callable[[], float],
        on_ending: OnEnding,
        caps: ExposureCaps | None = None,
    ) -> None:
        self.ledger, self.journal = ledger, journal
        self._identity, self._limits, self._wall = identity, limits, wall
        self.exposure = Exposure(caps or ExposureCaps())
        self.settler = Settler(ledger, journal, limits=limits, wall=wall, on_ending=on_ending)
        self._deposits: dict[SessionId, _Deposit] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Settle and watch until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.settler.run)
            task_status.started()

    def asks(self, *, price_in: int, price_out: int, session_fee: int) -> HostPayment:
        """What a session of an offer must bring."""
        binding, secret = self._identity.binding, self._identity.receipt_secret
        return HostPayment(
            market=self.ledger.domains.market,
            token=self.ledger.domains.token,
            peer=self._identity.key.peer_id,
            wallet=binding.wallet,
            receipt_key=binding.receipt_key,
            sign=lambda digest: sign_digest(secret, digest),
            price_in=price_in,
            price_out=price_out,
            session_fee=session_fee,
        )

    def refuses(self, request: Open, payment: HostPayment) -> Refuse | None:
        """Why these terms are not taken, as far as it shows without asking the chain."""
        # Whether 65 bytes are a contract's signature or a forged one shows on the chain only.
        refusal = check_open(request, payment, int(self._wall()), plain_account=False)
        if refusal is None and request.terms is not None:
            session = session_id(payment.market, request.terms)
            if session in self._deposits or self.journal.hosted_one(session) is not None:
                return Refuse(code="bad_request", detail="this session was opened before: resume it")
        return refusal

    # ---- a deposit

    def take(self, request: Open, payment: HostPayment, source: Source, report: Report) -> None:
        """Bring the deposit home in the background; ``report`` says how it went, once or (ahead) twice."""
        if self._nursery is None or request.terms is None or request.authorisation is None:
            msg = "a deposit needs terms and a cashier that runs"
            raise ChainError(msg)
        session = session_id(payment.market, request.terms)
        self._deposits[session] = _Deposit(request.terms)
        record = HostedSession(
            session=session,
            terms=request.terms,
            salt=request.salt,
            authorisation=request.authorisation,
            valid_before=request.valid_before,
            epoch=source.epoch,
            peer=source.peer,
            opened_at=int(self._wall()),
        )
        self._nursery.start_soon(self._take_or_refuse, request, payment, record, source.address, report)

    async def _take_or_refuse(
        self, request: Open, payment: HostPayment, record: HostedSession, address: str | None, report: Report
    ) -> None:
        try:
            await self._take(request, payment, record, address, report)
        except LocalError as error:  # a full disk costs this session, never the node
            log.warning("open.failed", session=record.session.hex()[:16], reason=str(error))
            deposit = self._deposits.get(record.session)
            if deposit is not None:
                deposit.decided.set()
            self._forget(record.session)
            await report(NotEscrowed(Refuse(code="internal", detail="this host can't keep its books now")))

    async def _take(
        self, request: Open, payment: HostPayment, record: HostedSession, address: str | None, report: Report
    ) -> None:
        session = record.session
        deposit = self._deposits[session]
        call = OpenCall(record.terms, record.valid_before, record.authorisation)
        known = self.journal.has_settled_with(record.terms.payer)
        try:
            with trio.fail_after(self._limits.chain_deadline_s):
                state = await self.ledger.balances(record.terms.payer)
                ahead = known and not state.has_code
                # Anyone may relay it: somebody may have been quicker, and moved the funds already.
                there = (await self.ledger.session(session)).status == "open"
                refusal = None if there else self._refusal(request, payment, state)
                refusal = refusal or self._exposed(record, address, ahead)
                if refusal is None and not there:
                    await self.ledger.check(call)
        except (ChainError, trio.TooSlowError) as error:
            refusal, ahead, there = _refusal_of(error), False, False
        if refusal is not None or (deposit.abandoned and not there):
            self._forget(session)
            if refusal is not None:
                await report(NotEscrowed(refusal))
            return  # nobody waits for it: nothing is taken
        await self.journal.host_relaying(record)
        if ahead:
            await report(Escrowed(mined=False))
        refusal = None if there else await self._relay(session, call)
        deposit.landed = refusal is None
        deposit.decided.set()
        if refusal is None:
            await self.journal.host_open(session)
            log.info("session.escrowed", session=session.hex()[:16], deposit=record.terms.deposit)
            if deposit.abandoned:
                await self._over(session, 0.0)
            else:
                await report(Escrowed())
        elif refusal.code == "payment_required":
            await self.journal.host_lost(session, refusal.detail)
            await report(NotEscrowed(refusal))
        else:
            await self._over(session, 0.0)  # it may have landed: the settler finds out
            await report(NotEscrowed(refusal))
        if deposit.unpaid is not None:
            self._lost(session, deposit.unpaid)

    async def _relay(self, session: SessionId, call: OpenCall) -> Refuse | None:
        try:
            with trio.fail_after(self._limits.relay_deadline_s):
                try:
                    await self.ledger.transact(call)
                except RevertedError:
                    # Anyone may relay it: whoever saw ours on its way may have been quicker.
                    if (await self.ledger.session(session)).status != "open":
                        raise
        except (ChainError, trio.TooSlowError) as error:
            return _refusal_of(error)
        return None

    def _refusal(self, request: Open, payment: HostPayment, state: AccountState) -> Refuse | None:
        """Why this deposit is not even tried, by what the chain says of its payer."""
        if not state.has_code and len(request.authorisation or b"") != _PLAIN_SIGNATURE:
            detail = "the payer is a contract wallet that does not exist yet: deploy it first"
            return Refuse(code="payment_required", detail=detail)
        if not state.has_code and (wrong := check_open(request, payment, int(self._wall()))) is not None:
            return wrong
        terms = request.terms
        others = sum(
            deposit.terms.deposit
            for deposit in self._deposits.values()
            if terms is not None and deposit.terms.payer == terms.payer and not deposit.decided.is_set()
        )
        if (missing := others - state.usdc) > 0:  # this one is among them
            detail = f"the payer's wallet lacks {missing} USDC units of the deposit"
            return Refuse(code="payment_required", detail=detail)
        return None

    def _exposed(self, record: HostedSession, address: str | None, ahead: bool) -> Refuse | None:
        terms = record.terms
        owed = amount_due(terms, 0, WINDOW) - terms.session_fee + (AHEAD_UNITS if ahead else 0)
        why = self.exposure.reserve(record.session, terms.payer, address, owed, self._wall())
        return Refuse(code="capacity", detail=why, retry_after_s=_RETRY_S) if why else None

    # ---- while it is served

    async def paid(self, session: SessionId, voucher: Voucher) -> None:
        """Durable first. Ahead of the chain it then waits where more would be at stake than allowed."""
        await self.journal.host_paid(session, voucher)
        deposit = self._deposits.get(session)
        if deposit is not None and voucher.amount - deposit.terms.session_fee > AHEAD_UNITS:
            await deposit.decided.wait()  # its deadline is the relay's

    async def issued(self, session: SessionId, checkpoint: Checkpoint) -> None:
        """Written down in order: on disk before what its voucher pays for is served. A place has one."""
        await self.journal.host_issuing(session, checkpoint)

    # ---- the end

    async def over(self, session: SessionId, *, unpaid: int, lingers: bool) -> None:
        """Its stream ended; ``unpaid`` token units were delivered beyond the last voucher."""
        deposit = self._deposits.get(session)
        if deposit is None:
            return
        if not deposit.decided.is_set():
            # Not forgotten before it is decided: the same terms could be taken a second time meanwhile.
            deposit.abandoned, deposit.unpaid = True, None if lingers else unpaid
            return
        if deposit.landed:
            await self._over(session, self._limits.linger_s if lingers else 0.0)
        if not lingers:
            self._lost(session, unpaid)

    def given_up(self, session: SessionId, *, unpaid: int) -> None:
        """Nobody came back for it within the linger."""
        deposit = self._deposits.get(session)
        if deposit is not None and not deposit.decided.is_set():
            deposit.unpaid = unpaid
        else:
            self._lost(session, unpaid)

    async def resumed(self, session: SessionId) -> None:
        """Another stream has it now: it is not to be settled yet."""
        deposit = self._deposits.get(session)
        if deposit is not None and not deposit.decided.is_set():
            deposit.abandoned = False
        else:
            await self.journal.host_resumed(session)

    def _lost(self, session: SessionId, unpaid: int) -> None:
        self.exposure.lost(session, unpaid, self._wall())
        if unpaid:
            log.info("session.unpaid", session=session.hex()[:16], units=unpaid)
        self._forget(session)

    def _forget(self, session: SessionId) -> None:
        self.exposure.release(session)
        self._deposits.pop(session, None)

    async def _over(self, session: SessionId, linger_s: float) -> None:
        settle_at = int(self._wall() + linger_s)
        try:
            await self.journal.host_over(session, settle_at)
        except LocalError as error:
            log.warning("session.not_noted", session=session.hex()[:16], reason=str(error))
            if self._nursery is not None:
                self._nursery.start_soon(self._note_over, session, settle_at)
        self.settler.due()

    async def _note_over(self, session: SessionId, settle_at: int) -> None:
        """Try again until the disk takes it: an unsettled session is money."""
        while True:
            await trio.sleep(self._limits.settle_retry_s)
            with suppress(LocalError):
                await self.journal.host_over(session, settle_at)
                self.settler.due()
                return


def _refusal_of(error: ChainError | trio.TooSlowError) -> Refuse:
    if isinstance(error, RevertedError):
        return Refuse(code="payment_required", detail=f"the deposit can't be taken: {error.reason}")
    log.warning("chain.unreachable", reason=str(error) or "too slow")
    detail = "this host can't reach its chain now: try again later or use another host"
    return Refuse(code="capacity", detail=detail, retry_after_s=_RETRY_S)
