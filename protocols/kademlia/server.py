"""``Server``: answers what peers ask of the DHT, from the routing table and the provider records.

It never raises for what a peer sends. What it answers is bounded, and so is how often: by peer, and by where
peers come from. A record counts only where its provider brings it itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, assert_never

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.ids import PeerId
from p2pnode.protocols.events import Effect, Emit, Fault, Received, Send
from p2pnode.protocols.kademlia.messages import K, KadPeer, Message, peer_of, point_of_key
from p2pnode.protocols.kademlia.records import ProviderRecords
from p2pnode.protocols.kademlia.table import RoutingTable
from p2pnode.shares import Origin

QUESTIONS_PER_S: Final = 10.0
QUESTIONS_BURST: Final = 100.0
"""Of one peer; of one origin four times as many."""
ORIGIN_FACTOR: Final = 4
ASKERS_MAX: Final = 1024
IDLE_S: Final = 10.0
"""A stream on which no question comes for this long is ended, by the shell."""
MALFORMED: Final = "kad_malformed"
"""Charged by the shell, which decodes."""
FLOOD: Final = "kad_flood"
FOREIGN_RECORD: Final = "kad_foreign_record"


class Server:
    """Of one node. ``origin_of`` says where a connected peer comes from, ``reached`` whom we dialled."""

    def __init__(
        self,
        table: RoutingTable,
        records: ProviderRecords,
        *,
        origin_of: Callable[[PeerId], Origin],
        reached: Callable[[PeerId], bool],
        own: Callable[[bytes], Collection[KadPeer]],
        k: int = K,
    ) -> None:
        self._k = k
        self._table, self._records = table, records
        self._origin_of, self._reached, self._own = origin_of, reached, own
        self._peers: BoundedMap[PeerId, TokenBucket] = BoundedMap(ASKERS_MAX)
        self._origins: BoundedMap[str, TokenBucket] = BoundedMap(ASKERS_MAX)

    def handle(self, event: Received, now: float) -> Sequence[Effect]:
        """Answer one question; nothing is said to one that comes too often, or that expects no answer."""
        message: Message = event.message
        origin = self._origin_of(event.peer)
        of_peer = self._peers.use(event.peer, lambda: TokenBucket(QUESTIONS_PER_S, QUESTIONS_BURST))
        if not of_peer.take(now):
            of_peer.spend(QUESTIONS_PER_S)  # who goes on regardless waits a second longer for each
            return [Emit(Fault(event.peer, FLOOD, 1.0))]
        if not self._origins.use(origin.wide, _bucket_of_origin).take(now):
            return []  # its neighbours ask too much: that is no fault of its own
        match message.kind:
            case "ping":
                answer = Message(kind="ping")
            case "find_node":
                answer = self._find_node(event.peer, message.key)
            case "get_providers":
                answer = Message(
                    kind="get_providers",
                    key=message.key,
                    closer=self._closer(event.peer, message.key),
                    providers=self._providers(message.key, now),
                )
            case "get_value" | "put_value":
                answer = Message(kind=message.kind, key=message.key)
            case "add_provider":
                return self._add_provider(event.peer, message, origin, now)
            case _:
                assert_never(message.kind)
        return [Send(event.peer, event.stream, answer)]

    def _find_node(self, asker: PeerId, key: bytes) -> Message:
        closer = self._closer(asker, key)
        wanted = peer_of(key)
        found = self._table.get(wanted) if wanted is not None and wanted != asker else None
        if found is not None and all(each.peer != wanted for each in closer):
            closer = (KadPeer(peer=found.peer, addresses=found.addresses, connected=found.connected), *closer)
        return Message(kind="find_node", key=key, closer=closer[: self._k])

    def _closer(self, asker: PeerId, key: bytes) -> tuple[KadPeer, ...]:
        found = self._table.closest(point_of_key(key), self._k, without=(asker,))
        return tuple(
            KadPeer(peer=each.peer, addresses=each.addresses, connected=each.connected) for each in found
        )

    def _providers(self, key: bytes, now: float) -> tuple[KadPeer, ...]:
        drawn = self._records.draw(key, K, now)
        others = (KadPeer(peer=each.provider, addresses=each.addresses) for each in drawn)
        return (*self._own(key), *others)

    def _add_provider(self, peer: PeerId, message: Message, origin: Origin, now: float) -> Sequence[Effect]:
        own = next((each for each in message.providers if each.peer == peer), None)
        if own is None or not message.key:
            return [Emit(Fault(peer, FOREIGN_RECORD, 1.0))]
        self._records.add(
            message.key, peer, own.addresses, origin=origin, reached=self._reached(peer), now=now
        )
        return []


def _bucket_of_origin() -> TokenBucket:
    return TokenBucket(QUESTIONS_PER_S * ORIGIN_FACTOR, QUESTIONS_BURST * ORIGIN_FACTOR)
