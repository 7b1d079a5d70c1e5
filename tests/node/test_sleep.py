"""Sleep is told from fault: by two clocks and a heartbeat."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.node.sleep import SleepWatch, Slept, slept


@pytest.mark.parametrize(
    ("ran_s", "wall_s", "found"),
    [
        (1.0, 1.0, Slept()),
        (6.9, 6.9, Slept()),  # a busy machine
        (121.0, 121.0, Slept(stopped_s=120.0)),  # SIGSTOP: both clocks go on
        (1.0, 121.0, Slept(suspended_s=120.0)),  # a closed lid: the monotonic clock stands still
        (61.0, 121.0, Slept(stopped_s=60.0, suspended_s=60.0)),
        (1.0, -3600.0, Slept()),  # the clock was set back
        (1.0, 1.4, Slept()),  # it is adjusted
    ],
)
def test_what_two_clocks_say(ran_s: float, wall_s: float, found: Slept) -> None:
    assert slept(ran_s, wall_s, beat_s=1.0, least_s=6.0) == found


async def test_a_process_that_was_stopped_knows_for_how_long(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        watch = SleepWatch(DEFAULT_LIMITS, trio.current_time)
        nursery.start_soon(watch.run)
        await trio.sleep(1000)
        assert watch.stopped_s == 0
        began = trio.current_time()
        autojump_clock.jump(120)
        assert watch.stopped_s == pytest.approx(120, abs=2 * DEFAULT_LIMITS.sleep_beat_s)
        assert watch.slept_since(began) == watch.stopped_s
        assert watch.slept_since(trio.current_time() + 1) == 0
        nursery.cancel_scope.cancel()


async def test_a_machine_that_was_suspended_has_timers_that_are_right(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        suspended_s = 0.0
        watch = SleepWatch(DEFAULT_LIMITS, lambda: trio.current_time() + suspended_s)
        nursery.start_soon(watch.run)
        await trio.sleep(1)
        began, suspended_s = trio.current_time(), 120.0
        await trio.sleep(DEFAULT_LIMITS.sleep_beat_s)
        assert watch.slept_since(began) == pytest.approx(120)
        assert watch.stopped_s == 0
        nursery.cancel_scope.cancel()
