"""A node: it starts identity, network, adverts and peers, and ends them in order.

The roles (``host``, ``client``) are built on it. It knows neither engines nor sessions. It counts what peers
did against the protocols: a peer with many faults is refused for a while (``FaultLedger``).
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.errors import UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.address_policy import interface_addresses, mixed
from p2pnode.net.multiaddrs import without_peer
from p2pnode.net.network import Network, NetworkConfig, PeerChange
from p2pnode.net.saved_peers import SavedPeers
from p2pnode.net.stream import Stream
from p2pnode.net.swarm import OriginRule
from p2pnode.node.adverts import AdvertService
from p2pnode.node.datadir import INSTANCE_BYTES
from p2pnode.node.finder import Finder
from p2pnode.node.keys import PeerKey
from p2pnode.node.peers import Peers
from p2pnode.node.reachability import ReachCode, reach_code
from p2pnode.node.sleep import SleepWatch
from p2pnode.protocols.adverts.messages import is_topic
from p2pnode.protocols.lookup.messages import provider_key
from p2pnode.shares import origin_of

if TYPE_CHECKING:
    from p2pnode.node.staked_hosts import StakedHosts

log = structlog.get_logger()


_NOT_RUNNING: Final = "this node is shutting down, or has not started: nobody can be reached"
BREACH_WEIGHT: Final = 4.0
"""Of one breach of a protocol, for the peer's connections: read more slowly at the third within a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSetup:
    """What a node is made of. Only tests give ``transport`` and the fields after it."""

    key: PeerKey
    starts: Sequence[bytes] = ()
    """See ``DataDir.new_start``. A node without a data dir knows of no earlier start."""
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    saved_peers: Path | None = None
    keep_connected: bool = True
    """Whether to keep connections to several peers; a short-lived client dials only those it needs."""
    dht: Literal["server", "client", "off"] = "server"
    gossip: bool = True
    stakes: StakedHosts | None = None
    """Which hosts are staked on the chain of this node; None where it knows of no chain."""
    mdns: Literal["off", "browse", "announce"] = "off"
    limits: Limits = DEFAULT_LIMITS
    transport: Any = None
    interfaces: Callable[[], Sequence[str]] = interface_addresses
    origin_rule: OriginRule = origin_of
    """See ``NetworkConfig``."""
    wall: Callable[[], float] = time.time
    draw: Callable[[int], bytes] = secrets.token_bytes
    rng: random.Random | None = None
    in_thread: bool = True
    """See ``files.off_the_loop``."""


class Node:
    """One node. ``await nursery.start(node.run)`` runs it until it is cancelled, or until ``aclose``."""

    def __init__(self, setup: NodeSetup) -> None:
        self.limits = setup.limits
        self.wall, self.draw, self.key = setup.wall, setup.draw, setup.key
        rng = setup.rng or random.SystemRandom()
        self.network = Network(
            NetworkConfig(
                key_seed=setup.key.seed,
                listen=setup.listen,
                announce=setup.announce,
                trusted=setup.bootstrap,
                dht=setup.dht,
                gossip=setup.gossip,
                known_topic=is_topic,
                mdns=setup.mdns,
                limits=setup.limits,
                transport=setup.transport,
                interfaces=setup.interfaces,
                origin_rule=setup.origin_rule,
                wall_clock=setup.wall,
                rng=rng,
            )
        )
        self.adverts = AdvertService(
            self.network,
            setup.key,
            limits=setup.limits,
            starts=setup.starts or (setup.draw(INSTANCE_BYTES),),
            wall=setup.wall,
            draw=rng.random,
            privileged=lambda peer: peer in self.peers.selection.reached,
            stakes=setup.stakes,
        )
        self.faults = FaultLedger()
        self._blocked: frozenset[PeerId] = frozenset()
        self.network.watch_peers(self._on_peer)
        self.sleep = SleepWatch(setup.limits, setup.wall)
        store = None
        if setup.saved_peers is not None:
            store = SavedPeers(setup.saved_peers, limits=setup.limits, in_thread=setup.in_thread)
        self.peers = Peers(
            self.network,
            self.adverts,
            limits=setup.limits,
            bootstrap=setup.bootstrap,
            store=store,
            draw=rng.randrange,
        )
        self.finder = Finder(
            self.network,
            self.adverts,
            setup.limits,
            setup.wall,
            draw=rng.randrange,
            mdns=setup.mdns != "off",
        )
        self._announce = setup.announce
        self._keep_company = setup.keep_connected
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._before_close: list[Callable[[], Any]] = []
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> PeerId:
        return self.key.peer_id

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        return self.network.multiaddrs

    @property
    def reach(self) -> ReachCode:
        """From where this node can be reached, as far as its addresses tell."""
        network = self.network
        return reach_code(network.announced, network.multiaddrs, listens_on_all=network.listens_on_all)

    def advertised(self, count: int | None = None) -> tuple[str, ...]:
        """Up to ``count`` addresses for strangers (None: all), without ``/p2p``.

        Those that the user announces come first, then the others, each time a mix of kinds.
        """
        addresses = [without_peer(each) for each in self.network.announced]
        most = len(addresses) if count is None else count
        told = mixed([each for each in addresses if each in self._announce], most)
        return (*told, *mixed([each for each in addresses if each not in told], most - len(told)))

    def before_close(self, action: Callable[[], Any]) -> None:
        """Await ``action()`` at shutdown, while the network is up; the last one registered runs first."""
        self._before_close.append(action)

    def serve(
        self, protocol: str, handler: Callable[[Stream], Awaitable[str | None]], *, streams_per_peer: int
    ) -> None:
        """Serve each stream of a protocol. ``handler`` returns what the peer did against it, or None.

        A fault is counted against the peer, and a peer with too many of them gets its streams reset.
        """

        async def serve(stream: Stream) -> None:
            if stream.peer in self._blocked or self.faults.shunned(stream.peer, trio.current_time()):
                await stream.reset()
                return
            fault = await handler(stream)
            if fault is not None:
                self.faults.record(stream.peer, fault, trio.current_time())
                self.network.charge(stream.peer, f"breach of {protocol}", BREACH_WEIGHT)

        self.network.serve(protocol, serve, streams_per_peer=streams_per_peer)

    def block(self, peers: Collection[PeerId]) -> None:
        """Have nothing to do with these peers from now on, and with others again: connections to them are
        closed, now and whenever one is there, and no stream of theirs is served."""
        self._blocked = frozenset(peers)
        for peer in self.network.connected_peers():
            self._on_peer(peer, "connected")

    def _on_peer(self, peer: PeerId, change: PeerChange) -> None:
        if change == "connected" and peer in self._blocked and self._nursery is not None:
            log.info("peer.blocked", peer=peer)
            self._nursery.start_soon(self.network.disconnect, peer)

    def stop(self) -> None:
        """Ask :meth:`run` to end in order."""
        self._stop.set()

    async def aclose(self) -> None:
        """Ask :meth:`run` to end in order, and wait for it."""
        self._stop.set()
        await self._stopped.wait()

    async def follow(self, models: Sequence[ModelId]) -> None:
        """Join the topics of these models. Raises what :meth:`start_soon` raises."""
        for model in models:
            await self._services().start(self.adverts.join, model)

    def start_soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a role's task until the node's services end.

        Raises ``UnreachableError`` before they have started and after they have ended: no peer is reached
        then.
        """
        services = self._services()
        try:
            services.start_soon(function, *args)
        except RuntimeError as error:  # the last of them has just ended
            raise UnreachableError(_NOT_RUNNING) from error

    def _services(self) -> trio.Nursery:
        if self._nursery is None:
            raise UnreachableError(_NOT_RUNNING)
        return self._nursery

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped; then end in order: roles drain, services stop, the network closes."""
        await self.peers.load()
        async with trio.open_nursery() as outer:
            await outer.start(self.network.run)
            try:
                async with trio.open_nursery() as services:
                    self._nursery = services
                    services.start_soon(self.sleep.run)
                    await services.start(self.adverts.run)
                    if self._keep_company:
                        await services.start(self.peers.run)
                    log.info("node.started", peer=self.peer_id, addrs=self.multiaddrs)
                    task_status.started()
                    try:
                        await self._stop.wait()
                    finally:
                        await self._prepare_close()
                    services.cancel_scope.cancel()
            finally:
                self._nursery = None
                with trio.CancelScope(shield=True):
                    await self.peers.save()
                with trio.move_on_after(self.limits.close_deadline_s, shield=True):
                    await self.network.aclose()
                outer.cancel_scope.cancel()
                self._stopped.set()
        log.info("node.stopped", peer=self.peer_id)

    async def _prepare_close(self) -> None:
        limits = self.limits
        patience_s = limits.drain_deadline_s + limits.settle_deadline_s + limits.close_deadline_s
        with trio.move_on_after(patience_s, shield=True):
            for action in reversed(self._before_close):
                await action()

    async def provide(self, model: ModelId) -> None:
        """Keep this node's provider record of a model alive until cancelled."""
        await self.provide_key(provider_key(model))

    async def provide_key(self, key: bytes) -> None:
        """Keep this node's provider record of a key of the DHT alive until cancelled."""
        # A record reaches only the peers that are known when it is sent, so it is sent again soon at first,
        # while more peers become known.
        wait_s = self.limits.provide_first_s
        while True:
            if self.network.connected_peers():
                with trio.move_on_after(self.limits.dht_deadline_s):
                    await self.network.provide(key)
                wait_s = min(self.limits.provide_interval_s, 3 * wait_s)
            await trio.sleep(wait_s)


FAULTS_MAX: Final = 10
WINDOW_S: Final = 600.0
_PEERS_MAX: Final = 4096


class FaultLedger:
    """Counts the faults of each peer over ten minutes, of the 4096 peers with the latest faults.

    It is about what is said in the node's own protocols: a peer with ten faults is neither served nor used as
    a replica any more, and stays connected. ``net/conduct.py`` protects the node from work and bytes: it
    counts all layers, forgets in a minute, and slows or closes connections. Who breaks a protocol once a
    minute never costs much work, and is still no use.
    """

    def __init__(self) -> None:
        self._faults: BoundedMap[PeerId, tuple[float, int]] = BoundedMap(_PEERS_MAX)

    def record(self, peer: PeerId, what: str, now: float) -> None:
        """Count one fault of a peer."""
        since, count = self._faults.get(peer) or (now, 0)
        if now - since > WINDOW_S:
            since, count = now, 0
        self._faults.put(peer, (since, count + 1))
        log.info("peer.fault", peer=peer, what=what[:200], count=count + 1)

    def count(self, peer: PeerId, now: float) -> int:
        """How many faults a peer has had in the window."""
        since, count = self._faults.get(peer) or (now, 0)
        return count if now - since <= WINDOW_S else 0

    def shunned(self, peer: PeerId, now: float) -> bool:
        """Whether this peer is refused for now."""
        return self.count(peer, now) >= FAULTS_MAX
