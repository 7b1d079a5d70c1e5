"""Notices that this process slept: its own absence must not be taken for a peer's.

Two clocks and a heartbeat tell. A beat that comes much later than it was due says that the process did not
run: it was stopped, or its container was frozen. A wall clock that went on much further than the monotonic
one says that the machine was suspended: a monotonic clock stands still then. Who sets the clock forward looks
the same; that spares a peer its blame, and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import trio

from p2pnode.limits import Limits


class Slept(NamedTuple):
    """Seconds, by how it shows."""

    stopped_s: float = 0.0
    """The monotonic clock went on: timers are late by so much."""
    suspended_s: float = 0.0
    """It stood still: timers know nothing of it."""


def slept(ran_s: float, wall_s: float, *, beat_s: float, least_s: float) -> Slept:
    """What two clocks say that went on by so much since the last look; one is due each ``beat_s``. Pure.

    Less than ``least_s`` is a busy machine, or a clock that is adjusted.
    """
    stopped_s, suspended_s = ran_s - beat_s, wall_s - ran_s
    return Slept(
        stopped_s if stopped_s >= least_s else 0.0,
        suspended_s if suspended_s >= least_s else 0.0,
    )


class SleepWatch:
    """Of one node. It looks at each heartbeat, and whenever it is asked: so nobody is told too late."""

    def __init__(self, limits: Limits, wall: Callable[[], float]) -> None:
        self._beat_s, self._least_s, self._wall = limits.sleep_beat_s, limits.sleep_least_s, wall
        self._last: tuple[float, float] | None = None
        self._stopped_s = 0.0
        self._naps: list[tuple[float, float]] = []
        """When it was noticed, and how long it was; the last few."""

    async def run(self) -> None:
        """The heartbeat."""
        while True:
            self._look()
            await trio.sleep(self._beat_s)

    @property
    def stopped_s(self) -> float:
        """Seconds of the monotonic clock, in all, in which this process did not run."""
        self._look()
        return self._stopped_s

    def slept_since(self, at: float) -> float:
        """Seconds slept, of either kind, as noticed after ``at`` (of trio's clock)."""
        self._look()
        return sum(seconds for noticed, seconds in self._naps if noticed >= at)

    def _look(self) -> None:
        now, wall = trio.current_time(), self._wall()
        if self._last is not None:
            found = slept(
                now - self._last[0], wall - self._last[1], beat_s=self._beat_s, least_s=self._least_s
            )
            self._stopped_s += found.stopped_s
            if any(found):
                self._naps = [*self._naps[-7:], (now, found.stopped_s + found.suspended_s)]
        self._last = now, wall
