"""``EventLoop``: a heap of what is due, on a clock of its own.

It is all that a simulation waits with: no tasks, no sockets, no sleep. What is due at the same moment runs in
the order in which it was asked for, so that two runs from one seed do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class EventLoop:
    """See the module. ``now`` is in seconds since the start."""

    __slots__ = ("_due", "_number", "done", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0
        """How many actions ran."""
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._due)

    def at(self, when: float, action: Callable[..., object], *arguments: Any) -> None:
        """Call ``action(*arguments)`` at ``when``, or next where that is over. It can't be taken back."""
        self._number = number = self._number + 1
        if when < self.now:  # noqa: PLR1730  this runs for each message
            when = self.now
        heappush(self._due, (when, number, action, arguments))

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """The same, so many seconds from now."""
        self.at(self.now + seconds, action, *arguments)

    def run_until(self, end: float) -> None:
        """Run what is due up to ``end``, also what comes up meanwhile. Then it is ``end``."""
        due, pop = self._due, heappop
        done = 0
        try:
            while due:
                entry = pop(due)
                when, _, action, arguments = entry
                if when > end:
                    heappush(due, entry)
                    break
                self.now = when
                done += 1
                action(*arguments)
        finally:
            self.done += done
        self.now = max(self.now, end)
