"""Which request gets which slot, and how much of its prompt that slot still holds.

Pure. A slot remembers the cache key it served last and the ids it holds for it. A key comes back to its own
slot; any other key gets the least recently used free one and starts from nothing: prefix caches are never
shared between keys, because a shared cache leaks other users' prompts through timing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count


@dataclass(slots=True)
class _Slot:
    index: int
    key: bytes | None = None
    held: tuple[int, ...] = ()
    busy: bool = False
    used: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A slot given to one request. ``own``: it holds this key's cache; ``reusable`` ids of it fit."""

    slot: int
    own: bool
    reusable: int


class SlotTable:
    """The slots of one engine."""

    def __init__(self, slots: int) -> None:
        self._slots = [_Slot(index) for index in range(slots)]
        self._clock = count(1)

    def assign(self, key: bytes, prompt_ids: tuple[int, ...]) -> Assignment | None:
        """Take a slot for a request, or None when all are busy."""
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
        """Give the slot back; it now holds ``held`` for the key it served."""
        self._slots[slot].busy = False
        self._slots[slot].held = held
        self._slots[slot].used = next(self._clock)

    def reusable(self, key: bytes, prompt_ids: tuple[int, ...]) -> int:
        """What :meth:`assign` would find reusable now."""
        free = (slot for slot in self._slots if not slot.busy and slot.key == key)
        return max((_usable(slot.held, prompt_ids) for slot in free), default=0)

    def forget(self) -> None:
        """The engine lost all caches."""
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
