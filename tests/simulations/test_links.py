"""How long a message takes: latency, jitter, lines of a bandwidth, and packets that are lost."""

from __future__ import annotations

from statistics import mean

import pytest

from p2pnode.simulations.draws import Draws
from p2pnode.simulations.links import REGIONS, WEIGHTS, LinkModel, Links


def model(**parameters: object) -> LinkModel:
    return LinkModel(Links(**parameters), Draws(1))  # type: ignore[arg-type]


def test_a_latency_between_regions_is_the_same_both_ways_and_never_longer_than_the_longest() -> None:
    links = model()
    places = [links.place(number) for number in range(300)]
    assert {links.latency_s(a, b) for a in places for b in places} <= {ms / 1000 for ms in range(2, 221)}
    assert all(links.latency_s(a, b) == links.latency_s(b, a) for a in places for b in places[:20])


def test_regions_are_drawn_by_their_weights() -> None:
    links = model()
    drawn = [links.place(number).region for number in range(20_000)]
    for region, weight in enumerate(WEIGHTS):
        assert drawn.count(region) / 20_000 == pytest.approx(weight / sum(WEIGHTS), abs=0.015), REGIONS[
            region
        ]


def test_a_uniform_latency_is_drawn_once_for_each_pair_and_evenly() -> None:
    links = model(latency="uniform", latency_min_ms=10, latency_max_ms=150)
    places = [links.place(number) for number in range(200)]
    found = [links.latency_s(a, b) for a in places for b in places if a is not b]
    assert all(links.latency_s(a, b) == links.latency_s(b, a) for a in places for b in places)
    assert min(found) >= 0.01
    assert max(found) <= 0.15
    assert mean(found) == pytest.approx(0.08, abs=0.002)
    assert sorted(found)[len(found) // 4] == pytest.approx(0.045, abs=0.003)


def test_jitter_adds_up_to_its_share() -> None:
    links = model(jitter_share=0.5)
    found = [links.travel_s(0.1) for _ in range(5000)]
    assert 0.1 <= min(found) < 0.101
    assert 0.149 < max(found) <= 0.15
    assert model(jitter_share=0.0).travel_s(0.1) == 0.1


def test_messages_wait_for_one_another_on_a_line_of_a_bandwidth() -> None:
    links = model(uplink_mbit_per_s=8, downlink_mbit_per_s=16, overhead_bytes=0)
    sender, receiver = links.place(0), links.place(1)
    assert [links.departs(sender, 1_000_000, 5.0) for _ in range(3)] == [6.0, 7.0, 8.0]
    assert links.departs(sender, 1_000_000, 20.0) == 21.0
    assert links.lands(receiver, 1_000_000, 6.5) == 7.0
    assert links.lands(receiver, 1_000_000, 6.6) == 7.5


def test_a_line_without_a_bound_takes_no_time() -> None:
    links = model()
    place = links.place(0)
    assert links.departs(place, 10**9, 5.0) == 5.0
    assert links.lands(place, 10**9, 5.0) == 5.0
    assert links.is_plain


def test_a_lost_packet_costs_a_round_trip_and_nothing_is_lost_for_good() -> None:
    links = model(loss_share=0.01)
    small = [links.retransmission_s(100, 0.3) for _ in range(20_000)]
    assert mean(each > 0 for each in small) == pytest.approx(0.01, abs=0.003)
    assert {round(each, 6) for each in small} >= {0.0, 0.6}
    large = [links.retransmission_s(14_600, 0.01) for _ in range(5000)]
    assert mean(each > 0 for each in large) == pytest.approx(1 - 0.99**10, abs=0.02)
    assert min(each for each in large if each) == pytest.approx(0.2)
