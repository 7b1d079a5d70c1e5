"""Pieces into turns, segments into larger ones, indexes into one: the pure parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.wire import decode_record, encode
from p2pnode.storage.conversations import compaction
from p2pnode.storage.conversations.merge import (
    Relation,
    Step,
    better,
    id_of,
    improvements,
    live,
    merged,
    next_step,
    parse_index,
    relation,
    wins,
)
from p2pnode.storage.conversations.records import (
    LEVEL_MAX,
    TITLE_MAX,
    Head,
    IndexRecord,
    Link,
    Manifest,
    Piece,
    SavedConversation,
    SegmentRef,
    WriterSeq,
    title_of,
)
from p2pnode.storage.conversations.turns import joined, missing_turns, numbered, turns_of
from tests.storage.conversations.worlds import NOW, session

PIECES = st.lists(
    st.builds(
        Piece,
        role=st.sampled_from(["user", "assistant", "assistant", "system"]),
        text=st.text(alphabet="abé ", max_size=6),
        ids=st.lists(st.integers(0, 99), max_size=3).map(tuple),
        finish=st.sampled_from([None, None, "stop"]),
        host=st.sampled_from([None, PeerId("a"), PeerId("b")]),
        tokens_out=st.integers(0, 9),
        cost=st.integers(0, 9),
    ),
    max_size=30,
)


def all_numbered(pieces: list[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        found += numbered([piece], last, next_turn=last.turn + 1 if last else 0)
    return found


@given(PIECES)
def test_joining_changes_nothing_of_what_is_shown(pieces: list[Piece]) -> None:
    records = all_numbered(pieces)
    turns = turns_of(records)
    assert turns_of(joined(records)) == turns
    assert turns_of(joined([*joined(records[:7]), *joined(records[7:])])) == turns
    assert "".join(turn.text for turn in turns) == "".join(piece.text for piece in pieces)
    assert [each for turn in turns for each in turn.ids] == [each for piece in pieces for each in piece.ids]
    assert sum(turn.cost for turn in turns) == sum(piece.cost for piece in pieces)
    assert all(turn.whole for turn in turns)
    assert missing_turns(turns, len(turns)) == ()


@given(PIECES, st.data())
def test_a_piece_that_is_missing_between_others_is_never_glued_over(
    pieces: list[Piece], data: st.DataObject
) -> None:
    records = all_numbered([replace(piece, role="assistant", finish=None) for piece in pieces])
    if len(records) < 3:
        return
    lost = data.draw(st.integers(0, len(records) - 2))
    (turn,) = turns_of([*records[:lost], *records[lost + 1 :]])
    assert not turn.whole
    assert missing_turns([turn], 1) == (0,)


@given(PIECES)
def test_a_piece_is_read_as_it_was_written(pieces: list[Piece]) -> None:
    for piece in pieces:
        assert decode_record(Piece, encode(piece)) == piece


@given(st.binary(max_size=200))
def test_rubbish_is_no_record(data: bytes) -> None:
    for cls in (Piece, Manifest):
        with pytest.raises(ProtocolError):
            decode_record(cls, data)
    with pytest.raises(ProtocolError):
        parse_index(data)


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


INDEX: st.SearchStrategy[IndexRecord] = st.one_of(
    st.builds(
        SavedConversation,
        sid=st.sampled_from([b"a" * 16, b"b" * 16]),
        title=st.text(max_size=3),
        created=st.integers(0, 3),
        updated=st.integers(0, 3),
        gone=st.booleans(),
    ),
    st.builds(session, st.integers(1, 2), amount=st.one_of(st.none(), st.integers(0, 3))),
)


@given(st.lists(INDEX, max_size=8), st.lists(INDEX, max_size=8))
def test_a_union_does_not_care_who_came_first_or_how_often(
    one: list[IndexRecord], two: list[IndexRecord]
) -> None:
    expected = merged([*one, *two])
    assert merged([*two, *one]) == expected
    assert merged([*merged(one).values(), *merged(two).values(), *one]) == expected
    for record in one:
        assert better(expected[id_of(record)], record) == expected[id_of(record)]
        assert parse_index(encode(record)) == record


def test_forgotten_beats_later_and_a_higher_voucher_beats_all() -> None:
    old = SavedConversation(sid=bytes(16), created=1, updated=1, gone=True)
    new = SavedConversation(sid=bytes(16), created=1, updated=9)
    assert better(new, old) == old
    assert better(session(1, amount=4), session(1, amount=5)) == session(1, amount=5)
    assert better(session(1), session(1, amount=0)) == session(1, amount=0)


def test_a_session_stays_until_a_month_after_it_expired() -> None:
    record = session(1, expiry=int(NOW))
    assert live([record], NOW + 29 * 86_400) == [record]
    assert live([record], NOW + 31 * 86_400) == []


def test_descent_is_told_from_a_fork_by_the_writers() -> None:
    one, two = b"1" * 8, b"2" * 8
    first = Manifest(seq=3, writer=one, writers=(WriterSeq(writer=one, seq=3),))
    onto = Manifest(seq=4, writer=two, writers=(WriterSeq(writer=two, seq=4), WriterSeq(writer=one, seq=3)))
    fork = Manifest(seq=4, writer=one, writers=(WriterSeq(writer=one, seq=4),))
    assert onto.builds_on(first)
    assert onto.builds_on(onto)
    assert not first.builds_on(onto)
    assert not onto.builds_on(fork)
    assert not fork.builds_on(onto)


def test_another_writers_manifest_is_behind_ahead_or_a_fork() -> None:
    one, two = b"1" * 8, b"2" * 8

    def head(writer: bytes, *known: tuple[bytes, int]) -> Head:
        seq = max(number for _, number in known)
        writers = tuple(WriterSeq(writer=name, seq=number) for name, number in known)
        return Head(
            Link(seq=seq, hash=BlobHash(bytes(32))), Manifest(seq=seq, writer=writer, writers=writers)
        )

    old, new, other = head(one, (one, 3)), head(two, (one, 3), (two, 4)), head(one, (one, 4))
    assert relation(new, old) == "behind"
    assert relation(old, new) == "ahead"
    assert relation(None, new) == "ahead"
    assert relation(new, other) == relation(other, new) == "fork"


@pytest.mark.parametrize(
    ("found", "ours", "in_turn", "step"),
    [
        ("behind", 1, True, "nothing"),
        ("unreadable", 1, True, "note it unread"),
        ("fork", 3, True, "keep ours"),
        ("fork", 1, True, "wait"),
        ("fork", 1, False, "rebase"),
        ("ahead", 1, True, "wait"),
        ("ahead", 1, False, "follow"),
        ("ahead", None, False, "follow"),
    ],
)
def test_a_fork_is_resolved_between_turns_only(
    found: Relation, ours: int | None, in_turn: bool, step: Step
) -> None:
    link = None if ours is None else Link(seq=ours, hash=BlobHash(bytes(32)))
    assert next_step(found, link, Link(seq=2, hash=BlobHash(b"x" * 32)), in_turn=in_turn) == step


def test_only_what_is_better_improves_the_index() -> None:
    known, new = session(1, amount=4), session(2)
    found = improvements({id_of(known): known}, merged([session(1, amount=3), new]))
    assert found == [new]
    assert improvements({id_of(known): known}, merged([session(1, amount=5)])) == [session(1, amount=5)]


@given(st.integers(0, 3), st.integers(0, 3), st.binary(min_size=32, max_size=32))
def test_one_of_two_different_branches_wins_whoever_asks(first: int, other: int, digest: bytes) -> None:
    one, two = Link(seq=first, hash=BlobHash(digest)), Link(seq=other, hash=BlobHash(bytes(32)))
    if one != two:
        assert wins(one, two) != wins(two, one)


def test_a_title_is_one_line_cut_at_a_character() -> None:
    assert title_of("  a\n b ") == "a b"
    assert len(title_of("é" * 100).encode()) <= TITLE_MAX
    assert title_of("é" * 100) == "é" * 64


def test_a_model_and_a_session_have_32_bytes() -> None:
    good = Piece(role="user", model=ModelId(bytes(32)), session=SessionId(bytes(32)))
    assert decode_record(Piece, encode(good)) == good
    with pytest.raises(ProtocolError):
        decode_record(Piece, encode(replace(good, model=ModelId(bytes(31)))))
