"""The shell that drives one machine over one message channel: events in, effects out.

Everything the machine decides about a stream happens here: writes with a deadline, timers on trio's
clock, bounded queues. It knows no protocol.

A machine's events come by three ways, so that a peer can hold up nothing but what concerns it:

- what the peer says: a few messages wait, then the stream isn't read
- :meth:`Driver.command`: reports of work, in order; a few wait, then whoever works waits
- :meth:`Driver.command_nowait`: what the role decides, in order. It never waits and is never refused: a role
  says only so much of its own accord, and no message of the peer stands in its queue

While the peer takes nothing, only the third is handled, and timers: the other two would make more to write.
``on_emit`` may wait: while it does, nothing is read or acknowledged, which is how a slow application holds
back a fast host.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias

import trio

from p2pnode.bounded import TokenBucket
from p2pnode.errors import ProtocolError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net.stream import Stream
from p2pnode.node.sleep import SleepWatch
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    HalfClosed,
    Machine,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.framing.codec import FRAME_MAX, FrameDecoder, pack_frame
from p2pnode.protocols.wire import Codec

_HEARD_MAX: Final = 64
_HEARD_BYTES_MAX: Final = 4 << 20
"""Messages of a peer that wait, each as large as its protocol allows."""
_REPORTS_MAX: Final = 64
_BATCH: Final = 64
_MESSAGES_PER_S: Final = 1000.0
_MESSAGES_BURST: Final = 4000.0
"""Beyond them a peer is read no faster: no protocol needs more, and each costs us more than it costs them."""
_Ended: TypeAlias = Literal["", "lost", "slow reader"]


class Driver:
    """Runs ``machine`` until :meth:`stop`, the end of the stream, or cancellation."""

    def __init__(
        self,
        machine: Machine,
        channel: MessageChannel,
        *,
        on_emit: Callable[[Any], Awaitable[None]],
        write_deadline_s: float,
        sleep: SleepWatch | None = None,
    ) -> None:
        self._sleep = sleep
        self._machine, self._channel, self._on_emit = machine, channel, on_emit
        self._write_deadline_s = write_deadline_s
        self._peer: PeerId = channel.stream.peer
        self._heard_max = min(_HEARD_MAX, max(1, _HEARD_BYTES_MAX // channel.frame_max))
        self._heard: deque[Event] = deque()
        self._reports: deque[Event] = deque()
        self._own: deque[Event] = deque()
        self._timers: dict[str, float] = {}
        self._outbox: list[Any] = []
        self._work, self._room, self._to_write = trio.Event(), trio.Event(), trio.Event()
        """Set when there is something to handle, room in a queue, something to write; then made anew."""
        self._writing = False
        self._unwritable: _Ended = ""
        self._read_to_end = False
        self._stopped = False
        self.fault: str | None = None
        """What the peer did against the protocol, if anything."""

    async def command(self, value: Any) -> None:
        """Give the machine a report; waits while others wait, or the peer takes nothing. Ignored at the end.

        It may be handled after a :meth:`command_nowait` that was given later.
        """
        while len(self._reports) >= _REPORTS_MAX and not self._stopped:
            await self._room.wait()
        if not self._stopped:
            self._reports.append(Command(value))
            self._work.set()
        await trio.lowlevel.checkpoint()

    def command_nowait(self, value: Any) -> None:
        """Give the machine a command of the role's own; never fails. Ignored after the end."""
        if not self._stopped:
            self._own.append(Command(value))
            self._work.set()

    def fire_nowait(self, key: str) -> None:
        """Let a timer of the machine fire now; one that isn't armed means nothing to it."""
        fired = TimerFired(key)
        if not self._stopped and fired not in self._own:
            self._own.append(fired)
            self._work.set()

    def stop(self) -> None:
        """End after what is already decided has been written (call it from ``on_emit``)."""
        self._stopped = True
        self._work.set()
        self._make_room()

    async def run(self, initial: Sequence[Effect] = ()) -> None:
        """Drive to the end. Closes neither the stream nor its connection. Raises what ``on_emit`` raises."""
        failed: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                try:
                    await self._drive(initial)
                except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
                    failed = error
                nursery.cancel_scope.cancel()
        finally:
            self.stop()
        if failed is not None:
            raise failed

    async def _drive(self, initial: Sequence[Effect]) -> None:
        await self._apply(initial)
        self._begin_writing()
        while not self._stopped:
            if self._own:
                await self._handle(self._own.popleft())
            elif not self._writing and (self._heard or self._reports):
                await self._batch()
                await self._fire_due()
            elif not await self._fire_due():
                await self._wait_work()
            self._begin_writing()
        # What was decided to be said is said before the end, to a peer that takes it.
        with trio.move_on_after(self._write_deadline_s):
            while self._writing:
                await self._wait_work()

    async def _batch(self) -> None:
        """What the peer said and what was reported, in turn, until something is more urgent.

        Before the timers that are due: a peer that spoke in time is not to be blamed for what held us up.
        """
        handled = 0
        while handled < _BATCH and (self._heard or self._reports) and not (self._stopped or self._own):
            for queue in (self._reports, self._heard):
                if queue and not self._stopped:
                    event = queue.popleft()
                    self._make_room()
                    handled += 1
                    await self._handle(event)

    async def _fire_due(self) -> bool:
        """Fire one timer; False when none is due."""
        now = self._now
        due = next((key for key, at in self._timers.items() if at <= now), None)
        if due is None or self._stopped:
            return False
        del self._timers[due]
        await self._handle(TimerFired(due))
        return True

    async def _wait_work(self) -> None:
        until = math.inf if self._stopped else min(self._timers.values(), default=math.inf)
        self._work = trio.Event()
        with trio.move_on_at(until + self._stopped_s):
            await self._work.wait()

    @property
    def _now(self) -> float:
        """The machine's time stands still while this process does not run.

        Else it would take its own sleep for its peer's silence, before it has read what the peer said.
        """
        return trio.current_time() - self._stopped_s

    @property
    def _stopped_s(self) -> float:
        return self._sleep.stopped_s if self._sleep is not None else 0.0

    def _make_room(self) -> None:
        self._room.set()
        self._room = trio.Event()

    async def _handle(self, event: Event) -> None:
        await self._apply(self._machine.handle(event, self._now))
        if isinstance(event, Closed):  # whatever the machine makes of it
            self._stopped = True

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

    # ---- writing

    def _begin_writing(self) -> None:
        if self._unwritable:
            self._outbox.clear()
        elif self._outbox and not self._writing:
            self._writing = True
            self._to_write.set()

    async def _write(self) -> None:
        while not self._unwritable:
            while not self._writing:
                self._to_write = trio.Event()
                await self._to_write.wait()
            messages, self._outbox = self._outbox, []
            self._unwritable = await self._sent(messages)
            self._writing = bool(self._outbox) and not self._unwritable
            if self._unwritable == "slow reader" or (self._unwritable and self._read_to_end):
                self._own.append(Closed(self._peer, 0, self._unwritable))
            # Else the reader tells of the loss, after what the peer has said before it.
            self._work.set()

    async def _sent(self, messages: Sequence[Any]) -> _Ended:
        ended: _Ended = "slow reader"
        with trio.move_on_after(self._write_deadline_s):
            try:
                await self._channel.send(messages)
            except UnreachableError:
                ended = "lost"
            else:
                ended = ""
        return ended

    # ---- reading

    async def _read(self) -> None:
        end: Event = HalfClosed(self._peer, 0)
        bucket = TokenBucket(_MESSAGES_PER_S, _MESSAGES_BURST)
        try:
            while (message := await self._channel.receive()) is not None:
                if wait_s := bucket.wait_s(trio.current_time()):
                    await trio.sleep(wait_s)
                bucket.spend(1)
                while len(self._heard) >= self._heard_max:
                    await self._room.wait()
                self._heard.append(Received(self._peer, 0, message))
                self._work.set()
        except ProtocolError as error:
            self.fault = str(error)
            end = Closed(self._peer, 0, f"malformed: {error}", malformed=True)
        except UnreachableError:
            end = Closed(self._peer, 0, "lost")
        self._read_to_end = True
        if isinstance(end, HalfClosed) and self._unwritable:
            end = Closed(self._peer, 0, self._unwritable)
        self._heard.append(end)
        self._work.set()


# Messages over a stream: frames, codec, and the one place where bytes become protocol messages.


class MessageChannel:
    """Sends and receives one protocol's messages on one stream, in frames of at most ``frame_max`` bytes."""

    def __init__(self, stream: Stream, codec: Codec, frame_max: int = FRAME_MAX) -> None:
        self.stream = stream
        self._codec, self.frame_max = codec, frame_max
        self._decoder = FrameDecoder(frame_max)
        self._payloads: deque[bytes] = deque()
        self._error: ProtocolError | None = None

    async def send(self, messages: Iterable[Any]) -> None:
        """Write messages in one piece. Raises ``UnreachableError`` when the peer is gone."""
        data = b"".join(pack_frame(self._codec.encode(message), self.frame_max) for message in messages)
        if data:
            await self.stream.send_all(data)

    async def receive(self) -> Any | None:
        """The next message; None at a clean end. Raises ``ProtocolError`` or ``UnreachableError``.

        However the bytes were cut, the messages before a malformed one are returned first; after it there
        are none.
        """
        if self._error is not None:
            raise self._error
        try:
            if not self._payloads and not await self._fill():
                return None
            # One at a time: the next payload may be malformed, and this one isn't.
            return self._codec.decode(self._payloads.popleft())
        except ProtocolError as error:
            self._error = error
            raise

    async def _fill(self) -> bool:
        """Read until a payload is whole; false at a clean end."""
        while not self._payloads:
            self._decoder.check()  # before waiting: who sent a malformed length may send nothing more
            data = await self.stream.receive_some()
            if not data:
                if self._decoder.pending:
                    raise ProtocolError("the stream ended inside a frame")
                return False
            self._payloads += self._decoder.feed(data)
        return True
