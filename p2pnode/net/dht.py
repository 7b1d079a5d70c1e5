"""``Dht``: Kademlia, to find who provides a key. Its answers are hints: records live longer than their
hosts.

A key of 32 bytes (a SHA-256, such as a model id) is sent as its multihash, ``0x12 0x20`` and the key, which
is what go and js peers index; any other key is hashed with SHA-256 first.

The library's own lookup answers from a local cache for two days, and visits the whole network when it finds
fewer providers than asked for. Ours asks the closest peers it can find and stops there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import structlog
import trio
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2pnode.limits import Limits
from p2pnode.net.libp2p_host import NodeHost
from p2pnode.net.multiaddrs import PeerAddresses, from_id, is_peer, with_peer, without_peer
from p2pnode.net.services import ServiceManager, attach

log = structlog.get_logger()

AT_ONCE: Final = 6
CLOSEST: Final = 20
ENOUGH: Final = 6
"""With a provider found, this many of the closest peers asked is enough."""
ASKED_MAX: Final = 40
ANSWER_S: Final = 3.0
ANSWER_MAX_BYTES: Final = 256 * 1024
ADDRESSES_PER_PEER: Final = 8
ADDRESS_TTL_S: Final = 3600


def record_key(key: bytes) -> bytes:
    """The multihash under which providers of ``key`` are stored."""
    digest = key if len(key) == hashlib.sha256().digest_size else hashlib.sha256(key).digest()
    return b"\x12\x20" + digest


class _Kad(KadDHT):
    """The library enters every peer that asks it anything; a client would then be asked in turn, in vain."""

    async def add_peer(self, peer_id: ID, *, skip_server_mode_check: bool = False) -> bool:
        """Enter servers only, by what identify said."""
        del skip_server_mode_check
        return await super().add_peer(peer_id, skip_server_mode_check=False)


class Dht:
    """The DHT of one node: it stores records for others in server mode, and only asks in client mode."""

    def __init__(self, host: NodeHost, mode: Literal["server", "client"], limits: Limits) -> None:
        self._host = host
        self._guard = host.swarm.guard
        self._limits = limits
        self._kad = _Kad(
            host,
            DHTMode.SERVER if mode == "server" else DHTMode.CLIENT,
            max_peers_per_subnet=0,  # neighbours on one LAN, or on loopback, are the common case
        )
        self._manager: ServiceManager | None = None

    def start(self, nursery: trio.Nursery) -> None:
        """Run in ``nursery``."""
        self._manager = attach(self._kad, "dht", nursery, self._guard)

    def stop(self) -> None:
        """Start nothing new."""
        if self._manager is not None:
            self._manager.cancel()

    async def add_peer(self, peer: ID) -> bool:
        """Enter a connected peer in the routing table, if it serves the DHT."""
        return await self._kad.add_peer(peer)

    def size(self) -> int:
        """The number of peers in the routing table."""
        return self._kad.get_routing_table_size()

    async def provide(self, key: bytes) -> bool:
        """Tell the closest peers that we provide ``key``; false when none took it in time."""
        taken = False

        async def ask() -> None:
            nonlocal taken
            taken = await self._kad.provider_store.provide(record_key(key))

        with trio.move_on_after(self._limits.dht_deadline_s):
            await self._guard.run(ask)  # guarded, because the library trusts every answer
        return taken

    async def find_providers(self, key: bytes, limit: int) -> list[PeerAddresses]:
        """Up to ``limit`` peers that are said to provide ``key``, without ourselves; sorted by peer id."""
        found: dict[ID, PeerAddresses] = {}
        wire_key = record_key(key)
        with trio.move_on_after(self._limits.dht_deadline_s):
            await self._guard.run(self._lookup, wire_key, found, limit)
        return sorted(found.values(), key=lambda entry: entry.peer)[:limit]

    async def _lookup(self, key: bytes, found: dict[ID, PeerAddresses], limit: int) -> None:
        """Ask ever closer peers, ``AT_ONCE`` at a time, until the closest known have been asked."""
        self._collect(found, self._kad.provider_store.get_providers(key))
        me = self._host.get_id()
        known = set(self._kad.routing_table.find_local_closest_peers(key, CLOSEST))
        asked: set[ID] = set()

        async def ask(peer: ID) -> None:
            try:
                with trio.move_on_after(ANSWER_S):
                    answer = await self._get_providers(peer, key)
                    self._collect(found, self._readable(answer.providerPeers))
                    for closer in self._readable(answer.closerPeers):
                        if closer.peer_id != me and closer.addrs:
                            self._host.get_peerstore().add_addrs(closer.peer_id, closer.addrs, ADDRESS_TTL_S)
                            known.add(closer.peer_id)
            except Exception as error:  # noqa: BLE001  one peer's trouble is no answer, nothing more
                log.debug("dht.ask_failed", peer=from_id(peer), error=repr(error))

        def closest() -> list[ID]:
            return sort_peer_ids_by_distance(key, sorted(known, key=ID.to_bytes))[:CLOSEST]

        def next_peer() -> ID | None:
            if len(found) >= limit or len(asked) >= ASKED_MAX:
                return None
            near = closest()
            if found and all(peer in asked for peer in near[:ENOUGH]):
                return None
            return next((peer for peer in near if peer not in asked), None)

        async def worker() -> None:
            while (peer := next_peer()) is not None:
                asked.add(peer)
                await ask(peer)

        before = -1
        while len(asked) > before:  # a worker may have given up before another's answer brought new peers
            before = len(asked)
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(worker)

    async def _get_providers(self, peer: ID, key: bytes) -> Message:
        stream = await self._host.new_stream(peer, [PROTOCOL_ID])
        try:
            request = Message(type=Message.MessageType.GET_PROVIDERS, key=key)
            await stream.write(encode_varint_prefixed(request.SerializeToString()))
            answer = Message()
            answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, ANSWER_MAX_BYTES))
            return answer
        finally:
            with trio.move_on_after(1, shield=True):
                await stream.close()

    def _readable(self, entries: Iterable[Message.Peer]) -> list[PeerInfo]:
        """The entries that make sense, each with the addresses that may be dialled on a stranger's word."""
        found, policy = [], self._host.swarm.policy
        for entry in list(entries)[: 2 * CLOSEST]:
            addresses = []
            for raw in list(entry.addrs)[:ADDRESSES_PER_PEER]:
                try:
                    addresses.append(str(Multiaddr(raw)))
                except Exception:  # noqa: BLE001, S112  the library raises whatever it likes here
                    continue
            try:
                found.append(PeerInfo(ID(entry.id), [Multiaddr(each) for each in policy.dialable(addresses)]))
            except Exception:  # noqa: BLE001, S112  not a peer id
                continue
        return found

    def _collect(self, found: dict[ID, PeerAddresses], providers: Sequence[PeerInfo]) -> None:
        for provider in providers:
            if provider.peer_id == self._host.get_id():
                continue
            peer = from_id(provider.peer_id)
            if not is_peer(peer):
                continue
            before = found[provider.peer_id].addrs if provider.peer_id in found else ()
            addresses = [without_peer(str(address)) for address in provider.addrs]
            merged = dict.fromkeys((*before, *(with_peer(a, peer) for a in addresses if a)))
            found[provider.peer_id] = PeerAddresses(peer=peer, addrs=tuple(merged)[:ADDRESSES_PER_PEER])
