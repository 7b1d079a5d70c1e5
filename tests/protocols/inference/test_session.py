"""Client and host together: whatever the interleaving, every token arrives once and is receipted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.inference.commands import (
    Drain,
    End,
    Ended,
    Finished,
    GenTokens,
    SessionFailed,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import CODEC, WINDOW, Checkpoint, Done, Tokens
from p2pnode.protocols.inference.replay import Piece
from tests.examples import examples
from tests.protocols.inference.pair import Pair, Step, ask, credit_of, text_of, token, turn_of


def opened(answer_tokens: int = 100) -> Pair:
    pair = Pair(answer_tokens=answer_tokens)
    pair.open()
    return pair


def whole_text(pair: Pair) -> str:
    return "".join(text_of(pair.turn, n) for n in range(len(pair.delivered)))


@pytest.mark.parametrize("answer", [0, 1, 31, 32, 33, 63, 64, 65, 200])
@pytest.mark.parametrize("tokens_max", [1, 32, 64, 65, 512])
def test_an_answer_arrives_whole_whatever_its_length(answer: int, tokens_max: int) -> None:
    pair = opened(answer)
    pair.ask(ask(tokens_max))
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone)
    count = min(answer, tokens_max)
    assert pair.delivered == pair.expected(tokens_max)
    assert pair.text == whole_text(pair)
    assert (outcome.done.tokens_in, outcome.done.reused, outcome.done.tokens_out) == (20, 5, count)
    assert outcome.done.reason == ("stop" if answer <= tokens_max else "length")
    assert [(s.tokens_in, s.tokens_out) for s in pair.served] == [(15, count)]


@pytest.mark.parametrize(("found", "told"), [("END", "END"), ("", ""), ("end", "")])
def test_a_turn_tells_which_stop_string_that_was_asked_for_ended_it(found: str, told: str) -> None:
    pair = opened(60)
    pair.ask(ask(stop=("\n\n", "END")))
    while not pair.end_engine(found):
        pair.deliver_to_host()
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone)
    assert (outcome.done.reason, outcome.done.stop) == ("stop", told)


def test_many_turns_share_one_receipt_chain() -> None:
    pair = opened(40)
    for turn in range(1, 6):
        pair.ask(ask())
        pair.settle()
        assert len(pair.outcomes) == turn
        assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.host.session is not None
    assert pair.client.held is not None
    meter, other = pair.host.session.meter, pair.client.held.meter
    assert (meter.tokens_in, meter.tokens_out) == (other.tokens_in, other.tokens_out) == (75, 200)
    assert meter.root == other.root


def test_a_client_whose_acks_are_late_pauses_the_engine_and_loses_nothing() -> None:
    pair = opened(300)
    pair.ask(ask())
    while pair.deliver_to_host() or pair.engine():
        pass  # the client hears nothing, so it acknowledges nothing
    assert pair.run is None
    assert credit_of(pair.host).sent == WINDOW
    assert WINDOW < turn_of(pair.host).queue.waiting <= WINDOW + 16
    pair.settle()
    assert pair.runs > 1
    assert pair.delivered == pair.expected(512)
    assert pair.text == whole_text(pair)
    assert isinstance(pair.outcomes[-1], TurnDone)


@pytest.mark.parametrize("tokens_max", [129, 130, 140, 160])
def test_a_pause_between_the_last_token_and_done_still_ends_the_turn(tokens_max: int) -> None:
    """All asked-for tokens are made, the engine is cancelled before its Done, then credit comes."""
    pair = opened(1000)
    pair.ask(ask(tokens_max))
    while pair.deliver_to_host():
        pass
    pair.engine()
    assert pair.run is not None
    order = pair.run.order
    pair.engine(WINDOW)  # sent
    pair.engine(tokens_max - WINDOW)  # all of the rest, in one chunk that trips the pause
    assert pair.run is None
    pair.host_does(GenTokens(order.run, Piece(text="late")))
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "length"
    assert pair.delivered == pair.expected(tokens_max)


def test_held_text_survives_a_pause() -> None:
    pair = opened(400)
    pair.ask(ask())
    while pair.deliver_to_host() or pair.engine(7, hold=True):
        pass
    pair.settle(7)
    assert pair.delivered == pair.expected(512)
    assert pair.text == whole_text(pair)


def test_a_text_only_tail_needs_no_credit() -> None:
    pair = opened(1000)
    pair.ask(ask(WINDOW))
    pair.check = lambda: None  # type: ignore[method-assign] # the last id is made up
    while pair.deliver_to_host():
        pass
    pair.engine()
    assert pair.run is not None
    run = pair.run.order.run
    pair.engine(40)
    pair.engine(23, hold=True)
    assert credit_of(pair.host).sent == 63
    pair.host_does(GenTokens(run, Piece(ids=(1,))))
    before = len(pair.to_client)
    pair.host_does(GenTokens(run, Piece(text="the tail")))
    assert credit_of(pair.host).left == 0
    frames = [CODEC.decode(data) for data in list(pair.to_client)[before:]]
    assert frames == [Tokens(turn=1, index=WINDOW, ids=(), text="the tail")]


def test_cancelling_at_the_host_stops_the_engine_and_bills_what_was_delivered() -> None:
    pair = opened(1000)
    pair.ask(ask())
    for _ in range(6):
        pair.deliver_to_host()
        pair.engine(10)
        pair.deliver_to_client()
    pair.cancel()
    pair.cancel()
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "cancelled"
    assert outcome.done.tokens_out == len(pair.delivered) < 1000
    assert pair.run is None
    pair.ask(ask(10))
    pair.settle()
    assert pair.delivered == pair.expected(10)


def test_a_cancel_that_crosses_done_is_harmless() -> None:
    pair = opened(5)
    pair.ask(ask())
    while pair.deliver_to_host() or pair.engine():
        pass
    pair.cancel()  # Done is on its way already
    pair.settle()
    pair.ask(ask())
    pair.settle()
    assert [type(outcome) for outcome in pair.outcomes] == [TurnDone, TurnDone]
    assert not pair.finished


def test_a_failing_engine_fails_the_turn_and_the_session_goes_on() -> None:
    pair = opened(100)
    pair.ask(ask())
    pair.deliver_to_host()
    pair.engine()
    pair.engine(40)
    pair.fail_engine("capacity", "é" * 600)
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnFailed)
    assert (outcome.code, outcome.retry_after_s) == ("capacity", 1.0)
    assert len(outcome.detail.encode()) <= 512
    assert len(pair.delivered) == 40
    pair.ask(ask())
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)


def test_draining_lets_the_present_turn_finish_and_no_other() -> None:
    pair = opened(100)
    pair.ask(ask())
    pair.deliver_to_host()
    pair.host_does(Drain())
    pair.settle()
    done, failed = pair.outcomes
    assert isinstance(done, TurnDone)
    assert isinstance(failed, SessionFailed)
    assert (failed.code, failed.fault) == ("shutting_down", False)
    assert pair.finished == [Finished("drained")]


def test_draining_while_a_prompt_is_read_ends_the_session() -> None:
    pair = opened()
    pair.ask(ask(content="x" * 30_000, input_max=40_000))
    pair.to_host.clear()
    pair.host_does(Drain())
    pair.settle()
    assert [type(outcome) for outcome in pair.outcomes] == [SessionFailed]
    assert pair.finished == [Finished("drained")]


def test_closing_ends_both_sides() -> None:
    pair = opened()
    pair.client_does(End())
    pair.settle()
    assert pair.outcomes == [Ended()]
    assert pair.finished == [Finished("closed by the client")]


def test_long_text_is_cut_into_frames_any_peer_takes() -> None:
    pair = opened(1000)
    pair.ask(ask())
    pair.deliver_to_host()
    pair.engine()
    assert pair.run is not None
    pair.host_does(GenTokens(pair.run.order.run, Piece(ids=tuple(range(60)), text="€" * 20_000)))
    frames = [CODEC.decode(data) for data in pair.to_client]
    texts = [frame.text for frame in frames if isinstance(frame, Tokens)]
    assert "".join(texts) == "€" * 20_000


def test_an_engine_that_overshoots_does_not_make_the_host_break_the_protocol() -> None:
    pair = opened(1000)
    pair.ask(ask(10))
    pair.deliver_to_host()
    pair.engine()
    assert pair.run is not None
    pair.run.end = 50
    pair.run.reason = "length"
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnDone)
    assert pair.delivered == pair.expected(10)


@pytest.mark.parametrize(("prefix", "spare"), [((), 0), ((5, 6), 4096)])
def test_an_engine_that_babbles_does_not_make_the_host_break_the_protocol(
    prefix: tuple[int, ...], spare: int
) -> None:
    pair = opened(1000)
    order = ask()
    pair.ask(replace(order, body=replace(order.body, prefix=prefix)))
    pair.deliver_to_host()
    pair.engine()
    assert pair.run is not None
    for _ in range(5):
        pair.host_does(GenTokens(pair.run.order.run, Piece(text="€" * 1_000)))
    while pair.deliver_to_client():
        pass
    assert pair.client.state == "busy"
    assert pair.text == "€" * (spare // 3)
    pair.host_does(GenTokens(pair.run.order.run, Piece(ids=(token(1, 0),), text="more")))
    while pair.deliver_to_client():
        pass
    assert pair.client.state == "busy"
    assert pair.text == "€" * (spare // 3) + "more"


def test_an_engine_that_says_nothing_in_a_chunk_sends_no_frame() -> None:
    pair = opened(10)
    pair.ask(ask())
    pair.deliver_to_host()
    pair.engine()
    assert pair.run is not None
    before = len(pair.to_client)
    pair.host_does(GenTokens(pair.run.order.run, Piece(text="")))
    assert len(pair.to_client) == before


def test_each_checkpoint_comes_at_32_tokens_and_at_the_end() -> None:
    pair = opened(70)
    pair.ask(ask())
    seen: list[object] = []
    while pair.deliver_to_host() or pair.engine(9) or pair.to_client:
        while pair.to_client:
            seen.append(CODEC.decode(pair.to_client[0]))
            pair.deliver_to_client()
    assert [each.tokens_out for each in seen if isinstance(each, Checkpoint)] == [32, 64, 70]
    assert isinstance(seen[-1], Done)


# ---- any interleaving

steps = st.lists(
    st.tuples(
        st.sampled_from(["host", "client", "engine", "engine", "late"]), st.integers(0, 150), st.booleans()
    ),
    max_size=150,
)


@examples(200)
@given(steps, st.integers(0, 400), st.sampled_from([1, 31, 64, 100, 300, 512]), st.integers(1, 80))
def test_any_interleaving_delivers_every_token_once_in_order(
    script: list[Step], answer: int, tokens_max: int, chunk: int
) -> None:
    pair = opened(answer)
    pair.ask(ask(tokens_max))
    pair.play(script)
    pair.settle(chunk)
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone), outcome
    assert pair.delivered == pair.expected(tokens_max)
    assert pair.text == whole_text(pair)
    assert outcome.done.tokens_out == len(pair.delivered)
    assert not pair.finished


ENDINGS: dict[str, Callable[[Pair], object]] = {
    "cancel": lambda pair: pair.cancel(),
    "fail": lambda pair: pair.fail_engine(),
    "drain": lambda pair: pair.host_does(Drain()),
    "end": lambda pair: pair.client_does(End()),
    "lost": lambda pair: pair.close(),
}


@examples(200)
@given(steps, st.sampled_from(sorted(ENDINGS)), steps, st.sampled_from(sorted(ENDINGS)))
def test_however_a_turn_ends_it_ends_exactly_once(
    before: list[Step], ending: str, after: list[Step], second: str
) -> None:
    pair = opened(300)
    pair.ask(ask())
    pair.play(before)
    ENDINGS[ending](pair)
    pair.play(after)
    ENDINGS[second](pair)
    pair.settle()
    assert 1 <= len(pair.outcomes) <= 2
    if len(pair.outcomes) == 2:  # the turn, and then the session
        assert isinstance(pair.outcomes[0], TurnDone | TurnFailed)
        assert isinstance(pair.outcomes[1], SessionFailed | Ended)
    assert len(pair.served) <= 1
    assert pair.run is None
    assert not any(isinstance(o, SessionFailed) and o.fault for o in pair.outcomes)
    assert not any(f.fault for f in pair.finished)
