"""Lookups take as many hops as theory has it, and stand stale tables as well as a table of k peers should.

A greedy lookup that knows k random peers of each bucket halves its distance once for the bucket and once more
for each further bit that the best of k random ids agrees in: log2(n) / (1 + E[max of k Geom(1/2)]) hops,
which is log2(n)/2 at k = 1 (the argument of Maymounkov and Mazières, "Kademlia", section 3; with k contacts
as in Cai and Devroye, "A probabilistic analysis of Kademlia networks", 2013). A hop is a peer on the way that
another one named; the first is one that the asker knew. What is looked for is a node by its own id.

Tables are filled as after a long time: of each bucket, k peers at random. Nobody is connected, each peer has
a prefix of its own, and one that is gone is silent until its deadline.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import log2
from statistics import mean

import pytest

from p2pnode.protocols.kademlia.lookup import Parameters
from p2pnode.protocols.kademlia.messages import bytes_of, point_of
from p2pnode.shares import Origin
from p2pnode.simulations.dht import DhtService, Looked, address_of
from p2pnode.simulations.links import Links
from p2pnode.simulations.world import Node, World

long = pytest.mark.long
BITS = 256
LINKS = Links(
    latency="uniform", latency_min_ms=20, latency_max_ms=20, jitter_share=0, handshake_round_trips=0
)


def greedy(k: int) -> Parameters:
    return Parameters(k=k, paths=1, alpha=1)


def grown(count: int, parameters: Parameters, seed: int = 1) -> tuple[World, DhtService]:
    """Nodes with full tables, of which none is connected."""
    world = World(seed, links=LINKS)
    dht = DhtService(world, parameters=parameters)
    for _ in range(count):
        world.add()
    draw = world.draws("tables")
    by_point = sorted((point_of(node.peer), node.number) for node in world.nodes)
    points = [point for point, _ in by_point]
    for node in world.nodes:
        table, own = dht.machines[node.peer].table, point_of(node.peer)
        for bit in range(BITS - 1, BITS - 40, -1):
            low = ((own >> bit) ^ 1) << bit
            first, last = bisect_left(points, low), bisect_left(points, low + (1 << bit))
            for index in draw.sample(range(first, last), min(parameters.k, last - first)):
                other = world.nodes[by_point[index][1]]
                table.enter(other.peer, (address_of(other.ip),), Origin(other.ip, other.ip))
                table.disconnected(other.peer)
    return world, dht


def looked(
    world: World, dht: DhtService, count: int, among: Sequence[Node], each_s: float = 7.0
) -> list[Looked]:
    """So many lookups, each of a node by another one, one after another; a silent peer takes seconds."""
    draw, found = world.draws("lookups"), list[Looked]()
    for _ in range(count):
        asker, wanted = draw.sample(among, 2)
        dht.find(asker, bytes_of(wanted.peer), 1, found.append)
        world.run_for(each_s)
        for link in list(asker.links.values()):
            world.disconnect(link)
    assert len(found) == count
    return found


def bits_a_hop(k: int) -> float:
    """1 + E[max of k Geom(1/2)]."""
    return 1 + sum(1 - (1 - 0.5**j) ** k for j in range(1, 80))


def test_the_formula_is_log2_of_n_over_two_at_k_1() -> None:
    assert bits_a_hop(1) == pytest.approx(2.0)


def check_hops(count: int, lookups: int, within: float) -> None:
    world, dht = grown(count, greedy(1))
    found = looked(world, dht, lookups, world.nodes, each_s=3.0)
    assert all(each.hops for each in found)
    assert mean(each.hops for each in found) == pytest.approx(log2(count) / bits_a_hop(1), rel=within)


def test_256_nodes_are_found_in_as_many_hops_as_the_formula_says() -> None:
    check_hops(256, 100, 0.06)  # of a hundred lookups the mean is known to 3%


@long
@pytest.mark.parametrize("count", [256, 1024, 4096, 16_384])
def test_nodes_are_found_in_as_many_hops_as_the_formula_says(count: int) -> None:
    check_hops(count, 1000, 0.03)


def share_found(count: int, k: int, lookups: int, gone: float = 0.3) -> float:
    """With the node's own paths and questions at once, and a share of the nodes gone without a word."""
    world, dht = grown(count, Parameters(k=k))
    for node in world.draws("gone").sample(world.nodes, round(gone * count)):
        world.crash(node)
    found = looked(world, dht, lookups, [node for node in world.nodes if node.is_up])
    return mean(each.hops > 0 for each in found)


@long
@pytest.mark.parametrize(("k", "least"), [(1, 0.83), (8, 0.99), (20, 0.99)])
def test_nodes_are_found_where_a_third_of_all_tables_is_stale(k: int, least: float) -> None:
    """A plain lookup (one path, 20 candidates) finds 0.83 at k = 1 and all from k = 8 on; three paths that
    begin at 24 peers find more."""
    assert share_found(1024, k, 100) >= least
