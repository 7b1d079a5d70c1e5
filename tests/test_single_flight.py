"""What many ask for at once is done once; each keeps its own deadline."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.single_flight import SingleFlight


async def test_all_who_ask_meanwhile_have_the_outcome_of_one_call(autojump_clock: MockClock) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    calls, got = [], []

    async def call() -> int:
        calls.append(trio.current_time())
        await trio.sleep(1)
        return len(calls)

    async def ask(key: str) -> None:
        got.append((key, await flights.do(key, call)))

    async with trio.open_nursery() as nursery:
        for key in "aaab":
            nursery.start_soon(ask, key)
    assert len(calls) == 2
    assert sorted(key for key, _ in got) == ["a", "a", "a", "b"]
    assert await flights.do("a", call) == 3  # it is over: what is asked later is asked anew


async def test_an_error_reaches_all_of_them(autojump_clock: MockClock) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    calls, errors = [], []

    async def call() -> int:
        calls.append(1)
        await trio.sleep(1)
        raise UnreachableError("gone")

    async def ask() -> None:
        with pytest.raises(UnreachableError, match="gone") as caught:
            await flights.do("a", call)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert (len(calls), len(errors)) == (1, 3)


async def test_who_is_cancelled_leaves_the_call_to_the_next(autojump_clock: MockClock) -> None:
    flights: SingleFlight[str, float] = SingleFlight()
    got = []

    async def call() -> float:
        began = trio.current_time()
        await trio.sleep(3)
        return began

    async def ask(patience_s: float) -> None:
        with trio.move_on_after(patience_s):
            got.append((patience_s, await flights.do("a", call)))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, 10)
        nursery.start_soon(ask, 2)
    # Either of the two who wait may call next; the one with less patience is cancelled before it ends.
    assert [(patience, at - began) for patience, at in got] in ([(10, 1.0)], [(10, 2.0)])
