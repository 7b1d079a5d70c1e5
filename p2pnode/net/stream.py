"""A byte stream with a peer: what protocols are spoken over.

Deadlines are the caller's cancel scopes. A cancelled ``send_all`` may have sent a part: close the stream.
Knows nothing of frames.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pnode.errors import UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net.yamux import StreamLostError, YamuxStream


class Stream:
    """One stream. ``receive_some`` and ``send_all`` may run at the same time, each in one task."""

    def __init__(
        self,
        stream: YamuxStream,
        *,
        peer: PeerId,
        protocol: str,
        remote_addr: str | None,
        idle_s: float | None = None,
    ) -> None:
        self.peer = peer
        self.protocol = protocol
        self.remote_addr = remote_addr
        self._stream = stream
        self._idle_s = idle_s
        self._closed = False

    async def send_all(self, data: bytes) -> None:
        """Send all of ``data``; waits while the other side doesn't read.

        Raises ``UnreachableError`` when the other side is gone or this stream was closed.
        """
        if self._closed:
            raise UnreachableError("this stream was closed on our side")
        try:
            await self._stream.write(data)
        except StreamLostError as error:
            raise UnreachableError(f"{self.peer} is gone or aborted the stream while we sent") from error

    def send_now(self, data: bytes) -> bool:
        """Send all of ``data`` if that takes no wait. False where it would, or the stream is over: then
        nothing was sent."""
        return not self._closed and self._stream.write_now(data)

    def queue_now(self, data: bytes) -> bool:
        """The same, together with what other streams of the connection say in this moment."""
        return not self._closed and self._stream.queue_now(data)

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Between 1 and ``max_bytes`` bytes, or ``b""`` when the other side has finished.

        Raises ``UnreachableError`` when it aborted the stream, is gone, or was silent for too long.
        """
        if self._closed:
            raise UnreachableError("this stream was closed on our side")
        try:
            if self._idle_s is None:
                return await self._stream.read(max_bytes)
            with trio.move_on_after(self._idle_s):
                return await self._stream.read(max_bytes)
        except StreamLostError as error:
            raise UnreachableError(f"{self.peer} is gone or aborted the stream while we read") from error
        raise UnreachableError(f"{self.peer} has said nothing for {self._idle_s:g} s")

    def take_with(self, taker: Callable[[bytes | bytearray], bool]) -> None:
        """While a task waits in :meth:`receive_some`, offer ``taker`` first what comes. True: it took all.

        It runs in the task of the connection, and neither waits nor raises.
        """
        self._stream.taker = taker

    async def send_eof(self) -> None:
        """Tell the other side that nothing more will be sent; reading goes on. Never raises."""
        self._stream.close_write()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """End both directions. Never raises."""
        if not self._closed:
            self._closed = True
            self._stream.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        """Abort both directions. Never raises."""
        if not self._closed:
            self._closed = True
            self._stream.reset()
        await trio.lowlevel.cancel_shielded_checkpoint()
