"""Fair shares: nobody is refused while there is room, and whoever comes from elsewhere finds some."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import PeerId
from p2pnode.shares import FairShares, Origin, SizedShares, one_of_each, origin_of

P, Q, R = PeerId("p"), PeerId("q"), PeerId("r")


def oldest(holders: Collection[int]) -> int | None:
    return next(iter(holders))


def nobody(_holders: Collection[int]) -> int | None:
    return None


def place(text: str) -> Origin:
    wide, _, near = text.partition(".")
    return Origin(wide=wide, near=near or wide)


@pytest.mark.parametrize(
    ("host", "relay", "tells"),
    [
        ("8.8.8.8", None, True),
        ("2a01:4f8:1::1", None, True),
        ("127.0.0.1", None, False),
        ("192.168.1.5", None, False),
        (None, None, False),
        ("8.8.8.8", R, False),
    ],
)
def test_only_a_prefix_of_public_addresses_tells_who_belongs_together(
    host: str | None, relay: PeerId | None, tells: bool
) -> None:
    assert origin_of(host, P, relay=relay).is_prefix == tells


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.114.7", "203.0.114.200", True),
        ("8.8.8.8", "8.8.9.8", False),
        ("2a01:4f8:1:2::1", "2a01:4f8:1:ffff::9", True),
        ("2a01:4f8:1::1", "2a01:4f8:2::1", False),
        ("::ffff:8.8.8.8", "8.8.8.9", True),
        ("127.0.0.1", "127.0.0.1", False),
        ("192.168.1.5", "192.168.1.5", False),
        ("100.64.0.1", "100.64.0.1", False),
        ("fe80::1%eth0", "fe80::1%eth0", False),
        ("node.example", "node.example", False),
        (None, None, False),
    ],
)
def test_two_peers_of_one_public_prefix_are_of_one_origin(
    one: str | None,
    other: str | None,
    same: bool,
) -> None:
    assert (origin_of(one, P) == origin_of(other, Q)) is same
    assert origin_of(one, P) == origin_of(one, P)


def test_two_prefixes_of_one_ipv6_network_share_what_is_wide() -> None:
    one, other = origin_of("2a01:4f8:1::1", P), origin_of("2a01:4f8:2::1", P)
    assert one.wide == other.wide
    assert one.near != other.near


def test_who_comes_through_a_relay_is_of_the_relays_origin() -> None:
    assert origin_of("8.8.8.8", P, relay=R) == origin_of("9.9.9.9", Q, relay=R)
    assert origin_of("8.8.8.8", P, relay=R) != origin_of("8.8.8.8", P, relay=Q)


def test_one_origin_alone_has_all_places() -> None:
    shares: FairShares[int] = FairShares(200)
    assert all(shares.enter(n, place("a"), oldest) == (True, None) for n in range(200))
    assert shares.enter(200, place("a"), oldest) == (False, None)


def test_twenty_others_each_get_in_when_one_origin_has_all_places() -> None:
    shares: FairShares[int] = FairShares(200)
    for n in range(200):
        shares.enter(n, place("a"), oldest)
    for n in range(20):
        assert shares.enter(1000 + n, place(f"b{n}"), oldest) == (True, n)
    assert shares.held_by(place("a")) == 180


def test_a_newcomer_takes_no_place_of_an_origin_that_holds_hardly_more() -> None:
    shares: FairShares[int] = FairShares(4)
    for n, where in enumerate(("a", "a", "b", "b")):
        shares.enter(n, place(where), oldest)
    assert shares.enter(9, place("a"), oldest) == (False, None)
    assert shares.enter(9, place("c"), oldest) == (True, 0)
    assert shares.enter(10, place("c"), oldest) == (False, None)


def test_a_holder_that_may_not_be_sent_away_stays_and_the_next_origin_gives_way() -> None:
    shares: FairShares[int] = FairShares(6)
    for n, where in enumerate(("a", "a", "a", "b", "b", "b")):
        shares.enter(n, place(where), oldest)
    assert shares.enter(9, place("c"), nobody) == (False, None)
    spared = {0, 1, 2}

    def not_spared(holders: Collection[int]) -> int | None:
        return next((each for each in holders if each not in spared), None)

    assert shares.enter(9, place("c"), not_spared) == (True, 3)


def test_many_near_prefixes_of_one_wide_one_have_one_share() -> None:
    shares: FairShares[int] = FairShares(8)
    for n in range(8):
        shares.enter(n, place(f"a.{n}"), oldest)
    assert shares.enter(8, place("a.8"), oldest) == (False, None)
    assert shares.enter(9, place("b"), oldest)[0]
    assert shares.enter(10, place("c"), oldest)[0]


def test_near_origins_are_compared_within_one_wide_one_only() -> None:
    shares: FairShares[int] = FairShares(8)
    for n, where in enumerate(("a.0", "a.1", "b")):
        shares.enter(n, place(where), oldest)
    assert not shares.holds_more(place("b"), place("a.2"))
    assert shares.holds_more(place("a.0"), place("b"))
    assert shares.holds_more(place("a.0"), place("a.2"))
    assert not shares.holds_more(place("a.0"), place("a.1"))


def test_within_a_wide_prefix_the_near_ones_share_too() -> None:
    shares: FairShares[int] = FairShares(4)
    for n in range(4):
        shares.enter(n, place("a.x"), oldest)
    assert shares.enter(9, place("a.y"), oldest) == (True, 0)
    assert shares.enter(10, place("a.y"), oldest) == (True, 1)
    assert shares.enter(11, place("a.y"), oldest) == (False, None)


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.sampled_from(["a", "b", "c.1", "c.2", "d"]))),
)
def test_shares_are_bounded_and_never_leave_a_place_unused(
    places: int, steps: list[tuple[bool, int, str]]
) -> None:
    shares: FairShares[int] = FairShares(places)
    inside: dict[int, str] = {}
    for enters, holder, where in steps:
        if not enters:
            assert shares.leave(holder) is (inside.pop(holder, None) is not None)
            continue
        was_inside, was_full = holder in inside, not shares.has_room()
        before = Counter(each.partition(".")[0] for each in inside.values())
        entered, victim = shares.enter(holder, place(where), oldest)
        assert entered or was_full
        if victim is not None:
            assert was_full
            assert not was_inside
            lost = inside.pop(victim)
            wide = where.partition(".")[0]
            assert lost.partition(".")[0] == wide or before[lost.partition(".")[0]] >= before[wide] + 2
        if entered and not was_inside:
            inside[holder] = where
        assert len(shares) == len(inside) <= places
        for each in set(inside.values()):
            assert shares.held_by(place(each)) == Counter(inside.values())[each]


def test_a_few_of_thousands_are_drawn_with_few_draws() -> None:
    drawn: list[int] = []

    def draw(count: int) -> int:
        drawn.append(count)
        return count - 1

    chosen = one_of_each([[n, -n] for n in range(1, 3000)], 20, draw)
    assert len({abs(each) for each in chosen}) == 20
    assert len(drawn) == 40


def test_groups_of_unequal_size_are_drawn_evenly() -> None:
    drawn = one_of_each([list(range(100)), [1000], [2000, 2001]], 5, random.Random(1).randrange)
    assert sum(each < 100 for each in drawn) == 2
    assert 1000 in drawn
    assert one_of_each([], 5, random.Random(1).randrange) == []


# ---- holders of many sizes


def test_memory_goes_to_whoever_asks_while_there_is_any() -> None:
    shares: SizedShares[int] = SizedShares(100)
    assert shares.resize(1, place("a"), 100, lambda _each: 0) == {}
    assert shares.resize(1, place("a"), 101, lambda _each: 0) is None, "nobody gives way to its own origin"
    assert (shares.used, shares.size_of(1), shares.held_by(place("a"))) == (100, 100, 100)
    shares.leave(1)
    shares.leave(1)
    assert (shares.used, shares.held_by(place("a"))) == (0, 0)


def test_memory_is_taken_from_the_origin_that_holds_most_its_lowest_rank_and_its_newest_first() -> None:
    shares: SizedShares[int] = SizedShares(100)
    for holder, origin in enumerate("aaab"):
        assert shares.resize(holder, place(origin), 25, lambda _each: 0) == {}
    ranks = {0: 0, 1: 1, 2: 1, 3: 0}
    assert shares.resize(4, place("c"), 30, ranks.get) == {0: 25, 2: 25}
    assert shares.resize(5, place("d"), 30, lambda each: 0 if each == 3 else None) is None
    assert shares.size_of(3) == 25, "nothing changes where too few may be sent away"


def test_of_a_wide_origin_the_near_ones_share_alike() -> None:
    shares: SizedShares[int] = SizedShares(100)
    for holder in range(4):
        assert shares.resize(holder, place("w.x"), 25, lambda _each: 0) == {}
    assert shares.resize(4, place("w.y"), 25, lambda _each: 0) == {3: 25}
    assert shares.resize(5, place("v.z"), 25, lambda _each: 0) == {2: 25}, "the largest near one loses"


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["a", "b", "c.x", "c.y"]), st.integers(0, 60)),
        max_size=60,
    ),
    st.sets(st.integers(0, 9)),
)
def test_whatever_comes_memory_is_never_given_twice_and_only_larger_origins_lose_any(
    steps: list[tuple[int, str, int]], stays: set[int]
) -> None:
    shares: SizedShares[tuple[int, str]] = SizedShares(100)
    sizes: Counter[tuple[int, str]] = Counter()

    def rank(each: tuple[int, str]) -> int | None:
        return None if each[0] in stays else each[0]

    def held(wide: str) -> int:
        return sum(size for (_, name), size in sizes.items() if name.partition(".")[0] == wide)

    for number, name, size in steps:
        holder, own = (number, name), place(name)
        more = size - sizes[holder]
        lost = shares.resize(holder, own, size, rank)
        if lost is None:
            assert more > 0
            assert sum(sizes.values()) + more > 100
        else:
            for victim, had in lost.items():
                assert victim[0] not in stays
                assert had == sizes[victim]
                other = place(victim[1])
                if other.wide != own.wide:
                    assert held(other.wide) > held(own.wide) + more
                sizes[victim] = 0
            sizes[holder] = size
        assert shares.used == sum(sizes.values()) <= 100
