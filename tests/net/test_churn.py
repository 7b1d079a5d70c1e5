"""Peers that come and go without end leave nothing behind: no memory, no descriptor, no task.

An hour in virtual time, and ten minutes for real at full limits (``make test-churn``).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from trio.testing import MockClock

from p2pnode.bench.attackers import Attacker, Victim, over_loopback
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.memory import MemoryNet
from p2pnode.net.multiaddrs import endpoint, parse, split_peer
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.protocols.gossipsub.messages import PROTOCOL_1_1
from p2pnode.protocols.identify.messages import PROTOCOL as IDENTIFY
from p2pnode.protocols.identify.messages import PUSH
from p2pnode.protocols.kademlia.messages import PROTOCOL as KAD
from tests.net.memory_world import seed_of
from tests.net.support import ECHO, echo

MB = 1 << 20
GROWTH_MAX_BYTES = 5 * MB
PROTOCOLS = (ECHO, PROTOCOL_1_1, KAD, IDENTIFY, PUSH, "/ipfs/ping/1.0.0")
VIRTUAL_S = 3600.0
REAL_S = float(os.environ.get("CHURN_S", "600"))


async def _come_and_go(attacker: Attacker, rng: random.Random, *, stay_s: float) -> None:
    """Connect, open streams of any protocol, say something on some of them, and leave without a word or
    with one."""
    with contextlib.suppress(Exception):  # refused, evicted, or cut off: it comes again
        connection = await attacker.connect()
        for _ in range(rng.randrange(4)):
            stream = await attacker.open(connection, rng.choice(PROTOCOLS))
            if rng.random() < 0.7:
                await stream.write(rng.randbytes(rng.randrange(1, 200)))
            if rng.random() < 0.3:
                stream.reset()
        await trio.sleep(rng.random() * stay_s)
        if rng.random() < 0.5:
            await connection.close()
        else:
            await connection.secured_conn.close()


async def _churn(make: Any, rng: random.Random, *, at_once: int, seconds: float, stay_s: float) -> None:
    """``at_once`` peers at any time, each with an identity of its own for each visit."""
    until = trio.current_time() + seconds

    async def seat(number: int) -> None:
        visit = 0
        while trio.current_time() < until:
            visit += 1
            async with trio.open_nursery() as nursery:
                await _come_and_go(make(nursery, number, visit), rng, stay_s=stay_s)
                nursery.cancel_scope.cancel()
            await trio.sleep(rng.random() * stay_s)

    async with trio.open_nursery() as nursery:
        for number in range(at_once):
            nursery.start_soon(seat, number)


@pytest.mark.long
async def test_an_hour_of_churn_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    limits = Limits(connections_max=16, streams_max=48)
    net, rng = MemoryNet(latency=0.01, seed=3), random.Random(3)
    host = Network(
        NetworkConfig(
            key_seed=seed_of(0),
            listen=("/ip4/1.1.1.1/tcp/4001",),
            transport=net.transport("1.1.1.1"),
            limits=limits,
        )
    )
    host.serve(ECHO, echo, idle_s=30.0)

    def make(nursery: trio.Nursery, number: int, visit: int) -> Attacker:
        ip = f"8.8.{number % 7}.{number + 1}"
        victim = Victim(host.peer_id, lambda _: net.dial(ip, ("1.1.1.1", 4001)))
        return Attacker(nursery, victim, ip, f"{number} {visit}")

    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        empty = trio.lowlevel.current_statistics().tasks_living
        seen: list[int] = []
        for _ in range(4):
            await _churn(make, rng, at_once=24, seconds=VIRTUAL_S / 4, stay_s=20.0)
            await trio.sleep(limits.connection_idle_s * 1.2)
            gc.collect()
            seen.append(psutil.Process().memory_info().rss)
            assert host.statistics().connections == 0
            assert host.statistics().streams_inbound == 0
            assert trio.lowlevel.current_statistics().tasks_living <= empty
        assert host.statistics().tasks_failed == {}
        assert seen[-1] - seen[0] < GROWTH_MAX_BYTES, seen
        await host.aclose()
        nursery.cancel_scope.cancel()


class Host:
    """The network in the other process."""

    def __init__(self, process: trio.Process) -> None:
        self._process, self._said = process, b""

    async def line(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            piece = await self._process.stdout.receive_some()
            assert piece, "the host's process has ended"
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    async def figures(self) -> dict[str, Any]:
        """Its figures now."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(b"\n")
        told: dict[str, Any] = json.loads(await self.line())
        return told


@contextlib.asynccontextmanager
async def hosting() -> AsyncIterator[tuple[Host, Victim]]:
    process = await trio.lowlevel.open_process(
        [sys.executable, str(Path(__file__).with_name("churn_process.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        host = Host(process)
        address, peer = split_peer(await host.line())
        yield host, over_loopback(peer, endpoint(parse(address))[1])
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with trio.move_on_after(10, shield=True):
            await process.stdin.aclose()
            await process.wait()
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


@pytest.mark.churn
async def test_ten_minutes_of_churn_at_full_limits_leave_nothing_behind() -> None:
    rng = random.Random(5)
    async with hosting() as (host, victim):
        empty = await host.figures()

        def make(nursery: trio.Nursery, number: int, visit: int) -> Attacker:
            return Attacker(
                nursery, victim, f"127.0.{number % 40 + 1}.{number % 200 + 1}", f"{number} {visit}"
            )

        seen: list[dict[str, Any]] = []
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_sample_most, host, seen)
                at_once = 2 * DEFAULT_LIMITS.connections_max
                await _churn(make, rng, at_once=at_once, seconds=REAL_S / 5, stay_s=20.0)
                nursery.cancel_scope.cancel()
            with trio.fail_after(60):
                while (after := await host.figures())["connections"] > 0:  # noqa: ASYNC110  in another process
                    await trio.sleep(1)
            seen.append(after)
            print(after, flush=True)  # noqa: T201  for who waits
        ends = [each for each in seen if not each["connections"]]
        assert max(each["connections"] for each in seen) > 0.9 * DEFAULT_LIMITS.connections_max
        assert ends[-1]["tasks"] <= empty["tasks"]
        assert ends[-1]["descriptors"] <= empty["descriptors"] + 2
        assert ends[-1]["rss"] - ends[0]["rss"] < GROWTH_MAX_BYTES, [each["rss"] for each in ends]
        assert ends[-1]["failed"] == {}


async def _sample_most(host: Host, seen: list[dict[str, Any]]) -> None:
    while True:
        await trio.sleep(5)
        with trio.CancelScope(shield=True):
            seen.append(await host.figures())
