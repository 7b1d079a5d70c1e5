"""Which replicas are written to and asked, and in which order."""

from __future__ import annotations

from p2pnode.ids import PeerId
from p2pnode.storage.keys import StorageKeys
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.replication.choice import (
    COPIES,
    distance,
    fit_first,
    in_order_of_preference,
    nearest,
    ours_first,
    to_write_to,
    worth_a_write,
)
from p2pnode.storage.replication.quorum import Counted
from p2pnode.storage.store import Place, Replica

KEY = StorageKeys.from_entropy(bytes(16)).index.entry_key
PEERS = [PeerId(f"peer {number}") for number in range(8)]


def replica(name: str, place: Place = "other") -> Replica:
    store = MemoryStore(lambda: 0.0)
    return Replica(name, store, store, place)


def names(replicas: list[Replica]) -> list[str]:
    return [each.name for each in replicas]


def test_the_nearest_come_first_and_no_more_than_were_asked_for() -> None:
    found = nearest(KEY, PEERS, 3)
    assert len(found) == 3
    least = max(distance(KEY, peer) for peer in found)
    assert all(distance(KEY, peer) > least for peer in PEERS if peer not in found)
    assert nearest(KEY, reversed(PEERS), 3) == found


def test_the_users_own_list_goes_before_the_distance() -> None:
    far, second = nearest(KEY, PEERS, 8)[-1], PEERS[0]
    found = names(in_order_of_preference(KEY, map(replica, PEERS), [far, second]))
    others = [peer for peer in nearest(KEY, PEERS, 8) if peer not in (far, second)]
    assert found == [far, second, *others]


def test_three_independent_replicas_are_written_to_and_the_serving_host() -> None:
    candidates = [replica("x", "own"), *map(replica, "abcd"), replica("h", "serving")]
    assert names(to_write_to(candidates)) == ["a", "b", "c", "h"]
    assert COPIES == 3


def test_our_own_disk_is_first_and_a_name_counts_once() -> None:
    own, late = replica("own", "own"), replica("a")
    assert ours_first(own, [replica("a"), late, replica("b")], 3)[1] is late
    assert names(ours_first(own, map(replica, "abc"), 2)) == ["own", "a"]


def test_who_failed_lately_is_left_out_unless_the_quorum_needs_it() -> None:
    replicas, judged = [replica(name) for name in "abc"], Counted(frozenset("abc"), 2)
    assert names(worth_a_write(replicas, judged, {"a"}.__contains__)) == ["b", "c"]
    assert names(worth_a_write(replicas, judged, {"a", "b"}.__contains__)) == ["a", "b", "c"]


def test_who_failed_lately_is_asked_last() -> None:
    assert names(fit_first([replica(name) for name in "abc"], {"a"}.__contains__)) == ["b", "c", "a"]
