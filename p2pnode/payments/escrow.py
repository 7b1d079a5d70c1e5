"""Escrow intake: a host takes a payer's deposit, bounds what is unpaid, and journals before it acts.

Nobody is served before the deposit is in escrow and no close was asked for: what is served before that is
lost when the payer moves its funds. The wallet's key stays in memory while a paid host runs, for it settles
when its clients vanish and its owner sleeps; a host that asks for nothing opens neither wallet nor journal.
It knows no stream and no engine: ``host.py`` gives it what the machines decide.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import structlog
import trio

from p2pnode.chain.ledger import (
    ChainMadeAnewError,
    EscrowState,
    GasTooDearError,
    Ledger,
    RegistryLedger,
    RevertedError,
)
from p2pnode.chain.ledger import Open as OpenCall
from p2pnode.chain.profile import ChainProfile
from p2pnode.errors import ChainError, LocalError
from p2pnode.ids import PeerId, SessionId
from p2pnode.limits import Limits
from p2pnode.money import usdc_text
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import HostIdentity
from p2pnode.payments.books import open_books
from p2pnode.payments.exposure import Exposure, ExposureLimits
from p2pnode.payments.gas import HostGas
from p2pnode.payments.gas_budget import GasBudget
from p2pnode.payments.journal.journal import HostedSession, Journal
from p2pnode.payments.journal.records import HOSTED_STATES
from p2pnode.payments.settlement import OnEnding, OnSettled, Settler, SettlerStatistics
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.inference.commands import Escrowed, NotEscrowed, Relay
from p2pnode.protocols.inference.messages import WINDOW, Open, Receipt, Refuse, SessionTerms, Voucher
from p2pnode.protocols.inference.open_rules import HostPayment, check_open
from p2pnode.protocols.typed_data import amount_due, session_id

log = structlog.get_logger()
_RETRY_S: Final = 30.0
_PLAIN_SIGNATURE: Final = 65
Report: TypeAlias = Callable[[Escrowed | NotEscrowed], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where an ``Open`` came from, and at which start of this host."""

    peer: PeerId
    address: str | None
    epoch: int
    origin: str = ""
    keep_s: int = 0
    """For how long the session is kept when its client leaves."""


@dataclass(slots=True)
class _Deposit:
    """A deposit that is on its way (until ``decided``), or in escrow."""

    terms: SessionTerms
    window: int
    """Output tokens that the session may owe."""
    decided: bool = False
    abandoned: bool = False
    settle_at: int | None = None
    """When it is to be settled; None while a stream has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowStatistics:
    """Of a host's paid sessions. Counts are since the start, but for ``sessions``, which the journal has, by
    their state; ``exposed`` is in token units (see ``Exposure.units``)."""

    vouchers: int
    receipts: int
    deposits: int
    """Deposits that are being brought to the chain."""
    exposed: int
    sessions: Mapping[str, int]
    settlement: SettlerStatistics
    chain_reachable: bool


class EscrowIntake:
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
        on_settled: OnSettled = lambda _record, _amount: None,
        exposure_limits: ExposureLimits | None = None,
        budget: GasBudget | None = None,
    ) -> None:
        self.ledger, self.journal = ledger, journal
        self._identity, self._limits, self._wall, self._on_ending = identity, limits, wall, on_ending
        self.exposure = Exposure(exposure_limits or ExposureLimits())
        self.gas = HostGas(ledger, budget or GasBudget(), wall)
        self.settler = Settler(
            ledger,
            journal,
            limits=limits,
            wall=wall,
            on_ending=on_ending,
            on_settled=on_settled,
            gas=self.gas,
        )
        self._deposits: dict[SessionId, _Deposit] = {}
        self._vouchers = self._receipts = 0
        self._nursery: trio.Nursery | None = None

    async def prepare(self, epoch: int) -> None:
        """Give clients of earlier starts time to come back. To be called before anything is served."""
        await self.settler.prepare(epoch)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Settle and watch until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(self.settler.run)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # sessions that end from now on can start no task in it

    def asks(self, *, price_in: int, price_out: int, session_fee: int) -> HostPayment:
        """The payment that a session of an offer must bring."""
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
            expiry_min_s=int(2 * self._limits.expiry_margin_s),
            valid_min_s=int(self._limits.escrow_deadline_s + self._limits.chain_deadline_s),
        )

    def refuses(self, request: Open, payment: HostPayment) -> Refuse | None:
        """Why these terms are refused, as far as that is known without asking the chain."""
        # Only the chain can tell whether 65 bytes are a contract's signature or a forged one.
        refusal = check_open(request, payment, int(self._wall()), plain_account=False)
        if refusal is None and request.terms is not None:
            session = session_id(payment.market, request.terms)
            if session in self._deposits or self.journal.hosted_one(session) is not None:
                return Refuse(code="bad_request", detail="this session was opened before: resume it")
        return refusal

    # ---- a deposit

    def window(self, terms: SessionTerms, address: str | None, wanted: int) -> int:
        """Output tokens that a new session may owe: ``wanted`` where the limits allow it."""
        owed = amount_due(terms, 0, wanted) - terms.session_fee
        return WINDOW if self.exposure.why_not(terms.payer, address, owed, self._wall()) else wanted

    def take(self, order: Relay, payment: HostPayment, source: Source, report: Report) -> None:
        """Take the deposit into escrow in the background; ``report`` hears how it went, once."""
        request = order.request
        if self._nursery is None or request.terms is None or request.authorisation is None:
            msg = "a deposit needs terms and a escrow that runs"
            raise ChainError(msg)
        session = session_id(payment.market, request.terms)
        # Here, not in the task: nothing runs between ``refuses`` and this line, so that of two streams that
        # bring the same terms only the first gets so far.
        self._deposits[session] = _Deposit(request.terms, order.window)
        record = HostedSession(
            session=session,
            terms=request.terms,
            salt=request.salt,
            authorisation=request.authorisation,
            valid_before=request.valid_before,
            epoch=source.epoch,
            peer=source.peer,
            opened_at=int(self._wall()),
            keep_s=source.keep_s,
            origin=source.origin,
            window=order.window,
        )
        self._nursery.start_soon(self._take_or_refuse, request, payment, record, source.address, report)

    async def _take_or_refuse(
        self, request: Open, payment: HostPayment, record: HostedSession, address: str | None, report: Report
    ) -> None:
        try:
            await self._take(request, payment, record, address, report)
        except Exception as error:
            # A full disk ends this session, never the node; and so does any error that a payer's terms, or
            # what the chain says of the payer, may cause.
            if isinstance(error, LocalError):
                log.warning("open.failed", session=record.session.hex()[:16], reason=str(error))
            else:
                log.exception("open.failed", session=record.session.hex()[:16])
            deposit = self._deposits.get(record.session)
            if deposit is not None:
                deposit.decided = True
            self._forget(record.session)
            report(NotEscrowed(Refuse(code="internal", detail="this host can't write its journal now")))

    async def _take(
        self, request: Open, payment: HostPayment, record: HostedSession, address: str | None, report: Report
    ) -> None:
        session = record.session
        deposit = self._deposits[session]
        call = OpenCall(record.terms, record.valid_before, record.authorisation)
        try:
            with trio.fail_after(self._limits.chain_deadline_s):
                escrow = await self.ledger.session(session)
                refusal = await self._refusal(request, payment, escrow) or self._exposed(record, address)
                if refusal is None and escrow.status == "none":
                    refusal = await self._too_dear(record)
                if refusal is None and escrow.status == "none":
                    await self.ledger.check(call)
        except (ChainError, trio.TooSlowError) as error:
            refusal, escrow = _refusal_of(error), EscrowState(status="none")
        if refusal is None and not deposit.abandoned:
            # Before the relay: a deposit that lands and is not in the journal would never be settled.
            await self.journal.host_relaying(record)
            refusal = await self._bring(session, call, there=escrow.status == "open")
        # No await from here to the report: the end of the stream either comes before, and abandons the
        # deposit, or finds it decided, and ends the session itself.
        deposit.decided = True
        if refusal is None and not deposit.abandoned:
            log.info("session.escrowed", session=session.hex()[:16], deposit=record.terms.deposit)
            report(Escrowed())
            return
        if self.journal.hosted_one(session) is not None:
            await self._over(session, 0.0)  # it may have landed after all: the settler finds out
        self._forget(session)
        if refusal is not None:
            report(NotEscrowed(refusal))

    async def _bring(self, session: SessionId, call: OpenCall, *, there: bool) -> Refuse | None:
        """Relay the open, and check that the deposit stays. Whoever relays it opens the same one session."""
        try:
            with trio.fail_after(self._limits.escrow_deadline_s):
                if not there:
                    try:
                        await self.gas.open(call)
                    except RevertedError:
                        # Anyone may relay it: whoever saw ours on its way may have been quicker.
                        if (await self.ledger.session(session)).status != "open":
                            raise
                await self.journal.host_open(session)
                # Asked after the open: an earlier close request shows here, a later one is watched for.
                escrow = await self.ledger.session(session)
        except (ChainError, trio.TooSlowError) as error:
            return _refusal_of(error)
        return None if escrow.status == "open" and escrow.closing_at is None else _closing()

    async def _refusal(self, request: Open, payment: HostPayment, escrow: EscrowState) -> Refuse | None:
        """Why this deposit is not tried, by what the chain says of its payer; None where it is."""
        terms = request.terms
        if terms is None or escrow.status == "closed" or escrow.closing_at is not None:
            return _closing()
        state = await self.ledger.balances(terms.payer)
        if not state.has_code and len(request.authorisation or b"") != _PLAIN_SIGNATURE:
            detail = "the payer is a contract wallet that does not exist yet: deploy it first"
            return Refuse(code="payment_required", detail=detail)
        if not state.has_code and (wrong := check_open(request, payment, int(self._wall()))) is not None:
            return wrong
        if escrow.status == "open":
            return None  # its funds have left the wallet already
        others = sum(
            deposit.terms.deposit
            for deposit in self._deposits.values()
            if deposit.terms.payer == terms.payer and not deposit.decided
        )
        if (missing := others - state.usdc) > 0:  # this one is among them
            detail = f"the payer's wallet lacks {usdc_text(missing)} of the deposit"
            return Refuse(code="payment_required", detail=detail)
        return None

    async def _too_dear(self, record: HostedSession) -> Refuse | None:
        """Refuse where gas costs more than the fee, or where an open would use the ether for settlements."""
        unsettled = self.journal.hosted_count("open", "over", "relaying")
        why = await self.gas.why_not_open(record.terms.session_fee, unsettled)
        if not why:
            return None
        log.warning("open.refused", reason=why)
        return Refuse(code="capacity", detail=f"{why}: use another host", retry_after_s=_RETRY_S)

    def _exposed(self, record: HostedSession, address: str | None) -> Refuse | None:
        terms = record.terms
        owed = amount_due(terms, 0, self._deposits[record.session].window) - terms.session_fee
        why = self.exposure.reserve(record.session, terms.payer, address, owed, self._wall())
        return Refuse(code="capacity", detail=why, retry_after_s=_RETRY_S) if why else None

    def statistics(self) -> EscrowStatistics:
        """Counts of vouchers, receipts and sessions. Raises ``StorageError``: it reads the journal."""
        return EscrowStatistics(
            vouchers=self._vouchers,
            receipts=self._receipts,
            deposits=len(self._deposits),
            exposed=self.exposure.units,
            sessions={state: self.journal.hosted_count(state) for state in HOSTED_STATES},
            settlement=self.settler.statistics(),
            chain_reachable=self.settler.reachable,
        )

    # ---- while it is served

    async def paid(self, session: SessionId, voucher: Voucher) -> None:
        """Journal a voucher. It is on disk before what it pays for is served."""
        await self.journal.host_paid(session, voucher)
        self._vouchers += 1

    async def issued(self, session: SessionId, receipt: Receipt) -> None:
        """Journal a receipt. It is on disk before what its voucher pays for is served. A place has one."""
        await self.journal.host_issuing(session, receipt)
        self._receipts += 1

    async def recovered(self, session: SessionId, epoch: int, address: str | None) -> str:
        """Go on with a session after a restart, under ``epoch``. Returns why it may take no turn, or "".

        The epoch is durable before anything is signed under it. The chain is asked in the background, for
        the final voucher is worth taking whatever it answers.
        """
        await self.journal.host_resumed(session, epoch)
        record = self.journal.hosted_one(session)
        if record is None:
            return "it is not in the journal"
        # Also where it is refused below: ``over`` notes when to settle only for what stands here.
        self._deposits[session] = _Deposit(record.terms, record.window, decided=True)
        if (refusal := self._exposed(record, address)) is not None:
            return refusal.detail
        if self._nursery is not None:
            self._nursery.start_soon(self._look_again, session)
        return ""

    async def _look_again(self, session: SessionId) -> None:
        """End the session if it is no longer in escrow. A chain that is away answers the settler later."""
        try:
            with trio.fail_after(self._limits.chain_deadline_s):
                escrow = await self.ledger.session(session)
        except (ChainError, trio.TooSlowError) as error:
            log.warning("chain.unreachable", reason=str(error) or "too slow")
            return
        if escrow.status != "open" or escrow.closing_at is not None:
            self._on_ending(session, _closing().detail, escrow.status != "open")

    # ---- the end

    async def over(self, session: SessionId, *, unpaid: int, lingers: bool) -> None:
        """End a session whose stream ended; ``unpaid`` token units were sent beyond the last voucher."""
        deposit = self._deposits.get(session)
        if deposit is None:
            return
        if not deposit.decided:
            deposit.abandoned = True  # nobody waits for it: ``_take`` ends it when it is decided
            return
        if not lingers:
            self._lost(session, unpaid)  # before the write below, which may fail: it can owe no more
        await self._over(session, self._limits.linger_s if lingers else 0.0)

    def given_up(self, session: SessionId, *, unpaid: int) -> None:
        """Count the loss of a session that nobody resumed in time, or that nobody may resume any more."""
        self._lost(session, unpaid)

    async def note_left(self, session: SessionId, until: int) -> None:
        """Journal that its client left the session, or is lost, and that it is settled at ``until``."""
        deposit = self._deposits.get(session)
        if deposit is not None:
            deposit.settle_at = until
        await self.journal.host_left(session, until)
        self.settler.due()

    def readmit(
        self, session: SessionId, terms: SessionTerms, window: int, address: str | None
    ) -> Refuse | None:
        """Let a session that was left owe its window again. Returns why not: then it stays as it is."""
        owed = amount_due(terms, 0, window) - terms.session_fee
        why = self.exposure.reserve(session, terms.payer, address, owed, self._wall())
        if why:
            return Refuse(code="rate_limited", detail=why, retry_after_s=_RETRY_S)
        self._deposits[session] = _Deposit(terms, window, decided=True)
        return None

    async def taken_up(self, session: SessionId, epoch: int, generation: int) -> None:
        """Journal that a session that was left goes on, before anything is signed in it.

        The chain is asked in the background: its payer may have asked to close it since.
        """
        await self.journal.host_taken_up(session, epoch, generation)
        if self._nursery is not None:
            self._nursery.start_soon(self._look_again, session)

    async def settle(self, session: SessionId) -> None:
        """Settle a session that was left, now: another one needs its place."""
        await self.journal.host_over(session, int(self._wall()))
        self.settler.due()

    async def resumed(self, session: SessionId) -> None:
        """Keep a session from being settled: another stream has it now."""
        deposit = self._deposits.get(session)
        if deposit is not None:
            deposit.settle_at = None
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
        deposit = self._deposits.get(session)
        if deposit is not None:
            deposit.settle_at = settle_at
        noted = False
        try:
            await self.journal.host_over(session, settle_at)
            noted = True
        except LocalError as error:
            log.warning("session.not_noted", session=session.hex()[:16], reason=str(error))
        finally:  # also when cancelled: a slow disk may take longer than the end of a stream may wait
            if not noted and self._nursery is not None:
                self._nursery.start_soon(self._note_over, session, settle_at)
            self.settler.due()

    async def _note_over(self, session: SessionId, settle_at: int) -> None:
        """Journal that a session is over, again and again until the disk takes it or it was resumed."""
        while True:
            await trio.sleep(self._limits.settle_retry_s)
            deposit = self._deposits.get(session)
            if deposit is not None and deposit.settle_at != settle_at:
                return
            with suppress(LocalError):
                await self.journal.host_over(session, settle_at)
                self.settler.due()
                return


def _closing() -> Refuse:
    detail = "this session is closed, or asked to be: open another one"
    return Refuse(code="payment_required", detail=detail)


def _refusal_of(error: ChainError | trio.TooSlowError) -> Refuse:
    if isinstance(error, RevertedError):
        return Refuse(code="payment_required", detail=f"the deposit can't be taken: {error.reason}")
    if isinstance(error, ChainMadeAnewError):
        log.warning("chain.made_anew", reason=str(error))
        detail = "the chain that this host is paid on was made anew: its owner has to start the host again"
        return Refuse(code="payment_required", detail=detail)
    if isinstance(error, GasTooDearError):
        detail = "gas costs more now than this host's session fee covers: use another host"
        return Refuse(code="capacity", detail=detail, retry_after_s=_RETRY_S)
    log.warning("chain.unreachable", reason=str(error) or "too slow")
    detail = "this host can't reach its chain now: try again later or use another host"
    return Refuse(code="capacity", detail=detail, retry_after_s=_RETRY_S)


# ---- what a host is paid with


@dataclass(frozen=True, slots=True)
class HostMoney:
    """What a host is paid with. Ledger and journal run for longer than the host."""

    ledger: RegistryLedger
    journal: Journal
    exposure_limits: ExposureLimits = field(default_factory=ExposureLimits)
    budget: GasBudget = field(default_factory=GasBudget)


@asynccontextmanager
async def open_host_money(
    data: DataDir,
    profile: ChainProfile,
    passphrase: bytes | None = None,
    budget: GasBudget | None = None,
) -> AsyncIterator[HostMoney]:
    """Unlock the wallet, connect, and run until the block ends. Raises ``LocalError``."""
    async with open_books(data, profile, sends=True, passphrase=passphrase) as books:
        yield HostMoney(books.ledger, books.journal, budget=budget or GasBudget())
