"""Several turns in one session, on both machines: whatever the order, each is whole, and the money exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pnode.protocols.events import Command, Received, SetTimer
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.commands import (
    CancelTurn,
    CountFailed,
    Drain,
    SessionFailed,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.prompts import TurnPlaces
from tests.examples import examples
from tests.protocols.inference.paid_pair import TERMS, PaidPair
from tests.protocols.inference.pair import CLIENT, STREAM, Pair, ask, text_of
from tests.protocols.inference.restarts import Restarts
from tests.protocols.support import emitted, only, sent

EIGHT = HostTerms(n_ctx=16_384, turns_max=8, window=9 * 32)


class Many(PaidPair):
    """A paid session of up to eight turns at once."""

    grants = EIGHT


class ManyRestarts(Restarts):
    """The same with a host that dies."""

    grants = EIGHT


def many(answer_tokens: int = 100, terms: m.SessionTerms = TERMS, reused: int = 5) -> Many:
    pair = Many(terms, answer_tokens=answer_tokens, reused=reused)
    pair.open()
    return pair


def free(answer_tokens: int = 100, terms: HostTerms = EIGHT) -> Pair:
    pair = Pair(terms, answer_tokens)
    pair.open()
    return pair


def whole(pair: Pair, turn: int, tokens_max: int = 512) -> bool:
    """Whether all of a turn came, ids and text."""
    count = min(tokens_max, pair.answer_tokens)
    text = "".join(text_of(turn, n) for n in range(count))
    return len(pair.ids_of.get(turn, [])) == count and pair.text_of.get(turn, "") == text


def ended(pair: Pair) -> dict[int, TurnDone | TurnFailed]:
    """The outcomes, by turn; each has one."""
    found = [each for each in pair.outcomes if isinstance(each, TurnDone | TurnFailed)]
    keys = [each.key for each in found]
    assert len(set(keys)) == len(keys), "a turn was answered twice"
    return {each.key: each for each in found}


# ---- side by side


@pytest.mark.parametrize("make", [free, many])
def test_eight_turns_at_once_are_all_whole_and_none_waits_for_another(make: Callable[[int], Pair]) -> None:
    pair = make(100)
    for _ in range(8):
        pair.ask(ask())
    at_once = 0
    while any(pair.moves(4)):
        at_once = max(at_once, len(pair.live))
    assert at_once > 1, "several engines at once"
    assert all(isinstance(each, TurnDone) for each in ended(pair).values())
    assert len(ended(pair)) == 8
    assert all(whole(pair, turn) for turn in range(1, 9))


def test_eight_turns_pay_one_fee_and_for_each_token_once() -> None:
    pair = many(70)
    for _ in range(8):
        pair.ask(ask())
    pair.settle()
    pair.settled()
    assert (pair.billed_in, pair.billed_out) == (8 * 15, 8 * 70)
    assert pair.paid[-1].amount == pair.due(8 * 15, 8 * 70)


def test_a_receipt_comes_for_32_tokens_of_all_turns_together() -> None:
    pair = free(1000)
    for _ in range(8):
        pair.ask(ask())
    while pair.deliver_to_host() or pair.deliver_to_client():
        pass
    for run in tuple(pair.live.values()):
        pair.engine(4, run=run)
        pair.engine(4, run=run)
    said = [m.CODEC.decode(data) for data in pair.to_client]
    (receipt,) = [each for each in said if isinstance(each, m.Checkpoint)]
    assert receipt.tokens_out == 32, "counted by turn, none would be due"


def test_pay_credit_goes_round_the_turns() -> None:
    pair = free(1000)
    for _ in range(8):
        pair.ask(ask(1000))
    while pair.deliver_to_host() or pair.deliver_to_client():
        pass
    for _ in range(20):  # nothing is acknowledged
        for run in tuple(pair.live.values()):
            pair.engine(16, run=run)
    sent_of = [
        message.index + len(message.ids)
        for message in map(m.CODEC.decode, pair.to_client)
        if isinstance(message, m.Tokens)
    ]
    assert pair.host.session is not None
    credit = pair.host.session.channel.credit
    assert (credit.left, credit.sent) == (0, EIGHT.window)
    frames = [each for each in map(m.CODEC.decode, pair.to_client) if isinstance(each, m.Tokens)]
    totals = [sum(len(each.ids) for each in frames if each.turn == turn) for turn in range(1, 9)]
    assert max(totals) - min(totals) <= 16, (totals, sent_of)


def test_a_turn_that_nobody_reads_stops_alone_and_ends_alone() -> None:
    pair = many(2000)
    pair.idle.add(1)
    for _ in range(3):
        pair.ask(ask(1500))
    for _ in range(1000):
        pair.moves(16)
    done = ended(pair)
    assert set(done) == {2, 3}
    assert len(pair.ids_of[1]) == m.READ_CREDIT
    session = pair.host.session
    assert session is not None
    assert session.channel.credit.left == EIGHT.window, "it holds no pay credit"
    assert not [run for run in pair.live.values() if run.turn == 1], "and no engine"
    pair.now = session.turns[1].read_by or 0.0
    pair.fire("read", host=True)
    pair.settle()
    failed = ended(pair)[1]
    assert isinstance(failed, TurnFailed)
    assert failed.code == "stalled"
    assert pair.client.state == pair.host.state == "idle"
    pair.settled()


def test_a_turn_that_is_read_again_goes_on_and_says_why_it_paused() -> None:
    pair = many(1000)
    pair.idle.add(1)
    pair.ask(ask(1000))
    for _ in range(200):
        pair.moves(16)
    assert len(pair.ids_of[1]) == m.READ_CREDIT
    starts: list[tuple[int, str]] = []
    pair.idle.clear()
    pair.taken(1)
    while any(pair.moves(16)):
        heard = [message for message in map(m.CODEC.decode, pair.to_client) if isinstance(message, m.Tokens)]
        starts += [(message.index, message.start) for message in heard if message.start]
    assert whole(pair, 1, 1000)
    (first, *_) = starts
    assert first[1] == "credit"
    assert m.READ_CREDIT <= first[0] <= m.READ_CREDIT + m.WINDOW + 16
    pair.settled()


def test_a_client_may_not_give_more_read_credit_than_it_may_hold() -> None:
    pair = free(1000)
    pair.ask(ask())
    pair.deliver_to_host()
    out = pair.host.handle(Received(CLIENT, STREAM, m.Credit(turn=1, upto=m.READ_CREDIT + 1)), 0.0)
    assert only(m.Error, sent(out)).code == "bad_request"


def test_a_host_that_sends_past_the_read_credit_is_at_fault() -> None:
    pair = free(1000)
    pair.idle.add(1)
    pair.ask(ask(1000))
    for _ in range(200):
        pair.moves(16)
    more = m.Tokens(turn=1, index=m.READ_CREDIT, ids=(1,), text="x")
    pair.client_did(pair.client.handle(Received(CLIENT, STREAM, more), 0.0))
    failed = pair.outcomes[-1]
    assert isinstance(failed, SessionFailed)
    assert failed.fault


# ---- one turn's end is no other's


def test_cancelling_and_failing_turns_leaves_the_others_alone() -> None:
    pair = many(200)
    for _ in range(4):
        pair.ask(ask())
    for _ in range(25):
        pair.moves(8)
    pair.client_does(CancelTurn(2))
    (run,) = [each for each in pair.live.values() if each.turn == 3]
    pair.live = {run.order.run: run, **pair.live}
    del pair.live[run.order.run]
    pair.live[run.order.run] = run
    pair.fail_engine("internal", "boom")
    pair.settle()
    done = ended(pair)
    assert isinstance(done[1], TurnDone)
    assert isinstance(done[2], TurnDone)
    assert done[2].done.reason == "cancelled"
    assert isinstance(done[3], TurnFailed)
    assert whole(pair, 1)
    assert whole(pair, 4)
    pair.settled()


def test_a_turn_whose_prompt_can_not_be_counted_fails_alone() -> None:
    pair = many(50)
    for _ in range(3):
        pair.ask(ask())
    while pair.deliver_to_host():
        pass
    order = pair.counts.pop(1)
    pair.host_does(CountFailed(order.turn, "bad_request", "no"))
    pair.settle()
    done = ended(pair)
    assert [type(done[turn]) for turn in (1, 2, 3)] == [TurnDone, TurnFailed, TurnDone]
    pair.settled()


def test_a_draining_host_answers_every_turn_and_then_ends() -> None:
    pair = many(50)
    for size in (5, 5, 40_000):
        pair.ask(ask(content="x" * size, input_max=1 << 20))
    while not pair.live:
        pair.moves(4)
    assert pair.host.session is not None
    assert pair.host.session.turns[3].state == "reading"
    pair.host_does(Drain())
    pair.ask(ask())
    pair.settle()
    assert set(ended(pair)) == {1, 2, 3, 4}
    last = pair.outcomes[-1]
    assert isinstance(last, SessionFailed)
    assert last.code == "shutting_down"
    assert not pair.channel.owed


def test_a_deposit_that_is_used_up_ends_every_turn_with_a_receipt_and_the_same_word() -> None:
    terms = replace(TERMS, price_in=1_000_000, price_out=1_000_000, session_fee=10, tip=0, deposit=10 + 200)
    pair = many(1000, terms)
    for _ in range(3):
        pair.ask(ask())
    pair.settle(8)
    done = ended(pair)
    assert {each.code for each in done.values() if isinstance(each, TurnFailed)} == {"payment_required"}
    assert len(done) == 3
    assert pair.client.last_voucher is not None
    assert pair.client.last_voucher.amount == terms.deposit
    pair.settled()


def test_a_turn_that_the_deposit_can_not_pay_besides_the_others_is_refused_before_it_costs_anything() -> None:
    terms = replace(TERMS, price_in=1_000_000, price_out=1_000_000, session_fee=10, tip=0, deposit=10 + 120)
    pair = many(20, terms)
    for _ in range(3):
        pair.ask(ask())
    while pair.deliver_to_host() or pair.count() or pair.deliver_to_client():
        pass
    failed = ended(pair)[3]  # 3 x 15 input, and 32 of output for each: 141
    assert isinstance(failed, TurnFailed)
    assert "141" in failed.detail.replace("151", "141")
    pair.settle()
    pair.settled()


def test_more_turns_than_a_payer_may_have_over_all_its_sessions_are_refused_in_words() -> None:
    places = TurnPlaces(1)
    first, second = (free(50, replace(EIGHT, places=places)) for _ in range(2))
    for pair in (first, first, second, second):
        pair.ask(ask())
    for pair in (first, second):
        while pair.deliver_to_host() or pair.deliver_to_client():
            pass
    (failed,) = [each for each in second.outcomes if isinstance(each, TurnFailed)]
    assert failed.code == "rate_limited"
    first.settle()
    second.settle()
    second.ask(ask())
    second.settle()
    assert isinstance(second.outcomes[-1], TurnDone)


def test_who_asks_one_question_at_a_time_needs_no_place_of_its_origin() -> None:
    crowded = free(50, replace(EIGHT, places=TurnPlaces(0)))
    for turn in range(1, 4):
        crowded.ask(ask())
        crowded.settle()
        assert isinstance(ended(crowded)[turn], TurnDone)


def test_a_ninth_turn_at_once_fails_here_and_is_a_violation_there() -> None:
    pair = free(50)
    for _ in range(9):
        pair.ask(ask())
    (failed,) = pair.outcomes
    assert isinstance(failed, TurnFailed)
    assert (failed.cause, failed.key) == ("invalid", 9)
    while pair.deliver_to_host():
        pass
    ninth = m.Prompt(turn=9, part=0, last=False, total=10, body=b"x")
    out = pair.host.handle(Received(CLIENT, STREAM, ninth), 0.0)
    assert only(m.Error, sent(out)).code == "bad_request"


# ---- attacks: who loses what


def test_interleaved_turns_never_outrun_the_window() -> None:
    """A client that takes eight answers at once and pays for none of them gets one window, as with one."""
    pair = many(1000)
    for _ in range(8):
        pair.ask(ask())
    for _ in range(30):
        pair.moves(0)
    for _ in range(400):
        while pair.deliver_to_client():
            pass
        vouchers = [data for data in pair.to_host if isinstance(m.CODEC.decode(data), m.Voucher)]
        pair.to_host.clear()
        if pair.runs < 8:  # it pays the inputs, and no output
            pair.to_host.extend(data for data in vouchers if m.CODEC.decode(data).turn)
            while pair.deliver_to_host():
                pass
        for run in tuple(pair.live.values()):
            pair.engine(16, run=run)
    last = pair.paid[-1]
    assert pair.sent_out - last.tokens_out == EIGHT.window, "the pay for one window is all that is lost"
    lost = pair.channel.cost - last.amount
    assert lost <= pair.due(0, EIGHT.window) - TERMS.session_fee
    assert pair.live == {}, "and no engine works on"


def test_a_storm_of_cancels_costs_its_host_no_engine_and_keeps_nothing() -> None:
    pair = many(100)
    for turn in range(1, 400):
        pair.ask(ask())
        pair.deliver_to_host()
        pair.count()
        if turn % 3:
            pair.client_does(CancelTurn(turn))
        else:  # the quote crosses the cancel
            pair.client_does(CancelTurn(turn))
            pair.deliver_to_client()
        pair.settle(1)
    assert pair.runs == 0
    assert len(pair.channel.replay) <= 2 * 8 + 2
    assert pair.channel.quoted == {}
    assert pair.paid == []
    assert len(ended(pair)) == 399


def test_an_upload_that_trickles_holds_up_no_voucher() -> None:
    """A prompt of 100 KiB on a slow line: 32 KiB of it are on the way, and a voucher waits for no more."""
    pair = many(500)
    pair.ask(ask())
    for _ in range(30):
        pair.moves(0)
    pair.ask(ask(content="x" * 100_000, input_max=1 << 20))
    on_the_way = sum(
        len(message.body) for message in map(m.CODEC.decode, pair.to_host) if isinstance(message, m.Prompt)
    )
    assert on_the_way <= m.UNCONFIRMED_MAX
    paid = len(pair.paid)
    for _ in range(12):  # the host reads one part for each of its own frames
        pair.engine(16)
        pair.deliver_to_client()
        pair.deliver_to_host()
    assert len(pair.paid) > paid, "vouchers go between the parts"
    pair.settle()
    assert len(ended(pair)) == 2
    pair.settled()


def test_frames_of_two_turns_that_are_swapped_do_not_match_their_leaves() -> None:
    pair = free(20)
    for _ in range(2):
        pair.ask(ask())
    while pair.deliver_to_host() or pair.engine(20, run=next(iter(pair.live.values()), None)):
        pass
    heard = [m.CODEC.decode(data) for data in pair.to_client]
    frames = {each.turn: each for each in heard if isinstance(each, m.Tokens)}
    assert set(frames) == {1, 2}
    other = {1: 2, 2: 1}
    for message in heard:
        swapped = message
        if isinstance(message, m.Tokens):
            theirs = frames[other[message.turn]]
            swapped = replace(theirs, turn=message.turn)
        pair.ids_of.clear()  # what the pair itself checks at every step
        effects = pair.client.handle(Received(CLIENT, STREAM, swapped), 0.0)
        failed = [value for value in emitted(effects) if isinstance(value, SessionFailed)]
        if failed:
            assert failed[0].fault
            assert isinstance(message, m.Checkpoint)
            return
    raise AssertionError("the swap passed")


def test_the_prompt_deadline_is_that_of_the_first_prompt_that_is_late() -> None:
    pair = free(20)
    part = m.Prompt(turn=1, part=0, last=False, total=20_000, body=b"x")
    first = pair.host.handle(Received(CLIENT, STREAM, part), 0.0)
    later = pair.host.handle(Received(CLIENT, STREAM, replace(part, turn=2)), 9.0)
    assert only(SetTimer, first).key == "prompt"
    assert [each for each in later if isinstance(each, SetTimer)] == []
    again = pair.host.handle(Received(CLIENT, STREAM, m.Cancel(turn=1)), 10.0)
    assert only(SetTimer, again).at == only(SetTimer, first).at + 9


# ---- any order at all

kinds = ["ask", "ask", "cancel", "idle", "read", "host", "host", "client", "client", "engine", "engine"]
step = st.tuples(st.sampled_from([*kinds, "count", "late"]), st.integers(0, 90), st.booleans())
scripts = st.lists(step, max_size=90)


def moves_of(*names: str) -> list[tuple[str, int, bool]]:
    """These moves, each in its least form."""
    return [(name, 0, False) for name in names]


def play(pair: Pair, script: list[tuple[str, int, bool]]) -> None:
    """Make these moves, with up to eight turns; all is taken in the end."""
    for kind, number, hold in script:
        runs = list(pair.live.values())
        held = pair.client.held
        turns = list(held.turns) if held is not None else []
        match kind:
            case "ask":
                if len(turns) < 8 and pair.client.state in ("idle", "busy"):
                    tokens = [1, 31, 64, 100, 300][number % 5]
                    exact = 20 if hold and isinstance(pair, PaidPair) else None
                    pair.ask(replace(ask(tokens), input_exact=exact))
            case "cancel" if turns:
                pair.client_does(CancelTurn(turns[number % len(turns)]))
            case "idle" if turns:
                pair.idle.add(turns[number % len(turns)])
            case "read" if pair.idle:
                pair.taken_again(sorted(pair.idle)[number % len(pair.idle)])
            case "engine" if runs:
                pair.engine(number, hold=hold, run=runs[number % len(runs)])
            case "count":
                pair.count()
            case "host" | "client" | "late":
                pair.move(kind, number, hold=hold)
            case _:
                pass


def read_all(pair: Pair) -> None:
    for key in sorted(pair.idle):
        pair.taken_again(key)


def check_texts(pair: Pair) -> None:
    for turn, ids in pair.ids_of.items():
        text = "".join(text_of(turn, n) for n in range(len(ids)))
        assert text.startswith(pair.text_of.get(turn, ""))


@examples(150)
@given(scripts, st.integers(0, 400), st.integers(1, 60))
def test_free_turns_in_any_order_end_once_each_and_whole(
    script: list[tuple[str, int, bool]], answer: int, chunk: int
) -> None:
    pair = free(answer)
    play(pair, script)
    read_all(pair)
    pair.settle(chunk)
    done = ended(pair)
    assert set(done) == set(range(1, pair.turn + 1))
    assert all(isinstance(each, TurnDone) for each in done.values())
    check_texts(pair)
    assert not pair.finished


@examples(200)
# No answer of 0 tokens: a host that ends a paid turn so counts as one that failed it (test_paid_attacks.py).
@given(scripts, st.integers(1, 300), st.integers(1, 60), st.sampled_from([0, 5, 20]))
def test_paid_turns_in_any_order_cost_exactly_what_came(
    script: list[tuple[str, int, bool]], answer: int, chunk: int, reused: int
) -> None:
    pair = many(answer, reused=reused)
    play(pair, script)
    read_all(pair)
    pair.settle(chunk)
    done = ended(pair)
    assert set(done) == set(range(1, pair.turn + 1))
    assert all(isinstance(each, TurnDone) for each in done.values())
    for turn, each in done.items():
        assert isinstance(each, TurnDone)
        if each.done.reason != "cancelled":
            assert len(pair.ids_of.get(turn, [])) == each.done.tokens_out
    check_texts(pair)
    pair.settled()
    assert pair.billed_out == sum(map(len, pair.ids_of.values()))


@examples(150)
@given(
    st.lists(st.tuples(scripts, st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=4),
    st.integers(0, 200),
    st.sampled_from([0, 5, 20]),
)
@example(  # an engine request that was cancelled before its host died is not there after it
    [
        (moves_of("ask", "cancel", "host", "count", "host"), False, False, 0),
        ([], True, False, 0),
        (moves_of("ask", "host", "count", "late"), False, False, 0),
    ],
    1,
    20,
)
def test_wherever_streams_break_and_hosts_die_every_turn_ends_once_and_each_token_is_paid_once(
    lives: list[tuple[list[tuple[str, int, bool]], bool, bool, int]], answer: int, reused: int
) -> None:
    pair = ManyRestarts(answer_tokens=answer, reused=reused)
    pair.open()
    for script, dies, host_notices, forgets in lives:
        play(pair, script)
        if dies:
            pair.die(forgets=forgets)
            pair.start_again()
            pair.come_back()
        else:
            pair.lose(host_notices=host_notices)
            play(pair, [each for each in script if each[0] in ("engine", "count")])
            pair.resume()
        play(pair, script)
    read_all(pair)
    pair.settle()
    assert set(ended(pair)) == set(range(1, pair.turn + 1))
    check_texts(pair)
    pair.settled()
    held = pair.client.held
    assert held is not None
    assert held.meter.tokens_out == sum(map(len, pair.ids_of.values()))


def test_a_late_take_of_tokens_that_are_over_says_nothing() -> None:
    pair = free(5)
    pair.ask(ask())
    pair.settle()
    assert pair.client.handle(Command(CancelTurn(1)), 0.0) == []
