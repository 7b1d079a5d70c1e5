"""Thousands of DHT nodes in a world: each the machine that a node runs, questions with a latency.

A question to a peer that is gone, or to an address where nobody is, is unanswered after ``ANSWER_S``. What
travels is encoded and decoded, so that bounds of the wire hold here, too.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2pnode.ids import PeerId
from p2pnode.protocols.kademlia.lookup import FoundProvider
from p2pnode.protocols.kademlia.messages import Message, bytes_of, decode, encode, peer_of, point_of_key
from p2pnode.protocols.kademlia.node import Ended, KademliaNode, Mode
from p2pnode.simulations.dht import PROTOCOL, TAKEN, DhtService, Looked, address_of, ip_in, prefix_of
from p2pnode.simulations.links import Links
from p2pnode.simulations.world import Node, World

__all__ = ["DhtWorld", "Host", "address", "grown", "ip_in", "nearest", "peer_number", "prefix_of"]
PREFIX = bytes.fromhex("002408011220")
"""Of the bytes of an Ed25519 key's peer id."""
Liar = Callable[[PeerId, Message], Message | None]
"""What a hostile server answers a peer."""
address = address_of
FIFTY_MS = Links(
    latency="uniform", latency_min_ms=50, latency_max_ms=50, jitter_share=0.0, handshake_round_trips=0.0
)


def peer_number(number: int) -> PeerId:
    """A peer id like that of an Ed25519 key."""
    found = peer_of(PREFIX + random.Random(number).randbytes(32))
    assert found is not None
    return found


@dataclass
class Host:
    """A node, and where it is. ``lie`` answers in its place."""

    at: Node
    node: KademliaNode
    lie: Liar | None = None

    @property
    def peer(self) -> PeerId:
        return self.at.peer

    @property
    def ip(self) -> str:
        return self.at.ip


class DhtWorld:
    """See the module. Everything is drawn from ``seed``."""

    def __init__(self, seed: int = 1) -> None:
        self.draw = random.Random(seed)
        self.hosts: dict[PeerId, Host] = {}
        self.faults: list[Any] = []
        self.world = World(seed, links=FIFTY_MS)
        self.dht = DhtService(
            self.world,
            mode_of=lambda _node: self._mode,
            on_fault=lambda _node, fault: self.faults.append(fault),
            carry=lambda message: decode(encode(message)),
        )
        self._mode: Mode = "server"

    @property
    def asked(self) -> int:
        return self.dht.asked

    def add(self, peer: PeerId, ip: str, *, mode: Mode = "server", lie: Liar | None = None) -> Host:
        """A node at an address of its own."""
        self._mode = mode
        node = self.world.add(key=bytes_of(peer)[len(PREFIX) :], ip=ip)
        host = Host(node, self.dht.machines[peer], lie)
        self.hosts[peer] = host
        if lie is not None:
            node.shells[PROTOCOL].stop()
            node.answers[PROTOCOL] = lambda asker, question: lie(asker.peer, question) or TAKEN
        return host

    def crash(self, peer: PeerId) -> None:
        """It is gone; who was connected to it notices."""
        self.world.crash(self.hosts[peer].at)

    def connect(self, one: Host, other: Host) -> None:
        """Both learn of one another, as after identify."""
        self.world.connect(one.at, other.at)

    def find(self, host: Host, key: bytes, *, limit: int = 12, within_s: float = 10.0) -> list[FoundProvider]:
        """The providers that a lookup of this node finds."""
        looked: list[Looked] = []
        self.dht.find(host.at, key, limit, looked.append)
        self.world.run_for(within_s)
        return list(_ended(looked).providers)

    def provide(self, host: Host, key: bytes, *, within_s: float = 10.0) -> int:
        """With how many peers a record of this node was stored."""
        looked: list[Looked] = []
        self.dht.provide(host.at, key, looked.append)
        self.world.run_for(within_s)
        return _ended(looked).stored


def _ended(looked: list[Looked]) -> Ended:
    [only] = looked
    assert only.ended is not None
    return only.ended


def nearest(key: bytes, count: int, *, among: int, seed: int) -> list[PeerId]:
    """The peer ids that lie closest to a key, of so many that were drawn: this is what grinding ids gives."""
    draw, point = random.Random(seed), point_of_key(key)

    def distance(raw: bytes) -> int:
        return int.from_bytes(hashlib.sha256(raw).digest(), "big") ^ point

    found = heapq.nsmallest(count, (PREFIX + draw.randbytes(32) for _ in range(among)), distance)
    return [peer for raw in found if (peer := peer_of(raw)) is not None]


def grown(
    count: int,
    *,
    seed: int = 1,
    ip: Callable[[int], str] = lambda number: (
        f"{20 + number // 62500}.{number // 250 % 250}.{number % 250}.7"
    ),
    settle_s: float = 30.0,
) -> DhtWorld:
    """``count`` honest servers that joined through one another, each with an origin of its own."""
    world = DhtWorld(seed)
    hosts: list[Host] = []
    for number in range(count):
        host = world.add(peer_number(seed * 1_000_000 + number), ip(number))
        for other in world.draw.sample(hosts, min(3, len(hosts))):
            world.connect(host, other)
        hosts.append(host)
        world.world.run_for(0.2)
    world.world.run_for(settle_s)
    return world
