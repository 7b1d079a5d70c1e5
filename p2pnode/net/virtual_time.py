"""Virtual time and seeded randomness for tests and simulators: ``with virtual_time(seed=7): trio.run(…)``.

Inside it, every time that libp2p reads follows trio's clock (from a fixed epoch), ``random`` is seeded, and
trio schedules its tasks in a seeded order. Everything is undone at the end. Two runs do the same where sets
are sorted before their order matters. Keys that libp2p draws from the system stay random, so compare digests
of the application's events, not of the bytes on the wire. Run with a fixed ``PYTHONHASHSEED`` to compare
processes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import sys
import time as real_time
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

import trio
from trio._core import _run

EPOCH_S: Final = 1_700_000_000.0
_TRIO: Final[dict[str, Any]] = vars(_run)
"""trio offers no public switch for its scheduler; both names are needed."""
_FUNCTIONS: Final = ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns")


@contextlib.contextmanager
def virtual_time(*, seed: int = 0) -> Iterator[Callable[[], float]]:
    """Yields the virtual wall clock (seconds since 1970), for ``NetworkConfig.wall_clock``."""
    state = random.getstate()
    scheduler: random.Random = _TRIO["_r"]
    deterministic, scheduler_state = _TRIO["_ALLOW_DETERMINISTIC_SCHEDULING"], scheduler.getstate()
    undo = _replace_time()
    random.seed(seed)
    scheduler.seed(seed)
    _TRIO["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    try:
        yield wall_clock
    finally:
        for module, name, value in undo:
            setattr(module, name, value)
        _TRIO["_ALLOW_DETERMINISTIC_SCHEDULING"] = deterministic
        scheduler.setstate(scheduler_state)
        random.setstate(state)


def wall_clock() -> float:
    """The seconds of trio's clock, from a fixed epoch on; outside trio, the epoch itself."""
    return EPOCH_S + _monotonic()


def _monotonic() -> float:
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0


class _VirtualDatetime(dt.datetime):
    """``now`` and ``utcnow`` follow the virtual clock."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> _VirtualDatetime:
        return cls.fromtimestamp(wall_clock(), tz)


def _virtual_module() -> types.ModuleType:
    module = types.ModuleType("time")
    for name in dir(real_time):
        setattr(module, name, getattr(real_time, name))
    functions: dict[str, Callable[[], Any]] = {
        "time": wall_clock,
        "monotonic": _monotonic,
        "perf_counter": _monotonic,
        "time_ns": lambda: int(wall_clock() * 1e9),
        "monotonic_ns": lambda: int(_monotonic() * 1e9),
    }
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def _replace_time() -> list[tuple[types.ModuleType, str, Any]]:
    """Replace ``time``, functions imported from it and ``datetime`` in every libp2p module loaded."""
    virtual = _virtual_module()
    originals = {id(getattr(real_time, name)): getattr(virtual, name) for name in _FUNCTIONS}
    undo: list[tuple[types.ModuleType, str, Any]] = []
    for module_name, module in sorted(sys.modules.items()):
        if not (module_name == "libp2p" or module_name.startswith("libp2p.")):
            continue
        for name, value in list(vars(module).items()):
            replacement: Any = None
            if value is real_time:
                replacement = virtual
            elif value is dt.datetime:
                replacement = _VirtualDatetime
            elif id(value) in originals:
                replacement = originals[id(value)]
            if replacement is not None:
                undo.append((module, name, value))
                setattr(module, name, replacement)
    return undo
