"""Percentiles are values that were there."""

from __future__ import annotations

from p2pnode.percentiles import percentile, spread


def test_a_percentile_is_the_least_value_that_so_many_do_not_pass() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.51) == 3.0
    assert percentile([7.0], 0.01) == 7.0
    assert percentile([], 0.5) is None


def test_a_spread_takes_values_in_any_order_and_is_none_of_none() -> None:
    assert spread([3.0, 1.0, 2.0, 4.0]) == {"p50": 2.0, "p90": 4.0, "p99": 4.0}
    assert spread(each / 100 for each in range(1, 101)) == {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    assert spread([]) is None
