"""Whom a node asks who it is, which pushes it reads, and what it knows of whom."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.ids import PeerId
from p2pnode.protocols.events import (
    CancelTimer,
    Command,
    Effect,
    Emit,
    Event,
    Fault,
    Received,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.identify import identifier as i
from p2pnode.protocols.identify.identifier import (
    Ask,
    Changed,
    Connected,
    Disconnected,
    Identified,
    Identifier,
    Push,
    PushCame,
    ReadPush,
    RefusePush,
    Unanswered,
)
from p2pnode.protocols.identify.messages import PUSH, Statement, encode

P, Q = PeerId("p"), PeerId("q")


def message(*protocols: str) -> bytes:
    return encode(
        Statement((), frozenset(protocols)), public_key=b"", observed=b"", agent="", signed_record=b""
    )


def emitted(effects: Sequence[Effect]) -> list[object]:
    return [each.value if isinstance(each, Emit) else each for each in effects]


def said(machine: Identifier, value: object, now: float = 0.0) -> list[object]:
    return emitted(machine.handle(Command(value), now))


def known(machine: Identifier, peer: PeerId, *protocols: str) -> None:
    said(machine, Connected(peer))
    machine.handle(Received(peer, 0, message(*protocols)), 0.0)


def test_a_peer_is_asked_once_when_it_connects_and_known_when_it_answers() -> None:
    machine = Identifier()
    assert said(machine, Connected(P)) == [Ask(P)]
    assert said(machine, Connected(P)) == []
    assert machine.statement_of(P) is None
    assert emitted(machine.handle(Received(P, 0, message("/a")), 1.0)) == [Identified(P)]
    assert machine.statement_of(P) == Statement((), frozenset({"/a"}))


def test_a_peer_that_does_not_answer_is_asked_three_times() -> None:
    machine, asked = Identifier(), 1
    said(machine, Connected(P))
    now = 0.0
    for wait_s in (i.RETRY_S, 2 * i.RETRY_S):
        assert said(machine, Unanswered(P), now) == [SetTimer(P, now + wait_s)]
        now += wait_s
        assert emitted(machine.handle(TimerFired(P), now)) == [Ask(P)]
        asked += 1
    assert said(machine, Unanswered(P), now) == []
    assert asked == i.ASKS_MAX


def test_a_peer_that_left_is_forgotten_with_its_timer() -> None:
    machine = Identifier()
    known(machine, P, "/a")
    assert said(machine, Disconnected(P)) == [CancelTimer(P)]
    assert machine.statement_of(P) is None
    assert said(machine, Disconnected(P)) == []
    assert emitted(machine.handle(TimerFired(P), 9.0)) == []
    assert emitted(machine.handle(Received(P, 0, message("/late")), 9.0)) == []
    assert machine.statement_of(P) is None


def test_a_push_takes_the_place_of_what_was_said_before() -> None:
    machine = Identifier()
    known(machine, P, "/a", "/b")
    assert said(machine, PushCame(P)) == [ReadPush(P)]
    machine.handle(Received(P, 0, message("/c")), 0.0)
    assert machine.statement_of(P) == Statement((), frozenset({"/c"}))


def test_four_pushes_a_second_are_refused_unread_and_charged_to_the_peer() -> None:
    machine = Identifier()
    known(machine, P)
    known(machine, Q)
    read = refused = 0
    weight = 0.0
    for n in range(4 * 60):
        for value in said(machine, PushCame(P), n / 4):
            read += value == ReadPush(P)
            refused += value == RefusePush(P)
            weight += value.weight if isinstance(value, Fault) else 0.0
    assert read == i.PUSHES_BURST + 60 // i.PUSH_EVERY_S - 1
    assert weight == refused == 240 - read
    assert said(machine, PushCame(Q), 60.0) == [ReadPush(Q)]


def test_a_push_of_a_stranger_is_refused() -> None:
    assert said(Identifier(), PushCame(P)) == [RefusePush(P)]


def test_a_malformed_message_is_charged_and_changes_nothing() -> None:
    machine = Identifier()
    known(machine, P, "/a")
    [fault] = emitted(machine.handle(Received(P, 0, b"\x12\xff"), 0.0))
    assert fault == Fault(P, "identify malformed", 10.0)
    assert machine.statement_of(P) == Statement((), frozenset({"/a"}))


def test_our_changes_are_pushed_to_those_who_listen_at_most_every_five_seconds() -> None:
    machine = Identifier()
    known(machine, P, PUSH)
    known(machine, Q, "/other")
    assert said(machine, Changed(), 1.0) == [Push(P)]
    assert said(machine, Changed(), 2.0) == [SetTimer("push", 1.0 + i.CHANGES_EVERY_S)]
    assert said(machine, Changed(), 3.0) == []
    assert emitted(machine.handle(TimerFired("push"), 6.0)) == [Push(P)]
    assert said(machine, Changed(), 20.0) == [Push(P)]


PEERS = st.sampled_from([PeerId(name) for name in "abc"])
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Received, PEERS, st.just(0), st.one_of(st.binary(max_size=60), st.just(message("/x", PUSH)))),
    st.builds(TimerFired, st.one_of(PEERS, st.just("push"))),
    st.builds(
        Command,
        st.one_of(
            *(st.builds(kind, PEERS) for kind in (Connected, Disconnected, Unanswered, PushCame)),
            st.builds(Changed),
        ),
    ),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 100)), max_size=60))
def test_no_order_of_events_raises_or_asks_a_peer_too_often(events: list[tuple[Event, float]]) -> None:
    machine, now, asks = Identifier(), 0.0, dict.fromkeys("abc", 0)
    for event, later_s in events:
        now += later_s
        for value in emitted(machine.handle(event, now)):
            if isinstance(value, Ask):
                asks[value.peer] += 1
                assert asks[value.peer] <= i.ASKS_MAX
        if isinstance(event, Command) and isinstance(event.value, Disconnected):
            asks[event.value.peer] = 0
            assert machine.statement_of(event.value.peer) is None
