"""One connection of the swarm and its streams, without the library's locks, sleeps and leaks.

Each inbound stream runs its handler in a task of the swarm's nursery; an exception there resets that
stream and is an event, nothing more. Knows nothing of protocols.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import structlog
import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.exceptions import StreamClosed, StreamEOF, StreamReset
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
)

from p2pnode.net.multiaddrs import from_id

if TYPE_CHECKING:
    from p2pnode.net.swarm import NodeSwarm

log = structlog.get_logger()


class NodeStream(NetStream):
    """The library's stream over ours: the muxer keeps the state, so no lock is taken per call."""

    async def read(self, n: int | None = None) -> bytes:
        """Between 1 and ``n`` bytes; ``StreamEOF`` at the end, ``StreamReset`` on loss."""
        try:
            return await self.muxed_stream.read(n)
        except MuxedStreamEOF:
            raise StreamEOF from None
        except MuxedStreamError as error:
            self._state = StreamState.RESET
            raise StreamReset(str(error)) from None

    async def write(self, data: bytes) -> None:
        """All of ``data``, into the muxer's queue."""
        try:
            await self.muxed_stream.write(data)
        except MuxedStreamClosed as error:
            raise StreamClosed(str(error)) from None
        except MuxedStreamError as error:
            self._state = StreamState.RESET
            raise StreamReset(str(error)) from None

    async def close(self) -> None:
        """Finish both ways."""
        if self._state is not StreamState.RESET:
            self._state = StreamState.CLOSE_BOTH
        await self.muxed_stream.close()
        await self.remove()

    async def reset(self) -> None:
        """Abort both ways."""
        self._state = StreamState.RESET
        await self.muxed_stream.reset()
        await self.remove()


class NodeConnection(SwarmConn):
    """See the module docstring. ``start`` accepts streams until the connection ends."""

    swarm: NodeSwarm

    def __init__(self, muxed_conn: IMuxedConn, swarm: NodeSwarm, *, direction: str, address: str) -> None:
        super().__init__(muxed_conn, swarm, direction=direction)
        self.peer = from_id(muxed_conn.peer_id)
        self.inbound = direction == "inbound"
        self.address = address
        self.since = trio.current_time()
        self.streams_inbound = 0
        self.streams_app = 0

    @property
    def busy(self) -> bool:
        """Whether anything but the bare connection is in use."""
        return self.streams_inbound > 0 or self.streams_app > 0

    async def start(self) -> None:
        """Accept streams; close when the muxer has ended."""
        self.event_started.set()
        while not self.event_closed.is_set():
            try:
                stream = await self.muxed_conn.accept_stream()
            except (MuxedConnUnavailable, MuxedStreamError):
                break
            except Exception as error:  # noqa: BLE001  nobody accepts its streams any more, so it must end
                self.swarm.guard.note("accept_stream", error)
                break
            self.swarm.start_task(self._handle_muxed_stream, stream)
        await self.close()

    async def close(self) -> None:
        """End the connection; bounded by the muxer's own deadlines."""
        if self.event_closed.is_set():
            return
        self.event_closed.set()
        self.swarm.remove_conn(self)
        try:
            with trio.move_on_after(self.swarm.limits.close_deadline_s):
                await self.muxed_conn.close()
        except Exception as error:  # noqa: BLE001  it is closed either way
            log.debug("connection.close_failed", peer=self.peer, error=repr(error))
        finally:
            self.swarm.start_task(self.swarm.notify_disconnected, self)

    async def _add_stream(self, muxed_stream: IMuxedStream) -> NetStream:
        kind = NodeStream if self.swarm.fast else NetStream
        stream = kind(muxed_stream, self, None)
        await stream.set_state(StreamState.OPEN)
        self.streams.add(stream)
        return stream

    async def _handle_muxed_stream(self, muxed_stream: IMuxedStream) -> None:
        limits = self.swarm.limits
        if self.swarm.streams_inbound >= limits.streams_max:
            self.swarm.refused["streams"] += 1
            await muxed_stream.reset()
            return
        self.swarm.streams_inbound += 1
        self.streams_inbound += 1
        stream: NetStream | None = None
        try:
            stream = await self._add_stream(muxed_stream)
            await self.swarm.common_stream_handler(stream)
        except Exception as error:  # noqa: BLE001  a peer's fault ends that stream only
            log.debug("stream.failed", peer=self.peer, error=f"{type(error).__name__}: {error}")
            with trio.move_on_after(limits.close_deadline_s), contextlib.suppress(Exception):
                await (stream or muxed_stream).reset()
        finally:
            self.swarm.streams_inbound -= 1
            self.streams_inbound -= 1
            if stream is not None:
                self.remove_stream(stream)
