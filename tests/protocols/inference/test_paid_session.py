"""Client and host of a paid session together: exact to the unit on both sides, whatever the interleaving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import (
    CancelTurn,
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
from p2pnode.protocols.inference.session import HostTerms
from p2pnode.protocols.typed_data import session_id
from tests.protocols.inference.duet import ask, new_host
from tests.protocols.inference.paid_duet import MARKET, TERMS, PaidDuet

ONE_A_TOKEN = replace(TERMS, price_in=1_000_000, price_out=1_000_000, session_fee=10, tip=0)


def opened(terms: SessionTerms = TERMS, answer_tokens: int = 100, **counts: int) -> PaidDuet:
    duet = PaidDuet(terms, answer_tokens=answer_tokens, **counts)
    duet.open()
    assert (duet.client.state, duet.host.state) == ("idle", "idle")
    return duet


def exact_ask(tokens_max: int = 512, tokens_in: int = 20) -> object:
    return replace(ask(tokens_max), input_exact=tokens_in)


# ---- opening


def test_the_deposit_is_relayed_before_the_session_is_accepted() -> None:
    duet = PaidDuet()
    duet.client_does(Start())
    duet.deliver_to_host()
    assert (duet.host.state, len(duet.to_client)) == ("relaying", 0)
    (relay,) = duet.relays
    assert relay.session == session_id(MARKET, TERMS)
    duet.chain()
    duet.deliver_to_client()
    assert (duet.client.state, duet.host.state) == ("idle", "idle")
    assert duet.client.held is not None
    assert duet.client.held.accept.session_fee == TERMS.session_fee


def test_a_deposit_that_does_not_land_is_a_refusal() -> None:
    duet = PaidDuet()
    duet.client_does(Start())
    duet.deliver_to_host()
    duet.chain(NotEscrowed(Refuse(code="payment_required", detail="the payer has no balance")))
    duet.settle()
    assert duet.outcomes == [SessionFailed("payment_required", "the payer has no balance")]
    assert duet.finished == [Finished("refused: payment_required")]


def test_a_deposit_lost_after_it_was_served_on_ends_the_session_at_once() -> None:
    duet = opened()
    duet.ask(ask())
    for _ in range(6):
        duet.deliver_to_host()
        duet.count()
        duet.engine(10)
        duet.deliver_to_client()
    duet.host_does(NotEscrowed(Refuse(code="payment_required", detail="the chain took it back")))
    duet.settle()
    (failed,) = duet.outcomes
    assert isinstance(failed, SessionFailed)
    assert (failed.code, failed.fault) == ("payment_required", False)
    assert duet.finished == [Finished("the deposit was lost")]
    assert duet.run is None


# ---- turns


@pytest.mark.parametrize("answer", [0, 1, 31, 32, 33, 64, 65, 200])
@pytest.mark.parametrize("tokens_max", [1, 32, 65, 512])
def test_an_answer_costs_exactly_what_was_delivered_whatever_its_length(answer: int, tokens_max: int) -> None:
    duet = opened(answer_tokens=answer)
    duet.ask(ask(tokens_max))
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    count = min(answer, tokens_max)
    assert duet.delivered == duet.expected(tokens_max)
    assert outcome.done.cost == duet.due(15, count)
    assert (duet.billed_in, duet.billed_out) == (15, count)
    duet.settled()


def test_turn_after_turn_is_one_cumulative_account() -> None:
    duet = opened(answer_tokens=40)
    for turn in range(1, 6):
        duet.ask(ask())
        duet.settle()
        duet.settled()
        assert isinstance(duet.outcomes[-1], TurnDone)
        assert duet.outcomes[-1].done.cost == duet.due(15 * turn, 40 * turn)
    assert [each.seq for each in duet.issued] == list(range(1, 11))


def test_one_token_at_a_price_of_one_per_million_costs_one_unit() -> None:
    duet = opened(
        replace(TERMS, price_in=0, price_out=1, session_fee=0, tip=0), answer_tokens=1, tokens_in=5, reused=0
    )
    duet.ask(ask())
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnDone)
    assert duet.outcomes[0].done.cost == 1
    duet.settled()


def test_a_session_without_a_token_costs_its_fee() -> None:
    duet = opened(answer_tokens=0, tokens_in=20, reused=20)
    duet.ask(ask())
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnDone)
    assert duet.outcomes[0].done.cost == TERMS.session_fee
    assert duet.signed == duet.paid == []


def test_a_fully_cached_prompt_needs_no_voucher() -> None:
    duet = opened(answer_tokens=10)
    duet.ask(ask())
    duet.settle()
    vouchers, duet.reused = len(duet.signed), 20
    duet.ask(ask())
    duet.settle()
    assert len(duet.signed) == vouchers + 1  # for the ten tokens only
    assert isinstance(duet.outcomes[-1], TurnDone)
    duet.settled()


def test_the_largest_prices_neither_raise_nor_open_the_deposit() -> None:
    most = 2**63 - 1
    duet = opened(replace(TERMS, price_in=most, price_out=most, deposit=most), tokens_in=10**5, reused=0)
    duet.ask(ask(input_max=2**32 - 1))
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnDone)
    duet.tokens_in = 10**6
    duet.ask(ask(input_max=2**32 - 1))
    duet.settle()
    assert isinstance(duet.outcomes[1], TurnFailed)
    assert duet.outcomes[1].code == "payment_required"
    duet.settled()


def test_the_engine_is_asked_only_when_the_input_is_paid() -> None:
    duet = opened()
    duet.ask(ask())
    while duet.deliver_to_host():
        pass
    assert (duet.host.state, duet.run) == ("quoting", None)
    duet.count()
    assert (duet.host.state, duet.run) == ("quoting", None)
    duet.deliver_to_client()
    assert [type(CODEC.decode(data)) for data in duet.to_host] == [Voucher]
    duet.deliver_to_host()
    assert duet.host.state == "serving"
    assert duet.run is not None
    assert [voucher.amount for voucher in duet.paid] == [duet.due(15, 0)]


def test_a_client_that_counts_pays_with_its_prompt_and_saves_a_round_trip() -> None:
    duet = opened(reused=0)
    duet.client_does(exact_ask())
    duet.turn += 1
    assert [type(CODEC.decode(data)).__name__ for data in duet.to_host] == ["Prompt", "Voucher"]
    while duet.deliver_to_host():
        pass
    assert duet.paid == []
    duet.count()
    assert len(duet.paid) == 1
    assert duet.run is not None
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnDone)
    duet.settled()


@pytest.mark.parametrize("late", [False, True], ids=["before the quote", "crossing the quote"])
def test_an_early_voucher_that_is_not_the_quotes_is_dropped_and_the_right_one_follows(late: bool) -> None:
    duet = opened(reused=5)
    duet.client_does(exact_ask())
    duet.turn += 1
    duet.deliver_to_host()
    if late:
        duet.count()
        duet.deliver_to_host()
    else:
        duet.deliver_to_host()
        duet.count()
    assert duet.paid == []
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnDone)
    assert [voucher.tokens_in for voucher in duet.signed][:2] == [20, 15]
    duet.settled()


def test_an_early_voucher_for_a_turn_that_is_refused_does_no_harm() -> None:
    duet = opened(reused=0)
    duet.client_does(exact_ask())
    duet.turn += 1
    duet.deliver_to_host()
    duet.host_does(CountFailed(1, "capacity", "full", 1.0))
    duet.counts.clear()
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnFailed)
    assert duet.host.state == "idle"
    duet.ask(ask())
    duet.settle()
    assert isinstance(duet.outcomes[1], TurnDone)
    duet.settled()


def test_only_a_first_turn_is_paid_before_its_quote() -> None:
    duet = opened(answer_tokens=5, reused=0)
    for expected in (2, 1):
        duet.turn += 1
        duet.delivered = []
        duet.client_does(exact_ask())
        assert len(duet.to_host) == expected
        duet.settle()
    duet.settled()


def test_a_prompt_that_can_not_be_counted_fails_its_turn_and_costs_nothing() -> None:
    duet = opened()
    duet.ask(ask())
    duet.deliver_to_host()
    duet.counts.clear()
    duet.host_does(CountFailed(1, "context_overflow", "too long"))
    duet.settle()
    assert duet.outcomes == [TurnFailed("context_overflow", "too long")]
    assert duet.signed == []
    assert [served.reason for served in duet.served] == ["context_overflow"]
    duet.ask(ask())
    duet.settle()
    assert isinstance(duet.outcomes[1], TurnDone)
    duet.settled()


@pytest.mark.parametrize("moment", ["counting", "quoted", "paid"])
def test_a_turn_cancelled_before_its_input_is_paid_costs_nothing(moment: str) -> None:
    duet = opened()
    duet.ask(ask())
    duet.deliver_to_host()
    if moment != "counting":
        duet.count()
    if moment == "paid":
        duet.deliver_to_client()
    duet.client_does(CancelTurn())
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "cancelled"
    assert outcome.done.tokens_in == (20 if moment == "paid" else 0)
    duet.settled()
    duet.ask(ask())
    duet.settle()
    assert isinstance(duet.outcomes[-1], TurnDone)
    duet.settled()


def test_an_early_voucher_and_a_cancel_at_once_leave_both_sides_agreed() -> None:
    for counted_first in (False, True):
        duet = opened(reused=0)
        duet.client_does(exact_ask())
        duet.turn += 1
        duet.client_does(CancelTurn())
        duet.deliver_to_host()
        if counted_first:
            duet.count()
        while duet.deliver_to_host():
            pass
        duet.settle()
        (outcome,) = duet.outcomes
        assert isinstance(outcome, TurnDone)
        assert outcome.done.tokens_in == (20 if counted_first else 0)
        duet.ask(ask())
        duet.settle()
        assert isinstance(duet.outcomes[-1], TurnDone)
        duet.settled()


# ---- the deposit


def test_what_the_deposit_affords_is_delivered_to_the_last_token_and_text_then_the_turn_fails() -> None:
    terms = replace(
        TERMS, price_in=1_000_000, price_out=1_000_000, session_fee=10, tip=0, deposit=10 + 15 + 40
    )
    duet = opened(terms)
    duet.ask(ask())
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnFailed)
    assert outcome.code == "payment_required"
    assert "the deposit is used up" in outcome.detail
    assert duet.delivered == duet.expected(40)
    assert duet.text.count(" ") == 40
    assert duet.client.last_voucher is not None
    assert duet.client.last_voucher.amount == terms.deposit
    duet.settled()
    duet.ask(ask())  # and the next one fails here
    assert isinstance(duet.outcomes[-1], TurnFailed)
    assert duet.outcomes[-1].code == "payment_required"
    assert not duet.to_host


def test_an_answer_that_ends_with_the_deposit_is_done() -> None:
    terms = replace(
        TERMS, price_in=1_000_000, price_out=1_000_000, session_fee=10, tip=0, deposit=10 + 15 + 40
    )
    for duet, tokens_max in ((opened(terms, 40), 512), (opened(terms, 100), 40)):
        duet.ask(ask(tokens_max))
        duet.settle()
        assert isinstance(duet.outcomes[0], TurnDone)
        assert len(duet.delivered) == 40
        duet.settled()


def test_an_input_beyond_the_deposit_is_refused_with_numbers_and_not_billed() -> None:
    terms = replace(ONE_A_TOKEN, deposit=25)
    duet = opened(terms)
    duet.ask(ask())
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnFailed)
    assert outcome.code == "payment_required"
    assert "26" in outcome.detail
    assert "25" in outcome.detail
    assert duet.runs == 0
    assert duet.signed == []


def test_a_client_that_counts_does_not_even_send_a_prompt_it_can_not_pay() -> None:
    terms = replace(ONE_A_TOKEN, deposit=30)
    duet = opened(terms, reused=0)
    duet.client_does(exact_ask())
    assert [outcome.code for outcome in duet.outcomes] == ["payment_required"]  # type: ignore[union-attr]
    assert not duet.to_host


# ---- endings


def test_closing_settles_at_once() -> None:
    duet = opened(answer_tokens=5)
    duet.ask(ask())
    duet.settle()
    duet.client_does(End())
    duet.settle()
    assert duet.outcomes[-1] == Ended()
    assert duet.finished == [Finished("closed by the client")]


def test_a_lost_stream_lingers_and_a_stalled_one_too() -> None:
    duet = opened()
    duet.ask(ask())
    duet.settle()
    duet.lose()
    assert duet.finished == [Finished("lost", lingers=True)]
    duet = opened()
    duet.fire("idle", host=True)
    assert [finished.lingers for finished in duet.finished] == [True]


def test_draining_waits_for_the_last_voucher() -> None:
    duet = opened(answer_tokens=10)
    duet.ask(ask())
    duet.deliver_to_host()
    duet.count()
    duet.deliver_to_client()
    duet.deliver_to_host()
    duet.host_does(Drain())
    while duet.engine():
        pass
    assert (duet.host.state, duet.channel.owed) == ("idle", True)
    duet.settle()
    assert duet.finished == [Finished("drained")]
    assert duet.channel.best == duet.client.last_voucher
    assert isinstance(duet.outcomes[0], TurnDone)


def test_a_client_that_does_not_pay_while_the_host_drains_is_left_after_the_stall_time() -> None:
    duet = opened(answer_tokens=10)
    duet.ask(ask())
    duet.deliver_to_host()
    duet.count()
    duet.deliver_to_client()
    duet.deliver_to_host()
    while duet.engine():
        pass
    duet.host_does(Drain())
    assert not duet.finished
    duet.fire("stall", host=True)
    assert len(duet.finished) == 1


def test_a_free_host_and_a_paid_one_do_not_serve_each_others_clients() -> None:
    class Mixed(PaidDuet):
        def _cast(self, terms: HostTerms) -> tuple[HostSession, ClientSession]:
            return new_host(replace(terms, payment=None)), super()._cast(terms)[1]

    duet = Mixed()
    duet.client_does(Start())
    duet.settle()
    assert [outcome.code for outcome in duet.outcomes] == ["bad_request"]  # type: ignore[union-attr]
    assert duet.relays == []


# ---- any interleaving

Step = tuple[str, int, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from(["host", "client", "engine", "engine", "count", "late"]),
        st.integers(0, 150),
        st.booleans(),
    ),
    max_size=150,
)


def play(duet: PaidDuet, script: list[Step]) -> None:
    moves: dict[str, Callable[[int, bool], object]] = {
        "host": lambda _count, _hold: duet.deliver_to_host(),
        "client": lambda _count, _hold: duet.deliver_to_client(),
        "engine": lambda count, hold: duet.engine(count, hold=hold),
        "late": lambda _count, _hold: duet.late_engine(),
        "count": lambda _count, _hold: duet.count(),
    }
    for kind, count, hold in script:
        moves[kind](count, hold)


prices = st.sampled_from([0, 1, 999_999, 1_000_000, 1_000_001, 123_456_789])


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(1, 80), st.booleans(), st.data())
def test_any_interleaving_bills_what_was_delivered_and_nothing_else(
    script: list[Step], chunk: int, exact: bool, data: st.DataObject
) -> None:
    answer, tokens_max = data.draw(st.integers(0, 300)), data.draw(st.sampled_from([1, 31, 64, 100, 512]))
    deposit = TERMS.session_fee + TERMS.tip + data.draw(st.integers(0, 60_000))
    terms = replace(TERMS, price_in=data.draw(prices), price_out=data.draw(prices), deposit=deposit)
    duet = opened(terms, answer, reused=data.draw(st.integers(0, 20)))
    for turn in range(2):
        before = len(duet.outcomes)
        duet.ask(replace(ask(tokens_max), input_exact=20 if exact else None))
        play(duet, script)
        duet.settle(chunk)
        (outcome,) = duet.outcomes[before:]
        whole = duet.expected(tokens_max)
        if isinstance(outcome, TurnDone):
            assert duet.delivered == whole
        else:
            assert isinstance(outcome, TurnFailed)
            assert outcome.code == "payment_required"
            assert duet.delivered == whole[: len(duet.delivered)]
            one_more = duet.due(20 * (turn + 1), len(whole) * (turn + 1) + 1)
            assert one_more > terms.deposit, "refused what could be paid"
        assert not duet.finished
        duet.settled()


ENDINGS: dict[str, Callable[[PaidDuet], object]] = {
    "cancel": lambda duet: duet.client_does(CancelTurn()),
    "fail": lambda duet: duet.fail_engine(),
    "drain": lambda duet: duet.host_does(Drain()),
    "end": lambda duet: duet.client_does(End()),
    "lost": lambda duet: duet.lose(),
}


@settings(max_examples=150, deadline=None)
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
    duet = opened(answer_tokens=300, reused=reused)
    duet.ask(replace(ask(), input_exact=exact))
    play(duet, before)
    ENDINGS[ending](duet)
    play(duet, after)
    ENDINGS[second](duet)
    duet.settle()
    assert 1 <= len(duet.outcomes) <= 2
    assert len(duet.served) <= 1
    assert duet.run is None
    assert not any(isinstance(outcome, SessionFailed) and outcome.fault for outcome in duet.outcomes)
    assert not any(finished.fault for finished in duet.finished)
    best = duet.channel.best
    paid_out = best.tokens_out if best is not None else 0
    assert duet.host.session is not None
    assert duet.host.session.meter.tokens_out - paid_out <= WINDOW


def test_nothing_is_acknowledged_in_a_paid_session() -> None:
    duet = opened()
    duet.ask(ask())
    said: list[object] = []
    while any(duet._moves(16)):
        said += [CODEC.decode(data) for data in duet.to_host]
    assert any(isinstance(message, Voucher) for message in said)
    assert not any(isinstance(message, Ack | Quote) for message in said)
