"""When nodes come and go."""

from __future__ import annotations

import statistics
from pathlib import Path
from random import Random

import pytest

from p2pnode.simulations.churn import Change, Churn, Distribution, changes, drawn, read_trace, schedule_churn
from p2pnode.simulations.world import World


@pytest.mark.parametrize("kind", ["exponential", "weibull", "lognormal", "fixed"])
def test_times_have_the_mean_that_was_asked_for_whatever_their_distribution(kind: Distribution) -> None:
    random = Random(1)
    times = [drawn(kind, 100.0, 0.8, random) for _ in range(20_000)]
    assert statistics.fmean(times) == pytest.approx(100.0, rel=0.05)


def test_a_node_goes_and_comes_in_turns_and_in_order() -> None:
    churn = Churn(share=1.0, session_mean_s=50, downtime_mean_s=10)
    found = list(changes(churn, 3, Random(7), 1000.0))
    assert len(found) > 10
    assert [change.up for change in found] == [place % 2 == 1 for place in range(len(found))]
    assert [change.at_s for change in found] == sorted(change.at_s for change in found)
    assert all(change.node == 3 and change.at_s < 1000.0 for change in found)


def test_a_trace_says_who_comes_and_goes() -> None:
    lines = ["# seconds,node,what", "", "1.5,0,down", "2,1,down # the second", "9,0,up"]
    assert read_trace(lines, 2) == [
        Change(1.5, 0, up=False),
        Change(2.0, 1, up=False),
        Change(9.0, 0, up=True),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1,0", "SECONDS,NODE,up"),
        ("1,0,away", "SECONDS,NODE,up"),
        ("soon,0,up", "must be numbers"),
        ("nan,0,up", "times must not fall"),
        ("1,5,up", "no node 5"),
        ("-1,0,up", "times must not fall"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"line 2 of the trace.*{words}"):
        read_trace(["0,0,down", line], 2)


def test_a_world_follows_a_trace_of_its_nodes(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("1,1,down\n2,1,up\n3,0,down\n")
    world = World(1)
    nodes = [world.add(), world.add()]
    schedule_churn(world, Churn(trace=str(trace)), hosts=nodes, clients=(), until_s=10)
    world.run_until(1.5)
    assert [node.is_up for node in nodes] == [True, False]
    world.run_until(5)
    assert [node.is_up for node in nodes] == [False, True]


def test_a_trace_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.csv can't be read"):
        schedule_churn(World(1), Churn(trace="nowhere.csv"), hosts=(), clients=(), until_s=1)


@pytest.mark.parametrize("field", ["share", "session_mean_s", "downtime_mean_s", "session_shape"])
def test_a_parameter_out_of_its_bounds_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Churn(**{field: -1.0})  # type: ignore[arg-type]
