"""``/yamux/1.0.0`` over one secured connection: our own muxer, in place of the library's.

The library's one takes locks and scheduler passes for each byte read, answers each read with a window
update, lets a peer exceed its credit, fails a writer after 5 s, blocks its read loop on slow accepts,
blocks the 257th stream, and tears the encryption's framing when a writer is cancelled. This one parses
without waiting, queues frames for a single writer task (so that a cancelled caller can't cut a frame
in two, and small frames share a packet), and closes the connection on any breach.

It knows nothing of protocols, hosts or limits beyond the three numbers it is given.
"""

from __future__ import annotations

import contextlib
from typing import Final

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from multiaddr import Multiaddr

from p2pnode.net import yamux_frames as wire
from p2pnode.net.yamux_stream import YamuxStream

QUEUE_ROOM_BYTES: Final = 128 * 1024
QUEUE_MAX_BYTES: Final = 2 * 1024 * 1024
"""A peer that makes us answer (pings, resets) without reading the answers is cut off here."""
PACKET_MAX_BYTES: Final = 65519
"""The plaintext of one Noise message."""
OUTBOUND_STREAMS_MAX: Final = 256
KEEPALIVE_S: Final = 30.0
ABANDONED_S: Final = 60.0
FLUSH_S: Final = 0.5


class _Breach(Exception):  # noqa: N818  (internal)
    """The peer broke the protocol."""


class Yamux(IMuxedConn):
    """See the module docstring. ``start`` runs it; it ends by itself when the connection does."""

    def __init__(
        self,
        secured_conn: ISecureConn,
        peer_id: ID,
        *,
        streams_inbound_max: int = 128,
        window_max: int = 1 << 20,
    ) -> None:
        self.secured_conn = secured_conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.streams: dict[int, YamuxStream] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self._initiator = secured_conn.is_initiator
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
        self._out_ready: trio.Event | None = None
        self._room: trio.Event | None = None
        self._ending = False
        self._heard = True
        self._ping = 0
        self._scope = trio.CancelScope()

    @property
    def is_initiator(self) -> bool:
        """Whether we dialled."""
        return self._initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self._ending

    @property
    def is_closed(self) -> bool:
        """Whether everything is over."""
        return self.event_closed.is_set()

    async def start(self) -> None:
        """Read, write and keep alive until the connection ends. Raises nothing of the peer's doing."""
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
        """Say goodbye and end; bounded. What was queued is flushed if the peer takes it in time."""
        if not self._ending:
            self._ending = True
            self._enqueue(wire.frame(wire.GO_AWAY, 0, 0, wire.GO_AWAY_NORMAL))
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

    async def open_stream(self) -> YamuxStream:
        """A new stream at once: the other side's consent isn't waited for."""
        if self._ending:
            raise MuxedStreamError("the connection is closing")
        if len(self.streams) - self._inbound >= OUTBOUND_STREAMS_MAX:
            raise MuxedStreamError(f"{OUTBOUND_STREAMS_MAX} streams are open on this connection already")
        stream = YamuxStream(self, self._next_id, window_max=self._window_max, inbound=False)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        self.send_control(wire.WINDOW_UPDATE, wire.SYN, stream.stream_id, 0)
        return stream

    async def accept_stream(self) -> YamuxStream:
        """The next stream that the peer opened."""
        try:
            return await self._accept_receive.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection is closed") from None

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Unknown at this layer; the swarm knows."""
        return []

    def get_connection_type(self) -> ConnectionType:
        """Relays are not used."""
        return ConnectionType.DIRECT

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port at the other end."""
        return self.secured_conn.get_remote_address()

    # What streams call.

    def send_control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Queue one header; bounded by cutting off the peer."""
        if len(self._out) > QUEUE_MAX_BYTES:
            self._scope.cancel()
            return
        self._enqueue(wire.frame(kind, flags, stream_id, length))

    def send_data(self, stream_id: int, body: bytes) -> None:
        """Queue one DATA frame; the caller waits for room first."""
        self._enqueue(wire.frame(wire.DATA, 0, stream_id, len(body)))
        self._out += body

    async def wait_room(self, below: int = QUEUE_ROOM_BYTES) -> None:
        """Until at most ``below`` bytes are queued, or the connection has ended."""
        while len(self._out) > below and not self.event_closed.is_set():
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def forget(self, stream: YamuxStream) -> None:
        """The stream is over; its number isn't used again."""
        if self.streams.pop(stream.stream_id, None) is not None and stream.inbound:
            self._inbound -= 1

    def _enqueue(self, data: bytes) -> None:
        if not self.event_closed.is_set():
            self._out += data
            if self._out_ready is not None:
                self._out_ready.set()
                self._out_ready = None

    async def _write_loop(self) -> None:
        while True:
            while not self._out:
                self._out_ready = trio.Event()
                await self._out_ready.wait()
            packet = bytes(self._out[:PACKET_MAX_BYTES])
            try:
                await self.secured_conn.write(packet)
            except Exception:  # noqa: BLE001  whatever the transport raises, the connection is over
                self._scope.cancel()
                return
            del self._out[: len(packet)]
            self.bytes_out += len(packet)
            if self._room is not None:
                self._room.set()
                self._room = None

    async def _read_loop(self) -> None:
        while True:
            try:
                data = await self.secured_conn.read()
            except Exception:  # noqa: BLE001  closed, reset, or forged: the connection is over
                return
            if not data:
                return
            self._heard = True
            self.bytes_in += len(data)
            try:
                if not self._feed(data):
                    return
            except _Breach:
                self._enqueue(wire.frame(wire.GO_AWAY, 0, 0, wire.GO_AWAY_PROTOCOL_ERROR))
                with trio.move_on_after(FLUSH_S):
                    await self.wait_room(0)
                return

    async def _keep_alive(self) -> None:
        """A peer silent for a whole interval, our ping included, is gone."""
        while True:
            await trio.sleep(KEEPALIVE_S)
            if not self._heard and self._ping:
                self._scope.cancel()
                return
            self._heard = False
            self._ping += 1
            self.send_control(wire.PING, wire.SYN, 0, self._ping & 0xFFFFFFFF)
            before = trio.current_time() - ABANDONED_S
            for stream in list(self.streams.values()):
                if stream.closed_at and stream.closed_at < before:
                    stream.reset_nowait()

    def _feed(self, data: bytes) -> bool:
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
            if end - at < wire.HEADER_BYTES:
                break
            version, kind, flags, stream_id, length = wire.HEADER.unpack_from(buffer, at)
            at += wire.HEADER_BYTES
            if version != 0:
                raise _Breach
            if kind == wire.DATA:
                self._on_data_header(flags, stream_id, length)
            elif kind == wire.WINDOW_UPDATE:
                stream = self._stream_of(flags, stream_id)
                if stream is not None and length:
                    if stream.send_window + length > wire.WINDOW_LIMIT:
                        raise _Breach
                    stream.on_credit(length)
                self._finish(stream, flags)
            elif kind == wire.PING:
                if flags & wire.SYN:
                    self.send_control(wire.PING, wire.ACK, 0, length)
            elif kind == wire.GO_AWAY:
                return False
            else:
                raise _Breach
        del buffer[:at]
        return True

    def _on_data_header(self, flags: int, stream_id: int, length: int) -> None:
        stream = self._stream_of(flags, stream_id)
        if length > (stream.recv_window if stream is not None else self._window_max):
            raise _Breach
        if stream is not None:
            stream.recv_window -= length
        if length:
            self._body_left, self._body_stream, self._body_flags = length, stream, flags
        else:
            self._finish(stream, flags)

    def _stream_of(self, flags: int, stream_id: int) -> YamuxStream | None:
        if not flags & wire.SYN:
            return self.streams.get(stream_id)
        if stream_id in self.streams or (stream_id % 2 == 1) == self._initiator or stream_id == 0:
            raise _Breach
        if self._inbound >= self._streams_inbound_max or self._ending:
            self.send_control(wire.WINDOW_UPDATE, wire.RST, stream_id, 0)
            return None
        stream = YamuxStream(self, stream_id, window_max=self._window_max, inbound=True)
        try:
            self._accept_send.send_nowait(stream)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self.send_control(wire.WINDOW_UPDATE, wire.RST, stream_id, 0)
            return None
        self._inbound += 1
        self.streams[stream_id] = stream
        self.send_control(wire.WINDOW_UPDATE, wire.ACK, stream_id, 0)
        return stream

    @staticmethod
    def _finish(stream: YamuxStream | None, flags: int) -> None:
        if stream is not None:
            if flags & wire.RST:
                stream.on_reset()
            elif flags & wire.FIN:
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
