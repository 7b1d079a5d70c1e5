"""Gossip: the node's ``GossipRouter`` on each node of a world. ``Gossip`` are the parameters.

Every decision is the machine's; here are its connections, its topics and what it delivers. Signatures cost a
hash, and what is the same for all nodes (whether a signature holds) is found out once.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.events import Command, Fault
from p2pnode.protocols.gossipsub.commands import (
    ACCEPT,
    Delivered,
    GossipCommand,
    GossipEmission,
    Join,
    Leave,
    PeerDown,
    PeerUp,
    Publish,
    Validator,
    Verdict,
)
from p2pnode.protocols.gossipsub.messages import Control, Message, Published, Rpc, decode_rpc
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.protocols.gossipsub.router import Check, GossipRouter
from p2pnode.shares import origin_of
from p2pnode.simulations.cpu import Cpu, CpuQueue
from p2pnode.simulations.parameters import require_not_negative, require_positive
from p2pnode.simulations.signatures import check, sign_with
from p2pnode.simulations.world import Link, Node, World

PROTOCOL: Final = "gossip"
_NUMBER_BYTES: Final = 8
_DECODED_MAX: Final = 8192
Version: TypeAlias = Literal["p2pnode", "v1_0"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gossip:
    """Parameters: of the network of connections, and of what is published besides the adverts."""

    version: Version = "p2pnode"
    """The node's own parameters, or GossipSub 1.0 as published."""
    dials: int = 10
    """Connections that each node opens, to others drawn at random."""
    publishers: int = 0
    """Nodes that publish test messages, in turns."""
    messages_per_s: float = 1.0
    """Of all publishers together."""
    message_bytes: int = 512
    """About what an advert has; from 1024 on, neighbours say which ones they do not want any more."""

    def __post_init__(self) -> None:
        require_not_negative(self, "publishers")
        require_positive(self, "dials", "messages_per_s", "message_bytes")

    def parameters(self) -> Parameters:
        """Those of the machine."""
        return Parameters.v1_0() if self.version == "v1_0" else Parameters()


def accept(_author: PeerId, _data: bytes) -> Verdict:
    """A topic's validator that takes everything."""
    return ACCEPT


def _everybody(_node: Node) -> bool:
    return True


def _ignore_delivery(_node: Node, _delivered: Delivered) -> None:
    pass


def _ignore_fault(_node: Node, _fault: Fault) -> None:
    pass


def _charged(queue: CpuQueue, cpu: Cpu, sign: Signer) -> tuple[Signer, Check]:
    """Signing and checking that take their time of a core. What is checked was parsed just before."""

    def sign_for(message: bytes) -> bytes:
        queue.charge(cpu.seconds(cpu.sign_s))
        return sign(message)

    def check_for(public_key: bytes, message: bytes, signature: bytes) -> bool:
        queue.charge(cpu.seconds(cpu.decode_s + cpu.check_s))
        return check(public_key, message, signature)

    return sign_for, check_for


class _SharedMessage(Message):
    """A message that is taken apart once, and not by each node."""

    __slots__ = ("_said", "data", "signature")

    def __init__(self, message: Message) -> None:
        self.data, self.signature = message.data, message.signature  # type: ignore[misc]
        self._said = message.signed()
        super().__init__(
            author=message.author, seqno=message.seqno, topic=message.topic, data=self.data,
            signature=self.signature, key=message.key,
        )  # fmt: skip

    def signed(self) -> bytes:
        return self._said


@dataclass(slots=True)
class _Listed:
    """An entry of a control message, in plain objects: reading it again costs nothing."""

    topic: bytes
    ids: Sequence[bytes] = ()
    backoff: int = 0


class _SharedControl:
    __slots__ = ("graft", "idontwant", "ihave", "iwant", "prune")

    def __init__(self, control: Any) -> None:
        self.graft = tuple(_Listed(each.topic) for each in control.graft)
        self.prune = tuple(_Listed(each.topic, backoff=each.backoff) for each in control.prune)
        self.ihave = tuple(_Listed(each.topic, tuple(each.ids)) for each in control.ihave)
        self.iwant = tuple(_Listed(b"", tuple(each.ids)) for each in control.iwant)
        self.idontwant = tuple(_Listed(b"", tuple(each.ids)) for each in control.idontwant)


class _ToldControl:
    """The same, of what a machine tells. Mostly that is one thing of these five."""

    graft: Sequence[_Listed] = ()
    prune: Sequence[_Listed] = ()
    ihave: Sequence[_Listed] = ()
    iwant: Sequence[_Listed] = ()
    idontwant: Sequence[_Listed] = ()

    def __init__(self, control: Control) -> None:
        if control.ihave:
            self.ihave = [_Listed(topic, ids) for topic, ids in control.ihave.items()]
        if control.graft:
            self.graft = [_Listed(topic) for topic in control.graft]
        if control.prune:
            self.prune = [_Listed(topic, backoff=backoff) for topic, backoff in control.prune.items()]
        if control.iwant:
            self.iwant = (_Listed(b"", control.iwant),)
        if control.idontwant:
            self.idontwant = (_Listed(b"", control.idontwant),)


class Told(Rpc):
    """A control message on its way: as long as its bytes, which nobody makes, and read already."""

    __slots__ = ("_size",)

    def __init__(self, control: Control) -> None:
        self._size = control.size()
        self.publish = self.subscriptions = ()
        self.control = told = _ToldControl(control)
        entries = 1 + 2 * len(told.graft) + 3 * len(told.prune) + len(told.iwant) + len(told.idontwant)
        for each in told.ihave:
            entries += 2 + len(each.ids)
        self.entries = entries + len(control.iwant) + len(control.idontwant)

    def __len__(self) -> int:
        return self._size


class SharedCodec:
    """``decode_rpc`` for many machines: what one has read is not read again by the others."""

    def __init__(self) -> None:
        self._known: dict[bytes, Rpc] = {}

    def encode(self, control: Control) -> Told:
        """A control message; who gets it need not parse it."""
        return Told(control)

    def decode(self, payload: bytes | Told) -> Rpc:
        """Raises ``ProtocolError``."""
        if isinstance(payload, Told):
            return payload
        found = self._known.get(payload)
        if found is None:
            found = decode_rpc(payload)
            found.subscriptions = tuple(found.subscriptions)
            if found.control is not None:
                found.control = _SharedControl(found.control)
            if found.is_one_message:
                entry = found.publish[0]
                with suppress(ProtocolError):  # whoever looks at it is told
                    found.publish = (Published(_SharedMessage(entry.message()), entry.topics, entry.id),)
            self._keep(payload, found)
        return found

    def _keep(self, payload: bytes, found: Rpc) -> None:
        self._known[payload] = found
        if len(self._known) > _DECODED_MAX:
            del self._known[next(iter(self._known))]


class GossipService:
    """Gossip of a world; a :class:`Service`. A node that starts is on no topic.

    ``with_groups``: the machine is told where a peer comes from, as the node tells it. ``speaks``: which
    nodes have the machine at all; to the others nothing is sent.
    """

    def __init__(
        self,
        world: World,
        parameters: Parameters | None = None,
        *,
        speaks: Callable[[Node], bool] = _everybody,
        on_delivered: Callable[[Node, Delivered], None] = _ignore_delivery,
        on_fault: Callable[[Node, Fault], None] = _ignore_fault,
        with_groups: bool = True,
        carry: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._world, self._parameters = world, parameters or Parameters()
        self._on_delivered, self._on_fault = on_delivered, on_fault
        self._with_groups, self._carry, self._speaks = with_groups, carry, speaks
        self._codec = SharedCodec()
        self.routers: dict[PeerId, GossipRouter] = {}
        """Of the nodes that are up."""
        self._before: dict[PeerId, Counter[str]] = {}
        self._starts = 0
        world.services.append(self)

    def join(self, node: Node, topic: str, validator: Validator = accept) -> None:
        """The node takes part in a topic."""
        self.tell(node, Join(topic, validator))

    def leave(self, node: Node, topic: str) -> None:
        """It takes part no longer."""
        self.tell(node, Leave(topic))

    def publish(self, node: Node, topic: str, data: bytes) -> None:
        """It signs and sends."""
        self.tell(node, Publish(topic, data))

    def tell(self, node: Node, command: GossipCommand) -> None:
        """A command to a node's machine; nothing happens where it is down."""
        if (shell := node.shells.get(PROTOCOL)) is None:
            return
        if node.cpu is None:
            shell.give(Command(command))
        else:
            node.cpu.run(0.0, shell.give, Command(command))

    def started(self, node: Node) -> None:
        """Make its machine."""
        if not self._speaks(node):
            return
        self._starts += 1
        sign: Signer = sign_with(node.public_key)
        checked: Check = check
        if node.cpu is not None and self._world.cpu is not None:
            sign, checked = _charged(node.cpu, self._world.cpu, sign)
        router = GossipRouter(
            peer=node.peer,
            sign=sign,
            check=checked,
            decode=self._codec.decode,
            encode=self._codec.encode,
            draw=self._world.draws("gossip", self._starts).random,
            seqno=self._starts << 32,
            parameters=self._parameters,
        )
        self.routers[node.peer] = router
        on_delivered, on_fault = self._on_delivered, self._on_fault

        def emitted(value: GossipEmission) -> None:
            if type(value) is Delivered:
                on_delivered(node, value)
            elif type(value) is Fault:
                on_fault(node, value)

        self._world.mount(
            node, PROTOCOL, router, on_emit=emitted, size=len, carry=self._carry, receive=router.received
        )

    def stopped(self, node: Node) -> None:
        """Its machine is gone."""
        if (router := self.routers.pop(node.peer, None)) is not None:
            self._before.setdefault(node.peer, Counter()).update(router.counts)

    def counts(self, node: Node) -> Counter[str]:
        """What the node's machines did, all that it ever had together."""
        found = Counter(self._before.get(node.peer, {}))
        if (router := self.routers.get(node.peer)) is not None:
            found.update(router.counts)
        return found

    def connected(self, link: Link) -> None:
        """Tell the machine of a peer."""
        other = link.receiver
        if not self._speaks(other):
            return
        group = None
        if self._with_groups:
            origin = origin_of(other.ip, other.peer)
            group = origin.near if origin.is_prefix else None
        self.tell(link.sender, PeerUp(other.peer, dialled=link.dialled, group=group))

    def disconnected(self, link: Link) -> None:
        """Tell the machine that a peer is gone."""
        self.tell(link.sender, PeerDown(link.receiver.peer))


class Messages:
    """Messages without a meaning, published at a steady pace; when each arrives, and after how many hops.

    All nodes are on its topic. The first message comes at ``start_s``; a publisher that is down is left out.
    """

    TOPIC: Final = "simulation/test"

    def __init__(
        self,
        world: World,
        gossip: Gossip,
        *,
        parameters: Parameters | None = None,
        validator: Validator = accept,
        with_groups: bool = True,
    ) -> None:
        self._world, self._gossip, self._validator = world, gossip, validator
        self.service = GossipService(
            world,
            parameters or gossip.parameters(),
            on_delivered=self._delivered,
            with_groups=with_groups,
        )
        self._draw = world.draws("publishers")
        self._published: list[tuple[float, array[int]]] = []
        """Of each message, when it was published, and for each node one more than its hops, 0 without it."""
        self._publishers: list[Node] = []
        record = world.recorder
        self._append = record.appender("messages") if record is not None else None
        self.delays_s = array("d")
        """Of every delivery but the publishers' own."""
        world.services.append(self)

    def start(self, nodes: Sequence[Node], start_s: float, end_s: float) -> None:
        """Publish from some of these nodes between two times, in seconds from the start of the world."""
        self._publishers = self._draw.sample(list(nodes), min(self._gossip.publishers, len(nodes)))
        if self._publishers:
            self._world.loop.at(start_s, self._publish, end_s)

    def started(self, node: Node) -> None:
        """It joins the topic."""
        self.service.join(node, self.TOPIC, self._validator)

    def stopped(self, node: Node) -> None:
        """Nothing is kept of it."""

    def connected(self, link: Link) -> None:
        """The service tells the machine."""

    def disconnected(self, link: Link) -> None:
        """The service tells the machine."""

    def hops(self) -> list[dict[int, int]]:
        """Of each message, the hops by number of node; a publisher has 0."""
        return [
            {number: count - 1 for number, count in enumerate(counts) if count}
            for _, counts in self._published
        ]

    def _publish(self, end_s: float) -> None:
        world, number = self._world, len(self._published)
        if world.now >= end_s:
            return
        world.loop.after(1.0 / self._gossip.messages_per_s, self._publish, end_s)
        publisher = self._draw.choice(self._publishers)
        if not publisher.is_up:
            return
        self._published.append((world.now, array("H", bytes(2 * len(world.nodes)))))
        size = max(_NUMBER_BYTES, self._gossip.message_bytes)
        if world.recorder is not None:
            audience = sum(node.is_up for node in world.nodes) - 1
            world.recorder.row(
                "published", message=number, topic=self.TOPIC, origin=publisher.number, at_s=world.now,
                bytes=size, audience=audience,
            )  # fmt: skip
        data = number.to_bytes(_NUMBER_BYTES, "big").ljust(size, b"\0")
        self.service.publish(publisher, self.TOPIC, data)

    def _delivered(self, node: Node, delivered: Delivered) -> None:
        number, world = int.from_bytes(delivered.data[:_NUMBER_BYTES], "big"), self._world
        published_at, hops = self._published[number]
        if node.number >= len(hops):  # it came later
            hops.extend([0] * (node.number + 1 - len(hops)))
        if (sender := world.heard_from) is None:
            hops[node.number] = 1
            return
        before = max(1, hops[world.by_peer[sender].number])
        hops[node.number] = before + 1
        at_s = world.now if node.cpu is None else node.cpu.done_at()  # once it is checked
        delay_s = at_s - published_at
        self.delays_s.append(delay_s)
        if self._append is not None and world.recorder is not None:
            self._append(number, node.number, at_s, delay_s, before)
            world.recorder.event(world.now, node.number, "message", number)
