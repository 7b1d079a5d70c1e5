"""A scenario becomes a world that runs to its end, and tells what it came to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from p2pnode.simulations.cpu import Cpu
from p2pnode.simulations.dht import Dht
from p2pnode.simulations.experiment import Experiment
from p2pnode.simulations.gossip import Gossip
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.scenario import Scenario

SMALL = Scenario(
    name="small",
    nodes=16,
    duration_s=25.0,
    warmup_s=10.0,
    gossip=Gossip(dials=5, publishers=3, messages_per_s=2.0),
    dht=Dht(keys=3, providers_share=0.4, lookups_per_s=1.0),
)


def ran(scenario: Scenario, seed: int = 1) -> tuple[Experiment, Recorder]:
    recorder = Recorder()
    experiment = Experiment(scenario, seed, recorder)
    experiment.run()
    experiment.finish()
    return experiment, recorder


def rows(recorder: Recorder, table: str) -> dict[str, list[Any]]:
    """The columns of a table."""
    return {name: list(column) for name, column in recorder.tables[table].columns.items()}


def test_each_message_reaches_everybody_and_each_lookup_finds_its_providers() -> None:
    experiment, recorder = ran(SMALL)
    published, messages = rows(recorder, "published"), rows(recorder, "messages")
    assert (len(published["message"]), set(published["audience"])) == (30, {15})
    assert len(messages["node"]) >= 28 * 15  # what was published at the very end is on its way
    assert min(messages["hops"]) == 1
    assert max(messages["hops"]) <= 4
    lookups = rows(recorder, "lookups")
    assert len(lookups["at_s"]) >= 12
    assert set(lookups["found"]) == {2}
    assert min(lookups["hops"]) >= 1
    nodes = rows(recorder, "nodes")
    assert nodes["node"] == list(range(16))
    assert sum(nodes["published"]) == 30
    assert sum(nodes["delivered"]) == len(messages["node"])
    assert set(nodes["online_s"]) == {25.0}
    assert sum(nodes["bytes_sent"]) >= sum(nodes["bytes_received"]) > 0
    assert 2 * len(recorder.edges) == sum(nodes["mesh"])
    assert experiment.world.loop.done > 1000


def test_the_same_seed_gives_the_same_tables_and_another_one_others() -> None:
    small = replace(SMALL, duration_s=14.0)
    found = [ran(small, seed)[1] for seed in (1, 1, 2)]
    assert found[0].trace_hash == found[1].trace_hash != found[2].trace_hash
    assert found[0].tables_hash == found[1].tables_hash != found[2].tables_hash


def test_who_crashes_is_offline_until_it_starts_again() -> None:
    recorder = Recorder()
    experiment = Experiment(SMALL, 1, recorder)
    world, node = experiment.world, experiment.world.nodes[4]
    world.loop.at(12.0, world.crash, node)
    world.loop.at(22.0, world.restart, node)
    experiment.run()
    experiment.finish()
    nodes = rows(recorder, "nodes")
    assert (nodes["starts"][4], nodes["online_s"][4]) == (2, 15.0)
    assert len(node.links) >= SMALL.dht.contacts  # type: ignore[union-attr]


def test_a_core_makes_deliveries_later() -> None:
    small = replace(SMALL, duration_s=14.0, dht=None)
    quick, _ = ran(small)
    slow, _ = ran(replace(small, cpu=Cpu(message_s=0.02, check_s=0.1)))
    assert quick.messages is not None
    assert slow.messages is not None
    assert sum(slow.messages.delays_s) > sum(quick.messages.delays_s) + 0.1 * len(quick.messages.delays_s)
    assert all(node.cpu is not None and node.cpu.busy_s > 0 for node in slow.world.nodes)
