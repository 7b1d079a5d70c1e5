"""The routing table: who gets a place, who gives one up, and who is close."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import PeerId
from p2pnode.protocols.kademlia.messages import K, point_of
from p2pnode.protocols.kademlia.table import FAILURES_MAX, WAITING_MAX, RoutingTable, spread
from p2pnode.shares import Origin
from tests.protocols.kademlia.dht_world import address, peer_number

OWN = peer_number(0)
ADDRESS = (address("20.0.0.1"),)


def origin(name: object) -> Origin:
    return Origin(str(name), str(name))


def far(count: int) -> list[PeerId]:
    """Peers of the bucket that half of all peers fall in."""
    found: list[PeerId] = []
    number = 1
    while len(found) < count:
        if (point_of(OWN) ^ point_of(peer_number(number))).bit_length() == 256:
            found.append(peer_number(number))
        number += 1
    return found


def full() -> tuple[RoutingTable, list[PeerId]]:
    """A table whose farthest bucket is full, each peer of another origin."""
    table, peers = RoutingTable(OWN), far(K + 20)
    for peer in peers[:K]:
        assert table.enter(peer, ADDRESS, origin(peer))
    return table, peers


def test_a_full_bucket_keeps_those_it_has_and_lets_a_few_wait() -> None:
    table, peers = full()
    for peer in peers[K:]:
        assert not table.enter(peer, ADDRESS, origin(peer))
    assert {each.peer for each in table} == set(peers[:K])
    for peer in peers[: WAITING_MAX + 1]:  # as many as wait, and one more, whom nobody follows
        table.failed(peer)
    assert len(table) == K
    newest = peers[-WAITING_MAX:]
    assert {each.peer for each in table} == {*peers[WAITING_MAX:K], *newest}


def test_this_node_is_not_in_its_own_table() -> None:
    table = RoutingTable(OWN)
    assert not table.enter(OWN, ADDRESS, origin("own"))
    assert len(table) == 0


def test_a_newcomer_from_elsewhere_takes_a_place_of_whoever_holds_most() -> None:
    table, peers = RoutingTable(OWN), far(K + 2)
    for peer in peers[: K - 1]:
        table.enter(peer, ADDRESS, origin("flood"))
    table.enter(peers[K - 1], ADDRESS, origin("honest"))
    table.disconnected(peers[3])
    assert table.enter(peers[K], ADDRESS, origin("elsewhere"))
    assert table.get(peers[3]) is None  # of the flood, the one without a connection
    assert table.get(peers[K - 1]) is not None
    assert not table.enter(peers[K + 1], ADDRESS, origin("flood"))


def test_one_that_did_not_answer_gives_way_to_anybody_and_goes_when_it_fails_again() -> None:
    table, peers = full()
    table.failed(peers[7])
    assert table.get(peers[7]) is not None
    assert table.enter(peers[K], ADDRESS, origin("late"))
    assert table.get(peers[7]) is None
    for _ in range(FAILURES_MAX):
        table.failed(peers[8])
    assert table.get(peers[8]) is None


def test_an_answer_makes_up_for_a_failure() -> None:
    table, peers = full()
    table.failed(peers[7])
    table.answered(peers[7])
    table.failed(peers[7])
    assert table.get(peers[7]) is not None


def test_who_comes_again_from_elsewhere_counts_there() -> None:
    table, peers = full()
    assert table.enter(peers[0], (address("20.0.0.9"),), origin(peers[0]))
    found = table.get(peers[0])
    assert found is not None
    assert found.addresses == (address("20.0.0.9"),)
    for peer in peers[:4]:
        assert table.enter(peer, ADDRESS, origin("one place"))
    assert table.enter(peers[K], ADDRESS, origin("late"))
    assert sum(each.origin == origin("one place") for each in table) == 3


def test_the_closest_come_first_and_no_origin_twice_while_there_are_others() -> None:
    table, point = RoutingTable(OWN), point_of(peer_number(12_345))
    peers = sorted((peer_number(number) for number in range(1, 60)), key=lambda each: point_of(each) ^ point)
    for index, peer in enumerate(peers):
        table.enter(peer, ADDRESS, origin("flood" if index < 12 else peer))
    held = [peer for peer in peers if table.get(peer) is not None]
    found = [each.peer for each in table.closest(point, 10)]
    assert found == [held[0], *[peer for peer in held if peer not in peers[:12]][:9]]
    every = [each.peer for each in table.closest(point, 1000)]
    assert every == held  # where there are no others, everybody counts
    assert [each.peer for each in table.closest(point, 2, without=(held[0],))] != found[:2]


def test_those_that_failed_are_told_to_nobody_and_asked_all_the_same() -> None:
    table, peers = full()
    table.failed(peers[0])
    assert peers[0] not in {each.peer for each in table.closest(0, 100)}
    assert peers[0] in {each.peer for each in table.closest(0, 100, silent_too=True)}


def test_a_teller_is_believed_for_a_few_until_others_had_as_many() -> None:
    made_up = [f"x{number}" for number in range(30)]
    honest = [f"h{number}" for number in range(6)]
    found = spread(
        [*made_up, *honest],
        8,
        lambda each: each,
        tellers=lambda each: ("liar",) if each in made_up else ("a", "b"),
    )
    assert found == ["x0", "h0", "h1", "x1", "h2", "h3", "x2", "h4"]
    charged = spread(
        [*made_up, *honest],
        6,
        lambda each: each,
        tellers=lambda each: ("liar",) if each in made_up else ("a", "b", "c"),
        charged={"liar": 9, "a": -3},
    )
    assert charged == honest


def test_a_place_that_an_origin_has_had_counts() -> None:
    crowd = ["flood 1", "flood 2", "a", "b", "c"]
    by_name = {each: "flood" if each.startswith("flood") else each for each in crowd}
    assert spread(crowd, 4, by_name.__getitem__) == ["flood 1", "a", "b", "c"]
    assert spread(crowd, 4, by_name.__getitem__, occupied={"flood": 1}) == ["a", "b", "c", "flood 1"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "fail", "answer", "leave"]), st.integers(0, 80)), max_size=300
    )
)
def test_no_sequence_puts_a_table_over_its_bounds(steps: list[tuple[str, int]]) -> None:
    table, chance = RoutingTable(OWN), random.Random(1)
    for what, number in steps:
        peer = peer_number(number)
        match what:
            case "enter":
                table.enter(peer, ADDRESS, origin(chance.randrange(5)))
            case "fail":
                table.failed(peer)
            case "answer":
                table.answered(peer)
            case _:
                table.disconnected(peer)
        by_bucket: dict[int, int] = {}
        for each in table:
            index = (point_of(OWN) ^ each.point).bit_length()
            by_bucket[index] = by_bucket.get(index, 0) + 1
        assert max(by_bucket.values(), default=0) <= K
        assert OWN not in {each.peer for each in table}
