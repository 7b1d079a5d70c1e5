"""Every attack that once stopped a node, and the same flood on every protocol: others are served meanwhile.

In virtual time, over a network in memory; ``p2pnode bench attacks`` has them for real. Attackers come back as
soon as they are cut off.
"""

from __future__ import annotations

import gc
import random
from functools import partial

import psutil
import pytest
import trio
from trio.testing import MockClock

from p2pnode.bench.attackers import ATTACKS, repeat_for_ever, until_refused
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.stream import Stream
from p2pnode.net.swarm import STREAMS_BURST, STREAMS_PER_S
from p2pnode.protocols.adverts.messages import topic_of
from p2pnode.protocols.gossipsub.commands import ACCEPT
from tests.net.test_hostile_shares import FIVE_OF_ONE_PREFIX, ONE_ADDRESS, PROTOCOLS, Scene, scene

GROWTH_MAX_BYTES = 5 << 20
FROM = pytest.mark.parametrize("ips", [ONE_ADDRESS, FIVE_OF_ONE_PREFIX], ids=["one address", "one /24"])
IDS = pytest.mark.parametrize("ids", [1, 2, 20])


async def _attack(s: Scene, name: str, ids: int, ips: tuple[str, ...], *, seconds: float) -> list[bool]:
    """Whether an honest client was served 1 s after the attack began, and at its end."""
    served = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_refused, partial(ATTACKS[name], s.attackers(ids, ips)))
        await trio.sleep(1)
        served.append(await s.is_served())
        await trio.sleep(seconds - 1)
        served.append(await s.is_served())
        nursery.cancel_scope.cancel()
    return served


async def _on_a_topic(s: Scene) -> None:
    await s.host.subscribe(topic_of(scripted_model_id()), lambda _author, _data: ACCEPT)


@pytest.mark.parametrize("name", ["grafts", "pushes"])
async def test_an_honest_client_is_served_during_an_attack(autojump_clock: MockClock, name: str) -> None:
    async with scene() as s:
        await _on_a_topic(s)
        assert await _attack(s, name, 2, FIVE_OF_ONE_PREFIX, seconds=10) == [True, True]
        assert s.host.statistics().tasks_failed == {}


async def test_streams_that_are_opened_without_end_are_served_at_a_bounded_rate(
    autojump_clock: MockClock,
) -> None:
    served = 0

    async def brief(_stream: Stream) -> None:
        nonlocal served
        served += 1

    async with scene() as s:
        s.host.serve("/p2pnode/brief/1", brief)
        (attacker,) = s.attackers(1, ONE_ADDRESS)
        connection = await attacker.connect()
        with trio.move_on_after(10):
            while True:
                (await attacker.open(connection, "/p2pnode/brief/1")).close_write()
                await trio.sleep(0.002)
        assert STREAMS_BURST < served <= STREAMS_BURST + 11 * STREAMS_PER_S
        assert await s.is_served()


@pytest.mark.long
@FROM
@IDS
@pytest.mark.parametrize("name", ATTACKS)
async def test_an_honest_client_is_served_during_any_attack(
    autojump_clock: MockClock, name: str, ids: int, ips: tuple[str, ...]
) -> None:
    async with scene() as s:
        await _on_a_topic(s)
        assert await _attack(s, name, ids, ips, seconds=10) == [True, True]
        assert s.host.statistics().tasks_failed == {}


@pytest.mark.long
@FROM
@IDS
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_honest_client_is_served_while_noise_floods_any_protocol(
    autojump_clock: MockClock, protocol: str, ids: int, ips: tuple[str, ...]
) -> None:
    rng = random.Random(7)
    async with scene() as s:
        flood = partial(
            repeat_for_ever,
            s.attackers(ids, ips),
            protocol,
            lambda: rng.randbytes(rng.randrange(1, 4000)),
            per_s=5.0,
            stream_each=rng.random() < 0.5,
        )
        s.nursery.start_soon(flood)
        for after_s in (1.0, 10.0):
            await trio.sleep(after_s)
            assert await s.is_served()
        assert s.host.statistics().tasks_failed == {}


@pytest.mark.long
@pytest.mark.parametrize("name", ATTACKS)
async def test_a_second_identical_attack_takes_no_more_memory(autojump_clock: MockClock, name: str) -> None:
    async with scene() as s:
        await _on_a_topic(s)
        after = []
        for _ in range(2):
            await _attack(s, name, 2, FIVE_OF_ONE_PREFIX, seconds=20)
            await trio.sleep(60)
            gc.collect()
            after.append(psutil.Process().memory_info().rss)
        assert after[1] - after[0] < GROWTH_MAX_BYTES
