"""``NodeSwarm``: connections in and out, with limits and deadlines, in one nursery; and
``NodeConnection``.

Built on the library's ``Swarm`` because its host, gossip and DHT expect its connection table and notifees.
Dialling, accepting and closing are ours. There is no automatic connector, pruner, retry loop or negative
cache: the node decides whom to dial, and when again. A connection has none of the library's locks, sleeps and
leaks: each inbound stream runs its handler in a task of the nursery, and an exception there resets that
stream and is logged, nothing more. This module knows nothing of protocols.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import structlog
import trio
from libp2p.abc import IMuxedConn, IMuxedStream, INetConn, INetStream, IPeerStore, IRawConnection, ITransport
from libp2p.crypto.keys import KeyPair
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamClosed, StreamEOF, StreamReset
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
)
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2pnode.bounded import BoundedMap
from p2pnode.errors import ConfigError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.address_policy import AddressPolicy, nearest_first, scope_of
from p2pnode.net.admission import ConnectionPlaces, Handshakes, Standing, idlest_stream
from p2pnode.net.multiaddrs import check_address, from_id, host_of, without_peer
from p2pnode.net.pace import ByteShares
from p2pnode.net.upgrader import Upgrader
from p2pnode.net.yamux import Yamux
from p2pnode.scopes import ip_of
from p2pnode.shares import FairShares, Origin
from p2pnode.tasks import Guard

log = structlog.get_logger()

DIAL_STAGGER_S: Final = 0.25
"""The next address is tried when the last one failed, or after this long."""
ADDRESSES_MAX: Final = 8
CONNECTIONS_PER_PEER: Final = 4
REACHED_MAX: Final = 1024


OriginRule = Callable[[str | None, PeerId], Origin]


class KnownPeers(PeerStore):
    """The library's peerstore, bounded, which never forgets this node itself.

    At its limit the library first drops peers without an address. One of them is this node, and with it go
    its keys, without which it can sign nothing more: one answer of the DHT that names a thousand peers was
    enough.
    """

    def __init__(self, own: ID, key_pair: KeyPair) -> None:
        super().__init__()
        self._own = own
        self.add_key_pair(own, key_pair)

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """Add addresses of another peer. What others say of this node is not added: it would expire, and
        the entry with it."""
        if peer_id != self._own:
            super().add_addrs(peer_id, addrs, ttl)

    def _enforce_peer_limit(self) -> None:
        own = self.peer_data_map.pop(self._own)
        try:
            super()._enforce_peer_limit()
        finally:
            self.peer_data_map[self._own] = own


@dataclass(slots=True)
class _Dial:
    """A dial under way. Tasks that want the same peer wait for it."""

    asked: set[str]
    over: trio.Event = field(default_factory=trio.Event)
    failure: str = ""


class NodeSwarm(Swarm):
    """See the module. It can be used once ``nursery`` is set."""

    upgrader: Upgrader

    def __init__(
        self,
        *,
        peer_id: ID,
        peerstore: IPeerStore,
        upgrader: Upgrader,
        transports: Sequence[ITransport],
        limits: Limits,
        policy: AddressPolicy,
        refuses: Callable[[ID], str | None],
        standing_of: Callable[[PeerId], Standing],
        origin_rule: OriginRule,
        fast: bool,
    ) -> None:
        """``refuses`` says for which fault a peer may not come, or None. ``standing_of`` is what the node's
        role knows of a peer, ``origin_rule`` where a peer at an address comes from.
        """
        super().__init__(
            peer_id,
            peerstore,
            upgrader,
            transports=list(transports),
            connection_config=ConnectionConfig(
                max_connections=limits.connections_max,
                min_connections=0,
                low_watermark=0,
                high_watermark=limits.connections_max,
                max_connections_per_peer=CONNECTIONS_PER_PEER,
                inbound_stream_protocol_negotiation_timeout=max(1.0, limits.stream_open_deadline_s),
                outbound_stream_protocol_negotiation_timeout=max(1.0, limits.stream_open_deadline_s),
            ),
        )
        self.notifees.clear()  # the library's tag store serves its pruner, which we don't run
        self.limits = limits
        self.fast = fast
        self.nursery: trio.Nursery | None = None
        self.handshakes = Handshakes(limits, random.random)
        self.places: ConnectionPlaces[NodeConnection] = ConnectionPlaces(limits.connections_max, standing_of)
        self.stream_places: FairShares[IMuxedStream] = FairShares(limits.streams_max)
        self.bytes = ByteShares()
        self.origin_rule = origin_rule
        self.guard = Guard()
        self.refused: Counter[str] = Counter()
        self.dials: Counter[str] = Counter()
        self.transports = list(transports)
        self.policy = policy
        self._refuses = refuses
        self._reached: BoundedMap[ID, str] = BoundedMap(REACHED_MAX)
        self._dialling: dict[ID, _Dial] = {}

    def reached_at(self, peer: ID) -> tuple[str, ...]:
        """Where we last dialled ``peer`` with success. We saw this ourselves, so it is trusted."""
        address = self._reached.get(peer)
        return () if address is None else (address,)

    def start_task(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run a task in the swarm's nursery, guarded; does nothing once that is gone."""
        if self.nursery is not None and not self._closing:
            self.nursery.start_soon(self.guard.run, function, *args)

    def live(self, peer: ID) -> list[NodeConnection]:
        """The open connections to ``peer``, the one with most streams first."""
        found = [cast("NodeConnection", c) for c in self.connections.get(peer, ()) if not c.is_closed]
        found = [connection for connection in found if connection.muxed_conn.is_established]
        return sorted(found, key=lambda connection: -len(connection.streams))

    def all_live(self) -> Iterable[NodeConnection]:
        """Every open connection."""
        return (
            cast("NodeConnection", c) for conns in self.connections.values() for c in conns if not c.is_closed
        )

    # Dialling.

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """The library's method: dial whatever addresses the peerstore holds."""
        if found := self.live(peer_id):
            return [found[0]]
        try:
            heard = [str(address) for address in self.peerstore.addrs(peer_id)]
        except Exception as error:
            raise SwarmException(f"no address of {peer_id} is known") from error
        try:
            return [await self.dial(peer_id, self.reached_at(peer_id), heard)]
        except UnreachableError as error:
            raise SwarmException(str(error)) from error

    async def dial(self, peer: ID, trusted: Sequence[str], heard: Sequence[str] = ()) -> NodeConnection:
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

    async def _dial(self, peer: ID, trusted: Sequence[str], heard: Sequence[str]) -> NodeConnection:
        with trio.move_on_after(self.limits.dial_deadline_s) as scope:
            return await self._race(peer, await self._usable(peer, trusted, heard))
        if scope.cancelled_caught:
            self.dials["timeout"] += 1
        raise UnreachableError(
            f"no answer from {from_id(peer)} within {self.limits.dial_deadline_s:g} s at "
            f"{', '.join(dict.fromkeys((*trusted, *heard)))}. It is not running, or a router or firewall "
            "lets nobody in: its owner can forward the port, and announce the address with --announce."
        )

    async def _usable(self, peer: ID, trusted: Sequence[str], heard: Sequence[str]) -> list[Multiaddr]:
        if peer == self.self_id:
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
            raise UnreachableError(_no_address(from_id(peer), strange))
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
        try:
            found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return ()
        hosts = dict.fromkeys(str(name[0]) for kind, *_, name in found if kind in wanted)
        return self.policy.dialable(
            f"/{'ip6' if ':' in ip else 'ip4'}/{ip}/{rest}" for ip in list(hosts)[:ADDRESSES_MAX]
        )

    async def _race(self, peer: ID, addresses: list[Multiaddr]) -> NodeConnection:
        won: list[NodeConnection] = []
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

    async def _dial_one(self, peer: ID, address: Multiaddr) -> NodeConnection:
        transport = self._transport_for(address)
        if transport is None:
            raise UnreachableError(f"{address}: no transport for it")
        raw: IRawConnection | None = None
        done = False
        try:
            raw = await transport.dial(address)
            muxed = await self.upgrader.upgrade_outbound(raw, peer)
            connection = await self._register(muxed, "outbound", str(address))
            self._note_reached(peer, str(address))
            done = True
        except OpenConnectionError as error:
            raise UnreachableError(f"could not reach {from_id(peer)} at {address}: {error}") from error
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

    def _note_reached(self, peer: ID, address: str) -> None:
        self._reached.put(peer, address)

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
            connection: NodeConnection | None = None
            with scope:
                await cast("Any", stream).wait_readable()
                await self.handshakes.begin(ticket)
                bytestream = stream if upgrade is None else await upgrade()
                muxed = await self.upgrader.upgrade_inbound(RawConnection(bytestream, False))
                connection = await self._register(muxed, "inbound", _address(remote))
            self.handshakes.settle(ticket)
            if connection is None:
                self.refused["handshake_deadline"] += 1
                log.debug("connection.handshake_dropped", remote=_address(remote))
                return
            await cast("Any", connection.muxed_conn).event_closed.wait()
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

    def _take_place(self, connection: NodeConnection) -> None:
        """Raise ``UnreachableError`` where there is none. Another connection may be closed for this one."""
        origin = self.origin_rule(host_of(connection.address) or None, connection.peer)
        entered, victim = self.places.admit(connection, origin)
        if not entered:
            self.refused["connections"] += 1
            raise UnreachableError("this node is at its limit of connections")
        if victim is not None:
            self.refused["evicted"] += 1
            if victim in (known := self.connections.get(victim.muxed_conn.peer_id, [])):
                known.remove(victim)  # nothing more is opened on it
            self.start_task(victim.close)
        if isinstance(connection.muxed_conn, Yamux):
            connection.muxed_conn.pace = lambda count: self.bytes.read(origin, count, trio.current_time())

    async def close_idle(self) -> None:
        """Close inbound connections that nobody has used for long, again and again. Runs until cancelled."""
        while True:
            await trio.sleep(self.limits.connection_idle_s / 10)
            before = trio.current_time() - self.limits.connection_idle_s
            for connection in list(self.all_live()):
                if connection.inbound and not connection.streams and connection.active_at < before:
                    self.refused["idle"] += 1
                    self.start_task(connection.close)

    async def _register(self, muxed: IMuxedConn, direction: str, address: str) -> NodeConnection:
        peer = muxed.peer_id
        if self._closing or self.nursery is None:
            raise UnreachableError("this node is shutting down")
        if (fault := self._refuses(peer)) is not None:
            self.refused["conduct"] += 1
            raise UnreachableError(f"this node left {from_id(peer)} for {fault}: try again in some minutes")
        if direction == "inbound" and (peer == self.self_id or len(self.live(peer)) >= CONNECTIONS_PER_PEER):
            raise UnreachableError("too many connections with this peer")
        connection = NodeConnection(muxed, self, direction=direction, address=address)
        self._take_place(connection)
        self.nursery.start_soon(self.guard.run, muxed.start)
        try:
            await cast("Any", muxed).event_started.wait()
        except BaseException:
            self.places.leave(connection)
            raise
        if connection.is_closed:
            raise UnreachableError("this node is at its limit of connections")
        if address:
            connection.set_transport_info([Multiaddr(address)], muxed.get_connection_type())
        self.connections.setdefault(peer, []).append(connection)
        self.nursery.start_soon(self.guard.run, connection.start)
        self.start_task(self.notify_connected, connection)
        return connection

    # What the library calls.

    async def new_stream(self, peer_id: ID) -> INetStream:
        """A stream on the best connection; dials if there is none."""
        found = self.live(peer_id) or [cast("NodeConnection", (await self.dial_peer(peer_id))[0])]
        return await found[0].new_stream()

    async def close_peer(self, peer_id: ID) -> None:
        """Close every connection to ``peer_id``."""
        async with trio.open_nursery() as nursery:
            for connection in list(self.connections.get(peer_id, ())):
                nursery.start_soon(connection.close)

    async def close(self) -> None:
        """Close every connection; the listeners are closed before, by their owner."""
        async with trio.open_nursery() as nursery:
            for connection in list(self.all_live()):
                nursery.start_soon(connection.close)
        self._closing = True

    async def notify_disconnected(self, conn: INetConn) -> None:
        """Tell the notifees; there is no auto-connector to wake."""
        await self._notify("disconnected", conn)

    async def notify_opened_stream(self, stream: INetStream) -> None:
        """Nobody listens for it."""

    async def notify_closed_stream(self, stream: INetStream) -> None:
        """Nobody listens for it."""


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


class NodeStream(NetStream):
    """The library's stream over ours: the muxer keeps the state, so that no lock is taken per call."""

    async def read(self, n: int | None = None) -> bytes:
        """Between 1 and ``n`` bytes. Raises ``StreamEOF`` at the end, ``StreamReset`` on loss."""
        try:
            return await self.muxed_stream.read(n)
        except MuxedStreamEOF:
            raise StreamEOF from None
        except MuxedStreamError as error:
            self._state = StreamState.RESET
            raise StreamReset(str(error)) from None

    async def write(self, data: bytes) -> None:
        """Put all of ``data`` into the muxer's queue."""
        try:
            await self.muxed_stream.write(data)
        except MuxedStreamClosed as error:
            raise StreamClosed(str(error)) from None
        except MuxedStreamError as error:
            self._state = StreamState.RESET
            raise StreamReset(str(error)) from None

    async def close(self) -> None:
        """End both directions."""
        if self._state is not StreamState.RESET:
            self._state = StreamState.CLOSE_BOTH
        await self.muxed_stream.close()
        await self.remove()

    async def reset(self) -> None:
        """Abort both directions."""
        self._state = StreamState.RESET
        await self.muxed_stream.reset()
        await self.remove()


class NodeConnection(SwarmConn):
    """One connection. ``start`` accepts streams until it ends."""

    swarm: NodeSwarm

    def __init__(self, muxed_conn: IMuxedConn, swarm: NodeSwarm, *, direction: str, address: str) -> None:
        super().__init__(muxed_conn, swarm, direction=direction)
        self.peer = from_id(muxed_conn.peer_id)
        self.inbound = direction == "inbound"
        self.address = address
        self._since = trio.current_time()

    @property
    def active_at(self) -> float:
        """When bytes of a stream last came or went."""
        return self.muxed_conn.active_at if isinstance(self.muxed_conn, Yamux) else self._since

    def slow_down(self, until: float) -> None:
        """Read nothing more from this connection before ``until``, on trio's clock."""
        if isinstance(self.muxed_conn, Yamux):
            self.muxed_conn.slow_down(until)

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
        self.swarm.places.leave(self)
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
        limits, places = self.swarm.limits, self.swarm.stream_places
        entered, victim = places.enter(muxed_stream, self.swarm.places.origin(self), idlest_stream)
        if not entered or victim is not None:
            self.swarm.refused["streams"] += 1
            await (victim or muxed_stream).reset()
            if victim is None:
                return
        stream: NetStream | None = None
        try:
            stream = await self._add_stream(muxed_stream)
            await self.swarm.common_stream_handler(stream)
        except Exception as error:  # noqa: BLE001  a peer's fault ends that stream only
            log.debug("stream.failed", peer=self.peer, error=f"{type(error).__name__}: {error}")
            with trio.move_on_after(limits.close_deadline_s), contextlib.suppress(Exception):
                await (stream or muxed_stream).reset()
        finally:
            places.leave(muxed_stream)
            if stream is not None:
                self.remove_stream(stream)
