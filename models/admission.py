"""A bounded queue in front of an engine's slots, first come, first served.

Shared by the engines. It keeps the load figures too, from which it estimates when to ask again.
This module knows nothing of how tokens are made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import trio

from p2pnode.errors import EngineError
from p2pnode.models.engine import EngineStats
from p2pnode.models.slots import Assignment, SlotTable

_SMOOTHING = 0.2
_RETRY_LEAST_S = 0.5
_RETRY_MOST_S = 120.0


class Place:
    """One request's place: in the queue until it has a slot."""

    def __init__(self, key: bytes, prompt_ids: tuple[int, ...]) -> None:
        self.key = key
        self.prompt_ids = prompt_ids
        self._given = trio.Event()
        self._assignment: Assignment | None = None

    async def wait_assigned(self) -> Assignment:
        """Wait for the slot."""
        await self._given.wait()
        assert self._assignment is not None  # noqa: S101 - set before the event
        return self._assignment

    def give(self, assignment: Assignment) -> None:
        """The slot is this request's."""
        self._assignment = assignment
        self._given.set()

    @property
    def slot(self) -> int | None:
        """The slot, once there is one."""
        return None if self._assignment is None else self._assignment.slot


class Admission:
    """Hands out ``slots`` slots; at most ``queue_max`` requests wait for one."""

    def __init__(self, slots: int, queue_max: int) -> None:
        self.table = SlotTable(slots)
        self._slots = slots
        self._queue_max = queue_max
        self._queue: deque[Place] = deque()
        self._duration_s = 0.0
        self._tokens_per_s = 0.0
        self._tokens_out = 0

    def enter(self, key: bytes, prompt_ids: tuple[int, ...]) -> Place:
        """Queue up; ``EngineError(code="capacity")`` when the queue is full."""
        if self.table.busy >= self._slots and len(self._queue) >= self._queue_max:
            raise EngineError(
                f"all {self._slots} slots are busy and {len(self._queue)} requests wait; ask again later",
                code="capacity",
                retry_after_s=self.retry_after_s(),
            )
        place = Place(key, prompt_ids)
        self._queue.append(place)
        self._hand_out()
        return place

    def leave(self, place: Place, held: tuple[int, ...] = ()) -> None:
        """Give up the place, and its slot, which now holds ``held``."""
        if place.slot is None:
            self._queue.remove(place)
            return
        self.table.release(place.slot, held)
        self._hand_out()

    def record(self, tokens: int, seconds: float) -> None:
        """Learn from a request that made ``tokens`` in ``seconds`` after its first one."""
        self._tokens_out += tokens
        if tokens > 1 and seconds > 0:
            self._tokens_per_s = _smooth(self._tokens_per_s, (tokens - 1) / seconds)
        self._duration_s = _smooth(self._duration_s, seconds)

    def retry_after_s(self) -> float:
        """When a slot may be free for one more request, by what requests took of late."""
        waiting = (len(self._queue) + 1) / self._slots
        return round(min(_RETRY_MOST_S, max(_RETRY_LEAST_S, waiting * self._duration_s)), 1)

    def stats(self, *, restarts: int, extra: Mapping[str, float] | None = None) -> EngineStats:
        """A snapshot."""
        return EngineStats(
            active=self.table.busy,
            queued=len(self._queue),
            restarts=restarts,
            tokens_out=self._tokens_out,
            tokens_per_s=round(self._tokens_per_s, 2),
            extra=extra or {},
        )

    def _hand_out(self) -> None:
        while self._queue:
            first = self._queue[0]
            assignment = self.table.assign(first.key, first.prompt_ids)
            if assignment is None:
                return
            self._queue.popleft().give(assignment)


def _smooth(mean: float, value: float) -> float:
    return value if mean == 0 else mean + _SMOOTHING * (value - mean)
