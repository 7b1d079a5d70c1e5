"""``Router``: the protocols that this node serves, each handler guarded, counted and capped.

A handler's exception ends its stream only, is logged, and counts against the peer. A stream above the cap is
reset before its handler sees it. This module doesn't know what the protocols say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import structlog
from libp2p.abc import IMuxedStream, INetStream
from libp2p.custom_types import StreamHandlerFn
from libp2p.network.stream.net_stream import NetStream

from p2pnode.errors import RemoteError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.admission import idlest_stream
from p2pnode.net.multiaddrs import from_id
from p2pnode.net.stream import Stream
from p2pnode.net.swarm import NodeConnection
from p2pnode.shares import FairShares, Origin
from p2pnode.tasks import Guard

log = structlog.get_logger()

_K = TypeVar("_K")
Handler = Callable[[Stream], Awaitable[None]]


class Router:
    """Makes guarded stream handlers, and counts their failures."""

    def __init__(self, limits: Limits, guard: Guard, origin_of: Callable[[PeerId], Origin]) -> None:
        self._limits, self._guard, self._origin_of = limits, guard, origin_of
        self._open: Counter[PeerId] = Counter()
        self._open_protocol: Counter[tuple[PeerId, str]] = Counter()
        self.accepting = True
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.faults: Counter[PeerId] = Counter()

    def guard(
        self, protocol: str, handler: Handler, streams_per_peer: int | None, idle_s: float | None
    ) -> StreamHandlerFn:
        """The handler that the host calls for each inbound stream of ``protocol``."""
        cap = self._limits.streams_per_peer if streams_per_peer is None else streams_per_peer
        places: FairShares[IMuxedStream] = FairShares(self._limits.streams_per_protocol)

        async def handle(raw: INetStream) -> None:
            peer = from_id(raw.muxed_conn.peer_id)
            key = (peer, protocol)
            if (
                not self.accepting
                or self._open[peer] >= self._limits.streams_per_peer
                or self._open_protocol[key] >= cap
            ):
                self.refused[protocol] += 1
                await raw.reset()
                return
            muxed = cast("NetStream", raw).muxed_stream
            entered, victim = places.enter(muxed, self._origin_of(peer), idlest_stream)
            if not entered or victim is not None:
                self.refused[protocol] += 1
                await (victim or muxed).reset()
                if not entered:
                    return
            stream = wrap(raw, peer, protocol, idle_s=idle_s)
            self._open[peer] += 1
            self._open_protocol[key] += 1
            try:
                await self._run(handler, stream)
            finally:
                places.leave(muxed)
                self._take(self._open, peer)
                self._take(self._open_protocol, key)

        return handle

    async def _run(self, handler: Handler, stream: Stream) -> None:
        try:
            await handler(stream)
        except RemoteError as error:
            self._count(stream)
            log.info("stream.peer_failed", peer=stream.peer, protocol=stream.protocol, error=str(error))
            await stream.reset()
        except Exception as error:  # noqa: BLE001  it ends that stream, and is counted
            self._count(stream)
            self._guard.note(stream.protocol, error)
            await stream.reset()
        except BaseException:
            await stream.reset()  # cancelled: the peer should learn at once
            raise
        else:
            await stream.aclose()

    def _count(self, stream: Stream) -> None:
        self.failed[stream.protocol] += 1
        self.faults[stream.peer] += 1
        if len(self.faults) > FAULTS_KEPT:
            self.faults = Counter(dict(self.faults.most_common(FAULTS_KEPT // 2)))

    @staticmethod
    def _take(counter: Counter[_K], key: _K) -> None:
        counter[key] -= 1
        if counter[key] <= 0:
            del counter[key]


FAULTS_KEPT = 1024


def wrap(
    raw: INetStream,
    peer: PeerId,
    protocol: str,
    *,
    idle_s: float | None = None,
) -> Stream:
    """Our stream over one of the library's."""
    address = None
    if isinstance(raw, NetStream) and isinstance(raw.swarm_conn, NodeConnection):
        address = raw.swarm_conn.address or None
    return Stream(raw, peer=peer, protocol=protocol, remote_addr=address, idle_s=idle_s)
