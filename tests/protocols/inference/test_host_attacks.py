"""A host against clients that lie, stall, flood and replay."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.events import CancelTimer, Command, Received, SetTimer, TimerFired
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.commands import (
    Count,
    Counted,
    CountFailed,
    Drain,
    Finished,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenTokens,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.prompts import PROMPT_RATE_MIN, TurnPlaces, prompt_parts
from p2pnode.protocols.inference.replay import Piece
from p2pnode.protocols.wire import encode
from tests.examples import examples
from tests.protocols.inference.pair import (
    CLIENT,
    HOLDER,
    HOST,
    PROMPT_HASH,
    STREAM,
    TERMS,
    Pair,
    ask,
    credit_of,
    new_host,
    turns_of,
)
from tests.protocols.strategies import messages
from tests.protocols.support import MODEL, emitted, only, sent

OPEN = m.Open(model=MODEL, salt=bytes(32), holder=HOLDER)
RAW = encode(ask(content="x" * 1000).body)


def opened(terms: HostTerms = TERMS) -> HostSession:
    host = new_host(terms)
    host.start(0.0)
    say(host, OPEN)
    return host


def say(host: HostSession, *said: Any, now: float = 0.0) -> list[Any]:
    """What the host answers and emits; prompts are counted at once."""
    out: list[Any] = []
    for message in said:
        effects = host.handle(Received(CLIENT, STREAM, message), now)
        heard = [*sent(effects), *emitted(effects)]
        out += [each for each in heard if not isinstance(each, m.PromptReceived | Count)]
        for order in heard:
            if isinstance(order, Count):
                out += tell(host, Counted(order.turn, 20, 5, PROMPT_HASH), now=now)
    return out


def tell(host: HostSession, *commands: Any, now: float = 0.0) -> list[Any]:
    out: list[Any] = []
    for command in commands:
        effects = host.handle(Command(command), now)
        out += [*sent(effects), *emitted(effects)]
    return out


def violated(out: list[Any]) -> bool:
    return any(isinstance(value, Finished) and value.fault for value in out)


def part(**changes: Any) -> m.Prompt:
    return replace(m.Prompt(turn=1, part=0, last=False, total=len(RAW), body=RAW[:100]), **changes)


# ---- opening


def test_a_refusal_of_the_role_is_passed_on_within_the_bounds_of_the_wire() -> None:
    refusal = m.Refuse(code="capacity", detail="é" * 400, retry_after_s=1e9)
    host = HostSession(
        peer=CLIENT,
        stream=STREAM,
        admit=lambda _open: refusal,
        sign=HOST.sign,
        epoch=1,
        draw=bytes,
        terms=TERMS,
    )
    answer = only(m.Refuse, say(host, OPEN))
    assert m.CODEC.decode(m.CODEC.encode(answer)) == answer
    assert answer.retry_after_s == m.RETRY_MAX_S
    assert host.state == "over"


def test_a_paid_session_never_runs_free_by_mistake() -> None:
    host = new_host()
    (paid,) = [v for v in vectors_of("open") if v.terms is not None]
    assert only(m.Refuse, say(host, paid)).code == "bad_request"


def vectors_of(kind: str) -> list[Any]:
    from tests.protocols.make_vectors import inference_vectors

    found = [v["hex"] for v in inference_vectors()["messages"] if v["type"] == kind]
    return [m.CODEC.decode(bytes.fromhex(each)) for each in found]


def test_a_replayed_open_is_a_violation() -> None:
    assert violated(say(opened(), OPEN))


# ---- prompts


def test_a_prompt_in_many_parts_is_put_together() -> None:
    host = opened()
    pieces = [part(part=n, body=RAW[n : n + 1], last=n == len(RAW) - 1) for n in range(len(RAW))]
    effects = [each for piece in pieces for each in host.handle(Received(CLIENT, STREAM, piece), 0.0)]
    assert only(Count, emitted(effects)).body == ask(content="x" * 1000).body


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([part(turn=0)], id="turn 0"),
        pytest.param([part(turn=2)], id="a turn ahead"),
        pytest.param([part(part=1)], id="not from part 0"),
        pytest.param([part(), part()], id="a part twice"),
        pytest.param([part(), part(part=2)], id="a part left out"),
        pytest.param([part(), part(part=0, turn=2)], id="more turns than were granted"),
        pytest.param([part(), part(part=1, total=len(RAW) + 1)], id="another total"),
        pytest.param([part(total=50)], id="more than announced"),
        pytest.param([part(total=0)], id="nothing announced"),
    ],
)
def test_parts_that_do_not_follow_are_a_violation(said: list[m.Prompt]) -> None:
    assert violated(say(opened(), *said))


def test_turn_zero_is_a_violation_before_the_session_too() -> None:
    assert violated(say(new_host(), part(turn=0)))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\xc1" * 50, id="not msgpack"),
        pytest.param(encode(ask(content="x").body)[:-1], id="cut"),
        pytest.param(b"\x80", id="no messages"),
    ],
)
def test_a_prompt_that_does_not_decode_fails_its_turn_and_the_next_one_is_served(raw: bytes) -> None:
    host = opened()
    error = only(m.Error, say(host, *prompt_parts(1, raw)))
    assert (error.code, error.turn, host.state) == ("bad_request", 1, "idle")
    assert only(Generate, say(host, *prompt_parts(2, RAW))).run == 1


def test_a_prompt_that_ends_early_fails_its_turn() -> None:
    host = opened()
    assert only(m.Error, say(host, part(last=True))).turn == 1
    assert host.state == "idle"


def test_a_prompt_beyond_the_context_is_refused_at_its_first_part_and_nothing_of_it_is_kept() -> None:
    host = opened()
    total = m.prompt_bytes_max(TERMS.n_ctx) + 1
    error = only(m.Error, say(host, part(total=total)))
    assert (error.code, error.turn) == ("context_overflow", 1)
    assert say(host, part(part=1, total=total), part(part=2, total=total, last=True)) == []
    assert host.state == "idle"
    assert only(Generate, say(host, *prompt_parts(2, RAW))).run == 1


def test_the_rest_of_a_prompt_that_was_refused_means_nothing() -> None:
    host = opened()
    total = 2**63 - 1
    assert only(m.Error, say(host, part(total=total))).code == "context_overflow"
    assert say(host, part(part=1, total=total), part(part=7, total=3, last=True)) == []
    assert host.state == "idle"
    assert only(Generate, say(host, *prompt_parts(2, RAW))).run == 1


def test_endless_tiny_parts_hold_no_more_than_was_announced() -> None:
    host = opened()
    total = m.prompt_bytes_max(TERMS.n_ctx)
    say(host, part(total=total, body=b"x"))
    tracemalloc.start()
    for number in range(1, 20_000):
        say(host, part(part=number, total=total, body=b"x"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * 20_000 + 20_000


def test_a_trickled_prompt_runs_into_a_deadline_that_no_part_moves() -> None:
    host = opened()
    first = host.handle(Received(CLIENT, STREAM, part(body=b"x")), 5.0)
    deadline = only(SetTimer, first)
    assert deadline.key == "prompt"
    assert deadline.at == 5.0 + TERMS.stall_s + len(RAW) / PROMPT_RATE_MIN
    assert CancelTimer("idle") in first
    later = host.handle(Received(CLIENT, STREAM, part(part=1, body=b"x")), 30.0)
    assert not [effect for effect in later if isinstance(effect, SetTimer)]
    out = host.handle(TimerFired("prompt"), deadline.at)
    assert only(m.Error, sent(out)).code == "stalled"


def test_a_cancel_while_the_prompt_is_read_answers_it_once_and_drops_the_rest() -> None:
    host = opened()
    out = say(host, part(), m.Cancel(turn=1))
    assert only(m.Done, out) == m.Done(turn=1, reason="cancelled", tokens_in=0, reused=0, tokens_out=0)
    assert say(host, m.Cancel(turn=1), part(part=1), part(part=2, last=True)) == []
    assert host.state == "idle"
    assert only(Generate, say(host, *prompt_parts(2, RAW))).run == 1


# ---- while serving


def serving(tokens_max: int = 512) -> HostSession:
    host = opened()
    say(host, *prompt_parts(1, encode(ask(tokens_max).body)))
    return host


def test_an_ack_of_what_was_never_sent_is_a_violation() -> None:
    host = serving()
    tell(host, GenTokens(1, Piece(ids=tuple(range(10)), text="x")))
    assert say(host, m.Ack(seq=10)) == []
    assert violated(say(host, m.Ack(seq=11)))


@pytest.mark.parametrize("seq", [0, 5, 10])
def test_an_ack_that_is_not_news_does_nothing(seq: int) -> None:
    host = serving()
    tell(host, GenTokens(1, Piece(ids=tuple(range(10)), text="x")))
    say(host, m.Ack(seq=10))
    assert host.handle(Received(CLIENT, STREAM, m.Ack(seq=seq)), 9.0) == []


def test_a_client_that_never_acknowledges_is_left_after_the_stall_time_whatever_the_engine_makes() -> None:
    host, timers = serving(), []
    for number in range(30):
        effects = host.handle(Command(GenTokens(1, Piece(ids=(number,) * 3, text="abc"))), float(number))
        timers += [effect for effect in effects if isinstance(effect, SetTimer)]
    (stall,) = timers
    assert (stall.key, stall.at) == ("stall", 21 + TERMS.stall_s)  # 3 x 22 ids are more than a window
    out = host.handle(TimerFired("stall"), stall.at)
    assert only(m.Error, sent(out)).code == "stalled"
    assert only(Finished, emitted(out)).fault is False


def test_new_credit_takes_the_stall_timer_back() -> None:
    host = serving()
    tell(
        host,
        GenTokens(1, Piece(ids=tuple(range(60)), text="x")),
        GenTokens(1, Piece(ids=tuple(range(20)), text="x")),
    )
    effects = host.handle(Received(CLIENT, STREAM, m.Ack(seq=64)), 1.0)
    assert CancelTimer("stall") in effects
    assert host.handle(TimerFired("stall"), 50.0) == []
    assert host.state == "busy"


def test_slow_acknowledgements_wake_the_engine_at_most_once_per_half_window() -> None:
    host, generated, run = serving(4000), 1, 1
    for acked in range(1, 401):
        tell(
            host,
            GenTokens(run, Piece(ids=tuple(range(40)), text="x")),
            GenTokens(run, Piece(ids=tuple(range(40)), text="x")),
        )
        for value in say(host, m.Ack(seq=acked), m.Credit(turn=1, upto=acked + 128)):
            if isinstance(value, Generate):
                generated, run = generated + 1, value.run
    assert 1 < generated <= 400 / 32 + 2


@pytest.mark.parametrize(
    ("step", "every_s", "ends"),
    [
        pytest.param(64, 64.0, False, id="one a second"),
        pytest.param(32, 119.0, False, id="a receipt's in time"),
        pytest.param(1, 60.0, True, id="one a minute"),
    ],
)
def test_a_reader_may_be_slow_and_not_hold_a_turn_for_ever(step: int, every_s: float, ends: bool) -> None:
    pair = Pair(replace(TERMS, places=TurnPlaces(1)), answer_tokens=2000)
    pair.open()
    pair.idle.add(1)
    pair.ask(ask(2000))
    pair.settle()
    upto = m.READ_CREDIT
    for _ in range(8):
        pair.now += every_s
        (turn,) = turns_of(pair.host) or (None,)
        if turn is None:
            break
        if turn.read_by is not None and turn.read_by <= pair.now:
            pair.fire("read", host=True)
        else:
            upto += step
            data = Received(CLIENT, STREAM, m.Credit(turn=1, upto=upto))
            pair.host_did(pair.host.handle(data, pair.now))
        pair.to_client.clear()
        while pair.run is not None and pair.engine(16):
            pair.to_client.clear()
        credit = credit_of(pair.host)
        pair.host_did(pair.host.handle(Received(CLIENT, STREAM, m.Ack(seq=credit.sent)), pair.now))
    assert (not turns_of(pair.host)) is ends


def test_a_client_that_acknowledges_one_by_one_gets_every_token_once() -> None:
    pair = Pair(answer_tokens=200)
    pair.open()
    pair.ask(ask())
    pair.deliver_to_host()
    acked = 0
    while not pair.outcomes:
        while pair.engine(50) or pair.deliver_to_client():
            pass
        pair.to_host.clear()  # its own acknowledgements are lost
        acked += 1
        if pair.host.state == "busy":
            pair.host_did(pair.host.handle(Received(CLIENT, STREAM, m.Ack(seq=acked)), 0.0))
    assert pair.delivered == pair.expected(512)
    assert pair.runs > 2


@pytest.mark.parametrize("turn", [0, 2, 2**32 - 1])
def test_a_cancel_of_another_turn_means_nothing(turn: int) -> None:
    host = serving()
    assert say(host, m.Cancel(turn=turn)) == []
    assert host.state == "busy"


def test_a_cancel_before_the_engine_began_costs_nothing() -> None:
    host = opened()
    for piece in prompt_parts(1, RAW):
        host.handle(Received(CLIENT, STREAM, piece), 0.0)  # its count comes too late
    out = say(host, m.Cancel(turn=1))
    assert only(m.Done, out) == m.Done(turn=1, reason="cancelled", tokens_in=0, reused=0, tokens_out=0)
    assert not [value for value in out if isinstance(value, m.Checkpoint)]
    assert tell(host, GenTokens(1, Piece(ids=(1,), text="a")), GenDone(1, "stop")) == []


def test_a_turn_without_output_is_still_receipted_for_its_input() -> None:
    out = tell(serving(), GenDone(1, "stop"))
    assert only(m.Checkpoint, out).tokens_in == 15
    assert only(m.Done, out).tokens_out == 0


def test_a_prompt_that_could_not_be_counted_leaves_no_receipt() -> None:
    host = opened()
    for piece in prompt_parts(1, RAW):
        host.handle(Received(CLIENT, STREAM, piece), 0.0)
    out = tell(host, CountFailed(1, "capacity", "", float("nan")))
    assert [type(value) for value in out[:1]] == [m.Error]
    assert out[0].retry_after_s is None
    assert m.CODEC.decode(m.CODEC.encode(out[0])) == out[0]


def test_an_engine_that_failed_leaves_a_receipt_for_the_input_that_says_so() -> None:
    out = tell(serving(), GenFailed(1, "capacity", "full"))
    assert only(m.Checkpoint, out).ended == (m.TurnEnd(turn=1, reason="failed"),)
    assert only(m.Error, out).turn == 1


def test_progress_is_passed_on_until_the_first_token() -> None:
    host = serving()
    assert tell(host, GenProgress(1, 3, 20)) == [m.Progress(turn=1, processed=3, total=20)]
    tell(host, GenTokens(1, Piece(ids=(1,), text="a")))
    assert tell(host, GenProgress(1, 4, 20)) == []


def test_a_flood_of_pings_gets_one_answer_each_and_keeps_nothing_and_no_timer_moves() -> None:
    host = opened()
    tracemalloc.start()
    for number in range(5000):
        effects = host.handle(Received(CLIENT, STREAM, m.Ping(nonce=number)), 1.0)
        assert len(effects) == 1
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 50_000


def test_a_timer_that_fires_late_ends_nothing() -> None:
    host = serving()
    for key in ("open", "idle", "prompt", "stall", "unknown"):
        assert host.handle(TimerFired(key), 1e6) == []
    assert host.state == "busy"


@pytest.mark.parametrize(("key", "state"), [("open", "opening"), ("idle", "idle")])
def test_a_silent_client_is_left(key: str, state: str) -> None:
    host = new_host()
    host.start(0.0)
    if state == "idle":
        say(host, OPEN)
    out = host.handle(TimerFired(key), 1e6)
    assert only(m.Error, sent(out)).code == "stalled"
    assert only(Finished, emitted(out)).fault is False


def test_all_timers_are_taken_back_at_the_end() -> None:
    host = serving()
    tell(
        host,
        GenTokens(1, Piece(ids=tuple(range(60)), text="x")),
        GenTokens(1, Piece(ids=tuple(range(20)), text="x")),
    )
    effects = host.handle(Received(CLIENT, STREAM, m.Close()), 1.0)
    assert CancelTimer("stall") in effects


# ---- anything at all

turns = st.integers(0, 3)
clients = st.one_of(
    st.builds(
        part, turn=turns, part=st.integers(0, 2), last=st.booleans(), total=st.sampled_from([100, 200])
    ),
    st.sampled_from(list(prompt_parts(1, RAW)) + list(prompt_parts(2, RAW))),
    st.builds(m.Ack, seq=st.integers(0, 70)),
    st.builds(m.Cancel, turn=turns),
    st.just(OPEN),
    *[messages(cls) for cls in m.CODEC.classes],
)
runs = st.integers(0, 3)
pieces = st.builds(
    Piece,
    ids=st.lists(st.integers(0, 9), max_size=70).map(tuple),
    text=st.text(max_size=9),
    name=st.text(max_size=9),
)
engines = st.one_of(
    st.builds(Counted, turns, st.integers(0, 50), st.integers(0, 60)),
    st.builds(GenProgress, runs, st.integers(0, 50), st.integers(0, 50)),
    st.builds(GenTokens, runs, pieces),
    st.builds(GenDone, runs, st.sampled_from(["stop", "length", "cancelled"])),
    st.builds(GenFailed, runs, st.sampled_from(["internal", "capacity"]), st.text(max_size=9)),
    st.just(Drain()),
)
keys = st.sampled_from(["open", "idle", "prompt", "read", "stall", "nonsense"])
events = st.one_of(
    st.builds(Received, st.just(CLIENT), st.just(STREAM), clients),
    st.builds(Received, st.just(CLIENT), st.just(STREAM), clients),
    st.builds(Command, engines),
    st.builds(TimerFired, keys),
)


@examples(250)
@given(st.booleans(), st.lists(events, max_size=30))
def test_no_sequence_of_events_makes_the_host_raise_or_answer_what_can_not_be_sent(
    open_first: bool, sequence: list[Any]
) -> None:
    host = new_host()
    host.start(0.0)
    if open_first:
        say(host, OPEN)
    finished = 0
    for now, event in enumerate(sequence):
        effects = host.handle(event, float(now))
        for message in sent(effects):
            assert m.CODEC.decode(m.CODEC.encode(message)) == message
        finished += sum(isinstance(value, Finished) for value in emitted(effects))
        assert all(turn.queue.waiting <= m.WINDOW + 70 for turn in turns_of(host))
        assert credit_of(host).sent - credit_of(host).acknowledged <= m.WINDOW
    assert finished == (host.state == "over")
