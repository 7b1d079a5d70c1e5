"""The shells of gossip play one script.

The simulation's and the node's own, the latter in virtual time, deliver the same messages to the same nodes
in the same microsecond, and their machines count the same. So do real hosts where handshakes change no mesh;
elsewhere they come near to it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from p2pnode.net.virtual_time import virtual_time
from p2pnode.protocols.gossipsub.parameters import Parameters
from tests.simulations.conformance.script import (
    Outcome,
    Script,
    at_random,
    drawn,
    first_difference,
    in_a_circle,
)
from tests.simulations.conformance.shells import NodesOwn, RealHosts, Simulated

MEAN_WITHIN, P95_WITHIN, DUPLICATES_WITHIN = 0.05, 0.08, 0.10
"""Shares by which real hosts may differ from the simulation where a mesh takes in the first of many."""


async def compare(script: Script) -> None:
    simulated, own = Simulated(script).run(), NodesOwn(script)
    lived = await own.run()
    assert not own.guard.failed
    assert first_difference(simulated.deliveries, lived.deliveries) == ""
    assert simulated.trace_hash == lived.trace_hash
    for number in range(script.nodes):
        assert simulated.counts[number] == lived.counts[number], f"node {number}"


async def test_twenty_nodes_see_the_same_in_the_simulation_and_by_the_nodes_own_shell(
    autojump_clock: MockClock,
) -> None:
    await compare(drawn(1, 20, at_random(20, dials=4), messages=40, upsets=2))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 4))
async def test_a_hundred_nodes_do_so_too(autojump_clock: MockClock, seed: int) -> None:
    await compare(drawn(seed, 100, at_random(100, dials=10), messages=60, upsets=8))


def test_a_machine_that_waits_a_thousandth_longer_is_seen_in_the_trace() -> None:
    script = drawn(1, 20, at_random(20, dials=4), messages=4)
    usual = Simulated(script).run()
    slower = Simulated(script, Parameters(forward_delay_s=1.001 * Parameters().forward_delay_s)).run()
    assert usual.trace_hash == Simulated(script).run().trace_hash != slower.trace_hash
    assert "shell delivers message" in first_difference(usual.deliveries, slower.deliveries)


def of_real_hosts(script: Script) -> Outcome:
    """Repeatable."""
    with virtual_time(seed=script.seed):
        return trio.run(RealHosts(script).run, clock=MockClock(autojump_threshold=0))


def check_in_a_circle(seed: int, messages: int) -> None:
    script = drawn(seed, 20, in_a_circle(20), messages=messages)
    simulated, real = Simulated(script).run(), of_real_hosts(script)
    assert first_difference(simulated.deliveries, real.deliveries) == ""
    assert simulated.trace_hash == real.trace_hash
    assert len(real.deliveries) == 20 * messages
    assert simulated.total("duplicates") == real.total("duplicates")


def test_twenty_real_hosts_deliver_in_the_microsecond_that_the_simulation_says() -> None:
    check_in_a_circle(1, messages=20)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 9))
def test_so_they_do_under_other_chances(seed: int) -> None:
    check_in_a_circle(seed, messages=60)


def figures(scripts: Sequence[Script], outcomes: Sequence[Outcome]) -> tuple[float, float, float]:
    """Mean and 95th percentile of delays in seconds, and duplicates for each message that was delivered."""
    delays_s = sorted(
        each for script, outcome in zip(scripts, outcomes, strict=True) for each in outcome.delays_s(script)
    )
    p95_s = delays_s[int(0.95 * len(delays_s))]
    return (
        statistics.fmean(delays_s),
        p95_s,
        sum(each.total("duplicates") for each in outcomes) / len(delays_s),
    )


@pytest.mark.long
def test_real_hosts_with_more_neighbours_than_a_mesh_needs_come_near_to_the_simulation() -> None:
    scripts = [drawn(seed, 20, at_random(20, dials=3), messages=60) for seed in range(1, 9)]
    simulated = [Simulated(script).run() for script in scripts]
    real = [of_real_hosts(script) for script in scripts]
    for outcome in (*simulated, *real):
        assert sorted((number, node) for _, node, number in outcome.deliveries) == [
            (number, node) for number in range(60) for node in range(20)
        ]
    mean_s, p95_s, duplicates = figures(scripts, simulated)
    real_mean_s, real_p95_s, real_duplicates = figures(scripts, real)
    assert real_mean_s == pytest.approx(mean_s, rel=MEAN_WITHIN)
    assert real_p95_s == pytest.approx(p95_s, rel=P95_WITHIN)
    assert real_duplicates == pytest.approx(duplicates, rel=DUPLICATES_WITHIN)
