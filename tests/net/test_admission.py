"""Which inbound connections are accepted, and which wait or are dropped."""

from __future__ import annotations

from functools import partial

import trio
from trio.testing import MockClock

from p2pnode.limits import Limits
from p2pnode.net.admission import PATIENCE_S, PENDING_PER_HANDSHAKE, Admission


async def test_one_address_cannot_take_every_place() -> None:
    admission = Admission(Limits(connections_inbound_per_ip=2))
    tickets = [admission.enter("1.1.1.1", lambda: None) for _ in range(3)]
    assert [ticket is not None for ticket in tickets] == [True, True, False]
    assert admission.enter("2.2.2.2", lambda: None) is not None
    assert admission.refused == {"per_ip": 1}
    assert tickets[0] is not None
    admission.leave(tickets[0])
    assert admission.enter("1.1.1.1", lambda: None) is not None


async def test_a_handshake_waits_its_turn_and_starts_when_another_ends(autojump_clock: MockClock) -> None:
    admission = Admission(Limits(inbound_handshakes_max=1))
    first, second = admission.enter("a", lambda: None), admission.enter("b", lambda: None)
    assert first is not None
    assert second is not None
    await admission.begin(first)
    started = trio.Event()

    async def begin_second() -> None:
        await admission.begin(second)
        started.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin_second)
        await trio.testing.wait_all_tasks_blocked()
        assert not started.is_set()
        admission.settle(first)
        with trio.fail_after(PATIENCE_S / 2):
            await started.wait()


async def test_when_too_many_say_nothing_the_oldest_goes() -> None:
    admission = Admission(Limits(inbound_handshakes_max=1))
    dropped: list[int] = []
    for i in range(PENDING_PER_HANDSHAKE + 2):
        assert admission.enter("a", partial(dropped.append, i)) is not None
    assert dropped == [0, 1]


async def test_a_handshake_that_says_nothing_is_dropped_for_the_next(autojump_clock: MockClock) -> None:
    admission = Admission(Limits(inbound_handshakes_max=1))
    dropped = trio.Event()
    silent, honest = admission.enter("a", dropped.set), admission.enter("b", lambda: None)
    assert silent is not None
    assert honest is not None
    await admission.begin(silent)
    with trio.fail_after(PATIENCE_S * 2):
        await admission.begin(honest)
    assert dropped.is_set()
