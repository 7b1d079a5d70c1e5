"""A reputation is what turns that ended say of the next one, no more: it is wide for a stranger, narrow for a
host of many turns, and never better than the record."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.client.ranking import Filters, rank
from p2pnode.client.reputation import (
    HOSTS_MAX,
    TURNS_MAX,
    Measured,
    failure_share,
    merged,
    reputation,
    worth_keeping,
)
from p2pnode.ids import PeerId
from tests.client.support import MODEL, NOW, advert, peer

Z = 1.959963984540054


def _record(kept: int, broken: int) -> Measured:
    return Measured(kept=kept, broken=broken)


def test_a_host_that_nobody_asked_may_be_anything() -> None:
    assert (reputation(Measured()).low, reputation(Measured()).high) == (0.0, 1.0)
    assert (reputation(Measured().connected(0.1)).low, reputation(Measured().connected(0.1)).high) == (0, 1)


@pytest.mark.parametrize(
    ("kept", "broken", "low", "high"),
    # as the textbooks have them: Brown, Cai, DasGupta 2001; Agresti and Coull 1998
    [
        (10, 0, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
        (8, 2, 0.4902, 0.9433),
        (98, 2, 0.9300, 0.9945),
        (1, 0, 0.2065, 1.0),
    ],
)
def test_the_interval_is_wilsons(kept: int, broken: int, low: float, high: float) -> None:
    found = reputation(_record(kept, broken))
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_each_end_is_where_the_record_is_two_standard_errors_off(kept: int, broken: int) -> None:
    found, turns = reputation(_record(kept, broken)), kept + broken
    assert 0 <= found.low <= found.high <= 1
    if not turns:
        return
    share = kept / turns
    assert found.low <= share <= found.high
    for end, at_the_edge in ((found.low, not kept), (found.high, not broken)):
        if not at_the_edge:
            assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / turns), rel=1e-6)


@given(st.integers(0, 300), st.integers(0, 300))
def test_one_more_turn_that_is_kept_never_makes_it_worse_and_one_that_is_broken_never_better(
    kept: int, broken: int
) -> None:
    before = reputation(_record(kept, broken))
    better, worse = reputation(_record(kept + 1, broken)), reputation(_record(kept, broken + 1))
    assert better.low >= before.low - 1e-12
    assert worse.low <= before.low + 1e-12
    assert worse.high <= before.high + 1e-12


def test_turns_are_counted_as_they_end_and_dials_are_none() -> None:
    known = Measured().answered(0.1, 30.0).failed(NOW, turn=True).failed(NOW).answered(0.1, 3.0, whole=False)
    assert (known.kept, known.broken) == (1, 1)
    assert known.proved(32).proved(8).receipted == 40


def test_what_a_host_did_long_ago_counts_less() -> None:
    known = _record(TURNS_MAX, 0)
    for _ in range(200):
        known = known.failed(NOW, turn=True)
    assert known.kept == TURNS_MAX // 2
    assert known.kept + known.broken <= TURNS_MAX
    assert reputation(known).high < 0.8  # a thousand good turns hide no two hundred bad ones


def test_a_host_with_many_broken_turns_is_ranked_behind_its_equals_long_after_the_last_one() -> None:
    bad = replace(_record(50, 50), failure_rate=0.0)
    assert failure_share(bad) == pytest.approx(1 - reputation(bad).high)
    assert failure_share(Measured()) == 0
    ranking = rank([advert(1), advert(2)], MODEL, {peer(1): bad}, Filters(), NOW)
    assert [each.advert.peer for each in ranking.chosen] == [peer(2), peer(1)]


def test_lately_counts_where_it_is_worse() -> None:
    known = replace(_record(900, 1), failure_rate=0.7)
    assert failure_share(known) == 0.7


def test_hosts_below_the_least_reputation_are_left_out_and_strangers_are_among_them() -> None:
    known = {peer(1): _record(200, 1), peer(2): _record(3, 0)}
    found = rank([advert(1), advert(2), advert(3)], MODEL, known, Filters(reputation_min=0.9), NOW)
    assert [each.advert.peer for each in found.chosen] == [peer(1)]
    reasons = {each.advert.peer: each.excluded for each in found.excluded}
    assert "0.44 (3 of 3 turns ended as promised), and 0.9 is asked for" in reasons[peer(2)]
    assert "0.00 (0 of 0 turns" in reasons[peer(3)]
    everybody = rank([advert(1), advert(2), advert(3)], MODEL, known, Filters(), NOW)
    assert len(everybody.chosen) == 3


# ---- many hosts


def test_strangers_who_are_only_met_push_out_nobody_who_was_asked() -> None:
    known = {PeerId("asked"): _record(1, 0)}
    known |= {PeerId(f"met{number}"): Measured(connect_s=0.1) for number in range(2 * HOSTS_MAX)}
    kept = worth_keeping(known)
    assert len(kept) == HOSTS_MAX
    assert PeerId("asked") in kept
    assert PeerId(f"met{2 * HOSTS_MAX - 1}") in kept
    assert PeerId("met0") not in kept


def test_of_those_that_were_asked_the_newest_stay() -> None:
    known = {PeerId(f"p{number}"): _record(1, 0) for number in range(HOSTS_MAX + 5)}
    assert list(worth_keeping(known)) == [PeerId(f"p{number}") for number in range(5, HOSTS_MAX + 5)]


def test_two_processes_lose_no_turn_of_each_other() -> None:
    before = {peer(1): _record(10, 1)}
    theirs = {peer(1): _record(12, 2), peer(2): _record(1, 0)}
    ours = {peer(1): _record(13, 1), peer(3): _record(0, 1)}
    both = merged(ours, before, theirs)
    assert (both[peer(1)].kept, both[peer(1)].broken) == (15, 2)
    assert both[peer(2)] == _record(1, 0)
    assert both[peer(3)] == _record(0, 1)


def test_a_host_that_only_the_other_process_dealt_with_is_as_it_says() -> None:
    before = {peer(1): _record(10, 1)}
    assert merged(before, before, {peer(1): _record(11, 1)}) == {peer(1): _record(11, 1)}
    assert merged(before, before, before) == before
