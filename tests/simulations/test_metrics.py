"""Figures and curves of a run: each by hand from a few rows."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.percentiles import percentile
from p2pnode.simulations.estimates import estimate, t_quantile
from p2pnode.simulations.metrics import Measures, gini, measures_of
from p2pnode.simulations.recorder import Recorder


def measured(recorder: Recorder, begin_s: float = 0.0, end_s: float = 60.0) -> Measures:
    return measures_of(recorder, begin_s=begin_s, end_s=end_s)


def with_messages() -> Recorder:
    """Three messages to four nodes each: one before 10 s, one that a node misses, one after 50 s."""
    recorder = Recorder()
    for number, at_s, got in ((0, 5.0, 4), (1, 20.0, 3), (2, 55.0, 1)):
        recorder.row("published", message=number, topic="t", origin=0, at_s=at_s, audience=4)
        for node in range(got):
            delay_s = 0.1 * (node + 1)
            recorder.row(
                "messages", message=number, node=node + 1, at_s=at_s + delay_s, delay_s=delay_s, hops=node
            )
    return recorder


def test_a_run_that_told_nothing_has_no_figures() -> None:
    assert measured(Recorder()) == Measures({}, {})


def test_reliability_latency_and_hops_are_of_the_messages_between_warm_up_and_cool_down() -> None:
    figures = measured(with_messages(), 10.0, 50.0).figures
    assert figures["published"] == 1
    assert figures["reliability"] == 0.75
    assert figures["latency_mean_s"] == pytest.approx(0.2)
    assert figures["latency_p50_s"] == 0.2
    assert figures["latency_max_s"] == pytest.approx(0.3)
    assert (figures["hops_mean"], figures["hops_max"]) == (1.0, 2)
    assert measured(with_messages()).figures["reliability"] == 8 / 12


def test_the_delivery_curve_has_the_value_below_which_each_share_lies() -> None:
    curve = measured(with_messages(), 10.0, 50.0).curves["delivery"]
    at = dict(zip(curve.y, curve.x, strict=True))
    assert [at[share] for share in (0.0, 0.33, 0.34, 1.0)] == pytest.approx([0.1, 0.1, 0.2, 0.3])


def test_duplicates_are_copies_for_each_delivery_and_control_messages_are_summed() -> None:
    recorder = Recorder()
    recorder.row("nodes", node=0, role="peer", delivered=10, duplicates=25, graft=2, online_s=10.0, cpu_s=1.0)
    recorder.row("nodes", node=1, role="peer", delivered=10, duplicates=5, graft=1, online_s=10.0, cpu_s=3.0)
    figures = measured(recorder).figures
    assert (figures["duplicates"], figures["duplicates_per_delivery"], figures["graft"]) == (30, 1.5, 3)
    assert figures["cpu_load_mean"] == pytest.approx(0.2)
    assert figures["income_gini"] is None


def test_sessions_tell_of_success_failover_and_fraud() -> None:
    recorder = Recorder()
    rows: list[dict[str, Any]] = [
        {"outcome": "done", "first_token_s": 1.0, "hosts": 1, "tokens_out": 10, "cost": 7},
        {"outcome": "done", "first_token_s": 3.0, "hosts": 2, "gap_s": 0.5, "tokens_out": 20, "cost": 9},
        {"outcome": "no_host", "hosts": 0},
        {"outcome": "cut", "first_token_s": 2.0, "hosts": 1, "fraud": "over_billing", "found": True},
    ]
    for place, row in enumerate(rows):
        recorder.row("sessions", at_s=10.0 * place, client=place, **row)
    found = measured(recorder)
    assert found.figures["session_success"] == 0.5
    assert (found.figures["sessions_no_host"], found.figures["sessions_cut"]) == (1, 1)
    assert found.figures["first_token_p50_s"] == 2.0
    assert found.figures["first_token_within_2s"] == 0.5  # of all who asked, also who got none
    assert (found.figures["failovers"], found.figures["failover_gap_max_s"]) == (1, 0.5)
    assert (found.figures["tokens_out"], found.figures["cost"]) == (30, 16)
    assert (found.figures["fraud"], found.figures["fraud_found"]) == (1, 1)
    assert found.curves["fraud"].labels == ("over_billing, found", "over_billing, missed")
    assert found.curves["fraud"].y == (1.0, 0.0)


def test_money_that_is_not_accounted_for_is_seen_at_its_worst() -> None:
    recorder = Recorder()
    for at_s, kind, amount, total in (
        (0.0, "mint", 100, 100),
        (1.0, "settle", 30, 97),
        (2.0, "refund", 3, 100),
    ):
        recorder.row("ledger", at_s=at_s, kind=kind, amount=amount, total=total, fee=1)
    figures = measured(recorder).figures
    assert (figures["money_minted"], figures["money_unaccounted_max"], figures["fees"]) == (100, 3, 3)


def test_samples_are_means_over_pieces_of_the_time() -> None:
    recorder = Recorder()
    for second in range(60):
        recorder.sample(float(second), "online", 100.0 if second < 30 else 50.0)
    found = measured(recorder)
    curve = found.curves["sample_online"]
    assert (curve.y[0], curve.y[-1]) == (100.0, 50.0)
    assert found.figures["online_mean"] == 75.0


@pytest.mark.parametrize(
    ("incomes", "wanted"),
    [([5, 5, 5, 5], 0.0), ([0, 0, 0, 4], 0.75), ([1, 2, 3], 2 / 9), ([], None), ([0, 0], None)],
)
def test_the_gini_coefficient_is_that_of_the_textbook(incomes: list[float], wanted: float | None) -> None:
    found = gini(incomes)
    assert found == (None if wanted is None else pytest.approx(wanted))


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_a_percentile_is_a_value_that_was_there_and_enough_lie_at_or_below_it(
    values: Any, share: float
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-9


def test_an_interval_over_runs_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0, None, math.nan])
    assert found is not None
    assert (found.mean, found.runs) == (2.0, 3)
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert estimate([7]) is not None
    assert estimate([None]) is None


def test_the_quantile_beyond_the_table_goes_on_where_the_table_ends() -> None:
    assert t_quantile(30) > t_quantile(31) > t_quantile(120) > 1.96
    assert [t_quantile(each) for each in (40, 60, 120)] == pytest.approx([2.021, 2.000, 1.980], abs=5e-4)


def test_a_95_percent_interval_holds_the_true_mean_95_times_in_a_hundred() -> None:
    draw = random.Random(5)
    held = 0
    for _ in range(2000):
        found = estimate(draw.gauss(3.0, 2.0) for _ in range(5))
        assert found is not None
        held += found.low <= 3.0 <= found.high
    assert 0.935 < held / 2000 < 0.965
