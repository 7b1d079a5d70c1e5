"""Segments become larger ones, each record once a level."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.conversations import compaction
from p2pnode.storage.conversations.records import (
    LEVEL_MAX,
    SegmentRef,
)


@given(st.integers(1, 600), st.integers(1, 400_000))
def test_each_record_is_written_once_a_level_and_the_list_stays_short(count: int, length: int) -> None:
    refs: list[SegmentRef] = []
    for number in range(count):
        refs.append(SegmentRef(first=number, last=number, hash=BlobHash(bytes(32)), length=length))
        while (start := compaction.due(refs)) is not None:
            run, refs[start:] = refs[start:], []
            for group in compaction.groups(run):
                size = sum(ref.length for ref in group)
                assert size <= compaction.MERGED_MAX or len(group) == 1
                level = group[0].level + 1
                refs.append(
                    SegmentRef(
                        first=group[0].first,
                        last=group[-1].last,
                        level=level,
                        length=size,
                        hash=group[0].hash,
                    )
                )
    assert [number for ref in refs for number in range(ref.first, ref.last + 1)] == list(range(count))
    assert [ref.level for ref in refs] == sorted((ref.level for ref in refs), reverse=True)
    assert len(refs) <= 16 * LEVEL_MAX + 2 * count * length // compaction.MERGED_MAX + 1


def test_fifteen_are_not_joined_and_sixteen_are() -> None:
    ref = SegmentRef(first=0, last=0, hash=BlobHash(bytes(32)), length=4096)
    assert compaction.due([ref] * 15) is None
    assert compaction.due([ref] * 16) == 0
    assert compaction.due([replace(ref, level=1), *[ref] * 16]) == 1
    assert compaction.due([replace(ref, level=LEVEL_MAX)] * 99) is None
    assert compaction.due([]) is None
