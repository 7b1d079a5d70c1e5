"""Strangers of one origin that take all they can get: somebody from elsewhere is served all the same.

In virtual time, over a network in memory with public addresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from p2pnode.bench.attackers import Attacker, Victim, half_open_for_ever, hold_silent_streams
from p2pnode.errors import UnreachableError
from p2pnode.limits import Limits
from p2pnode.net.memory import MemoryNet
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.swarm import CONNECTIONS_PER_PEER
from tests.net.memory_world import seed_of
from tests.net.support import ECHO, echo

LIMITS = Limits(connections_max=24, streams_max=64, inbound_handshakes_max=8)
HOST_IP, HONEST_IP = "1.1.1.1", "9.9.9.9"
IDENTIFY, PUSH, PING = "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"
KAD, MESHSUB = "/ipfs/kad/1.0.0", "/meshsub/1.1.0"
PROTOCOLS = (IDENTIFY, PUSH, PING, KAD, MESHSUB, ECHO, "/p2pnode/unheard-of/1")
ONE_ADDRESS = ("8.8.8.8",)
FIVE_OF_ONE_PREFIX = tuple(f"8.8.8.{i}" for i in range(1, 6))


@dataclass
class Scene:
    """A host, an honest client of another origin, and room for attackers."""

    net: MemoryNet
    host: Network
    honest: Network
    nursery: trio.Nursery

    def attackers(self, ids: int, ips: tuple[str, ...]) -> list[Attacker]:
        port = int(self.host.multiaddrs[0].split("/")[4])

        def victim(ip: str) -> Victim:
            return Victim(self.host.peer_id, lambda _: self.net.dial(ip, (HOST_IP, port)))

        return [
            Attacker(self.nursery, victim(ips[i % len(ips)]), ips[i % len(ips)], f"attacker {i % ids}")
            for i in range(max(ids, len(ips)))
        ]

    async def is_served(self, client: Network | None = None) -> bool:
        """Whether an honest client finds a place and an answer within 5 s, on a new connection."""
        client = client or self.honest
        try:
            with trio.fail_after(5):
                await client.connect(self.host.multiaddrs[0])
                stream = await client.open_stream(self.host.peer_id, ECHO)
                await stream.send_all(b"are you there?")
                answer = await stream.receive_some()
        except (UnreachableError, trio.TooSlowError):
            return False
        finally:
            await client.disconnect(self.host.peer_id)
        return answer == b"are you there?"


@contextlib.asynccontextmanager
async def scene(limits: Limits = LIMITS) -> AsyncIterator[Scene]:
    net = MemoryNet(latency=0.01, jitter=0.005, seed=1)
    config = NetworkConfig(
        key_seed=seed_of(0),
        listen=(f"/ip4/{HOST_IP}/tcp/4001",),
        transport=net.transport(HOST_IP),
        limits=limits,
    )
    host = Network(config)
    host.serve(ECHO, echo, idle_s=30.0)
    honest = Network(
        dataclasses.replace(
            config, key_seed=seed_of(1), listen=(), transport=net.transport(HONEST_IP), limits=Limits()
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        await nursery.start(honest.run)
        async with trio.open_nursery() as attackers:
            yield Scene(net, host, honest, attackers)
            attackers.cancel_scope.cancel()
        await honest.aclose()
        await host.aclose()
        nursery.cancel_scope.cancel()


async def _is_served_while_streams_are_silent(
    protocol: str, ids: int, ips: tuple[str, ...], connections: int, streams: int
) -> None:
    async with scene() as s:
        attackers = s.attackers(ids, ips)
        s.nursery.start_soon(
            partial(hold_silent_streams, attackers, protocol, connections=connections, streams=streams)
        )
        for after_s in (1.0, 15.0, 40.0):
            await trio.sleep(after_s)
            assert await s.is_served(), f"{after_s} s later"


async def test_silent_streams_of_ten_connections_of_one_address_keep_nobody_out(
    autojump_clock: MockClock,
) -> None:
    await _is_served_while_streams_are_silent(MESHSUB, 3, ONE_ADDRESS, 10, 120)


async def test_as_many_connections_of_one_prefix_as_there_are_places_keep_nobody_out(
    autojump_clock: MockClock,
) -> None:
    await _is_served_while_streams_are_silent(ECHO, 20, FIVE_OF_ONE_PREFIX, 30, 30)


@pytest.mark.long
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("ids", [1, 2, 20])
@pytest.mark.parametrize("ips", [ONE_ADDRESS, FIVE_OF_ONE_PREFIX], ids=["one address", "one /24"])
async def test_silence_on_any_protocol_keeps_nobody_out(
    autojump_clock: MockClock, protocol: str, ids: int, ips: tuple[str, ...]
) -> None:
    await _is_served_while_streams_are_silent(protocol, ids, ips, 30, 180)


@pytest.mark.parametrize(
    "ips",
    [FIVE_OF_ONE_PREFIX, pytest.param(ONE_ADDRESS, marks=pytest.mark.long)],
    ids=["one /24", "one address"],
)
async def test_half_open_handshakes_keep_nobody_out(autojump_clock: MockClock, ips: tuple[str, ...]) -> None:
    async with scene() as s:
        s.nursery.start_soon(partial(half_open_for_ever, s.attackers(1, ips), per_s=112))
        await trio.sleep(5)
        assert [await s.is_served() for _ in range(8)] == [True] * 8


async def test_a_peer_that_lost_its_connections_unnoticed_is_let_in_again(autojump_clock: MockClock) -> None:
    async with scene() as s:
        (moved,) = s.attackers(1, ONE_ADDRESS)
        held = []
        for _ in range(CONNECTIONS_PER_PEER + 1):
            held.append(await moved.connect())
            await trio.sleep(1)
        assert [each.is_established for each in held] == [False] + [True] * CONNECTIONS_PER_PEER
        assert s.host.statistics().connections == CONNECTIONS_PER_PEER
        assert s.host.statistics().peers == 1


async def test_a_crowd_on_one_prefix_is_served_whole_while_nobody_else_comes(
    autojump_clock: MockClock,
) -> None:
    async with scene() as s:
        clients = [
            Network(
                NetworkConfig(
                    key_seed=random.Random(i).randbytes(32),
                    transport=s.net.transport(f"8.8.8.{i + 1}"),
                    dht="client",
                    gossip=False,
                )
            )
            for i in range(LIMITS.connections_max)
        ]
        async with trio.open_nursery() as nursery:
            for client in clients:
                await nursery.start(client.run)
                await client.connect(s.host.multiaddrs[0])
            await trio.sleep(2)
            assert s.host.statistics().peers == LIMITS.connections_max
            assert await s.is_served()
            assert s.host.statistics().refused["evicted"] == 1
            for client in clients:
                await client.aclose()
            nursery.cancel_scope.cancel()
