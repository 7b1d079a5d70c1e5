"""Each state of each side against each message, as the tables in SPEC.md say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Event,
    HalfClosed,
    Received,
    TimerFired,
)
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import exact_voucher, resume_digest
from p2pnode.protocols.inference.commands import (
    CancelTurn,
    Drain,
    End,
    Ended,
    Finished,
    GenDone,
    GenFailed,
    GenProgress,
    GenStarted,
    GenTokens,
    SessionFailed,
    Start,
    TurnFailed,
)
from p2pnode.protocols.inference.open_session import HostTerms
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.wire import encode, wire_name
from tests.protocols.inference.paid_pair import (
    CLIENT_ID,
    SESSION,
    VOUCHERS,
    PaidPair,
    client_payment,
    paid_open,
)
from tests.protocols.inference.pair import CLIENT, HOST, STREAM, Pair, ask
from tests.protocols.support import MODEL, emitted, only, sent

SPEC = Path(__file__).resolve().parents[3] / "protocols" / "inference" / "SPEC.md"
SIG = bytes(64)
SAMPLES: dict[str, Any] = {
    "open": m.Open(model=MODEL, salt=bytes(32)),
    "resume": m.Resume(session=SessionId(bytes(32)), received=0, turn=0, proof=SIG),
    "challenge": m.Challenge(nonce=bytes(32)),
    "accept": m.Accept(session=SessionId(bytes(32)), nonce=bytes(32), epoch=1, n_ctx=4096),
    "refuse": m.Refuse(code="capacity"),
    "prompt": m.Prompt(turn=1, part=0, last=False, total=10, body=b"x"),
    "quote": m.Quote(turn=1, tokens_in=5),
    "progress": m.Progress(turn=1, processed=1, total=2),
    "tokens": m.Tokens(seq=0, ids=(1,), text="a"),
    "ack": m.Ack(seq=0),
    "checkpoint": m.Checkpoint(
        seq=1,
        tokens_in=0,
        tokens_out=0,
        token_hash=bytes(32),
        fingerprint_hash=bytes(32),
        root=bytes(32),
        signature=SIG,
    ),
    "voucher": m.Voucher(seq=0, tokens_in=0, tokens_out=0, amount=0, root=bytes(32), signature=SIG),
    "cancel": m.Cancel(turn=1),
    "done": m.Done(turn=1, reason="stop", tokens_in=0, reused=0, tokens_out=0),
    "ping": m.Ping(nonce=7),
    "pong": m.Pong(nonce=7),
    "close": m.Close(),
    "error": m.Error(code="internal"),
    "error of the turn": m.Error(code="internal", turn=1),
}


HALF_CLOSE = "half-close"


def event_of(peer: PeerId, name: str, message: object) -> Event:
    """What a row of a table stands for."""
    return HalfClosed(peer, STREAM) if name == HALF_CLOSE else Received(peer, STREAM, message)


def table(head: str) -> list[tuple[str, str, str]]:
    """(message, state, outcome) of the table after a line."""
    lines = SPEC.read_text(encoding="utf-8").split(head)[1].strip().splitlines()
    cells = [[c.strip().replace("`", "") for c in line.strip("|").split("|")] for line in lines]
    states, found = cells[0][1:], []
    for row in cells[2:]:
        if len(row) != len(states) + 1:
            break
        found += [(row[0], state, outcome) for state, outcome in zip(states, row[1:], strict=True)]
    return found


HOST_TABLE = table("Host, by what the client sends in a free session:\n")
PAID_TABLE = table("Host, by what the client sends in a paid session:\n")
CLIENT_TABLE = table("Client, by what the host sends:\n")


def test_the_tables_cover_every_message_in_every_state() -> None:
    names = {wire_name(cls) for cls in m.CODEC.classes} | {HALF_CLOSE}
    host = {(name, state) for name, state, _ in HOST_TABLE}
    client = {(name, state) for name, state, _ in CLIENT_TABLE}
    assert host == {(n, s) for n in names for s in ("opening", "idle", "reading", "serving")}
    paid = {(name, state) for name, state, _ in PAID_TABLE}
    states = ("opening", "relaying", "idle", "reading", "quoting", "serving")
    assert paid == {(n, s) for n in names for s in states}
    both = names | {"error of the turn"}
    assert client == {(n, s) for n in both for s in ("fresh", "opening", "idle", "asking")}


def host_in(state: str) -> Pair:
    """A host that stands there; the rest of a prompt is on its wire when it is reading."""
    pair = Pair(terms=HostTerms(n_ctx=16_384), answer_tokens=10)
    if state != "opening":
        pair.open()
    if state in ("reading", "serving"):
        pair.ask(ask(content="x" * (70_000 if state == "reading" else 10), input_max=1 << 20))
        pair.deliver_to_host()
    assert pair.host.state == state
    return pair


@pytest.mark.parametrize(("name", "state", "outcome"), HOST_TABLE, ids=str)
def test_the_host_does_with_each_message_in_each_state_what_the_table_says(
    name: str, state: str, outcome: str
) -> None:
    pair = host_in(state)
    message = SAMPLES.get(name)
    if name == "prompt" and state == "reading":
        message = m.CODEC.decode(pair.to_host.popleft())
    effects = pair.host.handle(event_of(CLIENT, name, message), 1.0)
    expect_outcome(pair.host.state, effects, outcome, Finished)
    if name == "ping":
        assert sent(effects) == [m.Pong(nonce=7)]


def paid_host_in(state: str) -> PaidPair:
    """The same for a paid one; a voucher is due from ``idle`` on."""
    pair = PaidPair(answer_tokens=20)
    pair.granted = replace(pair.granted, n_ctx=32_768)
    pair.host = pair.new_host()
    pair.host.start(0.0)
    if state != "opening":
        pair.client_does(Start())
        pair.deliver_to_host()
    if state not in ("opening", "relaying"):
        pair.settle()
        assert pair.host.session is not None
        pair.ask(ask())
        while pair.moves(0) and pair.run is None:
            pass
        pair.engine()
        pair.engine(40)  # all of it: its receipt is not paid yet
        assert pair.channel.owed
        if state == "serving":
            pair = paid_host_in("quoting")
            voucher = due_voucher(pair)
            pair.host_did(pair.host.handle(Received(CLIENT_ID.peer, STREAM, voucher), 0.0))
            pair.engine()
            pair.answer_tokens = 1000
            assert pair.run is not None
            pair.run.end = 1000
            pair.engine(40)
        elif state in ("reading", "quoting"):
            raw = encode(ask(content="x" * (70_000 if state == "reading" else 10)).body)
            pair.turn = 2
            pair.host_did(pair.host.handle(Received(CLIENT_ID.peer, STREAM, next(prompt_parts(2, raw))), 0.0))
            pair.to_host.clear()
            pair.to_host.extend(m.CODEC.encode(part) for part in list(prompt_parts(2, raw))[1:])
            pair.count()
    assert pair.host.state == state
    return pair


def due_voucher(pair: PaidPair) -> m.Voucher:
    """The voucher for all that is due."""
    due = pair.channel.dues[-1]
    voucher = exact_voucher(
        client_payment(),
        SESSION,
        seq=due.seq,
        tokens_in=due.tokens_in,
        tokens_out=due.tokens_out,
        root=due.root,
    )
    pair.signed.append(voucher)
    return voucher


@pytest.mark.parametrize(("name", "state", "outcome"), PAID_TABLE, ids=str)
def test_a_paid_host_does_with_each_message_in_each_state_what_the_table_says(
    name: str, state: str, outcome: str
) -> None:
    pair = paid_host_in(state)
    message = SAMPLES.get(name)
    if name == "open":
        message = paid_open()
    elif name == "prompt":
        waiting = state == "reading"
        message = m.CODEC.decode(pair.to_host.popleft()) if waiting else replace(SAMPLES[name], turn=2)
    elif name == "cancel" and state in ("quoting", "serving", "reading"):
        message = m.Cancel(turn=2)
    elif name == "voucher" and state not in ("opening", "relaying"):
        message = due_voucher(pair)
    elif name == "resume" and state == "opening":
        pair = paid_host_in("idle")
        session = pair.host.session
        assert session is not None
        pair.host = pair.new_host(kept=session)
        digest = resume_digest(session.nonce, session.session, HOST.peer, CLIENT_ID.peer)
        proof = VOUCHERS.sign_wallet(digest)
        message = m.Resume(
            session=session.session, received=pair.channel_of(session).replay.count, turn=1, proof=proof
        )
    effects = pair.host.handle(event_of(CLIENT_ID.peer, name, message), 1.0)
    expect_outcome(pair.host.state, effects, outcome, Finished)
    if name == "ping":
        assert sent(effects) == [m.Pong(nonce=7)]


def client_in(state: str, name: str = "") -> Pair:
    """A client that stands there; asking, with the host's next message of that name on its wire."""
    pair = Pair(answer_tokens=10)
    if state != "fresh":
        pair.client_does(Start())
    if state in ("idle", "asking"):
        pair.settle()
    if state == "asking":
        pair.ask(ask())
        while pair.deliver_to_host() or pair.engine():
            pass
        names = [wire_name(type(m.CODEC.decode(data))) for data in pair.to_client]
        while name in names and names.pop(0) != name:
            pair.deliver_to_client()
    assert pair.client.state == state
    return pair


@pytest.mark.parametrize(("name", "state", "outcome"), CLIENT_TABLE, ids=str)
def test_the_client_does_with_each_message_in_each_state_what_the_table_says(
    name: str, state: str, outcome: str
) -> None:
    pair = client_in(state, name)
    on_the_wire = ("quote", "progress", "tokens", "checkpoint", "done")
    message = (
        m.CODEC.decode(pair.to_client[0]) if state == "asking" and name in on_the_wire else SAMPLES.get(name)
    )
    effects = pair.client.handle(event_of(HOST.peer, name, message), 1.0)
    expect_outcome(pair.client.state, effects, outcome, SessionFailed)
    if name == "ping":
        assert sent(effects) == [m.Pong(nonce=7)]


def expect_outcome(
    state: str, effects: Sequence[Effect], outcome: str, ending: type[Finished | SessionFailed]
) -> None:
    if outcome == "violation":
        assert state == "over"
        assert only(ending, emitted(effects)).fault
        assert only(m.Error, sent(effects)).code == "bad_request"
    elif outcome == "over":
        assert state == "over"
        assert not only(ending, emitted(effects)).fault
    else:
        assert state == outcome
        assert not [value for value in emitted(effects) if isinstance(value, ending)]


def test_an_over_session_answers_nothing_and_says_nothing() -> None:
    pair = host_in("serving")
    pair.close()
    for message in SAMPLES.values():
        assert pair.host.handle(Received(CLIENT, STREAM, message), 1.0) == []
        assert pair.client.handle(Received(HOST.peer, STREAM, message), 1.0) == []
    reports = [GenStarted(1, 5, 0), GenTokens(1, (1,), "a"), GenDone(1, "stop"), Drain()]
    assert [pair.host.handle(Command(report), 1.0) for report in reports] == [[]] * 4
    orders = [Start(), ask(), CancelTurn(), End()]
    assert [pair.client.handle(Command(order), 1.0) for order in orders] == [[]] * 4
    for event in (TimerFired("idle"), TimerFired("silence"), Closed(CLIENT, STREAM)):
        assert pair.host.handle(event, 1.0) == []
        assert pair.client.handle(event, 1.0) == []


@pytest.mark.parametrize("state", ["opening", "idle", "reading", "serving"])
def test_a_lost_stream_ends_a_host_in_any_state_once_and_frees_the_engine(state: str) -> None:
    pair = host_in(state)
    pair.close()
    pair.close()
    assert pair.finished == [Finished("lost")]
    assert pair.run is None
    assert len(pair.served) == (state == "serving")


@pytest.mark.parametrize("state", ["fresh", "opening", "idle", "asking"])
def test_a_lost_stream_ends_a_client_in_any_state_once(state: str) -> None:
    pair = client_in(state)
    before = len(pair.outcomes)
    pair.close()
    pair.close()
    (failed,) = pair.outcomes[before:]
    assert isinstance(failed, SessionFailed)
    assert (failed.code, failed.cause) == (None, "lost")


@pytest.mark.parametrize("state", ["opening", "idle", "reading"])
@pytest.mark.parametrize(
    "report",
    [
        GenStarted(1, 5, 0),
        GenProgress(1, 1, 2),
        GenTokens(1, (1,), "a"),
        GenDone(1, "stop"),
        GenFailed(1, "internal", "boom"),
    ],
    ids=lambda report: type(report).__name__,
)
def test_an_engine_that_reports_outside_a_turn_is_ignored(state: str, report: Any) -> None:
    pair = host_in(state)
    assert pair.host.handle(Command(report), 1.0) == []
    assert pair.host.state == state


@pytest.mark.parametrize("state", ["fresh", "opening", "asking"])
def test_a_turn_asked_for_at_the_wrong_time_fails_here(state: str) -> None:
    pair = client_in(state)
    effects = pair.client.handle(Command(ask()), 1.0)
    assert only(TurnFailed, emitted(effects)).cause == "invalid"
    assert sent(effects) == []


@pytest.mark.parametrize("state", ["fresh", "opening", "idle", "asking"])
def test_the_client_may_end_in_any_state(state: str) -> None:
    pair = client_in(state)
    effects = pair.client.handle(Command(End()), 1.0)
    assert sent(effects) == [m.Close()]
    assert emitted(effects) == [Ended()]


@pytest.mark.parametrize("state", ["opening", "idle", "asking"])
def test_starting_twice_opens_once(state: str) -> None:
    assert client_in(state).client.handle(Command(Start()), 1.0) == []


@pytest.mark.parametrize("state", ["fresh", "opening", "idle"])
def test_cancelling_nothing_says_nothing(state: str) -> None:
    assert client_in(state).client.handle(Command(CancelTurn()), 1.0) == []
