"""Whose bytes and streams wait while a node is behind: those of who sent more than its share."""

from __future__ import annotations

import time

import pytest
import trio
from trio.testing import MockClock

from p2pnode.net.pace import (
    BUSY_BYTES,
    LAG_S,
    PAUSE_S,
    STREAM_BYTES,
    STREAM_PAUSE_MAX_S,
    STREAM_PAUSE_S,
    WINDOW_S,
    ByteShares,
)
from p2pnode.net.stream import Stream
from p2pnode.net.swarm import FEW_BURST
from p2pnode.shares import Origin
from tests.net.support import eventually
from tests.net.test_hostile_shares import ONE_ADDRESS, scene

FLOOD, HONEST, THIRD = (Origin(name, name) for name in ("flood", "honest", "third"))


def behind() -> ByteShares:
    shares = ByteShares()
    shares.lag_s = 2 * LAG_S
    return shares


def test_nobody_waits_while_the_loop_keeps_up() -> None:
    shares = ByteShares()
    assert not any(shares.read(FLOOD, 1 << 20, n / 100) for n in range(100))


def test_who_sends_more_than_its_share_waits_while_the_loop_is_behind_and_others_do_not() -> None:
    shares = behind()
    waits = [(shares.read(FLOOD, 100_000, n / 100), shares.read(HONEST, 500, n / 100)) for n in range(1, 50)]
    assert all(flood == PAUSE_S for flood, _ in waits)
    assert all(honest == 0 for _, honest in waits)
    assert shares.paused == 49


def test_a_single_flooder_leaves_time_for_the_node_itself() -> None:
    assert behind().read(FLOOD, 100_000, 1.0) == PAUSE_S


def test_who_has_many_addresses_of_one_prefix_makes_nobody_elses_share_smaller() -> None:
    shares = behind()
    flood = [Origin("2001:db8::/32", f"2001:db8:{n:x}::/48") for n in range(200)]
    for step in range(10):
        assert all(shares.read(each, 50_000, step / 10) for each in flood)
        assert shares.read(HONEST, 64 << 10, step / 10) == 0
        assert shares.read(THIRD, 64 << 10, step / 10) == 0


def test_a_neighbour_of_who_floods_waits_only_for_what_is_more_than_its_share() -> None:
    shares = behind()
    flood, neighbour = (Origin("2001:db8::/32", f"2001:db8:{n:x}::/48") for n in (1, 2))
    for step in range(10):
        assert shares.read(flood, 1 << 20, step / 10) == PAUSE_S
        assert shares.read(neighbour, 10_000, step / 10) == 0
    assert shares.opened(flood, 3, 0.95) == 3 * STREAM_PAUSE_S


def test_shares_of_the_last_window_count_as_those_of_this_one() -> None:
    shares = behind()
    for origin in (FLOOD, HONEST):
        shares.read(origin, 1000, 0.5)
    assert shares.read(THIRD, 600, 1.6) == 0, "less than a quarter of all, with the two that came before"
    assert shares.read(THIRD, 3000, 3.0) == PAUSE_S, "those are forgotten"


def test_what_was_sent_long_ago_does_not_count() -> None:
    shares = behind()
    shares.read(FLOOD, 1 << 20, 0.0)
    for origin in (HONEST, THIRD):
        shares.read(origin, 1 << 20, 3 * WINDOW_S)
    assert shares.read(FLOOD, 10, 3 * WINDOW_S) == 0


async def test_a_loop_that_is_held_up_is_behind_and_then_no_longer() -> None:
    shares = ByteShares()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shares.watch_lag)
        await trio.testing.wait_all_tasks_blocked()
        shares.read(FLOOD, BUSY_BYTES, trio.current_time())
        await trio.testing.wait_all_tasks_blocked(0.01)
        time.sleep(3 * LAG_S)  # noqa: ASYNC251  what holds the loop up
        await eventually(lambda: shares.lag_s >= LAG_S, 1)
        await eventually(lambda: shares.lag_s == 0, 2 * WINDOW_S)
        nursery.cancel_scope.cancel()


async def test_few_bytes_start_no_measurement(autojump_clock: MockClock) -> None:
    shares = ByteShares()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shares.watch_lag)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().seconds_to_next_deadline
        shares.read(FLOOD, BUSY_BYTES - 1, trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == before
        nursery.cancel_scope.cancel()


def test_a_stream_that_is_opened_counts_though_nothing_is_sent_on_it() -> None:
    shares = behind()
    waits = [(shares.opened(FLOOD, 1, n / 100), shares.read(HONEST, 500, n / 100)) for n in range(1, 50)]
    assert all(flood == STREAM_PAUSE_S for flood, _ in waits)
    assert all(honest == 0 for _, honest in waits)
    assert shares.opened(HONEST, 1, 0.5) == 0
    assert shares.opened(FLOOD, 3, 0.5) == 3 * STREAM_PAUSE_S
    assert shares.opened(FLOOD, 256, 0.5) == STREAM_PAUSE_MAX_S
    shares.lag_s = 0.0
    assert shares.opened(FLOOD, 1, 0.5) == 0


async def test_streams_that_are_opened_start_a_measurement(autojump_clock: MockClock) -> None:
    shares = ByteShares()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shares.watch_lag)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().seconds_to_next_deadline
        for _ in range(BUSY_BYTES // STREAM_BYTES):
            shares.opened(FLOOD, 1, trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline < before
        nursery.cancel_scope.cancel()


@pytest.mark.long  # on the real clock: what holds up the loop takes time
async def test_streams_that_hold_up_the_loop_begin_later_and_those_of_others_do_not() -> None:
    served = 0

    async def costly(_stream: Stream) -> None:
        nonlocal served
        served += 1
        time.sleep(0.15)  # noqa: ASYNC251  what a stream costs on which next to nothing is said

    async with scene() as s:
        s.host.serve("/p2pnode/costly/1", costly)
        (attacker,) = s.attackers(1, ONE_ADDRESS)
        connection = await attacker.connect()
        with trio.move_on_after(6):
            for _ in range(100):
                (await attacker.open(connection, "/p2pnode/costly/1")).close_write()
            await trio.sleep_forever()
        assert FEW_BURST <= served <= 34  # else forty: all that there is time for
        assert await s.is_served()
