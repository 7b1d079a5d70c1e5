"""``bench economy``: one fee a host and day, to the unit."""

from __future__ import annotations

from pathlib import Path

import trio

from p2pnode.bench.economy import PRICE_IN, PRICE_OUT, SESSION_FEE, measure_economy
from p2pnode.bench.figure import GOALS, Measurement
from p2pnode.bench.options import BenchOptions
from p2pnode.demo import bills


def test_a_user_who_asks_six_times_a_day_pays_one_fee_where_sessions_are_kept_and_six_otherwise(
    tmp_path: Path,
) -> None:
    assert (PRICE_IN, PRICE_OUT, SESSION_FEE) == (bills.PRICE_IN, bills.PRICE_OUT, bills.SESSION_FEE)
    found: dict[str, Measurement] = {}

    def take(name: str, measured: Measurement) -> None:
        found[name] = measured

    trio.run(measure_economy, BenchOptions(scratch=tmp_path, quick=True), take)
    assert list(found) == [goal.name for goal in GOALS if goal.suite == "economy"]
    opens, share = found["economy.opens"], found["economy.fee_share"]
    assert opens.details["one_host"] == opens.details["three_hosts"] == 1
    assert opens.details["session_each"] == 6
    assert opens.ratio <= 1
    tokens = share.details["paid_units"] - SESSION_FEE
    # The first question's input is in the cache of the session when the others are asked.
    assert 0 < tokens < share.details["paid_units_session_each"] - 6 * SESSION_FEE
    assert share.value == round(SESSION_FEE / share.details["paid_units"], 4)
