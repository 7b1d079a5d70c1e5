"""The order of hosts is arithmetic over what was advertised and measured; filters are walls, not wishes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.client.ranking import (
    BREAKER_FAILURES,
    BREAKER_MAX_S,
    BREAKER_S,
    Filters,
    HostChoice,
    Measured,
    rank,
)
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.messages import RELEASE, Advert, Capability
from tests.client.support import MODEL, NOW, advert, peer

SLOW, FAST = Measured(ttft_s=2.0, tokens_per_s=5.0), Measured(ttft_s=0.1, tokens_per_s=90.0)


def _order(*adverts: object, measured: object = None, filters: Filters | None = None) -> list[str]:
    ranking = rank(
        adverts,  # type: ignore[arg-type]
        MODEL,
        measured or {},  # type: ignore[arg-type]
        filters or Filters(),
        NOW,
        payable=lambda _advert, _offer: "",
    )
    return [candidate.advert.peer for candidate in ranking.chosen]


def test_the_faster_host_comes_first_and_not_the_slower() -> None:
    adverts = [advert(1), advert(2)]
    assert _order(*adverts, measured={peer(1): SLOW, peer(2): FAST}) == [peer(2), peer(1)]
    assert _order(*adverts, measured={peer(1): FAST, peer(2): SLOW}) == [peer(1), peer(2)]


def test_a_warm_idle_host_comes_before_a_cold_or_a_full_one() -> None:
    order = _order(advert(1, warm=False), advert(2, active=4, queued=8), advert(3))
    assert order[0] == peer(3)
    assert set(order) == {peer(1), peer(2), peer(3)}


def test_among_equals_the_cheaper_comes_first() -> None:
    assert _order(advert(1, price_out=9), advert(2, price_out=3)) == [peer(2), peer(1)]


def test_a_free_host_comes_before_one_that_asks_for_money_however_fast() -> None:
    adverts = [advert(1, price_out=1), advert(2)]
    assert _order(*adverts, measured={peer(1): FAST, peer(2): SLOW}) == [peer(2), peer(1)]


def test_a_host_that_asks_for_money_is_left_out_by_a_client_without_any_and_told_what_to_do() -> None:
    ranking = rank([advert(1, price_out=9), advert(2)], MODEL, {}, Filters(), NOW)
    assert [each.advert.peer for each in ranking.chosen] == [peer(2)]
    assert "p2pnode wallet new" in ranking.excluded[0].excluded


def test_a_host_of_another_model_is_no_candidate_at_all() -> None:
    other = ModelId(bytes(32))
    ranking = rank([advert(1, model=other)], MODEL, {}, Filters(), NOW)
    assert not ranking.chosen
    assert not ranking.excluded


@pytest.mark.parametrize(
    ("filters", "offer", "reason"),
    [
        (
            Filters(price_in_max=5),
            {"price_in": 6},
            "input price 0.000006 USDC is above the allowed 0.000005 USDC",
        ),
        (
            Filters(price_out_max=5),
            {"price_out": 6},
            "output price 0.000006 USDC is above the allowed 0.000005 USDC",
        ),
        (Filters(n_ctx_min=4096), {}, "context of 2048 tokens is below the needed 4096"),
        (
            Filters(caps=Capability.TOOLS | Capability.VISION | Capability.SCHEMA),
            {"caps": int(Capability.SCHEMA) | 1 << 31},
            "lacks tools and vision, which is needed",
        ),
        (Filters(), {"draining": True}, "draining: it is about to leave"),
    ],
)
def test_each_exclusion_says_why_and_never_falls_back_to_the_worse_offer(
    filters: Filters, offer: dict[str, object], reason: str
) -> None:
    ranking = rank([advert(1, **offer)], MODEL, {}, filters, NOW)  # type: ignore[arg-type]
    assert not ranking.chosen
    assert [candidate.excluded for candidate in ranking.excluded] == [reason]


def test_an_offer_at_the_limit_is_allowed() -> None:
    filters = Filters(price_in_max=5, price_out_max=6, n_ctx_min=2048, caps=Capability.TOOLS)
    offered = advert(1, price_in=5, price_out=6, caps=int(Capability.TOOLS | Capability.GRAMMAR))
    assert _order(offered, filters=filters) == [peer(1)]


def test_a_host_that_takes_newer_releases_only_says_to_upgrade() -> None:
    ranking = rank([replace(advert(1), release_min=RELEASE + 1)], MODEL, {}, Filters(), NOW)
    (excluded,) = ranking.excluded
    assert "upgrade p2pnode" in excluded.excluded
    assert rank([replace(advert(1), release_min=RELEASE)], MODEL, {}, Filters(), NOW).chosen


def test_the_breaker_opens_at_the_third_failure_in_a_row_and_closes_with_time() -> None:
    known = Measured()
    for _ in range(BREAKER_FAILURES - 1):
        known = known.failed(NOW)
    assert known.broken_until() <= NOW
    known = known.failed(NOW)
    assert known.broken_until() == NOW + BREAKER_S
    (excluded,) = rank([advert(1)], MODEL, {peer(1): known}, Filters(), NOW + 1).excluded
    assert excluded.excluded == "failed 3 times in a row: left out for 59 s more"
    assert rank([advert(1)], MODEL, {peer(1): known}, Filters(), NOW + BREAKER_S).chosen


def test_one_good_answer_closes_the_breaker() -> None:
    known = Measured()
    for _ in range(BREAKER_FAILURES):
        known = known.failed(NOW)
    assert known.answered(0.1, 50.0).broken_until() == 0.0


def test_the_breaker_doubles_up_to_an_hour() -> None:
    known = Measured()
    opened = []
    for _ in range(BREAKER_FAILURES + 10):
        known = known.failed(NOW)
        opened.append(known.broken_until() - NOW)
    assert opened[BREAKER_FAILURES - 1 : BREAKER_FAILURES + 2] == [60, 120, 240]
    assert opened[-1] == BREAKER_MAX_S


def test_a_host_that_broke_the_protocol_once_is_out_for_an_hour() -> None:
    known = Measured().failed(NOW, fault=True)
    (excluded,) = rank([advert(1)], MODEL, {peer(1): known}, Filters(), NOW).excluded
    assert excluded.excluded == "broke the protocol: left out for 3600 s more"
    assert rank([advert(1)], MODEL, {peer(1): known}, Filters(), NOW + BREAKER_MAX_S).chosen


seconds = st.floats(0.001, 100) | st.none()
measurements = st.builds(
    Measured,
    connect_s=seconds,
    ttft_s=seconds,
    tokens_per_s=st.floats(0.1, 1000) | st.none(),
    failure_rate=st.floats(0, 1),
    failures_in_a_row=st.integers(0, 50),
    last_failure=st.floats(0, 2 * NOW),
    faults=st.integers(0, 3),
)
offers = st.fixed_dictionaries(
    {
        "price_in": st.integers(0, 100),
        "price_out": st.integers(0, 100),
        "n_ctx": st.integers(256, 8192),
        "warm": st.booleans(),
        "draining": st.booleans(),
        "active": st.integers(0, 8),
    }
)
filters_of = st.builds(
    Filters,
    price_in_max=st.integers(0, 100) | st.none(),
    price_out_max=st.integers(0, 100) | st.none(),
    n_ctx_min=st.integers(0, 8192),
)


@given(
    hosts=st.lists(st.tuples(offers, measurements), max_size=5), filters=filters_of, seed=st.integers(0, 99)
)
def test_every_host_is_either_allowed_or_excluded_and_the_order_of_adverts_does_not_matter(
    hosts: list[tuple[dict[str, int], Measured]], filters: Filters, seed: int
) -> None:
    adverts = [advert(index, **offer) for index, (offer, _) in enumerate(hosts)]  # type: ignore[arg-type]
    measured = {peer(index): known for index, (_, known) in enumerate(hosts)}

    def payable(_advert: object, _offer: object) -> str:
        return ""

    ranking = rank(adverts, MODEL, measured, filters, NOW, payable=payable)
    assert len(ranking.chosen) + len(ranking.excluded) == len(hosts)
    for candidate in ranking.chosen:
        offer = candidate.offer
        assert filters.price_in_max is None or offer.price_in <= filters.price_in_max
        assert filters.price_out_max is None or offer.price_out <= filters.price_out_max
        assert offer.n_ctx >= filters.n_ctx_min
        assert not candidate.advert.draining
        assert measured[candidate.advert.peer].broken_until() <= NOW
    order = [(c.offer.price_in + c.offer.price_out > 0, c.score) for c in ranking.chosen]
    assert order == sorted(order)
    random.Random(seed).shuffle(adverts)
    assert rank(adverts, MODEL, measured, filters, NOW, payable=payable) == ranking


@given(known=measurements, other=st.floats(0.001, 100))
def test_a_measurement_moves_the_mean_towards_it_and_never_beyond(known: Measured, other: float) -> None:
    after = known.connected(other).connect_s
    before = known.connect_s
    assert after is not None
    low, high = sorted((other if before is None else before, other))
    assert low - 1e-9 <= after <= high + 1e-9


# ---- the choice of the next host


def choice(*adverts: Advert, sessions: tuple[int, ...] = ()) -> HostChoice:
    made = HostChoice(
        MODEL,
        Filters(),
        measured={peer(index): Measured(ttft_s=float(index)) for index in range(1, 9)},
        payable=lambda _advert, _offer: "",
        has_session=lambda host: host in [peer(index) for index in sessions],
    )
    for each in adverts:
        made.found(each)
    return made


def handed_out(made: HostChoice) -> list[PeerId]:
    out = []
    while (best := made.take_best(NOW)) is not None:
        out.append(best.advert.peer)
    return out


def test_each_host_is_given_once_the_best_first() -> None:
    made = choice(advert(3), advert(1), advert(2))
    assert handed_out(made) == [peer(1), peer(2), peer(3)]
    assert not made.has_untried(NOW)
    assert not made.may_use(peer(1), NOW)


def test_the_standby_goes_before_its_equals_and_after_a_paid_host_with_a_session() -> None:
    free = choice(advert(1), advert(2), advert(3, price_out=5))
    free.standby = peer(2)
    assert free.best(NOW, standby_first=False) == free.ranking(NOW).chosen[0]
    assert handed_out(free) == [peer(2), peer(1), peer(3)]
    paid = choice(*(advert(index, price_out=5) for index in (1, 2, 3)), sessions=(3,))
    paid.standby = peer(2)
    assert handed_out(paid) == [peer(3), peer(2), peer(1)]


def test_a_paid_host_with_a_session_does_not_go_before_a_free_one() -> None:
    assert handed_out(choice(advert(1), advert(2, price_out=5), sessions=(2,))) == [peer(1), peer(2)]


def test_a_host_that_is_to_be_tried_first_is_given_once_if_it_is_allowed() -> None:
    made = choice(advert(1))
    made.try_first(advert(2))
    first = made.take_first(NOW)
    assert first is not None
    assert first.advert.peer == peer(2)
    assert made.take_first(NOW) is None
    assert handed_out(made) == [peer(1)]
    leaving = choice()
    leaving.try_first(advert(2, draining=True))
    assert leaving.take_first(NOW) is None


def test_hosts_that_are_passed_over_or_too_small_are_not_given() -> None:
    made = choice(advert(1), advert(2, n_ctx=100), advert(3))
    made.pass_over(peer(1))
    made.need_context(101)
    made.need_context(50)  # what is needed never shrinks
    assert handed_out(made) == [peer(3)]
