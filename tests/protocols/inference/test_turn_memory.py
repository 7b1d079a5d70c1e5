"""What clients can make a host hold for their turns: so much in all, and of it no more than others leave."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.protocols.events import Command, Received
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    Count,
    Counted,
    CountFailed,
    Finished,
    GenDone,
    Generate,
    GenFailed,
    GenTokens,
    GiveWay,
    Grown,
    TurnServed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.prompts import TurnPlaces, prompt_parts
from p2pnode.protocols.inference.replay import Piece
from p2pnode.protocols.inference.turn_memory import (
    LEAVING_BYTES,
    SESSION_BYTES,
    SessionMemory,
    TurnMemory,
    bytes_announced,
    bytes_compiled,
    bytes_of_prompt,
)
from p2pnode.protocols.wire import decode_record, encode
from p2pnode.shares import Origin
from tests.protocols.inference.pair import CLIENT, HOLDER, PROMPT_HASH, STREAM, TERMS, ask, new_host
from tests.protocols.support import MODEL, emitted, only, sent

RAW = encode(ask(content="x" * 1000).body)
ANNOUNCED = bytes_announced(len(RAW))
COMPILED = bytes_compiled(1000, 512, 0)


def origin(name: str) -> Origin:
    return Origin(name, name)


class Served:
    """A free session of a client at ``name``, and the role that would do its work."""

    def __init__(
        self, memory: TurnMemory, name: str, *, counts: bool = True, ends_turns: bool = True
    ) -> None:
        self.counts, self.ends_turns = counts, ends_turns
        share = SessionMemory(memory, origin(name))
        share.give_way = self.give_way
        self.terms: HostTerms = replace(TERMS, turns_max=8, memory=share, places=TurnPlaces(64))
        self.host: HostSession = new_host(self.terms)
        self.host.start(0.0)
        self.heard: list[Any] = []
        self.runs: dict[int, int] = {}
        self.take(self.host.handle(Received(CLIENT, STREAM, OPEN), 0.0))

    def say(self, *messages: Any) -> None:
        for message in messages:
            self.take(self.host.handle(Received(CLIENT, STREAM, message), 0.0))

    def tell(self, command: Any) -> None:
        self.take(self.host.handle(Command(command), 0.0))

    def take(self, effects: Any) -> None:
        self.heard += sent(effects)
        for value in emitted(effects):
            self.heard.append(value)
            if isinstance(value, Count) and self.counts:
                self.tell(Counted(value.turn, 1000, 0, PROMPT_HASH))
            elif isinstance(value, Generate):
                self.runs[value.turn] = value.run

    def give_way(self, turn: int) -> None:
        if self.ends_turns:
            self.tell(GiveWay(turn))

    def ask(self, turn: int) -> m.Error | None:
        """Ask a whole turn; the error that came at once, if any."""
        self.say(*prompt_parts(turn, RAW))
        return self.error(turn)

    def error(self, turn: int) -> m.Error | None:
        found = [each for each in self.heard if isinstance(each, m.Error) and each.turn == turn]
        return found[0] if found else None

    @property
    def delivered(self) -> int:
        """Output tokens that were sent of all turns."""
        return sum(len(each.ids) for each in self.heard if isinstance(each, m.Tokens))

    def pause(self, turn: int) -> None:
        """Have the engine make more than the client has credit for: it is paused then."""
        for _ in range(8):
            self.tell(GenTokens(self.runs[turn], Piece(ids=(7,) * 32, text="seven ")))


OPEN = m.Open(model=MODEL, salt=bytes(32), holder=HOLDER)


def test_a_prompt_is_counted_from_its_first_part_to_the_turns_end_and_by_what_it_is_then() -> None:
    memory = TurnMemory()
    one = Served(memory, "a", counts=False)
    parts = list(prompt_parts(1, RAW))
    half = replace(parts[0], last=False, body=RAW[:100])
    one.say(half)
    assert memory.used == ANNOUNCED
    one.say(replace(parts[0], part=1, body=RAW[100:]))
    assert only(Count, one.heard).body == decode_record(m.PromptBody, RAW)
    assert memory.used == bytes_of_prompt(decode_record(m.PromptBody, RAW), len(RAW)) >= ANNOUNCED
    one.tell(Counted(1, 1000, 0, PROMPT_HASH, held=77))
    assert memory.used == COMPILED + 77
    order = only(Generate, one.heard)
    assert order.body.messages == (), "what they say is compiled: it is not held twice"
    one.pause(1)
    assert only(CancelGenerate, one.heard).run == order.run
    assert memory.used == COMPILED + 77, "a turn that waits for credit is counted"
    one.say(m.Cancel(turn=1))
    assert (memory.used, memory.leaving) == (0, 0)


def test_one_origin_uses_all_there_is_and_a_newcomer_still_gets_its_share() -> None:
    memory = TurnMemory(10 * COMPILED)
    crowd = [Served(memory, "evil") for _ in range(2)]
    for turn in range(1, 6):
        for each in crowd:
            assert each.ask(turn) is None, "nothing is refused while there is room"
    late = crowd[0].ask(6)
    assert late is not None
    assert (late.code, late.retry_after_s) == ("capacity", 2.0)
    for each in crowd:
        for turn in range(1, 6):
            each.pause(turn)
    honest = Served(memory, "honest")
    assert honest.ask(1) is None
    gone = [each.error(turn) for each in crowd for turn in range(1, 6) if each.error(turn)]
    assert [error.code for error in gone if error] == ["capacity"], "one turn that waited for its credit"
    assert memory.used <= 10 * COMPILED
    assert memory.leaving == 0


def test_a_turn_that_an_engine_works_for_never_gives_way() -> None:
    memory = TurnMemory(3 * COMPILED)
    evil = Served(memory, "evil")
    for turn in (1, 2, 3):
        assert evil.ask(turn) is None
    honest = Served(memory, "honest")
    error = honest.ask(1)
    assert error is not None
    assert error.code == "capacity"
    assert not any(evil.error(turn) for turn in (1, 2, 3))


def test_prompts_that_trickle_or_wait_to_be_compiled_give_way_first() -> None:
    memory = TurnMemory(4 * COMPILED)
    evil = Served(memory, "evil", counts=False)
    for turn in range(1, 5):
        evil.say(m.Prompt(turn=turn, part=0, last=False, total=len(RAW), body=RAW[:1]))
    evil.say(*prompt_parts(5, RAW))
    honest = Served(memory, "honest")
    assert honest.ask(1) is None
    assert honest.ask(2) is None
    assert evil.error(4) is not None, "the newest of those that come"
    assert evil.error(5) is None, "before the one that is whole"


def test_a_stream_that_takes_nothing_holds_up_no_more_than_a_bound() -> None:
    """Its turns were told to give way and are still there: what they hold is counted apart."""
    memory = TurnMemory(4 * LEAVING_BYTES)
    stuck = [Served(memory, f"evil{number % 3}", counts=False, ends_turns=False) for number in range(12)]
    body = encode(ask(content="x" * (m.prompt_bytes_max(TERMS.n_ctx) - 200)).body)
    for turn in range(1, 9):
        for each in stuck:
            each.say(m.Prompt(turn=turn, part=0, last=False, total=len(body), body=body[:1]))
    most = 0
    for number in range(400):
        honest = Served(memory, f"honest{number}")
        honest.ask(1)
        most = max(most, memory.leaving)
        assert memory.used <= 4 * LEAVING_BYTES
    assert most <= LEAVING_BYTES + bytes_announced(len(body))


def test_a_turn_that_cannot_give_way_any_more_when_it_hears_of_it_is_counted_again() -> None:
    """Its client's credit came first. Uncounted, it would let others in for it again and again."""
    memory = TurnMemory(4 * COMPILED)
    evil = Served(memory, "evil", ends_turns=False)
    for turn in range(1, 5):
        assert evil.ask(turn) is None
        evil.pause(turn)
    honest = Served(memory, "honest")
    assert honest.ask(1) is None
    assert (memory.used, memory.leaving) == (4 * COMPILED, COMPILED)
    assert evil.host.session is not None
    told = evil.host.session.leaving[0]
    run = evil.runs[told]
    while evil.runs[told] == run:
        evil.say(m.Ack(seq=evil.delivered))
    evil.tell(GiveWay(told))
    assert evil.error(told) is None, "an engine works for it"
    assert (memory.used, memory.leaving) == (5 * COMPILED, 0)
    evil.tell(GiveWay(1))
    assert evil.error(1) is None, "nobody told it to"
    evil.say(m.Cancel(turn=told))
    assert memory.used == 4 * COMPILED


def test_turns_that_could_not_give_way_hold_up_no_more_than_a_bound() -> None:
    memory, size = TurnMemory(4 * LEAVING_BYTES), LEAVING_BYTES // 4

    class Turn:
        def __init__(self, number: int) -> None:
            self.number, self.gives_way = number, 0

    evil: list[tuple[SessionMemory, Turn]] = []
    for number in range(16):
        evil.append((SessionMemory(memory, origin("evil")), Turn(number)))
        assert evil[-1][0].hold(evil[-1][1], size)
    entered = 0
    for number in range(64):
        entered += SessionMemory(memory, origin(f"honest{number}")).hold(Turn(100 + number), size)
        for session, turn in evil:
            session.stay(turn)
    assert entered == 4
    assert memory.used == 5 * LEAVING_BYTES


def test_what_a_prompt_grows_by_is_counted_and_where_there_is_no_room_for_it_the_turn_ends() -> None:
    memory = TurnMemory(3 * COMPILED)
    one, other = Served(memory, "a"), Served(memory, "b")
    for each in (one, other):
        assert each.ask(1) is None
        each.tell(GenTokens(each.runs[1], Piece(ids=(7,) * 32, text="seven ")))
    one.tell(Grown(1, COMPILED // 2))
    assert memory.used == 2 * COMPILED + COMPILED // 2
    one.tell(Grown(1, COMPILED // 4))
    assert memory.used == 2 * COMPILED + COMPILED // 4, "it may shrink again"
    other.tell(Grown(1, COMPILED))
    error = other.error(1)
    assert error is not None
    assert (error.code, error.retry_after_s) == ("capacity", 2.0)
    receipt = [each for each in other.heard if isinstance(each, m.Checkpoint)][-1]
    assert [each.reason for each in receipt.ended] == ["failed"], "it says what came before"
    assert one.error(1) is None
    assert memory.used == COMPILED + COMPILED // 4
    other.tell(Grown(1, COMPILED))  # it is over
    one.say(m.Cancel(turn=1))
    assert (memory.used, memory.leaving) == (0, 0)


def test_one_session_holds_a_part_or_one_turn_of_any_size() -> None:
    memory, large = TurnMemory(), 30 << 20

    class Turn:
        number, gives_way = 1, None

    session, other = SessionMemory(memory, origin("a")), SessionMemory(memory, origin("a"))
    first, second, third = Turn(), Turn(), Turn()
    assert session.hold(first, 2 * SESSION_BYTES), "one turn may take any size"
    assert not session.hold(second, 1)
    assert session.hold(first, large)
    assert not session.hold(second, SESSION_BYTES - large + 1)
    assert session.hold(second, SESSION_BYTES - large)
    assert other.hold(third, large)
    assert (session.held, other.held) == (SESSION_BYTES, large)
    session.release(first)
    session.release(first)
    assert (session.held, memory.used) == (SESSION_BYTES - large, SESSION_BYTES)


def _raw(**fields: Any) -> bytes:
    body = msgpack.unpackb(RAW)
    packed: bytes = msgpack.packb(body | fields)
    return packed


HEAVY = {
    "letters of which one is wide": _raw(
        messages=[{"role": "user", "content": [{"text": "x" * 500_000 + "\U0001f600"}]}]
    ),
    "15,000 parts of nothing": _raw(messages=[{"role": "user", "content": [{}] * 60}] * 250),
    "5,000 parts of a letter": _raw(
        messages=[{"role": "user", "content": [{"text": chr(0x400 + n)} for n in range(50)]}] * 100
    ),
    "1,000 messages": _raw(messages=[{"role": "user", "content": [{"text": "ab"}]}] * 1000),
    "3,000 calls": _raw(
        messages=[
            {"role": "assistant", "tool_calls": [{"id": f"{n}", "name": f"a{n}"} for n in range(100)]}
            for _ in range(30)
        ]
    ),
    "128 tools": _raw(tools=[{"name": f"t{n}", "description": "d" * 8000} for n in range(128)]),
    "a prefix of 8,192 ids": _raw(prefix=list(range(1000, 9192))),
}


@pytest.mark.parametrize("name", HEAVY)
def test_what_is_counted_is_no_less_than_what_a_prompt_holds(name: str) -> None:
    raw = HEAVY[name]
    tracemalloc.start()
    body = decode_record(m.PromptBody, raw)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held <= bytes_of_prompt(body, len(raw)), f"{held} bytes of a prompt of {len(raw)}"


def test_what_is_counted_is_no_less_than_what_ids_hold() -> None:
    tracemalloc.start()
    ids = tuple(1000 + n for n in range(100_000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held <= bytes_compiled(len(ids), 0, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("PWCFTDGXR")), max_size=60))
def test_however_turns_end_all_that_they_held_is_given_back(steps: list[tuple[int, str]]) -> None:
    memory = TurnMemory(6 * COMPILED)
    sessions = [Served(memory, name, counts=False) for name in ("a", "a", "b", "c")]
    for number, step in steps:
        one = sessions[number]
        turns = one.host.session.turns if one.host.session is not None else {}
        turn, asked = (max(turns, default=1), one.host.session.asked + 1) if one.host.session else (1, 1)
        if one.host.state == "over":
            continue
        match step:
            case "P" if len(turns) < 8:
                one.say(m.Prompt(turn=asked, part=0, last=False, total=len(RAW), body=RAW[:9]))
            case "W" if len(turns) < 8:
                one.say(*prompt_parts(asked, RAW))
            case "C":
                one.tell(Counted(turn, 1000, 0, PROMPT_HASH))
            case "F":
                one.tell(CountFailed(turn, "internal", "no"))
            case "T" if turn in one.runs:
                one.pause(turn)
            case "D" if turn in one.runs:
                one.tell(GenDone(one.runs[turn], "stop"))
            case "G" if turn in one.runs:
                one.tell(GenFailed(one.runs[turn], "internal", "no"))
            case "X":
                one.say(m.Cancel(turn=turn))
            case "R":
                one.say(m.Close())
            case _:
                pass
        assert memory.used <= 6 * COMPILED
        assert memory.leaving == 0
    for one in sessions:
        if one.host.state != "over":
            one.say(m.Close())
        only(Finished, one.heard)
        ended = [each.turn for each in one.heard if isinstance(each, TurnServed)]
        assert len(ended) == len(set(ended))
    assert (memory.used, memory.leaving) == (0, 0)
