"""A paid session outlives its stream: nothing twice, nothing lost, nobody in without the voucher key."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.events import Command, Event, Received
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import resume_digest
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import (
    Finished,
    GenDone,
    Generate,
    GenTokens,
    Opened,
    Paid,
    Replaced,
    SessionFailed,
    Start,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.inference.replay import Piece
from p2pnode.protocols.wire import encode
from tests.examples import examples
from tests.protocols.inference.paid_pair import CLIENT_ID, VOUCHERS, PaidPair, resumed_client
from tests.protocols.inference.pair import HOLDER, HOST, STREAM, Pair, Step, ask, text_of, turn_of
from tests.protocols.support import MODEL, Identity, emitted, high_s, only, sent


def opened(answer_tokens: int = 100, reused: int = 5) -> PaidPair:
    pair = PaidPair(answer_tokens=answer_tokens, reused=reused)
    pair.open()
    return pair


def serving(tokens: int = 0, answer_tokens: int = 100) -> PaidPair:
    """A turn whose input is paid and of which the client has heard so many tokens, in frames of 8."""
    pair = opened(answer_tokens)
    pair.serve(tokens)
    return pair


def finish(pair: PaidPair) -> None:
    """The interrupted turn ends; the session takes another."""
    pair.settle()
    assert pair.host.state == "idle", pair.outcomes
    assert pair.client.state == "idle"
    pair.settled()
    pair.ask(ask(40))
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.delivered == pair.expected(40)
    pair.settled()


# ---- wherever it breaks


@pytest.mark.parametrize("host_notices", [True, False], ids=["both notice", "the host does not notice"])
@pytest.mark.parametrize("heard", [0, 8, 24, 32, 40, 64, 96])
def test_a_stream_lost_in_the_middle_of_an_answer(heard: int, host_notices: bool) -> None:
    pair = serving(heard, 200)
    pair.engine(20)  # on its way when the stream breaks
    pair.lose(host_notices=host_notices)
    pair.engine(30)  # made while there is none
    pair.resume()
    pair.settle()
    whole_after_resume(pair)
    assert len(pair.counts) == 0
    assert pair.billed_in == 15, "no second input"
    finish(pair)


def whole_after_resume(pair: PaidPair) -> None:
    """The turn that was under way ended by itself, whole."""
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone), outcome
    assert outcome.done.reason in ("stop", "length")
    assert pair.delivered == pair.expected(512)
    assert pair.text.count(" ") == len(pair.delivered)


def test_a_turn_goes_on_without_a_stream_as_far_as_its_credit_reaches() -> None:
    pair = serving(40, 1000)
    pair.lose()
    while pair.engine(16):
        pass
    session = pair.host.session
    assert session is not None
    assert session.holder is None
    assert session.channel.credit.sent == 32 + m.WINDOW, "not past the window"
    assert pair.run is None, "and the engine is paused"
    pair.resume()
    runs = pair.runs
    pair.settle()
    assert pair.runs > runs
    assert len(pair.outcomes) == 1
    assert pair.delivered == pair.expected(512)


@pytest.mark.parametrize("host_notices", [True, False])
def test_a_stream_lost_between_a_checkpoint_and_its_voucher(host_notices: bool) -> None:
    pair = serving(24)
    pair.engine(8)
    while pair.deliver_to_client():
        pass
    assert m.CODEC.decode(pair.to_host[0]).tokens_out == 32  # signed, and lost
    pair.lose(host_notices=host_notices)
    assert pair.channel.owed
    pair.resume()
    pair.settle()
    assert 32 in [voucher.tokens_out for voucher in pair.paid]
    whole_after_resume(pair)
    finish(pair)


@pytest.mark.parametrize("host_notices", [True, False])
def test_a_stream_lost_before_the_end_of_the_turn_was_seen(host_notices: bool) -> None:
    pair = serving(answer_tokens=40)
    while pair.engine():
        pass
    assert isinstance(m.CODEC.decode(pair.to_client[-1]), m.Done)
    for _ in range(len(pair.to_client) - 1):
        pair.deliver_to_client()
    pair.lose(host_notices=host_notices)
    pair.resume()
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "stop"  # it had ended by itself
    assert pair.delivered == pair.expected(512)
    finish(pair)


@pytest.mark.parametrize("host_notices", [True, False])
def test_a_stream_lost_at_rest(host_notices: bool) -> None:
    pair = serving(answer_tokens=10)
    pair.settle()
    pair.lose(host_notices=host_notices)
    pair.resume()
    assert pair.opened[-1] == Opened(pair.opened[0].session, MODEL, resumed=True)
    finish(pair)


@pytest.mark.parametrize("host_notices", [True, False])
@pytest.mark.parametrize("moment", ["prompt", "part", "count", "quote", "voucher"])
def test_a_stream_lost_before_the_input_was_paid_bills_it_once_if_the_prompt_came_whole(
    moment: str, host_notices: bool
) -> None:
    pair = opened()
    long = ask(content="x" * (30_000 if moment == "part" else 10), input_max=40_000)
    pair.granted = replace(pair.granted, n_ctx=32_768)
    pair.ask(long)
    if moment == "part":
        first = m.CODEC.decode(pair.to_host.popleft())
        half = replace(first, body=first.body[:100], last=False)
        pair.host_did(pair.host.handle(Received(CLIENT_ID.peer, STREAM, half), 0.0))
        assert turn_of(pair.host).state == "reading"
    elif moment != "prompt":
        pair.deliver_to_host()
    if moment in ("quote", "voucher"):
        pair.count()
    if moment == "voucher":
        pair.deliver_to_client()
        assert len(pair.signed) == 1
    pair.lose(host_notices=host_notices)
    pair.resume()
    pair.settle()
    if moment in ("prompt", "part"):
        (outcome,) = pair.outcomes
        assert isinstance(outcome, TurnDone)
        done = outcome.done
        assert (done.reason, done.tokens_in, done.tokens_out) == ("cancelled", 0, 0)
        assert pair.paid == pair.signed == []
    else:  # the host has the prompt: it goes on where it was
        whole_after_resume(pair)
        assert pair.billed_in == 15
        assert [voucher.tokens_in for voucher in pair.signed].count(15) >= 1
    finish(pair)


@pytest.mark.parametrize("reused", [0, 20], ids=["paid in advance", "nothing to pay"])
def test_a_quote_that_was_served_on_and_lost_is_said_again(reused: int) -> None:
    pair = opened(reused=reused)
    pair.ask(replace(ask(), input_exact=20))
    while pair.deliver_to_host():
        pass
    pair.count()
    assert pair.run is not None
    pair.engine()
    pair.engine(8)
    pair.lose()
    pair.resume()
    pair.settle()
    whole_after_resume(pair)
    assert pair.billed_in == (20 - reused)
    finish(pair)


def test_a_refused_turn_whose_refusal_was_lost_still_fails() -> None:
    pair = opened()
    pair.ask(ask())
    pair.deliver_to_host()
    pair.count()
    pair.deliver_to_client()
    pair.deliver_to_host()
    pair.fail_engine("capacity", "full")
    pair.lose()
    pair.resume()
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnFailed)
    assert outcome.code == "capacity"
    finish(pair)


def test_a_right_voucher_lost_after_a_dropped_advance_does_no_harm_when_it_is_said_again() -> None:
    pair = opened(reused=5)
    pair.ask(replace(ask(), input_exact=20))
    while pair.deliver_to_host():
        pass
    pair.count()  # 5 are cached: the advance is dropped
    pair.deliver_to_client()
    assert [voucher.tokens_in for voucher in pair.signed] == [20, 15]
    pair.lose()
    pair.resume()
    pair.settle()
    whole_after_resume(pair)
    assert pair.billed_in == 15
    finish(pair)


def test_a_session_can_be_resumed_again_and_again() -> None:
    pair = serving(40)
    for _ in range(5):
        pair.lose()
        pair.resume()
        pair.deliver_to_client()
        pair.deliver_to_host()
    finish(pair)


def test_a_lost_acceptance_of_a_resume_does_not_lock_the_client_out() -> None:
    pair = serving(40)
    for _ in range(5):
        pair.lose()
        pair.resume()  # the host took it, and its Accept is lost with the next stream
    finish(pair)


def test_text_that_came_without_ids_comes_once() -> None:
    pair = serving()
    pair.check = lambda: None  # type: ignore[method-assign] # ids and text are made up
    assert pair.run is not None
    run = pair.run.order.run
    for ids, text in (((1, 2), ""), ((), "a"), ((), "b"), ((3,), "c")):
        pair.host_does(GenTokens(run, Piece(ids=ids, text=text)))
    pair.deliver_to_client()
    pair.deliver_to_client()
    pair.deliver_to_client()
    assert pair.text == "a"
    pair.lose()
    pair.host_does(GenDone(run, "stop"))
    pair.live.clear()
    pair.resume()
    pair.settle()
    assert (pair.text, pair.delivered) == ("abc", [1, 2, 3])


def test_a_turn_that_stalled_for_want_of_vouchers_can_be_gone_on_from() -> None:
    pair = serving()
    while pair.engine():
        pass
    pair.fire("stall", host=True)
    assert [finished.lingers for finished in pair.finished] == [True]
    assert pair.run is None
    pair.lose()
    pair.resume()
    pair.settle()
    whole_after_resume(pair)
    finish(pair)


def test_what_is_kept_for_a_replay_stays_within_the_window() -> None:
    pair = serving(answer_tokens=1000)
    for _ in range(3):
        while pair.engine(3) or pair.deliver_to_client():
            pass
        ids = [
            len(each.ids)
            for each in pair.channel.replay.since(pair.channel.replay.count - len(pair.channel.replay)) or ()
            if isinstance(each, m.Tokens)
        ]
        assert sum(ids) <= m.WINDOW
        pair.settle(3)
    for turn in range(2, 50):  # turns that end before anything is paid
        pair.ask(ask())
        pair.deliver_to_host()
        pair.cancel()
        pair.settle()
        assert pair.turn == turn
    assert len(pair.channel.replay) <= 2


steps = st.lists(
    st.tuples(
        st.sampled_from(["host", "client", "client", "engine", "engine", "count"]),
        st.integers(0, 90),
        st.booleans(),
    ),
    max_size=80,
)


@examples(200)
@given(
    st.lists(st.tuples(steps, st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.integers(0, 200),
    st.sampled_from([None, 20]),
    st.sampled_from([0, 5, 20]),
)
def test_wherever_streams_break_every_token_arrives_once_and_is_paid_once(
    lives: list[tuple[list[Step], bool, bool]], answer: int, exact: int | None, reused: int
) -> None:
    pair = opened(answer, reused=reused)
    for script, host_notices, cancels in lives:
        if pair.client.state == "idle":
            pair.ask(replace(ask(), input_exact=exact))
        pair.play(script)
        if cancels:
            pair.cancel()
        pair.lose(host_notices=host_notices)
        pair.play([step for step in script if step[0] in ("engine", "count")])
        pair.resume()
        pair.play(script)
    pair.settle()
    assert all(isinstance(outcome, TurnDone) for outcome in pair.outcomes), pair.outcomes
    assert len(pair.outcomes) == pair.turn
    assert pair.host.session is not None
    assert pair.billed_out == pair.host.session.meter.tokens_out
    # An engine that makes more than a window at once has text for its last id only.
    assert "".join(text_of(pair.turn, n) for n in range(len(pair.delivered))).startswith(pair.text)
    finish(pair)


# ---- attacks


def kept(pair: PaidPair) -> tuple[HostSession, m.Resume]:
    """A second stream to the host, and the resume an honest client would send on it."""
    session, held = pair.host.session, pair.client.held
    assert session is not None
    assert held is not None
    second = pair.new_host(kept=session)
    second.start(0.0)
    return second, honest(pair)


def honest(pair: PaidPair, **changes: Any) -> m.Resume:
    session, held = pair.host.session, pair.client.held
    assert session is not None
    assert held is not None
    digest = resume_digest(session.nonce, session.session, HOST.peer, CLIENT_ID.peer)
    request = m.Resume(
        holder=HOLDER,
        session=session.session,
        received=held.received,
        turn=held.asked,
        turns=tuple(held.turns),
        proof=VOUCHERS.sign_wallet(digest),
    )
    return replace(request, **changes)


def refused(second: HostSession, request: m.Resume) -> m.Refuse:
    effects = second.handle(Received(CLIENT_ID.peer, STREAM, request), 0.0)
    assert only(Finished, emitted(effects)).fault is False
    assert second.state == "over"
    return only(m.Refuse, sent(effects))


def signed_by(
    signer: Identity, *, nonce: bytes | None = None, host: PeerId = HOST.peer, client: PeerId = CLIENT_ID.peer
) -> Callable[[PaidPair], m.Resume]:
    def forge(pair: PaidPair) -> m.Resume:
        session = pair.host.session
        assert session is not None
        digest = resume_digest(nonce or session.nonce, session.session, host, client)
        return honest(pair, proof=signer.sign_wallet(digest))

    return forge


def malleable(pair: PaidPair) -> m.Resume:
    return honest(pair, proof=high_s(honest(pair).proof or b""))


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(signed_by(Identity("thief")), id="another key"),
        pytest.param(signed_by(VOUCHERS, nonce=bytes(32)), id="another nonce"),
        pytest.param(signed_by(VOUCHERS, client=PeerId("other")), id="a proof made for another client"),
        pytest.param(signed_by(VOUCHERS, host=PeerId("other")), id="a proof made for another host"),
        pytest.param(lambda pair: honest(pair, proof=bytes(65)), id="no signature"),
        pytest.param(malleable, id="a malleable signature"),
        pytest.param(lambda pair: honest(pair, session=SessionId(bytes(32))), id="another session"),
        pytest.param(lambda pair: honest(pair, received=10**6), id="more received than sent"),
        pytest.param(lambda pair: honest(pair, received=0), id="what was paid for asked again"),
        pytest.param(lambda pair: honest(pair, turn=0), id="a turn before"),
        pytest.param(lambda pair: honest(pair, turn=2), id="another turn that is not listed"),
        pytest.param(lambda pair: honest(pair, turn=2, turns=(1, 2)), id="more turns than were granted"),
        pytest.param(lambda pair: honest(pair, turn=3, turns=(1, 3)), id="a turn left out"),
        pytest.param(lambda pair: honest(pair, turns=()), id="a turn that was not answered"),
        pytest.param(lambda pair: honest(pair, turns=(1, 1)), id="a turn twice"),
        pytest.param(lambda pair: honest(pair, turns=(0, 1)), id="a turn that never was"),
    ],
)
def test_a_second_stream_without_the_proof_leaves_the_first_untouched(
    forge: Callable[[PaidPair], m.Resume],
) -> None:
    pair = serving(40)
    session = pair.host.session
    assert session is not None
    nonce, run = session.nonce, pair.run
    second, _ = kept(pair)
    assert refused(second, forge(pair)).code == "bad_request"
    assert (session.nonce, session.holder, pair.run) == (nonce, pair.host, run)
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnDone)
    assert pair.delivered == pair.expected(512)
    pair.settled()


def test_a_second_stream_with_the_proof_replaces_the_first_which_touches_nothing_any_more() -> None:
    pair = serving(40)
    first, session = pair.host, pair.host.session
    assert session is not None
    second, request = kept(pair)
    effects = second.handle(Received(CLIENT_ID.peer, STREAM, request), 0.0)
    assert session.holder is second
    assert only(m.Accept, sent(effects)).nonce == session.nonce
    values = emitted(effects)
    assert isinstance(values[0], Opened)  # the role must know the session before its receipts
    assert [type(value) for value in values[1:]] == [Paid]

    def counts() -> tuple[int, ...]:
        return (
            session.meter.tokens_out,
            session.channel.credit.sent,
            session.runs,
            pair.channel.replay.count,
        )

    before = counts()
    late: list[Event] = [
        Command(GenTokens(session.runs, Piece(ids=(1, 2, 3), text="late"))),
        Received(CLIENT_ID.peer, STREAM, m.Close()),
        Command(Replaced()),
    ]
    for number, event in enumerate(late):
        out = first.handle(event, 0.0)
        assert sent(out) == []
        expected = [Finished("the session goes on on another stream", replaced=True)] if number == 0 else []
        assert emitted(out) == expected
    assert before == counts()
    assert (second.state, session.holder) == ("busy", second)


def test_a_resume_proof_replayed_is_refused() -> None:
    pair = serving(40)
    second, request = kept(pair)
    second.handle(Received(CLIENT_ID.peer, STREAM, request), 0.0)
    second.handle(Received(CLIENT_ID.peer, STREAM, m.Ping(nonce=1)), 0.0)  # it holds the new nonce
    assert second.state == "busy"
    third = pair.new_host(kept=pair.host.session)
    third.start(0.0)
    assert refused(third, request).code == "bad_request"
    assert second.state == "busy"


def test_a_proof_on_the_stream_of_another_peer_is_refused() -> None:
    pair = serving(40)
    session = pair.host.session
    second = pair.new_host(PeerId("thief"), kept=session)
    second.start(0.0)
    assert refused(second, honest(pair)).code == "bad_request"


def test_a_client_that_claims_millions_of_turns_costs_no_memory() -> None:
    pair = opened()
    pair.lose()
    second, request = kept(pair)
    tracemalloc.start()
    assert refused(second, replace(request, turn=1 << 20)).code == "bad_request"
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20


def test_a_free_session_can_not_be_resumed() -> None:
    free = Pair()
    free.open()
    paid = opened()
    assert free.host.session is not None
    second = paid.new_host(kept=free.host.session)
    second.start(0.0)
    request = honest(paid, session=free.host.session.session)
    assert "free session" in refused(second, request).detail
    with pytest.raises(ValueError, match="only sessions with a key"):
        resumed_client(free.client.held)


def test_a_host_that_keeps_no_session_refuses_a_resume() -> None:
    pair = opened()
    second = pair.new_host()
    second.start(0.0)
    assert refused(second, honest(pair)).code == "bad_request"


def resuming(pair: PaidPair) -> ClientSession:
    """The client, having asked for its session again."""
    pair.lose()
    client = resumed_client(pair.client.held)
    only(m.Resume, sent(client.handle(Command(Start()), 0.0)))
    return client


@pytest.mark.parametrize(
    "change",
    [{"session": SessionId(bytes(32))}, {"session_fee": 2501}, {"epoch": 4}],
    ids=lambda change: next(iter(change)),
)
def test_a_host_that_resumes_another_session_than_the_clients_is_at_fault(change: dict[str, Any]) -> None:
    pair = serving(40)
    client = resuming(pair)
    assert pair.client.held is not None
    accept = replace(pair.client.held.accept, nonce=b"n" * 32, voucher=pair.paid[-1], **change)
    out = client.handle(Received(HOST.peer, STREAM, accept), 0.0)
    assert only(SessionFailed, emitted(out)).fault


def test_a_host_that_replays_what_the_client_holds_bills_it_once() -> None:
    pair = serving(40)
    client = resuming(pair)
    held = pair.client.held
    assert held is not None
    client.handle(
        Received(HOST.peer, STREAM, replace(held.accept, nonce=b"n" * 32, voucher=pair.paid[-1])), 0.0
    )
    again = m.Tokens(turn=1, index=32, ids=tuple(pair.delivered[32:40]), text="")
    out = client.handle(Received(HOST.peer, STREAM, again), 0.0)
    assert only(SessionFailed, emitted(out)).fault


def test_a_host_that_issues_another_receipt_for_a_number_after_a_resume_is_at_fault() -> None:
    pair = serving(40)
    first = pair.issued[0]
    client = resuming(pair)
    held = pair.client.held
    assert held is not None
    client.handle(
        Received(HOST.peer, STREAM, replace(held.accept, nonce=b"n" * 32, voucher=pair.paid[-1])), 0.0
    )
    out = client.handle(Received(HOST.peer, STREAM, first), 0.0)
    assert only(SessionFailed, emitted(out)).fault


def test_a_client_that_claims_a_turn_it_never_asked_gains_nothing() -> None:
    pair = serving(answer_tokens=10)
    pair.settle()
    second, request = kept(pair)
    effects = second.handle(Received(CLIENT_ID.peer, STREAM, replace(request, turn=2, turns=(2,))), 0.0)
    assert only(m.Done, sent(effects)) == m.Done(
        turn=2, reason="cancelled", tokens_in=0, reused=0, tokens_out=0
    )
    for part in prompt_parts(3, encode(ask().body)):
        assert not [
            v
            for v in emitted(second.handle(Received(CLIENT_ID.peer, STREAM, part), 0.0))
            if isinstance(v, Generate)
        ]
    assert turn_of(second).state == "quoting"
