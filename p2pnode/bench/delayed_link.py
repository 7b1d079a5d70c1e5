"""A TCP link of loopback with a round trip as long as one wants, in this process.

What comes in on its port goes to another port of loopback half a round trip later, and back. Bandwidth is not
limited; a link that is full (a window of 4,096 pieces of at most 64 KiB) waits, as TCP does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

_READ_BYTES: Final = 1 << 16
_PIECES_MAX: Final = 4096
_LOOPBACK: Final = "127.0.0.1"


@asynccontextmanager
async def delayed_link(port: int, round_trip_s: float) -> AsyncIterator[int]:
    """Yields the port that leads to ``port`` of loopback, with this round trip besides its own."""

    async def connected(near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream(_LOOPBACK, port) as far, trio.open_nursery() as nursery:
            nursery.start_soon(_carry, near, far, round_trip_s / 2)
            nursery.start_soon(_carry, far, near, round_trip_s / 2)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, connected, 0, host=_LOOPBACK))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _carry(source: trio.SocketStream, sink: trio.SocketStream, delay_s: float) -> None:
    """One direction, until ``source`` ends; a connection that breaks ends both ways."""
    pieces_in, pieces = trio.open_memory_channel[tuple[float, bytes]](_PIECES_MAX)

    async def read() -> None:
        async with pieces_in:
            while data := await source.receive_some(_READ_BYTES):
                await pieces_in.send((trio.current_time() + delay_s, data))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            async for due, data in pieces:
                await trio.sleep_until(due)
                await sink.send_all(data)
            await sink.send_eof()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.aclose_forcefully(sink)
        await trio.aclose_forcefully(source)
