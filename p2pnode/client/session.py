"""A session of a client with one host, free or paid: its machine, its stream, the queue of its events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from p2pnode.errors import HostFault, LocalError, P2PNodeError, RefusedError, UnreachableError, first_of_kind
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
    End,
    Ended,
    Progressed,
    Quoted,
    Receipted,
    SessionFailed,
    Start,
    TokensTaken,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, Accept

if TYPE_CHECKING:
    from p2pnode.payments.payer import Purchase

log = structlog.get_logger()


class Session:
    """A session with one host: ``run`` it in a nursery, then ``ask`` and ``receive``.

    A paid session whose connection is lost is resumed on a new stream; a turn that ran ends there as
    ``cancelled``. While a turn is asked the resume may take ``reconnect_patience_s`` only. A session whose
    host fell silent and can't be reached is dormant for ``dormant_s``, because the host may sleep. It is
    resumed when the host is back or a turn is asked, and costs no second fee.
    """

    def __init__(
        self,
        network: Network,
        host: PeerId,
        model: ModelId,
        *,
        limits: Limits,
        draw: Callable[[int], bytes],
        holder: bytes,
        purchase: Purchase | None = None,
        addresses: Sequence[str] = (),
        sleep: SleepWatch | None = None,
    ) -> None:
        self._sleep = sleep
        self.host, self.model, self._addresses = host, model, addresses
        self._network, self._limits, self._purchase = network, limits, purchase
        self._holder = holder
        self._machine = self._first_machine(draw(32))
        self._driver: Driver | None = None
        # What the application has not read waits here: no more than a turn's read credit, and its text.
        self._send, self._receive = trio.open_memory_channel[ClientEmission](math.inf)
        self._key = 0
        """Of the turn that was asked last."""
        self._on_open: Callable[[], None] = lambda: None
        self.accept: Accept | None = None
        self.failure: SessionFailed | None = None
        self.reused = False
        """Whether it served an earlier turn."""
        self._broken: LocalError | None = None
        self._closing = False
        self._heard = False
        self._ended = trio.Event()
        self._asked: Ask | None = None
        """The turn that has no outcome yet."""
        self._turns_before = 0
        self._back = trio.Event()
        """Set while there is a stream on which turns can be asked, and at the end."""
        self._back.set()
        self._resuming: trio.CancelScope | None = None
        self._resumed_at = -1
        """How many tokens had been received at the last resume."""
        self._refused = False
        """Whether the host refused to go on, or ended a session in which nothing was asked."""
        self._wanted, self._tried = trio.Event(), trio.Event()
        """Set when a turn is asked of a dormant session, and after each attempt to resume; then replaced."""
        self._asker_waits = False
        self._dormant: trio.CancelScope | None = None
        self._dropping = False
        """Whether what comes belongs to a turn that was given up while the session was dormant."""

    def _first_machine(self, salt: bytes) -> ClientSession:
        return ClientSession(
            host=self.host,
            stream=0,
            model=self.model,
            salt=salt,
            holder=self._holder,
            times=self._times,
            payment=None if self._purchase is None else self._purchase.payment,
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
            self._send.close()
            if self._purchase is not None and self.accept is not None:
                await self._note_end(self._purchase)

    async def _note_end(self, purchase: Purchase) -> None:
        with trio.move_on_after(self._limits.close_deadline_s, shield=True):
            try:
                await purchase.over(heard=self._heard)
            except LocalError as error:  # the chain will say what became of it
                log.warning("purchase.not_noted", session=purchase.session.hex()[:16], reason=str(error))

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
        # Not again unless something came since the last resume: else the host would be dialled for ever.
        return self._purchase is not None and not self._closing and held.received > self._resumed_at

    async def _goes_on(self) -> bool:
        """Resume a lost session, and drive it to the end of its new stream; False where it can't be."""
        dormant_until = trio.current_time() + self._limits.dormant_s
        while self._resumable:
            if await self._resume():
                return True
            # A connection that broke says that the host is gone. Silence says nothing: the host may sleep.
            silent = self.failure is not None and self.failure.cause != "lost"
            if not (self._resumable and silent and await self._wait_wanted(dormant_until)):
                break
        return False

    async def _wait_wanted(self, until: float) -> bool:
        """Until a turn is asked or it is time to try again; False where it is time to give up."""
        self._wanted, self._tried = trio.Event(), trio.Event()
        given_up = self.failure if self._asked is not None and not self._asker_waits else None
        retry_at = trio.current_time() + self._limits.dormant_retry_s
        with trio.CancelScope(deadline=min(until, retry_at)) as self._dormant:
            if given_up is not None:  # who reads the turn need not wait for the host
                self._asked, self._dropping = None, self._turns > self._turns_before
                await self._hand_on(given_up)
            await self._wanted.wait()
        self._dormant = None
        return not self._closing and trio.current_time() < until

    async def _resume(self) -> bool:
        """Resume the session on a new stream and drive it there; False where it can't be."""
        lost, self.failure = self.failure, None
        self._back, held = trio.Event(), self._machine.held
        if self._tried.is_set():
            self._tried = trio.Event()
        limits = self._limits
        patience_s = limits.dial_deadline_s if self._asked is None else limits.reconnect_patience_s
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
            if self.failure is None and self._purchase is not None:
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

    def covers(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether its deposit is enough for a turn of these sizes; always where it is free."""
        held = self._machine.held
        if self._purchase is None or held is None:
            return True
        meter = held.meter
        return self._purchase.covers(meter.tokens_in + tokens_in, meter.tokens_out + tokens_out)

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
        failure = self.failure
        if failure is None:
            return UnreachableError("the session was closed on this side")
        if failure.fault:
            return HostFault(failure.detail)
        if failure.code is None:
            return UnreachableError(failure.detail)
        return RefusedError(failure.code, failure.detail, retry_after_s=failure.retry_after_s, said=True)

    async def ask(self, ask: Ask) -> None:
        """Begin a turn; read it with :meth:`receive`. Raises :meth:`error` where it is over."""
        if self._driver is None or self.over:
            raise self.error()
        self._key += 1
        ask = replace(ask, key=self._key)
        self._asked, self._turns_before = ask, self._turns
        if self._back.is_set():
            self._driver.command_nowait(ask)
            return
        if self._resuming is not None:  # until now nobody waited for the resume
            patience_ends = trio.current_time() + self._limits.reconnect_patience_s
            self._resuming.deadline = min(self._resuming.deadline, patience_ends)
        self._wanted.set()
        self._asker_waits = True
        try:
            await self._tried.wait()
        finally:
            self._asker_waits = False
        if self.over or not self._back.is_set():
            self._asked = None
            raise self.error()

    async def receive(self) -> ClientEmission:
        """The next event of the turn. Raises what :meth:`error` says when the session is over, or dormant."""
        try:
            event = await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self.error() from None
        match event:
            case SessionFailed():
                raise self.error()
            case Delivered(tokens=tokens, key=key):
                self._command(TokensTaken(tokens.index + len(tokens.ids), key))
            case _:
                pass
        return event

    @property
    def has_unread(self) -> bool:
        """Whether there are events that nobody has received yet."""
        return self._receive.statistics().current_buffer_used > 0

    def cancel_turn(self) -> None:
        """Stop the turn; its remaining events still come, if there is a stream."""
        if not self._back.is_set():
            self._asked = None  # so that a resume does not ask it again
        self._command(CancelTurn(self._key))

    def close(self) -> None:
        """End the session in order."""
        self._closing = True
        if self._resuming is not None and not self._back.is_set():
            self._resuming.cancel()
        if self._dormant is not None:
            self._dormant.cancel()
        self._receive.close()
        self._command(End())

    def _command(self, value: CancelTurn | TokensTaken | End) -> None:
        if self._driver is not None and not self.over:
            self._driver.command_nowait(value)

    async def _emitted(self, value: ClientEmission) -> None:
        if self._purchase is not None and await self._purchase.noted(value):
            return
        if self._dropping and self._drop(value):
            return
        match value:
            case Accepted(accept=accept):
                if self._purchase is not None and self.accept is None:
                    await self._purchase.accepted()
                self.accept = accept
                self._on_open()
                if self._resuming is not None:
                    self._resumed(self._resuming)
                return
            case SessionFailed():
                self.failure = value
                # What the host ends because nothing was asked is over, although it would keep it a while.
                idle = value.resumable and value.cause != "lost" and self._asked is None
                self._refused = self._refused or idle
                if self._driver is not None:
                    self._driver.stop()
                attempt = self._resuming is not None and not self._back.is_set() and not value.fault
                if self._resumable or attempt:  # why a resume was refused is no verdict on the turn
                    return
            case Ended():
                if self._driver is not None:
                    self._driver.stop()
            case TurnDone() | TurnFailed():
                self._asked = None
            case _:
                pass
        await self._hand_on(value)

    async def _hand_on(self, value: ClientEmission) -> None:
        try:
            await self._send.send(value)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def _drop(self, value: ClientEmission) -> bool:
        """Whether it belongs to the turn that was given up; the outcome is the last of that.

        Nobody reads what the host still sent of it. That is paid for, and a window of tokens at most.
        """
        if isinstance(value, TurnDone | TurnFailed):
            self._dropping = False
            self._ask_now()
            return True
        return isinstance(value, Delivered | Progressed | Quoted | Receipted)

    def _ask_now(self) -> None:
        """Ask the turn that was asked meanwhile: it was lost with the old stream."""
        if self._asked is not None and self._driver is not None and self._turns == self._turns_before:
            self._driver.command_nowait(self._asked)

    def _resumed(self, scope: trio.CancelScope) -> None:
        scope.deadline = math.inf
        held = self._machine.held
        self._resumed_at = held.received if held is not None else 0
        self._back.set()
        self._tried.set()
        if not self._dropping:
            self._ask_now()

    @property
    def _turns(self) -> int:
        """How many turns the machine has begun."""
        held = self._machine.held
        return held.asked if held is not None else 0
