"""A byte stream with a peer: what protocols are spoken over.

Deadlines are the caller's cancel scopes. A cancelled ``send_all`` may have sent a part: close the stream.
Knows nothing of frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.network.stream.net_stream import NetStream

from p2pnode.errors import UnreachableError
from p2pnode.ids import PeerId

CLOSE_S: Final = 1.0


class Stream:
    """One stream. ``receive_some`` and ``send_all`` may run at the same time, each in one task."""

    def __init__(
        self,
        stream: INetStream,
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
        except StreamError as error:
            raise UnreachableError(f"{self.peer} is gone or aborted the stream while we sent") from error

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
        except StreamEOF:
            return b""
        except StreamError as error:
            raise UnreachableError(f"{self.peer} is gone or aborted the stream while we read") from error
        raise UnreachableError(f"{self.peer} has said nothing for {self._idle_s:g} s")

    async def send_eof(self) -> None:
        """Tell the other side that nothing more will be sent; reading goes on. Never raises."""
        await self._bounded(self._close_write)

    async def aclose(self) -> None:
        """End both directions. Bounded; never raises."""
        if self._mark_closed():
            await self._bounded(self._stream.close)

    async def reset(self) -> None:
        """Abort both directions. Bounded; never raises."""
        if self._mark_closed():
            await self._bounded(self._stream.reset)

    def _mark_closed(self) -> bool:
        if self._closed:
            return False
        self._closed = True
        return True

    async def _close_write(self) -> None:
        if isinstance(self._stream, NetStream):
            await self._stream.close_write()

    @staticmethod
    async def _bounded(function: Callable[[], Awaitable[None]]) -> None:
        # It is closed, whatever goes wrong.
        with trio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(Exception):
            await function()
