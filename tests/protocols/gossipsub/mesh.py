"""Many gossip machines in one heap of events, and signatures that cost a hash instead of a curve."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from typing import Any

from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import peer_id_of
from p2pnode.protocols.events import Command, Effect, Emit, Fault, Received, Send, SetTimer, TimerFired
from p2pnode.protocols.gossipsub.commands import Delivered, Join, PeerUp, Validator
from p2pnode.protocols.gossipsub.messages import RPC, Message, signed_bytes
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.protocols.gossipsub.router import GossipRouter
from p2pnode.simulations.gossip_service import GossipService, accept
from p2pnode.simulations.links import Links
from p2pnode.simulations.signatures import check, sign_with
from p2pnode.simulations.world import Node, World

TOPIC = "/p2pnode/adverts/1/" + "ab" * 32
NAME = TOPIC.encode()


def key_of(number: object) -> bytes:
    """The public key of somebody."""
    return hashlib.sha256(f"gossip key {number}".encode()).digest()


def peer_of(number: object) -> PeerId:
    """Somebody's peer id."""
    return peer_id_of(key_of(number))


def holds(public_key: bytes, message: Message) -> bool:
    """Whether a message's author signed it."""
    return check(public_key, message.signed(), message.signature)


def router_of(number: object, *, parameters: Parameters | None = None, **more: Any) -> GossipRouter:
    """A machine of its own randomness."""
    return GossipRouter(
        peer=peer_of(number),
        sign=sign_with(key_of(number)),
        check=more.pop("check", holds),
        draw=random.Random(f"draw {number}").random,
        seqno=1,
        parameters=parameters,
        **more,
    )


def message_from(number: object, data: bytes = b"data", *, seqno: int = 7, topic: bytes = NAME) -> Message:
    """A message that somebody signed."""
    author, counted = b"\x00\x24\x08\x01\x12\x20" + key_of(number), seqno.to_bytes(8, "big")
    signature = sign_with(key_of(number))(signed_bytes(author, data, counted, topic))
    return Message.of(author=author, seqno=counted, topic=topic, data=data, signature=signature)


def changed(message: Message, **changes: Any) -> Message:
    """A message whose fields were changed after it was signed."""
    names = ("author", "seqno", "topic", "data", "signature", "key")
    return Message.of(**{**{name: getattr(message, name) for name in names}, **changes})


def sends(effects: Iterable[Effect], to: PeerId | None = None) -> list[Any]:
    """The RPCs that are sent, parsed; to one peer or to all."""
    found = [each for each in effects if isinstance(each, Send) and to in (None, each.peer)]
    return [RPC.parse(each.message) for each in found]


def faults(effects: Iterable[Effect]) -> list[tuple[PeerId, str]]:
    """Who did what."""
    values = [each.value for each in effects if isinstance(each, Emit)]
    return [(each.peer, each.name) for each in values if isinstance(each, Fault)]


def deliveries(effects: Iterable[Effect]) -> list[bytes]:
    """What was delivered."""
    values = [each.value for each in effects if isinstance(each, Emit)]
    return [each.data for each in values if isinstance(each, Delivered)]


AT_ONCE = Parameters(forward_delay_s=0.0)


class Subject:
    """One machine and scripted peers around it; ``now`` is the test's. It forwards at once unless told."""

    def __init__(self, *, parameters: Parameters = AT_ONCE, **more: Any) -> None:
        self.router = router_of("subject", parameters=parameters, **more)
        self.now = 100.0
        self.timer: float | None = None

    def command(self, value: Any) -> list[Effect]:
        return self._note(self.router.handle(Command(value), self.now))

    def hear(self, peer: PeerId, rpc: bytes | Any) -> list[Effect]:
        payload = rpc if isinstance(rpc, bytes) else rpc.SerializeToString()
        return self._note(self.router.handle(Received(peer, 0, payload), self.now))

    def join(self, validator: Validator = accept, topic: str = TOPIC) -> list[Effect]:
        return self.command(Join(topic, validator))

    def connect(self, number: object, *, on: bytes | None = NAME, **up: Any) -> PeerId:
        """A peer, which says it is on the topic."""
        peer = peer_of(number)
        self.command(PeerUp(peer, **up))
        if on is not None:
            self.hear(peer, subscription(on))
        return peer

    def beat(self) -> list[Effect]:
        """The heartbeat, when it is due."""
        assert self.timer is not None, "no heartbeat is set"
        self.now, self.timer = max(self.now, self.timer), None
        return self._note(self.router.handle(TimerFired("heartbeat"), self.now))

    def rest(self, seconds: float) -> list[Effect]:
        """Let time pass, with the heartbeats that are due."""
        end, effects = self.now + seconds, []
        while self.timer is not None and self.timer <= end:
            effects += self.beat()
        self.now = end
        return effects

    def _note(self, effects: Iterable[Effect]) -> list[Effect]:
        made = list(effects)
        for each in made:
            if isinstance(each, SetTimer) and each.key == "heartbeat":
                self.timer = each.at
        return made


def subscription(*topics: bytes, on: bool = True) -> Any:
    """An RPC."""
    return RPC.make(subscriptions=[{"subscribe": on, "topic": topic} for topic in topics])


def control(**lists: Any) -> Any:
    """An RPC of control messages, as maps."""
    return RPC.make(control=lists)


class Mesh:
    """Nodes on one topic, in a world where everything takes ``latency_s`` from one to another."""

    def __init__(
        self,
        *,
        latency_s: float = 0.05,
        parameters: Parameters | None = None,
        seed: int = 1,
        with_groups: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        latency_ms = latency_s * 1000
        links = Links(
            latency="uniform", latency_min_ms=latency_ms, latency_max_ms=latency_ms, jitter_share=0.0
        )
        self.world = World(seed, links=links)
        self.gossip = GossipService(
            self.world,
            parameters,
            on_delivered=self._delivered,
            on_fault=lambda node, fault: self.faults.append((self.world.now, node.peer, fault)),
            with_groups=with_groups,
        )
        self.arrived: dict[bytes, dict[PeerId, float]] = {}
        self.faults: list[tuple[float, PeerId, Fault]] = []

    @property
    def routers(self) -> dict[PeerId, GossipRouter]:
        return self.gossip.routers

    def _delivered(self, node: Node, delivered: Delivered) -> None:
        self.arrived.setdefault(delivered.data, {}).setdefault(node.peer, self.world.now)

    def node(self, peer: PeerId) -> Node:
        return self.world.by_peer[peer]

    def neighbours(self, peer: PeerId) -> set[PeerId]:
        """Whom it is connected with."""
        return set(self.node(peer).links)

    def add(self, number: object, *, joins: bool = True, ip: str | None = None) -> PeerId:
        node = self.world.add(key=key_of(number), ip=ip)
        if joins:
            self.gossip.join(node, TOPIC)
        return node.peer

    def connect(self, a: PeerId, b: PeerId) -> None:
        if a != b:
            self.world.connect(self.node(a), self.node(b))

    def connect_at_random(self, peer: PeerId, count: int) -> None:
        others = sorted(each for each in self.routers if each != peer)
        for other in self.rng.sample(others, min(count, len(others))):
            self.connect(peer, other)

    def crash(self, peer: PeerId) -> None:
        """Gone without a word; its neighbours' connections break."""
        self.world.crash(self.node(peer))

    def leave(self, peer: PeerId) -> None:
        self.gossip.leave(self.node(peer), TOPIC)

    def publish(self, peer: PeerId, data: bytes) -> float:
        self.gossip.publish(self.node(peer), TOPIC, data)
        return self.world.now

    def reached(self, data: bytes) -> set[PeerId]:
        return set(self.arrived.get(data, {}))

    def sizes(self) -> list[int]:
        """Of each machine's mesh."""
        return [len(router.mesh(TOPIC)) for router in self.routers.values()]

    def is_connected(self) -> bool:
        """Whether everybody is reached from anybody along the meshes."""
        if not self.routers:
            return True
        start = next(iter(self.routers))
        seen, todo = {start}, [start]
        while todo:
            for other in self.routers[todo.pop()].mesh(TOPIC):
                if other in self.routers and other not in seen:
                    seen.add(other)
                    todo.append(other)
        return len(seen) == len(self.routers)
