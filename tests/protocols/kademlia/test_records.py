"""Provider records: each rule for who keeps a place, and who finds one."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.protocols.kademlia import records as r
from p2pnode.protocols.kademlia.messages import RECORD_BYTES_MAX
from p2pnode.protocols.kademlia.records import ProviderRecords
from p2pnode.shares import Origin
from tests.protocols.kademlia.dht_world import address, nearest, peer_number

KEY = b"\x12\x20" + bytes(32)


class Kept:
    """Records, and what was put there."""

    def __init__(self, seed: int = 1) -> None:
        self.records = ProviderRecords(random.Random(seed).randrange)

    def add(
        self, number: int, origin: object, *, reached: bool = False, key: bytes = KEY, now: float = 0.0
    ) -> bool:
        where = Origin(str(origin), str(origin))
        return self.records.add(
            key, peer_number(number), [address("20.0.0.1")], origin=where, reached=reached, now=now
        )

    def held(self, key: bytes = KEY, now: float = 0.0) -> set[str]:
        return {each.provider for each in self.records.draw(key, 10_000, now)}

    def origins(self, key: bytes = KEY) -> Counter[str]:
        return Counter(each.origin.wide for each in self.records.draw(key, 10_000, 0.0))


def test_a_record_lives_an_hour_and_is_renewed_by_who_made_it() -> None:
    kept = Kept()
    kept.add(1, "a")
    kept.add(2, "b")
    kept.add(1, "a", now=3000.0)
    assert kept.held(now=3599.0) == {peer_number(1), peer_number(2)}
    assert kept.held(now=3600.0) == {peer_number(1)}
    assert kept.held(now=6600.0) == set()
    assert len(kept.records) == 0


def test_expiring_forgets_the_keys_too() -> None:
    kept = Kept()
    kept.add(1, "a")
    kept.records.expire(3600.0)
    assert not kept.records.keys()


def test_an_origin_has_an_eighth_of_a_set_and_its_own_make_room_for_its_own() -> None:
    kept = Kept()
    kept.add(0, "honest")
    for number in range(1, 100):
        assert kept.add(number, "flood")
    assert kept.origins() == {"honest": 1, "flood": r.ORIGIN_MAX}
    assert peer_number(99) in kept.held()


def test_ten_prefixes_with_two_hundred_ids_leave_a_newcomer_its_place() -> None:
    kept = Kept()
    for _ in range(3):
        for number in range(200):
            kept.add(number, f"prefix {number % 10}")
    assert kept.add(1000, "honest")
    for _ in range(10):
        for number in range(200):
            kept.add(number, f"prefix {number % 10}")
    assert peer_number(1000) in kept.held()
    assert len(kept.held()) <= r.PROVIDERS_MAX


def test_a_third_of_the_places_is_for_providers_that_this_node_dialled() -> None:
    kept = Kept()
    for number in range(500):
        kept.add(number, f"origin {number}")
    open_places = r.PROVIDERS_MAX - r.REACHED_PLACES
    assert len(kept.held()) == open_places
    for number in range(1000, 1000 + r.REACHED_PLACES):
        assert kept.add(number, f"origin {number}", reached=True)
    dialled = {peer_number(number) for number in range(1000, 1000 + r.REACHED_PLACES)}
    for number in range(500):
        kept.add(number, f"origin {number}")
    assert dialled <= kept.held()
    assert len(kept.held()) == r.PROVIDERS_MAX


def test_more_dialled_ones_than_their_third_are_replaced_like_the_others() -> None:
    kept = Kept()
    for number in range(r.PROVIDERS_MAX):
        kept.add(number, f"origin {number}", reached=True)
    assert len(kept.held()) == r.PROVIDERS_MAX
    assert kept.add(999, "origin 999")
    assert peer_number(999) in kept.held()


def test_who_is_replaced_is_drawn_and_does_not_follow_from_ids() -> None:
    """Of equally many origins, an id ground to lie at the key has no better place than any other."""
    survived = 0
    close = nearest(KEY, 1, among=2000, seed=3)[0]
    for seed in range(40):
        kept = Kept(seed)
        where = Origin("close", "close")
        kept.records.add(KEY, close, [], origin=where, reached=False, now=0.0)
        for number in range(120):
            kept.add(number, f"origin {number}")
        survived += close in kept.held()
    assert 2 <= survived <= 25  # 43 places, 78 replaced at random: about one of six


def test_an_answer_has_one_of_each_origin_before_a_second_of_any() -> None:
    kept = Kept()
    for number in range(r.ORIGIN_MAX):
        kept.add(number, "crowd")
    for number in range(100, 110):
        kept.add(number, f"origin {number}")
    for _ in range(20):
        drawn = Counter(each.origin.wide for each in kept.records.draw(KEY, 11, 0.0))
        assert set(drawn.values()) == {1}
    first = {kept.records.draw(KEY, 1, 0.0)[0].provider for _ in range(200)}
    assert len(first) > 10


def test_one_origin_cannot_fill_all_records_with_made_up_keys() -> None:
    kept = Kept()
    for number in range(r.RECORDS_MAX):
        kept.add(1, "flood", key=number.to_bytes(34, "big"))
    assert len(kept.records) == r.RECORDS_MAX
    for number in range(50):
        assert kept.add(2, "honest", key=b"honest" + bytes([number]))
    assert len(kept.records) == r.RECORDS_MAX
    kept.add(1, "flood", key=b"one more")
    assert all(kept.held(b"honest" + bytes([number])) for number in range(50))


def test_a_record_is_cut_to_its_size() -> None:
    kept = Kept()
    many = [bytes([number]) * 250 for number in range(1, 12)]
    kept.records.add(KEY, peer_number(1), many, origin=Origin("a", "a"), reached=False, now=0.0)
    (record,) = kept.records.draw(KEY, 1, 0.0)
    assert record.addresses == tuple(many[:3])
    assert sum(map(len, record.addresses)) < RECORD_BYTES_MAX


def test_who_moves_counts_where_it_came_from_last() -> None:
    kept = Kept()
    kept.add(1, "a")
    kept.add(1, "b")
    assert kept.origins() == {"b": 1}


ADDS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 300),
        st.integers(0, 30),
        st.booleans(),
        st.sampled_from([0, 0, 0, 900]),
    ),
    max_size=300,
)


def check_bounds(adds: list[tuple[int, int, int, bool, int]]) -> None:
    kept, now = Kept(), 0.0
    for key, number, where, reached, later_s in adds:
        now += later_s
        kept.add(number, where, reached=reached, key=bytes([key]), now=now)
        total = 0
        for held_key in list(kept.records.keys()):
            held = kept.records.draw(held_key, 1000, now)
            total += len(held)
            assert len({each.provider for each in held}) == len(held) <= r.PROVIDERS_MAX
            assert max(Counter(each.origin.wide for each in held).values(), default=0) <= r.ORIGIN_MAX
            assert sum(not each.reached for each in held) <= r.PROVIDERS_MAX - r.REACHED_PLACES
            assert all(each.expires_at > now for each in held)
        assert total == len(kept.records)


@settings(max_examples=20)
@given(ADDS)
def test_no_sequence_of_records_breaks_a_share(adds: list[tuple[int, int, int, bool, int]]) -> None:
    check_bounds(adds)


@pytest.mark.long
@settings(max_examples=10_000, suppress_health_check=[HealthCheck.too_slow])
@given(ADDS)
def test_ten_thousand_sequences_of_records_neither(adds: list[tuple[int, int, int, bool, int]]) -> None:
    check_bounds(adds)
