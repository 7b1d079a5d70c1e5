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
from p2pnode.protocols.inference.channel import HostTerms, exact_voucher, resume_digest
from p2pnode.protocols.inference.commands import (
    Ask,
    CancelTurn,
    Counted,
    Drain,
    End,
    Ended,
    Finished,
    GenDone,
    GenFailed,
    GenProgress,
    GenTokens,
    SessionFailed,
    Start,
    TurnFailed,
)
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.inference.replay import Piece
from p2pnode.protocols.wire import encode, wire_name
from tests.protocols.inference.paid_pair import (
    CLIENT_ID,
    SESSION,
    VOUCHERS,
    PaidPair,
    client_payment,
    next_voucher,
    paid_open,
)
from tests.protocols.inference.pair import CLIENT, HOLDER, HOST, PROMPT_HASH, STREAM, Pair, ask
from tests.protocols.support import MODEL, emitted, only, sent

SPEC = Path(__file__).resolve().parents[3] / "protocols" / "inference" / "SPEC.md"
SIG = bytes(64)
SAMPLES: dict[str, Any] = {
    "open": m.Open(model=MODEL, salt=bytes(32), holder=HOLDER),
    "resume": m.Resume(session=SessionId(bytes(32)), holder=HOLDER, received=0, turn=0, proof=SIG),
    "challenge": m.Challenge(nonce=bytes(32)),
    "accept": m.Accept(session=SessionId(bytes(32)), nonce=bytes(32), epoch=1, n_ctx=4096),
    "refuse": m.Refuse(code="capacity"),
    "prompt": m.Prompt(turn=1, part=0, last=False, total=10, body=b"x"),
    "received": m.PromptReceived(turn=1, bytes=1),
    "quote": m.Quote(turn=1, tokens_in=5, prompt_hash=PROMPT_HASH),
    "progress": m.Progress(turn=1, processed=1, total=2),
    "tokens": m.Tokens(turn=1, index=0, ids=(1,), text="a"),
    "vector": m.Vector(turn=1, index=0, data=bytes(4)),
    "credit": m.Credit(turn=1, upto=10),
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
    "leave": m.Leave(until=1),
    "left": m.Left(until=1, generation=1, settle_above=0),
    "ping": m.Ping(nonce=7),
    "pong": m.Pong(nonce=7),
    "close": m.Close(),
    "error": m.Error(code="internal"),
    "error of the turn": m.Error(code="internal", turn=1),
}


HALF_CLOSE = "half-close"
ON_THE_WIRE = ("received", "quote", "progress", "tokens", "checkpoint", "done")


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


HOST_TABLE = table(
    "Host, by what the client sends in a free session (`busy` by one turn, the only one that is granted):\n"
)
PAID_TABLE = table("Host, by what the client sends in a paid session (`idle` after a turn):\n")
HOST_TURN_TABLE = table(
    "Host, by what the client sends of a turn (`prompt`: the part that follows; "
    "`voucher`: the one for its input):\n"
)
CLIENT_TABLE = table("Client, by what the host sends (`busy` by one turn):\n")
CLIENT_TURN_TABLE = table("input, then `paid`; `checkpoint`: one that ends it):\n")


def test_the_tables_cover_every_message_in_every_state() -> None:
    names = {wire_name(cls) for cls in m.CODEC.classes} | {HALF_CLOSE}
    host = {(name, state) for name, state, _ in HOST_TABLE}
    client = {(name, state) for name, state, _ in CLIENT_TABLE}
    assert host == {(n, s) for n in names for s in ("opening", "idle", "busy")}
    paid = {(name, state) for name, state, _ in PAID_TABLE}
    assert paid == {(n, s) for n in names for s in ("opening", "relaying", "idle", "busy")}
    both = names | {"error of the turn"}
    assert client == {(n, s) for n in both for s in ("fresh", "opening", "idle", "busy")}
    of_host = {(name, state) for name, state, _ in HOST_TURN_TABLE}
    states = ("next", "reading", "quoting", "serving", "over")
    assert of_host == {(n, s) for n in ("prompt", "credit", "cancel", "voucher") for s in states}
    of_client = {(name, state) for name, state, _ in CLIENT_TURN_TABLE}
    turn = ("received", "quote", "progress", "tokens", "vector", "checkpoint", "done", "error of the turn")
    assert of_client == {(n, s) for n in turn for s in ("asked", "quoted", "paid", "over")}


LONG = "x" * 12_000


def host_in(state: str) -> Pair:
    """A host that stands there; the rest of a prompt is on its wire when it is busy."""
    pair = Pair(terms=HostTerms(n_ctx=16_384), answer_tokens=10)
    if state != "opening":
        pair.open()
    if state == "busy":
        pair.ask(ask(content=LONG, input_max=1 << 20))
        pair.deliver_to_host()
    assert pair.host.state == state
    return pair


@pytest.mark.parametrize(("name", "state", "outcome"), HOST_TABLE, ids=str)
def test_the_host_does_with_each_message_in_each_state_what_the_table_says(
    name: str, state: str, outcome: str
) -> None:
    pair = host_in(state)
    message = SAMPLES.get(name)
    if name == "prompt" and state == "busy":
        message = m.CODEC.decode(pair.to_host.popleft())
    elif name == HALF_CLOSE and state == "busy":
        while pair.deliver_to_host():
            pass
    effects = pair.host.handle(event_of(CLIENT, name, message), 1.0)
    expect_outcome(pair.host.state, effects, outcome, Finished)
    if name == "ping":
        assert sent(effects) == [m.Pong(nonce=7)]


def paid_host_in(state: str) -> PaidPair:
    """The same for a paid one; a voucher is due from ``idle`` on, which is after a turn."""
    pair = PaidPair(answer_tokens=20)
    pair.granted = replace(pair.granted, n_ctx=32_768)
    pair.host = pair.new_host()
    pair.host.start(0.0)
    if state != "opening":
        pair.client_does(Start())
        pair.deliver_to_host()
    if state not in ("opening", "relaying"):
        pair.settle()
        pair.ask(ask())
        while pair.moves(0) and pair.run is None:
            pass
        pair.engine()
        pair.engine(40)  # all of it: its receipt is not paid yet
        assert pair.channel.owed
        if state == "busy":
            begin_turn(pair, 2, ask(content=LONG))
    assert pair.host.state == state
    return pair


def begin_turn(pair: PaidPair, turn: int, order: Ask) -> None:
    """A prompt comes of a client that is not the pair's: its first part, the others are on the wire."""
    pair.turn = turn
    parts = list(prompt_parts(turn, encode(order.body)))
    pair.host_did(pair.host.handle(Received(CLIENT_ID.peer, STREAM, parts[0]), 0.0))
    pair.to_host.clear()
    pair.to_host.extend(m.CODEC.encode(part) for part in parts[1:])


def due_voucher(pair: PaidPair) -> m.Voucher:
    """The voucher for all that is due."""
    voucher = next_voucher(pair.host)
    pair.signed.append(voucher)
    return voucher


def host_turn_in(state: str) -> PaidPair:
    """A host whose third turn stands there, of a session that grants two at once; the second is served."""
    pair = PaidPair(answer_tokens=20)
    pair.granted = replace(pair.granted, n_ctx=32_768, turns_max=2)
    pair.host = pair.new_host()
    pair.host.start(0.0)
    pair.open()
    pair.ask(ask())
    pair.settle()
    begin_turn(pair, 2, ask())
    pair.count()
    pair.host_did(pair.host.handle(Received(CLIENT_ID.peer, STREAM, due_voucher(pair)), 0.0))
    session = pair.host.session
    assert session is not None
    assert session.turns[2].state == "serving"
    if state != "next":
        begin_turn(pair, 3, ask(content=LONG))
    if state in ("quoting", "serving"):
        pair.deliver_to_host()
        pair.count()
    if state == "serving":
        pair.host_did(pair.host.handle(Received(CLIENT_ID.peer, STREAM, due_voucher(pair)), 0.0))
    if state == "over":
        pair.host_did(pair.host.handle(Received(CLIENT_ID.peer, STREAM, m.Cancel(turn=3)), 0.0))
    assert host_turn_state(pair, 3) == state
    return pair


def host_turn_state(pair: PaidPair, number: int) -> str:
    session = pair.host.session
    assert session is not None
    if number in session.turns:
        return session.turns[number].state
    return "next" if number > session.asked else "over"


@pytest.mark.parametrize(("name", "state", "outcome"), HOST_TURN_TABLE, ids=str)
def test_the_host_does_with_each_message_of_a_turn_what_the_table_says_and_no_other_turn_moves(
    name: str, state: str, outcome: str
) -> None:
    pair = host_turn_in(state)
    session = pair.host.session
    assert session is not None
    message: Any = {
        "prompt": m.Prompt(turn=3, part=0 if state == "next" else 9, last=False, total=20_000, body=b"x"),
        "credit": m.Credit(turn=3, upto=10),
        "cancel": m.Cancel(turn=3),
    }.get(name)
    if name == "prompt" and pair.to_host:
        message = m.CODEC.decode(pair.to_host.popleft())
    elif name == "voucher":
        tokens_in = session.meter.tokens_in + 15
        point = session.channel.newest
        counts = {"seq": point.seq, "tokens_in": tokens_in, "tokens_out": point.tokens_out}
        message = exact_voucher(client_payment(), SESSION, **counts, root=point.root, turn=3)
        pair.signed.append(message)
    effects = pair.host.handle(Received(CLIENT_ID.peer, STREAM, message), 1.0)
    if outcome == "violation":
        expect_outcome(pair.host.state, effects, outcome, Finished)
    else:
        assert pair.host.state == "busy"
        assert host_turn_state(pair, 3) == outcome
        assert session.turns[2].state == "serving"


@pytest.mark.parametrize(("name", "state", "outcome"), PAID_TABLE, ids=str)
def test_a_paid_host_does_with_each_message_in_each_state_what_the_table_says(
    name: str, state: str, outcome: str
) -> None:
    pair = paid_host_in(state)
    message = SAMPLES.get(name)
    if name == "open":
        message = paid_open()
    elif name == "prompt":
        busy = state == "busy"
        message = m.CODEC.decode(pair.to_host.popleft()) if busy else replace(SAMPLES[name], turn=2)
    elif name == "cancel" and state == "busy":
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
            holder=HOLDER,
            session=session.session,
            received=pair.channel_of(session).replay.count,
            turn=1,
            proof=proof,
        )
    effects = pair.host.handle(event_of(CLIENT_ID.peer, name, message), 1.0)
    expect_outcome(pair.host.state, effects, outcome, Finished)
    if name == "ping":
        assert sent(effects) == [m.Pong(nonce=7)]


def client_in(state: str, name: str = "") -> Pair:
    """A client that stands there; busy, with the host's next message of that name on its wire."""
    pair = Pair(answer_tokens=10)
    if state != "fresh":
        pair.client_does(Start())
    if state in ("idle", "busy"):
        pair.settle()
    if state == "busy":
        pair.ask(ask())
        while pair.deliver_to_host() or pair.engine():
            pass
        hear_until(pair, name if name in ON_THE_WIRE else "received")
    assert pair.client.state == state
    return pair


def hear_until(pair: Pair, name: str) -> None:
    """The client hears all before the first message of that name; all there is where there is none."""
    names = [wire_name(type(m.CODEC.decode(data))) for data in pair.to_client]
    while names and names.pop(0) != name:
        message = m.CODEC.decode(pair.to_client.popleft())
        pair.client_did(pair.client.handle(Received(HOST.peer, STREAM, message), 0.0))


@pytest.mark.parametrize(("name", "state", "outcome"), CLIENT_TABLE, ids=str)
def test_the_client_does_with_each_message_in_each_state_what_the_table_says(
    name: str, state: str, outcome: str
) -> None:
    pair = client_in(state, name)
    message = SAMPLES.get(name)
    if state == "busy" and name in ON_THE_WIRE:
        message = m.CODEC.decode(pair.to_client[0])
    effects = pair.client.handle(event_of(HOST.peer, name, message), 1.0)
    expect_outcome(pair.client.state, effects, outcome, SessionFailed)
    if name == "ping":
        assert sent(effects) == [m.Pong(nonce=7)]


def client_turn_in(state: str, name: str) -> PaidPair:
    """A client with two turns, whose second stands there; the host's message of that name is the next."""
    pair = PaidPair(answer_tokens=10)
    pair.granted = replace(pair.granted, turns_max=2)
    pair.host = pair.new_host()
    pair.host.start(0.0)
    pair.open()
    pair.ask(ask())
    if state == "quoted":  # of two at once the input of the first is paid
        pair.ask(ask())
        while pair.deliver_to_host() or pair.count():
            pass
        hear_until(pair, "never")
        return pair
    pair.settle()
    pair.ask(ask())
    if state == "over":
        pair.settle()
        return pair
    while pair.deliver_to_host():
        pass
    if state == "paid":
        pair.count()
        hear_until(pair, "never")
        pair.deliver_to_host()
        while pair.engine():
            pass
        hear_until(pair, name if name in ON_THE_WIRE[2:] else "progress")
    elif name == "quote":
        pair.count()
        hear_until(pair, name)
    assert client_turn_state(pair) == state
    return pair


def client_turn_state(pair: PaidPair) -> str:
    held = pair.client.held
    assert held is not None
    return held.turns[2].state if 2 in held.turns else "over"


@pytest.mark.parametrize(("name", "state", "outcome"), CLIENT_TURN_TABLE, ids=str)
def test_the_client_does_with_each_message_of_a_turn_what_the_table_says(
    name: str, state: str, outcome: str
) -> None:
    pair = client_turn_in(state, name)
    message = SAMPLES[name]
    if name != "checkpoint":
        message = replace(message, turn=2)
    if (state == "paid" and name in ON_THE_WIRE[2:]) or (state == "asked" and name == "quote"):
        message = m.CODEC.decode(pair.to_client[0])
    elif name == "done" and state == "quoted":
        pair.cancel()
        message = replace(message, reason="cancelled")
    effects = pair.client.handle(Received(HOST.peer, STREAM, message), 1.0)
    if outcome == "violation":
        expect_outcome(pair.client.state, effects, outcome, SessionFailed)
    else:
        assert pair.client.state != "over"
        assert client_turn_state(pair) == outcome


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
    pair = host_in("busy")
    pair.close()
    for message in SAMPLES.values():
        assert pair.host.handle(Received(CLIENT, STREAM, message), 1.0) == []
        assert pair.client.handle(Received(HOST.peer, STREAM, message), 1.0) == []
    reports = [Counted(1, 5), GenTokens(1, Piece(ids=(1,), text="a")), GenDone(1, "stop"), Drain()]
    assert [pair.host.handle(Command(report), 1.0) for report in reports] == [[]] * 4
    orders = [Start(), ask(), CancelTurn(), End()]
    assert [pair.client.handle(Command(order), 1.0) for order in orders] == [[]] * 4
    for event in (TimerFired("idle"), TimerFired("silence"), Closed(CLIENT, STREAM)):
        assert pair.host.handle(event, 1.0) == []
        assert pair.client.handle(event, 1.0) == []


@pytest.mark.parametrize("state", ["opening", "idle", "busy"])
def test_a_lost_stream_ends_a_host_in_any_state_once_and_frees_the_engine(state: str) -> None:
    pair = host_in(state)
    pair.close()
    pair.close()
    assert pair.finished == [Finished("lost")]
    assert pair.run is None
    assert len(pair.served) == (state == "busy")


@pytest.mark.parametrize("state", ["fresh", "opening", "idle", "busy"])
def test_a_lost_stream_ends_a_client_in_any_state_once(state: str) -> None:
    pair = client_in(state)
    before = len(pair.outcomes)
    pair.close()
    pair.close()
    (failed,) = pair.outcomes[before:]
    assert isinstance(failed, SessionFailed)
    assert (failed.code, failed.cause) == (None, "lost")


@pytest.mark.parametrize("state", ["opening", "idle", "busy"])
@pytest.mark.parametrize(
    "report",
    [
        Counted(9, 5, 0),
        GenProgress(1, 1, 2),
        GenTokens(1, Piece(ids=(1,), text="a")),
        GenDone(1, "stop"),
        GenFailed(1, "internal", "boom"),
    ],
    ids=lambda report: type(report).__name__,
)
def test_an_engine_that_reports_outside_a_turn_is_ignored(state: str, report: Any) -> None:
    pair = host_in(state)
    assert pair.host.handle(Command(report), 1.0) == []
    assert pair.host.state == state


@pytest.mark.parametrize("state", ["fresh", "opening", "busy"])
def test_a_turn_asked_for_at_the_wrong_time_fails_here(state: str) -> None:
    pair = client_in(state)
    effects = pair.client.handle(Command(ask()), 1.0)
    assert only(TurnFailed, emitted(effects)).cause == "invalid"
    assert sent(effects) == []


@pytest.mark.parametrize("state", ["fresh", "opening", "idle", "busy"])
def test_the_client_may_end_in_any_state(state: str) -> None:
    pair = client_in(state)
    effects = pair.client.handle(Command(End()), 1.0)
    assert sent(effects) == [m.Close()]
    assert emitted(effects) == [Ended()]


@pytest.mark.parametrize("state", ["opening", "idle", "busy"])
def test_starting_twice_opens_once(state: str) -> None:
    assert client_in(state).client.handle(Command(Start()), 1.0) == []


@pytest.mark.parametrize("state", ["fresh", "opening", "idle"])
def test_cancelling_nothing_says_nothing(state: str) -> None:
    assert client_in(state).client.handle(Command(CancelTurn()), 1.0) == []
