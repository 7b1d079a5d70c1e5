"""How far and how often a message travels, and how long that takes, as others have found it.

- Bounds for a mesh of degree D: whoever has a message sends it to D-1 neighbours, so that each node gets at
  most D-2 copies too many; and each of the n*D/2 edges carries it once at least, which makes D/2-1. It is
  everywhere after ceil(log n / log D) hops (the Waku study below, section "Theory"), give or take one for a
  mesh that is not regular.
- Waku: "Message propagation times with waku-rln" (docs.waku.org, research-and-studies/message-propagation):
  1,000 nodes in Shadow, D 6, 100 ms from one to another, 83 Mbit/s down and 38 up, 0.15 s for a proof at the
  publisher, 0.012 s to check one at each hop, ten messages of 10 kB, the first left out: mean 508 ms, 95% in
  less than 627 ms, the best 263 ms. A node dials 50 others (``CONNECTTO`` in its shadow.yaml), and publishes
  to all its peers (``floodPublish`` in nwaku's waku_relay/protocol.nim), through an uplink of 38 Mbit/s.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil, log
from statistics import mean, quantiles

import pytest

from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.simulations.cpu import Cpu
from p2pnode.simulations.gossip import Gossip, Messages
from p2pnode.simulations.links import Links
from p2pnode.simulations.world import World, connect_at_random

long = pytest.mark.long
DEGREE = 6
WAKU = replace(Parameters.v1_0(), flood_publish=True, gossip_factor=0.25, refuse_when_full=True)


def spread(count: int, links: Links) -> tuple[float, float, int]:
    """Copies too many for each delivery, the mean degree of the mesh, and the most hops."""
    world = World(1, links=links)
    sent = Messages(world, Gossip(dials=10, publishers=count, messages_per_s=2.0))
    nodes = [world.add() for _ in range(count)]
    connect_at_random(world, nodes, 10)
    world.run(5.0)
    sent.start(nodes, 5.0, 12.0)
    world.run(15.0)
    totals: Counter[str] = Counter()
    for node in nodes:
        totals.update(sent.service.counts(node))
    assert [len(each) for each in sent.hops()] == [count] * len(sent.hops())
    degree = mean(router.held()["mesh"] for router in sent.service.routers.values())
    most = max(max(each.values()) for each in sent.hops())
    return totals["duplicates"] / totals["delivered"], degree, most


def check_bounds(count: int) -> None:
    """The node's own parameters. Where all links are equally long, copies cross most often, and a message
    takes the fewest hops; D is then what the mesh really has, and a publisher also sends to all its peers."""
    copies, _, _ = spread(count, Links())
    assert DEGREE / 2 - 1 <= copies <= DEGREE - 2
    equal = Links(latency="uniform", latency_min_ms=50, latency_max_ms=50, jitter_share=0.1)
    copies, degree, hops = spread(count, equal)
    assert degree / 2 - 1 <= copies <= degree - 2 + 20 / count
    assert hops <= ceil(log(count) / log(DEGREE)) + 1


@pytest.mark.parametrize("count", [30, 60])
def test_copies_and_hops_are_within_the_bounds_of_a_mesh(count: int) -> None:
    check_bounds(count)


@long
@pytest.mark.parametrize("count", [500, 1000, 4000])
def test_copies_and_hops_are_within_the_bounds_of_a_large_mesh(count: int) -> None:
    check_bounds(count)


def waku_delays_ms(seed: int) -> list[float]:
    world = World(
        seed,
        links=Links(
            latency="uniform", latency_min_ms=100, latency_max_ms=100, jitter_share=0.0,
            uplink_mbit_per_s=38, downlink_mbit_per_s=83,
        ),
        cpu=Cpu(message_s=0.0, decode_s=0.0, sign_s=0.15, check_s=0.012),
    )  # fmt: skip
    gossip = Gossip(version="v1_0", dials=50, publishers=1000, messages_per_s=0.5, message_bytes=10_000)
    sent = Messages(world, gossip, parameters=WAKU, with_groups=False)
    phases = world.draws("phases")
    for _ in range(1000):
        world.loop.at(phases.random(), world.add)
    world.run(2.0)
    connect_at_random(world, world.nodes, gossip.dials)
    world.run(10.0)
    sent.start(world.nodes, 10.0, 30.0)
    world.run(33.0)
    assert [len(each) for each in sent.hops()] == [1000] * 10
    return [1000 * delay for delay in sent.delays_s[999:]]


@long
def test_waku_in_shadow_takes_as_long() -> None:
    delays = [delay for seed in (1, 2) for delay in waku_delays_ms(seed)]
    assert mean(delays) == pytest.approx(508, rel=0.05)
    assert quantiles(delays, n=100)[94] == pytest.approx(627, rel=0.05)
    assert min(delays) == pytest.approx(263, rel=0.05)
