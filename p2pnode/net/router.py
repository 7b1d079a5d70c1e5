"""``Router``: the protocols that this node serves, each handler guarded, counted and capped.

A handler's exception ends its stream only, is logged, and counts against the peer. A stream above a cap is
reset before its handler sees it. This module doesn't know what the protocols say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
import trio

from p2pnode.errors import RemoteError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.admission import Standing, StreamPlaces
from p2pnode.net.negotiation import answer
from p2pnode.net.stream import Stream
from p2pnode.net.swarm import Connection
from p2pnode.net.yamux import YamuxStream
from p2pnode.shares import Origin
from p2pnode.tasks import Guard

log = structlog.get_logger()

_K = TypeVar("_K")
Handler = Callable[[Stream], Awaitable[None]]


@dataclass(slots=True)
class _Served:
    handler: Handler
    streams_per_peer: int
    idle_s: float | None
    places: StreamPlaces
    open: Counter[PeerId] = field(default_factory=Counter)


class Router:
    """Serves the streams that peers open, and counts failures."""

    def __init__(
        self,
        limits: Limits,
        guard: Guard,
        origin_of: Callable[[PeerId], Origin],
        standing_of: Callable[[PeerId], Standing],
    ) -> None:
        self._limits, self._guard = limits, guard
        self._origin_of, self._standing_of = origin_of, standing_of
        self._served: dict[str, _Served] = {}
        self._open: Counter[PeerId] = Counter()
        self.accepting = True
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    @property
    def protocols(self) -> frozenset[str]:
        """What is served now."""
        return frozenset(self._served)

    def serve(
        self, protocol: str, handler: Handler, *, streams_per_peer: int | None, idle_s: float | None
    ) -> None:
        """Call ``handler`` for each stream of ``protocol``; see ``Network.serve``."""
        cap = self._limits.streams_per_peer if streams_per_peer is None else streams_per_peer
        places = StreamPlaces(self._limits.streams_per_protocol, self._standing_of)
        self._served[protocol] = _Served(handler, cap, idle_s, places)

    async def run(self, connection: Connection, raw: YamuxStream) -> None:
        """Serve one stream, from the negotiation of its protocol to its end."""
        with trio.move_on_after(self._limits.stream_open_deadline_s) as negotiation:
            protocol = await answer(raw, self._served)
        if negotiation.cancelled_caught:
            raw.reset()
            return
        peer, served = connection.peer, self._served[protocol]
        if not self._enters(served, peer, raw):
            self.refused[protocol] += 1
            raw.reset()
            return
        self._open[peer] += 1
        served.open[peer] += 1
        try:
            stream = Stream(
                raw,
                peer=peer,
                protocol=protocol,
                remote_addr=connection.address or None,
                idle_s=served.idle_s,
            )
            await self._run(served.handler, stream)
        finally:
            served.places.leave(raw)
            _take(self._open, peer)
            _take(served.open, peer)

    def _enters(self, served: _Served, peer: PeerId, raw: YamuxStream) -> bool:
        if (
            not self.accepting
            or self._open[peer] >= self._limits.streams_per_peer
            or served.open[peer] >= served.streams_per_peer
        ):
            return False
        entered, victim = served.places.admit(raw, self._origin_of(peer))
        if victim is not None:
            victim.reset()
        return entered

    async def _run(self, handler: Handler, stream: Stream) -> None:
        try:
            await handler(stream)
        except RemoteError as error:
            self.failed[stream.protocol] += 1
            log.info("stream.peer_failed", peer=stream.peer, protocol=stream.protocol, error=str(error))
            await stream.reset()
        except Exception as error:  # noqa: BLE001  it ends that stream, and is counted
            self.failed[stream.protocol] += 1
            self._guard.note(stream.protocol, error)
            await stream.reset()
        except BaseException:
            await stream.reset()  # cancelled: the peer should learn at once
            raise
        else:
            await stream.aclose()


def _take(counter: Counter[_K], key: _K) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
