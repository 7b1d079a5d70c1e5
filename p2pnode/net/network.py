"""``Network``: the network of one node: connections, streams, topics and the DHT behind one small API.

Peer ids and multiaddrs are strings here; nothing of libp2p is visible. ``run`` is the whole life: it listens,
reports ``started``, and on cancellation or ``aclose`` shuts down in order (stop accepting, stop the services,
say goodbye on every connection, end what is left), within ``limits.close_deadline_s``. This module doesn't
know what protocols say, whom to dial, or what an advert is.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import structlog
import trio
from libp2p.abc import ITransport
from libp2p.io.abc import ReadWriteCloser
from multiaddr import Multiaddr

from p2pnode.bounded import TokenBucket
from p2pnode.errors import ConfigError, LocalError, ProtocolError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net import gossip as gossip_module
from p2pnode.net import lean
from p2pnode.net.address_policy import (
    AddressPolicy,
    OwnAddresses,
    check_announced,
    interface_addresses,
    is_unspecified,
    own_addresses,
)
from p2pnode.net.admission import Standing
from p2pnode.net.conduct import SLOW_S, Conduct, Verdict
from p2pnode.net.dht import Dht, Provider
from p2pnode.net.gossip import Gossip, GossipStatistics, Subscription
from p2pnode.net.identify import Identify
from p2pnode.net.multiaddrs import (
    PeerAddresses,
    check_address,
    check_peer,
    host_of,
    split_peer,
    to_id,
    with_peer,
)
from p2pnode.net.negotiation import CutShortError, NotSpokenError, propose
from p2pnode.net.router import Handler, Router
from p2pnode.net.stream import Stream
from p2pnode.net.swarm import Connection, OriginRule, Swarm
from p2pnode.net.transports import TcpListener, TcpStream, TcpTransport, WsTransport, upgrade
from p2pnode.net.upgrader import Upgrader
from p2pnode.net.yamux import StreamLostError, YamuxStream
from p2pnode.protocols.gossipsub.commands import Validator
from p2pnode.protocols.kademlia.messages import PROTOCOL as KAD_PROTOCOL
from p2pnode.shares import Origin, origin_of
from p2pnode.tasks import Guard

if TYPE_CHECKING:
    from p2pnode.net.mdns import Mdns

log = structlog.get_logger()

SEED_BYTES = 32
GREETING_S = 1.0
"""What identify takes at most where a first question to the DHT waits for it."""
NEGOTIATION_WEIGHT = 4.0
"""Of a stream whose opener says what is no multistream-select."""
PING = "/ipfs/ping/1.0.0"
PING_BYTES = 32
PING_S = 10.0
"""A stream on which no ping arrives for so long is reset."""
PINGS_PER_S = 16.0
PINGS_BURST = 64.0
"""Of one stream; further pings wait unread."""
PeerChange = Literal["connected", "identified", "disconnected"]
"""The first connection with a peer is there; it has said what it speaks; its last connection is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStatistics:
    """A snapshot. The mappings count since the start."""

    peers: int = 0
    connections: int = 0
    connections_inbound: int = 0
    handshakes: int = 0
    streams: int = 0
    streams_inbound: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dht_peers: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    dials: Mapping[str, int] = field(default_factory=dict)
    protocols_refused: Mapping[str, int] = field(default_factory=dict)
    protocols_failed: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)
    """What peers were charged with, by the name of the fault."""
    tasks_failed: Mapping[str, int] = field(default_factory=dict)
    """Tasks for strangers that raised what nobody expected: a defect each, which ended nothing else."""
    gossip: GossipStatistics = field(default_factory=GossipStatistics)


class Listener(Protocol):
    """What the network needs of a listener; see ``tcp.TcpListener``."""

    async def bind(self, maddr: Multiaddr) -> None: ...
    async def serve(self, accept: Callable[..., Awaitable[None]], nursery: trio.Nursery) -> None: ...
    def get_addrs(self) -> tuple[Multiaddr, ...]: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """How to build a network. ``key_seed`` is the identity; keep it out of logs."""

    key_seed: bytes = field(repr=False)
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    """Where others reach this node, as its user says: announced first."""
    dht: Literal["server", "client", "off"] = "server"
    dht_protocol: str = KAD_PROTOCOL
    """The DHT's protocol and table. libp2p's own name is for tests and private networks."""
    gossip: bool = True
    known_topic: Callable[[str], bool] = lambda _name: True
    """Of which topics it is remembered which peers are on them; besides those that are joined."""
    mdns: Literal["off", "browse", "announce"] = "off"
    trusted: tuple[str, ...] = ()
    """Addresses of others that the user named: they tell which network this node lives in."""
    limits: Limits = DEFAULT_LIMITS
    transport: ITransport | None = None
    interfaces: Callable[[], Sequence[str]] = interface_addresses
    """This machine's addresses now, as ``192.168.1.5/24``."""
    wall_clock: Callable[[], float] = time.time
    rng: random.Random = field(default_factory=random.SystemRandom)
    origin_rule: OriginRule = origin_of
    """Where a peer at an address comes from. Tests on loopback count its addresses by prefix."""

    def __post_init__(self) -> None:
        if len(self.key_seed) != SEED_BYTES:
            raise ConfigError(f"a key seed has {SEED_BYTES} bytes, not {len(self.key_seed)}")
        for address in self.listen:
            check_address(address)
        for address in self.announce:
            check_announced(address)


class Network:
    """See the module. An object runs once."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self._limits = config.limits
        lean.quieten()
        upgrader = Upgrader(config.key_seed, config.limits)
        self.peer_id: PeerId = upgrader.peer
        self._listeners: list[Listener] = []
        self._found_own = OwnAddresses()
        self._addresses: tuple[str, ...] = ()
        self._announced: tuple[str, ...] = ()
        self._changed = trio.Event()
        own = (each for each in config.listen if not is_unspecified(each))
        self.policy = AddressPolicy((*own, *config.announce, *config.trusted), remotes=self.remote_addresses)
        self._swarm = Swarm(
            upgrader=upgrader,
            transports=[config.transport] if config.transport is not None else [TcpTransport()],
            limits=config.limits,
            policy=self.policy,
            serve=self._serve_stream,
            refuses=self._refuses,
            standing_of=self._standing_of,
            origin_rule=config.origin_rule,
            changed=self._connections_changed,
        )
        if config.transport is None:
            self._swarm.transports.append(WsTransport(self._swarm.start_task))
        self.standing_of: Callable[[PeerId], Standing] = lambda _: "stranger"
        """What this node's role knows of a peer; the role may set it. It decides who keeps a connection."""
        self._conduct = Conduct()
        self._connected: set[PeerId] = set()
        self._watchers: list[Callable[[PeerId, PeerChange], object]] = []
        self._router = Router(config.limits, self._swarm.guard, self.origin_of, self._standing_of)
        self._gossip = self._make_gossip(upgrader.private_key.sign) if config.gossip else None
        self._dht: Dht | None = None
        if config.dht != "off":
            self._dht = Dht(self, config.dht, protocol=config.dht_protocol, draw=config.rng.randrange)
        self._identify = Identify(
            self,
            public_key=upgrader.public_key,
            peer_id=to_id(self.peer_id).to_bytes(),
            sign=upgrader.private_key.sign,
            wall_clock=config.wall_clock,
            limits=config.limits,
            start_task=self._swarm.start_task,
            identified=self._identified,
        )
        self.serve(PING, _pong, streams_per_peer=2, idle_s=PING_S)
        self._mdns: Mdns | None = None
        self._discovered_send, self._discovered_receive = trio.open_memory_channel[PeerAddresses](64)
        self._greeted = trio.Event()
        self._stop = trio.Event()
        self._ended = trio.Event()
        self._running = False

    def _make_gossip(self, sign: Callable[[bytes], bytes]) -> Gossip:
        return Gossip(
            self,
            peer=self.peer_id,
            sign=sign,
            draw=self._config.rng.random,
            wall_clock=self._config.wall_clock,
            limits=self._limits,
            guard=self._swarm.guard,
            known_topic=self._config.known_topic,
        )

    # Life.

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled or closed. Raises ``ConfigError`` when it can't listen."""
        if self._running or self._ended.is_set():
            raise LocalError("a Network runs once; make a new one")
        self._running = True
        try:
            await self._bind()
            async with trio.open_nursery() as nursery:
                try:
                    await self._start(nursery)
                    task_status.started()
                    await self._stop.wait()
                finally:
                    with trio.move_on_after(self._limits.close_deadline_s, shield=True):
                        await self._shut_down()
                    nursery.cancel_scope.cancel()
        finally:
            for listener in self._listeners:
                with trio.move_on_after(self._limits.close_deadline_s, shield=True):
                    await listener.close()
            self._swarm.nursery = None
            self._running = False
            self._discovered_send.close()
            self._ended.set()

    async def aclose(self) -> None:
        """Make ``run`` end in order, and wait for it; bounded."""
        self._stop.set()
        if self._running:
            with trio.move_on_after(self._limits.close_deadline_s + 2.0):
                await self._ended.wait()

    async def _bind(self) -> None:
        for address in self._config.listen:
            maddr = Multiaddr(address)
            transport = next((t for t in self._swarm.transports if cast("Any", t).can_listen(maddr)), None)
            if transport is None:
                raise ConfigError(f"cannot listen on {address}: this network has no transport for it")
            listener = cast("Listener", transport.create_listener(cast("Any", None)))
            self._listeners.append(listener)
            await listener.bind(maddr)
        self._look()

    def _look(self) -> bool:
        """Read our addresses again. Returns whether they have changed."""
        bound = [str(address) for listener in self._listeners for address in listener.get_addrs()]
        found = own_addresses(bound, self._config.announce, self._config.interfaces)
        if found == self._found_own:
            return False
        self._found_own = found
        self._addresses = tuple(with_peer(address, self.peer_id) for address in found.every)
        self._announced = tuple(with_peer(address, self.peer_id) for address in found.announced)
        return True

    async def _watch_addresses(self) -> None:
        networks = self.policy.networks
        while True:
            await trio.sleep(self._limits.address_interval_s)
            if self._stop.is_set():
                return  # the listeners are closed, or about to be
            try:
                moved = self._look()
            except OSError as error:  # for example at the limit of open files: tried again in seconds
                log.debug("network.interfaces_unreadable", reason=str(error))
                continue
            before, networks = networks, self.policy.networks
            if moved:
                log.info("network.addresses_changed", addresses=self._addresses)
                self._identify.changed()
                if self._mdns is not None:
                    self._mdns.changed()
            if moved or before != networks:
                self._changed.set()
                self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Wait until this node's addresses, or the private networks that it lives in, have changed."""
        await self._changed.wait()

    async def _start(self, nursery: trio.Nursery) -> None:
        self._swarm.nursery = nursery
        if self._gossip is not None:
            self._gossip.start(nursery)
        if self._dht is not None:
            self._dht.start(nursery)
        for listener in self._listeners:
            ws = isinstance(listener, TcpListener) and listener.is_websocket
            accept = self._accept_ws if ws else self._swarm.accept
            nursery.start_soon(listener.serve, partial(self._swarm.guard.run, accept), nursery)
        if self._config.mdns != "off":
            from p2pnode.net.mdns import Mdns

            self._mdns = Mdns(
                self.peer_id,
                addresses=lambda: self._found_own.own,
                interfaces=self._config.interfaces,
                announce=self._config.mdns == "announce",
                found=self._found,
            )
            nursery.start_soon(self._mdns.run)
        nursery.start_soon(self._swarm.bytes.watch_lag)
        if self._listeners:
            nursery.start_soon(self._swarm.close_idle)
            nursery.start_soon(self._watch_addresses)

    async def _accept_ws(self, stream: TcpStream) -> None:
        async def to_websocket() -> ReadWriteCloser:
            return await upgrade(stream, self._swarm.start_task)

        await self._swarm.accept(stream, to_websocket)

    async def _shut_down(self) -> None:
        self._router.accepting = False
        for listener in self._listeners:
            await listener.close()
        if self._mdns is not None:
            await self._mdns.aclose()
        if self._gossip is not None:
            self._gossip.stop()
        if self._dht is not None:
            self._dht.stop()
        await self._swarm.close()

    # Who and where.

    @property
    def guard(self) -> Guard:
        """Runs tasks that serve strangers, and counts the unexpected errors they raise."""
        return self._swarm.guard

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        """Where this node is reached now, each with the peer id: announced ones first, then by widest
        scope.

        Empty before ``run``.
        """
        return self._addresses

    @property
    def listens_on_all(self) -> bool:
        """Whether it listens on every interface, also on those that appear later."""
        return any(is_unspecified(str(a)) for each in self._listeners for a in each.get_addrs())

    @property
    def announced(self) -> tuple[str, ...]:
        """The addresses that strangers learn: see ``to_announce``."""
        return self._announced

    def is_connected(self, peer: PeerId) -> bool:
        """Whether a connection to ``peer`` is open."""
        return bool(self._swarm.live(peer))

    def connected_peers(self) -> tuple[PeerId, ...]:
        """Peers with an open connection, sorted."""
        return tuple(sorted({connection.peer for connection in self._swarm.all_live()}))

    def is_dialled(self, peer: PeerId) -> bool:
        """Whether we opened a connection to ``peer`` that is still there."""
        return any(not connection.inbound for connection in self._swarm.live(peer))

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where we reached ``peer``, then what others say and may be dialled; each with ``/p2p``."""
        heard = self.policy.dialable(self._heard(peer))
        found = dict.fromkeys((*self._swarm.reached_at(peer), *heard))
        return tuple(with_peer(address, peer) for address in found)

    def stated_addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where we reached ``peer``, then what it and others say, without ``/p2p``: not for dialling."""
        return tuple(dict.fromkeys((*self._swarm.reached_at(peer), *self._heard(peer))))

    def _heard(self, peer: PeerId) -> tuple[str, ...]:
        return self._identify.addresses_of(peer)

    def was_reached(self, peer: PeerId) -> bool:
        """Whether we dialled ``peer`` with success; of many, those that we dialled last are known."""
        return bool(self._swarm.reached_at(peer))

    def dialable(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Those of a stranger's addresses that may be dialled on its word."""
        return self.policy.dialable(addresses)

    def speaks(self, peer: PeerId, protocol: str) -> bool | None:
        """Whether ``peer`` said that it speaks ``protocol``; None while it has said nothing."""
        statement = self._identify.statement_of(peer)
        return protocol in statement.protocols if statement is not None else None

    @property
    def protocols(self) -> frozenset[str]:
        """What this node serves."""
        return self._router.protocols

    def remote_addresses(self) -> tuple[str, ...]:
        """The addresses from which the peers of our open connections really come, inbound ones too."""
        return tuple(sorted({c.address for c in self._swarm.all_live() if c.address}))

    def origin_of(self, peer: PeerId) -> Origin:
        """Where ``peer`` comes from: by an open connection with it, or where we last reached it."""
        live = self._swarm.live(peer)
        known = live[0].address if live else "".join(self._swarm.reached_at(peer))
        return self._config.origin_rule(host_of(known) or None, peer)

    def origin_at(self, address: str, peer: PeerId) -> Origin:
        """Where ``peer`` would come from if it were at this address."""
        return self._config.origin_rule(host_of(address) or None, peer)

    def watch_peers(self, callback: Callable[[PeerId, PeerChange], object]) -> None:
        """Call ``callback`` at each change of a peer from now on. It must not block and must not raise."""
        self._watchers.append(callback)

    def charge(self, peer: PeerId, fault: str, weight: float) -> Verdict:
        """Count what ``peer`` did wrong; ``fault`` is a name from our code, for the log and the counts.

        ``slow``: the caller stops reading this peer for ``conduct.SLOW_S`` seconds, as its connections do.
        ``leave``: its connections are closed, and it is refused for minutes. See ``conduct.py`` for weights.
        """
        now = trio.current_time()
        verdict = self._conduct.charge(peer, self.origin_of(peer), fault, weight, now)
        if verdict == "slow":
            for connection in self._swarm.live(peer):
                connection.muxed.slow_down(now + SLOW_S)
        elif verdict == "leave":
            log.info("peer.left", peer=peer, fault=fault, origin=self.origin_of(peer).near)
            self._swarm.refused["left"] += 1
            self._swarm.start_task(self._swarm.close_peer, peer)
        return verdict

    def _standing_of(self, peer: PeerId) -> Standing:
        return self.standing_of(peer)

    def _refuses(self, peer: PeerId) -> str | None:
        return self._conduct.refused_for(peer, trio.current_time())

    def _tell(self, peer: PeerId, change: PeerChange) -> None:
        for callback in self._watchers:
            callback(peer, change)

    # Connections.

    async def connect(self, multiaddr: str) -> PeerId:
        """Dial a full multiaddr that the user named. Raises ``ConfigError`` or ``UnreachableError``."""
        address, peer = split_peer(multiaddr)
        self.policy.trust([address])
        await self._dial(peer, [address])
        return peer

    async def connect_peer(self, peer: PeerId, heard: Sequence[str], *, trusted: Sequence[str] = ()) -> None:
        """Dial ``peer`` at whichever address answers; do nothing when connected.

        ``trusted`` addresses come from the user, or we reached the peer there. ``heard`` ones come from
        strangers: only those that a stranger's word is enough for are dialled, and what is no address is
        passed over. Raises ``UnreachableError``.
        """
        try:
            check_peer(peer)
        except ConfigError as error:
            raise UnreachableError(str(error)) from error
        if not self.is_connected(peer):
            reached = self._swarm.reached_at(peer)
            await self._dial(peer, [*trusted, *reached], [*heard, *self.addresses_of(peer)])

    async def _dial(self, peer: PeerId, trusted: Sequence[str], heard: Sequence[str] = ()) -> None:
        if self._swarm.nursery is None:
            raise UnreachableError("this node is shutting down, or has not started: nobody can be reached")
        await self._swarm.dial(peer, trusted, heard)

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to ``peer``. Bounded; never raises."""
        with trio.move_on_after(self._limits.close_deadline_s):
            await self._swarm.close_peer(peer)

    # Streams.

    def serve(
        self,
        protocol: str,
        handler: Handler,
        *,
        streams_per_peer: int | None = None,
        idle_s: float | None = None,
    ) -> None:
        """Call ``handler`` for each stream that a peer opens for ``protocol``.

        It owns the stream until it returns. An exception ends that stream only and counts against the
        peer; streams over the cap are reset at once. A protocol whose streams live long takes one a peer.
        With ``idle_s``, ``receive_some`` raises ``UnreachableError`` after so many seconds without a byte.
        """
        self._router.serve(protocol, handler, streams_per_peer=streams_per_peer, idle_s=idle_s)

    async def _serve_stream(self, connection: Connection, stream: YamuxStream) -> None:
        try:
            await self._router.run(connection, stream)
        except CutShortError:
            raise
        except ProtocolError:
            self.charge(connection.peer, "malformed negotiation", NEGOTIATION_WEIGHT)
            raise

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """A stream to a connected peer. Raises ``UnreachableError`` that says why there is none."""
        live = self._swarm.live(peer)
        if not live:
            raise UnreachableError(f"not connected to {peer}; connect first, it may have left")
        stream: YamuxStream | None = None
        done = False
        try:
            with trio.fail_after(self._limits.stream_open_deadline_s):
                stream = live[0].muxed.open_stream()
                await propose(stream, [protocol])
            done = True
        except NotSpokenError as error:
            raise UnreachableError(f"{peer} doesn't speak {protocol}: it is another kind of node") from error
        except trio.TooSlowError as error:
            waited = f"no answer to a new stream within {self._limits.stream_open_deadline_s:g} s"
            raise UnreachableError(f"the connection to {peer} failed: {waited}") from error
        except (StreamLostError, ProtocolError) as error:
            if live[0].is_open:
                why = "it reset the stream (at its limit, or shutting down)"
                raise UnreachableError(f"{peer} refused a stream for {protocol}: {why}") from error
            lost = "it was lost while a stream was opened"
            raise UnreachableError(f"the connection to {peer} failed: {lost}") from error
        finally:
            if stream is not None and not done:
                stream.reset()
        return Stream(stream, peer=peer, protocol=protocol, remote_addr=live[0].address or None)

    # Topics.

    async def publish(self, topic: str, data: bytes) -> None:
        """Send ``data``, signed, to the peers on ``topic``."""
        await self._need_gossip().publish(topic, data)

    async def subscribe(self, topic: str, validator: Validator) -> Subscription:
        """Join ``topic``.

        ``validator(author, data)`` says of each new message whether it is accepted, rejected or ignored; see
        ``Verdict`` in ``protocols/gossipsub/commands.py``. The author's signature was verified before. Our
        own messages are asked for, too. It must not block. A topic has one validator: that of its latest
        subscription.
        """
        return await self._need_gossip().subscribe(topic, validator)

    def topic_peers(self, topic: str) -> tuple[PeerId, ...]:
        """The connected peers on ``topic``."""
        return self._gossip.topic_peers(topic) if self._gossip is not None else ()

    def _need_gossip(self) -> Gossip:
        if self._gossip is None:
            raise gossip_module.off()
        return self._gossip

    # Discovery.

    async def provide(self, key: bytes) -> bool:
        """Tell the DHT that we provide ``key``. Returns false when no peer took it, or there is no DHT."""
        return await self._dht.provide(key) if self._dht is not None else False

    async def find_providers(self, key: bytes, *, limit: int) -> list[Provider]:
        """Peers that are said to provide ``key``, those first that most others name; hints only."""
        if self._dht is None:
            return []
        with trio.move_on_after(GREETING_S):
            await self._wait_greeted(self._dht)
        return await self._dht.find_providers(key, limit)

    async def _wait_greeted(self, dht: Dht) -> None:
        """Wait until each connected peer has said what it speaks: before that it is in no routing table."""
        while not dht.size() and any(not self._has_greeted(peer) for peer in self.connected_peers()):
            await self._greeted.wait()

    def _has_greeted(self, peer: PeerId) -> bool:
        return self.speaks(peer, "") is not None

    def discovered(self) -> trio.MemoryReceiveChannel[PeerAddresses]:
        """What mDNS found on the LAN. Bounded: when it is full, the oldest is dropped."""
        return self._discovered_receive.clone()

    def _found(self, found: PeerAddresses) -> None:
        while True:
            try:
                self._discovered_send.send_nowait(found)
            except trio.WouldBlock:
                self._discovered_receive.receive_nowait()
            except trio.BrokenResourceError:
                return
            else:
                return

    def statistics(self) -> NetworkStatistics:
        """A snapshot."""
        live = list(self._swarm.all_live())
        return NetworkStatistics(
            peers=len({connection.peer for connection in live}),
            connections=len(live),
            connections_inbound=sum(connection.inbound for connection in live),
            handshakes=len(self._swarm.handshakes.under_way),
            streams=sum(len(connection.muxed.streams) for connection in live),
            streams_inbound=len(self._swarm.stream_places),
            bytes_in=sum(connection.muxed.bytes_in for connection in live),
            bytes_out=sum(connection.muxed.bytes_out for connection in live),
            dht_peers=self._dht.size() if self._dht is not None else 0,
            refused=dict(self._swarm.handshakes.refused + self._swarm.refused),
            dials=dict(self._swarm.dials),
            protocols_refused=dict(self._router.refused),
            protocols_failed=dict(self._router.failed),
            faults=dict(self._conduct.faults),
            tasks_failed=dict(self._swarm.guard.failed),
            gossip=self._gossip.statistics() if self._gossip is not None else GossipStatistics(),
        )

    # What the swarm and identify report. None of it waits.

    def _connections_changed(self, peer: PeerId) -> None:
        is_connected = self.is_connected(peer)
        if is_connected == (peer in self._connected):
            return
        if is_connected:
            self._connected.add(peer)
            self._tell(peer, "connected")
            self._identify.connected(peer)
        else:
            self._connected.discard(peer)
            self._identify.disconnected(peer)
            self._tell(peer, "disconnected")
            self._wake_greeted()

    def _identified(self, peer: PeerId) -> None:
        self._tell(peer, "identified")
        self._wake_greeted()

    def _wake_greeted(self) -> None:
        self._greeted.set()
        self._greeted = trio.Event()


async def _pong(stream: Stream) -> None:
    """Send back each 32 bytes, at a bounded rate."""
    waiting, rate = b"", TokenBucket(PINGS_PER_S, PINGS_BURST)
    while data := await stream.receive_some(PING_BYTES):
        waiting += data
        if len(waiting) >= PING_BYTES:
            await trio.sleep(rate.wait_s(trio.current_time()))
            rate.spend(1)
            await stream.send_all(waiting[:PING_BYTES])
            waiting = waiting[PING_BYTES:]
