"""Gossip among the nodes of a script, by each of its shells.

``Simulated``: the simulation's. ``NodesOwn``: the node's own, in virtual time over :class:`Wires`.
``RealHosts``: whole networks, with encryption and muxer, in virtual time over a ``MemoryNet``.
"""

from __future__ import annotations

import dataclasses

import trio

from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net.gossip import Gossip, Subscription
from p2pnode.net.memory import MemoryNet
from p2pnode.net.network import NetworkConfig
from p2pnode.net.virtual_time import wall_clock
from p2pnode.protocols.crypto import public_key_of
from p2pnode.protocols.gossipsub.commands import ACCEPT, Delivered
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.simulations.draws import Draws
from p2pnode.simulations.gossip_service import GossipService
from p2pnode.simulations.links import LinkModel
from p2pnode.simulations.world import Node, World
from p2pnode.tasks import Guard
from tests.net import memory_world
from tests.simulations.conformance.script import END_S, LINKS, TOPIC, Outcome, Script, Step
from tests.simulations.conformance.wires import Port, Wires

GROUP = 3
"""So many nodes share a prefix of addresses."""


def ip_of(number: int) -> str:
    """Of a node."""
    return f"20.0.{number // GROUP}.{number % GROUP + 1}"


class Simulated:
    """The script by the simulation's shell."""

    def __init__(self, script: Script, parameters: Parameters | None = None) -> None:
        self.outcome = Outcome()
        self._script = script
        self._world = World(script.seed, links=LINKS)
        self._service = GossipService(self._world, parameters, on_delivered=self._delivered)
        for number, key in enumerate(script.keys):
            self._world.add(key=public_key_of(key.peer_id), ip=ip_of(number))

    def run(self) -> Outcome:
        """Play it to its end."""
        for step in self._script.steps:
            self._world.loop.at(step.at_s, self._do, step)
        self._world.run_until(END_S)
        for node in self._world.nodes:
            self.outcome.counted(node.number, self._service.counts(node))
        return self.outcome

    def _do(self, step: Step) -> None:
        world, node, other = self._world, self._world.nodes[step.node], step.other
        if step.kind == "weather":
            self._change(self._script.weather(step.other))
        elif step.kind == "join":
            self._service.join(node, TOPIC)
        elif step.kind == "leave":
            self._service.leave(node, TOPIC)
        elif step.kind == "connect":
            world.connect(node, world.nodes[other])
        elif step.kind == "cut":
            world.disconnect(node.links[world.nodes[other].peer])
        elif step.kind == "crash":
            world.crash(node)
        elif step.kind == "restart":
            world.restart(node)
        else:
            self._service.publish(node, TOPIC, step.data)

    def _change(self, factors: list[list[float]]) -> None:
        for link in [link for node in self._world.nodes for link in node.links.values()]:
            base_s = self._world.links.latency_s(link.sender.place, link.receiver.place)
            link.latency_s = base_s * factors[link.sender.number][link.receiver.number]

    def _delivered(self, node: Node, message: Delivered) -> None:
        self.outcome.delivered(self._world.now, node.number, message.data)


class NodesOwn:
    """The script by the node's own shell."""

    def __init__(self, script: Script) -> None:
        self.outcome = Outcome()
        self._script, self._keys = script, script.keys
        self._draws = Draws(script.seed)
        self._links = links = LinkModel(LINKS, self._draws)
        self._wires = Wires(links)
        self.ports = [
            Port(key.peer_id, ip_of(number), links.place(number)) for number, key in enumerate(self._keys)
        ]
        self._gossip: dict[int, Gossip] = {}
        self._read: dict[int, Subscription] = {}
        self._starts = 0
        self.guard = Guard()

    async def run(self) -> Outcome:
        """Play it to its end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wires.run)
            for number in range(self._script.nodes):
                await nursery.start(self._live, number)
            for step in self._script.steps:
                await trio.sleep_until(step.at_s)
                await self._do(step, nursery)
            await trio.sleep_until(END_S)
            for number, gossip in self._gossip.items():
                self._count(number, gossip)
            nursery.cancel_scope.cancel()
        return self.outcome

    async def _live(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        """A node, from one start to the next crash."""
        self._starts = start = self._starts + 1
        port = self.ports[number]
        gossip = Gossip(
            port,
            peer=port.peer,
            sign=self._keys[number].sign,
            draw=self._draws("gossip", start).random,
            wall_clock=lambda: float(start),
            limits=DEFAULT_LIMITS,
            guard=self.guard,
            known_topic=lambda _: True,
        )
        async with trio.open_nursery() as port.nursery:
            self._gossip[number] = gossip
            gossip.start(port.nursery)
            task_status.started()
            await trio.sleep_forever()

    async def _do(self, step: Step, nursery: trio.Nursery) -> None:
        number, port, gossip = step.node, self.ports[step.node], self._gossip.get(step.node)
        if step.kind == "weather":
            self._change(self._script.weather(step.other))
        elif step.kind == "restart":
            await nursery.start(self._live, number)
        elif gossip is None:
            return  # it is down
        elif step.kind == "join":
            self._read[number] = await gossip.subscribe(TOPIC, lambda *_: ACCEPT)
            assert port.nursery is not None
            port.nursery.start_soon(self._take, number, self._read[number])
        elif step.kind == "leave":
            await self._read.pop(number).aclose()
        elif step.kind == "connect":
            self._wires.connect(port, self.ports[step.other])
        elif step.kind == "cut":
            port.connections[self.ports[step.other].peer].cut_by(port)
        elif step.kind == "crash":
            self._count(number, self._gossip.pop(number))
            port.crash()
        else:
            await gossip.publish(TOPIC, step.data)

    def _change(self, factors: list[list[float]]) -> None:
        for port in self.ports:
            for connection in port.connections.values():
                way = connection.ways[port]
                base_s = self._links.latency_s(port.place, way.receiver.place)
                way.latency_s = base_s * factors[port.place.number][way.receiver.place.number]

    async def _take(self, number: int, subscription: Subscription) -> None:
        async for _, data in subscription:
            self.outcome.delivered(trio.current_time(), number, data)

    def _count(self, number: int, gossip: Gossip) -> None:
        counted = dict(gossip.statistics().counts)
        assert counted.pop("unread") == 0
        self.outcome.counted(number, counted)


class RealHosts:
    """The script by real hosts in one memory net, whose wires have the latencies of the simulation's links.

    A connection is there when its handshakes are over, and not at once.
    """

    def __init__(self, script: Script) -> None:
        self.outcome = Outcome()
        self._script = script
        self._draws = Draws(script.seed)
        self._links = LinkModel(LINKS, self._draws)
        self._places = [self._links.place(number) for number in range(script.nodes)]
        self._numbers = {memory_world.ip_of(number): number for number in range(script.nodes)}
        self._factors = script.weather(0)

    async def run(self) -> Outcome:
        """Play it to its end."""
        net = MemoryNet(latency=self._latency_s)
        async with memory_world.world(self._script.nodes, net=net, extra=self._config) as made:
            for step in self._script.steps:
                await trio.sleep_until(step.at_s)
                node = made.nodes[step.node]
                if step.kind == "weather":
                    self._factors = self._script.weather(step.other)
                elif step.kind == "join":
                    subscription = await node.subscribe(TOPIC, lambda *_: ACCEPT)
                    made.nursery.start_soon(self._take, step.node, subscription)
                elif step.kind == "connect":
                    made.nursery.start_soon(node.connect, made.nodes[step.other].multiaddrs[0])
                else:
                    assert step.kind == "publish", f"{step.kind} is not played here"
                    await node.publish(TOPIC, step.data)
            await trio.sleep_until(END_S)
            for number, node in enumerate(made.nodes):
                self.outcome.counted(number, dict(node.statistics().gossip.counts))
        return self.outcome

    def _latency_s(self, source: str, target: str) -> float:
        a, b = self._numbers[source], self._numbers[target]
        return self._links.latency_s(self._places[a], self._places[b]) * self._factors[a][b]

    def _config(self, number: int, config: NetworkConfig) -> NetworkConfig:
        rng = self._draws("gossip", number + 1)
        return dataclasses.replace(config, dht="off", rng=rng, wall_clock=wall_clock)

    async def _take(self, number: int, subscription: Subscription) -> None:
        async for _, data in subscription:
            self.outcome.delivered(trio.current_time(), number, data)
