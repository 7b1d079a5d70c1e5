"""What arrives while a reader waits may be taken at once, and what is small may be sent at once: in order."""

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

    def pace(count: int, now: float) -> float:
        assert now == trio.current_time()
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


class SlowWire(Wire):
    """It takes so many bytes at once; what is left goes with the next ``write``, which may be held up."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.unsent, self.writes = room, b"", 0
        self.is_free = trio.Event()
        self.is_free.set()

    def write_now(self, data: bytes) -> bool:
        assert not self.unsent
        self.sent += data[: self.room]
        self.unsent = data[self.room :]
        return not self.unsent

    async def write(self, data: bytes) -> None:
        self.writes += 1
        await self.is_free.wait()
        self.sent += self.unsent + data
        self.unsent = b""


def bodies(sent: bytes) -> list[bytes]:
    """What DATA frames hold."""
    found = []
    while len(sent) >= wire.HEADER_BYTES:
        _, kind, _, _, length = wire.HEADER.unpack_from(sent)
        body = sent[wire.HEADER_BYTES :][: length if kind == wire.DATA else 0]
        found += [body] if kind == wire.DATA else []
        sent = sent[wire.HEADER_BYTES + len(body) :]
    return found


@pytest.mark.parametrize("room", [0, 5, 1000])
async def test_small_messages_are_sent_in_order_from_the_task_of_their_writer(
    autojump_clock: MockClock, room: int
) -> None:
    conn = SlowWire(room)
    muxed = wire.Yamux(conn, PeerId("peer"), is_initiator=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        stream = muxed.open_stream()
        assert stream.write_now(b"0")  # behind the frame that opens the stream, which waits for the writer
        await trio.testing.wait_all_tasks_blocked()
        before, conn.is_free = conn.writes, trio.Event()
        assert stream.write_now(b"1")
        assert (b"1" in bodies(conn.sent)[1:]) == (room == 1000)
        assert stream.write_now(b"2")
        assert stream.write_now(b"3")
        await trio.testing.wait_all_tasks_blocked()
        assert conn.writes == before + (room < 1000)
        conn.is_free.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bodies(conn.sent) == [b"0", b"1", b"2", b"3"]
        assert muxed.bytes_out == len(conn.sent)
        nursery.cancel_scope.cancel()


async def test_what_streams_queue_in_one_moment_leaves_in_one_packet(autojump_clock: MockClock) -> None:
    conn = SlowWire(1000)
    muxed = wire.Yamux(conn, PeerId("peer"), is_initiator=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        one, other = muxed.open_stream(), muxed.open_stream()
        await trio.testing.wait_all_tasks_blocked()
        before = conn.writes
        assert one.queue_now(b"1")
        assert other.queue_now(b"2")
        conn.is_free.set()
        await trio.testing.wait_all_tasks_blocked()
        assert conn.writes == before + 1
        assert bodies(conn.sent) == [b"1", b"2"]
        one.reset()
        assert not one.queue_now(b"3")
        nursery.cancel_scope.cancel()


async def test_a_wire_that_breaks_when_something_is_sent_at_once_ends_the_connection(
    autojump_clock: MockClock,
) -> None:
    class Broken(Wire):
        def write_now(self, data: bytes) -> bool:
            raise OSError

    muxed = wire.Yamux(Broken(), PeerId("peer"), is_initiator=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        stream = muxed.open_stream()
        await trio.testing.wait_all_tasks_blocked()
        assert stream.write_now(b"x")  # as where the connection is lost a moment later
        await muxed.event_closed.wait()
        assert not stream.write_now(b"y")
        with pytest.raises(wire.StreamLostError):
            await stream.write(b"z")


def pings(sent: bytes) -> int:
    return sent.count(wire.frame(wire.PING, wire.SYN, 0, 0)[:8])


async def test_only_a_silent_peer_is_pinged_and_one_that_does_not_answer_is_gone(
    autojump_clock: MockClock,
) -> None:
    conn = Wire()
    muxed = wire.Yamux(conn, PeerId("peer"), is_initiator=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        conn.say(OPEN)
        for _ in range(10):
            await trio.sleep(wire.KEEPALIVE_S - 1)
            conn.say(data(b"x"))
        assert pings(conn.sent) == 0
        for answered in range(1, 4):
            await trio.sleep(2 * wire.KEEPALIVE_S)
            assert pings(conn.sent) == answered
            conn.say(wire.frame(wire.PING, wire.ACK, 0, answered))
        assert not muxed.is_closed
        silent_since = trio.current_time()
        await muxed.event_closed.wait()
        assert 2 * wire.KEEPALIVE_S <= trio.current_time() - silent_since <= 3 * wire.KEEPALIVE_S
        nursery.cancel_scope.cancel()
