"""The figures of the simulations are of what really ran."""

from __future__ import annotations

from p2pnode.bench.simulate import gossip


def test_a_hundred_nodes_deliver_everything_and_are_slower_than_a_loop_that_does_nothing() -> None:
    found = gossip(100, 2.0)
    details = found.details
    assert (details["nodes"], details["seconds_simulated"]) == (100, 2.0)
    assert details["deliveries"] >= 9 * 99  # of ten messages; the last one is on its way
    assert details["events"] > 4 * details["deliveries"]
    assert found.ratio == found.value / found.baseline < 1
