"""The simulation's shell of gossip and the node's own play one script, and nothing differs.

The node's runs in virtual time, over wires with the same latencies. Both deliver the same messages to the
same nodes in the same microsecond, and their machines count the same.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net.gossip import Gossip, Subscription
from p2pnode.protocols.crypto import public_key_of
from p2pnode.protocols.gossipsub.commands import ACCEPT, Delivered
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.simulations.draws import Draws
from p2pnode.simulations.gossip import GossipService
from p2pnode.simulations.links import LinkModel
from p2pnode.simulations.world import Node, World
from p2pnode.tasks import Guard
from tests.simulations.conformance.script import (
    END_S,
    LINKS,
    TOPIC,
    Outcome,
    Script,
    Step,
    drawn,
    first_difference,
)
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
        counted = {name: count for name, count in gossip.stats().items() if not name.startswith("held.")}
        assert counted.pop("unread") == 0
        self.outcome.counted(number, counted)


async def compare(script: Script) -> None:
    simulated, own = Simulated(script).run(), NodesOwn(script)
    lived = await own.run()
    assert not own.guard.failed
    assert not any(port.faults for port in own.ports)
    assert first_difference(simulated.deliveries, lived.deliveries) == ""
    assert simulated.trace_hash == lived.trace_hash
    for number in range(script.nodes):
        assert simulated.counts[number] == lived.counts[number], f"node {number}"


async def test_twenty_nodes_see_the_same_in_the_simulation_and_by_the_nodes_own_shell(
    autojump_clock: MockClock,
) -> None:
    await compare(drawn(1, 20, dials=4, messages=40, upsets=2))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 4))
async def test_a_hundred_nodes_do_so_too(autojump_clock: MockClock, seed: int) -> None:
    await compare(drawn(seed, 100, dials=10, messages=60, upsets=8))


def test_a_machine_that_waits_a_thousandth_longer_is_seen_in_the_trace() -> None:
    script = drawn(1, 20, dials=4, messages=4)
    usual = Simulated(script).run()
    slower = Simulated(script, Parameters(forward_delay_s=1.001 * Parameters().forward_delay_s)).run()
    assert usual.trace_hash == Simulated(script).run().trace_hash != slower.trace_hash
    assert "shell delivers message" in first_difference(usual.deliveries, slower.deliveries)
