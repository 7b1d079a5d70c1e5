"""Client and host together: whatever the interleaving, every token arrives once and is receipted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.protocols.inference.commands import (
    CancelTurn,
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
from tests.protocols.inference.duet import Duet, ask, queue_of, text_of, token


def opened(answer_tokens: int = 100) -> Duet:
    duet = Duet(answer_tokens=answer_tokens)
    duet.open()
    return duet


def whole_text(duet: Duet) -> str:
    return "".join(text_of(duet.turn, n) for n in range(len(duet.delivered)))


@pytest.mark.parametrize("answer", [0, 1, 31, 32, 33, 63, 64, 65, 200])
@pytest.mark.parametrize("tokens_max", [1, 32, 64, 65, 512])
def test_an_answer_arrives_whole_whatever_its_length(answer: int, tokens_max: int) -> None:
    duet = opened(answer)
    duet.ask(ask(tokens_max))
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    count = min(answer, tokens_max)
    assert duet.delivered == duet.expected(tokens_max)
    assert duet.text == whole_text(duet)
    assert (outcome.done.tokens_in, outcome.done.reused, outcome.done.tokens_out) == (20, 5, count)
    assert outcome.done.reason == ("stop" if answer <= tokens_max else "length")
    assert [(s.tokens_in, s.tokens_out) for s in duet.served] == [(15, count)]


def test_many_turns_share_one_receipt_chain() -> None:
    duet = opened(40)
    for turn in range(1, 6):
        duet.ask(ask())
        duet.settle()
        assert len(duet.outcomes) == turn
        assert isinstance(duet.outcomes[-1], TurnDone)
    assert duet.host.session is not None
    assert duet.client.held is not None
    meter, other = duet.host.session.meter, duet.client.held.meter
    assert (meter.tokens_in, meter.tokens_out) == (other.tokens_in, other.tokens_out) == (75, 200)
    assert meter._chain.root == other._chain.root


def test_a_client_whose_acks_are_late_pauses_the_engine_and_loses_nothing() -> None:
    duet = opened(300)
    duet.ask(ask())
    while duet.deliver_to_host() or duet.engine():
        pass  # the client hears nothing, so it acknowledges nothing
    assert duet.run is None
    assert queue_of(duet.host).sent == WINDOW
    assert WINDOW < queue_of(duet.host).waiting <= WINDOW + 16
    duet.settle()
    assert duet.runs > 1
    assert duet.delivered == duet.expected(512)
    assert duet.text == whole_text(duet)
    assert isinstance(duet.outcomes[-1], TurnDone)


@pytest.mark.parametrize("tokens_max", [129, 130, 140, 160])
def test_a_pause_between_the_last_token_and_done_still_ends_the_turn(tokens_max: int) -> None:
    """All asked-for tokens are made, the engine is cancelled before its Done, then credit comes."""
    duet = opened(1000)
    duet.ask(ask(tokens_max))
    while duet.deliver_to_host():
        pass
    duet.engine()
    assert duet.run is not None
    order = duet.run.order
    duet.engine(WINDOW)  # sent
    duet.engine(tokens_max - WINDOW)  # all of the rest, in one chunk that trips the pause
    duet.run = None
    duet.host_does(GenTokens(order.run, (), "late"))
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "length"
    assert duet.delivered == duet.expected(tokens_max)


def test_held_text_survives_a_pause() -> None:
    duet = opened(400)
    duet.ask(ask())
    while duet.deliver_to_host() or duet.engine(7, hold=True):
        pass
    duet.settle(7)
    assert duet.delivered == duet.expected(512)
    assert duet.text == whole_text(duet)


def test_a_text_only_tail_needs_no_credit() -> None:
    duet = opened(1000)
    duet.ask(ask(WINDOW))
    duet.check = lambda: None  # type: ignore[method-assign] # the last id is made up
    while duet.deliver_to_host():
        pass
    duet.engine()
    assert duet.run is not None
    run = duet.run.order.run
    duet.engine(40)
    duet.engine(23, hold=True)
    assert queue_of(duet.host).sent == 63
    duet.host_does(GenTokens(run, (1,), ""))
    before = len(duet.to_client)
    duet.host_does(GenTokens(run, (), "the tail"))
    assert queue_of(duet.host).credit == 0
    frames = [CODEC.decode(data) for data in list(duet.to_client)[before:]]
    assert frames == [Tokens(seq=WINDOW, ids=(), text="the tail")]


def test_cancelling_at_the_host_stops_the_engine_and_bills_what_was_delivered() -> None:
    duet = opened(1000)
    duet.ask(ask())
    for _ in range(6):
        duet.deliver_to_host()
        duet.engine(10)
        duet.deliver_to_client()
    duet.client_does(CancelTurn())
    duet.client_does(CancelTurn())
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "cancelled"
    assert outcome.done.tokens_out == len(duet.delivered) < 1000
    assert duet.run is None
    duet.ask(ask(10))
    duet.settle()
    assert duet.delivered == duet.expected(10)


def test_a_cancel_that_crosses_done_is_harmless() -> None:
    duet = opened(5)
    duet.ask(ask())
    while duet.deliver_to_host() or duet.engine():
        pass
    duet.client_does(CancelTurn())  # Done is on its way already
    duet.settle()
    duet.ask(ask())
    duet.settle()
    assert [type(outcome) for outcome in duet.outcomes] == [TurnDone, TurnDone]
    assert not duet.finished


def test_a_failing_engine_fails_the_turn_and_the_session_goes_on() -> None:
    duet = opened(100)
    duet.ask(ask())
    duet.deliver_to_host()
    duet.engine()
    duet.engine(40)
    duet.fail_engine("capacity", "é" * 600)
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnFailed)
    assert (outcome.code, outcome.retry_after_s) == ("capacity", 1.0)
    assert len(outcome.detail.encode()) <= 512
    assert len(duet.delivered) == 40
    duet.ask(ask())
    duet.settle()
    assert isinstance(duet.outcomes[-1], TurnDone)


def test_draining_lets_the_present_turn_finish_and_no_other() -> None:
    duet = opened(100)
    duet.ask(ask())
    duet.deliver_to_host()
    duet.host_does(Drain())
    duet.settle()
    done, failed = duet.outcomes
    assert isinstance(done, TurnDone)
    assert isinstance(failed, SessionFailed)
    assert (failed.code, failed.fault) == ("shutting_down", False)
    assert duet.finished == [Finished("drained")]


def test_draining_while_a_prompt_is_read_ends_the_session() -> None:
    duet = opened()
    duet.ask(ask(content="x" * 30_000, input_max=40_000))
    duet.to_host.clear()
    duet.host_does(Drain())
    duet.settle()
    assert [type(outcome) for outcome in duet.outcomes] == [SessionFailed]
    assert duet.finished == [Finished("drained")]


def test_closing_ends_both_sides() -> None:
    duet = opened()
    duet.client_does(End())
    duet.settle()
    assert duet.outcomes == [Ended()]
    assert duet.finished == [Finished("closed by the client")]


def test_long_text_is_cut_into_frames_any_peer_takes() -> None:
    duet = opened(1000)
    duet.ask(ask())
    duet.deliver_to_host()
    duet.engine()
    assert duet.run is not None
    duet.host_does(GenTokens(duet.run.order.run, tuple(range(60)), "€" * 20_000))
    frames = [CODEC.decode(data) for data in duet.to_client]
    texts = [frame.text for frame in frames if isinstance(frame, Tokens)]
    assert "".join(texts) == "€" * 20_000


def test_an_engine_that_overshoots_does_not_make_the_host_break_the_protocol() -> None:
    duet = opened(1000)
    duet.ask(ask(10))
    duet.deliver_to_host()
    duet.engine()
    assert duet.run is not None
    duet.run.end = 50
    duet.run.reason = "length"
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnDone)
    assert duet.delivered == duet.expected(10)


def test_an_engine_that_babbles_does_not_make_the_host_break_the_protocol() -> None:
    duet = opened(1000)
    duet.ask(ask())
    duet.deliver_to_host()
    duet.engine()
    assert duet.run is not None
    for _ in range(5):
        duet.host_does(GenTokens(duet.run.order.run, (), "€" * 1_000))
    while duet.deliver_to_client():
        pass
    assert duet.client.state == "asking"
    assert duet.text == "€" * (4096 // 3)
    duet.host_does(GenTokens(duet.run.order.run, (token(1, 0),), "more"))
    while duet.deliver_to_client():
        pass
    assert duet.client.state == "asking"
    assert duet.text.endswith("€more")


def test_an_engine_that_says_nothing_in_a_chunk_sends_no_frame() -> None:
    duet = opened(10)
    duet.ask(ask())
    duet.deliver_to_host()
    duet.engine()
    assert duet.run is not None
    before = len(duet.to_client)
    duet.host_does(GenTokens(duet.run.order.run, (), ""))
    assert len(duet.to_client) == before


def test_each_checkpoint_comes_at_32_tokens_and_at_the_end() -> None:
    duet = opened(70)
    duet.ask(ask())
    seen: list[object] = []
    while duet.deliver_to_host() or duet.engine(9) or duet.to_client:
        while duet.to_client:
            seen.append(CODEC.decode(duet.to_client[0]))
            duet.deliver_to_client()
    assert [each.tokens_out for each in seen if isinstance(each, Checkpoint)] == [32, 64, 70]
    assert isinstance(seen[-1], Done)


# ---- any interleaving

Step = tuple[str, int, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from(["host", "client", "engine", "engine", "late"]), st.integers(0, 150), st.booleans()
    ),
    max_size=150,
)


def play(duet: Duet, script: list[Step]) -> None:
    moves: dict[str, Callable[[int, bool], object]] = {
        "host": lambda _count, _hold: duet.deliver_to_host(),
        "client": lambda _count, _hold: duet.deliver_to_client(),
        "engine": lambda count, hold: duet.engine(count, hold=hold),
        "late": lambda _count, _hold: duet.late_engine(),
    }
    for kind, count, hold in script:
        moves[kind](count, hold)


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(0, 400), st.sampled_from([1, 31, 64, 100, 300, 512]), st.integers(1, 80))
def test_any_interleaving_delivers_every_token_once_in_order(
    script: list[Step], answer: int, tokens_max: int, chunk: int
) -> None:
    duet = opened(answer)
    duet.ask(ask(tokens_max))
    play(duet, script)
    duet.settle(chunk)
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone), outcome
    assert duet.delivered == duet.expected(tokens_max)
    assert duet.text == whole_text(duet)
    assert outcome.done.tokens_out == len(duet.delivered)
    assert not duet.finished


ENDINGS: dict[str, Callable[[Duet], object]] = {
    "cancel": lambda duet: duet.client_does(CancelTurn()),
    "fail": lambda duet: duet.fail_engine(),
    "drain": lambda duet: duet.host_does(Drain()),
    "end": lambda duet: duet.client_does(End()),
    "lost": lambda duet: duet.close(),
}


@settings(max_examples=200, deadline=None)
@given(steps, st.sampled_from(sorted(ENDINGS)), steps, st.sampled_from(sorted(ENDINGS)))
def test_however_a_turn_ends_it_ends_exactly_once(
    before: list[Step], ending: str, after: list[Step], second: str
) -> None:
    duet = opened(300)
    duet.ask(ask())
    play(duet, before)
    ENDINGS[ending](duet)
    play(duet, after)
    ENDINGS[second](duet)
    duet.settle()
    assert 1 <= len(duet.outcomes) <= 2
    if len(duet.outcomes) == 2:  # the turn, and then the session
        assert isinstance(duet.outcomes[0], TurnDone | TurnFailed)
        assert isinstance(duet.outcomes[1], SessionFailed | Ended)
    assert len(duet.served) <= 1
    assert duet.run is None
    assert not any(isinstance(o, SessionFailed) and o.fault for o in duet.outcomes)
    assert not any(f.fault for f in duet.finished)
