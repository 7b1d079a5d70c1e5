"""Thousands of DHT nodes on an event heap: each the machine that a node runs, questions with a latency.

A question to a peer that is gone, or to an address where nobody is, is unanswered after ``ANSWER_S``. What
travels is encoded and decoded, so that bounds of the wire hold here, too.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from p2pnode.ids import PeerId
from p2pnode.protocols.events import Command, Emit, Received, Send
from p2pnode.protocols.kademlia.lookup import ANSWER_S, FoundProvider
from p2pnode.protocols.kademlia.messages import Message, decode, encode, peer_of, point_of_key
from p2pnode.protocols.kademlia.node import (
    Answered,
    AskPeer,
    Ended,
    FindProviders,
    Identified,
    KademliaNode,
    Mode,
    Provide,
    Unanswered,
)
from p2pnode.shares import Origin, origin_of
from tests.event_heap import MachineWorld

STREAM = 0
LATENCY_S = 0.05
PREFIX = bytes.fromhex("002408011220")
"""Of the bytes of an Ed25519 key's peer id."""
Liar = Callable[[PeerId, Message], Message | None]
"""What a hostile server answers a peer."""


def peer_number(number: int) -> PeerId:
    """A peer id like that of an Ed25519 key."""
    found = peer_of(PREFIX + random.Random(number).randbytes(32))
    assert found is not None
    return found


def address(ip: str) -> bytes:
    """A binary multiaddr: IPv4 and TCP port 4001."""
    return b"\x04" + bytes(int(each) for each in ip.split(".")) + b"\x06\x0f\xa1"


@lru_cache(10_000)
def prefix_of(ip: str, peer: PeerId) -> Origin:
    """The origin of a peer at an address."""
    return origin_of(ip, peer)


def ip_in(where: bytes) -> str:
    """The IPv4 address of a binary multiaddr; empty for what is none."""
    return ".".join(map(str, where[1:5])) if len(where) == 8 and where[0] == 4 else ""


@dataclass
class Host:
    """A node, and where it is. ``lie`` answers in its place."""

    peer: PeerId
    ip: str
    node: KademliaNode
    lie: Liar | None = None
    delay_s: float = 0.0
    """Before it answers."""
    connected: set[PeerId] = field(default_factory=set)


class DhtWorld:
    """See the module. Everything is drawn from ``seed``."""

    def __init__(self, seed: int = 1) -> None:
        self.draw = random.Random(seed)
        self.hosts: dict[PeerId, Host] = {}
        self.at: dict[str, PeerId] = {}
        self.ended: dict[tuple[PeerId, int], Ended] = {}
        self.asked = 0
        self.faults: list[Any] = []
        self.world = MachineWorld(on_emit=self._emitted)
        self._numbers = iter(range(10**9))

    def add(self, peer: PeerId, ip: str, *, mode: Mode = "server", lie: Liar | None = None) -> Host:
        """A node at an address of its own."""
        node = KademliaNode(
            peer,
            mode,
            draw=random.Random(self.draw.random()).randrange,
            origin_of=lambda other: prefix_of(self.hosts[other].ip, other),
            origin_at=lambda other, addresses: prefix_of(ip_in(addresses[0]), other),
            dialable=lambda addresses: tuple(each for each in addresses if ip_in(each)),
            reached=lambda _other: False,
            own_addresses=lambda: (address(ip),),
        )
        host = Host(peer, ip, node, lie)
        self.hosts[peer], self.at[ip] = host, peer
        self.world.add(peer, node, node.start(self.world.now) if lie is None else ())
        return host

    def crash(self, peer: PeerId) -> None:
        """It is gone; who was connected to it notices."""
        host = self.hosts[peer]
        self.world.remove(peer)
        del self.at[host.ip]

    def connect(self, one: Host, other: Host) -> None:
        """Both learn of one another, as after identify."""
        for a, b in ((one, other), (other, one)):
            if b.peer in a.connected:
                continue
            a.connected.add(b.peer)
            serves = b.lie is not None or b.node.mode == "server"
            if a.peer in self.world.machines:
                self.world.give(a.peer, Command(Identified(b.peer, (address(b.ip),), serves)))

    def find(self, host: Host, key: bytes, *, limit: int = 12, within_s: float = 10.0) -> list[FoundProvider]:
        """The providers that a lookup of this node finds."""
        number = next(self._numbers)
        self.world.give(host.peer, Command(FindProviders(number, key, limit)))
        self.world.run_for(within_s)
        return list(self.ended[host.peer, number].providers)

    def provide(self, host: Host, key: bytes, *, within_s: float = 10.0) -> int:
        """With how many peers a record of this node was stored."""
        number = next(self._numbers)
        self.world.give(host.peer, Command(Provide(number, key)))
        self.world.run_for(within_s)
        return self.ended[host.peer, number].stored

    def _emitted(self, peer: PeerId, value: Any) -> None:
        match value:
            case Ended():
                self.ended[peer, value.id] = value
            case AskPeer():
                self.asked += 1
                self._ask(self.hosts[peer], value)
            case _:
                self.faults.append(value)

    def _ask(self, asker: Host, value: AskPeer) -> None:
        target, ask = self.hosts.get(value.ask.peer), value.ask
        heap = self.world.heap
        ips = [ip_in(each) for each in ask.addresses]
        known = target is not None and target.peer in asker.connected
        if target is None or self.at.get(target.ip) != target.peer or not (known or target.ip in ips):
            gone = Command(Unanswered(value.id, ask.peer))
            heap.at(heap.now + ANSWER_S, lambda: self.world.give(asker.peer, gone))
            return
        question = decode(encode(ask.question))

        def arrive() -> None:
            self.connect(asker, target)
            answer = self._answer(target, asker.peer, question)
            report = Answered(value.id, ask.peer, None if answer is None else decode(encode(answer)))
            heap.at(
                heap.now + LATENCY_S + target.delay_s, lambda: self.world.give(asker.peer, Command(report))
            )

        heap.at(heap.now + LATENCY_S, arrive)

    def _answer(self, target: Host, asker: PeerId, question: Message) -> Message | None:
        if target.lie is not None:
            return target.lie(asker, question)
        effects = target.node.handle(Received(asker, STREAM, question), self.world.now)
        assert all(isinstance(each, Send | Emit) for each in effects)
        return next((each.message for each in effects if isinstance(each, Send)), None)


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
