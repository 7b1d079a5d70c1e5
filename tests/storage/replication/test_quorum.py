"""Which replicas count, and when replicas together show less than they acknowledged."""

from __future__ import annotations

import pytest

from p2pnode.protocols.s5.entries import Entry, pointer_to
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.keys import StorageKeys
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.replication.quorum import Counted, Seen, WriteRound, counted
from p2pnode.storage.store import Place, Replica

LOG = StorageKeys.from_entropy(bytes(16)).index


def replicas(*places: Place) -> list[Replica]:
    store = MemoryStore(lambda: 0.0)
    return [Replica(f"{place}{at}", store, store, place) for at, place in enumerate(places)]


@pytest.mark.parametrize(
    ("places", "names", "weak"),
    [
        (("own", "serving", "other", "other"), {"other2", "other3"}, ""),
        (("own", "other", "other", "other"), {"other1", "other2", "other3"}, ""),
        (("own", "serving", "other"), {"serving1", "other2"}, "the host that serves"),
        (("own", "serving"), {"own0", "serving1"}, "this machine"),
        (("own", "other"), {"own0", "other1"}, "this machine"),
        (("own",), {"own0"}, "1 of"),
    ],
)
def test_own_and_serving_count_only_where_there_are_not_enough_others(
    places: tuple[Place, ...], names: set[str], weak: str
) -> None:
    found = counted(replicas(*places))
    assert found.names == names
    assert weak in found.weak
    assert bool(found.weak) == bool(weak)


def test_a_quorum_is_of_those_that_count() -> None:
    found = counted(replicas("own", "serving", "other", "other", "other"))
    assert found.reached(frozenset({"other2", "other4"}))
    assert not found.reached(frozenset({"own0", "serving1", "other2"}))
    assert not counted(replicas("own")).reached(frozenset({"own0"}))


def entry(revision: int, data: bytes = b"") -> Entry:
    return LOG.entry(revision, pointer_to(hash_of(data)))


def test_the_newest_comes_first_and_of_equal_ones_the_smaller_hash() -> None:
    old, a, b = entry(1), entry(2, b"a"), entry(2, b"b")
    seen = Seen((("x", old), ("y", a), ("z", b), ("w", a)))
    found = seen.newest_first()
    assert len(found) == 3
    assert found[2] == old
    assert found[0].replaces(found[1])


@pytest.mark.parametrize(
    ("shown", "rolled_back"),
    [
        ({"a": 2, "b": 2, "c": 2}, True),
        ({"a": 2, "b": None}, True),
        ({"a": 2}, False),
        ({"a": 2, "b": 2, "c": 3}, False),
        ({"a": 2, "b": 2, "own": 3}, True),
        ({}, False),
    ],
)
def test_a_rollback_needs_so_many_that_no_quorum_is_left(
    shown: dict[str, int | None], rolled_back: bool
) -> None:
    judged = Counted(frozenset("abc"), 2)
    entries = tuple((name, entry(revision)) for name, revision in shown.items() if revision is not None)
    empty = frozenset(name for name, revision in shown.items() if revision is None)
    assert Seen(entries, empty).rolled_back(3, judged) is rolled_back


# ---- one write


def round_of(*names: str, quorum: int = 2) -> WriteRound:
    return WriteRound(entry(1), len(names), Counted(frozenset(names), quorum))


def test_the_pointer_waits_for_a_quorum_of_the_blobs() -> None:
    write = round_of("a", "b", "c")
    write.blobs_over("a", there=True)
    assert not write.may_point
    write.blobs_over("b", there=True)
    assert write.may_point


def test_the_pointer_moves_where_it_can_once_no_more_replicas_can_have_the_blobs() -> None:
    write = round_of("a", "b")
    write.blobs_over("a", there=True)
    write.blobs_over("b", there=False)
    assert write.may_point


def test_a_write_is_decided_by_a_quorum_or_by_the_last_failure() -> None:
    kept, lost = round_of("a", "b", "c"), round_of("a", "b", "c")
    for name in ("a", "b"):
        assert not kept.decided
        kept.acknowledged(name)
    assert kept.decided
    assert kept.outcome().reached
    assert not kept.over
    for _ in range(3):
        assert not lost.decided
        lost.finished()
    assert lost.decided
    assert lost.over
    assert not lost.outcome().reached


def test_a_replica_that_is_not_counted_any_more_does_not_hold_up_the_others() -> None:
    write = round_of("a", "b", "c", quorum=3)
    for name in ("a", "b"):
        write.blobs_over(name, there=True)
        write.acknowledged(name)
    assert not write.may_point
    assert not write.decided
    write.counted = Counted(frozenset("ab"), 2)
    assert write.may_point
    assert write.decided


def test_another_writers_entry_stands_in_the_outcome() -> None:
    write = round_of("a", "b")
    assert not write.in_conflict
    write.conflict("a", entry(7))
    write.mended("b")
    write.mended("b")
    outcome = write.outcome()
    assert write.in_conflict
    assert outcome.conflicts == (entry(7),)
    assert "revision 7" in outcome.failures["a"]
    assert outcome.mended == {"b": 2}
