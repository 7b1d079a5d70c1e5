"""Settlement: a host closes every session that is over with its best voucher, whatever happens.

The journal holds what is due, so a restart goes on where a crash stopped; what a crash left open waits for
the linger first, so that its client can bring the final voucher. It also watches the chain for close
requests, which a host has 24 hours to answer, and answers them with the best voucher at once. A chain that
can't be reached costs time only. What is settled when, and what follows a refusal, ``settlement_policy.py``
decides. It knows nothing of streams: ``on_ending`` tells the host that a session's escrow is about to end.
``close_session`` ends one session by hand, from either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

import structlog
import trio

from p2pnode.bounded import Backoff
from p2pnode.chain.ledger import (
    Call,
    ChainMadeAnewError,
    Close,
    CloseMany,
    CloseRequested,
    EscrowState,
    GasTooDearError,
    Ledger,
    LedgerEvent,
    Outcome,
    Refund,
    Release,
    RequestClose,
    RevertedError,
    SessionClosed,
    SessionOpened,
    UnavailableError,
)
from p2pnode.chain.ledger import Open as OpenCall
from p2pnode.contract_rules import CHALLENGE_S
from p2pnode.errors import ChainError, ConfigError, LocalError
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.money import usdc_text
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.books import Books
from p2pnode.payments.gas import HostGas
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, HostedState, Journal
from p2pnode.protocols.typed_data import session_id

log = structlog.get_logger()
PRUNE_S: Final = 30 * 86_400
"""How long receipts stay in the journal, from the opening of a session that was settled."""
LOOK_S: Final = 3600.0
"""The clock of a wait stands still while the machine sleeps, the wall clock does not: what is due is looked
for at least so often."""
_PATIENCE_S: Final = 600.0
"""How long a settlement with a bound on its price may wait for a block."""
OnEnding: TypeAlias = Callable[[SessionId, str, bool], bool]
"""Tell a live session to end, why, and whether at once (or after its turn). False when no stream has it."""


OnSettled: TypeAlias = Callable[[HostedSession, int], None]
"""Told of a session that was settled, and at which amount (token units, the treasury's tenth included)."""


@dataclass(slots=True)
class SettlerStatistics:
    """Since the start; ``units`` is what was settled, in token units, the treasury's tenth included."""

    settled: int = 0
    units: int = 0
    postponed: int = 0
    """Settlements that could not be made and are tried again."""
    lost: int = 0
    """Sessions for which nothing can be claimed any more."""


class Settler:
    """Settles one host's sessions. ``run`` it for as long as the host serves; ``due`` wakes it."""

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        *,
        limits: Limits,
        wall: Callable[[], float],
        gas: HostGas,
        on_ending: OnEnding = lambda _session, _why, _now: False,
        on_settled: OnSettled = lambda _record, _amount: None,
    ) -> None:
        self._ledger, self._journal, self._limits, self._wall = ledger, journal, limits, wall
        self._gas = gas
        self._on_ending, self._on_settled = on_ending, on_settled
        self._wake = trio.Event()
        self._transacting = trio.Lock()
        market = ledger.domains.market
        self._cursor_name = f"host {market.chain_id} {market.contract.hex()}"
        self._cursor_checked = False
        self.reachable = True
        """Whether the chain answered last time."""
        self._counts = SettlerStatistics()

    def statistics(self) -> SettlerStatistics:
        """What came of settlements."""
        return replace(self._counts)

    async def prepare(self, epoch: int) -> None:
        """Note when to settle what a start before ``epoch`` left open. Raises ``StorageError``."""
        now = int(self._wall())
        for record in self._mine("open", "relaying"):
            settle_at = policy.due_after_restart(record, now, self._limits)
            kept = record.state == "open" and policy.keeps(record) and settle_at > now
            left_until = settle_at if kept else None
            await self._journal.host_left_open(record.session, settle_at, epoch, left_until)
        await self._journal.prune(now - PRUNE_S)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Settle and watch until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._settle_for_ever)
            nursery.start_soon(self._watch_for_ever)
            task_status.started()

    def due(self) -> None:
        """Look at the journal again: something new may be due."""
        self._wake.set()

    async def settle_all(self) -> None:
        """Settle what is over, also what is due later: the node stops. The caller sets a deadline."""
        try:
            await self._settle(self._mine("over"))
        except LocalError as error:
            log.warning("settlement.postponed", reason=str(error))

    def _mine(self, *states: HostedState) -> list[HostedSession]:
        """Sessions of this market: the journal may hold another's, from before the profile was changed."""
        return [each for each in self._journal.hosted(*states) if self._is_mine(each)]

    def _is_mine(self, record: HostedSession) -> bool:
        return session_id(self._ledger.domains.market, record.terms) == record.session

    # ---- settling

    async def _settle_for_ever(self) -> None:
        backoff = Backoff(self._limits.settle_retry_s, self._limits.settle_retry_max_s)
        while True:
            try:  # reading the journal may fail, too, and succeed when it is read again
                # One row, however many sessions are left with this host: each that is left wakes this loop.
                wait_s = policy.due_in_s(self._journal.hosted_next(self._is_mine), self._wall())
                if wait_s > 0:
                    # No await since the journal was read: what becomes due from now on sets this event.
                    self._wake = trio.Event()
                    with trio.move_on_after(min(wait_s, LOOK_S)):
                        await self._wake.wait()
                    continue
                # Others may fall due in a moment: settled together they cost a third each.
                await trio.sleep(self._limits.settle_batch_s)
                await self._settle(self._journal.hosted_due(self._wall(), self._is_mine))
            except Exception as error:
                retry_s = backoff.next_s()
                # An endpoint's answer or a payer's session may raise what nobody expected: the host stays
                # up, and what is due is tried again.
                if isinstance(error, LocalError):
                    log.warning("settlement.postponed", reason=str(error), retry_s=retry_s)
                else:
                    log.exception("settlement.failed", retry_s=retry_s)
                await trio.sleep(retry_s)
            else:
                backoff.reset()

    async def _settle(self, records: Sequence[HostedSession]) -> None:
        """Settle all of them. One that fails does not stop the others; the last one's error is raised."""
        failed: LocalError | None = None
        # The records were read before the lock: the dry run refuses one that was settled while we waited.
        async with self._transacting:
            for group in policy.batches(records):
                try:
                    await self._group(group)
                except (UnavailableError, ChainMadeAnewError):
                    raise  # the others would fare no better
                except LocalError as error:
                    log.warning("settlement.failed", sessions=len(group), reason=str(error))
                    failed = error
        if failed is not None:
            raise failed

    async def _group(self, records: Sequence[HostedSession]) -> None:
        calls = [policy.call_of(record) for record in records]
        # Each is tried first: claims that can't be paid would cost their gas again at every retry.
        claims = [call for call in calls if isinstance(call, Close) and await self._holds(call)]
        settled: set[SessionId] = set()
        if len(claims) > 1:
            paid = [record for record, call in zip(records, calls, strict=True) if call in claims]
            settled = await self._record(await self._send(CloseMany(tuple(claims)), paid))
        for record, call in zip(records, calls, strict=True):
            if record.session not in settled:
                await self._one(record, call)  # alone, so that the contract says what is wrong

    async def _holds(self, call: Close) -> bool:
        try:
            await self._ledger.check(call)
        except RevertedError:
            return False
        return True

    async def _one(self, record: HostedSession, call: Close | Release) -> None:
        try:
            await self._ledger.check(call)
            await self._record(await self._send(call, [record]))
        except RevertedError as error:
            await self._refused(record, await self._ledger.session(record.session), error.reason)

    async def _send(
        self, call: Close | CloseMany | Release | Refund, records: Sequence[HostedSession]
    ) -> Outcome:
        """Send it, for no more gas than these are worth now (later more). Raises ``GasTooDearError``."""
        return await self._send_for(call, await self._gas.settle_max_wei(records))

    async def _send_for(self, call: Call, most: int | None) -> Outcome:
        with trio.move_on_after(math.inf if most is None else _PATIENCE_S):
            return await self._ledger.transact(call, fee_max_wei=most)
        # It is on its way at a price that no block takes now. The same call joins it later, and may pay more.
        msg = "a settlement waits for cheaper gas"
        raise GasTooDearError(msg)

    async def _refused(self, record: HostedSession, state: EscrowState, reason: str) -> None:
        confirmed = state.status == "closed" and await self._ledger.confirmed(record.session, state)
        step = policy.after_refusal(record, state, reason, self._wall(), confirmed=confirmed)
        match step:
            case policy.Settled(amount=amount, detail=detail):
                await self._settled(record.session, amount, detail)
            case policy.Postpone(reason=why, wait_s=wait_s):
                await self._postpone(record, why, wait_s)
            case policy.WaitUntil(at=at):
                await self._journal.host_over(record.session, at)
            case policy.BringRefund():
                await self._record(await self._send(Refund(record.terms), [record]))
            case policy.BringAgain():
                await self._bring_again(record)
            case policy.Lost(reason=why):
                await self._lost(record, why)

    async def _bring_again(self, record: HostedSession) -> None:
        """Relay the open again: a reorganisation took it away, and what it pays for was served."""
        try:
            call = OpenCall(record.terms, record.valid_before, record.authorisation)
            await self._send_for(call, self._gas.open_again_max_wei(record))
        except RevertedError as error:
            # Somebody may have relayed it first, or the payer's USDC is gone with the same reorganisation.
            reason = f"it is not open again yet: {error.reason}"
            await self._postpone(record, reason, self._limits.settle_retry_s)
        else:
            await self._postpone(record, "it was opened again", 0.0)

    async def _postpone(self, record: HostedSession, reason: str, wait_s: float | None = None) -> None:
        wait_s = self._limits.settle_retry_max_s if wait_s is None else wait_s
        self._counts.postponed += 1
        log.warning("settlement.postponed", session=record.session.hex()[:16], reason=reason, retry_s=wait_s)
        await self._journal.host_over(record.session, int(self._wall() + wait_s))
        self.due()

    async def _lost(self, record: HostedSession, reason: str) -> None:
        self._counts.lost += 1
        log.warning("session.lost", session=record.session.hex()[:16], reason=reason)
        await self._journal.host_lost(record.session, reason)

    async def _record(self, outcome: Outcome) -> set[SessionId]:
        done = set()
        for event in outcome.events:
            if isinstance(event, SessionClosed):
                await self._settled(event.session, event.amount, outcome.transaction.hex())
                done.add(event.session)
        return done

    async def _settled(self, session: SessionId, amount: int, detail: str) -> None:
        record = self._journal.hosted_one(session)
        if record is None or record.state == "settled":
            return
        await self._journal.host_settled(session, amount, detail)
        self._counts.settled += 1
        self._counts.units += amount
        log.info("session.settled", session=session.hex()[:16], amount=amount)
        self._on_settled(record, amount)

    # ---- watching

    async def _watch_for_ever(self) -> None:
        while True:
            try:
                with trio.fail_after(self._limits.chain_deadline_s):
                    await self._watch()
            except Exception as error:  # whatever the endpoints say, the host stays up
                if not isinstance(error, LocalError | trio.TooSlowError):
                    log.exception("chain.watch_failed")
                if self.reachable and isinstance(error, ChainMadeAnewError):
                    log.warning("chain.made_anew", reason=str(error))
                elif self.reachable:
                    log.warning("chain.unreachable", reason=str(error) or "too slow")
                self.reachable = False
            else:
                if not self.reachable:
                    log.info("chain.reachable")
                self.reachable = True
            try:
                await self._end_expiring()
            except LocalError as error:
                log.warning("settlement.postponed", reason=str(error))
            await trio.sleep(self._limits.chain_poll_s)

    async def _watch(self) -> None:
        cursor = await self._cursor()
        caught_up = False
        while not caught_up:
            page = await self._ledger.events(cursor)
            for event in page.events:
                await self._seen(event)
            # After the events: a crash before this reads them again, which changes nothing the second time.
            if page.cursor != cursor or self._journal.cursor(self._cursor_name) is None:
                await self._journal.save_cursor(self._cursor_name, page.cursor)
            cursor, caught_up = page.cursor, page.caught_up

    async def _cursor(self) -> int:
        """The block to read on from. A chain that is shorter than the journal remembers was made anew (its
        profile names no first block that would tell): it is read from 0.
        """
        cursor = self._journal.cursor(self._cursor_name)
        if cursor is not None and self._cursor_checked:
            return cursor
        head = (await self._ledger.head()).block
        self._cursor_checked = True
        if cursor is not None and cursor > head + 1:
            log.warning("chain.shorter", remembered=cursor, head=head)
            await self._journal.save_cursor(self._cursor_name, 0)
            return 0
        return head if cursor is None else cursor

    async def _seen(self, event: LedgerEvent) -> None:
        match event:
            case CloseRequested(session=session, host=host) if host == self._ledger.account:
                await self._end(session, "its payer asked the chain to close it")
            case SessionClosed(session=session, host=host) if host == self._ledger.account:
                await self._closed(session)
            case SessionOpened(session=session, host=host) if host == self._ledger.account:
                await self._landed(session)
            case _:
                pass

    async def _closed(self, session: SessionId) -> None:
        """Somebody closed it. The log alone is not believed, nor one endpoint where there are two: it would
        make us forget a voucher. Nothing more is served all the same, and what is not believed we settle.
        """
        state = await self._ledger.session(session)
        if state.status != "closed":
            return
        has_stream = self._on_ending(session, "it was closed on the chain", True)
        if await self._ledger.confirmed(session, state):
            await self._settled(session, state.recorded, "seen on the chain")
            return
        record = self._journal.hosted_one(session)
        log.warning("session.not_believed", session=session.hex()[:16], amount=state.recorded)
        if record is not None and record.state == "open" and not has_stream:
            await self._journal.host_over(session, int(self._wall()))
            self.due()

    async def _landed(self, session: SessionId) -> None:
        """Settle a deposit that landed when nobody waited for it any more: the rest goes back at once."""
        record = self._journal.hosted_one(session)
        step = policy.after_landing(record) if record is not None else ""
        if step == "":
            return
        if step == "open and settle":
            await self._journal.host_open(session)
        await self._journal.host_over(session, int(self._wall()))
        self.due()

    async def _end_expiring(self) -> None:
        # At each look all that streams have now are read: ``sessions_max`` at most.
        for record in policy.expiring(self._mine("open"), self._wall(), self._limits.expiry_margin_s):
            await self._end(record.session, "its escrow is about to expire")

    async def _end(self, session: SessionId, why: str) -> None:
        """End a session's stream if it has one (the host then says when it is over), and settle it."""
        record = self._journal.hosted_one(session)
        if record is None or record.state not in ("open", "over"):
            return
        has_stream = self._on_ending(session, why, False)  # one that lingers is given up now
        if record.state == "over" or not has_stream:
            await self._journal.host_over(session, int(self._wall()))
            self.due()


# ---- by hand


Done: TypeAlias = Literal["settled", "requested", "waiting", "nothing"]
CALL_GAS: Final = 150_000
"""The most that a payer's call takes."""


@dataclass(frozen=True, slots=True)
class Closing:
    """What was done, for programs and in words; ``until`` is when the next step is possible."""

    outcome: Done
    words: str
    until: int | None = None


async def close_session(record: BoughtSession | HostedSession, books: Books, now: int) -> Closing:
    """Take the step that settles this session soonest. Raises ``ChainError``, ``ConfigError``."""
    if session_id(books.ledger.domains.market, record.terms) != record.session:
        msg = (
            "this session is of another chain, or of another market, than the profile's: name the profile it "
            "was made with, with --chain"
        )
        raise ConfigError(msg)
    state = await books.ledger.session(record.session)
    if state.status == "closed" and not await books.ledger.confirmed(record.session, state):
        msg = "an RPC endpoint says that this session is closed, and no second one does: try again later"
        raise ChainError(msg)
    if state.status == "closed":
        if isinstance(record, BoughtSession):
            await books.journal.bought_settled(record.session, state.recorded, now)
        else:
            await books.journal.host_settled(record.session, state.recorded)
        return Closing("nothing", f"it was settled at {usdc_text(state.recorded)}")
    if state.status == "none":
        return Closing("nothing", "it is not on the chain: there is nothing to close")
    if isinstance(record, BoughtSession):
        await books.journal.bought_mined(record.session)
    if isinstance(record, HostedSession):
        return await _as_host(record, books)
    return await _as_payer(record, books, state, now)


async def _as_host(record: HostedSession, books: Books) -> Closing:
    await books.orders.transact(policy.call_of(record))
    paid = (await books.ledger.session(record.session)).recorded
    await books.journal.host_settled(record.session, paid, "by hand")
    return Closing("settled", f"settled at {usdc_text(paid)}")


async def _as_payer(record: BoughtSession, books: Books, state: EscrowState, now: int) -> Closing:
    step = policy.payer_step(record, state, now)
    if step.action == "refund":
        await _transact(books, Refund(record.terms), step.until)
        paid = (await books.ledger.session(record.session)).recorded
        await books.journal.bought_settled(record.session, paid, now)
        return Closing("settled", f"refunded; the host was paid {usdc_text(paid)}")
    if step.action == "wait":
        words = f"asked for already: the refund may be brought from {_moment(step.until)} on"
        return Closing("waiting", words, step.until)
    await _transact(books, RequestClose(record.terms, record.voucher), step.until)
    await books.journal.bought_over(record.session)
    until = now + CHALLENGE_S
    return Closing(
        "requested", f"asked; the host has until {_moment(until)}, then close it again for the refund", until
    )


async def _transact(books: Books, call: RequestClose | Refund, due: int) -> None:
    """Send a payer's call. A payer never needs ether: the refund comes without, but later."""
    head = await books.ledger.head()
    if (await books.ledger.balances(books.wallet.address)).ether < CALL_GAS * head.gas_price_wei:
        msg = (
            "closing by hand takes a little ether for gas, and this wallet has none. Without it the refund "
            f"comes all the same: from {_moment(due)} on anyone is paid to bring it"
        )
        raise ChainError(msg)
    await books.orders.transact(call)


def _moment(epoch: int) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M} UTC"
