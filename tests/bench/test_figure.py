"""What a figure says, and when it holds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from p2pnode.bench.figure import GOALS, SUITES, Figure, Goal, Measurement, compared, paired
from p2pnode.errors import LocalError

PROMISED = {
    "stream.throughput_1",
    "stream.throughput_4",
    "stream.fast",
    "stream.leaf",
    "stream.parallel_8",
    "stream.parallel_8_far",
    "stream.first_token_overhead",
    "dial.to_advert",
    "gossip.delivery_cpu",
    "gossip.advert_cpu",
    "gossip.p99",
    "gossip.burst",
    "attacks.first_token",
    "attacks.refused",
    "cli.help",
    "cli.ask",
    "cli.ask_beside",
    "idle.cpu",
    "idle.left_cpu",
    "idle.rss",
    "gas.open",
    "gas.settle",
    "gas.settle_in_10",
    "gas.checkpoint",
    "gas.break_even",
    "paid.voucher_cpu",
    "paid.throughput",
    "economy.opens",
    "economy.fee_share",
    "failover.duplicated",
    "failover.missing",
    "failover.billed_twice",
    "failover.gap",
    "failover.gap_p95",
    "storage.open",
    "storage.gc_step",
    "storage.checkpoint",
    "storage.recover_200_turns",
    "storage.bytes_per_turn",
    "simulate.gossip_1k",
    "simulate.gossip_10k",
    "simulate.market_1k",
    "engine.throughput_1",
    "engine.throughput_4",
    "engine.throughput_8",
    "engine.defaults_decode",
    "engine.defaults_prefill",
    "engine.calibrated",
    "gateway.throughput_1",
    "gateway.throughput_8",
    "gateway.first_token_overhead",
    "gateway.crowded",
    "gateway.second_turn",
}


def goal(name: str) -> Goal:
    return next(each for each in GOALS if each.name == name)


def measured(value: float) -> Measurement:
    return Measurement(value=value, baseline=2.0, ratio=value / 2.0, details={"runs": [1, 2]})


def test_every_promised_figure_has_one_goal_and_no_other_is_there() -> None:
    assert sorted(each.name for each in GOALS) == sorted(PROMISED)


def test_a_suite_is_the_first_part_of_a_name_and_none_is_empty() -> None:
    assert {each.suite for each in GOALS} == set(SUITES)


def test_the_object_has_the_stable_fields() -> None:
    told = Figure(goal=goal("cli.help"), measurement=measured(0.25)).to_json()
    assert {"name", "value", "unit", "baseline", "ratio", "target", "holds"} <= told.keys()
    assert told["name"] == "cli.help"
    assert (told["value"], told["unit"], told["baseline"], told["ratio"]) == (0.25, "s", 2.0, 0.125)
    assert (told["target"], told["bound"], told["judged"]) == (3.0, "at most", "ratio")
    assert told["holds"] is True
    assert json.loads(json.dumps(told)) == told
    assert "problem" not in told


def test_a_figure_that_was_not_taken_says_why_and_does_not_hold() -> None:
    told = Figure(goal=goal("cli.help"), problem="it did not start").to_json()
    assert told["holds"] is False
    assert told["problem"] == "it did not start"
    assert told["value"] is told["baseline"] is told["ratio"] is None


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [
        ("stream.throughput_1", 1.9, True),
        ("stream.throughput_1", 1.898, False),
        ("stream.fast", 2.04, True),
        ("idle.rss", 150.0, True),
        ("idle.rss", 150.1, False),
        ("idle.cpu", 0.0, True),
    ],
)
def test_a_figure_holds_on_the_right_side_of_its_target(name: str, value: float, holds: bool) -> None:
    assert Figure(goal=goal(name), measurement=measured(value)).holds is holds


def test_a_target_can_be_missed_from_either_side() -> None:
    low, high = goal("stream.fast"), goal("cli.help")
    assert not Figure(goal=replace(low, target=2.0), measurement=measured(1.0)).holds
    assert not Figure(goal=replace(high, target=0.4), measurement=measured(1.0)).holds


def test_a_cost_is_compared_with_its_baseline() -> None:
    found = compared(3.0, 6.0, runs=4)
    assert (found.value, found.baseline, found.ratio) == (3.0, 6.0, 0.5)
    assert found.details == {"runs": 4}


def test_a_baseline_of_nothing_is_told_and_compared_with_nothing() -> None:
    with pytest.raises(LocalError, match="its baseline was 0, and it 3: measure longer"):
        compared(3.0, 0.0)


def test_paired_rates_give_the_median_of_the_ratios_and_show_both_sides() -> None:
    found = paired([(9.0, 10.0), (30.0, 20.0), (50.0, 50.0)])
    assert found.value == found.ratio == 1.0
    assert found.baseline == 1.0
    assert found.details["ours"] == [9.0, 30.0, 50.0]
    assert found.details["baseline"] == [10.0, 20.0, 50.0]


def test_what_takes_time_is_judged_by_its_ratio_and_what_is_the_same_everywhere_by_its_value() -> None:
    slow = Measurement(value=1000.0, baseline=500.0, ratio=2.0)
    assert Figure(goal=replace(goal("paid.voucher_cpu"), target=2.0), measurement=slow).holds
    assert not Figure(goal=replace(goal("paid.voucher_cpu"), target=1.9), measurement=slow).holds
    assert Figure(goal=replace(goal("gas.open"), target=1000.0), measurement=slow).holds
    assert not Figure(goal=replace(goal("gas.open"), target=999.0), measurement=slow).holds


def test_no_time_is_promised_in_seconds() -> None:
    times = [each for each in GOALS if each.unit in {"s", "ms"}]
    assert len(times) > 5
    assert {each.judged for each in times} == {"ratio"}
