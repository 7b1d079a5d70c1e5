"""``Wires``: a network of several nodes for one of their services, with the very latencies of a simulation.

What is sent arrives after the latency of its way, in order, and a stream is there for the other side after
one. Nothing else takes time: no handshake, no bandwidth. A :class:`Port` is the ``GossipNetwork`` of a node.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import trio

from p2pnode.errors import UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net.router import Handler
from p2pnode.net.stream import Stream
from p2pnode.shares import Origin, origin_of
from p2pnode.simulations.links import LinkModel, Place


class Wires:
    """Carries what is under way. ``run`` is a task that never ends.

    ``negotiates``: a stream can be used after a round trip, in which its protocol is agreed on.
    """

    def __init__(self, links: LinkModel, *, negotiates: bool = False) -> None:
        self._links, self.negotiates = links, negotiates
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._alarm: trio.CancelScope | None = None

    async def run(self) -> None:
        """Hand over what arrives, when it does."""
        while True:
            with trio.CancelScope(deadline=self._due[0][0] if self._due else math.inf) as self._alarm:
                await trio.sleep_forever()
            self._alarm = None
            while self._due and self._due[0][0] <= trio.current_time():
                heapq.heappop(self._due)[2]()

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Call ``action`` then; those of one moment in the order of these calls."""
        heapq.heappush(self._due, (when, next(self._numbers), action))
        if self._alarm is not None:
            self._alarm.deadline = self._due[0][0]

    def connect(self, dialler: Port, other: Port) -> None:
        """Both sides have the connection at once, and know what the other one speaks. They may have one."""
        if other.peer in dialler.connections:
            return
        connection = Connection(self, self._links.latency_s(dialler.place, other.place), dialler, other)
        dialler.connections[other.peer] = other.connections[dialler.peer] = connection
        dialler.told(other.peer, "identified")
        other.told(dialler.peer, "identified")


class Way:
    """One direction of a connection."""

    def __init__(self, wires: Wires, sender: Port, receiver: Port, latency_s: float) -> None:
        self.sender, self.receiver, self.latency_s = sender, receiver, latency_s
        self._wires = wires
        self._last_at = 0.0

    def carry(self, action: Callable[[], object]) -> None:
        """Call ``action`` when what is sent now arrives, which is not before what was sent earlier."""
        self._last_at = max(self._last_at, trio.current_time() + self.latency_s)
        self._wires.at(self._last_at, action)


class Connection:
    """Between two ports."""

    def __init__(self, wires: Wires, latency_s: float, dialler: Port, other: Port) -> None:
        self.dialler = dialler
        self.ways = {
            dialler: Way(wires, dialler, other, latency_s),
            other: Way(wires, other, dialler, latency_s),
        }
        """By sender."""
        self.is_open = True
        self.ends: list[StreamEnd] = []
        self._wires = wires
        self.negotiates = wires.negotiates

    def beyond(self, port: Port) -> Port:
        """The port on its other side."""
        return self.ways[port].receiver

    def cut_by(self, port: Port) -> None:
        """One side ends it. What is under way is lost, and the other side notices after a latency."""
        self.is_open = False
        self.noticed_by(port)
        at = trio.current_time() + self.ways[port].latency_s
        self._wires.at(at, lambda: self.noticed_by(self.beyond(port)))

    def noticed_by(self, port: Port) -> None:
        """A side learns that it is gone."""
        other = self.beyond(port).peer
        if port.connections.get(other) is self:
            del port.connections[other]
            for end in [each for each in self.ends if each.port is port]:
                end.lose()
            port.told(other, "disconnected")


class StreamEnd:
    """What is used of a :class:`Stream`."""

    def __init__(self, connection: Connection, port: Port, protocol: str) -> None:
        self.port, self.protocol = port, protocol
        self.peer = connection.beyond(port).peer
        self.far: StreamEnd = self
        self._connection, self._way = connection, connection.ways[port]
        self._buffer = bytearray()
        self._taker: Callable[[bytes | bytearray], bool] | None = None
        self._readable: trio.Event | None = None
        self._is_lost = self._is_finished = False
        connection.ends.append(self)

    def send_now(self, data: bytes) -> bool:
        """Nobody here is slow to read."""
        if self._is_lost:
            return False
        self._way.carry(lambda: self.far.arrived(data))
        return True

    async def send_all(self, data: bytes) -> None:
        """The same."""
        if not self.send_now(data):
            raise UnreachableError("the stream is over")
        await trio.lowlevel.checkpoint()

    def arrived(self, data: bytes) -> None:
        """As a stream of the muxer has it: whoever may take it is asked first while a reader waits."""
        if self._is_lost or not self._connection.is_open:
            return
        if self._readable is not None and self._taker is not None and self._taker(data):
            return
        self._buffer += data
        self._wake()

    async def receive_some(self) -> bytes:
        """What came since the last call, and nothing once the other side has finished."""
        while not self._buffer and not self._is_finished:
            if self._is_lost:
                raise UnreachableError("the stream is over")
            self._readable = trio.Event()
            await self._readable.wait()
        data, self._buffer = bytes(self._buffer), bytearray()
        return data

    def take_with(self, taker: Callable[[bytes | bytearray], bool]) -> None:
        """See :class:`Stream`."""
        self._taker = taker

    async def aclose(self) -> None:
        """Our side is over; the other one hears of it after what is under way."""
        if not self._is_lost:
            self.lose()
            self._way.carry(self.far.finish)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def finish(self) -> None:
        """No more comes."""
        self._is_finished = True
        self._wake()

    async def reset(self) -> None:
        """Our side is over; the other one hears of it after a latency."""
        if not self._is_lost:
            self.lose()
            self._way.carry(self.far.lose)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def lose(self) -> None:
        """No more comes or goes."""
        self._is_lost = True
        self._wake()

    def _wake(self) -> None:
        if self._readable is not None:
            self._readable.set()
            self._readable = None


class Port:
    """One node's end of the wires. ``nursery`` is there while the node is up."""

    def __init__(self, peer: PeerId, ip: str, place: Place) -> None:
        self.peer, self.ip, self.place = peer, ip, place
        self.nursery: trio.Nursery | None = None
        self.connections: dict[PeerId, Connection] = {}
        self._handlers: dict[str, Handler] = {}
        self._watchers: list[Callable[[PeerId, Any], object]] = []

    def crash(self) -> None:
        """It is gone without a word. Its peers notice after a latency."""
        assert self.nursery is not None
        self.nursery.cancel_scope.cancel()
        self.nursery = None
        self._handlers.clear()
        self._watchers.clear()
        for connection in list(self.connections.values()):
            connection.cut_by(self)

    def told(self, peer: PeerId, change: str) -> None:
        """Tell the service of a change."""
        for watcher in list(self._watchers):
            watcher(peer, change)

    def accept(self, connection: Connection, end: StreamEnd) -> None:
        """A stream that the other side of a connection has opened."""
        handler = self._handlers.get(end.protocol)
        if connection.is_open and handler is not None and self.nursery is not None:
            self.nursery.start_soon(handler, cast("Stream", end))

    # ---- GossipNetwork

    def serve(self, protocol: str, handler: Handler, *, streams_per_peer: int | None = None) -> None:
        self._handlers[protocol] = handler

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        await trio.lowlevel.checkpoint()
        connection = self.connections.get(peer)
        if connection is None:
            raise UnreachableError("not connected")
        other = connection.beyond(self)
        near, far = StreamEnd(connection, self, protocol), StreamEnd(connection, other, protocol)
        near.far, far.far = far, near
        way = connection.ways[self]
        way.carry(lambda: other.accept(connection, far))
        if connection.negotiates:
            await trio.sleep(2 * way.latency_s)
        return cast("Stream", near)

    def watch_peers(self, callback: Callable[[PeerId, Any], object]) -> None:
        self._watchers.append(callback)

    def speaks(self, peer: PeerId, protocol: str) -> bool | None:
        return True

    def is_connected(self, peer: PeerId) -> bool:
        return peer in self.connections

    def origin_of(self, peer: PeerId) -> Origin:
        return origin_of(self.connections[peer].beyond(self).ip, peer)

    def is_dialled(self, peer: PeerId) -> bool:
        return self.connections[peer].dialler is self

    def charge(self, peer: PeerId, fault: str, weight: float) -> Any:
        return "ok"
