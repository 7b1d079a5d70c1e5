"""The shell that drives one machine: events in, effects out, over no stream, one stream or many.

Everything the machine decides happens here: writes with a deadline, timers on trio's clock, bounded queues.
It knows no protocol. A machine's events come by four ways, so that a peer holds up its own stream only:

- what a peer says: a few messages wait, then its stream isn't read
- :meth:`Driver.command`: reports of work, in order; a few wait, then whoever works waits
- :meth:`Driver.command_nowait`: what the role decides, in order. It never waits and is never refused: a role
  says only so much of its own accord, and no message of a peer stands in its queue
- timers

While a peer takes nothing, nothing more that it says is handled; while no peer takes anything, no report is
either: both would make more to write. The role's commands and timers go on. ``on_emit`` may wait: while it
does, nothing is read or acknowledged, which is how a slow application holds back a fast host.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias

import trio

from p2pnode.bounded import TokenBucket
from p2pnode.errors import ProtocolError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net.network import Network
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
    StreamRef,
    TimerFired,
)
from p2pnode.protocols.framing.codec import FRAME_MAX, FrameDecoder, only_payload, pack_frame
from p2pnode.protocols.wire import Codec

_HEARD_MAX: Final = 64
_HEARD_BYTES_MAX: Final = 4 << 20
"""Messages of a peer that wait, each as large as its protocol allows."""
_REPORTS_MAX: Final = 64
_BATCH: Final = 64
_MESSAGES_PER_S: Final = 1000.0
_MESSAGES_BURST: Final = 4000.0
"""Beyond them a peer is read no faster: no protocol needs more, and each costs us more than it costs them."""
_ONLY: Final[StreamRef] = 0
"""The stream of a driver that was made with one."""
_Ended: TypeAlias = Literal["", "lost", "slow reader"]


async def ask_once(
    network: Network, peer: PeerId, protocol: str, codec: Codec, question: Iterable[Any]
) -> Any | None:
    """The answer to a question, on a stream of its own; None where the peer closes without one.

    Deadlines are the caller's. Raises ``UnreachableError`` and ``ProtocolError``.
    """
    stream = await network.open_stream(peer, protocol)
    try:
        channel = MessageChannel(stream, codec)
        await channel.send(question)
        answer = await channel.receive()
    except BaseException:
        await stream.reset()
        raise
    await stream.aclose()
    return answer


class Channel(Protocol):
    """One protocol's messages with one peer."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def frame_max(self) -> int:
        """Bytes of the longest message."""
        ...

    async def send(self, messages: Iterable[Any]) -> None:
        """Raises ``UnreachableError`` when the peer is gone."""
        ...

    def queue_now(self, messages: Iterable[Any]) -> bool:
        """Have them sent if that takes no wait. False where it would, or the peer is gone: then none is."""
        ...

    async def receive(self) -> Any | None:
        """The next message; None at a clean end. Raises ``ProtocolError`` or ``UnreachableError``."""
        ...

    def take_with(self, has_room: Callable[[], bool], take: Callable[[Any], None]) -> None:
        """While a task waits in :meth:`receive`, give ``take`` what comes where there is room for it: that is
        asked first, before anything is read. Neither waits nor raises."""
        ...


class Driver:
    """Runs ``machine`` until :meth:`stop` or cancellation; with a ``channel``, until the end of that, too.

    With a channel, the machine's stream is 0. Others, or all, are added by :meth:`serve`.
    """

    def __init__(
        self,
        machine: Machine,
        channel: Channel | None = None,
        *,
        on_emit: Callable[[Any], Awaitable[None]],
        write_deadline_s: float,
        sleep: SleepWatch | None = None,
    ) -> None:
        self._machine, self._on_emit, self._sleep = machine, on_emit, sleep
        self._write_deadline_s = write_deadline_s
        self._streams: dict[StreamRef, _DrivenStream] = {}
        self._refs = itertools.count(_ONLY + 1)
        self._reports: deque[Event] = deque()
        self._own: deque[Event] = deque()
        """What the role decided, and how streams ended. It needs no bound: a role says only so much of its
        own accord, and a peer puts one event here for each of its streams."""
        self._timers: dict[str, float] = {}
        self._work, self._room = trio.Event(), trio.Event()
        """Set when there is something to handle, and when there is room for a report; then made anew."""
        self._stopped = self._is_over = False
        self._nursery: trio.Nursery | None = None
        self._only: _DrivenStream | None = None
        if channel is not None:
            self._only = self._add(_ONLY, channel)

    @property
    def fault(self) -> str | None:
        """How the peer of the only stream broke the framing or the codec, if it did."""
        return self._only.fault if self._only is not None else None

    @property
    def ended_in_order(self) -> bool:
        """Whether :meth:`stop` was called, and the peer's bytes made sense."""
        return self._is_over and self.fault is None

    async def command(self, value: Any) -> bool:
        """Give the machine a report; waits while others wait, or no peer takes anything. False at the end.

        It may be handled after a :meth:`command_nowait` that was given later. What is not handled before the
        end is given back by :meth:`take_reports`.
        """
        while len(self._reports) >= _REPORTS_MAX and not self._stopped:
            await self._room.wait()
        if self._stopped:
            await trio.lowlevel.checkpoint()
            return False
        self._reports.append(Command(value))
        self._work.set()
        await trio.lowlevel.checkpoint()
        return True

    def take_reports(self) -> list[Any]:
        """The reports that the machine was not given yet, in order: another one may need them."""
        reports = [event.value for event in self._reports if isinstance(event, Command)]
        self._reports.clear()
        self._make_room()
        return reports

    def command_nowait(self, value: Any) -> None:
        """Give the machine a command of the role's own; never fails. Ignored after the end."""
        self._tell(Command(value))

    def fire_nowait(self, key: str) -> None:
        """Let a timer of the machine fire now; one that isn't armed means nothing to it."""
        fired = TimerFired(key)
        if fired not in self._own:
            self._tell(fired)

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run work for the machine, which is cancelled when the driver ends. Ignored before and after."""
        if self._nursery is not None:
            self._nursery.start_soon(function, *args)

    def stop(self) -> None:
        """End after what is already decided has been written (call it from ``on_emit``)."""
        self._is_over = True
        self._end()

    async def run(self, initial: Sequence[Effect] = ()) -> None:
        """Drive to the end. It closes no stream. What ``on_emit`` raises is raised as it is."""
        failed: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._only is not None:
                    nursery.start_soon(self._only.run)
                try:
                    await self._drive(initial)
                except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
                    failed = error
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._end()
            for stream in self._streams.values():
                stream.over.set()
        if failed is not None:
            raise failed

    async def run_to_close(self, stream: Stream, initial: Sequence[Effect] = ()) -> None:
        """:meth:`run`, then close the stream in order, or reset it where the end was not in order.

        A peer that broke the protocol was told so: a reset could overtake that word.
        """
        try:
            await self.run(initial)
        finally:
            await (stream.aclose() if self.ended_in_order else stream.reset())

    async def serve(self, channel: Channel) -> None:
        """Drive one more stream, until its end is handled, :meth:`finish`, or the driver's end.

        Raises ``ProtocolError`` where the peer sent what makes no sense, once the machine knows of it.
        """
        if self._stopped:
            return
        ref = next(self._refs)
        stream = self._add(ref, channel)
        try:
            await stream.run()
        finally:
            del self._streams[ref]
            if not (stream.is_closed or stream.finishing):  # the caller gave up: the machine must forget it
                self._tell(Closed(channel.peer, ref, "given up"))
        if stream.fault is not None:
            raise ProtocolError(stream.fault)

    def finish(self, ref: StreamRef) -> None:
        """End a stream of :meth:`serve` after what is decided for it has been written."""
        if (stream := self._streams.get(ref)) is not None:
            stream.finish()
            self._work.set()

    # ---- what to handle next

    async def _drive(self, initial: Sequence[Effect]) -> None:
        await self._apply(initial)
        self._begin_writing()
        while not self._stopped:
            if self._own:
                await self._handle(self._own.popleft())
            elif self._ready():
                await self._batch()
                await self._fire_due()
            elif not await self._fire_due():
                await self._wait_work()
            self._begin_writing()
        # What the machine decided to say is written before the end, to a peer that takes it.
        with trio.move_on_after(self._write_deadline_s):
            while any(stream.writing for stream in self._streams.values()):
                await self._wait_work()

    def _ready(self) -> bool:
        """Whether there is something to handle that makes more to write, and somebody takes that."""
        writable = [stream for stream in self._streams.values() if not stream.writing]
        return any(stream.heard for stream in writable) or bool(
            self._reports and (writable or not self._streams)
        )

    async def _batch(self) -> None:
        """What the peers said and what was reported, in turn, until something is more urgent.

        Before the timers that are due: a peer that spoke in time is not to be blamed for what held us up.
        """
        handled, more, streams = 0, True, [each for each in self._streams.values() if not each.writing]
        while more and handled < _BATCH and not (self._stopped or self._own):
            more = False
            if self._reports:
                event = self._reports.popleft()
                self._make_room()
                handled, more = handled + 1, True
                await self._handle(event)
            for stream in streams:
                if stream.heard and not self._stopped:
                    handled, more = handled + 1, True
                    await self._handle(stream.take())

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
        # Nothing is awaited between the look at the queues and this line, so that no wake-up is missed.
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

    async def _handle(self, event: Event) -> None:
        await self._apply(self._machine.handle(event, self._now))
        if isinstance(event, Closed):  # the stream is over, whatever the machine makes of it
            if self._only is not None:
                self._end()
            elif (stream := self._streams.get(event.stream)) is not None:
                stream.is_closed = True
                stream.over.set()

    async def _apply(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(stream=ref, message=message):
                    if (stream := self._streams.get(ref)) is not None:
                        stream.send_queue.append(message)
                case SetTimer(key=key, at=at):
                    self._timers[key] = at
                case CancelTimer(key=key):
                    self._timers.pop(key, None)
                case Emit(value=value):
                    await self._on_emit(value)

    def _begin_writing(self) -> None:
        for stream in self._streams.values():
            stream.begin_writing()

    # ---- what comes in

    def _add(self, ref: StreamRef, channel: Channel) -> _DrivenStream:
        stream = _DrivenStream(ref, channel, self._write_deadline_s, tell=self._tell, wake=self._wake)
        self._streams[ref] = stream
        return stream

    def _tell(self, event: Event) -> None:
        if not self._stopped:
            self._own.append(event)
            self._work.set()

    def _wake(self) -> None:
        self._work.set()

    def _end(self) -> None:
        self._stopped = True
        self._work.set()
        self._make_room()

    def _make_room(self) -> None:
        self._room.set()
        self._room = trio.Event()


class _DrivenStream:
    """One stream of a driver: what its peer said and waits to be handled, and what is to be said to it."""

    def __init__(
        self,
        ref: StreamRef,
        channel: Channel,
        write_deadline_s: float,
        *,
        tell: Callable[[Event], None],
        wake: Callable[[], None],
    ) -> None:
        self._ref, self._channel, self._peer = ref, channel, channel.peer
        self._write_deadline_s, self._tell, self._wake = write_deadline_s, tell, wake
        self._heard_max = min(_HEARD_MAX, max(1, _HEARD_BYTES_MAX // channel.frame_max))
        self._bucket = TokenBucket(_MESSAGES_PER_S, _MESSAGES_BURST)
        self.heard: deque[Event] = deque()
        self.send_queue: list[Any] = []
        self.writing = False
        self.finishing = self.is_closed = False
        """Whether the machine has done with it, and whether it knows that the peer has."""
        self.over = trio.Event()
        self.fault: str | None = None
        self._room, self._to_write = trio.Event(), trio.Event()
        """Set when there is room for what the peer says, and something to write; then made anew."""
        self._unwritable: _Ended = ""
        self._read_to_end = False

    async def run(self) -> None:
        """Read and write until it is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            nursery.start_soon(self._write)
            await self.over.wait()
            nursery.cancel_scope.cancel()

    def finish(self) -> None:
        """Handle nothing more that the peer says."""
        self.finishing = True
        self.heard.clear()
        self._make_room()

    def take(self) -> Event:
        """The oldest event that waits; there is one."""
        event = self.heard.popleft()
        self._make_room()
        return event

    def begin_writing(self) -> None:
        """Write what was decided; a stream that is to finish is over once that is done."""
        if self._unwritable:
            self.send_queue.clear()
        elif self.send_queue and not self.writing:
            # Most streams have room: to wake the writer costs more than most messages do.
            if self._channel.queue_now(self.send_queue):
                self.send_queue = []
            else:
                self.writing = True
                self._to_write.set()
        if self.finishing and not self.writing:
            self.over.set()

    def _hear(self, event: Event) -> None:
        if not self.finishing:
            self.heard.append(event)
            self._wake()

    def _make_room(self) -> None:
        self._room.set()
        self._room = trio.Event()

    async def _write(self) -> None:
        while not self._unwritable:
            while not self.writing:
                self._to_write = trio.Event()
                await self._to_write.wait()
            # What is decided during this write goes into the next one.
            messages, self.send_queue = self.send_queue, []
            self._unwritable = await self._sent(messages)
            self.writing = bool(self.send_queue) and not self._unwritable
            if self._unwritable == "slow reader" or (self._unwritable and self._read_to_end):
                self._tell(Closed(self._peer, self._ref, self._unwritable))
            # Else the reader tells of the loss, after what the peer has said before it.
            self._wake()

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

    def _has_room(self) -> bool:
        """False where the peer is to be held back, or this stream is not driven any more."""
        is_full = len(self.heard) >= self._heard_max
        return not (is_full or self.over.is_set() or self._bucket.wait_s(trio.current_time()))

    def _take(self, message: Any) -> None:
        """Hear a message that came while the reader waited."""
        self._bucket.spend(1)
        self._hear(Received(self._peer, self._ref, message))

    async def _read(self) -> None:
        end: Event = HalfClosed(self._peer, self._ref)
        self._channel.take_with(self._has_room, self._take)
        try:
            while (message := await self._channel.receive()) is not None:
                if wait_s := self._bucket.wait_s(trio.current_time()):
                    await trio.sleep(wait_s)
                self._bucket.spend(1)
                while len(self.heard) >= self._heard_max:
                    await self._room.wait()
                self._hear(Received(self._peer, self._ref, message))
        except ProtocolError as error:
            self.fault = str(error)
            end = Closed(self._peer, self._ref, f"malformed: {error}", malformed=True)
        except UnreachableError:
            end = Closed(self._peer, self._ref, "lost")
        self._read_to_end = True
        if isinstance(end, HalfClosed) and self._unwritable:
            end = Closed(self._peer, self._ref, self._unwritable)
        self._hear(end)


class MessageChannel:
    """One protocol's messages on one stream, in frames of at most ``frame_max`` bytes: see :class:`Channel`.

    This is the one place where a peer's bytes become messages.
    """

    def __init__(self, stream: Stream, codec: Codec, frame_max: int = FRAME_MAX) -> None:
        self.stream = stream
        self._codec, self.frame_max = codec, frame_max
        self._decoder = FrameDecoder(frame_max)
        self._payloads: deque[bytes] = deque()
        self._error: ProtocolError | None = None

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self.stream.peer

    async def send(self, messages: Iterable[Any]) -> None:
        """Write messages in one piece. Raises ``UnreachableError`` when the peer is gone."""
        if data := self._packed(messages):
            await self.stream.send_all(data)

    def queue_now(self, messages: Iterable[Any]) -> bool:
        """See :class:`Channel`."""
        data = self._packed(messages)
        return not data or self.stream.queue_now(data)

    def _packed(self, messages: Iterable[Any]) -> bytes:
        return b"".join(pack_frame(self._codec.encode(message), self.frame_max) for message in messages)

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

    def take_with(self, has_room: Callable[[], bool], take: Callable[[Any], None]) -> None:
        """See :class:`Channel`. Most messages come alone; what is less, more or malformed is received."""

        def took(data: bytes | bytearray) -> bool:
            if self._decoder.pending or not has_room():
                return False
            payload = only_payload(data, self.frame_max)
            if payload is None:
                return False
            try:
                take(self._codec.decode(payload))
            except ProtocolError:
                return False
            return True

        self.stream.take_with(took)

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
