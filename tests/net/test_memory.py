"""Twenty real networks in memory, in virtual time: gossip, DHT, faults, and a repeated run."""

from __future__ import annotations

import hashlib
import time
from functools import partial

import pytest
import trio
from libp2p.network import swarm as library_swarm
from trio.testing import MockClock

from p2pnode.errors import ConfigError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net.gossip import Subscription
from p2pnode.net.memory import MemoryNet
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.net.virtual_time import EPOCH_S, virtual_time
from p2pnode.protocols.gossipsub.commands import ACCEPT, REJECT, Verdict
from tests.net.memory_world import World, config_of, ip_of, world
from tests.net.support import ECHO, echo, eventually

COUNT = 20
TOPIC = "adverts"
KEY = hashlib.sha256(b"a model").digest()


def _judge(_author: PeerId, data: bytes) -> Verdict:
    return REJECT if data == b"bad" else ACCEPT


async def _record(events: list[str], index: int, subscription: Subscription) -> None:
    async for author, data in subscription:
        events.append(f"{trio.current_time():.6f} {index} {author} {data!r}")


async def _scenario(events: list[str]) -> None:
    """One message reaches all within 2 s; the DHT finds its provider from every other node."""
    async with world(COUNT) as w:
        for i, node in enumerate(w.nodes):
            w.nursery.start_soon(
                _record,
                events,
                i,
                await node.subscribe(TOPIC, _judge),
            )
        await w.connect_all()
        await trio.sleep(5)
        for k in (3, 11):
            before = len(events)
            await w.nodes[k].publish(TOPIC, b"message %d" % k)
            await w.nodes[k].publish(TOPIC, b"bad")
            await trio.sleep(2)
            assert len(events) - before == COUNT
        assert await w.nodes[5].provide(KEY)
        for i, node in enumerate(w.nodes):
            found = [entry.peer for entry in await node.find_providers(KEY, limit=4)]
            assert found == ([] if i == 5 else [w.nodes[5].peer_id])
            events.append(f"{trio.current_time():.6f} {i} found {found}")


def _digest(seed: int) -> str:
    events: list[str] = []
    with virtual_time(seed=seed):
        trio.run(partial(_scenario, events), clock=MockClock(autojump_threshold=0))
    return hashlib.sha256("\n".join(sorted(events)).encode()).hexdigest()


@pytest.mark.long
def test_twenty_nodes_gossip_and_find_providers_the_same_way_twice() -> None:
    started = time.process_time()
    assert _digest(7) == _digest(7)
    assert time.process_time() - started < 20


def test_a_seed_takes_the_same_course_again_and_another_seed_another_one() -> None:
    def small(seed: int) -> list[str]:
        events: list[str] = []

        async def main() -> None:
            async with world(6, net=MemoryNet(latency=0.02, jitter=0.05, seed=seed)) as w:
                for i, node in enumerate(w.nodes):
                    w.nursery.start_soon(
                        _record, events, i, await node.subscribe(TOPIC, lambda _, __: ACCEPT)
                    )
                await w.connect_all()
                await trio.sleep(3)
                await w.nodes[0].publish(TOPIC, b"x")
                await trio.sleep(2)

        with virtual_time(seed=seed):
            trio.run(main, clock=MockClock(autojump_threshold=0))
        return events

    first = small(1)
    assert small(1) == first
    assert small(2) != first


def test_virtual_time_is_undone_on_exit() -> None:
    with virtual_time(seed=1) as clock:
        assert vars(library_swarm)["time"] is not time
        assert clock() == EPOCH_S
    assert vars(library_swarm)["time"] is time


async def _pair(w: World) -> None:
    w.nodes[0].serve(ECHO, echo)
    await w.nodes[1].connect(w.nodes[0].multiaddrs[0])


async def test_a_crashed_host_is_an_unreachable_error_and_is_noticed(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        await _pair(w)
        stream = await w.nodes[1].open_stream(w.nodes[0].peer_id, ECHO)
        w.net.crash(ip_of(0))
        with pytest.raises(UnreachableError):
            await stream.receive_some()
        await eventually(lambda: not w.nodes[1].is_connected(w.nodes[0].peer_id))
        with pytest.raises(UnreachableError, match="no answer"):
            await w.nodes[1].connect(w.nodes[0].multiaddrs[0])


async def test_two_who_want_a_silent_peer_at_once_wait_for_one_dial_and_share_its_failure(
    autojump_clock: MockClock,
) -> None:
    async with world(2) as w:
        silent = w.nodes[1].multiaddrs[0]
        w.net.crash(ip_of(1))
        failures: list[str] = []

        async def dial() -> None:
            with pytest.raises(UnreachableError) as failed:
                await w.nodes[0].connect(silent)
            failures.append(str(failed.value))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            nursery.start_soon(dial)
        assert trio.current_time() - began < 15  # one deadline of 10 s, not two
        assert "a router or firewall lets nobody in" in failures[0]
        assert failures == [failures[0]] * 2
        assert w.nodes[0].statistics().dials["timeout"] == 1


async def test_a_partition_cuts_and_healing_joins_again(autojump_clock: MockClock) -> None:
    async with world(3) as w:
        await _pair(w)
        w.net.partition([ip_of(0)], [ip_of(1)])
        await eventually(lambda: not w.nodes[1].connected_peers())
        await w.nodes[2].connect(w.nodes[0].multiaddrs[0])
        w.net.heal()
        await w.nodes[1].connect(w.nodes[0].multiaddrs[0])
        assert w.nodes[1].is_connected(w.nodes[0].peer_id)


async def test_a_lossy_slow_wire_still_carries_everything_in_order(autojump_clock: MockClock) -> None:
    async with world(2, net=MemoryNet(latency=0.1, jitter=0.2, loss=0.2, seed=5)) as w:
        await _pair(w)
        stream = await w.nodes[1].open_stream(w.nodes[0].peer_id, ECHO)
        sent = bytes(range(256)) * 4000
        w.nursery.start_soon(stream.send_all, sent)
        got = b""
        while len(got) < len(sent):
            got += await stream.receive_some()
        assert got == sent
        await stream.aclose()


async def test_a_taken_port_is_a_config_error_in_memory_too(autojump_clock: MockClock) -> None:
    async with world(1) as w:
        with pytest.raises(ConfigError, match="already taken"):
            await Network(config_of(w.net, 0)).run()


async def test_what_came_before_a_reset_is_read(autojump_clock: MockClock) -> None:
    async def says_and_aborts(stream: Stream) -> None:
        await stream.send_all(b"why")
        await stream.reset()

    async with world(2) as w:
        here, there = w.nodes
        here.serve(ECHO, says_and_aborts)
        await there.connect(here.multiaddrs[0])
        stream = await there.open_stream(here.peer_id, ECHO)
        await trio.sleep(1)
        assert await stream.receive_some() == b"why"
        with pytest.raises(UnreachableError):
            await stream.receive_some()


@pytest.mark.parametrize(("late_s", "aborted"), [(0.5, False), (3.0, True)])
async def test_who_goes_on_talking_to_a_finished_stream_is_not_reset_before_it_could_read(
    autojump_clock: MockClock, late_s: float, *, aborted: bool
) -> None:
    async def says_and_ends(stream: Stream) -> None:
        await stream.send_all(b"why")

    async with world(2) as w:
        here, there = w.nodes
        here.serve(ECHO, says_and_ends)
        await there.connect(here.multiaddrs[0])
        stream = await there.open_stream(here.peer_id, ECHO)
        await trio.sleep(late_s)
        await stream.send_all(b"and another thing")
        await trio.sleep(0.5)
        assert await stream.receive_some() == b"why"
        if aborted:
            with pytest.raises(UnreachableError):
                await stream.send_all(b"is anybody there?")
        else:
            await stream.send_all(b"is anybody there?")
