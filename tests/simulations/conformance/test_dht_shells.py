"""The simulation's shell of the DHT and the node's own play one script: lookups end alike.

The node's runs in virtual time, over wires with the same latencies; a dial takes the same handshake. Each
lookup finds the same providers, and ends in the same microsecond.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from p2pnode.ids import PeerId
from p2pnode.net.dht import Dht
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.crypto import public_key_of
from p2pnode.protocols.kademlia.messages import record_key
from p2pnode.shares import Origin, origin_of
from p2pnode.simulations.dht import DhtService, Looked
from p2pnode.simulations.draws import Draws
from p2pnode.simulations.links import LinkModel
from p2pnode.simulations.world import World
from p2pnode.tasks import Guard
from tests.net.memory_world import seed_of
from tests.simulations.conformance.script import LINKS
from tests.simulations.conformance.wires import Port, Wires

PROTOCOL: Final = "/dht"
END_S: Final = 60.0
LIMIT: Final = 12
Kind: TypeAlias = Literal["connect", "provide", "find"]
Result: TypeAlias = tuple[int, int, str, tuple[PeerId, ...]]
"""``(microseconds, node, what it did, the providers that it found)``."""


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """At ``at_s`` a node dials ``other``, or provides or looks for the key with that number."""

    at_s: float
    kind: Kind
    node: int
    other: int

    @property
    def key(self) -> bytes:
        """The key, as a node's role names it."""
        return hashlib.sha256(b"key %d" % self.other).digest()


def drawn(seed: int, nodes: int, lookups: int) -> list[Step]:
    """Everybody dials two others; a fifth of the nodes provide, and anybody looks."""
    draw = Draws(seed)("script")
    steps: list[Step] = []
    for node in range(nodes):
        others = draw.sample([each for each in range(nodes) if each != node], 2)
        steps += [Step(draw.uniform(0.1, 3), "connect", node, other) for other in others]
    for number, node in enumerate(draw.sample(range(nodes), nodes // 5)):
        steps.append(Step(draw.uniform(10, 15), "provide", node, number % 3))
    steps += [
        Step(draw.uniform(20, 50), "find", draw.randrange(nodes), draw.randrange(3)) for _ in range(lookups)
    ]
    return sorted(steps)


def ip_of(number: int) -> str:
    """Of a node. Each has a prefix of its own."""
    return f"20.0.{number}.1"


def keys(nodes: int) -> list[PeerKey]:
    """Of the nodes."""
    return [PeerKey(seed_of(number)) for number in range(nodes)]


def simulated(seed: int, nodes: int, steps: Sequence[Step]) -> list[Result]:
    """The script by the simulation's shell."""
    results: list[Result] = []

    def do(step: Step) -> None:
        node = world.nodes[step.node]

        def ended(looked: Looked) -> None:
            assert looked.ended is not None
            found = tuple(sorted(each.peer for each in looked.ended.providers))
            what = f"{step.kind} {looked.ended.stored > 0 if step.kind == 'provide' else step.other}"
            results.append((round(looked.ended_at * 1e6), step.node, what, found))

        if step.kind == "connect":
            world.dial(node, world.nodes[step.other], lambda _: None)
        elif step.kind == "provide":
            service.provide(node, record_key(step.key), ended)
        else:
            service.find(node, record_key(step.key), LIMIT, ended)

    world = World(seed, links=LINKS)
    service = DhtService(world)
    for number, key in enumerate(keys(nodes)):
        world.add(key=public_key_of(key.peer_id), ip=ip_of(number))
    for step in steps:
        world.loop.at(step.at_s, do, step)
    world.run_until(END_S)
    return results


class DhtPort(Port):
    """One node's ``DhtNetwork``."""

    def __init__(self, wires: Wires, model: LinkModel, guard: Guard, peer: PeerId, number: int) -> None:
        super().__init__(peer, ip_of(number), model.place(number))
        self.peer_id, self.guard = peer, guard
        self.announced = (address_of(number),)
        self.directory: dict[PeerId, DhtPort] = {}
        self._wires, self._model = wires, model

    def stated_addresses(self, peer: PeerId) -> tuple[str, ...]:
        return self.directory[peer].announced

    def was_reached(self, peer: PeerId) -> bool:
        return False

    def origin_of(self, peer: PeerId) -> Origin:
        return origin_of(self.directory[peer].ip, peer)

    def origin_at(self, address: str, peer: PeerId) -> Origin:
        return origin_of(address.split("/")[2], peer)

    def dialable(self, addresses: Iterable[str]) -> tuple[str, ...]:
        return tuple(addresses)

    async def connect_peer(self, peer: PeerId, heard: Sequence[str]) -> None:
        other = self.directory[peer]
        assert heard == other.announced or self.is_connected(peer)
        if not self.is_connected(peer):
            one_way_s = self._model.latency_s(self.place, other.place)
            await trio.sleep(LINKS.handshake_round_trips * 2.0 * one_way_s)
            self._wires.connect(self, other)


def address_of(number: int) -> str:
    """Where a node listens."""
    return f"/ip4/{ip_of(number)}/tcp/4001"


async def by_the_nodes_own(seed: int, nodes: int, steps: Sequence[Step]) -> list[Result]:
    """The script by the node's own shell."""
    results: list[Result] = []
    draws, guard = Draws(seed), Guard()
    model = LinkModel(LINKS, draws)
    wires, draw = Wires(model, negotiates=True), draws("dht")
    ports = [DhtPort(wires, model, guard, key.peer_id, number) for number, key in enumerate(keys(nodes))]
    machines: list[Dht] = []

    async def do(step: Step) -> None:
        dht, found = machines[step.node], list[PeerId]()
        if step.kind == "connect":
            other = ports[step.other]
            await ports[step.node].connect_peer(other.peer, other.announced)
            return
        if step.kind == "provide":
            what = f"provide {await dht.provide(step.key)}"
        else:
            found = sorted(each.peer for each in await dht.find_providers(step.key, LIMIT))
            what = f"find {step.other}"
        results.append((round(trio.current_time() * 1e6), step.node, what, tuple(found)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wires.run)
        for port in ports:
            port.directory = {each.peer: each for each in ports}
            port.nursery = nursery
            machines.append(
                Dht(port, "server", protocol=PROTOCOL, draw=random.Random(draw.random()).randrange)
            )
            machines[-1].start(nursery)
        for step in steps:
            await trio.sleep_until(step.at_s)
            nursery.start_soon(do, step)
        await trio.sleep_until(END_S)
        nursery.cancel_scope.cancel()
    assert not guard.failed
    return results


async def compare(seed: int, nodes: int, lookups: int) -> None:
    steps = drawn(seed, nodes, lookups)
    ours, theirs = simulated(seed, nodes, steps), await by_the_nodes_own(seed, nodes, steps)
    assert len(ours) == lookups + nodes // 5
    assert any(found for *_, found in ours)
    assert sorted(ours) == sorted(theirs)


async def test_lookups_among_twenty_nodes_end_alike(autojump_clock: MockClock) -> None:
    await compare(1, 20, 15)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 4))
async def test_lookups_among_a_hundred_do_so_too(autojump_clock: MockClock, seed: int) -> None:
    await compare(seed, 100, 100)
