"""Gossip in simulations: ``Gossip`` has its parameters, ``Messages`` publishes and takes the times."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.protocols.gossipsub.commands import Delivered, Validator
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.simulations.gossip_service import GossipService, accept
from p2pnode.simulations.parameters import require_not_negative, require_positive
from p2pnode.simulations.world import Link, Node, World

_NUMBER_BYTES: Final = 8
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

    def publish(self, publisher: Node) -> None:
        """A node that is up publishes one more message now."""
        world, number = self._world, len(self._published)
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
        if self._world.now >= end_s:
            return
        self._world.loop.after(1.0 / self._gossip.messages_per_s, self._publish, end_s)
        publisher = self._draw.choice(self._publishers)
        if publisher.is_up:
            self.publish(publisher)

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
