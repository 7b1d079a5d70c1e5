"""A test that sleeps on the real clock is stopped; one that looks again and again, or mocks time, is not."""

from __future__ import annotations

import time

import pytest
import trio
from trio.testing import MockClock

from tests.real_sleeps import POLL_MAX_S, SLEEPERS, TESTS


async def test_a_sleep_on_the_real_clock_is_refused() -> None:
    with pytest.raises(AssertionError, match="let it wait for what it needs"):
        await trio.sleep(2 * POLL_MAX_S)


def test_so_is_one_of_a_thread() -> None:
    with pytest.raises(AssertionError, match="let it wait for what it needs"):
        time.sleep(2 * POLL_MAX_S)
    time.sleep(0.001)


async def test_a_pause_between_two_looks_is_not() -> None:
    await trio.sleep(0.001)


async def test_a_mock_clock_may_jump(autojump_clock: MockClock) -> None:
    await trio.sleep(3600)


def test_those_that_may_sleep_are_there_and_say_why() -> None:
    assert [name for name, why in SLEEPERS.items() if not why or not (TESTS / name).exists()] == []
