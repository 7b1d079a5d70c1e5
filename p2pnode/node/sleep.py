"""Notices that this process slept, so that a peer is not blamed for the time of our own absence.

Two clocks and a heartbeat show it. A beat that comes much later than it was due means that the process did
not run: it was stopped, or its container was frozen. A wall clock that went on much further than the
monotonic one means that the machine was suspended, because a monotonic clock stands still then. Setting the
wall clock forward looks the same; its only effect is that a peer is not blamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import trio

from p2pnode.limits import Limits


class Slept(NamedTuple):
    """How long the process slept, in seconds, by the clock that shows it."""

    stopped_s: float = 0.0
    """The monotonic clock went on, so that timers are late by this much."""
    suspended_s: float = 0.0
    """The monotonic clock stood still, so that timers are not late."""


def slept(ran_s: float, wall_s: float, *, beat_s: float, least_s: float) -> Slept:
    """How long the process slept, where its two clocks went on by ``ran_s`` and ``wall_s`` since the last
    look.

    A look is due each ``beat_s``. Less than ``least_s`` counts as none: the machine is busy, or its clock is
    adjusted. Pure.
    """
    stopped_s, suspended_s = ran_s - beat_s, wall_s - ran_s
    return Slept(
        stopped_s if stopped_s >= least_s else 0.0,
        suspended_s if suspended_s >= least_s else 0.0,
    )


class SleepWatch:
    """One node's watch. It looks at each heartbeat, and whenever it is asked."""

    def __init__(self, limits: Limits, wall: Callable[[], float]) -> None:
        self._beat_s, self._least_s, self._wall = limits.sleep_beat_s, limits.sleep_least_s, wall
        self._last: tuple[float, float] | None = None
        self._stopped_s = 0.0
        self._naps: list[tuple[float, float]] = []
        """The last few: when each was noticed, and how long it was."""

    async def run(self) -> None:
        """Look at each heartbeat, until cancelled."""
        while True:
            self._look()
            await trio.sleep(self._beat_s)

    @property
    def stopped_s(self) -> float:
        """Seconds of the monotonic clock in which this process did not run, since it started."""
        self._look()
        return self._stopped_s

    def slept_since(self, at: float) -> float:
        """Seconds slept, of both kinds, that were noticed after ``at`` on trio's clock."""
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
