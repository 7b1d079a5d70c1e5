"""A session of a client with one host, free or paid: its machine, its stream, and the turns that share it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from p2pnode.client.bill import CostShares
from p2pnode.client.failover import session_error
from p2pnode.client.kept_sessions import Lease
from p2pnode.client.resumption import Resumption
from p2pnode.errors import (
    ConfigError,
    LocalError,
    P2PNodeError,
    UnreachableError,
    first_of_kind,
)
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.sleep import SleepWatch
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import ClientTimes
from p2pnode.protocols.inference.commands import (
    Accepted,
    Ask,
    CancelTurn,
    ClientEmission,
    Delivered,
    Embedded,
    End,
    Ended,
    LeaveSession,
    Progressed,
    Quoted,
    Receipted,
    SessionFailed,
    Signed,
    SpendMax,
    Start,
    TokensTaken,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, CODEC, PROTOCOL, WINDOW, Accept, Left

if TYPE_CHECKING:
    from p2pnode.payments.payer import Reserved

log = structlog.get_logger()


class SessionTurn:
    """One turn of a session, asked by :meth:`Session.ask`; :meth:`receive` gives its events in order."""

    def __init__(self, session: Session, ask: Ask) -> None:
        self.session, self.ask = session, ask
        # What the application has not read waits here: no more than the read credit, and its text.
        self._send, self._receive = trio.open_memory_channel[ClientEmission](math.inf)
        self.reserved: Reserved | None = None
        """What it may spend, where it is paid."""
        self.refusal: LocalError | None = None
        """Why this side did not ask it, or ended it."""
        self.is_cancelled = False
        self.asker_waits = False
        """Whether :meth:`Session.ask` waits until it can be asked."""
        self.tokens_in = self.tokens_out = 0
        """What it costs: input that is billed, and output."""
        self.cost: int | None = None
        """Its share of the session's cost, once it was asked for."""

    async def receive(self) -> ClientEmission:
        """The next event. Raises what :meth:`Session.error` says when the session is over, or dormant."""
        try:
            event = await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self.session.error() from None
        match event:
            case SessionFailed():
                raise self.session.error()
            case Delivered(tokens=tokens):
                self.session.taken(self, tokens.index + len(tokens.ids))
            case Embedded(taken=taken):
                self.session.taken(self, taken)
            case _:
                pass
        return event

    @property
    def has_unread(self) -> bool:
        """Whether there are events that nobody has received yet."""
        return self._receive.statistics().current_buffer_used > 0

    def cancel(self) -> None:
        """Stop it; its remaining events still come, if there is a stream."""
        self.is_cancelled = True
        self.session.cancel(self)

    def hand_on(self, value: ClientEmission) -> None:
        """Give its reader an event."""
        match value:
            case Quoted(quote=quote):
                self.tokens_in = quote.tokens_in - quote.reused
            case Delivered(ids=ids):
                self.tokens_out += len(ids)
            case TurnDone(done=done):
                self.tokens_in = done.tokens_in - done.reused
            case _:
                pass
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._send.send_nowait(value)

    def close(self) -> None:
        """No event follows."""
        self._send.close()


class Session:
    """A session with one host: ``run`` it in a nursery, then ``ask`` turns, as many at once as it has places.

    A paid session whose connection is lost is resumed on a new stream, and its turns go on there. While
    turns are under way the resume may take ``reconnect_patience_s`` only. A session whose host fell silent
    and can't be reached is dormant for ``dormant_s``, because the host may sleep. It is resumed when the host
    is back or a turn is asked, and costs no second fee.
    """

    def __init__(
        self,
        network: Network,
        host: PeerId,
        model: ModelId,
        *,
        limits: Limits,
        holder: bytes,
        lease: Lease,
        addresses: Sequence[str] = (),
        sleep: SleepWatch | None = None,
    ) -> None:
        """``holder`` is what this process drew for all its sessions."""
        self._sleep, self._holder, self._lease = sleep, holder, lease
        purchase = lease.purchase
        self.host, self.model, self._addresses = host, model, addresses
        self._network, self._limits, self._purchase = network, limits, purchase
        self._machine = self._first_machine()
        self._driver: Driver | None = None
        self._keys = itertools.count(1)
        self._turns: dict[int, SessionTurn] = {}
        """Those that have no outcome yet, by the key that the machine knows them by."""
        self._begun: set[int] = set()
        """Those that the machine had begun when the last stream was lost."""
        self._reserved = 0
        """Places that were given out for turns that are about to be asked."""
        terms = purchase.payment.terms if purchase is not None else None
        self._shares = CostShares(terms, lease.billed)
        self._changed = trio.Event()
        """Set when a place becomes free, and at the end; then replaced."""
        self._on_open: Callable[[], None] = lambda: None
        self.accept: Accept | None = None
        self.failure: SessionFailed | None = None
        self.reused = False
        """Whether it served an earlier turn."""
        self._broken: LocalError | None = None
        self._closing = self._leaving = False
        self._left: Left | None = None
        """What its host said when it was left."""
        self._heard = False
        self._ended = trio.Event()
        self._back = trio.Event()
        """Set while there is a stream on which turns can be asked, and at the end."""
        self._back.set()
        self._resuming: trio.CancelScope | None = None
        self._resumption = Resumption()
        self._reached = False
        """Whether the last resume that failed had a stream, which broke."""
        self._refused = False
        """Whether the host refused to go on, or ended a session in which nothing was asked."""
        self._idled = False
        """Whether the host ended it because nothing was asked: then it may still keep it."""
        self._wanted, self._tried = trio.Event(), trio.Event()
        """Set when a turn is asked of a dormant session, and after each attempt to resume; then replaced."""
        self._dormant: trio.CancelScope | None = None

    def _first_machine(self) -> ClientSession:
        lease = self._lease
        return ClientSession(
            host=self.host,
            stream=0,
            model=self.model,
            salt=lease.salt,
            holder=self._holder,
            times=self._times,
            payment=None if lease.purchase is None else lease.purchase.payment,
            resume_key=lease.resume_key,
            keep_s=lease.keep_s,
            resume=lease.resume,
            peer=self._network.peer_id,
        )

    @property
    def _times(self) -> ClientTimes:
        limits = self._limits
        return ClientTimes(
            open_s=limits.request_deadline_s,
            open_paid_s=limits.request_deadline_s + limits.escrow_deadline_s + limits.chain_deadline_s,
            first_token_s=limits.first_token_deadline_s,
            stall_s=limits.stall_s,
        )

    async def run(self, on_open: Callable[[], None]) -> None:
        """Open, call ``on_open``, then live until closed or failed.

        Raises ``UnreachableError`` when there is no stream; everything later is in ``failure``.
        """
        self._on_open = on_open
        try:
            await self._drive(await self._network.open_stream(self.host, PROTOCOL))
            while await self._goes_on():
                pass
        finally:
            # Before all else: who waits for the session must hear of its end, whatever fails below.
            self._ended.set()
            self._back.set()
            self._tried.set()
            self._note_change()
            for turn in self._turns.values():
                turn.close()
            if self.accept is not None:
                await self._note_end(self.accept)

    async def _note_end(self, accept: Accept) -> None:
        with trio.move_on_after(self._limits.close_deadline_s, shield=True):
            try:
                if self._left is not None:
                    await self._lease.left(accept, self._left)
                elif self._may_be_kept:
                    await self._lease.lost(accept)
                else:
                    await self._lease.over(heard=self._heard)
            except LocalError as error:  # the chain will say what became of it
                log.warning("session.not_noted", session=accept.session.hex()[:16], reason=str(error))

    @property
    def _may_be_kept(self) -> bool:
        """Whether its host may keep it although it did not say so: the stream was lost, or time was short."""
        if self._broken is not None or (self._refused and not self._idled):
            return False
        return self._leaving if self.failure is None else self.failure.resumable

    @property
    def accepted(self) -> Accept:
        """What the host accepted. Raises what :meth:`error` says where it did not, or not yet."""
        if self.accept is None:
            raise self.error()
        return self.accept

    @property
    def paid(self) -> bool:
        """Whether it costs anything."""
        return self._purchase is not None

    @property
    def lost(self) -> bool:
        """Whether the connection broke; then the host may live."""
        failure = self.failure
        return failure is not None and failure.cause == "lost" and not self._broken

    @property
    def dormant(self) -> bool:
        """Whether its host is silent and may come back."""
        return self._dormant is not None and not self._closing

    @property
    def _resumable(self) -> bool:
        held, failure = self._machine.held, self.failure
        if held is None or failure is None or not failure.resumable or self._broken or self._refused:
            return False
        fruitful = self._resumption.is_fruitful(held.received)
        return self._purchase is not None and not self._closing and fruitful

    async def _goes_on(self) -> bool:
        """Resume a lost session, and drive it to the end of its new stream; False where it can't be."""
        dormant_until = trio.current_time() + self._limits.dormant_s
        self._resumption.lost()
        while self._resumable:
            began = trio.current_time()
            if await self._resume():
                return True
            if self._resumption.tries_at_once(trio.current_time() - began, reached=self._reached):
                continue
            # A connection that broke says that the host is gone. Silence says nothing: the host may sleep.
            silent = self.failure is not None and self.failure.cause != "lost"
            if not (self._resumable and silent and await self._wait_wanted(dormant_until)):
                break
        return False

    async def _wait_wanted(self, until: float) -> bool:
        """Until a turn is asked or it is time to try again; False where it is time to give up."""
        self._wanted, self._tried = trio.Event(), trio.Event()
        retry_at = trio.current_time() + self._limits.dormant_retry_s
        with trio.CancelScope(deadline=min(until, retry_at)) as self._dormant:
            if self.failure is not None:  # who reads a turn need not wait for the host
                for key in [key for key, turn in self._turns.items() if not turn.asker_waits]:
                    self._turns.pop(key).hand_on(self.failure)
                self._note_change()
            await self._wanted.wait()
        self._dormant = None
        return not self._closing and trio.current_time() < until

    async def _resume(self) -> bool:
        """Resume the session on a new stream and drive it there; False where it can't be."""
        lost, self.failure = self.failure, None
        self._back, held = trio.Event(), self._machine.held
        self._reached = False
        self._resumption.begin(held.received if held is not None else 0)
        self._begun = {turn.key for turn in held.turns.values()} if held is not None else set()
        if self._tried.is_set():
            self._tried = trio.Event()
        limits = self._limits
        patience_s = limits.reconnect_patience_s if self._turns else limits.dial_deadline_s
        log.info("session.resuming", host=self.host)
        with trio.move_on_after(patience_s) as self._resuming:
            try:
                await self._network.connect_peer(self.host, self._addresses)
                stream = await self._network.open_stream(self.host, PROTOCOL)
                self._machine = ClientSession(
                    host=self.host,
                    stream=0,
                    model=self.model,
                    salt=b"",
                    holder=self._holder,
                    times=self._times,
                    resume=held,
                    peer=self._network.peer_id,
                )
                await self._drive(stream)
            except UnreachableError as error:
                log.debug("session.not_resumed", host=self.host, reason=str(error))
        self._resuming = None
        self._tried.set()
        if self._back.is_set():
            return True
        failure: SessionFailed | None = self.failure
        self._reached = failure is not None and failure.cause == "lost"
        self._refused = (
            failure is not None and failure.cause in ("answered", "fault") and not failure.resumable
        )
        if failure is None or not (failure.fault or self._broken or self._closing):
            self.failure = lost
        return False

    async def _drive(self, stream: Stream) -> None:
        self._driver = Driver(
            self._machine,
            MessageChannel(stream, CODEC),
            on_emit=self._emitted,
            write_deadline_s=self._limits.stall_s,
            sleep=self._sleep,
        )
        # It may have been closed while the stream opened: then nothing is asked of the host.
        self._driver.command_nowait(End() if self._closing else Start())
        try:
            try:
                await self._driver.run()
            except* LocalError as group:
                # What can't be written down is not sent, so this side can't go on.
                self._broken = first_of_kind(group, LocalError)
                self.failure = SessionFailed(None, str(self._broken), cause="broken")
            if self.failure is None and self._purchase is not None and self._left is None:
                await self._wait_heard(stream)
        finally:
            if self.failure is None or (self.failure.fault and self._driver.fault is None):  # it was told why
                await stream.aclose()
            else:
                await stream.reset()

    async def _wait_heard(self, stream: Stream) -> None:
        """Until the host has the last voucher: it ends the stream when it has read our ``Close``."""
        with trio.move_on_after(self._limits.close_deadline_s), suppress(UnreachableError):
            while await stream.receive_some():
                pass
            self._heard = True

    @property
    def cost(self) -> int:
        """Token units that the host can claim: its fee once it accepted, then all that was signed."""
        if self._purchase is None or self.accept is None:
            return 0
        voucher = self._machine.final_voucher
        return self.accept.session_fee if voucher is None else voucher.amount

    def take_cost(self, turn: SessionTurn | None) -> int:
        """Token units of the session's cost that are a turn's, asked for when it is over.

        See ``CostShares``.
        """
        return self._shares.take(turn, self.cost)

    def covers(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether its deposit is enough for a turn of these sizes besides those under way."""
        held = self._machine.held
        if self._purchase is None or held is None:
            return True
        tokens_in += held.meter.tokens_in
        tokens_out += held.meter.tokens_out
        for turn in self._turns.values():
            if not turn.tokens_in:  # not quoted, or nothing is billed
                tokens_in += turn.ask.input_max
            tokens_out += max(0, turn.ask.body.tokens_out_max - turn.tokens_out)
        return self._purchase.covers(tokens_in, tokens_out)

    def can_pay_more(self, turn: SessionTurn | None) -> bool:
        """Whether its deposit is enough for a turn's input and what one receipt covers."""
        held = self._machine.held
        if self._purchase is None or held is None:
            return True
        tokens_in = turn.ask.input_max if turn is not None else 0
        return self._purchase.covers(
            held.meter.tokens_in + tokens_in, held.meter.tokens_out + CHECKPOINT_EVERY
        )

    @property
    def places(self) -> int:
        """How many more turns it can take now."""
        if self.accept is None or self.over:
            return 0
        return self.accept.turns_max - len(self._turns) - self._reserved

    @property
    def under_way(self) -> int:
        """How many turns are under way, or about to be asked."""
        return len(self._turns) + self._reserved

    @property
    def is_busy(self) -> bool:
        """Whether any is."""
        return self.under_way > 0

    def reserve(self) -> None:
        """Take a place for the turn that is asked next."""
        self._reserved += 1

    def give_back_place(self) -> None:
        """The turn is not asked after all."""
        self._reserved = max(0, self._reserved - 1)
        self._note_change()

    async def wait_changed(self) -> None:
        """Until a place becomes free, or the session is over."""
        if not self._ended.is_set():
            await self._changed.wait()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @property
    def over(self) -> bool:
        """Whether it can take no more turns."""
        return self._ended.is_set() or (self.failure is not None and not self._resumable)

    async def wait_over(self) -> None:
        """Until all is written down and the stream is closed."""
        await self._ended.wait()

    def error(self) -> P2PNodeError:
        """Why the session is over: a ``RemoteError``, or the ``LocalError`` that ended it on our side."""
        if self._broken is not None:
            return self._broken
        return session_error(self.failure)

    async def ask(self, ask: Ask) -> SessionTurn:
        """Begin a turn in a place that was reserved. Raises :meth:`error` where the session is over."""
        held = self._machine.held
        if self.paid and held is not None and held.channel.has_finished:
            # That spares a round trip. Such pay can be kept without a quote, by a host that read another
            # prompt or none: so it goes only to one that finished a turn for this wallet.
            ask = replace(ask, input_exact=ask.prompt_tokens)
        window = self.accept.window if self.accept is not None else WINDOW
        try:
            reserved = await self._lease.reserve(ask, window)
        except ConfigError as error:  # a limit of the user's: it ends this turn, and closes nothing
            turn = SessionTurn(self, ask)
            turn.refusal = error
            turn.hand_on(TurnFailed(None, str(error), cause="capped", key=ask.key))
            return turn
        finally:
            self.give_back_place()
        if self._driver is None or self.over:
            raise self.error()
        ask = replace(ask, key=(key := next(self._keys)))
        if self._purchase is not None and reserved is not None:
            ask = self._purchase.begin(ask, reserved)
        turn = self._turns[key] = SessionTurn(self, ask)
        turn.reserved = reserved
        self._shares.begin(turn)
        if self._back.is_set():
            self._driver.command_nowait(turn.ask)
            return turn
        if self._resuming is not None:  # until now nobody waited for the resume
            patience_ends = trio.current_time() + self._limits.reconnect_patience_s
            self._resuming.deadline = min(self._resuming.deadline, patience_ends)
        self._wanted.set()
        turn.asker_waits = True
        try:
            await self._tried.wait()
        finally:
            turn.asker_waits = False
        if self.over or not self._back.is_set():
            self._turns.pop(key, None)
            self._shares.give_up(turn)
            self._note_change()
            raise self.error()
        return turn

    def taken(self, turn: SessionTurn, index: int) -> None:
        """The application has the turn's output tokens below ``index``, or so many bytes of its vectors."""
        self._command(TokensTaken(index, turn.ask.key))

    def cancel(self, turn: SessionTurn) -> None:
        """Stop a turn. One that no machine knows yet is not asked any more."""
        self._command(CancelTurn(turn.ask.key))

    def leave(self) -> None:
        """Leave the session with its host, where that keeps it and no turn is under way; else close it."""
        accept = self.accept
        if accept is None or not accept.keep_s or self.is_busy or not self._back.is_set():
            self._leaving = accept is not None and accept.keep_s > 0 and not self._back.is_set()
            self.close()
            return
        self._closing = self._leaving = True
        self._command(LeaveSession(int(self._lease.wall()) + accept.keep_s))

    def close(self) -> None:
        """End the session in order."""
        self._closing = True
        if self._resuming is not None and not self._back.is_set():
            self._resuming.cancel()
        if self._dormant is not None:
            self._dormant.cancel()
        self._command(End())

    def _command(self, value: SpendMax | CancelTurn | TokensTaken | LeaveSession | End) -> None:
        if self._driver is not None and not self.over:
            self._driver.command_nowait(value)

    async def _emitted(self, value: ClientEmission) -> None:
        if self._purchase is not None and await self._purchase.noted(value):
            return
        match value:
            case Signed():
                await self._signed(value)
            case Accepted(accept=accept):
                if self.accept is None or accept.generation > self.accept.generation:
                    await self._lease.accepted(accept)
                self.accept = accept
                self._on_open()
                if self._resuming is not None:
                    self._resumed(self._resuming)
                return
            case SessionFailed():
                self.failure = value
                # What the host ends because nothing was asked is over, although it would keep it a while.
                idle = value.resumable and value.cause != "lost" and not self._turns
                self._idled = idle
                self._refused = self._refused or idle
                if self._driver is not None:
                    self._driver.stop()
                attempt = self._resuming is not None and not self._back.is_set() and not value.fault
                if self._resumable or attempt:  # why a resume was refused is no verdict on the turn
                    return
                for turn in self._turns.values():
                    turn.hand_on(value)
            case Ended(left=left):
                self._left = left
                if self._driver is not None:
                    self._driver.stop()
            case TurnDone(key=key) | TurnFailed(key=key):
                await self._outcome(self._turns.pop(key) if key in self._turns else None, value)
            case _:
                self._turn_emitted(value)

    async def _signed(self, value: Signed) -> None:
        """A voucher goes to the disk before it is sent. Then it is known what turns of keys may spend."""
        if self._purchase is None:
            return
        window = self.accept.window if self.accept is not None else WINDOW
        for key, spend_max in await self._purchase.signed(value, window):
            self._command(SpendMax(spend_max, key))

    async def _outcome(self, turn: SessionTurn | None, value: TurnDone | TurnFailed) -> None:
        """A turn is over; None where it was given up before. What it did not use it no longer holds."""
        try:
            capped = isinstance(value, TurnFailed) and value.cause == "capped"
            if capped and turn is not None and self._purchase is not None:
                turn.refusal = self._purchase.why_capped(turn.ask.key)
            if not self.is_busy:
                await self._lease.rest()
            elif turn is not None:
                await self._lease.release(turn.ask, turn.reserved, turn.tokens_in, turn.tokens_out)
        finally:
            # Also where that can't be written down: nothing else ends its reader's wait.
            if turn is not None:
                turn.hand_on(value)
            self._note_change()

    def _turn_emitted(self, value: ClientEmission) -> None:
        """Give what concerns turns to whoever reads them; nobody waits for one that was given up."""
        match value:
            case Receipted(keys=keys):
                for key in keys:
                    self._hand_on(key, value)
            case Delivered(key=key) | Embedded(key=key) | Quoted(key=key) | Progressed(key=key):
                self._hand_on(key, value)
            case _:
                pass

    def _hand_on(self, key: int, value: ClientEmission) -> None:
        if (turn := self._turns.get(key)) is not None:
            turn.hand_on(value)

    def _resumed(self, scope: trio.CancelScope) -> None:
        scope.deadline = math.inf
        held = self._machine.held
        self._resumption.resumed(held.received if held is not None else 0)
        self._back.set()
        self._tried.set()
        if self._driver is None:
            return
        for key in self._begun - set(self._turns):  # given up while the session was dormant
            self._driver.command_nowait(CancelTurn(key))
        for key, turn in tuple(self._turns.items()):
            if key in self._begun:
                continue
            if turn.is_cancelled:  # it was lost with the old stream, and nobody wants it any more
                del self._turns[key]
            else:
                self._driver.command_nowait(turn.ask)
