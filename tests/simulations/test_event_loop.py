"""The heap of events keeps time and order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.simulations.event_loop import EventLoop


def test_what_is_due_runs_in_order_and_time_stands_still_between() -> None:
    loop, ran = EventLoop(), []
    for when, name in ((2.0, "later"), (1.0, "first"), (1.0, "second"), (9.0, "never")):
        loop.at(when, lambda name: ran.append((loop.now, name)), name)
    loop.run_until(5.0)
    assert ran == [(1.0, "first"), (1.0, "second"), (2.0, "later")]
    assert (loop.now, loop.done, len(loop)) == (5.0, 3, 1)


def test_what_comes_up_meanwhile_runs_too_and_never_in_the_past() -> None:
    loop, ran = EventLoop(), []

    def first() -> None:
        loop.at(0.0, lambda: ran.append(loop.now))
        loop.after(0.5, lambda: ran.append(loop.now))

    loop.at(1.0, first)
    loop.run_until(2.0)
    assert ran == [1.0, 1.5]


def test_an_action_that_fails_leaves_the_time_and_the_count_as_they_are() -> None:
    loop = EventLoop()
    loop.at(1.0, int, "no number")
    loop.at(2.0, int, "2")
    with pytest.raises(ValueError, match="no number"):
        loop.run_until(5.0)
    assert (loop.now, loop.done, len(loop)) == (1.0, 1, 1)
    loop.run_until(5.0)
    assert (loop.now, loop.done, len(loop)) == (5.0, 2, 0)


@given(st.lists(st.tuples(st.floats(0, 3), st.lists(st.floats(0, 0.004), max_size=3)), max_size=40))
def test_the_order_is_that_of_time_and_then_of_asking_however_close_together(
    asked: list[tuple[float, list[float]]],
) -> None:
    loop = EventLoop()
    ran: list[tuple[float, int]] = []
    expected: list[tuple[float, int]] = []

    def act(when: float, number: int, later: list[float]) -> None:
        assert loop.now == when
        ran.append((when, number))
        for seconds in later:
            ask(loop.now + seconds, [])

    def ask(when: float, later: list[float]) -> None:
        expected.append((when, len(expected)))
        loop.at(when, act, when, len(expected) - 1, later)

    for when, later in asked:
        ask(when, later)
    for end in (0.5, 0.5, 1.2345, 4.0):
        loop.run_until(end)
    assert ran == sorted(expected)
    assert (len(loop), loop.done) == (0, len(expected))
