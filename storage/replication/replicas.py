"""Finds replicas: the peers that may hold an entry, and those that would keep one.

Configured stores, the host that serves, the DHT's providers and connected peers are dialled at once, each
under its own deadline, so that nobody waits for a dead one. Nothing that they say is believed here: a
``Replica`` is only a peer whose stream opened. An address that a stranger wrote in the DHT is not dialled on
a private network where we have no peer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.errors import RemoteError
from p2pnode.ids import PeerId
from p2pnode.net.multiaddrs import split_peer
from p2pnode.node.adverts import failure_of
from p2pnode.node.invite import read_bootstrap
from p2pnode.node.node import Node
from p2pnode.protocols.blob.messages import PROTOCOL, provider_key
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.storage.peer_store import OwnerSigner, PeerStore
from p2pnode.storage.replication.choice import in_order_of_preference, nearest
from p2pnode.storage.store import OwnerKey, Place, Replica

log = structlog.get_logger()
_STORES_MAX: Final = 64
"""So many peers' streams stay open for the next question."""
_Tried = tuple[PeerId, tuple[str, ...]]


@dataclass(slots=True)
class Replicas:
    """What a search found. ``failed``: by each other peer that was tried, why it is not among them."""

    found: list[Replica] = field(default_factory=list)
    failed: dict[PeerId, str] = field(default_factory=dict)


class ReplicaFinder:
    """Finds replicas for one owner of conversations.

    ``stores`` are the configured full multiaddrs or invites, in order of preference. ``own`` is the node that
    runs on the user's own data dir, where that is another than this one.
    """

    def __init__(
        self, node: Node, *, stores: Sequence[str] = (), sign: OwnerSigner, own: PeerId | None = None
    ) -> None:
        self._node, self._sign, self._own = node, sign, own
        self._configured: dict[PeerId, tuple[str, ...]] = {}
        for each in (one for store in stores for one in read_bootstrap(store)):
            _, peer = split_peer(each)
            self._configured[peer] = (*self._configured.get(peer, ()), each)
        self._stores: BoundedMap[PeerId, PeerStore] = BoundedMap(_STORES_MAX)

    @property
    def configured(self) -> tuple[PeerId, ...]:
        """The peers of ``stores``, in order of preference."""
        return tuple(self._configured)

    async def find(
        self,
        key: EntryKey,
        *,
        serving: PeerId | None = None,
        on_found: Callable[[Replica], None] = lambda _replica: None,
    ) -> Replicas:
        """Peers that may hold the entry ``key`` and what it points at.

        ``on_found`` is called with each as soon as its stream is open, so that the caller may cancel the
        search when it has enough. ``serving`` is the host of the conversation.
        """

        async def opened(store: PeerStore) -> str:
            await store.open()
            return ""

        async with trio.open_nursery() as nursery:
            search = _Search(self, nursery, serving, opened, on_found)
            search.try_all(self._known(serving))
            search.try_all(self._near(key))
            await self._from_dht(search, key)
        return search.result

    async def candidates(self, key: EntryKey, *, owner: OwnerKey, serving: PeerId | None = None) -> Replicas:
        """Peers that would take writes of ``owner`` now: the configured ones, then by distance to ``key``."""

        async def admitted(store: PeerStore) -> str:
            return await store.admits(owner)

        async with trio.open_nursery() as nursery:
            search = _Search(self, nursery, serving, admitted, lambda _replica: None)
            search.try_all(self._known(serving))
            search.try_all(self._near(key))
        search.result.found = in_order_of_preference(key, search.result.found, self.configured)
        return search.result

    def store(self, peer: PeerId, addresses: Sequence[str] = ()) -> PeerStore:
        """The store at a peer, shared by all who ask for it."""
        found = self._stores.get(peer) or PeerStore(
            self._node, peer, self._configured.get(peer, ()), sign=self._sign
        )
        found.also_at(addresses)
        if forgotten := self._stores.put(peer, found):
            forgotten[1].close()
        return found

    def close(self) -> None:
        """End all streams."""
        for peer in reversed(list(self._stores)):
            if store := self._stores.pop(peer):
                store.close()

    # ---- where they come from

    def _known(self, serving: PeerId | None) -> Iterable[_Tried]:
        for peer in (*self._configured, self._own, serving):
            if peer is not None:
                yield peer, ()

    def _near(self, key: EntryKey) -> list[_Tried]:
        """Connected peers that may speak the protocol, the nearest to the key first."""
        network = self._node.network
        peers = [peer for peer in network.connected_peers() if network.speaks(peer, PROTOCOL) is not False]
        return [(peer, ()) for peer in nearest(key, peers, self._node.limits.replicas_max)]

    async def _from_dht(self, search: _Search, key: EntryKey) -> None:
        network, limits = self._node.network, self._node.limits
        with trio.move_on_after(limits.dht_deadline_s):
            providers = await network.find_providers(provider_key(key), limit=limits.replicas_max)
            search.try_all((each.peer, each.addrs) for each in providers)

    def place_of(self, peer: PeerId, serving: PeerId | None) -> Place:
        """The place that a peer is, as a replica."""
        if peer == self._own:
            return "own"
        return "serving" if peer == serving else "other"

    @property
    def node(self) -> Node:
        """The node that dials."""
        return self._node


class _Search:
    """Peers tried at once, each only once."""

    def __init__(
        self,
        finder: ReplicaFinder,
        nursery: trio.Nursery,
        serving: PeerId | None,
        check: Callable[[PeerStore], Awaitable[str]],
        on_found: Callable[[Replica], None],
    ) -> None:
        self._finder, self._nursery, self._serving = finder, nursery, serving
        self._check, self._on_found = check, on_found
        self._tried: set[PeerId] = {finder.node.peer_id}
        self.result = Replicas()

    def try_all(self, peers: Iterable[_Tried]) -> None:
        """Start to try each peer that was not tried yet."""
        for peer, addresses in peers:
            if peer not in self._tried:
                self._tried.add(peer)
                self._nursery.start_soon(self._try, peer, addresses)

    async def _try(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        deadline_s = self._finder.node.limits.dial_deadline_s
        store = self._finder.store(peer, addresses)
        failure = f"no answer within {deadline_s:g} s"
        try:
            with trio.move_on_after(deadline_s):
                failure = await self._check(store)
        except RemoteError as error:
            failure = failure_of(error)
        except Exception as error:  # noqa: BLE001  of one peer of many: the others are asked on
            self._finder.node.network.guard.note("replica", error)
            failure = "it made this node fail: the log says how"
        if failure:
            log.debug("replica.not_used", peer=peer, reason=failure)
            self.result.failed[peer] = failure
            return
        replica = Replica(peer, store, store, self._finder.place_of(peer, self._serving))
        self.result.found.append(replica)
        self._on_found(replica)
