"""The shell that drives one machine over one message channel: events in, effects out.

Everything the machine decides about a stream happens here: writes with a deadline, timers on trio's
clock, a bounded inbox. ``on_emit`` may wait: while it does, nothing is read or acknowledged, which is
how a slow application holds back a fast host. It knows no protocol.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from p2pnode.errors import ProtocolError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.node.channel import MessageChannel
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    Machine,
    Received,
    Send,
    SetTimer,
    TimerFired,
)

_INBOX: Final = 256
_BATCH: Final = 64
_MESSAGES_PER_S: Final = 1000.0
_MESSAGES_BURST: Final = 4000.0
"""Beyond them a peer is read no faster: no protocol needs more, and each costs us more than it costs them."""


class Driver:
    """Runs ``machine`` until :meth:`stop`, the end of the stream, or cancellation."""

    def __init__(
        self,
        machine: Machine,
        channel: MessageChannel,
        *,
        on_emit: Callable[[Any], Awaitable[None]],
        write_deadline_s: float,
    ) -> None:
        self._machine, self._channel, self._on_emit = machine, channel, on_emit
        self._write_deadline_s = write_deadline_s
        self._peer: PeerId = channel.stream.peer
        self._inbox, self._events = trio.open_memory_channel[Event](_INBOX)
        self._timers: dict[str, float] = {}
        self._outbox: list[Any] = []
        self._stopped = False
        self.fault: str | None = None
        """What the peer did against the protocol, if anything."""

    async def command(self, value: Any) -> None:
        """Give the machine a command; waits while its inbox is full. Ignored after the end."""
        try:
            await self._inbox.send(Command(value))
        except trio.BrokenResourceError:
            await trio.lowlevel.checkpoint()

    def command_nowait(self, value: Any) -> None:
        """Like :meth:`command`, from a place that can't wait. Raises ``trio.WouldBlock`` when full."""
        try:
            self._inbox.send_nowait(Command(value))
        except trio.BrokenResourceError:
            return

    def fire_nowait(self, key: str) -> None:
        """Let a timer of the machine fire now; one that isn't armed means nothing to it."""
        try:
            self._inbox.send_nowait(TimerFired(key))
        except (trio.BrokenResourceError, trio.WouldBlock):
            return

    def stop(self) -> None:
        """End after what is already decided has been written (call it from ``on_emit``)."""
        self._stopped = True

    async def run(self, initial: Sequence[Effect] = ()) -> None:
        """Drive to the end. Closes neither the stream nor its connection."""
        with self._events:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                await self._apply(initial)
                await self._flush()
                while not self._stopped:
                    await self._step()
                nursery.cancel_scope.cancel()

    async def _step(self) -> None:
        event: Event | None = None
        with trio.move_on_at(min(self._timers.values(), default=math.inf)):
            event = await self._events.receive()
        if event is None:
            await self._fire_timers()
        handled = 0
        while event is not None and not self._stopped:
            await self._handle(event)
            handled += 1
            try:
                event = self._events.receive_nowait() if handled < _BATCH else None
            except trio.WouldBlock:
                event = None
        await self._flush()

    async def _fire_timers(self) -> None:
        now = trio.current_time()
        for key in [key for key, at in self._timers.items() if at <= now]:
            if self._timers.pop(key, math.inf) <= now and not self._stopped:
                await self._handle(TimerFired(key))

    async def _handle(self, event: Event) -> None:
        await self._apply(self._machine.handle(event, trio.current_time()))

    async def _apply(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    self._outbox.append(message)
                case SetTimer(key=key, at=at):
                    self._timers[key] = at
                case CancelTimer(key=key):
                    self._timers.pop(key, None)
                case Emit(value=value):
                    await self._on_emit(value)

    async def _flush(self) -> None:
        if not self._outbox:
            return
        messages, self._outbox = self._outbox, []
        reason = "slow reader"
        with trio.move_on_after(self._write_deadline_s):
            try:
                await self._channel.send(messages)
            except UnreachableError:
                reason = "lost"
            else:
                return
        if not self._stopped:
            await self._handle(Closed(self._peer, 0, reason))
            self._outbox.clear()
            self._stopped = True

    async def _read(self) -> None:
        code = "closed"
        due = -math.inf
        try:
            while (message := await self._channel.receive()) is not None:
                now = trio.current_time()
                due = max(due, now - _MESSAGES_BURST / _MESSAGES_PER_S) + 1 / _MESSAGES_PER_S
                if due > now:
                    await trio.sleep_until(due)
                await self._inbox.send(Received(self._peer, 0, message))
        except ProtocolError as error:
            self.fault = str(error)
            code = f"malformed: {error}"
        except UnreachableError:
            code = "lost"
        await self._inbox.send(Closed(self._peer, 0, code))
