"""Whatever two machines wrote, both come to the same result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.wire import encode
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
    Head,
    IndexRecord,
    Link,
    Manifest,
    SavedConversation,
    WriterSeq,
)
from tests.storage.conversations.worlds import NOW, session

INDEX: st.SearchStrategy[IndexRecord] = st.one_of(
    st.builds(
        SavedConversation,
        sid=st.sampled_from([b"a" * 16, b"b" * 16]),
        title=st.text(max_size=3),
        created=st.integers(0, 3),
        updated=st.integers(0, 3),
        gone=st.booleans(),
    ),
    st.builds(
        session,
        st.integers(1, 2),
        amount=st.one_of(st.none(), st.integers(0, 3)),
        left_until=st.one_of(st.none(), st.integers(0, 3)),
        generation=st.integers(0, 2),
    ),
)


@given(st.lists(INDEX, max_size=8), st.lists(INDEX, max_size=8))
def test_a_merge_does_not_depend_on_order_or_repetition(
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


def test_of_one_session_the_last_machine_that_used_it_counts_and_leaving_is_the_last_that_it_does() -> None:
    used, left = session(1, amount=5), session(1, amount=5, left_until=9)
    assert better(used, left) == left
    taken = session(1, amount=5, generation=1)
    assert better(taken, left) == taken
    assert better(session(1, amount=9), taken) == taken  # whatever the machine before it still wrote


def test_a_session_stays_until_a_month_after_it_expired() -> None:
    record = session(1, expiry=int(NOW))
    assert live([record], NOW + 29 * 86_400) == [record]
    assert live([record], NOW + 31 * 86_400) == []


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
