"""A paid session outlives its stream: nothing twice, nothing lost, nobody in without the voucher key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.events import Command, Event, Received
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import resume_digest
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    CancelTurn,
    Finished,
    Generate,
    GenTokens,
    Issued,
    Opened,
    Paid,
    Replaced,
    SessionFailed,
    Start,
    TurnDone,
    TurnFailed,
    TurnServed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.wire import encode
from tests.protocols.inference.duet import HOST, SALT, STREAM, Duet, ask, text_of
from tests.protocols.inference.paid_duet import CLIENT_ID, VOUCHERS, PaidDuet
from tests.protocols.support import MODEL, Identity, emitted, high_s, only, sent


def opened(answer_tokens: int = 100, reused: int = 5) -> PaidDuet:
    duet = PaidDuet(answer_tokens=answer_tokens, reused=reused)
    duet.open()
    return duet


def serving(tokens: int = 0, answer_tokens: int = 100) -> PaidDuet:
    """A turn whose input is paid and of which the client has heard so many tokens, in frames of 8."""
    duet = opened(answer_tokens)
    duet.ask(ask())
    while duet.runs == 0:
        duet._moves(0)
    while duet.client.held is not None and duet.client.held.meter.tokens_out < tokens:
        duet.engine(8)
        while duet.deliver_to_client():
            pass
        while duet.deliver_to_host():
            pass
    return duet


def finish(duet: PaidDuet) -> None:
    """The interrupted turn ends; the session takes another."""
    duet.settle()
    assert duet.host.state == "idle", duet.outcomes
    assert duet.client.state == "idle"
    duet.settled()
    duet.ask(ask(40))
    duet.settle()
    assert isinstance(duet.outcomes[-1], TurnDone)
    assert duet.delivered == duet.expected(40)
    duet.settled()


# ---- wherever it breaks


@pytest.mark.parametrize("host_notices", [True, False], ids=["both notice", "the host does not notice"])
@pytest.mark.parametrize("heard", [0, 8, 24, 32, 40, 64, 96])
def test_a_stream_lost_in_the_middle_of_an_answer(heard: int, host_notices: bool) -> None:
    duet = serving(heard, 200)
    duet.engine(20)  # on its way when the stream breaks
    duet.lose(host_notices=host_notices)
    duet.resume()
    assert duet.run is None
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "cancelled"
    assert outcome.done.tokens_out == len(duet.delivered) >= heard
    assert duet.text.count(" ") == len(duet.delivered)
    finish(duet)


@pytest.mark.parametrize("host_notices", [True, False])
def test_a_stream_lost_between_a_checkpoint_and_its_voucher(host_notices: bool) -> None:
    duet = serving(24)
    duet.engine(8)
    while duet.deliver_to_client():
        pass
    assert m.CODEC.decode(duet.to_host[0]).tokens_out == 32  # signed, and lost
    duet.lose(host_notices=host_notices)
    assert duet.channel.owed
    duet.resume()
    duet.settle()
    assert duet.paid[-1].tokens_out == 32
    finish(duet)


@pytest.mark.parametrize("host_notices", [True, False])
def test_a_stream_lost_before_the_end_of_the_turn_was_seen(host_notices: bool) -> None:
    duet = serving(answer_tokens=40)
    while duet.engine():
        pass
    assert isinstance(m.CODEC.decode(duet.to_client[-1]), m.Done)
    for _ in range(len(duet.to_client) - 1):
        duet.deliver_to_client()
    duet.lose(host_notices=host_notices)
    duet.resume()
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    assert outcome.done.reason == "stop"  # it had ended by itself
    assert duet.delivered == duet.expected(512)
    finish(duet)


@pytest.mark.parametrize("host_notices", [True, False])
def test_a_stream_lost_at_rest(host_notices: bool) -> None:
    duet = serving(answer_tokens=10)
    duet.settle()
    duet.lose(host_notices=host_notices)
    duet.resume()
    assert duet.opened[-1] == Opened(duet.opened[0].session, MODEL, resumed=True)
    finish(duet)


@pytest.mark.parametrize("host_notices", [True, False])
@pytest.mark.parametrize("moment", ["prompt", "part", "count", "quote", "voucher"])
def test_a_stream_lost_before_the_input_was_paid_leaves_it_unbilled(moment: str, host_notices: bool) -> None:
    duet = opened()
    long = ask(content="x" * (30_000 if moment == "part" else 10), input_max=40_000)
    duet.granted = replace(duet.granted, n_ctx=32_768)
    duet.ask(long)
    if moment == "part":
        first = m.CODEC.decode(duet.to_host.popleft())
        half = replace(first, body=first.body[:100], last=False)
        duet._host_did(duet.host.handle(Received(CLIENT_ID.peer, STREAM, half), 0.0))
        assert duet.host.state == "reading"
    elif moment != "prompt":
        duet.deliver_to_host()
    if moment in ("quote", "voucher"):
        duet.count()
    if moment == "voucher":
        duet.deliver_to_client()
        assert len(duet.signed) == 1
    duet.counts.clear()
    duet.lose(host_notices=host_notices)
    duet.resume()
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    done = outcome.done
    assert (done.reason, done.tokens_in, done.tokens_out) == ("cancelled", 0, 0)
    assert done.cost == duet.due(0, 0)
    assert duet.paid == []
    assert len(duet.signed) == (moment == "voucher"), "nothing is signed for a turn that is over"
    finish(duet)


@pytest.mark.parametrize("reused", [0, 20], ids=["paid in advance", "nothing to pay"])
def test_a_quote_that_was_served_on_and_lost_is_said_again(reused: int) -> None:
    duet = opened(reused=reused)
    duet.turn += 1
    duet.client_does(replace(ask(), input_exact=20))
    while duet.deliver_to_host():
        pass
    duet.count()
    assert duet.run is not None
    duet.engine()
    duet.engine(8)
    duet.lose()
    duet.resume()
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnDone)
    assert (outcome.done.tokens_in, outcome.done.tokens_out) == (20, 8)
    assert duet.delivered == duet.expected(8)
    finish(duet)


def test_a_refused_turn_whose_refusal_was_lost_still_fails() -> None:
    duet = opened()
    duet.ask(ask())
    duet.deliver_to_host()
    duet.count()
    duet.deliver_to_client()
    duet.deliver_to_host()
    duet.fail_engine("capacity", "full")
    duet.lose()
    duet.resume()
    duet.settle()
    (outcome,) = duet.outcomes
    assert isinstance(outcome, TurnFailed)
    assert outcome.code == "capacity"
    finish(duet)


def test_a_right_voucher_lost_after_a_dropped_advance_does_no_harm_when_it_is_said_again() -> None:
    duet = opened(reused=5)
    duet.turn += 1
    duet.client_does(replace(ask(), input_exact=20))
    while duet.deliver_to_host():
        pass
    duet.count()  # 5 are cached: the advance is dropped
    duet.deliver_to_client()
    assert [voucher.tokens_in for voucher in duet.signed] == [20, 15]
    duet.lose()
    duet.resume()
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnDone)
    assert duet.outcomes[0].done.tokens_in == 0
    finish(duet)


def test_a_session_can_be_resumed_again_and_again() -> None:
    duet = serving(40)
    for _ in range(5):
        duet.lose()
        duet.resume()
        duet.deliver_to_client()
        duet.deliver_to_host()
    finish(duet)


def test_a_lost_acceptance_of_a_resume_does_not_lock_the_client_out() -> None:
    duet = serving(40)
    for _ in range(5):
        duet.lose()
        duet.resume()  # the host took it, and its Accept is lost with the next stream
    finish(duet)


def test_text_that_came_without_ids_comes_once() -> None:
    duet = serving()
    duet.check = lambda: None  # type: ignore[method-assign] # ids and text are made up
    assert duet.run is not None
    run = duet.run.order.run
    for ids, text in (((1, 2), ""), ((), "a"), ((), "b"), ((3,), "c")):
        duet.host_does(GenTokens(run, ids, text))
    duet.deliver_to_client()
    duet.deliver_to_client()
    duet.deliver_to_client()
    assert duet.text == "a"
    duet.lose()
    duet.resume()
    duet.settle()
    assert (duet.text, duet.delivered) == ("abc", [1, 2, 3])


def test_a_turn_that_stalled_for_want_of_vouchers_can_be_gone_on_from() -> None:
    duet = serving()
    while duet.engine():
        pass
    duet.fire("stall", host=True)
    assert [finished.lingers for finished in duet.finished] == [True]
    assert duet.run is None
    duet.lose()
    duet.resume()
    duet.settle()
    assert len(duet.delivered) == m.WINDOW
    finish(duet)


def test_what_is_kept_for_a_replay_stays_within_the_window() -> None:
    duet = serving(answer_tokens=1000)
    for _ in range(3):
        while duet.engine(3) or duet.deliver_to_client():
            pass
        ids = [
            len(each.ids)
            for each in duet.channel.replay.since(duet.channel.replay.count - len(duet.channel.replay)) or ()
            if isinstance(each, m.Tokens)
        ]
        assert sum(ids) <= m.WINDOW
        duet.settle(3)
    for turn in range(2, 50):  # turns that end before anything is paid
        duet.ask(ask())
        duet.deliver_to_host()
        duet.client_does(CancelTurn())
        duet.settle()
        assert duet.turn == turn
    assert len(duet.channel.replay) <= 2


Step = tuple[str, int, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from(["host", "client", "client", "engine", "engine", "count"]),
        st.integers(0, 90),
        st.booleans(),
    ),
    max_size=80,
)


def play(duet: PaidDuet, script: list[Step]) -> None:
    moves: dict[str, Callable[[int, bool], object]] = {
        "host": lambda _count, _hold: duet.deliver_to_host(),
        "client": lambda _count, _hold: duet.deliver_to_client(),
        "engine": lambda count, hold: duet.engine(count, hold=hold),
        "count": lambda _count, _hold: duet.count(),
    }
    for kind, count, hold in script:
        moves[kind](count, hold)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(steps, st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.integers(0, 200),
    st.sampled_from([None, 20]),
    st.sampled_from([0, 5, 20]),
)
def test_wherever_streams_break_every_token_arrives_once_and_is_paid_once(
    lives: list[tuple[list[Step], bool, bool]], answer: int, exact: int | None, reused: int
) -> None:
    duet = opened(answer, reused=reused)
    for script, host_notices, cancels in lives:
        if duet.client.state == "idle":
            duet.ask(replace(ask(), input_exact=exact))
        play(duet, script)
        if cancels:
            duet.client_does(CancelTurn())
        duet.counts.clear()
        duet.lose(host_notices=host_notices)
        duet.resume()
        play(duet, script)
    duet.settle()
    assert all(isinstance(outcome, TurnDone) for outcome in duet.outcomes), duet.outcomes
    assert len(duet.outcomes) == duet.turn
    assert duet.host.session is not None
    assert duet.billed_out == duet.host.session.meter.tokens_out
    # An engine that makes more than a window at once has text for its last id only.
    assert "".join(text_of(duet.turn, n) for n in range(len(duet.delivered))).startswith(duet.text)
    finish(duet)


# ---- attacks


def kept(duet: PaidDuet) -> tuple[HostSession, m.Resume]:
    """A second stream to the host, and the resume an honest client would send on it."""
    session, held = duet.host.session, duet.client.held
    assert session is not None
    assert held is not None
    second = duet.new_host(kept=session)
    second.start(0.0)
    return second, honest(duet)


def honest(duet: PaidDuet, **changes: Any) -> m.Resume:
    session, held = duet.host.session, duet.client.held
    assert session is not None
    assert held is not None
    digest = resume_digest(session.nonce, session.session, HOST.peer, CLIENT_ID.peer)
    request = m.Resume(
        session=session.session,
        received=held.received,
        turn=held.turns,
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
) -> Callable[[PaidDuet], m.Resume]:
    def forge(duet: PaidDuet) -> m.Resume:
        session = duet.host.session
        assert session is not None
        digest = resume_digest(nonce or session.nonce, session.session, host, client)
        return honest(duet, proof=signer.sign_wallet(digest))

    return forge


def malleable(duet: PaidDuet) -> m.Resume:
    return honest(duet, proof=high_s(honest(duet).proof or b""))


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(signed_by(Identity("thief")), id="another key"),
        pytest.param(signed_by(VOUCHERS, nonce=bytes(32)), id="another nonce"),
        pytest.param(signed_by(VOUCHERS, client=PeerId("other")), id="a proof made for another client"),
        pytest.param(signed_by(VOUCHERS, host=PeerId("other")), id="a proof made for another host"),
        pytest.param(lambda duet: honest(duet, proof=bytes(65)), id="no signature"),
        pytest.param(malleable, id="a malleable signature"),
        pytest.param(lambda duet: honest(duet, session=SessionId(bytes(32))), id="another session"),
        pytest.param(lambda duet: honest(duet, received=10**6), id="more received than sent"),
        pytest.param(lambda duet: honest(duet, received=0), id="what was paid for asked again"),
        pytest.param(lambda duet: honest(duet, turn=0), id="a turn before"),
        pytest.param(lambda duet: honest(duet, turn=2), id="the next turn before this one ended"),
        pytest.param(lambda duet: honest(duet, turn=3), id="a turn far ahead"),
    ],
)
def test_a_second_stream_without_the_proof_leaves_the_first_untouched(
    forge: Callable[[PaidDuet], m.Resume],
) -> None:
    duet = serving(40)
    session = duet.host.session
    assert session is not None
    nonce, run = session.nonce, duet.run
    second, _ = kept(duet)
    assert refused(second, forge(duet)).code == "bad_request"
    assert (session.nonce, session.holder, duet.run) == (nonce, duet.host, run)
    duet.settle()
    assert isinstance(duet.outcomes[0], TurnDone)
    assert duet.delivered == duet.expected(512)
    duet.settled()


def test_a_second_stream_with_the_proof_replaces_the_first_which_touches_nothing_any_more() -> None:
    duet = serving(40)
    first, session = duet.host, duet.host.session
    assert session is not None
    second, request = kept(duet)
    effects = second.handle(Received(CLIENT_ID.peer, STREAM, request), 0.0)
    assert session.holder is second
    assert only(m.Accept, sent(effects)).nonce == session.nonce
    values = emitted(effects)
    assert isinstance(values[0], Opened)  # the role must know the session before its receipts
    assert [type(value) for value in values[1:]] == [CancelGenerate, Issued, TurnServed, Paid, Issued]
    assert values[2] == values[5], "the receipt is durable before the replay, whatever the old stream does"
    before = (session.meter.tokens_out, session.queue.sent, session.runs, duet.channel.replay.count)
    late: list[Event] = [
        Command(GenTokens(session.runs, (1, 2, 3), "late")),
        Received(CLIENT_ID.peer, STREAM, m.Close()),
        Command(Replaced()),
    ]
    for number, event in enumerate(late):
        out = first.handle(event, 0.0)
        assert sent(out) == []
        expected = [Finished("the session goes on on another stream", replaced=True)] if number == 0 else []
        assert emitted(out) == expected
    assert before == (session.meter.tokens_out, session.queue.sent, session.runs, duet.channel.replay.count)
    assert (second.state, session.holder) == ("idle", second)


def test_a_resume_proof_replayed_is_refused() -> None:
    duet = serving(40)
    second, request = kept(duet)
    second.handle(Received(CLIENT_ID.peer, STREAM, request), 0.0)
    second.handle(Received(CLIENT_ID.peer, STREAM, m.Ping(nonce=1)), 0.0)  # it holds the new nonce
    assert second.state == "idle"
    third = duet.new_host(kept=duet.host.session)
    third.start(0.0)
    assert refused(third, request).code == "bad_request"
    assert second.state == "idle"


def test_a_proof_on_the_stream_of_another_peer_is_refused() -> None:
    duet = serving(40)
    session = duet.host.session
    second = duet.new_host(PeerId("thief"), kept=session)
    second.start(0.0)
    assert refused(second, honest(duet)).code == "bad_request"


def test_a_free_session_can_not_be_resumed() -> None:
    free = Duet()
    free.open()
    paid = opened()
    assert free.host.session is not None
    second = paid.new_host(kept=free.host.session)
    second.start(0.0)
    request = honest(paid, session=free.host.session.session)
    assert "free session" in refused(second, request).detail
    with pytest.raises(ValueError, match="only paid sessions"):
        ClientSession(
            host=HOST.peer, stream=1, model=MODEL, salt=SALT, resume=free.client.held, peer=CLIENT_ID.peer
        )


def test_a_host_that_keeps_no_session_refuses_a_resume() -> None:
    duet = opened()
    second = duet.new_host()
    second.start(0.0)
    assert refused(second, honest(duet)).code == "bad_request"


def resuming(duet: PaidDuet) -> ClientSession:
    """The client, having asked for its session again."""
    duet.lose()
    client = ClientSession(
        host=HOST.peer, stream=STREAM, model=MODEL, salt=SALT, resume=duet.client.held, peer=CLIENT_ID.peer
    )
    only(m.Resume, sent(client.handle(Command(Start()), 0.0)))
    return client


@pytest.mark.parametrize(
    "change",
    [{"session": SessionId(bytes(32))}, {"session_fee": 2501}, {"epoch": 4}],
    ids=lambda change: next(iter(change)),
)
def test_a_host_that_resumes_another_session_than_the_clients_is_at_fault(change: dict[str, Any]) -> None:
    duet = serving(40)
    client = resuming(duet)
    assert duet.client.held is not None
    accept = replace(duet.client.held.accept, nonce=b"n" * 32, **change)
    out = client.handle(Received(HOST.peer, STREAM, accept), 0.0)
    assert only(SessionFailed, emitted(out)).fault


def test_a_host_that_replays_what_the_client_holds_bills_it_once() -> None:
    duet = serving(40)
    client = resuming(duet)
    held = duet.client.held
    assert held is not None
    client.handle(Received(HOST.peer, STREAM, replace(held.accept, nonce=b"n" * 32)), 0.0)
    again = m.Tokens(seq=32, ids=tuple(duet.delivered[32:40]), text="")
    out = client.handle(Received(HOST.peer, STREAM, again), 0.0)
    assert only(SessionFailed, emitted(out)).fault


def test_a_host_that_issues_another_receipt_for_a_number_after_a_resume_is_at_fault() -> None:
    duet = serving(40)
    first = duet.issued[0]
    client = resuming(duet)
    held = duet.client.held
    assert held is not None
    client.handle(Received(HOST.peer, STREAM, replace(held.accept, nonce=b"n" * 32)), 0.0)
    out = client.handle(Received(HOST.peer, STREAM, first), 0.0)
    assert only(SessionFailed, emitted(out)).fault


def test_a_client_that_claims_a_turn_it_never_asked_gains_nothing() -> None:
    duet = serving(answer_tokens=10)
    duet.settle()
    second, request = kept(duet)
    effects = second.handle(Received(CLIENT_ID.peer, STREAM, replace(request, turn=2)), 0.0)
    assert only(m.Done, sent(effects)) == m.Done(
        turn=2, reason="cancelled", tokens_in=0, reused=0, tokens_out=0, cost=duet.due(15, 10)
    )
    for part in prompt_parts(3, encode(ask().body)):
        assert not [
            v
            for v in emitted(second.handle(Received(CLIENT_ID.peer, STREAM, part), 0.0))
            if isinstance(v, Generate)
        ]
    assert second.state == "quoting"
