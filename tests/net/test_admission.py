"""Which inbound connections are accepted, and which wait, are dropped, or give way."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.admission import (
    CONNECTIONS_PER_PAYER,
    COUNTED_S,
    FIRST_PATIENCE_S,
    IDLE_S,
    PATIENCE_S,
    PENDING_PER_HANDSHAKE,
    TURNS_PER_S,
    ConnectionPlaces,
    Handshakes,
    Standing,
    StreamPlaces,
    Ticket,
)
from p2pnode.net.yamux import Yamux, YamuxStream
from p2pnode.shares import Origin, origin_of
from tests.net.support import Wire

HERE, THERE = origin_of("8.8.8.1", PeerId("")), origin_of("9.9.9.1", PeerId(""))


def handshakes(at_once: int = 1) -> Handshakes:
    return Handshakes(Limits(inbound_handshakes_max=at_once), random.Random(1).random)


def enter(turns: Handshakes, origin: Origin) -> Ticket:
    ticket = turns.enter(origin, lambda: None)
    assert ticket is not None
    return ticket


# Handshakes.


async def test_a_handshake_waits_its_turn_and_starts_when_another_ends(autojump_clock: MockClock) -> None:
    turns = handshakes()
    first, second = enter(turns, HERE), enter(turns, THERE)
    await turns.begin(first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.begin, second)
        await trio.testing.wait_all_tasks_blocked()
        assert not second.begun.is_set()
        turns.settle(first)
        with trio.fail_after(PATIENCE_S / 2):
            await second.begun.wait()


@pytest.mark.parametrize(("later_s", "first"), [(COUNTED_S - 2, "there"), (COUNTED_S + 2, "here")])
async def test_a_turn_counts_for_a_minute(later_s: float, first: str, autojump_clock: MockClock) -> None:
    turns = handshakes()
    for _ in range(3):
        ticket = enter(turns, HERE)
        await turns.begin(ticket)
        turns.settle(ticket)
    await trio.sleep(later_s)
    busy = enter(turns, THERE)
    await turns.begin(busy)
    waiting = {"here": enter(turns, HERE), "there": enter(turns, THERE)}
    async with trio.open_nursery() as nursery:
        for ticket in waiting.values():
            nursery.start_soon(turns.begin, ticket)
        await trio.testing.wait_all_tasks_blocked()
        turns.settle(busy)
        await waiting[first].begun.wait()
        assert [name for name, each in waiting.items() if each.begun.is_set()] == [first]
        turns.settle(waiting[first])


async def test_when_too_many_say_nothing_the_longest_silent_goes() -> None:
    turns = handshakes()
    dropped: list[int] = []
    for i in range(PENDING_PER_HANDSHAKE + 2):
        assert turns.enter(HERE, partial(dropped.append, i)) is not None
    assert dropped == [0, 1]


async def test_silence_of_one_origin_takes_no_place_of_another() -> None:
    turns = handshakes()
    dropped: list[str] = []
    turns.enter(THERE, partial(dropped.append, "there"))
    for _ in range(10 * PENDING_PER_HANDSHAKE):
        turns.enter(HERE, partial(dropped.append, "here"))
    assert set(dropped) == {"here"}


async def test_a_handshake_that_says_nothing_is_dropped_for_the_next(autojump_clock: MockClock) -> None:
    turns = handshakes()
    dropped = trio.Event()
    silent = turns.enter(HERE, dropped.set)
    assert silent is not None
    await turns.begin(silent)
    with trio.fail_after(FIRST_PATIENCE_S + 0.1):
        await turns.begin(enter(turns, THERE))
    assert dropped.is_set()


async def test_a_slow_handshake_that_nobody_waits_behind_goes_on(autojump_clock: MockClock) -> None:
    turns = handshakes(2)
    dropped = trio.Event()
    slow = turns.enter(HERE, dropped.set)
    assert slow is not None
    await turns.begin(slow)
    await trio.sleep(FIRST_PATIENCE_S * 2)
    await turns.begin(enter(turns, THERE))
    assert not dropped.is_set()


@pytest.mark.parametrize(("more_s", "ends"), [(-0.5, True), (0.5, False)])
async def test_the_first_handshake_of_an_origin_may_take_longer_while_another_floods(
    autojump_clock: MockClock, more_s: float, *, ends: bool
) -> None:
    turns = handshakes(4)
    dropped: list[str] = []

    async def flood() -> None:
        for number in range(40):
            ticket = turns.enter(HERE, partial(dropped.append, f"silent {number}"))
            assert ticket is not None
            await turns.begin(ticket)

    far = turns.enter(THERE, partial(dropped.append, "far"))
    assert far is not None
    await turns.begin(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        await trio.sleep(FIRST_PATIENCE_S + more_s)
        assert len(dropped) >= 4  # the second of that origin, and all after it
        assert ("far" not in dropped) == ends
        nursery.cancel_scope.cancel()


async def test_an_honest_handshake_is_next_while_one_origin_opens_a_hundred_a_second(
    autojump_clock: MockClock,
) -> None:
    turns = handshakes(16)
    waited: list[float] = []

    async def flood(nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(0.01)
            nursery.start_soon(half_open)

    async def half_open() -> None:
        with trio.move_on_after(10) as scope:
            if (ticket := turns.enter(HERE, scope.cancel)) is None:
                return
            try:
                await turns.begin(ticket)
                await trio.sleep_forever()
            finally:
                turns.leave(ticket)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood, nursery)
        await trio.sleep(20)
        for i in range(20):
            ticket = enter(turns, origin_of(f"9.9.{i}.1", PeerId("")))
            began = trio.current_time()
            await turns.begin(ticket)
            waited.append(trio.current_time() - began)
            turns.leave(ticket)
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert max(waited) <= PATIENCE_S
    assert turns.refused["slow_handshakes"] > 100


async def test_a_prefix_that_handshakes_without_end_gets_few_turns_a_second(
    autojump_clock: MockClock,
) -> None:
    turns = Handshakes(Limits(inbound_handshakes_max=16, connections_max=64), random.Random(1).random)
    served = 0

    async def whole(origin: Origin) -> None:
        nonlocal served
        with trio.move_on_after(10) as scope:
            if (ticket := turns.enter(origin, scope.cancel)) is not None:
                try:
                    await turns.begin(ticket)
                    await trio.sleep(0.01)
                    served += 1
                finally:
                    turns.leave(ticket)

    async with trio.open_nursery() as nursery:
        for _ in range(200 * 20):
            nursery.start_soon(whole, HERE)
            await trio.sleep(1 / 200)
        assert 64 <= served <= 64 + 21 * TURNS_PER_S
        before = served
        with trio.fail_after(0.1):
            await whole(THERE)
        assert served >= before + 1
        nursery.cancel_scope.cancel()


async def test_turns_go_round_the_origins_whatever_the_number_that_waits(autojump_clock: MockClock) -> None:
    turns = handshakes()
    served: list[Origin] = []

    async def one(origin: Origin) -> None:
        ticket = enter(turns, origin)
        await turns.begin(ticket)
        served.append(origin)
        await trio.sleep(0.01)
        turns.leave(ticket)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one, HERE)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            nursery.start_soon(one, THERE)
    assert served[:5].count(THERE) == 2


@pytest.mark.parametrize(("drawn", "first"), [((0.1, 0.9), 0), ((0.9, 0.1), 1)])
async def test_of_origins_with_as_many_turns_one_is_drawn(
    autojump_clock: MockClock, drawn: tuple[float, float], first: int
) -> None:
    turns = Handshakes(Limits(inbound_handshakes_max=1), itertools.cycle(drawn).__next__)
    busy = enter(turns, origin_of("7.7.7.7", PeerId("")))
    await turns.begin(busy)
    waiting = [enter(turns, HERE), enter(turns, THERE)]
    async with trio.open_nursery() as nursery:
        for ticket in waiting:
            nursery.start_soon(turns.begin, ticket)
            await trio.testing.wait_all_tasks_blocked()
        turns.settle(busy)
        assert [each.begun.is_set() for each in waiting] == [first == 0, first == 1]
        turns.settle(waiting[first])


async def test_a_ticket_that_left_while_it_waited_takes_no_turn(autojump_clock: MockClock) -> None:
    turns = handshakes()
    first, gone, last = (enter(turns, each) for each in (HERE, THERE, HERE))
    await turns.begin(first)
    with trio.move_on_after(0.1):
        await turns.begin(gone)
    turns.leave(gone)
    turns.leave(first)
    with trio.fail_after(0.1):
        await turns.begin(last)
    assert list(turns.under_way) == [last]


# Open connections.

_ports = itertools.count()


@dataclass(eq=False)
class Conn:
    """A connection as the places see one."""

    peer: PeerId
    inbound: bool = True
    active_at: float = 0.0
    port: int = field(default_factory=lambda: next(_ports))


Places = ConnectionPlaces[Conn]


def places(count: int = 256, **standings: Standing) -> Places:
    """``standings`` by peer id; the others are strangers."""
    return ConnectionPlaces(count, lambda peer: standings.get(peer, "stranger"))


def come(to: Places, peer: str, host: str = "127.0.0.1", **settings: object) -> tuple[bool, Conn | None]:
    conn = Conn(PeerId(peer), **settings)  # type: ignore[arg-type]
    return to.admit(conn, origin_of(host, conn.peer))


def held(by: Places, origin: Origin) -> int:
    return by.held_by(origin)


@pytest.fixture
def now(autojump_clock: MockClock) -> MockClock:
    """A clock for the places, far from the start."""
    autojump_clock.jump(1000.0)
    return autojump_clock


@pytest.mark.parametrize(
    "origin",
    [HERE, origin_of(None, PeerId(""), relay=PeerId("the relay")), origin_of("8.8.8.8", PeerId(""))],
    ids=["one /24", "one relay", "one IP"],
)
async def test_honest_clients_of_one_origin_alone_use_all_places(now: MockClock, origin: Origin) -> None:
    them = places(200)
    for i in range(200):
        assert them.admit(Conn(PeerId(f"client {i}"), active_at=1000.0), origin) == (True, None)
    assert them.admit(Conn(PeerId("one too many")), origin) == (False, None)


@pytest.mark.parametrize(
    "origin",
    [HERE, origin_of(None, PeerId(""), relay=PeerId("the relay")), origin_of("8.8.8.8", PeerId(""))],
    ids=["one /24", "one relay", "one IP"],
)
async def test_each_of_twenty_from_elsewhere_gets_in_when_one_origin_has_all(
    now: MockClock, origin: Origin
) -> None:
    them = places(200)
    for i in range(200):
        them.admit(Conn(PeerId(f"client {i}"), active_at=1000.0), origin)
    for i in range(20):
        entered, victim = come(them, f"other {i}", f"9.9.{i}.1")
        assert entered
        assert victim is not None
        assert them.held_by(origin) == 199 - i


async def test_a_busy_connection_of_a_crowd_gives_way_after_the_idle_ones(now: MockClock) -> None:
    them = places(8)
    for i in range(8):
        come(them, f"crowd {i}", "8.8.8.1", active_at=1000.0 - i)
    victims = [come(them, f"other {i}", f"9.9.{i}.1")[1] for i in range(2)]
    assert [victim.peer for victim in victims if victim] == ["crowd 7", "crowd 6"]


async def test_a_crowd_that_sends_a_byte_now_and_then_has_no_more_than_its_share(now: MockClock) -> None:
    them = places(20)
    for i in range(10):
        come(them, f"honest {i}", f"9.9.{i}.1", active_at=1000.0)
    for i in range(200):
        come(them, f"crowd {i}", "8.8.8.1", active_at=1000.0)
    assert held(them, HERE) == 10
    assert len(them) == 20
    for i in range(10):
        assert come(them, f"late {i}", f"7.7.{i}.1", active_at=1000.0)[0] == (i < 9)
    assert held(them, HERE) == 1


async def test_a_full_house_of_idle_strangers_makes_room_for_a_newcomer(now: MockClock) -> None:
    them = places(4)
    for i in range(4):
        come(them, f"idler {i}", active_at=1000.0 - 2 * IDLE_S - i)
    entered, victim = come(them, "newcomer", active_at=1000.0)
    assert entered
    assert victim is not None
    assert victim.peer == "idler 3"


async def test_a_full_house_of_busy_strangers_is_full(now: MockClock) -> None:
    them = places(4)
    for i in range(4):
        come(them, f"busy {i}", active_at=1000.0)
    assert come(them, "newcomer") == (False, None)


@pytest.mark.parametrize("crowd", ["8.8.8.1", "2a01:4f8:{:x}::1"], ids=["one /24", "one /32 of IPv6"])
async def test_a_crowd_does_not_wear_out_the_idle_connections_of_others(crowd: str, now: MockClock) -> None:
    them = places(8)
    for i in range(4):
        come(them, f"idler {i}", f"9.9.{i}.1")
    for i in range(100):
        come(them, f"crowd {i}", crowd.format(i), active_at=1000.0 + i)
    assert all(held(them, origin_of(f"9.9.{i}.1", PeerId(""))) == 1 for i in range(4))


async def test_an_eighth_is_kept_for_peers_that_we_dial(now: MockClock) -> None:
    them = places(16)
    for i in range(16):
        come(them, f"stranger {i}", "8.8.8.1", active_at=1000.0)
    dials = [come(them, f"ours {i}", "8.8.8.2", inbound=False)[0] for i in range(4)]
    assert dials == [True, True, False, False]
    for i in range(40):
        come(them, f"other {i}", f"9.9.{i}.1", active_at=1000.0)
    assert sum(not each.inbound for each in them) == 2


async def test_an_eighth_is_kept_for_payers_with_two_connections_each(now: MockClock) -> None:
    them = places(32, payer="payer", rich="payer", third="payer")
    for i in range(32):
        come(them, f"stranger {i}", f"9.9.{i}.1", active_at=1000.0)
    assert [come(them, "payer", "9.9.1.2")[0] for _ in range(3)] == [True] * CONNECTIONS_PER_PAYER + [False]
    assert [come(them, "rich", "9.9.2.2")[0] for _ in range(2)] == [True, True]
    assert not come(them, "third", "9.9.3.2")[0]  # the eighth is used up
    for i in range(100):
        come(them, f"other {i}", f"7.7.{i}.1", active_at=1000.0)
    assert sum(each.peer in {"payer", "rich"} for each in them) == 4


async def test_nothing_is_kept_while_nobody_is_there_to_use_it(now: MockClock) -> None:
    them = places(16, payer="payer")
    assert all(come(them, f"stranger {i}", "8.8.8.1", active_at=1000.0)[0] for i in range(16))


async def test_who_is_served_gives_way_last(now: MockClock) -> None:
    them = places(4, served="served")
    come(them, "served", "8.8.8.1", active_at=1.0)
    for i in range(3):
        come(them, f"crowd {i}", "8.8.8.1", active_at=1000.0)
    for i in range(2):
        come(them, f"other {i}", f"9.9.{i}.1", active_at=1000.0)
    assert any(each.peer == "served" for each in them)


# Streams.


def streams(count: int, peer: str, *, active_at: float = 0.0) -> list[YamuxStream]:
    muxed = Yamux(Wire(), PeerId(peer), is_initiator=True)
    made = [muxed.open_stream() for _ in range(count)]
    for each in made:
        each.active_at = active_at
    return made


async def test_streams_of_one_prefix_give_way_to_those_of_another_the_idlest_first(now: MockClock) -> None:
    subject = StreamPlaces(8, lambda _: "stranger")
    held = streams(8, "crowd", active_at=900.0)
    held[3].active_at = 800.0
    assert all(subject.admit(each, HERE) == (True, None) for each in held)
    (newcomer,) = streams(1, "other")
    assert subject.admit(newcomer, THERE) == (True, held[3])
    (another,) = streams(1, "of the crowd")
    assert subject.admit(another, HERE) == (False, None)


async def test_a_stream_that_waits_for_its_answer_gives_way_last(now: MockClock) -> None:
    subject = StreamPlaces(3, lambda peer: "served" if peer == "served" else "stranger")
    (waiting,), crowd = streams(1, "served", active_at=1.0), streams(2, "crowd", active_at=999.0)
    for each in (waiting, *crowd):
        subject.admit(each, HERE)
    for origin in (THERE, origin_of("7.7.7.7", PeerId(""))):
        (newcomer,) = streams(1, "other")
        entered, victim = subject.admit(newcomer, origin)
        assert entered
        assert victim in crowd
