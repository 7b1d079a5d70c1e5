"""A client against hosts that lie, overbill, stall and flood."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import WIRE_CODES, WireCode
from p2pnode.ids import SessionId
from p2pnode.protocols.events import Closed, Command, HalfClosed, Received, SetTimer, TimerFired
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import PREFILL_S_PER_TOKEN, ClientTimes
from p2pnode.protocols.inference.commands import (
    Ask,
    CancelTurn,
    Delivered,
    Ended,
    Progressed,
    SessionFailed,
    Start,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.wire import wire_name
from tests.examples import examples
from tests.protocols.inference.pair import HOST, PROMPT_HASH, STREAM, Pair, ask, new_client
from tests.protocols.strategies import messages
from tests.protocols.support import Identity, emitted, only, sent

TIMES = ClientTimes()
SESSION = SessionId(b"s" * 32)
ACCEPT = m.Accept(session=SESSION, nonce=bytes(32), epoch=1, n_ctx=4096)


def hear(client: ClientSession, *said: Any, now: float = 0.0) -> list[Any]:
    out: list[Any] = []
    for message in said:
        effects = client.handle(Received(HOST.peer, STREAM, message), now)
        out += [*sent(effects), *emitted(effects)]
    return out


def asking(order: Ask | None = None, *, quoted: bool = True) -> ClientSession:
    client = new_client()
    client.handle(Command(Start()), 0.0)
    hear(client, ACCEPT)
    client.handle(Command(order or ask(input_max=100)), 0.0)
    if quoted:
        hear(client, quote(turn=1, tokens_in=20, reused=5))
    return client


def violated(out: list[Any]) -> bool:
    return any(isinstance(value, SessionFailed) and value.fault for value in out)


def progress_timers(client: ClientSession, message: Any, now: float) -> list[float]:
    effects = client.handle(Received(HOST.peer, STREAM, message), now)
    return [effect.at for effect in effects if isinstance(effect, SetTimer) and effect.key == "progress"]


def tokens(index: int = 0, ids: tuple[int, ...] = (1,), text: str = "a", **more: Any) -> m.Tokens:
    return m.Tokens(turn=1, index=index, ids=ids, text=text, **more)


def quote(turn: int = 1, tokens_in: int = 20, reused: int = 0) -> m.Quote:
    return m.Quote(turn=turn, tokens_in=tokens_in, prompt_hash=PROMPT_HASH, reused=reused)


# ---- what a host may not say


def call(name: str = "", number: int = 0, ids: tuple[int, ...] = (1,), **more: Any) -> m.Tokens:
    return tokens(ids=ids, channel="call", call=number, name=name, **more)


@pytest.mark.parametrize(
    ("said", "change"),
    [
        pytest.param(call("run"), {}, id="a tool that was not offered"),
        pytest.param(call("weather"), {"tools": ()}, id="no tool was offered"),
        pytest.param(call("weather"), {"tool_choice": "none"}, id="none may be called"),
        pytest.param(call(), {"tools": ()}, id="a piece of a call without tools"),
        pytest.param(call("weather", 128), {}, id="more calls than a prompt can hold"),
        pytest.param(call("weather", 1), {"parallel_tool_calls": False}, id="a second call"),
        pytest.param(tokens(name="weather"), {}, id="a name outside of a call"),
        pytest.param(tokens(logprobs=(m.TokenLogprob(logprob=0.0),)), {}, id="log-probabilities unasked"),
    ],
)
def test_a_call_that_no_model_could_make_ends_the_session(said: m.Tokens, change: dict[str, Any]) -> None:
    def order(**changed: Any) -> Ask:
        plain = ask(input_max=100)
        return replace(plain, body=replace(plain.body, **{"tools": (m.Tool(name="weather"),), **changed}))

    assert violated(hear(asking(order(**change)), said))
    for fine in (call("weather"), call("weather", 127), call()):
        assert not violated(hear(asking(order()), fine))
    asked = order()
    asked = replace(asked, body=replace(asked.body, logprobs=0))
    assert not violated(hear(asking(asked), tokens(logprobs=(m.TokenLogprob(logprob=0.0),))))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([ACCEPT], id="accept replayed"),
        pytest.param([quote(turn=1, tokens_in=20)], id="a second quote"),
        pytest.param([tokens(index=1)], id="a gap"),
        pytest.param([tokens(), tokens()], id="tokens replayed"),
        pytest.param([tokens(ids=(), text="")], id="empty tokens"),
        pytest.param([tokens(ids=(1,) * 33)], id="33 tokens without a checkpoint"),
        pytest.param([tokens(ids=(1,) * 20), tokens(index=20, ids=(1,) * 13)], id="33 in two frames"),
        pytest.param([tokens(text="x" * 1025)], id="more text than a token holds"),
        pytest.param([tokens(ids=(), text="x")], id="text before there is an id"),
        pytest.param([tokens(ids=(), text="x" * 4000)] * 2, id="text for ever"),
        pytest.param([m.Progress(turn=1, processed=3, total=2)], id="more than all"),
        pytest.param([m.Progress(turn=2, processed=1, total=2)], id="progress of another turn"),
        pytest.param([m.Error(code="internal", turn=2)], id="error of another turn"),
        pytest.param([m.Error(code="internal", turn=1)], id="an error without a receipt for the input"),
        pytest.param(
            [m.Done(turn=1, reason="stop", tokens_in=20, reused=5, tokens_out=0)], id="done without a receipt"
        ),
        pytest.param(
            [m.Done(turn=2, reason="stop", tokens_in=0, reused=0, tokens_out=0)], id="done of another turn"
        ),
    ],
)
def test_what_breaks_the_protocol_ends_the_session_and_names_the_host(said: list[Any]) -> None:
    client = asking()
    out = hear(client, *said)
    assert violated(out)
    assert only(m.Error, out).code == "bad_request"
    assert client.state == "over"


@pytest.mark.parametrize(
    "quote",
    [
        pytest.param(quote(turn=1, tokens_in=101), id="more than possible"),
        pytest.param(quote(turn=1, tokens_in=20, reused=21), id="more reused than there is"),
        pytest.param(quote(turn=2, tokens_in=20), id="another turn"),
    ],
)
def test_a_quote_that_can_not_be_is_a_violation(quote: m.Quote) -> None:
    assert violated(hear(asking(quoted=False), quote))


def test_the_largest_possible_quote_is_taken() -> None:
    assert not violated(hear(asking(quoted=False), quote(turn=1, tokens_in=100)))


def test_tokens_before_the_quote_are_a_violation() -> None:
    assert violated(hear(asking(quoted=False), tokens()))


def test_more_tokens_than_were_asked_for_are_not_even_delivered() -> None:
    client = asking(ask(3, input_max=100))
    assert not violated(hear(client, tokens(ids=(1, 2, 3))))
    out = hear(client, tokens(index=3))
    assert violated(out)
    assert not [value for value in out if isinstance(value, Delivered)]


def honest(until: str, answer: int = 40, asked: Ask | None = None) -> tuple[Pair, Any]:
    """A real host's next message of this name, not yet heard by the client."""
    pair = Pair(answer_tokens=answer)
    pair.open()
    pair.ask(asked or ask())
    while True:
        while pair.deliver_to_host() or pair.engine(8):
            pass
        message = m.CODEC.decode(pair.to_client[0])
        if wire_name(type(message)) == until:
            return pair, message
        pair.deliver_to_client()


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 2},
        {"tokens_in": 16},
        {"tokens_out": 33},
        {"token_hash": bytes(32)},
        {"fingerprint_hash": b"f" * 32},
        {"root": bytes(32)},
        {"signature": bytes(64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_receipt_that_differs_in_anything_is_a_violation(change: dict[str, Any]) -> None:
    pair, receipt = honest("checkpoint")
    assert violated(hear(pair.client, replace(receipt, **change)))


def test_an_honest_receipt_is_acknowledged() -> None:
    pair, receipt = honest("checkpoint")
    assert hear(pair.client, receipt)[0] == m.Ack(seq=32)


def test_a_receipt_for_nothing_new_is_a_violation() -> None:
    pair, receipt = honest("checkpoint")
    hear(pair.client, receipt)
    assert violated(hear(pair.client, receipt))


def test_a_receipt_of_another_host_is_a_violation() -> None:
    pair, receipt = honest("checkpoint")
    other = Identity("other")
    assert violated(hear(pair.client, replace(receipt, signature=other.sign(receipt.root))))


@pytest.mark.parametrize("change", [{"tokens_in": 21}, {"reused": 4}, {"tokens_out": 41}], ids=repr)
def test_a_bill_that_differs_is_a_violation(change: dict[str, int]) -> None:
    pair, done = honest("done")
    assert violated(hear(pair.client, replace(done, **change)))


@pytest.mark.parametrize(
    ("tokens_max", "stop", "holds"),
    [(50, "END", True), (50, "", True), (50, "end", False), (40, "END", False)],
)
def test_a_turn_ends_only_at_a_stop_string_that_was_asked_for(
    tokens_max: int, stop: str, holds: bool
) -> None:
    pair, done = honest("done", answer=45, asked=ask(tokens_max, stop=("\n\n", "END")))
    said = hear(pair.client, replace(done, stop=stop))
    assert said == [TurnDone(replace(done, stop=stop), key=1)] if holds else violated(said)


def test_an_honest_bill_ends_the_turn() -> None:
    pair, done = honest("done")
    assert hear(pair.client, done) == [TurnDone(done, key=1)]
    assert violated(hear(pair.client, done))  # and only once


# ---- what a host may not do with our time


def test_contentless_messages_do_not_keep_a_client_waiting() -> None:
    order = ask(input_max=100)
    client = asking(replace(order, body=replace(order.body, prefix=(1, 2))))
    same = m.Progress(turn=1, processed=0, total=20)
    progress_timers(client, same, 1.0)
    for now in range(2, 50):
        assert progress_timers(client, same, float(now)) == []
        assert progress_timers(client, m.Pong(nonce=now), float(now)) == []
    assert progress_timers(client, tokens(ids=(), text="…"), 50.0) == []
    out = client.handle(TimerFired("progress"), TIMES.first_token_s)
    assert sent(out) == [m.Cancel(turn=1)]
    assert only(SetTimer, out) == SetTimer("progress", TIMES.first_token_s + TIMES.stall_s)
    out = client.handle(TimerFired("progress"), TIMES.first_token_s + TIMES.stall_s)
    failed = only(SessionFailed, emitted(out))
    assert (failed.code, failed.cause) == (None, "stuck")


def test_a_turn_for_which_nothing_is_done_ends_alone_where_the_host_ends_it() -> None:
    done = m.Done(turn=1, reason="cancelled", tokens_in=20, reused=20, tokens_out=0)
    client = asking(quoted=False)
    hear(client, quote(tokens_in=20, reused=20))
    client.handle(TimerFired("progress"), TIMES.first_token_s)
    failed = only(TurnFailed, hear(client, done))
    assert (failed.code, failed.cause, client.state) == (None, "stuck", "idle")


def test_progress_buys_time_by_the_token_and_never_twice() -> None:
    client = asking()
    (at,) = progress_timers(client, m.Progress(turn=1, processed=10, total=20), 100.0)
    assert at == TIMES.first_token_s + 10 * PREFILL_S_PER_TOKEN
    assert progress_timers(client, m.Progress(turn=1, processed=9, total=20), 110.0) == []
    out = hear(client, m.Progress(turn=1, processed=2**32 - 1, total=2**32 - 1))
    assert only(Progressed, out).progress.processed == 2**32 - 1
    latest = TIMES.first_token_s + 100 * PREFILL_S_PER_TOKEN
    assert progress_timers(asking(), m.Progress(turn=1, processed=2**32 - 1, total=2**32 - 1), 1.0) == [
        latest
    ]


def test_tokens_buy_the_stall_time_and_progress_after_them_nothing() -> None:
    client = asking()
    assert progress_timers(client, tokens(), 50.0) == [50 + TIMES.stall_s]
    assert progress_timers(client, m.Progress(turn=1, processed=10, total=20), 60.0) == []


def test_after_a_cancel_nothing_buys_time() -> None:
    client = asking()
    effects = client.handle(Command(CancelTurn()), 10.0)
    assert only(SetTimer, effects) == SetTimer("progress", 10 + TIMES.stall_s)
    assert sent(effects) == [m.Cancel(turn=1)]
    assert progress_timers(client, tokens(), 20.0) == []
    assert progress_timers(client, m.Progress(turn=1, processed=10, total=20), 20.0) == []


def test_a_silent_host_is_asked_twice_and_then_left() -> None:
    client = asking()
    for now in (10.0, 20.0):
        effects = client.handle(TimerFired("silence"), now)
        assert isinstance(only(m.Ping, sent(effects)), m.Ping)
        assert only(SetTimer, effects).at == now + 10
    out = client.handle(TimerFired("silence"), 30.0)
    assert only(SessionFailed, emitted(out)).cause == "silent"


def test_a_host_that_answers_pings_is_not_silent() -> None:
    client = asking()
    for now in range(10, 200, 10):
        client.handle(TimerFired("silence"), float(now))
        hear(client, m.Pong(nonce=1), now=float(now))
    assert client.state == "busy"


def test_timers_that_fire_late_do_nothing_in_idle() -> None:
    pair, done = honest("done")
    hear(pair.client, done)
    for key in ("open", "silence", "progress", "nonsense"):
        assert pair.client.handle(TimerFired(key), 1e6) == []
    assert pair.client.state == "idle"
    effects = pair.client.handle(Received(HOST.peer, STREAM, m.Pong(nonce=1)), 1e6)
    assert effects == []  # no timer is set at rest


def test_a_host_that_does_not_answer_open_is_left() -> None:
    client = new_client()
    assert only(SetTimer, client.handle(Command(Start()), 3.0)) == SetTimer("open", 13.0)
    out = client.handle(TimerFired("open"), 13.0)
    assert emitted(out) == [SessionFailed(None, "the host did not answer", cause="stuck")]


def test_a_refusal_carries_the_words_of_the_host() -> None:
    client = new_client()
    client.handle(Command(Start()), 0.0)
    out = hear(client, m.Refuse(code="capacity", detail="full", retry_after_s=2.0))
    assert out == [SessionFailed("capacity", "full", 2.0)]


@pytest.mark.parametrize("code", sorted(WIRE_CODES))
def test_no_word_of_a_host_is_taken_for_what_this_side_knows(code: WireCode) -> None:
    failed = only(SessionFailed, hear(asking(), m.Error(code=code, detail="so there")))
    assert (failed.code, failed.cause, failed.fault) == (code, "answered", False)
    assert failed.resumable == (code == "stalled")  # then its host keeps the session
    turn = only(TurnFailed, hear(asking(quoted=False), m.Error(code=code, detail="so there", turn=1)))
    assert (turn.code, turn.cause) == (code, "answered")


def test_what_this_side_knows_has_no_word_of_the_host() -> None:
    lost = Closed(HOST.peer, STREAM, "lost")
    half = HalfClosed(HOST.peer, STREAM)
    bad = Closed(HOST.peer, STREAM, "malformed: a frame", malformed=True)
    for event, cause in ((lost, "lost"), (half, "lost"), (bad, "fault")):
        failed = only(SessionFailed, emitted(asking().handle(event, 1.0)))
        assert (failed.code, failed.cause) == (None, cause)


@pytest.mark.parametrize("asked", [True, False])
def test_only_a_turn_that_was_cancelled_may_be_called_so(asked: bool) -> None:
    client = asking(quoted=False)
    if asked:
        client.handle(Command(CancelTurn()), 0.5)
    *_, told = hear(client, m.Done(turn=1, reason="cancelled", tokens_in=0, reused=0, tokens_out=0))
    assert isinstance(told, TurnDone) if asked else (isinstance(told, SessionFailed) and told.fault)


# ---- prompts that need not be sent


def test_a_conversation_beyond_the_context_fails_here() -> None:
    client = asking()
    done = m.Done(turn=1, reason="length", tokens_in=0, reused=0, tokens_out=0)
    client = asking(quoted=False)
    hear(client, done)
    effects = client.handle(Command(ask(content="x" * 40_000)), 1.0)
    assert only(TurnFailed, emitted(effects)).code == "context_overflow"
    assert sent(effects) == []
    assert client.state == "idle"


def test_a_sampling_value_no_host_takes_fails_here_and_names_the_field() -> None:
    client = new_client()
    client.handle(Command(Start()), 0.0)
    hear(client, ACCEPT)
    order = ask()
    wrong = Ask(replace(order.body, sampling=m.SamplingParams(temperature=9.0)), 100)
    failed = only(TurnFailed, emitted(client.handle(Command(wrong), 1.0)))
    assert (failed.code, failed.cause) == (None, "invalid")
    assert "temperature must be a number from 0 to 5" in failed.detail


def test_text_without_a_utf8_form_can_be_asked() -> None:
    pair = Pair(answer_tokens=3)
    pair.open()
    pair.ask(ask(content="\udc80"))
    pair.settle()
    assert isinstance(pair.outcomes[0], TurnDone)


def test_a_long_prompt_goes_in_small_parts_as_far_as_they_are_confirmed() -> None:
    client = new_client()
    client.handle(Command(Start()), 0.0)
    hear(client, replace(ACCEPT, n_ctx=32_768))
    parts = sent(client.handle(Command(ask(content="x" * 100_000)), 0.0))
    assert [part.part for part in parts] == [0, 1, 2, 3]
    read = 0
    while read < parts[0].total:
        read = sum(len(part.body) for part in parts)
        parts += hear(client, m.PromptReceived(turn=1, bytes=read))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert violated(hear(client, m.PromptReceived(turn=1, bytes=read + 1)))


# ---- anything at all

turns = st.integers(0, 2)
hosts = st.one_of(
    st.just(ACCEPT),
    st.builds(quote, turn=turns, tokens_in=st.integers(0, 120), reused=st.integers(0, 30)),
    st.builds(m.Progress, turn=turns, processed=st.integers(0, 30), total=st.integers(0, 30)),
    st.builds(
        m.Tokens,
        turn=turns,
        index=st.integers(0, 5),
        ids=st.lists(st.integers(0, 9), max_size=40).map(tuple),
        text=st.text(max_size=9),
    ),
    st.builds(
        m.Done,
        turn=turns,
        reason=st.just("stop"),
        tokens_in=st.integers(0, 20),
        reused=st.integers(0, 5),
        tokens_out=st.integers(0, 5),
    ),
    st.builds(m.Error, code=st.just("internal"), turn=turns),
    *[messages(cls) for cls in m.CODEC.classes],
)
orders = st.sampled_from([Start(), ask(input_max=100), CancelTurn()])
keys = st.sampled_from(["open", "silence", "progress", "nonsense"])
events = st.one_of(
    st.builds(Received, st.just(HOST.peer), st.just(STREAM), hosts),
    st.builds(Received, st.just(HOST.peer), st.just(STREAM), hosts),
    st.builds(Command, orders),
    st.builds(TimerFired, keys),
)


@examples(250)
@given(st.booleans(), st.lists(events, max_size=30))
def test_no_sequence_of_events_makes_the_client_raise_or_end_a_turn_twice(
    ask_first: bool, sequence: list[Any]
) -> None:
    client = asking(quoted=False) if ask_first else new_client()
    under_way, ended = ask_first, 0
    for now, event in enumerate(sequence):
        before = client.state
        effects = client.handle(event, float(now))
        for message in sent(effects):
            assert m.CODEC.decode(m.CODEC.encode(message)) == message
        for value in emitted(effects):
            if isinstance(value, TurnDone):
                assert under_way
            if isinstance(value, SessionFailed | Ended):
                ended += 1
        if before != "busy" and client.state == "busy":
            under_way = True
        elif client.state != "busy":
            under_way = False
        held = client.held
        assert held is None or held.meter.unreceipted <= m.CHECKPOINT_EVERY
    assert ended == (client.state == "over")
