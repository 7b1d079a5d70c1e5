"""The shell of a machine, over real streams: what a peer says, or won't take, holds up its stream only."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ProtocolError
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.protocols.adverts.messages import CODEC as ADVERTS_CODEC
from p2pnode.protocols.adverts.messages import PROTOCOL as ADVERTS
from p2pnode.protocols.adverts.messages import GetAdvert, SampleAdverts
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    HalfClosed,
    Received,
    Send,
    SetTimer,
)
from p2pnode.protocols.framing.codec import pack_frame
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, Error, Ping, Pong, Vector
from tests.net.memory_world import world
from tests.net.support import make, make_client, running

WRITE_S = 30.0


@dataclass
class Echo:
    """Answers pings, and writes down what it is given and when."""

    peer: Any
    seen: list[tuple[Event, float]] = field(default_factory=list)
    emits: bool = False
    large: bool = False
    """Some answers fill the window."""

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        self.seen.append((event, now))
        match event:
            case Received(message=Ping(nonce=nonce)):
                part = Vector(turn=0, index=nonce, data=bytes(32_768))
                answer = Send(self.peer, 0, part if self.large else Pong(nonce=nonce))
                return [Emit(nonce), answer] if self.emits else [answer]
            case Command(value="arm"):
                return [SetTimer("late", now + 1.0)]
            case Command(value=value):
                return [Emit(value)]
            case Closed() | HalfClosed():
                return [Emit("end")]
            case _:
                return []

    def at(self, event: Event) -> float:
        """When it was given this."""
        return next(now for seen, now in self.seen if seen == event)

    def messages(self) -> list[object]:
        return [event.message for event, _ in self.seen if isinstance(event, Received)]


@dataclass
class Pair:
    """A driven stream on one node, and the other end of it in the test's hands."""

    machine: Echo
    driver: Driver
    stream: Stream = field(init=False)
    emitted: list[object] = field(default_factory=list)
    held_up: trio.Event = field(default_factory=trio.Event)
    ended_at: float | None = None


@contextlib.asynccontextmanager
async def driven(
    *,
    on_emit: Callable[[Pair, object], Awaitable[None]] | None = None,
    emits: bool = False,
    large: bool = False,
    first: Sequence[str] = (),
) -> AsyncIterator[Pair]:
    """The driver runs; ``end`` ends it. ``on_emit`` is called besides. The machine says a pong at its start,
    and then emits ``first``, where there is any."""
    async with world(2) as w:
        here, there = w.nodes
        made: list[Pair] = []
        ready = trio.Event()

        async def serve(stream: Stream) -> None:
            async def emitted(value: object) -> None:
                pair.emitted.append(value)
                if on_emit is not None:
                    await on_emit(pair, value)
                if value == "end":
                    pair.driver.stop()

            machine, channel = Echo(stream.peer, emits=emits, large=large), MessageChannel(stream, CODEC)
            driver = Driver(machine, channel, on_emit=emitted, write_deadline_s=WRITE_S)
            pair = Pair(machine, driver)
            made.append(pair)
            ready.set()
            greeting: list[Effect] = [Send(stream.peer, 0, Pong(nonce=7)), *map(Emit, first)] if first else []
            await driver.run(greeting)
            pair.ended_at = trio.current_time()

        here.serve(PROTOCOL, serve)
        await there.connect(here.multiaddrs[0])
        stream = await there.open_stream(here.peer_id, PROTOCOL)
        await ready.wait()
        made[0].stream = stream
        yield made[0]
        await stream.reset()


def pings(count: int, start: int = 0) -> bytes:
    return b"".join(pack_frame(CODEC.encode(Ping(nonce=number))) for number in range(start, start + count))


async def test_a_command_is_taken_and_handled_however_much_the_peer_has_said(
    autojump_clock: MockClock,
) -> None:
    async def hold_up(pair: Pair, value: object) -> None:
        if value == 0:
            pair.held_up.set()
            await trio.sleep(0.02)  # as a commit does
            for number in range(300):
                pair.driver.command_nowait(f"own {number}")

    async with driven(on_emit=hold_up, emits=True) as pair:
        await pair.stream.send_all(pings(2000))
        await pair.held_up.wait()
        await trio.sleep(10)
        own = [value for value in pair.emitted if isinstance(value, str)]
        assert own == [f"own {number}" for number in range(300)]
        assert len(pair.machine.messages()) == 2000
        assert pair.ended_at is None
        last = Command("own 299")
        assert pair.machine.at(last) <= pair.machine.at(Received(pair.machine.peer, 0, Ping(nonce=1)))


async def test_a_command_is_handled_at_once_while_the_peer_takes_nothing(autojump_clock: MockClock) -> None:
    async with driven(large=True) as pair:
        await pair.stream.send_all(pings(100))  # and reads no answer
        await trio.sleep(10)
        began = trio.current_time()
        pair.driver.command_nowait("now")
        await trio.sleep(0.001)
        assert pair.machine.at(Command("now")) == began
        pair.driver.command_nowait("end")
        await trio.sleep(WRITE_S + 1)
        assert pair.ended_at is not None
        assert pair.ended_at <= began + WRITE_S


async def test_a_peer_that_takes_nothing_is_read_no_further_and_ends_its_stream_after_the_deadline(
    autojump_clock: MockClock,
) -> None:
    async with driven(large=True) as pair:
        began = trio.current_time()
        await pair.stream.send_all(pings(1000))
        await trio.sleep(WRITE_S - 5)
        assert pair.ended_at is None
        heard = len(pair.machine.messages())
        assert heard <= 64
        await trio.sleep(10)
        assert pair.ended_at is not None
        assert pair.ended_at - began < WRITE_S + 1
        assert pair.machine.seen[-1][0] == Closed(pair.machine.peer, 0, "slow reader")
        assert len(pair.machine.messages()) == heard


async def test_a_peer_that_takes_everything_is_answered_everything(autojump_clock: MockClock) -> None:
    async with driven(large=True) as pair:
        channel = MessageChannel(pair.stream, CODEC)
        await pair.stream.send_all(pings(200))
        parts = [await channel.receive() for _ in range(200)]
        assert [part.index for part in parts if isinstance(part, Vector)] == list(range(200))
        assert pair.ended_at is None


async def test_what_a_peer_said_before_it_went_is_handled_before_the_loss(autojump_clock: MockClock) -> None:
    async def answer_late(pair: Pair, value: object) -> None:
        if value == 0:
            await trio.sleep(1)  # meanwhile the peer says why it goes, and goes

    async with driven(on_emit=answer_late, emits=True) as pair:
        why = Error(code="capacity", detail="full")
        await pair.stream.send_all(pings(1) + pack_frame(CODEC.encode(why)))
        await trio.sleep(0.1)
        await pair.stream.reset()
        await trio.sleep(5)
        events = [event for event, _ in pair.machine.seen]
        assert [type(event) for event in events] == [Received, Received, Closed]
        assert pair.machine.messages()[1] == why
        assert pair.ended_at is not None


async def test_a_timer_does_not_fire_before_what_was_heard_in_time(autojump_clock: MockClock) -> None:
    async def slow_application(_pair: Pair, value: object) -> None:
        if value == 0:
            await trio.sleep(5)

    async with driven(on_emit=slow_application, emits=True) as pair:
        pair.driver.command_nowait("arm")  # in one second
        await pair.stream.send_all(pings(10))
        await trio.sleep(20)
        order = [type(event).__name__ for event, _ in pair.machine.seen]
        assert order == ["Command", *["Received"] * 10, "TimerFired"]


async def test_a_timer_fires_however_much_the_peer_says(autojump_clock: MockClock) -> None:
    async with driven() as pair:
        channel = MessageChannel(pair.stream, CODEC)
        pair.driver.command_nowait("arm")
        async with trio.open_nursery() as nursery:

            async def talk() -> None:
                sent = 0
                while True:
                    await pair.stream.send_all(pings(100, sent))
                    sent += 100
                    await trio.sleep(0.05)  # twice as much as is read

            async def listen() -> None:
                while await channel.receive() is not None:
                    pass

            nursery.start_soon(talk)
            nursery.start_soon(listen)
            await trio.sleep(3)
            fired = [now for event, now in pair.machine.seen if type(event).__name__ == "TimerFired"]
            nursery.cancel_scope.cancel()
        assert len(fired) == 1
        assert fired[0] - pair.machine.at(Command("arm")) < 1.5


async def test_the_half_that_a_peer_closed_leaves_ours_open(autojump_clock: MockClock) -> None:
    async with driven() as pair:
        await pair.stream.send_all(pings(1))
        await pair.stream.send_eof()
        answer = await MessageChannel(pair.stream, CODEC).receive()
        assert answer == Pong(nonce=0)
        await trio.sleep(1)
        assert [type(event) for event, _ in pair.machine.seen] == [Received, HalfClosed]


@pytest.mark.parametrize("first", [("began",), ("began", "end")])
async def test_what_a_machine_says_at_its_start_is_said_at_once(
    first: Sequence[str], autojump_clock: MockClock
) -> None:
    async with driven(first=first) as pair:
        with trio.fail_after(1):
            assert await MessageChannel(pair.stream, CODEC).receive() == Pong(nonce=7)


async def test_a_machine_without_a_stream_has_timers_commands_and_work(autojump_clock: MockClock) -> None:
    machine, emitted, ended = Echo(None), list[object](), list[str]()

    async def work() -> None:
        await driver.command("reported")
        try:
            await trio.sleep_forever()
        finally:
            ended.append("work")

    async def on_emit(value: object) -> None:
        emitted.append(value)
        if value == "begin":
            driver.start_soon(work)
        if value == "reported":
            driver.command_nowait("arm")

    driver = Driver(machine, on_emit=on_emit, write_deadline_s=WRITE_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run, [Emit("begin")])
        await trio.sleep(5)
        assert emitted == ["begin", "reported"]
        assert [type(event).__name__ for event, _ in machine.seen] == ["Command", "Command", "TimerFired"]
        assert ended == []
        driver.stop()
    assert (ended, driver.ended_in_order, driver.fault) == (["work"], True, None)
    await driver.command("late")
    driver.command_nowait("late")
    assert len(machine.seen) == 3


@dataclass
class Many:
    """Answers pings on each of its streams. Nonce 9 is the last one; from 100 on answers fill the window."""

    heard: list[tuple[int, int]] = field(default_factory=list)
    ends: list[tuple[int, str]] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        match event:
            case Received(peer=peer, stream=ref, message=Ping(nonce=nonce)):
                self.heard.append((ref, nonce))
                part = Vector(turn=0, index=nonce, data=bytes(32_768))
                answer = Send(peer, ref, part if nonce >= 100 else Pong(nonce=nonce))
                return [answer, Emit(ref)] if nonce == 9 else [answer]
            case Closed(stream=ref) | HalfClosed(stream=ref):
                self.ends.append((ref, type(event).__name__))
            case _:
                pass
        return []


@dataclass
class ManyStreams:
    """One driver that serves every stream to a node, and streams to it."""

    machine: Many
    driver: Driver
    open: Callable[[], Awaitable[Stream]]
    over: list[str] = field(default_factory=list)
    """How the serving of each stream ended, in order."""


@contextlib.asynccontextmanager
async def many() -> AsyncIterator[ManyStreams]:
    async with world(2) as w, trio.open_nursery() as nursery:
        here, there = w.nodes

        async def on_emit(ref: int) -> None:
            made.driver.finish(ref)

        machine = Many()
        made = ManyStreams(
            machine,
            Driver(machine, on_emit=on_emit, write_deadline_s=WRITE_S),
            lambda: there.open_stream(here.peer_id, PROTOCOL),
        )

        async def serve(stream: Stream) -> None:
            try:
                await made.driver.serve(MessageChannel(stream, CODEC))
            except ProtocolError:
                made.over.append("malformed")
            else:
                made.over.append("over")

        here.serve(PROTOCOL, serve)
        nursery.start_soon(made.driver.run)
        await there.connect(here.multiaddrs[0])
        yield made
        nursery.cancel_scope.cancel()


async def test_each_of_many_streams_gets_its_own_answers(autojump_clock: MockClock) -> None:
    async with many() as m:
        streams = [await m.open() for _ in range(3)]
        for number, stream in enumerate(streams):
            await stream.send_all(pings(2, 10 * number))
        for number, stream in enumerate(streams):
            channel = MessageChannel(stream, CODEC)
            answers = [await channel.receive(), await channel.receive()]
            assert answers == [Pong(nonce=10 * number), Pong(nonce=10 * number + 1)]
        assert len({ref for ref, _ in m.machine.heard}) == 3


async def test_a_peer_that_takes_nothing_holds_up_its_own_stream_only(autojump_clock: MockClock) -> None:
    async with many() as m:
        deaf, other = await m.open(), await m.open()
        await deaf.send_all(pings(200, 100))
        await trio.sleep(5)
        heard = len(m.machine.heard)
        assert heard < 200
        began, channel = trio.current_time(), MessageChannel(other, CODEC)
        for nonce in range(8):
            await other.send_all(pings(1, nonce))
            assert await channel.receive() == Pong(nonce=nonce)
        assert trio.current_time() - began < 1
        assert len(m.machine.heard) == heard + 8
        await trio.sleep(WRITE_S)
        assert ("Closed" in [end for _, end in m.machine.ends], m.over) == (True, ["over"])


async def test_a_stream_that_is_finished_ends_after_its_last_answer_and_the_others_go_on(
    autojump_clock: MockClock,
) -> None:
    async with many() as m:
        first, second = await m.open(), await m.open()
        await first.send_all(pings(2, 8))
        channel = MessageChannel(first, CODEC)
        assert [await channel.receive() for _ in range(3)] == [Pong(nonce=8), Pong(nonce=9), None]
        assert m.over == ["over"]
        await second.send_all(pings(1))
        assert await MessageChannel(second, CODEC).receive() == Pong(nonce=0)


async def test_what_makes_no_sense_ends_one_stream_after_what_came_before_it(
    autojump_clock: MockClock,
) -> None:
    async with many() as m:
        bad, good = await m.open(), await m.open()
        await bad.send_all(pings(1) + pack_frame(b"\xc1"))
        await good.send_all(pings(1, 1))
        assert await MessageChannel(good, CODEC).receive() == Pong(nonce=1)
        await trio.sleep(1)
        assert (m.over, [end for _, end in m.machine.ends]) == (["malformed"], ["Closed"])
        assert sorted(nonce for _, nonce in m.machine.heard) == [0, 1]


async def test_the_end_of_the_driver_ends_its_streams_and_later_ones(autojump_clock: MockClock) -> None:
    async with many() as m:
        await (await m.open()).send_all(pings(1))
        await trio.sleep(1)
        m.driver.stop()
        await trio.sleep(1)
        assert m.over == ["over"]
        await m.open()
        await trio.sleep(1)
        assert m.over == ["over", "over"]


# ---- messages of a stream: what is delivered doesn't depend on how the bytes were cut on their way

GOOD = [SampleAdverts(count=1), GetAdvert(peer=make("subject").peer_id), SampleAdverts(count=3)]
MALFORMED = {
    "payload": pack_frame(b"\xc1"),
    "message": pack_frame(b"\x80"),
    "zero length": b"\x00",
    "long length": b"\x81\x00",
    "oversized": b"\xff\xff\xff\x7f",
}


async def received(pieces: list[bytes], *, then_end: bool) -> list[Any]:
    """What a peer's reader gets of ``pieces``, each sent when what came before was read; the error last."""
    got: list[Any] = []
    host, client = make("host"), make_client("client")
    finished = trio.Event()
    read = 0

    async def read_all(stream: Stream) -> None:
        nonlocal read
        channel = MessageChannel(_Counted(stream), ADVERTS_CODEC)  # type: ignore[arg-type]
        try:
            while (message := await channel.receive()) is not None:
                got.append(message)
        except ProtocolError as error:
            got.append("malformed")
            with pytest.raises(ProtocolError, match=str(error)[:20]):
                await channel.receive()  # nothing after it
        finished.set()

    class _Counted:
        """The stream, and how much of it was read."""

        def __init__(self, stream: Stream) -> None:
            self._stream = stream

        async def receive_some(self) -> bytes:
            nonlocal read
            data = await self._stream.receive_some()
            read += len(data)
            return data

    host.serve(ADVERTS, read_all)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        stream = await client.open_stream(host.peer_id, ADVERTS)
        sent = 0
        for piece in pieces:
            await stream.send_all(piece)
            sent += len(piece)
            with trio.fail_after(10):
                while read < sent and not finished.is_set():  # noqa: ASYNC110  the reader's own progress
                    await trio.sleep(0.005)
        if then_end:
            await stream.send_eof()
        with trio.fail_after(10):  # without an end, too: what is malformed needs no more bytes to be so
            await finished.wait()
        await stream.reset()
    return got


@pytest.mark.parametrize("then_end", [True, False])
@pytest.mark.parametrize("bad", MALFORMED.values(), ids=list(MALFORMED))
async def test_messages_before_a_malformed_frame_are_delivered_in_one_chunk_or_in_many(
    bad: bytes, then_end: bool
) -> None:
    frames = [pack_frame(ADVERTS_CODEC.encode(each)) for each in GOOD]
    after = pack_frame(ADVERTS_CODEC.encode(GOOD[0]))
    for pieces in (
        [b"".join(frames) + bad + after],
        [*frames, bad + after],
        [frames[0], frames[1] + frames[2][:2], frames[2][2:] + bad + after],
    ):
        assert await received(pieces, then_end=then_end) == [*GOOD, "malformed"]


async def test_messages_without_a_malformed_one_are_all_delivered_and_end_cleanly() -> None:
    frames = [pack_frame(ADVERTS_CODEC.encode(each)) for each in GOOD]
    assert await received([b"".join(frames)], then_end=True) == GOOD
    assert await received(frames, then_end=True) == GOOD


async def test_a_stream_that_ends_inside_a_frame_is_malformed_after_what_came_whole() -> None:
    frames = [pack_frame(ADVERTS_CODEC.encode(each)) for each in GOOD]
    assert await received([b"".join(frames)[:-1]], then_end=True) == [*GOOD[:2], "malformed"]


def test_what_a_peer_says_beyond_its_rate_is_not_read_before_there_is_room() -> None:
    class Taken:
        taker: Callable[[bytes], bool]

        def take_with(self, taker: Callable[[bytes], bool]) -> None:
            self.taker = taker

    class Counting:
        decoded = 0

        def decode(self, payload: bytes) -> Any:
            self.decoded += 1
            return CODEC.decode(payload)

    stream, codec, room, heard = Taken(), Counting(), [False], list[Any]()
    channel = MessageChannel(stream, codec)  # type: ignore[arg-type]
    channel.take_with(lambda: room[0], heard.append)
    said = pings(1)
    assert not stream.taker(said)
    assert (codec.decoded, heard) == (0, [])
    room[0] = True
    assert stream.taker(said)
    assert (codec.decoded, heard) == (1, [Ping(nonce=0)])
    assert not stream.taker(said + said), "two at once are received, in order"
    assert not stream.taker(pack_frame(b"\xff")), "so is what makes no sense: its reader says why it ends"
