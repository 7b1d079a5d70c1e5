"""``Swarm``: connections in and out, with limits and deadlines, in one nursery; and ``Connection``.

There is no automatic connector, pruner, retry loop or negative cache: the node decides whom to dial, and when
again. Each inbound stream runs its handler in a task of the nursery, and an exception there resets that
stream and is logged, nothing more. This module knows nothing of protocols.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

import structlog
import trio
from libp2p.abc import IRawConnection, ITransport
from libp2p.io.abc import ReadWriteCloser
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.errors import ConfigError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.address_policy import AddressPolicy, nearest_first, scope_of
from p2pnode.net.admission import ConnectionPlaces, Handshakes, Standing, StreamPlaces
from p2pnode.net.multiaddrs import check_address, host_of, without_peer
from p2pnode.net.pace import ByteShares
from p2pnode.net.upgrader import Upgrader
from p2pnode.net.yamux import Yamux, YamuxStream
from p2pnode.scopes import ip_of
from p2pnode.shares import Origin
from p2pnode.tasks import Guard

log = structlog.get_logger()

DIAL_STAGGER_S: Final = 0.25
"""The next address is tried when the last one failed, or after this long."""
ADDRESSES_MAX: Final = 8
CONNECTIONS_PER_PEER: Final = 4
STREAMS_PER_S: Final = 64.0
STREAMS_BURST: Final = 256.0
"""A connection's streams are served as fast as this after a burst: who opens more of them waits."""
FEW_PER_S: Final = 0.5
FEW_BURST: Final = 8.0
"""Streams of a connection that are never put off because the node is behind: a peer that begins to talk opens
a few at once, and may have a flooder for a neighbour."""
REACHED_MAX: Final = 1024
NAMES_AT_ONCE: Final = 8
"""Names of strangers that are looked up at the same time. A look-up takes one of the 40 threads that the
whole process has, for its disks too, and keeps it until the resolver gives up, whoever waits no more."""
NAMES_WAITING: Final = 32


OriginRule = Callable[[str | None, PeerId], Origin]


@dataclass(slots=True)
class _Dial:
    """A dial under way. Tasks that want the same peer wait for it."""

    asked: set[str]
    over: trio.Event = field(default_factory=trio.Event)
    failure: str = ""


class Swarm:
    """See the module. It can be used once ``nursery`` is set.

    ``serve`` runs a stream that a peer opened. ``refuses`` says for which fault a peer may not come, or None;
    ``standing_of`` what the node's role knows of a peer; ``origin_rule`` where a peer at an address comes
    from. ``changed`` hears of each connection when it is there, and when it is gone.
    """

    def __init__(
        self,
        *,
        upgrader: Upgrader,
        transports: Sequence[ITransport],
        limits: Limits,
        policy: AddressPolicy,
        serve: Callable[[Connection, YamuxStream], Awaitable[None]],
        refuses: Callable[[PeerId], str | None],
        standing_of: Callable[[PeerId], Standing],
        origin_rule: OriginRule,
        changed: Callable[[PeerId], None],
    ) -> None:
        self.limits = limits
        self.nursery: trio.Nursery | None = None
        self.transports = list(transports)
        self.policy = policy
        self.serve = serve
        self.origin_rule = origin_rule
        self.handshakes = Handshakes(limits, random.random)
        self.places: ConnectionPlaces[Connection] = ConnectionPlaces(limits.connections_max, standing_of)
        self.stream_places = StreamPlaces(limits.streams_max, standing_of)
        self.bytes = ByteShares()
        self.guard = Guard()
        self.refused: Counter[str] = Counter()
        self.dials: Counter[str] = Counter()
        self._upgrader = upgrader
        self._refuses, self._changed = refuses, changed
        self._connections: dict[PeerId, list[Connection]] = {}
        self._reached: BoundedMap[PeerId, str] = BoundedMap(REACHED_MAX)
        self._dialling: dict[PeerId, _Dial] = {}
        self._closing = False
        self._look_ups = trio.CapacityLimiter(NAMES_AT_ONCE)
        self._names = 0
        """Names that are looked up, or wait for it."""

    def reached_at(self, peer: PeerId) -> tuple[str, ...]:
        """Where we last dialled ``peer`` with success. We saw this ourselves, so it is trusted."""
        address = self._reached.get(peer)
        return () if address is None else (address,)

    def start_task(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run a task in the swarm's nursery, guarded; does nothing once that is gone."""
        if self.nursery is not None and not self._closing:
            self.nursery.start_soon(self.guard.run, function, *args)

    def live(self, peer: PeerId) -> list[Connection]:
        """The open connections to ``peer``, the one with most streams first."""
        found = [each for each in self._connections.get(peer, ()) if each.is_open]
        return sorted(found, key=lambda connection: -len(connection.muxed.streams))

    def all_live(self) -> Iterable[Connection]:
        """Every open connection."""
        return (each for known in self._connections.values() for each in known if not each.is_closed)

    # Dialling.

    async def dial(self, peer: PeerId, trusted: Sequence[str], heard: Sequence[str] = ()) -> Connection:
        """Connect to ``peer`` at the first address that answers. Raises ``UnreachableError``.

        ``trusted`` addresses are dialled as they are. ``heard`` ones come from strangers, and are dialled
        only where ``policy`` allows it.
        """
        asked = {without_peer(each) for each in (*trusted, *heard)}
        while (earlier := self._dialling.get(peer)) is not None:
            await earlier.over.wait()
            if earlier.failure and asked <= earlier.asked:
                raise UnreachableError(earlier.failure)  # the same addresses would take as long again
        if found := self.live(peer):
            return found[0]
        # No await since the loop saw no other dial: there is only one for each peer.
        self._dialling[peer] = dial = _Dial(asked)
        try:
            return await self._dial(peer, trusted, heard)
        except UnreachableError as error:
            dial.failure = str(error)
            raise
        finally:
            dial.over.set()
            self._dialling.pop(peer, None)

    async def _dial(self, peer: PeerId, trusted: Sequence[str], heard: Sequence[str]) -> Connection:
        with trio.move_on_after(self.limits.dial_deadline_s) as scope:
            return await self._race(peer, await self._usable(peer, trusted, heard))
        if scope.cancelled_caught:
            self.dials["timeout"] += 1
        raise UnreachableError(
            f"no answer from {peer} within {self.limits.dial_deadline_s:g} s at "
            f"{', '.join(dict.fromkeys((*trusted, *heard)))}. It is not running, or a router or firewall "
            "lets nobody in: its owner can forward the port, and announce the address with --announce."
        )

    async def _usable(self, peer: PeerId, trusted: Sequence[str], heard: Sequence[str]) -> list[Multiaddr]:
        if peer == self._upgrader.peer:
            raise UnreachableError("that is this node's own peer id; dial another node")
        wanted = dict.fromkeys(without_peer(each) for each in trusted)
        strange = [without_peer(each) for each in heard]
        allowed = self.policy.dialable(each for each in strange if each not in wanted)
        for each in allowed[:ADDRESSES_MAX]:
            wanted.update(dict.fromkeys(await self._resolved(each)))
        usable = []
        for each in nearest_first(wanted):
            with contextlib.suppress(ConfigError):  # an address that we can't dial is left out
                usable.append(check_address(each))
        usable = [address for address in usable if self._transport_for(address) is not None]
        if not usable:
            raise UnreachableError(_no_address(peer, strange))
        return usable[:ADDRESSES_MAX]

    async def _resolved(self, address: str) -> tuple[str, ...]:
        """A stranger's address, or the addresses that its name stands for: a name may lead into our own
        network."""
        _, family, host, rest = address.split("/", maxsplit=3)
        if ip_of(host) is not None:
            return (address,)
        wanted = {"dns4": (socket.AF_INET,), "dns6": (socket.AF_INET6,)}.get(
            family, (socket.AF_INET, socket.AF_INET6)
        )
        found = await self._look_up(host)
        hosts = dict.fromkeys(str(name[0]) for kind, *_, name in found if kind in wanted)
        return self.policy.dialable(
            f"/{'ip6' if ':' in ip else 'ip4'}/{ip}/{rest}" for ip in list(hosts)[:ADDRESSES_MAX]
        )

    async def _look_up(self, name: str) -> list[Any]:
        """What the resolver says of a stranger's name; nothing where too many others are being looked up."""
        if self.nursery is None or self._names >= NAMES_AT_ONCE + NAMES_WAITING:
            return []
        self._names += 1
        found: list[Any] = []
        over = trio.Event()

        async def ask() -> None:
            try:
                async with self._look_ups:
                    found.extend(await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError):
                pass
            finally:
                self._names -= 1
                over.set()

        # A task of its own: whoever waits may be cancelled, and the look-up goes on all the same.
        self.nursery.start_soon(self.guard.run, ask)
        await over.wait()
        return found

    async def _race(self, peer: PeerId, addresses: list[Multiaddr]) -> Connection:
        won: list[Connection] = []
        failures: list[str] = []

        async def attempt(address: Multiaddr, failed: trio.Event) -> None:
            try:
                won.append(await self._dial_one(peer, address))
            except UnreachableError as error:
                failures.append(str(error))
                failed.set()
            else:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                if address is not addresses[-1]:
                    with trio.move_on_after(DIAL_STAGGER_S):
                        await failed.wait()
        if won:
            self.dials["ok"] += 1
            return won[0]
        self.dials["failed"] += 1
        raise UnreachableError("; ".join(failures))

    async def _dial_one(self, peer: PeerId, address: Multiaddr) -> Connection:
        transport = self._transport_for(address)
        if transport is None:
            raise UnreachableError(f"{address}: no transport for it")
        raw: IRawConnection | None = None
        done = False
        try:
            raw = await transport.dial(address)
            muxed = await self._upgrader.upgrade_outbound(raw, peer)
            connection = await self._register(muxed, str(address), inbound=False)
            self._reached.put(peer, str(address))
            done = True
        except OpenConnectionError as error:
            raise UnreachableError(f"could not reach {peer} at {address}: {error}") from error
        except UnreachableError as error:
            raise UnreachableError(f"{address}: {error}") from error
        except Exception as error:
            raise UnreachableError(
                f"{address} doesn't answer as a libp2p node with Noise and yamux ({type(error).__name__})"
            ) from error
        finally:
            if raw is not None and not done:
                await _close_quietly(raw)
        return connection

    def _transport_for(self, address: Multiaddr) -> ITransport | None:
        return next((t for t in self.transports if cast("Any", t).can_dial(address)), None)

    # Accepting.

    async def accept(
        self,
        stream: ReadWriteCloser,
        upgrade: Callable[[], Awaitable[ReadWriteCloser]] | None = None,
    ) -> None:
        """Serve one inbound connection, from its first byte to its end. It keeps its place until then."""
        remote = stream.get_remote_address()
        scope = trio.CancelScope()
        origin = self._origin_before_handshake(remote)
        ticket = None if self._closing else self.handshakes.enter(origin, scope.cancel)
        if ticket is None:
            await _close_quietly(stream)
            return
        try:
            scope.deadline = trio.current_time() + self.limits.handshake_deadline_s
            connection: Connection | None = None
            with scope:
                await cast("Any", stream).wait_readable()
                await self.handshakes.begin(ticket)
                bytestream = stream if upgrade is None else await upgrade()
                muxed = await self._upgrader.upgrade_inbound(bytestream)
                connection = await self._register(muxed, _address(remote), inbound=True)
            self.handshakes.settle(ticket)
            if connection is None:
                self.refused["handshake_deadline"] += 1
                log.debug("connection.handshake_dropped", remote=_address(remote))
                return
            await connection.muxed.event_closed.wait()
        except Exception as error:  # noqa: BLE001  whatever a stranger sends ends that connection only
            self.refused["handshake"] += 1
            log.debug(
                "connection.refused",
                remote=_address(remote),
                error=f"{type(error).__name__}: {str(error)[:200]}",
            )
        finally:
            self.handshakes.leave(ticket)
            await _close_quietly(stream)

    def _origin_before_handshake(self, remote: tuple[str, int] | None) -> Origin:
        """Whom a connection counts against while nobody knows who it is: where it comes from, or its host."""
        host = remote[0] if remote is not None else "unknown"
        return self.origin_rule(host, PeerId(f"at {host}"))

    def _take_place(self, connection: Connection) -> None:
        """Raise ``UnreachableError`` where there is none. Another connection may be closed for this one."""
        origin = self.origin_rule(host_of(connection.address) or None, connection.peer)
        entered, victim = self.places.admit(connection, origin)
        if not entered:
            self.refused["connections"] += 1
            raise UnreachableError("this node is at its limit of connections")
        if victim is not None:
            self.refused["evicted"] += 1
            self.forget(victim)  # nothing more is opened on it
            self.start_task(victim.close)
        connection.muxed.pace = partial(self.bytes.read, origin)

    def paced(self, connection: Connection, now: float) -> float:
        """Note a stream that a peer opened; the seconds until its next one is served."""
        if connection not in self.places:
            return 0.0
        origin = self.places.origin(connection)
        return self.bytes.opened(origin, self.places.held_within(origin.wide), now)

    async def close_idle(self) -> None:
        """Close inbound connections that nobody has used for long, again and again. Runs until cancelled."""
        while True:
            await trio.sleep(self.limits.connection_idle_s / 10)
            before = trio.current_time() - self.limits.connection_idle_s
            for connection in list(self.all_live()):
                if connection.inbound and not connection.muxed.streams and connection.active_at < before:
                    self.refused["idle"] += 1
                    self.start_task(connection.close)

    async def _register(self, muxed: Yamux, address: str, *, inbound: bool) -> Connection:
        peer = muxed.peer
        if self._closing or self.nursery is None:
            raise UnreachableError("this node is shutting down")
        if (fault := self._refuses(peer)) is not None:
            self.refused["conduct"] += 1
            raise UnreachableError(f"this node left {peer} for {fault}: try again in some minutes")
        if inbound and peer == self._upgrader.peer:
            raise UnreachableError("that is this node's own peer id")
        if inbound and len(self.live(peer)) >= CONNECTIONS_PER_PEER:
            # A peer that moved to another network can't end what it had: the new one is the one it uses.
            idlest = min((each for each in self.live(peer) if each.inbound), key=_active_at, default=None)
            if idlest is None:
                raise UnreachableError("too many connections with this peer")
            self.forget(idlest)
            self.start_task(idlest.close)
        connection = Connection(muxed, self, inbound=inbound, address=address)
        self._take_place(connection)
        self.nursery.start_soon(self.guard.run, muxed.start)
        try:
            await muxed.event_started.wait()
        except BaseException:
            self.places.leave(connection)
            raise
        if connection.is_closed:
            raise UnreachableError("this node is at its limit of connections")
        self._connections.setdefault(peer, []).append(connection)
        self.nursery.start_soon(self.guard.run, connection.run)
        self._changed(peer)
        return connection

    def forget(self, connection: Connection) -> None:
        """Note that a connection is gone, or about to be."""
        self.places.leave(connection)
        known = self._connections.get(connection.peer, [])
        if connection in known:
            known.remove(connection)
            if not known:
                del self._connections[connection.peer]
            self._changed(connection.peer)

    async def close_peer(self, peer: PeerId) -> None:
        """Close every connection to ``peer``."""
        async with trio.open_nursery() as nursery:
            for connection in list(self._connections.get(peer, ())):
                nursery.start_soon(connection.close)

    async def close(self) -> None:
        """Close every connection; the listeners are closed before, by their owner."""
        async with trio.open_nursery() as nursery:
            for connection in list(self.all_live()):
                nursery.start_soon(connection.close)
        self._closing = True


def _active_at(connection: Connection) -> float:
    return connection.active_at


def _no_address(peer: PeerId, heard: Sequence[str]) -> str:
    scopes = {scope_of(each) for each in heard} - {None}
    if not scopes:
        which = f" (of {', '.join(heard)})" if heard else ""
        return f"no address of {peer} that this node can dial is known{which}"
    return (
        f"{peer} is known by addresses of its own network only ({', '.join(heard)}): it is behind a router "
        "that lets nobody in. Its owner can forward a port and start it with --announce; from the same "
        "network, dial it with --peer"
    )


async def _close_quietly(closer: Any) -> None:
    with trio.move_on_after(1.0, shield=True), contextlib.suppress(Exception):  # it is closed either way
        await closer.close()


def _address(remote: tuple[str, int] | None) -> str:
    if remote is None:
        return ""
    return f"/{'ip6' if ':' in remote[0] else 'ip4'}/{remote[0]}/tcp/{remote[1]}"


# ---- one connection


class Connection:
    """One connection: a muxer, who is at its other end, and where."""

    def __init__(self, muxed: Yamux, swarm: Swarm, *, inbound: bool, address: str) -> None:
        self.muxed = muxed
        self.inbound = inbound
        self.address = address
        """A multiaddr; empty where it isn't known."""
        self.is_closed = False
        self._swarm = swarm
        self._streams = TokenBucket(STREAMS_PER_S, STREAMS_BURST)
        self._few = TokenBucket(FEW_PER_S, FEW_BURST)

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self.muxed.peer

    @property
    def is_open(self) -> bool:
        """Whether streams can be opened on it."""
        return not self.is_closed and self.muxed.is_established

    @property
    def active_at(self) -> float:
        """When bytes of a stream last came or went."""
        return self.muxed.active_at

    async def run(self) -> None:
        """Serve the streams that the peer opens; close when the muxer has ended."""
        async for stream in self.muxed.opened_by_peer:
            self._swarm.start_task(self._serve, stream)
            now = trio.current_time()
            paced_s = self._swarm.paced(self, now)
            if wait_s := max(self._streams.wait_s(now), 0.0 if self._few.take(now) else paced_s):
                await trio.sleep(wait_s)
            self._streams.spend(1)
        await self.close()

    async def close(self) -> None:
        """End the connection; bounded by the muxer's own deadlines."""
        if self.is_closed:
            return
        self.is_closed = True
        self._swarm.forget(self)
        with trio.move_on_after(self._swarm.limits.close_deadline_s):
            await self.muxed.close()

    async def _serve(self, stream: YamuxStream) -> None:
        places = self._swarm.stream_places
        if self not in self._swarm.places:
            stream.reset()
            return
        entered, victim = places.admit(stream, self._swarm.places.origin(self))
        if not entered or victim is not None:
            self._swarm.refused["streams"] += 1
            (victim or stream).reset()
            if not entered:
                return
        try:
            await self._swarm.serve(self, stream)
        except Exception as error:  # noqa: BLE001  a peer's fault ends that stream only
            log.debug("stream.failed", peer=self.peer, error=f"{type(error).__name__}: {error}")
            stream.reset()
        finally:
            places.leave(stream)
