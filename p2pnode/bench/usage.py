"""What a process takes, seen from outside."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from p2pnode.errors import LocalError


def cpu_s(pid: int, *, with_children: bool = True) -> float:
    """CPU seconds that a process, and those that it started, took so far. Raises ``LocalError``."""
    with _alive(pid) as process:
        others = process.children(recursive=True) if with_children else ()
        return sum(map(_cpu_s_of, (process, *others)))


def rss_mb(pid: int) -> float:
    """Its memory. Raises ``LocalError``."""
    with _alive(pid) as process:
        return float(process.memory_info().rss / 1e6)


def _cpu_s_of(process: psutil.Process) -> float:
    # An idle node runs for less in some seconds than a tick of psutil's times, which is 10 ms.
    if sys.platform == "linux":
        try:
            return time.clock_gettime((~process.pid << 3) | 2)  # CPUCLOCK_SCHED of that process
        except OSError as error:
            raise psutil.NoSuchProcess(process.pid) from error
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _alive(pid: int) -> Iterator[psutil.Process]:
    try:
        yield psutil.Process(pid)
    except psutil.Error as error:
        msg = f"a node ended while it was measured ({error}): run `p2pnode join` by hand to see why"
        raise LocalError(msg) from error
