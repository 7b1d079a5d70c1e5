"""Whether somebody uses this machine: what is measured, and what follows. ``join --when-idle`` serves while
nobody does.

Two things are measured, and no others: how busy other programs keep the processors, and when a key was last
pressed at a terminal, as ``w`` shows it. A graphical session's keyboard and mouse are not seen, nor is a
GPU's load, for no library tells either on all systems: a person who only reads is taken for nobody.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

OTHERS_MAX: Final = 0.25
"""The share of all processors that other programs may take of a machine that nobody uses."""
SAMPLE_S: Final = 10.0
BUSY_SAMPLES: Final = 2
"""So many samples in a row must be busy: one is a browser that wakes up."""


@dataclass(frozen=True, slots=True)
class Sample:
    """``others`` is what other programs take of all processors, from 0 to 1; ``input_age_s`` how long ago a
    key was pressed at a terminal, None where none is known."""

    others: float
    input_age_s: float | None


class IdleRule:
    """Says from samples whether the machine is in use. Pure; times are seconds of a monotonic clock.

    It is in use while other programs keep it busy, or a key was pressed, within the last ``idle_s``.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._busy = 0
        self._busy_at: float | None = None

    def why_in_use(self, sample: Sample, now: float) -> str:
        """Why it is in use; "" where it is idle."""
        self._busy = self._busy + 1 if sample.others > OTHERS_MAX else 0
        if self._busy >= BUSY_SAMPLES:
            self._busy_at = now
        if sample.input_age_s is not None and sample.input_age_s < self._idle_s:
            return "somebody types at a terminal of this machine"
        if self._busy_at is not None and now - self._busy_at < self._idle_s:
            return "other programs keep this machine busy"
        return ""


class MachineMeter:
    """Takes samples. What this process and its children take is none of others'."""

    def __init__(self) -> None:
        self._cpus = psutil.cpu_count() or 1
        self._at, self._all, self._own = time.monotonic(), busy_s(), own_s()

    def sample(self) -> Sample:
        """Since the last one. It may block for some milliseconds."""
        at, busy, own = time.monotonic(), busy_s(), own_s()
        passed_s = max(1e-3, at - self._at) * self._cpus
        # A child that ended takes its seconds with it: then ours shrink, and are none for once.
        others = (busy - self._all) - max(0.0, own - self._own)
        self._at, self._all, self._own = at, busy, own
        return Sample(min(1.0, max(0.0, others / passed_s)), _input_age_s())


def busy_s() -> float:
    """Processor seconds that all programs have taken."""
    times: Any = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def own_s() -> float:
    """Those of this process and its children."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            taken: Any = process.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        total += float(taken.user + taken.system)
    return total


def _input_age_s() -> float | None:
    """How long ago a key was pressed at a terminal of somebody who is logged in."""
    ages = []
    for user in psutil.users():
        if not user.terminal:
            continue
        try:
            ages.append(time.time() - Path("/dev", user.terminal).stat().st_atime)
        except OSError:
            continue
    return max(0.0, min(ages)) if ages else None
