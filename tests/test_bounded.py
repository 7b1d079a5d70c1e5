"""A token bucket, waits that double, and a map that forgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.bounded import Backoff, Backoffs, BoundedMap, TokenBucket, backoff_s


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(2.0, 3.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait_s(100.0) == 0.5
    assert not bucket.take(100.25)
    assert bucket.take(100.5)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_a_bucket_in_debt_gives_nothing_before_the_debt_is_paid() -> None:
    bucket = TokenBucket(1.0, 2.0)
    bucket.spend(10.0)
    assert bucket.wait_s(0.0) == 9.0
    assert not bucket.take(8.9)
    assert bucket.take(9.0)


def test_a_clock_that_steps_back_fills_no_bucket() -> None:
    bucket = TokenBucket(1.0, 1.0)
    assert bucket.take(50.0)
    assert not bucket.take(10.0)
    assert not bucket.take(10.9)
    assert bucket.take(11.0)


@given(st.lists(st.floats(0, 10), max_size=60), st.floats(0.1, 5), st.floats(1, 8))
def test_a_bucket_never_gives_more_than_its_burst_and_its_rate(
    gaps: list[float], rate: float, burst: float
) -> None:
    bucket, now, taken = TokenBucket(rate, burst), 0.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now)
    assert taken <= burst + rate * now + 1e-6


def test_waits_double_up_to_the_longest_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next_s() for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.next_s(max_s=100.0) == 32
    backoff.reset()
    assert backoff.next_s() == 1


@pytest.mark.parametrize("failures", [0, 1, 63, 64, 10**9])
def test_a_wait_is_bounded_however_often_something_failed(failures: int) -> None:
    assert 0.1 <= backoff_s(failures, first_s=0.1, max_s=60.0) <= 60.0


def test_each_key_waits_by_itself_and_longer_each_time() -> None:
    waiting: Backoffs[str] = Backoffs(2.0, 5.0)
    assert not waiting.waits("a", 0.0)
    waiting.failed("a", 0.0)
    assert waiting.waits("a", 1.9)
    assert not waiting.waits("b", 1.9)
    assert not waiting.waits("a", 2.0)
    waiting.failed("a", 10.0)
    assert waiting.waits("a", 13.9)
    assert not waiting.waits("a", 14.0)
    waiting.succeeded("a")
    waiting.failed("a", 20.0)
    assert not waiting.waits("a", 22.0)


def test_a_map_forgets_what_was_put_longest_ago() -> None:
    known: BoundedMap[str, int] = BoundedMap(2)
    assert known.put("a", 1) is None
    assert known.put("b", 2) is None
    assert known.put("a", 3) is None
    assert known.put("c", 4) == ("b", 2)
    assert (list(known), known.values(), len(known)) == (["a", "c"], [3, 4], 2)
    assert ("a" in known, "b" in known, known.get("b")) == (True, False, None)
    assert (known.pop("a"), known.pop("a")) == (3, None)


def test_a_value_that_is_used_stays_and_is_made_once() -> None:
    known: BoundedMap[str, list[int]] = BoundedMap(2)
    first = known.use("a", list)
    known.use("b", list)
    assert known.use("a", list) is first
    known.use("c", list)
    assert list(known) == ["a", "c"]


def test_looking_at_a_value_keeps_it_no_longer() -> None:
    known: BoundedMap[str, int] = BoundedMap(2)
    known.put("a", 1)
    known.put("b", 2)
    assert known.get("a") == 1
    assert known.put("c", 3) == ("a", 1)


@given(st.lists(st.integers(0, 20), max_size=80), st.integers(1, 6))
def test_a_map_holds_the_latest_keys_and_never_more(keys: list[int], most: int) -> None:
    known: BoundedMap[int, int] = BoundedMap(most)
    for key in keys:
        known.put(key, key)
    latest = list(dict.fromkeys(reversed(keys)))[:most]
    assert list(known) == latest[::-1]
