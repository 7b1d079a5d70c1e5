"""``EventLoop``: what is due, in order, on a clock of its own.

It is all that a simulation waits with: no tasks, no sockets, no sleep. What is due at the same moment runs in
the order in which it was asked for, so that two runs from one seed do the same.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final, TypeAlias

_PER_S: Final = 1024
"""Buckets of a simulated second."""


class Due:
    """What the loop calls when its time comes. A message has a link for it, and a timer a shell."""

    __slots__ = ()

    def due(self, one: Any, two: Any) -> None:
        """It is time; ``one`` and ``two`` are what it was put with."""
        raise NotImplementedError


class _Action(Due):
    """A call of anything with any arguments."""

    __slots__ = ()

    def due(self, one: Any, two: Any) -> None:
        one(*two)


_Entry: TypeAlias = tuple[float, int, Due, Any, Any]
_ACTION: Final = _Action()


class EventLoop:
    """See the module. ``now`` is in seconds since the start.

    Time is cut in buckets. Only the one that is under way is in order; the others are lists, each of which is
    sorted when its time comes, and a heap of their numbers says which is next. That costs half of what a heap
    of all actions does, and no more when there are a hundred thousand.
    """

    __slots__ = ("_bucket", "_buckets", "_due", "_next", "_number", "_order", "done", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0
        """How many actions ran."""
        self._number = 0
        self._due: list[_Entry] = []
        """The bucket that is under way, in order, and how many of it ran."""
        self._next = 0
        self._bucket = -1
        self._buckets: dict[int, list[_Entry]] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return self._number - self.done

    def at(self, when: float, action: Callable[..., object], *arguments: Any) -> None:
        """Call ``action(*arguments)`` at ``when``, or next where that is over. It can't be taken back."""
        self.put(when, _ACTION, action, arguments)

    def put(self, when: float, target: Due, one: Any, two: Any) -> None:
        """The same of ``target.due(one, two)``; for a message or a timer no other object has to be made."""
        self._number = number = self._number + 1
        if when < self.now:  # noqa: PLR1730  this runs for each message
            when = self.now
        bucket = int(when * _PER_S)
        waiting = self._buckets.get(bucket)
        if waiting is not None:
            waiting.append((when, number, target, one, two))
        elif bucket <= self._bucket:
            insort(self._due, (when, number, target, one, two), self._next)
        else:
            self._buckets[bucket] = [(when, number, target, one, two)]
            heappush(self._order, bucket)

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """The same, so many seconds from now."""
        self.at(self.now + seconds, action, *arguments)

    def run_until(self, end: float) -> None:
        """Run what is due up to ``end``, also what comes up meanwhile. Then it is ``end``."""
        last = int(end * _PER_S)
        while True:
            self._run(self._due, end)
            if self._next < len(self._due) or not self._order or self._order[0] > last:
                break
            self._bucket = heappop(self._order)
            due = self._buckets.pop(self._bucket)
            if len(due) > 1:  # most have one entry
                due.sort()
            self._due, self._next = due, 0
        self.now = max(self.now, end)

    def _run(self, due: list[_Entry], end: float) -> None:
        number = first = self._next
        try:
            while number < len(due):  # it may grow
                when, _, target, one, two = due[number]
                if when > end:
                    break
                self.now = when
                self._next = number = number + 1
                target.due(one, two)
        finally:
            self.done += number - first
