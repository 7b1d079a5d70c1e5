"""``/yamux/1.0.0`` over one secured connection: our own muxer, in place of the library's.

The library's one takes locks and scheduler passes for each byte read, answers each read with a window
update, lets a peer exceed its credit, fails a writer after 5 s, blocks its read loop on slow accepts,
blocks the 257th stream, and tears the encryption's framing when a writer is cancelled. This one parses
without waiting, queues frames for a single writer task (so that a cancelled caller can't cut a frame
in two, and small frames share a packet), sends what is small and alone without waking that task, and closes
the connection on any breach.

It knows nothing of protocols, hosts or limits beyond the three numbers it is given.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Final, Protocol

import trio

from p2pnode.ids import PeerId

PROTOCOL: Final = "/yamux/1.0.0"

# ---- the header: 12 bytes, as in hashicorp/yamux ``spec.md``

HEADER: Final = struct.Struct("!BBHII")  # version, type, flags, stream id, length
HEADER_BYTES: Final = HEADER.size

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

GO_AWAY_NORMAL: Final = 0
GO_AWAY_PROTOCOL_ERROR: Final = 1

WINDOW_INITIAL: Final = 256 * 1024
"""Both sides start each stream with this credit; the protocol fixes it."""
WINDOW_LIMIT: Final = 0xFFFFFFFF
"""No window can hold more: its size is a number of 32 bits."""


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """One header; the body of a DATA frame follows it."""
    return HEADER.pack(0, kind, flags, stream_id, length)


# ---- the connection

QUEUE_ROOM_BYTES: Final = 128 * 1024
HEADERS_MAX_BYTES: Final = 256 * 1024
"""A peer that makes us answer (pings, resets) without reading the answers is cut off here: each of hundreds
of connections may hold so much, besides ``QUEUE_ROOM_BYTES`` of what streams send."""
PACKET_MAX_BYTES: Final = 65519
"""The plaintext of one Noise message."""
OUTBOUND_STREAMS_MAX: Final = 256
KEEPALIVE_S: Final = 20.0
ABANDONED_S: Final = 60.0
FLUSH_S: Final = 0.5
TAKEN_PER_READ: Final = 8
"""So many arrivals of one read are taken in the task of the connection (see ``YamuxStream.taker``): a read
may bring thousands, and the other connections wait."""


class _Breach(Exception):  # noqa: N818  (internal)
    """The peer broke the protocol."""


class StreamLostError(Exception):
    """The stream was reset, its connection is lost, or this side has finished writing."""


class SecuredConn(Protocol):
    """What the muxer stands on: reads and writes of whole packets, each encrypted by itself."""

    taken: int
    """Bytes that came so far, as they came."""

    async def read(self, n: int | None = None, /) -> bytes: ...
    async def write(self, data: bytes, /) -> None: ...
    def write_now(self, data: bytes, /) -> bool:
        """Send what takes no wait, while no ``write`` runs. False: the next one sends the rest first."""
        ...

    async def close(self) -> None: ...


class Yamux:
    """See the module. ``start`` runs it; it ends by itself when the connection does."""

    def __init__(
        self,
        secured_conn: SecuredConn,
        peer: PeerId,
        *,
        is_initiator: bool,
        streams_inbound_max: int = 128,
        window_max: int = 1 << 20,
        pace: Callable[[int, float], float] = lambda _count, _now: 0.0,
    ) -> None:
        """``pace(n, now)`` is told of ``n`` bytes that came; the seconds to wait before the next ones."""
        self.secured_conn = secured_conn
        self.peer = peer
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.streams: dict[int, YamuxStream] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self.active_at = trio.current_time()
        """When bytes of a stream last came or went."""
        self._initiator = is_initiator
        self._next_id = 1 if self._initiator else 2
        self._streams_inbound_max = streams_inbound_max
        self._window_max = window_max
        self._inbound = 0
        self._accept_send, self._accept_receive = trio.open_memory_channel[YamuxStream](streams_inbound_max)
        self._in = bytearray()
        self._body_left = 0
        self._body_stream: YamuxStream | None = None
        self._body_flags = 0
        self._out = bytearray()
        self._may_take = 0
        """Arrivals of this read that may still be taken at once."""
        self._headers = 0
        """Bytes of frames without a body that may still be queued."""
        self._out_ready: trio.Event | None = None
        self._room: trio.Event | None = None
        self._ending = False
        self._heard = True
        self.pace = pace
        self._slow_until = 0.0
        self._ping = 0
        self._scope = trio.CancelScope()

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self._ending

    @property
    def is_closed(self) -> bool:
        """Whether everything is over."""
        return self.event_closed.is_set()

    async def start(self) -> None:
        """Read, write and keep alive until the connection ends. Raises nothing that a peer causes."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_loop)
                    nursery.start_soon(self._keep_alive)
                    self.event_started.set()
                    await self._read_loop()
                    nursery.cancel_scope.cancel()
        finally:
            self._lose()
            self.event_started.set()
            with trio.move_on_after(FLUSH_S, shield=True):
                await self._close_secured()
            self.event_closed.set()

    async def close(self) -> None:
        """Say goodbye and end; bounded. What is queued is sent if the peer takes it in time."""
        if not self._ending:
            self._ending = True
            self._enqueue(frame(GO_AWAY, 0, 0, GO_AWAY_NORMAL))
        if not self.event_started.is_set():
            with trio.move_on_after(FLUSH_S, shield=True):
                await self._close_secured()
            self._lose()
            self.event_closed.set()
            return
        with trio.move_on_after(FLUSH_S, shield=True):
            while self._out and not self.event_closed.is_set():
                await self.wait_room(0)
        self._scope.cancel()
        with trio.move_on_after(2 * FLUSH_S, shield=True):
            await self.event_closed.wait()

    def slow_down(self, until: float) -> None:
        """Read nothing more before ``until``, on trio's clock: the transport then holds the peer back."""
        self._slow_until = max(self._slow_until, until)

    def open_stream(self) -> YamuxStream:
        """A new stream, at once: it doesn't wait for the other side's consent. Raises ``StreamLostError``."""
        if self._ending:
            raise StreamLostError("the connection is closing")
        if len(self.streams) - self._inbound >= OUTBOUND_STREAMS_MAX:
            raise StreamLostError(f"{OUTBOUND_STREAMS_MAX} streams are open on this connection already")
        stream = YamuxStream(self, self._next_id, window_max=self._window_max, inbound=False)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        self.send_control(WINDOW_UPDATE, SYN, stream.stream_id, 0)
        return stream

    @property
    def opened_by_peer(self) -> trio.MemoryReceiveChannel[YamuxStream]:
        """The streams that the peer opens, as they come; it ends with the connection."""
        return self._accept_receive

    # What streams call.

    def send_control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Queue one header; bounded by cutting off the peer."""
        if self._headers > HEADERS_MAX_BYTES:
            self._scope.cancel()
            return
        self._headers += HEADER_BYTES
        self._enqueue(frame(kind, flags, stream_id, length))

    def send_data(self, stream_id: int, body: bytes) -> None:
        """Queue one DATA frame; the caller waits for room first."""
        self.active_at = trio.current_time()
        self._enqueue(frame(DATA, 0, stream_id, len(body)))
        self._out += body

    def send_data_now(self, stream_id: int, body: bytes) -> None:
        """Send one DATA frame from the caller's task; queue it where others wait. To wake the writer costs
        more than most small messages do."""
        if self._out_ready is None:
            self.send_data(stream_id, body)
            return
        self.active_at = trio.current_time()
        packet = HEADER.pack(0, DATA, 0, stream_id, len(body)) + body
        try:
            is_sent = self.secured_conn.write_now(packet)
        except Exception:  # noqa: BLE001  whatever the transport raises, the connection is over
            self._scope.cancel()
            return
        self.bytes_out += len(packet)
        if not is_sent:
            self._wake_writer()

    def has_room(self) -> bool:
        """Whether the next write need not wait for what is queued."""
        return len(self._out) <= QUEUE_ROOM_BYTES and not self.event_closed.is_set()

    async def wait_room(self, below: int = QUEUE_ROOM_BYTES) -> None:
        """Wait until at most ``below`` bytes are queued, or the connection has ended."""
        while len(self._out) > below and not self.event_closed.is_set():
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def forget(self, stream: YamuxStream) -> None:
        """Remove a stream that is over. Its number isn't used again."""
        if self.streams.pop(stream.stream_id, None) is not None and stream.inbound:
            self._inbound -= 1

    def _enqueue(self, data: bytes) -> None:
        if not self.event_closed.is_set():
            self._out += data
            self._wake_writer()

    def _wake_writer(self) -> None:
        if self._out_ready is not None:
            self._out_ready.set()
            self._out_ready = None

    async def _write_loop(self) -> None:
        while True:
            if not self._out:
                self._out_ready = trio.Event()
                await self._out_ready.wait()
            packet = bytes(self._out[:PACKET_MAX_BYTES])
            try:
                await self.secured_conn.write(packet)
            except Exception:  # noqa: BLE001  whatever the transport raises, the connection is over
                self._scope.cancel()
                return
            del self._out[: len(packet)]
            self._headers = min(self._headers, len(self._out))
            self.bytes_out += len(packet)
            if self._room is not None:
                self._room.set()
                self._room = None

    async def _read_loop(self) -> None:
        while True:
            before = self.secured_conn.taken
            try:
                data = await self.secured_conn.read()
            except Exception:  # noqa: BLE001  closed, reset, or forged: the connection is over
                return
            if not data:
                return
            self._heard = True
            self.bytes_in += len(data)
            self._may_take = TAKEN_PER_READ
            now = trio.current_time()
            try:
                if not (self._feed_one(data, now) or self._feed(data, now)):
                    return
            except _Breach:
                self._enqueue(frame(GO_AWAY, 0, 0, GO_AWAY_PROTOCOL_ERROR))
                with trio.move_on_after(FLUSH_S):
                    await self.wait_room(0)
                return
            wait_s = self.pace(self.secured_conn.taken - before, now)
            if wait_s or self._slow_until > now:
                await trio.sleep_until(max(self._slow_until, now + wait_s))
                self._heard = True  # the silence was ours

    async def _keep_alive(self) -> None:
        """Ping a peer that was silent for a whole interval. One that is silent for the next, too, is gone."""
        is_asked = False
        while True:
            await trio.sleep(KEEPALIVE_S)
            if is_asked and not self._heard:
                self._scope.cancel()
                return
            is_asked, self._heard = not self._heard, False
            if is_asked:
                self._ping += 1
                self.send_control(PING, SYN, 0, self._ping & 0xFFFFFFFF)
            before = trio.current_time() - ABANDONED_S
            for stream in list(self.streams.values()):
                if stream.closed_at and stream.closed_at < before:
                    stream.reset()

    def may_take(self) -> bool:
        """Whether one more arrival may be taken at once; counts it."""
        self._may_take -= 1
        return self._may_take >= 0

    def _feed(self, data: bytes, now: float) -> bool:
        """Parse what arrived. False after GO_AWAY."""
        buffer = self._in
        buffer += data
        at, end = 0, len(buffer)
        while True:
            if self._body_left:
                take = min(self._body_left, end - at)
                if take and self._body_stream is not None:
                    self._body_stream.on_data(buffer[at : at + take])
                at += take
                self._body_left -= take
                if self._body_left:
                    break
                self._finish(self._body_stream, self._body_flags)
            if end - at < HEADER_BYTES:
                break
            version, kind, flags, stream_id, length = HEADER.unpack_from(buffer, at)
            at += HEADER_BYTES
            if version != 0:
                raise _Breach
            if kind == DATA:
                self._on_data_header(flags, stream_id, length, now)
            elif kind == WINDOW_UPDATE:
                stream = self._stream_of(flags, stream_id)
                if stream is not None and length:
                    if stream.send_window + length > WINDOW_LIMIT:
                        raise _Breach
                    stream.on_credit(length)
                self._finish(stream, flags)
            elif kind == PING:
                if flags & SYN:
                    self.send_control(PING, ACK, 0, length)
            elif kind == GO_AWAY:
                return False
            else:
                raise _Breach
        del buffer[:at]
        return True

    def _feed_one(self, data: bytes, now: float) -> bool:
        """Take one whole frame of DATA without flags, as most reads bring it: it needs no buffer. False for
        anything else, and nothing is done."""
        if self._in or self._body_left or len(data) <= HEADER_BYTES:
            return False
        version, kind, flags, stream_id, length = HEADER.unpack_from(data)
        if version or kind or flags or length != len(data) - HEADER_BYTES:
            return False
        stream = self.streams.get(stream_id)
        self._take_credit(stream, length, now)
        if stream is not None:
            stream.on_data(data[HEADER_BYTES:])
        return True

    def _on_data_header(self, flags: int, stream_id: int, length: int, now: float) -> None:
        stream = self._stream_of(flags, stream_id)
        self._take_credit(stream, length, now)
        if length:
            self._body_left, self._body_stream, self._body_flags = length, stream, flags
        else:
            self._finish(stream, flags)

    def _take_credit(self, stream: YamuxStream | None, length: int, now: float) -> None:
        if length > (stream.recv_window if stream is not None else self._window_max):
            raise _Breach
        if length and stream is not None:
            stream.recv_window -= length
            self.active_at = stream.active_at = now

    def _stream_of(self, flags: int, stream_id: int) -> YamuxStream | None:
        if not flags & SYN:
            return self.streams.get(stream_id)
        if stream_id in self.streams or (stream_id % 2 == 1) == self._initiator or stream_id == 0:
            raise _Breach
        if self._inbound >= self._streams_inbound_max or self._ending:
            self.send_control(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        stream = YamuxStream(self, stream_id, window_max=self._window_max, inbound=True)
        try:
            self._accept_send.send_nowait(stream)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self.send_control(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        self._inbound += 1
        self.streams[stream_id] = stream
        self.send_control(WINDOW_UPDATE, ACK, stream_id, 0)
        return stream

    @staticmethod
    def _finish(stream: YamuxStream | None, flags: int) -> None:
        if stream is not None:
            if flags & RST:
                stream.on_reset()
            elif flags & FIN:
                stream.on_end()

    def _lose(self) -> None:
        self._ending = True
        self._accept_send.close()
        for stream in list(self.streams.values()):
            stream.on_connection_lost()
        self.streams.clear()
        self._inbound = 0
        self._out.clear()
        if self._room is not None:
            self._room.set()
            self._room = None

    async def _close_secured(self) -> None:
        with contextlib.suppress(Exception):  # it is closed either way
            await self.secured_conn.close()


# ---- one stream

FRAME_BODY_MAX: Final = 32 * 1024
"""Small enough that one stream's bulk doesn't hold up another's tokens for long."""
LAST_WORDS_S: Final = 2.0
"""So long after we finished both ways what still comes is dropped without a reset: other implementations
throw away what they have not read yet when one comes, and with it the last we said."""
GROW_WITHIN_S: Final = 0.25
"""Half a window read within this time means that the window, not the reader, is the bottleneck."""


class YamuxStream:
    """One stream: a bounded receive buffer and credit both ways, without locks or timers of its own.

    A reader that stops costs at most ``window_max`` bytes and stops only this stream's writer, for as long as
    the writer's own deadline allows. Credit is given back when half a window was read, not at each read.
    """

    def __init__(self, conn: Yamux, stream_id: int, *, window_max: int, inbound: bool) -> None:
        self.stream_id = stream_id
        self.inbound = inbound
        self.active_at = trio.current_time()
        """When bytes last came or went."""
        self.send_window = WINDOW_INITIAL
        self.recv_window = WINDOW_INITIAL
        self.read_closed = False
        self.write_closed = False
        self.was_reset = False
        self.discarding = False
        self.closed_at = 0.0
        self.taker: Callable[[bytes | bytearray], bool] | None = None
        """Asked first for what comes while a reader waits, in the task of the connection: true where it took
        all of it. It neither waits nor raises. To wake a reader costs more than most small messages do."""
        self._conn = conn
        self._buffer = bytearray()
        self._target = WINDOW_INITIAL
        self._window_max = max(window_max, WINDOW_INITIAL)
        self._unacknowledged = 0
        self._credited_at = 0.0
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self._write_lock = trio.Lock()

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._conn.peer

    async def read(self, n: int | None = None) -> bytes:
        """At least one and at most ``n`` bytes; empty where the other side has finished writing.

        Doesn't yield when bytes are at hand. Raises ``StreamLostError``.
        """
        buffer = self._buffer
        while not buffer:
            if self.was_reset:
                raise StreamLostError("the stream was reset")
            if self.read_closed:
                return b""
            if self._readable is None:
                self._readable = trio.Event()
            await self._readable.wait()
        if n is None or n < 0 or n >= len(buffer):
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(buffer[:n])
            del buffer[:n]
        self._give_credit(len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Hand all of ``data`` to the connection; waits for credit and for room in its queue.

        Raises ``StreamLostError``.
        """
        try:
            self._write_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._write_lock.acquire()
        try:
            offset = 0
            while offset < len(data):
                await self._wait_writable()
                body = data[offset : offset + min(self.send_window, FRAME_BODY_MAX)]
                self.send_window -= len(body)
                offset += len(body)
                self._conn.send_data(self.stream_id, body)
                self.active_at = self._conn.active_at
            await self._conn.wait_room()
        finally:
            self._write_lock.release()

    def write_now(self, data: bytes) -> bool:
        """Hand all of ``data`` to the connection if that takes no wait; false where it would, or it is
        over."""
        return self._handed(data, self._conn.send_data_now)

    def queue_now(self, data: bytes) -> bool:
        """The same, but leave it to the connection's writer: what several streams say at the same time
        leaves in one packet."""
        return self._handed(data, self._conn.send_data)

    def _handed(self, data: bytes, send: Callable[[int, bytes], None]) -> bool:
        if self.was_reset or self.write_closed or self._write_lock.locked() or not self._conn.has_room():
            return False
        if len(data) > min(self.send_window, FRAME_BODY_MAX):
            return False
        self.send_window -= len(data)
        send(self.stream_id, data)
        self.active_at = self._conn.active_at
        return True

    async def _wait_writable(self) -> None:
        await self._conn.wait_room()
        while True:
            if self.was_reset:
                raise StreamLostError("the stream was reset")
            if self.write_closed:
                raise StreamLostError("this side has finished writing")
            if self.send_window > 0:
                return
            if self._writable is None:
                self._writable = trio.Event()
            await self._writable.wait()

    def close_write(self) -> None:
        """Tell the other side that nothing more will come; reading goes on."""
        if not self.write_closed and not self.was_reset:
            self.write_closed = True
            self._conn.send_control(WINDOW_UPDATE, FIN, self.stream_id, 0)
            self._wake()
            self._settle()

    def close(self) -> None:
        """Finish both ways: what still comes is refused."""
        self.close_write()
        self.discarding = True
        self._buffer.clear()
        self._settle()

    def reset(self) -> None:
        """Abort both ways at once."""
        if not self.was_reset and not (self.write_closed and self.read_closed):
            self._conn.send_control(WINDOW_UPDATE, RST, self.stream_id, 0)
        self._buffer.clear()
        self.on_reset()

    # What the connection calls; none of it waits.

    def on_data(self, data: bytes | bytearray) -> None:
        """Bytes within the credit that the connection has checked."""
        if self.discarding:
            listened_to = trio.current_time() < self.closed_at + LAST_WORDS_S and self.recv_window > 0
            if not listened_to:
                self.reset()  # so that the writer learns that nobody reads
        elif not self.was_reset:
            taker = self.taker if self._readable is not None else None
            if taker is not None and self._conn.may_take() and taker(data):
                self._give_credit(len(data))
                return
            self._buffer += data
            self._wake_reader()

    def on_credit(self, increment: int) -> None:
        """The other side takes ``increment`` more bytes."""
        self.send_window += increment
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def on_end(self) -> None:
        """The other side sent FIN."""
        self.read_closed = True
        self._wake_reader()
        self._settle()

    def on_reset(self) -> None:
        """The stream was reset, by us or by the peer. What came before the peer's reset stays readable."""
        self.was_reset = True
        self._wake()
        self._conn.forget(self)

    def on_connection_lost(self) -> None:
        """The connection is lost. What has arrived whole stays readable; the rest is an error."""
        if not (self.read_closed and self.write_closed):
            self.was_reset = True
        self._wake()

    def _give_credit(self, n: int) -> None:
        self._unacknowledged += n
        if self.read_closed or self.was_reset or self._unacknowledged < self._target // 2:
            return
        now = trio.current_time()
        if now - self._credited_at < GROW_WITHIN_S:
            self._target = min(self._target * 2, self._window_max)
        self._credited_at = now
        increment = self._target - self.recv_window - len(self._buffer)
        self._unacknowledged = 0
        if increment > 0:
            self.recv_window += increment
            self._conn.send_control(WINDOW_UPDATE, 0, self.stream_id, increment)

    def _settle(self) -> None:
        if self.write_closed and self.read_closed:
            self._conn.forget(self)
        elif self.discarding and not self.closed_at:
            self.closed_at = trio.current_time()

    def _wake(self) -> None:
        self._wake_reader()
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def _wake_reader(self) -> None:
        if self._readable is not None:
            self._readable.set()
            self._readable = None
