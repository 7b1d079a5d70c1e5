"""The DHT: the node's ``KademliaNode`` on each node of a world. ``Dht`` are the parameters.

Every decision is the machine's; here questions find their way, and who is not where its addresses say stays
silent. Whoever connects identifies itself at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from p2pnode.ids import PeerId
from p2pnode.protocols.events import Command, Emit, Received, Send
from p2pnode.protocols.kademlia.lookup import ANSWER_S, Ask, Parameters
from p2pnode.protocols.kademlia.messages import Message, bytes_of, record_key
from p2pnode.protocols.kademlia.node import (
    Answered,
    AskPeer,
    Disconnected,
    Ended,
    FindProviders,
    Identified,
    KademliaNode,
    Mode,
    Provide,
    Unanswered,
)
from p2pnode.shares import Origin, origin_of
from p2pnode.simulations.parameters import require_not_negative, require_positive, require_shares
from p2pnode.simulations.world import Link, Node, World

PROTOCOL: Final = "kademlia"
_STREAM: Final = 0
_PROVIDE_BEFORE_S: Final = 10.0
_TRIED: Final = 4
"""Nodes that are drawn for each contact: some are down."""
_LIMIT: Final = 12
"""Providers that a lookup wants."""
TAKEN: Final = Message(kind="ping")
"""What an answerer returns where the stream ends in order, without an answer."""


@dataclass(slots=True)
class Looked:
    """One lookup, while it goes on and when it is over. A hop is a question to one that another one named."""

    begun_at: float
    node: Node
    ended: Ended | None = None
    ended_at: float = 0.0
    asked: int = 0
    failed: int = 0
    hops: int = 0
    """To the first who named a provider, or to the peer whose id is the key; 0 where nobody did."""
    depths: dict[PeerId, int] = field(default_factory=dict)
    """How many hops away each peer that was named is."""


Found = Callable[[Looked], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dht:
    """Parameters of who takes part."""

    servers_share: float = 1.0
    """Of nodes that can be dialled: those that answer questions and stand in tables."""
    contacts: int = 3
    """Peers that a node dials when it starts."""
    keys: int = 10
    """Keys that are provided and looked for; a node provides one of them."""
    providers_share: float = 0.1
    """Of the nodes, those that provide."""
    lookups_per_s: float = 1.0
    """Of all nodes together."""

    def __post_init__(self) -> None:
        require_shares(self, "servers_share", "providers_share")
        require_positive(self, "contacts", "keys")
        require_not_negative(self, "lookups_per_s")


def address_of(ip: str) -> bytes:
    """A binary multiaddr: IPv4 and TCP port 4001."""
    return b"\x04" + bytes(int(each) for each in ip.split(".")) + b"\x06\x0f\xa1"


def ip_in(address: bytes) -> str:
    """The IPv4 address of a binary multiaddr; empty for what is none."""
    return ".".join(map(str, address[1:5])) if len(address) == 8 and address[0] == 4 else ""  # noqa: PLR2004


@lru_cache(1 << 17)
def prefix_of(ip: str, peer: PeerId) -> Origin:
    """The origin of a peer at an address."""
    return origin_of(ip, peer)


def _dialable(addresses: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(each for each in addresses if ip_in(each))


def _never(_peer: PeerId) -> bool:
    return False


def _note(looked: Looked, ask: Ask, answer: Message | None, depth: int) -> None:
    if answer is None:
        looked.failed += 1
        return
    for each in answer.closer:
        looked.depths.setdefault(each.peer, depth + 1)
    if not looked.hops and (answer.providers or bytes_of(ask.peer) == ask.question.key):
        looked.hops = depth


class DhtService:
    """The DHT of a world; a :class:`Service`. ``mode_of`` says who serves, when it starts.

    ``carry`` is what becomes of a question and of an answer on its way.
    """

    def __init__(
        self,
        world: World,
        *,
        mode_of: Callable[[Node], Mode] = lambda _node: "server",
        on_fault: Callable[[Node, Any], None] = lambda _node, _fault: None,
        carry: Callable[[Message], Message] = lambda message: message,
        parameters: Parameters | None = None,
    ) -> None:
        self._parameters = parameters
        self._world, self._mode_of, self._on_fault, self._carry = world, mode_of, on_fault, carry
        self.machines: dict[PeerId, KademliaNode] = {}
        """Of the nodes that are up."""
        self.asked = 0
        """Questions so far, of all nodes."""
        self._draw = world.draws("dht")
        self._at: dict[str, Node] = {}
        """Who was last seen at an address, by it."""
        self._running: dict[int, tuple[Looked, Found]] = {}
        self._number = 0
        world.services.append(self)

    def find(self, node: Node, key: bytes, limit: int, then: Found) -> int:
        """Look for providers of a key; ``then`` is told when it is over. Returns the lookup's number."""
        return self._begin(node, then, lambda number: FindProviders(number, key, limit))

    def provide(self, node: Node, key: bytes, then: Found = lambda _looked: None) -> int:
        """Store a record of this node under a key."""
        return self._begin(node, then, lambda number: Provide(number, key))

    def _begin(self, node: Node, then: Found, command: Callable[[int], FindProviders | Provide]) -> int:
        self._number = number = self._number + 1
        self._running[number] = (Looked(self._world.now, node), then)
        if (shell := node.shells.get(PROTOCOL)) is not None:
            shell.command(command(number))
        return number

    def started(self, node: Node) -> None:
        """Make its machine."""
        world, own = self._world, (address_of(node.ip),)
        machine = KademliaNode(
            node.peer,
            self._mode_of(node),
            draw=random.Random(self._draw.random()).randrange,  # noqa: S311  reproducible, no secret
            origin_of=lambda other: prefix_of(world.by_peer[other].ip, other),
            origin_at=lambda other, addresses: prefix_of(ip_in(addresses[0]), other),
            dialable=_dialable,
            reached=_never,
            own_addresses=lambda: own,
            parameters=self._parameters,
        )
        self.machines[node.peer] = machine
        self._at[node.ip] = node
        node.answers[PROTOCOL] = lambda asker, question: self._answer(node, asker, question)
        world.mount(
            node,
            PROTOCOL,
            machine,
            on_emit=lambda value: self._emitted(node, value),
            start=machine.start(world.now),
        )

    def stopped(self, node: Node) -> None:
        """Its machine is gone."""
        del self.machines[node.peer]

    def connected(self, link: Link) -> None:
        """Tell the machine who its peer is, as after identify."""
        if (shell := link.sender.shells.get(PROTOCOL)) is not None:
            other = link.receiver
            machine = self.machines.get(other.peer)
            serves = machine.mode == "server" if machine is not None else PROTOCOL in other.answers
            shell.command(Identified(other.peer, (address_of(other.ip),), serves))

    def disconnected(self, link: Link) -> None:
        """Tell it that the peer is gone."""
        if (shell := link.sender.shells.get(PROTOCOL)) is not None:
            shell.command(Disconnected(link.receiver.peer))

    def _emitted(self, node: Node, value: Any) -> None:
        if type(value) is AskPeer:
            self.asked += 1
            self._ask(node, value)
        elif type(value) is Ended:
            if (running := self._running.pop(value.id, None)) is not None:
                looked, then = running
                looked.ended, looked.ended_at = value, self._world.now
                then(looked)
        else:
            self._on_fault(node, value)

    def _ask(self, node: Node, value: AskPeer) -> None:
        ask, shell = value.ask, node.shells[PROTOCOL]
        other = self._world.by_peer.get(ask.peer)
        if other is not None and other.peer not in node.links:
            # It is dialled where it is said to be, and somebody else may be there.
            there = any(self._at.get(ip_in(each)) is other for each in ask.addresses)
            other = other if there else None

        running = self._running.get(value.id)
        looked = running[0] if running is not None else None
        depth = 0
        if looked is not None:
            looked.asked += 1
            depth = looked.depths.setdefault(ask.peer, 1)

        def report(answer: Message | None) -> None:
            if shell.is_over:
                return
            if looked is not None:
                _note(looked, ask, answer, depth)
            if answer is None:
                shell.give(Command(Unanswered(value.id, ask.peer)))
            else:
                shell.give(Command(Answered(value.id, ask.peer, answer if answer is not TAKEN else None)))

        question = self._carry(ask.question)
        sent = TAKEN if question.kind == "add_provider" else None
        self._world.ask(node, other, PROTOCOL, question, report, deadline_s=ANSWER_S, sent=sent)

    def _answer(self, node: Node, asker: Node, question: Message) -> Message | None:
        machine = self.machines[node.peer]
        for effect in machine.handle(Received(asker.peer, _STREAM, question), self._world.now):
            if type(effect) is Send:
                return self._carry(effect.message)
            if type(effect) is Emit:
                self._on_fault(node, effect.value)
        # What expects no answer was taken, and a flood is not told so either: the stream ends in order.
        return TAKEN


class Lookups:
    """Nodes that provide keys, and others that look for them, at a steady pace."""

    def __init__(self, world: World, dht: Dht) -> None:
        self._world, self._dht = world, dht
        self._draw = world.draws("lookups")
        self._contacts = world.draws("contacts")
        self._modes = world.draws("modes")
        self._served: dict[PeerId, Mode] = {}
        self.service = DhtService(world, mode_of=self._mode_of)
        self._provides: dict[int, bytes] = {}
        self._keys = [record_key(self._draw.randbytes(32)) for _ in range(dht.keys)]
        self.done: list[Looked] = []
        world.services.append(self)

    def start(self, nodes: Sequence[Node], start_s: float, end_s: float) -> None:
        """Provide a little before ``start_s``, and look from then until ``end_s``; seconds of the world."""
        count = round(self._dht.providers_share * len(nodes))
        for number, node in enumerate(self._draw.sample(list(nodes), count)):
            self._provides[node.number] = key = self._keys[number % len(self._keys)]
            self._world.loop.at(max(0.0, start_s - _PROVIDE_BEFORE_S), self.service.provide, node, key)
        if self._dht.lookups_per_s and count:
            self._world.loop.at(start_s, self._look, end_s)

    def started(self, node: Node) -> None:
        """It dials some of those that are there, and provides what it provided."""
        up = [
            each for each in self._draw_some(_TRIED * self._dht.contacts) if each.is_up and each is not node
        ]
        for other in up[: self._dht.contacts]:
            self._world.dial(node, other, lambda _link: None)
        if (key := self._provides.get(node.number)) is not None:
            self._world.loop.after(_PROVIDE_BEFORE_S, self.service.provide, node, key)

    def stopped(self, node: Node) -> None:
        """Nothing is kept of it."""

    def connected(self, link: Link) -> None:
        """The service tells the machine."""

    def disconnected(self, link: Link) -> None:
        """The service tells the machine."""

    def _mode_of(self, node: Node) -> Mode:
        if node.peer not in self._served:
            serves = node.nat == "public" and self._modes.random() < self._dht.servers_share
            self._served[node.peer] = "server" if serves else "client"
        return self._served[node.peer]

    def _draw_some(self, count: int) -> list[Node]:
        nodes = self._world.nodes
        return [self._contacts.choice(nodes) for _ in range(count)]

    def _look(self, end_s: float) -> None:
        world = self._world
        if world.now >= end_s:
            return
        world.loop.after(1.0 / self._dht.lookups_per_s, self._look, end_s)
        node, key = self._draw.choice(world.nodes), self._draw.choice(self._keys)
        if node.is_up:
            self.service.find(node, key, _LIMIT, self._ended)

    def _ended(self, looked: Looked) -> None:
        self.done.append(looked)
        recorder, found = self._world.recorder, len(looked.ended.providers) if looked.ended else 0
        if recorder is not None:
            number = looked.node.number
            recorder.row(
                "lookups", at_s=looked.begun_at, node=number, kind="providers",
                seconds=looked.ended_at - looked.begun_at, hops=looked.hops, asked=looked.asked, found=found,
                failed=looked.failed,
            )  # fmt: skip
            recorder.event(self._world.now, number, "lookup", found)
