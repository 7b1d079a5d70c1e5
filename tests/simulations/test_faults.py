"""Faults that strike nodes."""

from __future__ import annotations

from random import Random

import pytest

from p2pnode.simulations.faults import Fault, schedule_faults, struck
from p2pnode.simulations.world import Node, World


def _world(count: int) -> tuple[World, list[Node]]:
    world = World(3)
    nodes = [world.add() for _ in range(count)]
    for node in nodes[1:]:
        world.connect(nodes[0], node)
    return world, nodes


def test_a_fault_strikes_its_share_and_at_least_one() -> None:
    assert len(struck(Fault(kind="crash", share=0.3), range(10), Random(1))) == 3
    assert len(struck(Fault(kind="crash", share=0.01), range(10), Random(1))) == 1
    assert struck(Fault(kind="crash", share=0.0), range(10), Random(1)) == []


def test_nodes_that_crash_come_back_when_the_fault_is_over() -> None:
    world, nodes = _world(4)
    schedule_faults(world, [Fault(kind="crash", at_s=5, duration_s=10, share=0.5)], hosts=nodes, clients=())
    world.run_until(4)
    assert all(node.is_up for node in nodes)
    world.run_until(6)
    assert sum(node.is_up for node in nodes) == 2
    world.run_until(20)
    assert all(node.is_up for node in nodes)


def test_a_partition_cuts_its_nodes_off_until_it_heals() -> None:
    world, nodes = _world(4)
    fault = Fault(kind="partition", at_s=5, duration_s=15, share=0.25, who="clients")
    schedule_faults(world, [fault], hosts=(), clients=nodes[1:2])
    world.run_until(6)
    assert nodes[1].peer not in nodes[0].links
    assert nodes[2].peer in nodes[0].links
    found: list[object] = []
    world.dial(nodes[0], nodes[1], found.append)
    world.run_until(17)
    assert found == [None]
    world.run_until(21)
    world.dial(nodes[0], nodes[1], found.append)
    world.run_until(25)
    assert found[1] is not None


def test_a_silent_node_says_nothing_until_the_fault_is_over() -> None:
    world, nodes = _world(2)
    schedule_faults(world, [Fault(kind="silent", duration_s=5, share=1)], hosts=nodes[:1], clients=())
    world.run_until(1)
    assert nodes[0].is_silent
    world.run_until(6)
    assert not nodes[0].is_silent


def test_what_hosts_do_wrong_needs_a_market_and_hosts() -> None:
    world, nodes = _world(2)
    with pytest.raises(ValueError, match="'over_billing' needs a market"):
        schedule_faults(world, [Fault(kind="over_billing")], hosts=nodes, clients=())
    with pytest.raises(ValueError, match="who must be 'hosts'"):
        Fault(kind="wrong_model", who="clients")
    with pytest.raises(ValueError, match="at_s"):
        Fault(kind="crash", at_s=-1)
