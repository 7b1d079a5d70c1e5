"""The figures of the simulations are of what really ran."""

from __future__ import annotations

import pytest

from p2pnode.bench.simulate import gossip, market


def test_a_hundred_nodes_deliver_everything_and_are_slower_than_a_loop_that_does_nothing() -> None:
    found = gossip(100, 2.0)
    details = found.details
    assert (details["nodes"], details["seconds_simulated"]) == (100, 2.0)
    assert details["deliveries"] >= 9 * 99  # of ten messages; the last one is on its way
    assert details["events"] > 4 * details["deliveries"]
    assert found.ratio == found.value / found.baseline < 1


def test_a_small_market_pays_for_answers_and_is_measured_without_its_beginning() -> None:
    found = market(40, 120.0)
    details = found.details
    assert (details["nodes"], details["hosts"], details["seconds_simulated"]) == (40, 4, 120.0)
    assert min(details[name] for name in ("advert", "lookup", "asked", "SessionOpened", "paid", "answer")) > 0
    assert found.ratio == found.value == pytest.approx(120.0 / details["cpu_s"], rel=0.05)
