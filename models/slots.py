"""An engine's slots: which request gets which, and the bounded queue in front of them.

``SlotTable`` is pure. A slot remembers the cache key it served last and the ids it holds for it. A key gets
its own slot again; any other key gets a free slot beside busy ones and starts from nothing: prefix
caches are never shared between keys, because a shared cache leaks other users' prompts through timing.

``SlotQueue`` goes round the origins of requests, and is first come, first served within one. It also keeps
the load figures, and estimates from them when to ask again. Pure: who waits for a slot does so in
``slot_wait.py``, or in a simulator. This module doesn't know how tokens are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count

from p2pnode.bounded import BoundedMap
from p2pnode.errors import EngineError
from p2pnode.models.engine import ANYBODY, EngineStatistics
from p2pnode.shares import FairShares, Origin

_SMOOTHING = 0.2
_RETRY_LEAST_S = 0.5
_RETRY_MOST_S = 120.0
_ORIGINS_MAX = 1024


class QueuedRequest:
    """One request, from its place in the queue to the slot it is given."""

    def __init__(self, key: bytes, prompt_ids: tuple[int, ...], origin: Origin, session: bytes) -> None:
        self.key = key
        self.session = session
        self.prompt_ids = prompt_ids
        self.origin = origin
        self.assignment: Assignment | None = None
        """What it was given; None while it waits."""
        self.refusal: EngineError | None = None
        """Why its place in the queue was lost to another origin."""
        self.on_decided: Callable[[], None] = lambda: None
        """Called once, when there is an assignment or a refusal, unless that was so from the beginning."""

    def refuse(self, refusal: EngineError) -> None:
        """Take its place in the queue away."""
        self.refusal = refusal
        self.on_decided()

    def give(self, assignment: Assignment) -> None:
        """Give it a slot."""
        self.assignment = assignment
        self.on_decided()

    @property
    def slot(self) -> int | None:
        """The slot's number; None while the request waits."""
        return None if self.assignment is None else self.assignment.slot


class SlotQueue:
    """Gives out ``slots`` slots. At most ``queue_max`` requests wait for one, with fair shares by origin.

    A slot that is free goes to the origin that has the fewest now, then to the one that got one longest ago;
    of one origin's requests by the same rule to a session, and of one session's to the oldest. A request that
    has a slot keeps it.
    """

    def __init__(self, slots: int, queue_max: int) -> None:
        self.table = SlotTable(slots)
        self._slots = slots
        self._waiting: FairShares[QueuedRequest] = FairShares(queue_max)
        self._active: Counter[Origin] = Counter()
        self._last_turn: BoundedMap[Origin, int] = BoundedMap(_ORIGINS_MAX)
        self._active_of: Counter[bytes] = Counter()
        self._last_of: BoundedMap[bytes, int] = BoundedMap(_ORIGINS_MAX)
        """The same for sessions."""
        self._turns = count(1)
        self._duration_s = 0.0
        self._tokens_per_s = 0.0
        self._tokens_out = 0

    def enter(
        self, key: bytes, prompt_ids: tuple[int, ...], origin: Origin = ANYBODY, session: bytes = b""
    ) -> QueuedRequest:
        """Take a place in the queue. Raises ``EngineError`` with code ``capacity`` when the queue is full.

        Of a full queue, the newest request of the origin with most gives way to one of an origin with few.
        """
        place = QueuedRequest(key, prompt_ids, origin, session)
        if self.table.busy < self._slots:
            # Then nobody waits.
            self._give(place)
            return place
        entered, victim = self._waiting.enter(place, origin, _newest)
        if not entered:
            raise self._full()
        if victim is not None:
            victim.refuse(self._full())
        return place

    def leave(self, place: QueuedRequest, held: tuple[int, ...] = ()) -> None:
        """Give up the place in the queue, or the slot, which now holds ``held``."""
        if place.slot is None:
            self._waiting.leave(place)
            return
        self.table.release(place.slot, held)
        self._active[place.origin] -= 1
        if not self._active[place.origin]:
            del self._active[place.origin]
        self._active_of[place.session] -= 1
        if not self._active_of[place.session]:
            del self._active_of[place.session]
        while len(self._waiting) and self.table.busy < self._slots:
            first = min(self._waiting, key=self._order)  # the oldest of those that are equal
            self._waiting.leave(first)
            self._give(first)

    def _order(self, place: QueuedRequest) -> tuple[int, int, int, int]:
        return (
            self._active[place.origin],
            self._last_turn.get(place.origin) or 0,
            self._active_of[place.session],
            self._last_of.get(place.session) or 0,
        )

    def _give(self, place: QueuedRequest) -> None:
        assignment = self.table.assign(place.key, place.prompt_ids)
        assert assignment is not None  # noqa: S101 - a slot is free
        self._active[place.origin] += 1
        self._active_of[place.session] += 1
        turn = next(self._turns)
        self._last_turn.put(place.origin, turn)
        self._last_of.put(place.session, turn)
        place.give(assignment)

    def _full(self) -> EngineError:
        return EngineError(
            f"all {self._slots} slots are busy and {len(self._waiting)} requests wait; ask again later",
            code="capacity",
            retry_after_s=self.retry_after_s(),
        )

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

    def statistics(self, *, restarts: int, extra: Mapping[str, float] | None = None) -> EngineStatistics:
        """A snapshot of the load."""
        return EngineStatistics(
            active=self.table.busy,
            queued=len(self._waiting),
            restarts=restarts,
            tokens_out=self._tokens_out,
            tokens_per_s=round(self._tokens_per_s, 2),
            extra=extra or {},
        )


def _newest(waiting: Collection[QueuedRequest]) -> QueuedRequest:
    return list(waiting)[-1]


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
            slot = self._for_newcomer(free)
            slot.held = ()
        slot.busy, slot.key = True, key
        return Assignment(slot=slot.index, own=bool(own), reusable=_usable(slot.held, prompt_ids))

    def _for_newcomer(self, free: list[_Slot]) -> _Slot:
        """The slot with most neighbours that are busy; of equals the one that was used least recently.

        llama.cpp computes slots together only where their numbers follow one another: with 0, 2, 4 and 6 busy
        a token took 55% more of the processor than with 0, 1, 2 and 3, and with 5, 6, 7 and 0 it took 26%.
        """
        busy = {slot.index for slot in self._slots if slot.busy}

        def order(slot: _Slot) -> tuple[int, int]:
            return -len(busy & {slot.index - 1, slot.index + 1}), slot.used

        return min(free, key=order)

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
