"""No test sleeps on the real clock: it waits for an event, looks for a condition again and again, or mocks
time.

A sleep that is long enough on one machine is too short on a busier one, and too long everywhere else.
``tests/conftest.py`` puts :func:`forbid_real_sleeps` in force before the first test.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

import trio
from trio.testing import MockClock

POLL_MAX_S: Final = 0.05
"""The longest pause between two looks at a condition. So long may a sleep be."""
TESTS: Final = Path(__file__).parent
SLEEPERS: Final[Mapping[str, str]] = {
    "cli/test_sleep.py": "a process is stopped for longer than its host waits",
    "crash/rpc_proxy.py": "a node of a chain answers late; whoever asked waits no longer",
    "sqlite_disk.py": "a disk takes its time",
    "net/foreign.py": "a peer of another implementation reads and writes slowly",
    "net/test_churn.py": "peers come and go for ten real minutes",
    "net/test_descriptors.py": "a process is at its limit of descriptors for a while",
    "net/test_pace.py": "an event loop is held up",
}
"""Files where something takes real time because that is what is tested."""


def forbid_real_sleeps() -> None:
    """Let ``trio.sleep`` and ``time.sleep`` raise ``AssertionError`` where a test waits for luck."""
    trio.sleep = _checked(trio.sleep, _is_real)  # type: ignore[assignment]
    time.sleep = _checked(time.sleep, lambda: True)  # type: ignore[assignment]


def _checked(sleep: Callable[[float], Any], is_real: Callable[[], bool]) -> Callable[[float], Any]:
    @functools.wraps(sleep)
    def checked(seconds: float) -> Any:
        if seconds > POLL_MAX_S and _is_a_test(inspect.currentframe()) and is_real():
            msg = f"a test sleeps for {seconds:g} s on the real clock: let it wait for what it needs"
            raise AssertionError(msg)
        return sleep(seconds)

    return checked


def _is_real() -> bool:
    return not isinstance(trio.lowlevel.current_clock(), MockClock)


def _is_a_test(frame: FrameType | None) -> bool:
    """Whether the caller of ``frame`` is code of the tests that may not sleep."""
    caller = frame and frame.f_back
    path = Path(caller.f_code.co_filename) if caller else Path()
    if not path.is_relative_to(TESTS):
        return False
    return str(path.relative_to(TESTS)) not in SLEEPERS
