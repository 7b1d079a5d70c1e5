"""Where every cent is: the journal's sessions and the chain's balances, added up. All amounts are USDC units.

A wallet's money as payer and as host, for one wallet may be both. For money that can't move the reason is
given, and the time at which it can. ``reconcile`` asks the chain what became of a client's sessions and tells
the journal: a client need not do so to get its money back; it does when its limits or its funds run out, or
when its owner asks. Sessions of another market than the ledger's are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog
import trio

from p2pnode.chain.ledger import EscrowState, Ledger
from p2pnode.contract_rules import CHALLENGE_S
from p2pnode.errors import LocalError
from p2pnode.ids import PeerId, SessionId
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, Journal
from p2pnode.payments.settlement_policy import deadline
from p2pnode.protocols.typed_data import Domain, session_id

Record = TypeVar("Record", BoughtSession, HostedSession)
_AT_ONCE: Final = 8
"""Questions to the chain at the same time."""
EXPIRED_S: Final = 120
"""This long past its end an authorisation that the chain never saw counts as dead (clocks, reorgs)."""
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """Money that waits for something."""

    session: SessionId
    units: int
    why: str
    until: int | None = None
    """Epoch seconds at which it can move without the other side; None where that isn't known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftDeposit:
    """A deposit in a session that is left with its host, or in use there: the next command goes on in it."""

    session: SessionId
    host: PeerId
    units: int
    signed: int
    """The part of it that the last voucher gives to the host."""
    until: int | None
    """Epoch seconds until which the host keeps it; None where that isn't known."""
    refund_at: int
    """From then on anyone may bring the rest, whatever its host does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Funds:
    """A wallet's money. ``None`` where the chain was not asked or did not answer."""

    wallet: int | None
    ether_wei: int | None
    authorised: int
    """Deposits signed away that hosts may still take."""
    escrow: int
    """Deposits of open sessions that this wallet pays for."""
    signed: int
    """The part of these deposits that its vouchers give to hosts."""
    spent: int
    """Settled sessions that it paid for."""
    owed: int
    """Owed to it as a host: the best vouchers of unsettled sessions, the treasury's tenth included."""
    earned: int
    """Settled for it as a host, the treasury's tenth included."""
    withdrawable: int | None
    elsewhere: int
    """Sessions of another chain than the profile's, of which nothing is counted here."""
    elsewhere_open: tuple[SessionId, ...]
    """The unsettled ones of these sessions: their own profile settles them."""
    stuck: tuple[Stuck, ...] = field(default=())
    left: tuple[LeftDeposit, ...] = field(default=())


def of_market(records: Iterable[Record], market: Domain) -> list[Record]:
    """The records of one market. A journal may hold another's, or those of a chain that was made anew."""
    return [each for each in records if session_id(market, each.terms) == each.session]


def local_funds(journal: Journal, market: Domain, payer: bytes, now: int) -> Funds:
    """The funds as the journal alone knows them."""
    all_bought, all_hosted = journal.purchases(), journal.hosted()
    bought, hosted = of_market(all_bought, market), of_market(all_hosted, market)
    every: list[BoughtSession | HostedSession] = [*all_bought, *all_hosted]
    open_ = [each for each in bought if each.state in ("open", "over")]
    unsettled = [each for each in hosted if each.state in ("open", "over")]
    # Authorisations of another market are among them until they expire, minutes after they were signed.
    authorised = journal.outstanding(payer, now)
    # What a host took and the chain has not shown yet is still in the wallet: it is counted once.
    unseen = authorised - sum(
        each.terms.deposit for each in bought if each.state == "signed" and each.valid_before > now
    )
    return Funds(
        wallet=None,
        ether_wei=None,
        authorised=authorised,
        escrow=sum(each.terms.deposit for each in open_) - max(0, unseen),
        signed=sum(each.due for each in open_),
        spent=sum(each.due for each in bought if each.state == "settled"),
        owed=sum(each.due for each in unsettled),
        earned=sum(each.due for each in hosted if each.state == "settled"),
        withdrawable=None,
        elsewhere=len(all_bought) + len(all_hosted) - len(bought) - len(hosted),
        elsewhere_open=tuple(
            each.session
            for each in every
            if session_id(market, each.terms) != each.session
            and each.state in ("signed", "relaying", "open", "over")
        ),
        left=tuple(
            LeftDeposit(
                session=each.session,
                host=each.host,
                units=each.terms.deposit,
                signed=each.due,
                until=each.left_until,
                refund_at=each.terms.expiry + CHALLENGE_S,
            )
            for each in bought
            if each.state == "open" and each.keep_s > 0
        ),
    )


async def funds(journal: Journal, ledger: Ledger, address: bytes, now: int) -> Funds:
    """The funds as journal and chain know them. Raises ``ChainError``."""
    account = await ledger.balances(address)
    market = ledger.domains.market
    local = local_funds(journal, market, address, now)
    stuck: list[Stuck] = []
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def paying(record: BoughtSession) -> None:
        async with limit:
            found = why_waiting(record, await ledger.session(record.session), now)
        if found is not None:
            stuck.append(found)

    async with trio.open_nursery() as nursery:
        for record in of_market(journal.purchases("over", "signed"), market):
            nursery.start_soon(paying, record)
    over = of_market(journal.hosted("over"), market)
    stuck += [each for record in over if (each := why_unsettled(record, now)) is not None]
    return Funds(
        wallet=account.usdc,
        ether_wei=account.ether,
        authorised=local.authorised,
        escrow=local.escrow,
        signed=local.signed,
        spent=local.spent,
        owed=local.owed,
        earned=local.earned,
        withdrawable=account.earned,
        elsewhere=local.elsewhere,
        elsewhere_open=local.elsewhere_open,
        stuck=tuple(sorted(stuck, key=lambda each: each.session)),
        left=local.left,
    )


def why_waiting(record: BoughtSession, state: EscrowState, now: int) -> Stuck | None:
    """Why a payer's remainder has not come back, if it has not."""
    if state.status != "open":
        return None
    # A session that is on the chain owes its fee, also where the host's answer never came.
    rest = record.terms.deposit - max(record.due, record.terms.session_fee)
    until = deadline(record, state)
    if state.closing_at is not None:
        why = "a close was asked for: the host may show a better voucher until then"
    else:
        why = "its host has not settled it yet; from then on anyone may bring the refund"
    if now >= until:
        why = "the refund may be brought now: `p2pnode sessions close`"
    return Stuck(session=record.session, units=rest, why=why, until=until)


def why_unsettled(record: HostedSession, now: int) -> Stuck | None:
    """Why a host's session is not settled, if it should be."""
    if record.settle_at is None or now < record.settle_at:
        return None
    why = record.detail or "its settlement is under way, or the chain can't be reached"
    return Stuck(session=record.session, units=record.due, why=why)


# ---- what became of a client's paid sessions


async def reconcile(journal: Journal, ledger: Ledger, now: int) -> None:
    """Ask about every session that isn't known to be settled. Raises ``UnavailableError``."""
    limiter = trio.CapacityLimiter(_AT_ONCE)
    failures: list[LocalError] = []
    dead_before = min((await ledger.head()).timestamp, now) - EXPIRED_S

    async def ask(bought: BoughtSession) -> None:
        async with limiter:
            state = await ledger.session(bought.session)
        match state.status:
            case "closed" if not await believable(bought, state):
                log.warning("session.not_believed", session=bought.session.hex()[:16], amount=state.recorded)
            case "closed":
                await journal.bought_settled(bought.session, state.recorded, now)
            case "open":
                await journal.bought_mined(bought.session)
            case "none":
                if bought.valid_before < dead_before:
                    await journal.bought_expired(bought.session)

    async def believable(bought: BoughtSession, state: EscrowState) -> bool:
        """Whether the answer is taken. It frees the user's limits: one endpoint's "closed, 0" must not.

        No settlement pays less than the fee or more than the deposit; and where there is a second endpoint,
        it has to say the same, until nothing can be taken any more.
        """
        possible = bought.terms.session_fee <= state.recorded <= bought.terms.deposit
        past = now > bought.terms.expiry + CHALLENGE_S
        return possible and (past or await ledger.confirmed(bought.session, state))

    async def ask_or_note(bought: BoughtSession) -> None:
        try:
            await ask(bought)
        except LocalError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for bought in journal.purchases("signed", "open", "over"):
            if session_id(ledger.domains.market, bought.terms) == bought.session:
                nursery.start_soon(ask_or_note, bought)
    if failures:
        raise failures[0]
