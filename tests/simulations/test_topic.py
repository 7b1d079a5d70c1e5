"""Adverts alone: the node's own publishers, exchanges and books, of any number of hosts."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest

from p2pnode.protocols.adverts.exchange import REFRESH_S
from p2pnode.simulations.result import Result
from p2pnode.simulations.runs import run
from p2pnode.simulations.scenario import Scenario
from p2pnode.simulations.topic import Topic

HOSTS = Scenario(
    name="hosts",
    nodes=35,
    duration_s=140.0,
    warmup_s=65.0,
    topic=Topic(listeners=3, start_s=30.0),
)


@cache
def ran(nodes: int = HOSTS.nodes, *, duration_s: float = HOSTS.duration_s, **topic: float) -> Result:
    assert HOSTS.topic is not None
    parameters = replace(HOSTS.topic, **topic)  # type: ignore[arg-type]
    return run(replace(HOSTS, nodes=nodes, duration_s=duration_s, topic=parameters))


def over_time(result: Result, name: str) -> dict[float, float]:
    table = result.recorder.tables["samples"]
    rows = zip(table["at_s"].values, table["name"], table["value"].values, strict=True)
    return {at_s: value for at_s, each, value in rows if each == name}


def test_a_topic_carries_about_two_adverts_a_second_of_few_hosts_and_of_many() -> None:
    """They begin at 30 s, which would be 1.3 and 7.6 a second."""
    assert ran(40).figures["adverts_published_per_s_mean"] == pytest.approx(40 / (1.05 * REFRESH_S), rel=0.1)
    rates = over_time(ran(240, duration_s=900.0), "adverts_published_per_s")
    assert max(rates.values()) > 4
    last = [rate for at_s, rate in rates.items() if at_s > 500]
    assert math.fsum(last) / len(last) == pytest.approx(2, abs=0.5)


def test_a_listener_takes_all_that_is_published_while_that_is_less_than_its_rates() -> None:
    figures = ran(160).figures
    published, taken = figures["adverts_published_per_s_mean"], figures["adverts_taken_per_s_mean"]
    assert published is not None
    assert taken == pytest.approx(published, rel=0.1)
    assert figures["hosts_in_book_share_mean"] == 1.0


def test_hosts_that_all_start_in_one_second_come_down_to_the_topics_rate() -> None:
    rates = over_time(ran(240, duration_s=900.0, start_s=1.0, dials=1, listeners=1), "adverts_taken_per_s")
    assert max(rates.values()) > 10
    last = [rate for at_s, rate in rates.items() if at_s > 500]
    assert math.fsum(last) / len(last) == pytest.approx(2, abs=0.5)


def test_an_attacker_falls_silent_when_it_is_said_to() -> None:
    result = ran(duration_s=150.0, sybil_share=0.3, sybil_at_s=65.0, sybil_until_s=100.0)
    made_up = over_time(result, "adverts_made_up_per_s")
    assert made_up[90.0] == pytest.approx(15, abs=1)
    assert made_up[150.0] == 0


def test_hosts_stay_in_books_though_an_attacker_with_30_percent_of_all_ids_comes() -> None:
    result = ran(duration_s=150.0, sybil_share=0.3, sybil_at_s=65.0)
    made_up = over_time(result, "adverts_made_up_per_s")
    assert made_up[60.0] == 0
    assert made_up[100.0] == pytest.approx(15, abs=1)
    held = over_time(result, "hosts_in_book_share_least")
    assert all(share == 1.0 for at_s, share in held.items() if at_s >= 65)
    assert over_time(result, "book_honest_share")[150.0] == pytest.approx(0.7, abs=0.03)


def test_a_full_book_keeps_about_as_large_a_share_of_honest_hosts_as_there_are() -> None:
    result = ran(duration_s=150.0, sybil_share=0.3, sybil_at_s=65.0, book_max=32)
    assert over_time(result, "book_entries")[150.0] <= 32
    share = over_time(result, "book_honest_share")
    assert share[60.0] == 1.0
    last = [value for at_s, value in share.items() if at_s >= 120]
    assert math.fsum(last) / len(last) == pytest.approx(0.7, abs=0.2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sybil_share": 0.99}, "sybil_share is 0.99: it must not be above 0.95"),
        ({"dials": 0}, "dials is 0"),
        ({"listeners": 0}, "listeners is 0"),
        ({"sybil_interval_s": 0.0}, "sybil_interval_s is 0.0"),
        (
            {"sybil_at_s": 60.0, "sybil_until_s": 60.0},
            "sybil_until_s is 60.0: it must be later",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Topic(**values)  # type: ignore[arg-type]


def test_an_attackers_share_is_of_all_ids() -> None:
    assert Topic(sybil_share=0.3).sybils(700) == 300
    assert Topic().sybils(700) == 0


def test_a_topic_is_a_run_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"topic\.dials is 8: of 8 nodes"):
        Scenario(name="x", nodes=8, topic=Topic())
