"""The shell of the simulations keeps time and order, as the node's own shell does."""

from __future__ import annotations

from collections.abc import Sequence

from p2pnode.ids import PeerId
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from tests.event_heap import EventHeap, MachineWorld

A, B = PeerId("a"), PeerId("b")


class Script:
    """Answers each command with the effects in it, and remembers what came and when."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Event]] = []

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        self.seen.append((now, event))
        return event.value if isinstance(event, Command) else []

    def came(self, kind: type) -> list[tuple[float, Event]]:
        return [each for each in self.seen if isinstance(each[1], kind)]


def pair(latency_s: float = 0.5) -> tuple[MachineWorld, Script, Script]:
    world = MachineWorld(latency_s=lambda _from, _to: latency_s)
    a, b = Script(), Script()
    world.add(A, a)
    world.add(B, b)
    return world, a, b


def test_what_is_due_runs_in_order_and_time_stands_still_between() -> None:
    heap, ran = EventHeap(), []
    for when, name in ((2.0, "later"), (1.0, "first"), (1.0, "second"), (9.0, "never")):
        heap.at(when, lambda name=name: ran.append((heap.now, name)))  # type: ignore[misc]
    heap.run_until(5.0)
    assert ran == [(1.0, "first"), (1.0, "second"), (2.0, "later")]
    assert (heap.now, heap.done, len(heap)) == (5.0, 3, 1)


def test_what_comes_up_meanwhile_runs_too_and_never_in_the_past() -> None:
    heap, ran = EventHeap(), []

    def first() -> None:
        heap.at(0.0, lambda: ran.append(heap.now))
        heap.at(1.5, lambda: ran.append(heap.now))

    heap.at(1.0, first)
    heap.run_until(2.0)
    assert ran == [1.0, 1.5]


def test_messages_of_a_link_arrive_after_its_latency_in_order() -> None:
    world, _, b = pair()
    world.give(A, Command([Send(B, 7, "one"), Send(B, 7, "two")]))
    world.run_until(0.4)
    assert b.seen == []
    world.run_until(1.0)
    assert b.seen == [(0.5, Received(A, 7, "one")), (0.5, Received(A, 7, "two"))]
    assert world.sent == 2


def test_a_message_is_what_is_carried() -> None:
    world = MachineWorld(carry=lambda message: message.encode())
    script = Script()
    world.add(A, script)
    world.give(A, Command([Send(A, 0, "text")]))
    world.run_until(1)
    assert script.came(Received) == [(0.05, Received(A, 0, b"text"))]


def test_a_timer_that_is_set_again_fires_once_and_a_cancelled_one_never() -> None:
    world, a, _ = pair()
    world.give(A, Command([SetTimer("k", 1.0), SetTimer("k", 2.0), SetTimer("gone", 1.0)]))
    world.give(A, Command([CancelTimer("gone")]))
    world.run_until(5)
    assert a.came(TimerFired) == [(2.0, TimerFired("k"))]


def test_who_is_gone_hears_nothing_and_the_other_hears_only_what_it_is_told() -> None:
    world, a, b = pair()
    world.give(B, Command([SetTimer("k", 1.0)]))
    world.give(A, Command([Send(B, 0, "too late")]))
    world.remove(B)
    world.run_until(5)
    assert [event for _, event in b.seen if not isinstance(event, Command)] == []
    world.add(B, b)
    world.run_until(9)
    assert b.came(TimerFired) == []  # that of a life before
    world.close(A, B)
    assert a.seen[-1] == (9.0, Closed(B, 0, "lost"))


def test_what_a_machine_emits_is_told_with_its_name() -> None:
    told: list[tuple[PeerId, object]] = []
    world = MachineWorld(on_emit=lambda peer, value: told.append((peer, value)))
    world.add(A, Script(), start=[Emit("hello")])
    world.give(A, Command([Emit(1)]))
    world.at(3.0, A, Command([Emit(2)]))
    world.run_for(4.0)
    assert told == [(A, "hello"), (A, 1), (A, 2)]
