"""GossipSub 1.0 gives the figures that its authors' simulator gave.

Source: vyzo/gerbil-simsub, ``simple-gossipsub/v1.0-simulation``. The run of 100 nodes is in its README; those
of larger networks are in the gists that libp2p/specs, pull request 413, links. Set-up of
``simsub/scripts.ss`` and ``simulator.ss``: D 6, low 4, high 12, gossip to 6 peers outside the mesh, windows
of 3 heartbeats; each node dials 20 others; a latency drawn for each pair from 10 to 150 ms, times 1 to 1.1
for each message; a message a second from 5 sources, 10 s before the first and after the last. Counted is what
is sent. All peers know one another before the first heartbeat, and these are spread over a second.

What was published is one run each. Two runs of ours with different seeds differ by 2% in messages and by 15
points of a bin, because five sources and one mesh are few: the mean of several is compared. ``iwant`` is not
compared: what the gossip brings before the mesh is so rare that eight runs of 100 nodes asked for 19 to 55
messages, where 44 was published.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import mean

import pytest

from p2pnode.simulations.gossip import Gossip, Messages
from p2pnode.simulations.links import Links
from p2pnode.simulations.world import Node, World, connect_at_random

long = pytest.mark.long
LINKS = Links(latency="uniform", latency_min_ms=10, latency_max_ms=150, jitter_share=0.1)
GOSSIP = Gossip(version="v1_0", dials=20, publishers=5, messages_per_s=1.0)


@dataclass
class Run:
    """What one run sent, and the shares of its deliveries by 100 ms."""

    messages: int
    ihave: int
    iwant: int
    graft: int
    bins: list[float]
    reached: float


def connected(world: World, nodes: list[Node], dials: int) -> None:
    """Connect the nodes so that each knows at once which topics its peers are on."""
    latency_s = world.links.latency_s
    world.links.latency_s = lambda _a, _b: 0.0
    connect_at_random(world, nodes, dials)
    world.links.latency_s = latency_s
    world.run_for(1e-6)
    for node in nodes:
        for link in node.links.values():
            link.latency_s = latency_s(node.place, link.receiver.place)


def run(count: int, messages: int, seed: int) -> Run:
    world = World(seed, links=LINKS)
    sent = Messages(world, GOSSIP, with_groups=False)
    phases, nodes = world.draws("phases"), list[Node]()
    for _ in range(count):
        world.loop.at(phases.random(), lambda: nodes.append(world.add()))
    world.run(2.0)
    connected(world, nodes, GOSSIP.dials)
    sent.start(nodes, 12.0, 12.0 + messages)
    world.run(22.0 + messages)
    totals: Counter[str] = Counter()
    for node in nodes:
        totals.update(sent.service.counts(node))
    delays = Counter(int(delay / 0.1) for delay in sent.delays_s)
    return Run(
        messages=totals["sent.messages"],
        ihave=totals["sent.ihave"],
        iwant=totals["sent.iwant"],
        graft=totals["sent.graft"],
        bins=[100 * delays[each] / len(sent.delays_s) for each in range(4)],
        reached=len(sent.delays_s) / (messages * (count - 1)),
    )


def compare(runs: list[Run], published: Run, *, messages: float) -> None:
    """The mean against one published run."""
    assert all(each.reached == 1.0 for each in runs)
    assert mean(each.messages for each in runs) == pytest.approx(published.messages, rel=messages)
    assert mean(each.ihave for each in runs) == pytest.approx(published.ihave, rel=0.01)
    assert mean(each.graft for each in runs) == pytest.approx(published.graft, rel=0.05)
    bins = [mean(each.bins[number] for each in runs) for number in range(4)]
    assert bins == pytest.approx(published.bins, abs=8)


def test_a_hundred_nodes_send_what_was_published() -> None:
    published = Run(messages=6280, ihave=7212, iwant=44, graft=372, bins=[15.8, 72.9, 11.3, 0], reached=1)
    # Ten messages of so few nodes: single runs send from 6,070 to 6,860.
    compare([run(100, 10, seed) for seed in range(1, 7)], published, messages=0.03)


@long
def test_two_hundred_and_fifty_nodes_send_what_was_published() -> None:
    published = Run(
        messages=96_320, ihave=93_108, iwant=416, graft=961, bins=[5.9, 67.7, 26.2, 0.3], reached=1
    )
    compare([run(250, 60, seed) for seed in range(1, 9)], published, messages=0.01)


@long
def test_a_thousand_nodes_send_what_was_published() -> None:
    published = Run(
        messages=377_370, ihave=372_006, iwant=2143, graft=3695, bins=[2.2, 34.7, 60.9, 2.1], reached=1
    )
    # Twelve runs of ours send 1.7% more than this one in the mean, from 1.0 to 3.3%.
    compare([run(1000, 60, seed) for seed in range(1, 5)], published, messages=0.025)
