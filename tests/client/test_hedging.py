"""When a second host may be asked: what was measured decides, and few turns of many have one."""

from __future__ import annotations

import random

import pytest

from p2pnode.client.hedging import (
    BURST,
    FLOOR_S,
    SAMPLES_MIN,
    SHARE,
    FirstTokens,
    HedgeMode,
    Hedging,
    may_be_second,
)
from p2pnode.client.ranking import Candidate
from tests.client.support import advert, peer

HOST, OTHER = peer(1), peer(2)


def measured(seconds: list[float], tokens: int = 500) -> FirstTokens:
    made = FirstTokens()
    for each in seconds:
        made.note(HOST, tokens, each)
    return made


def test_late_is_a_quarter_more_than_what_95_of_100_first_tokens_took() -> None:
    draw = random.Random(1)
    seconds = [draw.uniform(1.0, 3.0) for _ in range(60)]
    late_s = measured(seconds).late_after_s(HOST, 500)
    assert late_s == pytest.approx(1.25 * sorted(seconds)[56])


def test_nothing_is_late_where_too_little_was_measured() -> None:
    assert measured([1.0] * (SAMPLES_MIN - 1)).late_after_s(HOST, 500) is None
    assert measured([1.0] * SAMPLES_MIN).late_after_s(HOST, 500) == 1.25
    assert measured([1.0] * SAMPLES_MIN).late_after_s(OTHER, 500) is None, "that is of another host"


def test_nothing_is_late_within_half_a_second() -> None:
    assert measured([0.01] * SAMPLES_MIN).late_after_s(HOST, 500) == FLOOR_S


def test_a_longer_prompt_may_take_longer_than_shorter_ones_took_and_a_shorter_one_not() -> None:
    made = measured([1.0] * SAMPLES_MIN, tokens=1_000)
    assert made.late_after_s(HOST, 8_000) is None
    assert made.late_after_s(HOST, 10) == 1.25
    for _ in range(SAMPLES_MIN):
        made.note(HOST, 8_000, 6.0)
    assert made.late_after_s(HOST, 8_000) == 7.5
    assert made.late_after_s(HOST, 1_000) == 1.25


def test_what_was_measured_long_ago_is_forgotten() -> None:
    made = measured([9.0] * 64)
    for _ in range(64):
        made.note(HOST, 500, 1.0)
    assert made.late_after_s(HOST, 500) == 1.25


@pytest.mark.parametrize("idle", [0, 50, 10_000])
def test_at_most_a_twentieth_of_all_turns_and_ten_more_have_a_second_host(idle: int) -> None:
    hedging, turns = Hedging(), 400
    for _ in range(idle):
        hedging.turn()
    asked = 0
    for _ in range(turns):
        hedging.turn()
        asked += hedging.take()
    saved = min(BURST, 1 + idle * SHARE)
    assert asked == pytest.approx(saved + turns * SHARE, abs=1)


def test_a_right_that_was_not_used_is_there_for_the_next_turn() -> None:
    hedging = Hedging()
    assert hedging.take()
    assert not hedging.take()
    hedging.give_back()
    assert hedging.take()


def candidate(index: int, *, trusted: bool = False, under_way: int = 0, **of: object) -> Candidate:
    made = advert(index, **of)  # type: ignore[arg-type]
    return Candidate(advert=made, offer=made.offers[0], score=1.0, trusted=trusted, under_way=under_way)


@pytest.mark.parametrize(
    ("mode", "second", "may"),
    [
        ("free", candidate(2), True),
        ("free", candidate(2, active=3), True),
        ("never", candidate(2), False),
        ("free", candidate(2, price_out=1), False),
        ("always", candidate(2, price_out=1), True),
        ("always", candidate(2, active=4), False),
        ("always", candidate(2, under_way=4), False),
        ("always", candidate(2, queued=1), False),
        ("always", candidate(2, trusted=True), False),
    ],
)
def test_a_second_host_has_room_costs_no_more_than_is_allowed_and_is_trusted_as_the_first(
    mode: HedgeMode, second: Candidate, may: bool
) -> None:
    assert may_be_second(candidate(1), second, mode) is may
