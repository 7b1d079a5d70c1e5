"""``GossipService``: the node's ``GossipRouter`` on each node of a world.

Every decision is the machine's; here are its connections, its topics and what it delivers. Signatures cost a
hash, and what is the same for all nodes (what an RPC says, whether a signature holds) is found out once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

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
from p2pnode.protocols.gossipsub.messages import Control, Message, Rpc, decode_rpc
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.protocols.gossipsub.router import Check, GossipRouter
from p2pnode.simulations.cpu import Cpu, CpuQueue
from p2pnode.simulations.signatures import check, sign_with
from p2pnode.simulations.world import Link, Node, World

PROTOCOL: Final = "gossip"
_KNOWN_MAX: Final = 8192
"""RPCs, and signatures."""
T = TypeVar("T")


def accept(_author: PeerId, _data: bytes) -> Verdict:
    """A topic's validator that takes everything."""
    return ACCEPT


def _everybody(_node: Node) -> bool:
    return True


def _ignore_delivery(_node: Node, _delivered: Delivered) -> None:
    pass


def _ignore_fault(_node: Node, _fault: Fault) -> None:
    pass


def _charged(queue: CpuQueue, cpu: Cpu, sign: Signer, check: Check) -> tuple[Signer, Check]:
    """Signing and checking that take their time of a core. What is checked was parsed just before."""

    def sign_for(message: bytes) -> bytes:
        queue.charge(cpu.seconds(cpu.sign_s))
        return sign(message)

    def check_for(public_key: bytes, message: Message) -> bool:
        queue.charge(cpu.seconds(cpu.decode_s + cpu.check_s))
        return check(public_key, message)

    return sign_for, check_for


class _Listed:
    """An entry of a control message, in plain objects: reading it again costs nothing."""

    __slots__ = ("backoff", "ids", "topic")

    def __init__(self, topic: bytes, ids: Sequence[bytes] = (), backoff: int = 0) -> None:
        self.topic, self.ids, self.backoff = topic, ids, backoff


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
    """Reading and checking for many machines: what one has found out is known to the others."""

    def __init__(self) -> None:
        self._known: dict[bytes, Rpc] = {}
        self._holds: dict[bytes, bool] = {}

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
            _keep(self._known, payload, found)
        return found

    def holds(self, public_key: bytes, message: Message) -> bool:
        """Whether a message is signed by the author in it, whose key this is."""
        found = self._holds.get(message.encode())
        if found is None:
            found = check(public_key, message.signed(), message.signature)
            _keep(self._holds, message.encode(), found)
        return found


def _keep(known: dict[bytes, T], key: bytes, value: T) -> None:
    known[key] = value
    if len(known) > _KNOWN_MAX:
        del known[next(iter(known))]


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
        holds: Check = self._codec.holds
        if node.cpu is not None and self._world.cpu is not None:
            sign, holds = _charged(node.cpu, self._world.cpu, sign, holds)
        router = GossipRouter(
            peer=node.peer,
            sign=sign,
            check=holds,
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
            origin = other.origin
            group = origin.near if origin.is_prefix else None
        self.tell(link.sender, PeerUp(other.peer, dialled=link.dialled, group=group))

    def disconnected(self, link: Link) -> None:
        """Tell the machine that a peer is gone."""
        self.tell(link.sender, PeerDown(link.receiver.peer))
