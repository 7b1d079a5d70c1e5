"""Client and host of a paid session together: exact to the unit on both sides, whatever the interleaving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.inference.channel import ChannelSender, HostTerms
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import held_left
from p2pnode.protocols.inference.commands import (
    Ask,
    CountFailed,
    Drain,
    End,
    Ended,
    Finished,
    NotEscrowed,
    SessionFailed,
    Start,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import CODEC, WINDOW, Ack, Quote, Refuse, SessionTerms, Voucher
from p2pnode.protocols.typed_data import session_id
from tests.examples import examples
from tests.protocols.inference.paid_pair import MARKET, TERMS, PaidPair, client_payment
from tests.protocols.inference.pair import Step, ask, new_host, turn_of

ONE_A_TOKEN = replace(TERMS, price_in=1_000_000, price_out=1_000_000, session_fee=10, tip=0)


def opened(terms: SessionTerms = TERMS, answer_tokens: int = 100, **counts: int) -> PaidPair:
    pair = PaidPair(terms, answer_tokens=answer_tokens, **counts)
    pair.open()
    assert (pair.client.state, pair.host.state) == ("idle", "idle")
    return pair


def exact_ask(tokens_max: int = 512, tokens_in: int = 20) -> Ask:
    return replace(ask(tokens_max), input_exact=tokens_in)


# ---- opening


def test_the_deposit_is_relayed_before_the_session_is_accepted() -> None:
    pair = PaidPair()
    pair.client_does(Start())
    pair.deliver_to_host()
    assert (pair.host.state, len(pair.to_client)) == ("relaying", 0)
    (relay,) = pair.relays
    assert relay.session == session_id(MARKET, TERMS)
    pair.chain()
    pair.deliver_to_client()
    assert (pair.client.state, pair.host.state) == ("idle", "idle")
    assert pair.client.held is not None
    assert pair.client.held.accept.session_fee == TERMS.session_fee


def test_a_deposit_that_does_not_land_is_a_refusal() -> None:
    pair = PaidPair()
    pair.client_does(Start())
    pair.deliver_to_host()
    pair.chain(NotEscrowed(Refuse(code="payment_required", detail="the payer has no balance")))
    pair.settle()
    assert pair.outcomes == [SessionFailed("payment_required", "the payer has no balance")]
    assert pair.finished == [Finished("refused: payment_required")]


def test_a_deposit_lost_after_it_was_served_on_ends_the_session_at_once() -> None:
    pair = opened()
    pair.ask(ask())
    for _ in range(6):
        pair.deliver_to_host()
        pair.count()
        pair.engine(10)
        pair.deliver_to_client()
    pair.host_does(NotEscrowed(Refuse(code="payment_required", detail="the chain took it back")))
    pair.settle()
    (failed,) = pair.outcomes
    assert isinstance(failed, SessionFailed)
    assert (failed.code, failed.fault) == ("payment_required", False)
    assert pair.finished == [Finished("the deposit was lost")]
    assert pair.run is None


# ---- turns


@pytest.mark.parametrize("answer", [0, 1, 31, 32, 33, 64, 65, 200])
@pytest.mark.parametrize("tokens_max", [1, 32, 65, 512])
def test_an_answer_costs_exactly_what_was_delivered_whatever_its_length(answer: int, tokens_max: int) -> None:
    pair = opened(answer_tokens=answer)
    pair.ask(ask(tokens_max))
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone)
    count = min(answer, tokens_max)
    assert pair.delivered == pair.expected(tokens_max)
    assert pair.cost == pair.due(15, count)
    assert (pair.billed_in, pair.billed_out) == (15, count)
    pair.settled()


def test_turn_after_turn_is_one_cumulative_account() -> None:
    pair = opened(answer_tokens=40)
    for turn in range(1, 6):
        pair.ask(ask())
        pair.settle()
        pair.settled()
        assert isinstance(pair.outcomes[-1], TurnDone)
        assert pair.cost == pair.due(15 * turn, 40 * turn)
    assert [each.seq for each in pair.issued] == list(range(1, 11))


def test_one_token_at_a_price_of_one_per_million_costs_one_unit() -> None:
    pair = opened(
        replace(TERMS, price_in=0, price_out=1, session_fee=0, tip=0), answer_tokens=1, tokens_in=5, reused=0
    )
    pair.ask(ask())
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnDone)
    assert pair.cost == 1
    pair.settled()


def test_a_session_without_a_token_costs_its_fee() -> None:
    pair = opened(answer_tokens=0, tokens_in=20, reused=20)
    pair.ask(ask())
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnDone)
    assert pair.cost == TERMS.session_fee
    assert pair.signed == pair.paid == []


def test_a_fully_cached_prompt_needs_no_voucher() -> None:
    pair = opened(answer_tokens=10)
    pair.ask(ask())
    pair.settle()
    vouchers, pair.reused = len(pair.signed), 20
    pair.ask(ask())
    pair.settle()
    assert len(pair.signed) == vouchers + 1  # for the ten tokens only
    assert isinstance(pair.outcomes[-1], TurnDone)
    pair.settled()


def test_the_largest_prices_neither_raise_nor_open_the_deposit() -> None:
    most = 2**63 - 1
    pair = opened(replace(TERMS, price_in=most, price_out=most, deposit=most), tokens_in=10**5, reused=0)
    pair.ask(ask(input_max=2**32 - 1))
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnDone)
    pair.tokens_in = 10**6
    pair.ask(ask(input_max=2**32 - 1))
    pair.settle()
    assert isinstance(pair.outcomes[1], TurnFailed)
    assert pair.outcomes[1].code == "payment_required"
    pair.settled()


def test_the_engine_is_asked_only_when_the_input_is_paid() -> None:
    pair = opened()
    pair.ask(ask())
    while pair.deliver_to_host():
        pass
    assert (turn_of(pair.host).state, pair.run) == ("quoting", None)
    pair.count()
    assert (turn_of(pair.host).state, pair.run) == ("quoting", None)
    pair.deliver_to_client()
    assert [type(CODEC.decode(data)) for data in pair.to_host] == [Voucher]
    pair.deliver_to_host()
    assert turn_of(pair.host).state == "serving"
    assert pair.run is not None
    assert [voucher.amount for voucher in pair.paid] == [pair.due(15, 0)]


def test_a_client_that_counts_pays_with_its_prompt_and_saves_a_round_trip() -> None:
    pair = opened(reused=0)
    pair.ask(exact_ask())
    assert [type(CODEC.decode(data)).__name__ for data in pair.to_host] == ["Prompt", "Voucher"]
    while pair.deliver_to_host():
        pass
    assert pair.paid == []
    pair.count()
    assert len(pair.paid) == 1
    assert pair.run is not None
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnDone)
    pair.settled()


def under(key: bytes | None) -> Ask:
    """A question that was counted, with a cache key."""
    counted = exact_ask()
    return replace(counted, body=replace(counted.body, cache_key=key))


def test_input_is_paid_with_each_prompt_whose_cache_key_is_new_and_with_no_other() -> None:
    pair = opened(reused=0)
    one, two = b"1" * 16, b"2" * 16
    for key, is_new in ((one, True), (one, False), (two, True), (None, True), (None, False), (two, False)):
        pair.ask(under(key))
        said = [type(CODEC.decode(data)).__name__ for data in pair.to_host]
        assert ("Voucher" in said) == is_new, key
        pair.settle()
        assert isinstance(pair.outcomes[-1], TurnDone)
        pair.settled()


def test_a_client_that_does_not_know_which_cache_keys_were_used_waits_for_each_quote() -> None:
    held = held_left(
        ChannelSender(client_payment()),
        session_id(MARKET, TERMS),
        model=TERMS.model,
        salt=bytes(32),
        receipt=None,
        voucher=None,
        generation=1,
    )
    assert not held.is_new(b"1" * 16)
    held.note_asked(b"1" * 16)
    assert not held.is_new(None)


def test_a_client_forgets_which_cache_keys_were_used_when_they_are_too_many() -> None:
    pair = opened()
    held = pair.client.held
    assert held is not None
    for number in range(1025):
        assert held.is_new(number.to_bytes(16, "big"))
        held.note_asked(number.to_bytes(16, "big"))
    assert not held.is_new(b"x" * 16)


@pytest.mark.parametrize("late", [False, True], ids=["before the quote", "crossing the quote"])
def test_an_early_voucher_that_is_not_the_quotes_is_dropped_and_the_right_one_follows(late: bool) -> None:
    pair = opened(reused=5)
    pair.ask(exact_ask())
    pair.deliver_to_host()
    if late:
        pair.count()
        pair.deliver_to_host()
    else:
        pair.deliver_to_host()
        pair.count()
    assert pair.paid == []
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnDone)
    assert [voucher.tokens_in for voucher in pair.signed][:2] == [20, 15]
    pair.settled()


def test_an_early_voucher_for_a_turn_that_is_refused_does_no_harm() -> None:
    pair = opened(reused=0)
    pair.ask(exact_ask())
    pair.deliver_to_host()
    pair.host_does(CountFailed(1, "capacity", "full", 1.0))
    pair.counts.clear()
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnFailed)
    assert pair.host.state == "idle"
    pair.ask(ask())
    pair.settle()
    assert isinstance(pair.outcomes[1], TurnDone)
    pair.settled()


def test_only_a_first_turn_is_paid_before_its_quote() -> None:
    pair = opened(answer_tokens=5, reused=0)
    for expected in (2, 1):
        pair.ask(exact_ask())
        assert len(pair.to_host) == expected
        pair.settle()
    pair.settled()


def test_a_prompt_that_can_not_be_counted_fails_its_turn_and_costs_nothing() -> None:
    pair = opened()
    pair.ask(ask())
    pair.deliver_to_host()
    pair.counts.clear()
    pair.host_does(CountFailed(1, "context_overflow", "too long"))
    pair.settle()
    assert pair.outcomes == [TurnFailed("context_overflow", "too long", key=1)]
    assert pair.signed == []
    assert [served.reason for served in pair.served] == ["context_overflow"]
    pair.ask(ask())
    pair.settle()
    assert isinstance(pair.outcomes[1], TurnDone)
    pair.settled()


@pytest.mark.parametrize("moment", ["counting", "quoted", "paid"])
def test_a_turn_cancelled_before_its_input_is_paid_costs_nothing(moment: str) -> None:
    pair = opened()
    pair.ask(ask())
    pair.deliver_to_host()
    if moment != "counting":
        pair.count()
    if moment == "paid":
        pair.deliver_to_client()
    pair.cancel()
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "cancelled"
    assert outcome.done.tokens_in == (20 if moment == "paid" else 0)
    pair.settled()
    pair.ask(ask())
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    pair.settled()


def test_an_early_voucher_and_a_cancel_at_once_leave_both_sides_agreed() -> None:
    for counted_first in (False, True):
        pair = opened(reused=0)
        pair.ask(exact_ask())
        pair.cancel()
        pair.deliver_to_host()
        if counted_first:
            pair.count()
        while pair.deliver_to_host():
            pass
        pair.settle()
        (outcome,) = pair.outcomes
        assert isinstance(outcome, TurnDone)
        assert outcome.done.tokens_in == (20 if counted_first else 0)
        pair.ask(ask())
        pair.settle()
        assert isinstance(pair.outcomes[-1], TurnDone)
        pair.settled()


# ---- the deposit


def test_what_the_deposit_affords_is_delivered_to_the_last_token_and_text_then_the_turn_fails() -> None:
    terms = replace(
        TERMS, price_in=1_000_000, price_out=1_000_000, session_fee=10, tip=0, deposit=10 + 15 + 40
    )
    pair = opened(terms)
    pair.ask(ask())
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnFailed)
    assert outcome.code == "payment_required"
    assert "the deposit is used up" in outcome.detail
    assert pair.delivered == pair.expected(40)
    assert pair.text.count(" ") == 40
    assert pair.client.last_voucher is not None
    assert pair.client.last_voucher.amount == terms.deposit
    pair.settled()
    pair.ask(ask())  # and the next one fails here
    assert isinstance(pair.outcomes[-1], TurnFailed)
    assert pair.outcomes[-1].code == "payment_required"
    assert not pair.to_host


def test_an_answer_that_ends_with_the_deposit_is_done() -> None:
    terms = replace(
        TERMS, price_in=1_000_000, price_out=1_000_000, session_fee=10, tip=0, deposit=10 + 15 + 40
    )
    for pair, tokens_max in ((opened(terms, 40), 512), (opened(terms, 100), 40)):
        pair.ask(ask(tokens_max))
        pair.settle()
        assert isinstance(pair.outcomes[0], TurnDone)
        assert len(pair.delivered) == 40
        pair.settled()


def test_an_input_beyond_the_deposit_is_refused_with_numbers_and_not_billed() -> None:
    terms = replace(ONE_A_TOKEN, deposit=25)
    pair = opened(terms)
    pair.ask(ask())
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnFailed)
    assert outcome.code == "payment_required"
    assert "57" in outcome.detail  # with the output of one receipt
    assert "25" in outcome.detail
    assert pair.runs == 0
    assert pair.signed == []


def test_a_client_that_counts_does_not_even_send_a_prompt_it_can_not_pay() -> None:
    terms = replace(ONE_A_TOKEN, deposit=30)
    pair = opened(terms, reused=0)
    pair.ask(exact_ask())
    assert [outcome.code for outcome in pair.outcomes] == ["payment_required"]  # type: ignore[union-attr]
    assert not pair.to_host


# ---- endings


def test_closing_settles_at_once() -> None:
    pair = opened(answer_tokens=5)
    pair.ask(ask())
    pair.settle()
    pair.client_does(End())
    pair.settle()
    assert pair.outcomes[-1] == Ended()
    assert pair.finished == [Finished("closed by the client")]


def test_a_lost_stream_lingers_and_a_stalled_one_too() -> None:
    pair = opened()
    pair.ask(ask())
    pair.settle()
    pair.lose()
    assert pair.finished == [Finished("lost", lingers=True)]
    pair = opened()
    pair.fire("idle", host=True)
    assert [finished.lingers for finished in pair.finished] == [True]


def test_draining_waits_for_the_last_voucher() -> None:
    pair = opened(answer_tokens=10)
    pair.ask(ask())
    pair.deliver_to_host()
    pair.count()
    pair.deliver_to_client()
    pair.deliver_to_host()
    pair.host_does(Drain())
    while pair.engine():
        pass
    assert (pair.host.state, pair.channel.owed) == ("idle", True)
    pair.settle()
    assert pair.finished == [Finished("drained")]
    assert pair.channel.best == pair.client.last_voucher
    assert isinstance(pair.outcomes[0], TurnDone)


def test_a_client_that_does_not_pay_while_the_host_drains_is_left_after_the_stall_time() -> None:
    pair = opened(answer_tokens=10)
    pair.ask(ask())
    pair.deliver_to_host()
    pair.count()
    pair.deliver_to_client()
    pair.deliver_to_host()
    while pair.engine():
        pass
    pair.host_does(Drain())
    assert not pair.finished
    pair.fire("stall", host=True)
    assert len(pair.finished) == 1


def test_a_free_host_and_a_paid_one_do_not_serve_each_others_clients() -> None:
    class Mixed(PaidPair):
        def cast_sides(self, terms: HostTerms) -> tuple[HostSession, ClientSession]:
            return new_host(replace(terms, payment=None)), super().cast_sides(terms)[1]

    pair = Mixed()
    pair.client_does(Start())
    pair.settle()
    assert [outcome.code for outcome in pair.outcomes] == ["bad_request"]  # type: ignore[union-attr]
    assert pair.relays == []


# ---- any interleaving

steps = st.lists(
    st.tuples(
        st.sampled_from(["host", "client", "engine", "engine", "count", "late"]),
        st.integers(0, 150),
        st.booleans(),
    ),
    max_size=150,
)


prices = st.sampled_from([0, 1, 999_999, 1_000_000, 1_000_001, 123_456_789])


@examples(200)
@given(steps, st.integers(1, 80), st.booleans(), st.data())
def test_any_interleaving_bills_what_was_delivered_and_nothing_else(
    script: list[Step], chunk: int, exact: bool, data: st.DataObject
) -> None:
    answer, tokens_max = data.draw(st.integers(0, 300)), data.draw(st.sampled_from([1, 31, 64, 100, 512]))
    deposit = TERMS.session_fee + TERMS.tip + data.draw(st.integers(0, 60_000))
    terms = replace(TERMS, price_in=data.draw(prices), price_out=data.draw(prices), deposit=deposit)
    pair = opened(terms, answer, reused=data.draw(st.integers(0, 20)))
    for turn in range(2):
        before = len(pair.outcomes)
        pair.ask(replace(ask(tokens_max), input_exact=20 if exact else None))
        pair.play(script)
        pair.settle(chunk)
        (outcome,) = pair.outcomes[before:]
        whole = pair.expected(tokens_max)
        if isinstance(outcome, TurnDone):
            assert pair.delivered == whole
        else:
            assert isinstance(outcome, TurnFailed)
            assert outcome.code == "payment_required"
            assert pair.delivered == whole[: len(pair.delivered)]
            one_more = pair.due(20 * (turn + 1), len(whole) * (turn + 1) + 32)
            assert one_more > terms.deposit, "refused what could be paid"
        assert not pair.finished
        pair.settled()


ENDINGS: dict[str, Callable[[PaidPair], object]] = {
    "cancel": lambda pair: pair.cancel(),
    "fail": lambda pair: pair.fail_engine(),
    "drain": lambda pair: pair.host_does(Drain()),
    "end": lambda pair: pair.client_does(End()),
    "lost": lambda pair: pair.lose(),
}


@examples(150)
@given(
    st.tuples(steps, steps),
    st.tuples(*[st.sampled_from(sorted(ENDINGS))] * 2),
    st.sampled_from([None, 20]),
    st.sampled_from([0, 5, 20]),
)
def test_however_a_paid_turn_ends_it_ends_once_and_nobody_is_blamed(
    scripts: tuple[list[Step], list[Step]], endings: tuple[str, str], exact: int | None, reused: int
) -> None:
    (before, after), (ending, second) = scripts, endings
    pair = opened(answer_tokens=300, reused=reused)
    pair.ask(replace(ask(), input_exact=exact))
    pair.play(before)
    ENDINGS[ending](pair)
    pair.play(after)
    ENDINGS[second](pair)
    pair.settle()
    assert 1 <= len(pair.outcomes) <= 2
    assert len(pair.served) <= 1
    assert pair.run is None
    assert not any(isinstance(outcome, SessionFailed) and outcome.fault for outcome in pair.outcomes)
    assert not any(finished.fault for finished in pair.finished)
    best = pair.channel.best
    paid_out = best.tokens_out if best is not None else 0
    assert pair.host.session is not None
    assert pair.host.session.meter.tokens_out - paid_out <= WINDOW


def test_nothing_is_acknowledged_in_a_paid_session() -> None:
    pair = opened()
    pair.ask(ask())
    said: list[object] = []
    while any(pair.moves(16)):
        said += [CODEC.decode(data) for data in pair.to_host]
    assert any(isinstance(message, Voucher) for message in said)
    assert not any(isinstance(message, Ack | Quote) for message in said)
