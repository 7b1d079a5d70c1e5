"""The choice is within 5% of the best, on timings that were recorded and on any others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.models.calibration import (
    BATCHES,
    SLACK,
    Timing,
    chosen,
    grid,
    remembered,
    table,
    threads_default,
    with_choice,
)

# `p2pnode models calibrate` with SmolLM2-135M on two cores that other programs use, too: two threads wait for
# one another.
RECORDED = [
    Timing(threads=1, batch=32, prefill_s=3.47, decode_s=1.93),
    Timing(threads=2, batch=32, prefill_s=25.6, decode_s=32.0),
]
NEAR = [
    Timing(threads=4, batch=63, prefill_s=1.0, decode_s=1.0),
    Timing(threads=2, batch=63, prefill_s=1.02, decode_s=1.0),
    Timing(threads=2, batch=32, prefill_s=1.04, decode_s=1.04),
    Timing(threads=2, batch=16, prefill_s=1.1, decode_s=1.1),
    Timing(threads=1, batch=16, prefill_s=1.5, decode_s=1.5),
]
_TIMES = st.floats(0.01, 100.0)
_TIMINGS = st.builds(
    Timing, threads=st.integers(1, 64), batch=st.sampled_from(BATCHES), prefill_s=_TIMES, decode_s=_TIMES
)


def test_of_recorded_timings_the_fast_one_is_taken() -> None:
    assert chosen(RECORDED) == RECORDED[0]
    assert table(RECORDED) == [
        "* 1 threads, batch 32: 37 tokens/s read, 17 tokens/s written",
        "  2 threads, batch 32: 5 tokens/s read, 1 tokens/s written",
    ]


def test_near_the_best_the_fewest_threads_and_then_the_smallest_batch_are_taken() -> None:
    assert (chosen(NEAR).threads, chosen(NEAR).batch) == (2, 32)


@given(st.lists(_TIMINGS, min_size=1, max_size=24))
def test_the_choice_is_never_more_than_the_slack_behind_the_best(timings: list[Timing]) -> None:
    choice = chosen(timings)
    best = min(each.total_s for each in timings)
    assert best <= choice.total_s <= best * (1 + SLACK)
    assert not any(each.total_s <= best * (1 + SLACK) and each.threads < choice.threads for each in timings)


@pytest.mark.parametrize("cores", [1, 2, 3, 6, 16, 64])
def test_the_grid_is_small_and_has_no_batch_above_63(cores: int) -> None:
    tried = grid(cores)
    assert len(set(tried)) == len(tried) <= 27
    assert {batch for _, batch in tried} == set(BATCHES)
    assert max(BATCHES) <= 63
    assert all(1 <= threads <= cores for threads, _ in tried)
    assert tried[0] == (threads_default(cores), 32)


@pytest.mark.parametrize(
    ("cores", "physical", "threads"),
    [(1, 1, 1), (2, 2, 2), (2, 1, 1), (3, 3, 2), (8, 4, 3), (8, None, 7), (2, 16, 2), (64, 32, 31)],
)
def test_without_a_calibration_a_core_stays_free_where_there_are_more_than_two(
    cores: int, physical: int | None, threads: int
) -> None:
    assert threads_default(cores, physical) == threads
    assert grid(cores, physical)[0] == (threads, 32)


def test_what_is_remembered_is_found_by_its_key_and_nothing_else_is() -> None:
    text = with_choice(with_choice(None, "a", RECORDED[0]), "b", NEAR[0])
    assert remembered(text, "a") == RECORDED[0]
    assert remembered(text, "b") == NEAR[0]
    assert remembered(text, "c") is None
    assert remembered(with_choice(text, "a", NEAR[1]), "a") == NEAR[1]
    many = text
    for number in range(300):
        many = with_choice(many, f"n{number}", RECORDED[0])
    assert remembered(many, "a") is None
    assert remembered(many, "n299") == RECORDED[0]


@pytest.mark.parametrize(
    "text",
    [
        None, "", "[]", "{nonsense", '{"version": 2, "choices": {"a": {}}}',
        '{"version": 1, "choices": {"a": {"threads": 0, "batch": 64, "prefill_s": 1, "decode_s": 1}}}',
        '{"version": 1, "choices": {"a": {"threads": 1}}}', '{"version": 1, "choices": 7}',
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_as_none(text: str | None) -> None:
    assert remembered(text, "a") is None
    assert remembered(with_choice(text, "a", RECORDED[0]), "a") == RECORDED[0]
