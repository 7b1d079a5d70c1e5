"""``MemoryNet``: a network in memory, with latency, jitter, loss, partitions and crashes, on trio's clock.

The same :class:`p2pnode.net.network.Network` runs over it, with encryption and muxer, also under
``MockClock`` in virtual time. Addresses look like real ones (``/ip4/10.0.0.7/tcp/4001``). Loss is what TCP
makes of it: a delay. This module knows nothing of peers.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2pnode.errors import ConfigError
from p2pnode.net.multiaddrs import endpoint

RETRANSMIT_S: Final = 0.2
WINDOW_BYTES: Final = 1 << 20
FIRST_PORT: Final = 20000


class MemoryNet:
    """The wires. All randomness comes from ``seed``. Times are in seconds, one way.

    ``latency`` may be asked for each message, with the addresses of its sender and its receiver.
    ``tells_late``: others notice a crash after a latency, as of a process that is killed, and not at once.
    """

    def __init__(
        self,
        *,
        latency: float | Callable[[str, str], float] = 0.02,
        jitter: float = 0.0,
        loss: float = 0.0,
        seed: int = 0,
        tells_late: bool = False,
    ) -> None:
        self._tells_late = tells_late
        self.latency, self.jitter, self.loss = latency, jitter, loss
        self._random = random.Random(seed)  # noqa: S311  a simulation
        self._listeners: dict[tuple[str, int], MemoryListener] = {}
        self._ports = itertools.count(FIRST_PORT)
        self._pipes: dict[tuple[str, str], list[_Pipe]] = {}
        self._down: set[str] = set()
        self._groups: dict[str, int] = {}

    def transport(self, ip: str) -> MemoryTransport:
        """The transport that a node at ``ip`` takes as ``NetworkConfig.transport``."""
        return MemoryTransport(self, ip)

    def crash(self, ip: str) -> None:
        """Cut the power of ``ip``: all its connections die, and nothing reaches it any more."""
        self._down.add(ip)
        if not self._tells_late:
            self._break(lambda a, b: ip in (a, b))
            return
        for (source, target), pipes in self._pipes.items():
            if ip in (source, target):
                at = trio.current_time() + self.delay(ip, target if source == ip else source)
                for pipe in pipes:
                    pipe.lose(at)

    def restart(self, ip: str) -> None:
        """Give ``ip`` power again; what ran there must be started anew."""
        self._down.discard(ip)
        for where in [where for where in self._listeners if where[0] == ip]:
            del self._listeners[where]

    def partition(self, *groups: Iterable[str]) -> None:
        """Addresses of different groups can't reach each other; those in no group reach everyone."""
        self._groups = {ip: number for number, group in enumerate(groups) for ip in group}
        self._break(lambda a, b: not self._joined(a, b))

    def heal(self) -> None:
        """End the partition."""
        self._groups = {}

    def delay(self, source: str, target: str) -> float:
        """The seconds that one message takes, one way."""
        latency = self.latency if isinstance(self.latency, (float, int)) else self.latency(source, target)
        seconds = latency + (self._random.random() * self.jitter if self.jitter else 0.0)
        while self.loss and self._random.random() < self.loss:
            seconds += RETRANSMIT_S
        return seconds

    async def dial(self, source: str, target: tuple[str, int]) -> MemoryStream:
        """A connection, after a round trip."""
        await trio.sleep(2 * self.delay(source, target[0]))
        listener = self._listeners.get(target)
        if source in self._down or target[0] in self._down or not self._joined(source, target[0]):
            await trio.sleep_forever()  # no answer, as from a real network: the caller's deadline decides
        if listener is None or listener.handle is None:
            raise OpenConnectionError("connection refused (nothing listens there)")
        there, back = self._pipe(source, target[0]), self._pipe(target[0], source)
        listener.handle(MemoryStream(there, back, (source, next(self._ports))))
        return MemoryStream(back, there, target)

    def bind(self, listener: MemoryListener, ip: str, port: int) -> tuple[str, int]:
        """Take a port, any for 0."""
        where = (ip, port or next(self._ports))
        if where in self._listeners:
            raise ConfigError(
                f"port {port} on {ip} is already taken. Listen on another port, or on 0 for any."
            )
        self._listeners[where] = listener
        return where

    def release(self, where: tuple[str, int]) -> None:
        """Give a port back."""
        self._listeners.pop(where, None)

    def _pipe(self, source: str, target: str) -> _Pipe:
        pipe = _Pipe(self, source, target)
        pipes = self._pipes.setdefault((source, target), [])
        pipes[:] = [known for known in pipes if not known.ended]
        pipes.append(pipe)
        return pipe

    def _joined(self, a: str, b: str) -> bool:
        return a not in self._groups or b not in self._groups or self._groups[a] == self._groups[b]

    def _break(self, concerns: Callable[[str, str], bool]) -> None:
        for (source, target), pipes in self._pipes.items():
            if concerns(source, target):
                for pipe in pipes:
                    pipe.abort()


class _Pipe:
    """One direction: bytes arrive in order, each after its delay; bounded like a TCP window."""

    def __init__(self, net: MemoryNet, source: str, target: str) -> None:
        self.ended = False
        self._net, self._source, self._target = net, source, target
        self._in_transit: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._last = 0.0
        self._arrived = trio.Event()
        self._room = trio.Event()
        self._aborted = False
        self._lost_at = math.inf
        """From then on who reads knows that the other side is gone."""

    async def push(self, data: bytes) -> None:
        while self._size > WINDOW_BYTES and not self._aborted:
            self._room = trio.Event()
            await self._room.wait()
        self._append_open(data)
        await trio.lowlevel.checkpoint()

    def push_now(self, data: bytes) -> int:
        if self._size > WINDOW_BYTES and not self._aborted:
            return 0
        self._append_open(data)
        return len(data)

    def _append_open(self, data: bytes) -> None:
        if self._aborted or self.ended:
            raise ConnectionClosedError("the connection was lost", transport="memory")
        self._append(data)

    def finish(self) -> None:
        """The writer has closed; what is under way still arrives."""
        if not self.ended:
            self._append(b"")
            self.ended = True

    def abort(self) -> None:
        """The wire is cut."""
        self._aborted = self.ended = True
        self._in_transit.clear()
        self._arrived.set()
        self._room.set()

    def lose(self, at: float) -> None:
        """The other side is gone, with all that is under way. Who reads hears of it at ``at``."""
        self._in_transit.clear()
        self._size, self._lost_at = 0, at
        self._arrived.set()
        self._room.set()

    async def wait_arrival(self) -> None:
        while not self._aborted:
            now = trio.current_time()
            if self._lost_at <= now:
                self.abort()
                return
            at = min(self._lost_at, self._in_transit[0][0] if self._in_transit else math.inf)
            if at <= now:
                return
            with trio.move_on_at(at):
                self._arrived = trio.Event()
                await self._arrived.wait()

    async def pull(self, n: int | None) -> bytes:
        await self.wait_arrival()
        if self._aborted:
            raise ConnectionClosedError("the connection was lost", transport="memory")
        at, data = self._in_transit[0]
        if not data:
            raise ConnectionClosedError("the other side closed the connection", transport="memory")
        self._in_transit.popleft()
        if n is not None and n < len(data):
            self._in_transit.appendleft((at, data[n:]))
            data = data[:n]
        self._size -= len(data)
        self._room.set()
        await trio.lowlevel.checkpoint()
        return data

    def _append(self, data: bytes) -> None:
        if self._lost_at < math.inf:
            return
        self._last = max(self._last, trio.current_time() + self._net.delay(self._source, self._target))
        self._size += len(data)
        self._in_transit.append((self._last, data))
        self._arrived.set()


class MemoryStream(ReadWriteCloser):
    """One end of a connection."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, remote: tuple[str, int]) -> None:
        self._incoming, self._outgoing, self._remote = incoming, outgoing, remote
        self._closed = False

    async def read(self, n: int | None = None) -> bytes:
        """Between 1 and ``n`` bytes. Raises ``ConnectionClosedError`` at the end."""
        if n == 0:
            return b""
        return await self._incoming.pull(n)

    async def wait_readable(self) -> None:
        """Wait until there is something to read, or the end. Reads nothing."""
        await self._incoming.wait_arrival()

    async def write(self, data: bytes) -> None:
        """Send all of ``data``, within the window."""
        await self._outgoing.push(bytes(data))

    def send_now(self, data: bytes) -> int:
        """Send all of ``data`` where the window has room, else nothing; says how much it was."""
        return self._outgoing.push_now(bytes(data))

    async def close(self) -> None:
        """Close; what was written still arrives."""
        if not self._closed:
            self._closed = True
            self._outgoing.finish()
            self._incoming.abort()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other side."""
        return self._remote


class MemoryListener(IListener):
    """Bound to a ``MemoryNet``; used like a ``TcpListener``."""

    def __init__(self, net: MemoryNet, ip: str) -> None:
        self._net, self._ip = net, ip
        self._where: tuple[str, int] | None = None
        self._shown_ip = ip
        self.handle: Callable[[MemoryStream], None] | None = None

    async def bind(self, maddr: Multiaddr) -> None:
        """Take the port. Raises ``ConfigError``."""
        self._shown_ip, port = endpoint(maddr)
        self._where = self._net.bind(self, self._ip, port)

    async def serve(self, accept: Callable[[MemoryStream], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Run each connection as a task of ``nursery`` from now on."""
        self.handle = lambda stream: nursery.start_soon(accept, stream)
        await trio.lowlevel.checkpoint()

    async def listen(self, maddr: Multiaddr) -> None:
        """The library's method; ours is ``bind``."""
        await self.bind(maddr)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """The address it listens on."""
        if self._where is None:
            return ()
        return (Multiaddr(f"/ip4/{self._shown_ip}/tcp/{self._where[1]}"),)

    async def close(self) -> None:
        """Give the port back."""
        self.handle = None
        if self._where is not None:
            self._net.release(self._where)
            self._where = None


class MemoryTransport(ITransport):
    """Connects one address to a ``MemoryNet``."""

    def __init__(self, net: MemoryNet, ip: str) -> None:
        self.net, self.ip = net, ip

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """A connection."""
        return RawConnection(await self.net.dial(self.ip, endpoint(maddr)), True)

    def create_listener(self, handler_function: THandler) -> MemoryListener:
        """An unbound listener; the swarm serves it."""
        del handler_function
        return MemoryListener(self.net, self.ip)

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether it looks like TCP over IPv4."""
        return [protocol.name for protocol in maddr.protocols()][:2] == ["ip4", "tcp"] and "ws" not in str(
            maddr
        )

    def can_listen(self, maddr: Multiaddr) -> bool:
        """The same, on our own address or on all."""
        return self.can_dial(maddr) and endpoint(maddr)[0] in (self.ip, "0.0.0.0")  # noqa: S104  in memory

    def protocols(self) -> list[str]:
        """For the library's routing."""
        return ["tcp"]
