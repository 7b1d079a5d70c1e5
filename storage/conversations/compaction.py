"""When segments are joined: sixteen of one level become one of the next, and only those. Pure.

So a record is written once per level, and the number of levels grows with the logarithm of the log: the bytes
written per turn stay the same, and the list of segments stays short. (A snapshot of everything from time to
time would make a turn cost more the longer the conversation is.) Nothing is read or sealed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from p2pnode.storage.conversations.records import (
    LEVEL_MAX,
    RECORDS_MAX,
    SegmentRef,
)

FAN_IN: Final = 16
MERGED_MAX: Final = 1 << 20
"""At most so many sealed bytes are joined into one segment: more would be slow to fetch and to replace."""
NEW_MAX: Final = 1 << 20
"""Bytes of records in a new segment."""


def due(refs: Sequence[SegmentRef]) -> int | None:
    """Where the segments of equal level at the end begin, if they are enough to be joined; else None."""
    level = refs[-1].level if refs else LEVEL_MAX
    if level == LEVEL_MAX:
        return None
    start = len(refs)
    while start and refs[start - 1].level == level:
        start -= 1
    return start if len(refs) - start >= FAN_IN else None


def groups(refs: Sequence[SegmentRef]) -> list[list[SegmentRef]]:
    """Segments in groups of at most ``MERGED_MAX`` bytes, in order. A group of one is only raised a level."""
    found: list[list[SegmentRef]] = []
    room = 0
    for ref in refs:
        if not found or ref.length > room:
            found.append([])
            room = MERGED_MAX
        found[-1].append(ref)
        room -= ref.length
    return found


def raised(ref: SegmentRef) -> SegmentRef:
    """The same segment, one level up."""
    return replace(ref, level=min(ref.level + 1, LEVEL_MAX))


def in_segments(records: Iterable[bytes]) -> list[list[bytes]]:
    """New records in lists, each of which fits into a segment."""
    found: list[list[bytes]] = []
    room = 0
    for record in records:
        if not found or len(record) > room or len(found[-1]) == RECORDS_MAX:
            found.append([])
            room = NEW_MAX
        found[-1].append(record)
        room -= len(record)
    return found
