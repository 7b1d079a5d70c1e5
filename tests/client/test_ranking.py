"""The order of hosts is arithmetic over what was advertised and measured; filters are walls, not wishes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.client.host_rules import HostRules
from p2pnode.client.ranking import (
    FEE_TURNS,
    Filters,
    HostChoice,
    TurnBound,
    Verified,
    cost_bound,
    expected_cost,
    needs_of,
    rank,
)
from p2pnode.client.reputation import BREAKER_FAILURES, BREAKER_MAX_S, BREAKER_S, WEIGHT, Measured
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.messages import RELEASE, Advert, Capability
from p2pnode.protocols.inference.messages import (
    ChatMessage,
    Part,
    PromptBody,
    ResponseFormat,
    Tool,
    ToolCall,
)
from p2pnode.protocols.typed_data import amount_due
from tests.client.support import MODEL, NOW, advert, peer
from tests.payments.journals import TERMS

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
    order = _order(advert(1, warm_in=5), advert(2, active=4, queued=8), advert(3))
    assert order[0] == peer(3)
    assert set(order) == {peer(1), peer(2), peer(3)}


def test_the_time_to_load_a_model_counts_like_any_other_time() -> None:
    adverts = [advert(1, warm_in=60), advert(2, warm_in=-10), advert(3, warm_in=20)]
    assert _order(*adverts) == [peer(2), peer(3), peer(1)]
    slow = {peer(2): Measured(ttft_s=0.5, tokens_per_s=4.0)}
    assert _order(*adverts, measured=slow) == [peer(3), peer(1), peer(2)]
    slow = {peer(2): Measured(ttft_s=0.5, tokens_per_s=20.0)}
    assert _order(*adverts, measured=slow) == [peer(2), peer(3), peer(1)]


def test_an_offer_that_was_withdrawn_is_none() -> None:
    assert _order(advert(1, n_ctx=0), advert(2)) == [peer(2)]


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


# ---- what a question needs


def _body(*messages: ChatMessage, **fields: Any) -> PromptBody:
    return PromptBody(messages=messages or (ChatMessage.of("user", "hi"),), seed=bytes(16), **fields)


CALL = ChatMessage(role="assistant", tool_calls=(ToolCall(id="1", name="f"),))


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        (_body(), Capability(0)),
        (_body(tools=(Tool(name="f"),)), Capability.TOOLS),
        (_body(tools=(Tool(name="f"),), tool_choice="none"), Capability.TOOLS),
        (_body(CALL), Capability.TOOLS),
        (_body(ChatMessage(role="tool", tool_call_id="1")), Capability.TOOLS),
        (_body(response_format=ResponseFormat(kind="json_object")), Capability.SCHEMA),
        (_body(response_format=ResponseFormat(kind="json_schema", body="{}")), Capability.SCHEMA),
        (_body(response_format=ResponseFormat(kind="grammar", body="root ::= [a]")), Capability.GRAMMAR),
        (_body(logprobs=0), Capability.LOGPROBS),
        (PromptBody(embed=("a",), seed=bytes(16)), Capability.EMBEDDINGS),
        (_body(ChatMessage(role="user", content=(Part(kind="image", data=b"x"),))), Capability.VISION),
        (_body(tools=(Tool(name="f"),), logprobs=3), Capability.TOOLS | Capability.LOGPROBS),
    ],
)
def test_what_a_question_needs_follows_from_its_prompt(body: PromptBody, needs: Capability) -> None:
    assert needs_of(body) == needs


# ---- money


PAID: Any = {"price_in": 1_000_000, "price_out": 3_000_000, "session_fee": 5_000}
TURN = TurnBound(tokens_in=100, tokens_out=10)


def _paid_order(
    *adverts: Advert, measured: Mapping[PeerId, Measured] | None = None, **more: Any
) -> list[PeerId]:
    ranking = rank(adverts, MODEL, measured or {}, Filters(), NOW, payable=lambda *_: "", **more)
    return [candidate.advert.peer for candidate in ranking.chosen]


def test_twice_as_fast_is_worth_twice_as_much_and_not_three_times() -> None:
    quick = Measured(connect_s=0, ttft_s=0, tokens_per_s=200.0)
    slow = Measured(connect_s=0, ttft_s=0, tokens_per_s=100.0)
    measured = {peer(1): quick, peer(2): slow}
    cheap = advert(2, price_in=1_000_000, price_out=1_000_000)
    for price, first in ((1_900_000, 1), (2_100_000, 2)):
        dear = advert(1, price_in=price, price_out=price)
        assert _paid_order(dear, cheap, measured=measured)[0] == peer(first)


def test_a_fee_counts_and_one_that_is_paid_does_not() -> None:
    adverts = (advert(1, **PAID), advert(2, price_in=2_000_000, price_out=6_000_000))
    assert _paid_order(*adverts) == [peer(2), peer(1)]
    assert _paid_order(*adverts, fee_paid=lambda host: host == peer(1)) == [peer(1), peer(2)]


def test_a_stake_makes_good_for_a_tenth_and_not_for_more() -> None:
    other = advert(2, price_in=1_000_000, price_out=1_000_000)
    for price, first in ((1_050_000, 1), (1_200_000, 2)):
        staked = advert(1, price_in=price, price_out=price)
        order = _paid_order(staked, other, stake_of=lambda each: 1_000 * 10**18 * (each.peer == peer(1)))
        assert order[0] == peer(first)
    assert _paid_order(advert(1, price_in=1_050_000, price_out=1_050_000), other)[0] == peer(2)


def test_a_stake_is_worth_nothing_where_no_money_flows_or_none_is_trusted() -> None:
    ranking = rank(
        [advert(1), advert(2)], MODEL, {peer(2): FAST, peer(1): SLOW}, Filters(), NOW,
        stake_of=lambda each: 10**21 * (each.peer == peer(1)),
    )  # fmt: skip
    assert [each.advert.peer for each in ranking.chosen] == [peer(2), peer(1)]
    assert [each.stake for each in ranking.chosen] == [0, 10**21]


def test_a_host_that_keeps_sessions_takes_its_fee_less_often() -> None:
    keeps = advert(1, **PAID, caps=int(Capability.KEEP_TIME))
    assert _paid_order(advert(2, **PAID), keeps) == [peer(1), peer(2)]


def test_a_host_that_closed_a_left_session_early_takes_its_fee_each_time() -> None:
    keeps = [advert(index, **PAID, caps=int(Capability.KEEP_TIME)) for index in (1, 2)]
    closed = {peer(1): Measured().closed_early()}
    assert _paid_order(*keeps, measured=closed) == [peer(2), peer(1)]
    offer, known = keeps[0].offers[0], closed[peer(1)]
    assert expected_cost(offer, known, fee_paid=False) - expected_cost(offer, known, fee_paid=True) == 5_000
    kept = expected_cost(offer, Measured(), fee_paid=False) - expected_cost(offer, Measured(), fee_paid=True)
    assert kept == 5_000 / FEE_TURNS


def test_a_host_that_bills_again_what_it_has_read_comes_later() -> None:
    measured = {peer(1): Measured().reused(0.0), peer(2): Measured().reused(1.0)}
    adverts = (advert(1, **PAID), advert(2, **PAID))
    assert _paid_order(*adverts, measured=measured) == [peer(2), peer(1)]
    assert Measured().reused(7.0).reuse == 1.0  # a quote can't say more than all
    assert Measured().reused(1.0).reused(0.0).reuse == pytest.approx(1 - WEIGHT)


@pytest.mark.parametrize(
    ("cost_max", "spent", "fee_paid", "allowed"),
    [(5_130, 0, False, True), (5_129, 0, False, False), (130, 0, True, True), (229, 100, True, False)],
)
def test_a_host_that_could_cost_more_than_is_allowed_is_left_out(
    cost_max: int, spent: int, fee_paid: bool, allowed: bool
) -> None:
    ranking = rank(
        [advert(1, **PAID)], MODEL, {}, Filters(cost_max=cost_max), NOW,
        payable=lambda *_: "", fee_paid=lambda _: fee_paid, turn=replace(TURN, spent=spent),
    )  # fmt: skip
    assert bool(ranking.chosen) is allowed
    if not allowed:
        assert "--max-cost allows" in ranking.excluded[0].excluded


def test_a_host_whose_session_is_gone_may_be_too_dear_to_ask_once_more() -> None:
    open_with = {peer(1)}
    choice = HostChoice(
        MODEL, Filters(cost_max=5_200), measured={}, payable=lambda *_: "", has_session=open_with.__contains__
    )
    choice.found(advert(1, **PAID))
    choice.turn = replace(TURN, spent=5_070)  # the fee, and a part of the answer
    assert choice.may_ask_again(peer(1), NOW)
    open_with.clear()
    assert not choice.may_ask_again(peer(1), NOW)  # another fee
    choice.turn = TURN
    assert choice.may_ask_again(peer(1), NOW)
    assert choice.may_ask_again(peer(2), NOW)  # of which nothing is known


def test_a_host_that_the_breaker_leaves_out_is_not_asked_once_more_for_the_same_answer() -> None:
    measured = {peer(1): Measured(ttft_s=0.1)}
    choice = HostChoice(MODEL, Filters(), measured=measured)
    choice.found(advert(1))
    choice.found(advert(2))
    first = choice.take_best(NOW)
    assert first is not None
    assert first.advert.peer == peer(1)
    for _ in range(BREAKER_FAILURES):
        assert choice.may_ask_again(peer(1), NOW)
        measured[peer(1)] = measured[peer(1)].failed(NOW)
    assert not choice.may_ask_again(peer(1), NOW)
    assert choice.may_ask_again(peer(1), NOW + BREAKER_S)
    choice.pass_over(peer(2))
    assert choice.may_ask_again(peer(1), NOW), "nobody else is left"


BROKEN = {peer(1): Measured(failures_in_a_row=BREAKER_FAILURES, last_failure=NOW)}


def test_a_free_host_that_the_breaker_leaves_out_is_given_where_no_other_is() -> None:
    choice = HostChoice(MODEL, Filters(), measured=BROKEN)
    choice.found(advert(1))
    choice.found(advert(2))
    assert [each.advert.peer for each in choice.ranking(NOW).chosen] == [peer(2)]
    assert choice.take_second(NOW, lambda each: each.advert.peer == peer(1)) is None
    assert handed_out(choice) == [peer(2), peer(1)]
    alone = HostChoice(MODEL, Filters(), measured=BROKEN)
    alone.found(advert(1))
    assert alone.may_use(peer(1), NOW)
    assert alone.take_best(NOW, resting=False) is None, "others may still be found"
    rested = alone.take_best(NOW)
    assert rested is not None
    assert rested.rests


@pytest.mark.parametrize(
    ("known", "offer", "filters"),
    [
        (BROKEN[peer(1)], {"price_in": 1, "price_out": 1}, Filters()),
        (replace(BROKEN[peer(1)], faults=1), {}, Filters()),
        (replace(BROKEN[peer(1)], unanswered=BREAKER_FAILURES), {}, Filters()),
        (BROKEN[peer(1)], {}, Filters(n_ctx_min=4096)),
    ],
    ids=["it asks for money", "it broke the protocol", "it took pay for nothing", "it may not be asked"],
)
def test_a_host_that_is_left_out_is_given_to_nobody(
    known: Measured, offer: dict[str, Any], filters: Filters
) -> None:
    choice = HostChoice(MODEL, filters, measured={peer(1): known}, payable=lambda _advert, _offer: "")
    choice.found(advert(1, **offer))
    assert not choice.may_use(peer(1), NOW)
    assert choice.take_best(NOW) is None
    assert not [each for each in choice.ranking(NOW).excluded if each.rests]


def test_a_free_host_that_was_started_anew_is_given_once_more_and_no_other_is() -> None:
    choice = HostChoice(MODEL, Filters(), measured={}, payable=lambda _advert, _offer: "")
    priced = advert(2, price_in=1, price_out=1)
    for each in (advert(1), priced):
        choice.found(each)
    assert handed_out(choice) == [peer(1), peer(2)]
    choice.found(replace(advert(1), seq=2))
    assert handed_out(choice) == [], "a newer advert of the same start"
    choice.found(replace(advert(1), instance=b"another!", seq=3))
    choice.found(replace(priced, instance=b"another!", seq=3))
    assert handed_out(choice) == [peer(1)], "another session with the other one costs another fee"


def test_a_host_that_dies_under_several_turns_has_failed_once() -> None:
    known = Measured().failed(NOW, began=NOW - 2, turn=True)
    for each in range(8):
        known = known.failed(NOW + 0.1 * each, began=NOW - 0.1 * each - 0.1, turn=True)
    assert (known.failures_in_a_row, known.broken, known.last_failure) == (1, 9, NOW)
    known = known.failed(NOW + 1, began=NOW + 0.5).failed(NOW + 2, began=NOW + 0.9)
    assert known.failures_in_a_row == 2
    known = known.failed(NOW + 3, began=NOW + 1.1)
    assert known.failures_in_a_row == 3, "turns that overlap hide no later failure"
    assert known.failed(NOW + 3.5).failures_in_a_row == 4, "of which it isn't known when it was asked"


def test_a_free_host_costs_nothing_whatever_the_fee_that_it_names() -> None:
    free = advert(1, session_fee=5_000)
    assert cost_bound(free.offers[0], TURN, fee_paid=False).total == 0
    assert rank([free], MODEL, {}, Filters(cost_max=0), NOW, turn=TURN).chosen


@given(
    price_in=st.integers(0, 10**10),
    price_out=st.integers(1, 10**10),
    fee=st.integers(0, 250_000),
    used=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    more=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
)
def test_no_voucher_for_a_turn_within_the_bound_is_above_its_cost(
    price_in: int, price_out: int, fee: int, used: tuple[int, int], more: tuple[int, int]
) -> None:
    offer = advert(1, price_in=price_in, price_out=price_out, session_fee=fee).offers[0]
    bound = cost_bound(
        offer, TurnBound(tokens_in=used[0] + more[0], tokens_out=used[1] + more[1]), fee_paid=False
    )
    terms = replace(TERMS, price_in=price_in, price_out=price_out, session_fee=fee)
    assert amount_due(terms, *used) <= bound.total
    assert bound.total <= bound.tokens_in + bound.tokens_out + bound.fee <= bound.total + 1


def test_an_older_advert_does_not_replace_what_the_host_said_itself() -> None:
    choice = HostChoice(MODEL, Filters(caps=int(Capability.TOOLS)), measured={})
    choice.found(replace(advert(1, caps=int(Capability.TOOLS)), seq=2))
    choice.found(advert(1))  # of a book, before it could
    assert choice.has_untried(NOW)
    choice.found(replace(advert(1), seq=3))
    assert not choice.has_untried(NOW)


# ---- trust


def test_who_is_trusted_comes_before_who_is_free_and_fast() -> None:
    filters = Filters(rules=HostRules.of(trust=[peer(1)]))
    measured = {peer(1): SLOW, peer(2): FAST}
    adverts = [advert(1, price_out=9), advert(2)]
    assert _order(*adverts, measured=measured, filters=filters) == [peer(1), peer(2)]


def test_the_next_host_is_a_trusted_one_also_where_a_session_with_a_stranger_is_open() -> None:
    filters = Filters(rules=HostRules.of(trust=[peer(1)]))
    choice = HostChoice(
        MODEL, filters, measured={}, payable=lambda *_: "", has_session=lambda host: host == peer(2)
    )
    for each in (advert(1, **PAID), advert(2, **PAID)):
        choice.found(each)
    first = choice.take_best(NOW)
    assert first is not None
    assert (first.advert.peer, first.trusted) == (peer(1), True)
    choice.keep_to_trusted()
    assert choice.take_best(NOW) is None
    assert "a stranger" in choice.ranking(NOW).excluded[0].excluded


def test_a_session_that_was_left_counts_as_paid_unless_its_host_closes_them() -> None:
    for known, paid in ((Measured(), True), (Measured().closed_early(), False)):
        choice = HostChoice(
            MODEL, Filters(), measured={peer(1): known}, payable=lambda *_: "", has_left=lambda _: True
        )
        choice.found(advert(1, **PAID))
        best = choice.best(NOW)
        assert best is not None
        assert best.fee_paid is paid


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
    left_out = "failed 3 times in a row: left out for 59 s more"
    assert excluded.excluded == f"{left_out}, unless no other host is there"
    paid = rank([advert(1, price_in=1)], MODEL, {peer(1): known}, Filters(), NOW + 1).excluded
    assert paid[0].excluded == left_out
    assert rank([advert(1)], MODEL, {peer(1): known}, Filters(), NOW + BREAKER_S).chosen


def test_one_good_answer_closes_the_breaker() -> None:
    known = Measured()
    for _ in range(BREAKER_FAILURES):
        known = known.failed(NOW)
    assert known.answered(0.1, 50.0).broken_until() == 0.0


@pytest.mark.parametrize(("answers", "empty", "left_out"), [(1, 2, True), (4, 1, True), (9, 1, False)])
def test_a_host_that_takes_pay_for_nothing_again_and_again_is_left_out_whatever_it_answers_between(
    answers: int, empty: int, left_out: bool
) -> None:
    known, out = Measured(), 0
    for _ in range(40):
        for _ in range(empty):
            known = known.failed(NOW, took_for_nothing=True)
            out += known.broken_until() > NOW
        for _ in range(answers):
            known = known.answered(0.1, 50.0)
    assert (out > 0) == left_out
    if left_out:
        known = known.failed(NOW, took_for_nothing=True)
        (excluded,) = rank([advert(1)], MODEL, {peer(1): known}, Filters(), NOW).excluded
        assert "took pay for" in excluded.excluded
        assert "questions and gave next to nothing" in excluded.excluded
        assert rank([advert(1)], MODEL, {peer(1): known}, Filters(), NOW + BREAKER_MAX_S).chosen


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
        "warm_in": st.integers(-300, 300),
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
    priced = [c.offer.price_in + c.offer.price_out > 0 for c in ranking.chosen]
    assert priced == sorted(priced)
    scores = [c.score for c, costs in zip(ranking.chosen, priced, strict=True) if not costs]
    assert scores == sorted(scores)  # those of priced ones count times their cost
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


def test_a_host_may_be_used_while_the_ranking_chooses_it_and_it_was_not_given() -> None:
    made = choice(advert(1), replace(advert(2), draining=True), advert(3))
    first = made.take_best(NOW)
    assert first is not None
    chosen = {each.advert.peer for each in made.ranking(NOW).chosen}
    assert chosen == {peer(1), peer(3)}
    usable = {peer(number) for number in range(1, 6) if made.may_use(peer(number), NOW)}
    assert usable == chosen - {first.advert.peer}
    assert made.has_untried(NOW)


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


@pytest.mark.parametrize(
    ("ttft_s", "reuse", "is_first"),
    [(4.0, None, True), (8.0, None, False), (4.0, 0.0, False), (4.0, 1.0, True), (0.5, 0.0, True)],
)
def test_a_free_host_with_a_session_goes_first_unless_another_is_faster_by_more_than_its_cache_saves(
    ttft_s: float, reuse: float | None, is_first: bool
) -> None:
    made = HostChoice(
        MODEL,
        Filters(),
        measured={peer(1): Measured(ttft_s=1.0), peer(2): Measured(ttft_s=ttft_s, reuse=reuse)},
        has_left=lambda host: host == peer(2),
    )
    made.found(advert(1))
    made.found(advert(2))
    assert made.ranking(NOW).chosen[0].goes_first is is_first
    assert handed_out(made) == ([peer(2), peer(1)] if is_first else [peer(1), peer(2)])


def test_a_session_with_a_stranger_goes_before_no_host_that_is_trusted_and_a_broken_one_goes_last() -> None:
    rules = HostRules.of(trust=[peer(1)])
    measured = {peer(3): Measured(failures_in_a_row=BREAKER_FAILURES, last_failure=NOW)}
    made = HostChoice(MODEL, Filters(rules=rules), measured=measured, has_left=lambda host: host != peer(1))
    for index in (1, 2, 3):
        made.found(advert(index))
    assert handed_out(made) == [peer(1), peer(2), peer(3)]


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


@pytest.mark.parametrize(
    ("verified", "price", "excluded"),
    [
        (None, 0, False),
        (None, 5, True),
        ("paid", 0, False),
        ("paid", 5, True),
        ("always", 0, True),
        ("never", 5, False),
    ],
)
def test_weights_that_nobody_can_check_are_for_free_answers_unless_the_user_says_so(
    verified: Verified | None, price: int, excluded: bool
) -> None:
    filters = Filters(verified=verified)
    offered = advert(1, price_in=price, price_out=price, caps=int(Capability.UPSTREAM))
    ranking = rank([offered], MODEL, {}, filters, NOW, payable=lambda _advert, _offer: "")
    assert bool(ranking.excluded) == excluded
    assert not excluded or "--no-verified allows it" in ranking.excluded[0].excluded
    own = advert(1, price_in=price, price_out=price)
    assert not rank([own], MODEL, {}, filters, NOW, payable=lambda _advert, _offer: "").excluded


def test_turns_under_way_count_as_a_queue_that_no_advert_tells_yet() -> None:
    adverts = [advert(1), advert(2)]
    measured = {
        peer(1): Measured(ttft_s=0.4, tokens_per_s=40.0),
        peer(2): Measured(ttft_s=0.5, tokens_per_s=35.0),
    }

    def first(under_way: int) -> PeerId:
        def of(host: PeerId) -> int:
            return under_way if host == peer(1) else 0

        return rank(adverts, MODEL, measured, Filters(), NOW, under_way=of).chosen[0].advert.peer

    assert first(0) == peer(1)
    assert first(2) == peer(2)
