"""One yamux stream: a bounded receive buffer, credit both ways, no locks and no timers of its own.

A reader that stops costs at most ``window_max`` bytes and stops only this stream's writer, for as long
as the writer's own deadline allows. Credit is given back when half a window was read, not at each read.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import (
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)

from p2pnode.net import yamux_frames as wire

if TYPE_CHECKING:
    from p2pnode.net.yamux import Yamux

FRAME_BODY_MAX: Final = 32 * 1024
"""Small enough that one stream's bulk doesn't hold up another's tokens for long."""
LAST_WORDS_S: Final = 2.0
"""So long after we finished both ways what still comes is dropped without a reset: other implementations
throw away what they have not read yet when one comes, and with it the last we said."""
GROW_WITHIN_S: Final = 0.25
"""Half a window read within this time means that the window, not the reader, is the bottleneck."""


class YamuxStream(IMuxedStream):
    """See the module docstring. Made by :class:`p2pnode.net.yamux.Yamux` only."""

    def __init__(self, conn: Yamux, stream_id: int, *, window_max: int, inbound: bool) -> None:
        self.muxed_conn = conn
        self.stream_id = stream_id
        self.inbound = inbound
        self.send_window = wire.WINDOW_INITIAL
        self.recv_window = wire.WINDOW_INITIAL
        self.read_closed = False
        self.write_closed = False
        self.was_reset = False
        self.discarding = False
        self.closed_at = 0.0
        self._conn = conn
        self._buffer = bytearray()
        self._target = wire.WINDOW_INITIAL
        self._window_max = max(window_max, wire.WINDOW_INITIAL)
        self._unacknowledged = 0
        self._credited_at = 0.0
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self._write_lock = trio.Lock()

    async def read(self, n: int | None = None) -> bytes:
        """At least one and at most ``n`` bytes. Doesn't yield when bytes are at hand."""
        buffer = self._buffer
        while not buffer:
            if self.was_reset:
                raise MuxedStreamReset("the stream was reset")
            if self.read_closed:
                raise MuxedStreamEOF("the other side finished writing")
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
        """Hand all of ``data`` to the connection; waits for credit and for room in its queue."""
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
            await self._conn.wait_room()
        finally:
            self._write_lock.release()

    async def _wait_writable(self) -> None:
        await self._conn.wait_room()
        while True:
            if self.was_reset:
                raise MuxedStreamReset("the stream was reset")
            if self.write_closed:
                raise MuxedStreamClosed("this side has finished writing")
            if self.send_window > 0:
                return
            if self._writable is None:
                self._writable = trio.Event()
            await self._writable.wait()

    async def close_write(self) -> None:
        """Tell the other side that nothing more will come; reading goes on."""
        if not self.write_closed and not self.was_reset:
            self.write_closed = True
            self._conn.send_control(wire.WINDOW_UPDATE, wire.FIN, self.stream_id, 0)
            self._wake()
            self._settle()

    async def close(self) -> None:
        """Finish both ways: what still comes is refused."""
        await self.close_write()
        self.discarding = True
        self._buffer.clear()
        self._settle()

    async def reset(self) -> None:
        """Abort both ways at once."""
        self.reset_nowait()

    def reset_nowait(self) -> None:
        """The same, for callers that can't wait."""
        if not self.was_reset and not (self.write_closed and self.read_closed):
            self._conn.send_control(wire.WINDOW_UPDATE, wire.RST, self.stream_id, 0)
        self._buffer.clear()
        self.on_reset()

    def set_deadline(self, ttl: int) -> None:
        """Deadlines are the caller's cancel scopes."""
        raise NotImplementedError("put the call in a cancel scope instead")

    def get_remote_address(self) -> tuple[str, int] | None:
        """Where the connection goes."""
        return self._conn.get_remote_address()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        del exc_type, exc_val, exc_tb
        await self.close()

    # What the connection calls; none of it waits.

    def on_data(self, data: bytes | bytearray) -> None:
        """Bytes within the credit that the connection has checked."""
        if self.discarding:
            listened_to = trio.current_time() < self.closed_at + LAST_WORDS_S and self.recv_window > 0
            if not listened_to:
                self.reset_nowait()  # the writer should learn that nobody listens
        elif not self.was_reset:
            self._buffer += data
            self._wake_reader()

    def on_credit(self, increment: int) -> None:
        """The other side may be sent this much more."""
        self.send_window += increment
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def on_end(self) -> None:
        """FIN."""
        self.read_closed = True
        self._wake_reader()
        self._settle()

    def on_reset(self) -> None:
        """RST, ours or theirs. What came before theirs stays readable, as when the connection is lost."""
        self.was_reset = True
        self._wake()
        self._conn.forget(self)

    def on_connection_lost(self) -> None:
        """What has arrived whole stays readable; the rest is an error."""
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
            self._conn.send_control(wire.WINDOW_UPDATE, 0, self.stream_id, increment)

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
