"""An engine's slots: which request gets which, and the bounded queue in front of them.

``SlotTable`` is pure. A slot remembers the cache key it served last and the ids it holds for it. A key gets
its own slot again; any other key gets the least recently used free slot and starts from nothing: prefix
caches are never shared between keys, because a shared cache leaks other users' prompts through timing.

``SlotQueue`` is first come, first served. It also keeps the load figures, and estimates from them when to ask
again. This module doesn't know how tokens are made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import trio

from p2pnode.errors import EngineError
from p2pnode.models.engine import EngineStats

_SMOOTHING = 0.2
_RETRY_LEAST_S = 0.5
_RETRY_MOST_S = 120.0


class QueuedRequest:
    """One request, from its place in the queue to the slot it is given."""

    def __init__(self, key: bytes, prompt_ids: tuple[int, ...]) -> None:
        self.key = key
        self.prompt_ids = prompt_ids
        self._given = trio.Event()
        self._assignment: Assignment | None = None

    async def wait_assigned(self) -> Assignment:
        """Wait for a slot."""
        await self._given.wait()
        assert self._assignment is not None  # noqa: S101 - set before the event
        return self._assignment

    def give(self, assignment: Assignment) -> None:
        """Give it a slot."""
        self._assignment = assignment
        self._given.set()

    @property
    def slot(self) -> int | None:
        """The slot's number; None while the request waits."""
        return None if self._assignment is None else self._assignment.slot


class SlotQueue:
    """Gives out ``slots`` slots. At most ``queue_max`` requests wait for one."""

    def __init__(self, slots: int, queue_max: int) -> None:
        self.table = SlotTable(slots)
        self._slots = slots
        self._queue_max = queue_max
        self._waiting: deque[QueuedRequest] = deque()
        self._duration_s = 0.0
        self._tokens_per_s = 0.0
        self._tokens_out = 0

    def enter(self, key: bytes, prompt_ids: tuple[int, ...]) -> QueuedRequest:
        """Take a place in the queue. Raises ``EngineError`` with code ``capacity`` when the queue is full."""
        if self.table.busy >= self._slots and len(self._waiting) >= self._queue_max:
            raise EngineError(
                f"all {self._slots} slots are busy and {len(self._waiting)} requests wait; ask again later",
                code="capacity",
                retry_after_s=self.retry_after_s(),
            )
        place = QueuedRequest(key, prompt_ids)
        self._waiting.append(place)
        self._hand_out()
        return place

    def leave(self, place: QueuedRequest, held: tuple[int, ...] = ()) -> None:
        """Give up the place in the queue, or the slot, which now holds ``held``."""
        if place.slot is None:
            self._waiting.remove(place)
            return
        self.table.release(place.slot, held)
        self._hand_out()

    def record(self, tokens: int, seconds: float) -> None:
        """Count a request that made ``tokens`` in ``seconds`` after its first token."""
        self._tokens_out += tokens
        if tokens > 1 and seconds > 0:
            self._tokens_per_s = _smooth(self._tokens_per_s, (tokens - 1) / seconds)
        self._duration_s = _smooth(self._duration_s, seconds)

    def retry_after_s(self) -> float:
        """In how many seconds a slot may be free for one more request, by how long recent requests took."""
        waiting = (len(self._waiting) + 1) / self._slots
        return round(min(_RETRY_MOST_S, max(_RETRY_LEAST_S, waiting * self._duration_s)), 1)

    def stats(self, *, restarts: int, extra: Mapping[str, float] | None = None) -> EngineStats:
        """A snapshot of the load."""
        return EngineStats(
            active=self.table.busy,
            queued=len(self._waiting),
            restarts=restarts,
            tokens_out=self._tokens_out,
            tokens_per_s=round(self._tokens_per_s, 2),
            extra=extra or {},
        )

    def _hand_out(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            assignment = self.table.assign(first.key, first.prompt_ids)
            if assignment is None:
                return
            self._waiting.popleft().give(assignment)


def _smooth(mean: float, value: float) -> float:
    return value if mean == 0 else mean + _SMOOTHING * (value - mean)


# ---- the slots


@dataclass(slots=True)
class _Slot:
    index: int
    key: bytes | None = None
    held: tuple[int, ...] = ()
    busy: bool = False
    used: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A slot given to one request. ``own``: the slot holds this key's cache. ``reusable``: ids of the prompt
    in it."""

    slot: int
    own: bool
    reusable: int


class SlotTable:
    """The slots of one engine, and what each holds."""

    def __init__(self, slots: int) -> None:
        self._slots = [_Slot(index) for index in range(slots)]
        self._clock = count(1)

    def assign(self, key: bytes, prompt_ids: tuple[int, ...]) -> Assignment | None:
        """Take a slot for a request; None when all are busy."""
        free = [slot for slot in self._slots if not slot.busy]
        if not free:
            return None
        own = [slot for slot in free if slot.key == key]
        if own:
            slot = max(own, key=lambda slot: (common_prefix(slot.held, prompt_ids), slot.used))
        else:
            slot = min(free, key=lambda slot: slot.used)
            slot.held = ()
        slot.busy, slot.key = True, key
        return Assignment(slot=slot.index, own=bool(own), reusable=_usable(slot.held, prompt_ids))

    def release(self, slot: int, held: tuple[int, ...]) -> None:
        """Give the slot back. It now holds ``held`` for the key that it served."""
        self._slots[slot].busy = False
        self._slots[slot].held = held
        self._slots[slot].used = next(self._clock)

    def reusable(self, key: bytes, prompt_ids: tuple[int, ...]) -> int:
        """How many ids of the prompt :meth:`assign` would find reusable now."""
        free = (slot for slot in self._slots if not slot.busy and slot.key == key)
        return max((_usable(slot.held, prompt_ids) for slot in free), default=0)

    def forget(self) -> None:
        """Forget what the slots hold: the engine lost all caches."""
        for slot in self._slots:
            slot.key, slot.held = None, ()

    @property
    def busy(self) -> int:
        """How many slots are taken."""
        return sum(slot.busy for slot in self._slots)


def common_prefix(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many leading ids are the same."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def _usable(held: tuple[int, ...], prompt_ids: tuple[int, ...]) -> int:
    # The last prompt id is always read again: its logits are where the answer begins.
    return max(0, min(common_prefix(held, prompt_ids), len(prompt_ids) - 1))
