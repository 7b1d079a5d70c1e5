"""Peers that stay within yamux's grammar, or just beyond it, to wear a node out; see also test_hostile.py."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc

import pytest
import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.raw_connection import RawConnection
from trio.testing import MockClock

from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net import yamux as wire
from p2pnode.net.memory import WINDOW_BYTES
from p2pnode.net.upgrader import Upgrader
from tests.net.memory_world import world
from tests.net.support import Wire, ask_echo, eventually, make_client, running
from tests.net.test_hostile import SMALL, attack_secured, read_until_closed, victim

OPEN = wire.frame(wire.WINDOW_UPDATE, wire.SYN, 1, 0)
PACKET = 60_000
PACKETS = 40


async def test_credit_beyond_32_bits_ends_that_connection_only() -> None:
    host, honest = victim(), make_client("honest")
    async with running(host, honest):
        conn = await attack_secured(host)
        await conn.write(OPEN + wire.frame(wire.WINDOW_UPDATE, 0, 1, 0xFFFFFFFF))
        await read_until_closed(conn)
        await conn.close()
        await ask_echo(honest, host)


async def test_what_is_kept_for_a_peer_that_pings_and_never_reads_is_small(autojump_clock: MockClock) -> None:
    async with world(1) as w:
        [node] = w.nodes
        bare = await w.net.dial("10.9.9.9", ("10.0.0.1", 4001))
        upgrader = Upgrader(b"pinging".ljust(32), Limits())
        conn = (await upgrader.upgrade_outbound(RawConnection(bare, True), node.peer_id)).secured_conn
        await eventually(lambda: node.statistics().connections == 1)
        sent, pings = 0, wire.frame(wire.PING, wire.SYN, 0, 1) * 1000
        while node.statistics().connections and sent < 4 << 20:
            with contextlib.suppress(IOException, RawConnError):
                await conn.write(pings)
            sent += len(pings)
            await trio.sleep(0.1)
        assert sent < WINDOW_BYTES + 2 * wire.HEADERS_MAX_BYTES


async def test_credit_up_to_32_bits_is_taken() -> None:
    host = victim()
    async with running(host):
        conn = await attack_secured(host)
        await conn.write(OPEN + wire.frame(wire.WINDOW_UPDATE, 0, 1, 0xFFFFFFFF - wire.WINDOW_INITIAL))
        await conn.write(wire.frame(wire.PING, wire.SYN, 0, 77))
        answers = b""
        with trio.fail_after(5):
            while wire.frame(wire.PING, wire.ACK, 0, 77) not in answers:
                answers += await conn.read()
        await conn.close()


async def test_goodbye_ends_the_connection_at_once() -> None:
    host, honest = victim(), make_client("honest")
    async with running(host, honest):
        conn = await attack_secured(host)
        await eventually(lambda: host.statistics().connections == 1)
        await conn.write(OPEN + wire.frame(wire.GO_AWAY, 0, 0, wire.GO_AWAY_NORMAL))
        await read_until_closed(conn)
        await eventually(
            lambda: host.statistics().connections == 0 and host.statistics().streams_inbound == 0
        )
        await conn.close()
        await ask_echo(honest, host)


MEANINGLESS = pytest.mark.parametrize(
    "unit",
    [
        wire.frame(wire.DATA, 0, 1, 0),
        wire.frame(wire.WINDOW_UPDATE, 0, 1, 0),
        wire.frame(wire.DATA, 0, 99, 988) + bytes(988),
        wire.frame(wire.WINDOW_UPDATE, 0, 98, 1),
        wire.frame(wire.PING, wire.ACK, 0, 5),
    ],
    ids=["empty-data", "empty-credit", "data-for-nobody", "credit-for-nobody", "unasked-answers"],
)


@MEANINGLESS
async def test_a_flood_of_frames_that_mean_nothing_is_dropped(unit: bytes) -> None:
    host, honest = victim(), make_client("honest")
    packet = unit * (PACKET // len(unit))
    async with running(host, honest):
        conn = await attack_secured(host)
        await conn.write(OPEN)

        async def flood() -> None:
            for _ in range(PACKETS):
                await conn.write(packet)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await ask_echo(honest, host)  # while it goes on
        assert host.statistics().streams_inbound <= 1
        await conn.close()


@MEANINGLESS
async def test_nothing_is_kept_of_frames_that_mean_nothing(unit: bytes, autojump_clock: MockClock) -> None:
    flood, packet = Wire(), unit * (PACKET // 8 // len(unit))
    muxed = wire.Yamux(flood, PeerId("flooder"), is_initiator=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        flood.say(OPEN)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        tracemalloc.start()
        for _ in range(8):
            flood.say(packet)
            await trio.testing.wait_all_tasks_blocked()
        kept, _most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < PACKET // 2
        assert len(flood.sent) < 4096
        assert not muxed.is_closed
        await muxed.close()


async def test_streams_opened_and_aborted_without_end_stay_within_the_cap() -> None:
    host, honest = victim(), make_client("honest")
    most = 0
    async with running(host, honest):
        conn = await attack_secured(host)

        async def flood() -> None:
            at = 1
            for _ in range(20):
                pairs = b""
                for _ in range(500):
                    pairs += wire.frame(wire.WINDOW_UPDATE, wire.SYN, at, 0)
                    pairs += wire.frame(wire.WINDOW_UPDATE, wire.RST, at, 0)
                    at += 2
                await conn.write(pairs)

        async def drain() -> None:
            nonlocal most
            while True:
                await conn.read()
                most = max(most, host.statistics().streams_inbound)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await flood()
            await ask_echo(honest, host)
            nursery.cancel_scope.cancel()
        assert most <= 2 * (SMALL.streams_per_peer + 32)
        await eventually(lambda: host.statistics().streams_inbound == 0)
        await conn.close()
