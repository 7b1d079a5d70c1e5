"""What arrives while a reader waits may be taken at once, in order, and never too much of it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pnode.ids import PeerId
from p2pnode.net import yamux as wire
from tests.net.support import Wire

OPEN = wire.frame(wire.WINDOW_UPDATE, wire.SYN, 1, 0)


def data(body: bytes) -> bytes:
    return wire.frame(wire.DATA, 0, 1, len(body)) + body


@pytest.mark.parametrize("takes", [True, False])
async def test_arrivals_are_taken_in_order_and_the_rest_wakes_the_reader(
    autojump_clock: MockClock, *, takes: bool
) -> None:
    conn, taken, read = Wire(), list[bytes](), list[bytes]()
    muxed = wire.Yamux(conn, PeerId("peer"), is_initiator=False)

    def taker(body: bytes | bytearray) -> bool:
        if takes:
            taken.append(bytes(body))
        return takes

    async def reader(stream: wire.YamuxStream) -> None:
        while piece := await stream.read():
            read.append(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        conn.say(OPEN)
        stream = await muxed.opened_by_peer.receive()
        stream.taker = taker
        conn.say(data(b"early"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(reader, stream)
        await trio.testing.wait_all_tasks_blocked()
        assert (taken, read) == ([], [b"early"])  # nobody waited when it came
        pieces = [b"%d," % each for each in range(2 * wire.TAKEN_PER_READ)]
        conn.say(b"".join(map(data, pieces)))
        await trio.testing.wait_all_tasks_blocked()
        at_once = wire.TAKEN_PER_READ if takes else 0
        assert (taken, read[1:]) == (pieces[:at_once], [b"".join(pieces[at_once:])])
        before = len(taken)
        conn.say(data(b"again"))
        await trio.testing.wait_all_tasks_blocked()
        assert (taken[before:] or read[-1:]) == [b"again"]
        nursery.cancel_scope.cancel()


async def test_what_is_taken_gives_credit_back(autojump_clock: MockClock) -> None:
    conn, taken = Wire(), list[int]()
    muxed = wire.Yamux(conn, PeerId("peer"), is_initiator=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        conn.say(OPEN)
        stream = await muxed.opened_by_peer.receive()

        def taker(body: bytes | bytearray) -> bool:
            taken.append(len(body))
            return True

        stream.taker = taker
        nursery.start_soon(stream.read)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(40):  # more than four windows
            conn.say(data(bytes(32 * 1024)))
            await trio.testing.wait_all_tasks_blocked()
        assert sum(taken) == 40 * 32 * 1024
        assert not muxed.is_closed
        assert wire.frame(wire.WINDOW_UPDATE, 0, 1, 0)[:8] in conn.sent
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("body", "active"), [(b"", False), (b"x", True)])
async def test_only_bytes_count_as_activity(autojump_clock: MockClock, body: bytes, *, active: bool) -> None:
    conn = Wire()
    muxed = wire.Yamux(conn, PeerId("peer"), is_initiator=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        conn.say(OPEN)
        stream = await muxed.opened_by_peer.receive()
        await trio.sleep(5)
        conn.say(data(body))
        await trio.testing.wait_all_tasks_blocked()
        now = trio.current_time()
        assert (muxed.active_at == now, stream.active_at == now) == (active, active)
        nursery.cancel_scope.cancel()


async def test_the_pace_is_told_what_came_and_not_what_was_in_it(autojump_clock: MockClock) -> None:
    conn, told = Wire(), list[int]()

    def pace(count: int) -> float:
        told.append(count)
        return 0.0

    muxed = wire.Yamux(conn, PeerId("peer"), is_initiator=False, pace=pace)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        for overhead in (0, 1000):
            conn.taken += overhead
            conn.say(OPEN if not overhead else data(b"x"))
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told == [len(OPEN), 1000 + len(data(b"x"))]
