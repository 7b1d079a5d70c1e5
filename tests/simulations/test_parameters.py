"""A parameter that can't be is refused, with the name of its field and what would do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pnode.simulations.cpu import Cpu
from p2pnode.simulations.dht import Dht
from p2pnode.simulations.gossip import Gossip
from p2pnode.simulations.links import Links
from p2pnode.simulations.nat import Nat


@pytest.mark.parametrize("record", [Links, Nat, Cpu, Gossip, Dht])
def test_the_defaults_are_allowed(record: Callable[[], object]) -> None:
    assert record() == record()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Links(jitter_share=-0.1), "jitter_share is -0.1: it must not be negative"),
        (lambda: Links(latency_min_ms=float("nan")), "latency_min_ms is nan"),
        (lambda: Links(uplink_mbit_per_s=float("inf")), "uplink_mbit_per_s is inf"),
        (lambda: Links(loss_share=1.5), "loss_share is 1.5: a share is between 0 and 1"),
        (lambda: Links(loss_share=0.6), "loss_share is 0.6: above 0.5 no connection holds"),
        (lambda: Links(latency_min_ms=200), "latency_min_ms is 200 and latency_max_ms is 150.0"),
        (lambda: Links(dial_deadline_s=0), "dial_deadline_s is 0: it must be above 0"),
        (lambda: Nat(public_share=0.5), "add up to 0.5: they must add up to 1"),
        (lambda: Nat(public_share=1.2, symmetric_share=-0.2), "public_share is 1.2"),
        (lambda: Cpu(speed=0), "speed is 0: it must be above 0"),
        (lambda: Cpu(check_s=-1), "check_s is -1"),
        (lambda: Gossip(dials=0), "dials is 0"),
        (lambda: Dht(servers_share=2), "servers_share is 2"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        make()
