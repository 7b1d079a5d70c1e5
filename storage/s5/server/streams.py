"""A connection that a silent client can't hold open, and that can be cut at once.

Hypercorn's trio worker shields each send from cancellation and gives it no deadline: one client that
doesn't read keeps the worker from ever ending. Inside the shield a deadline still works, and so does closing
the socket: both are here, and nothing of hypercorn is patched. Whoever cuts a connection cancels what runs
on it as well: hypercorn would leave its reader waiting for a request that nobody takes any more.
"""

from __future__ import annotations

from typing import Final

import trio

_PIECE: Final = 1 << 16
"""Bytes that have to leave within one deadline: a slow reader is not a silent one."""
_AFTERWARDS_S: Final = 1.0


class GuardedStream:
    """A socket stream as hypercorn uses it. ``scope`` is around everything that serves it."""

    def __init__(self, stream: trio.SocketStream, stall_s: float) -> None:
        self._stream, self._stall_s = stream, stall_s
        self.socket = stream.socket
        self.scope = trio.CancelScope()

    def cut(self) -> None:
        """Close it now, whatever is being sent, and end what serves it."""
        self.scope.cancel()
        self.socket.close()

    async def send_all(self, data: bytes) -> None:
        """Send, or cut the connection when the peer takes nothing for ``stall_s`` or is gone."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), _PIECE):
                with trio.fail_after(self._stall_s):
                    await self._stream.send_all(view[start : start + _PIECE])
        except trio.TooSlowError as error:
            self.cut()
            raise trio.BrokenResourceError("the client does not read") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.cut()
            raise

    async def receive_some(self, bytes_max: int) -> bytes | bytearray:
        """Whatever has come; nothing at the end."""
        data = await self._stream.receive_some(bytes_max)
        if not data:
            self._end_soon()  # hypercorn would keep it until its keep-alive is over
        return data

    async def send_eof(self) -> None:
        """No more from us."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close. What still runs on it has nobody to answer, but may take in what came before the end."""
        self._end_soon()
        await self._stream.aclose()

    def _end_soon(self) -> None:
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + _AFTERWARDS_S)
