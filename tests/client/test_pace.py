"""A host that crawls is left for another one, and only where there is one."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import SCRIPTED
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.failing import ask, check_whole, meet, read
from tests.client.support import Events
from tests.node.world import Member, World, scripted_host, world

CRAWL = 0.05
"""One token in twenty seconds: within every stall time."""


async def two(w: World, first: float | None, second: float | None) -> list[Member]:
    members = [await w.add([scripted_host(tokens_per_s=first)])]
    known = members[0].node.multiaddrs[:1]
    members.append(await w.add([scripted_host(tokens_per_s=second)], bootstrap=known))
    await trio.sleep(5)
    return members


async def crawling(client: Client, members: list[Member], events: Events) -> None:
    events.of(client)
    await meet(client, members)


async def test_a_host_that_crawls_is_left_and_another_one_goes_on(autojump_clock: MockClock) -> None:
    async with world() as w:
        members = await two(w, CRAWL, 50)
        async with w.client(members[0].node.multiaddrs[:1]) as client:
            events = Events()
            await crawling(client, members, events)
            began = trio.current_time()
            answer = ask(client)
            shown = await read(answer)
            await check_whole(answer, shown)
            assert trio.current_time() - began < 2 * DEFAULT_LIMITS.pace_window_s
            assert [item.reason for item in answer.bill] == ["slow", "length"]
            assert answer.host == members[1].node.peer_id
            (told,) = events.named("host.slow")
            assert told["leaving"]
            assert events.named("failover")[0]["reason"] == "slow"
            ranking = await client.hosts(SCRIPTED)
            assert ranking.chosen[0].advert.peer == members[1].node.peer_id
        await trio.sleep(5)
        assert members[0].host is not None
        assert members[0].host.sessions == 0


async def test_where_there_is_no_other_host_one_waits_and_is_told_once(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=CRAWL)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            events = Events()
            events.of(client)
            answer = ask(client, tokens=12)
            shown = await read(answer)
            await check_whole(answer, shown, tokens=12)
            assert len(answer.bill) == 1
            (told,) = events.named("host.slow")
            assert not told["leaving"]


async def test_a_host_that_was_named_is_not_left(autojump_clock: MockClock) -> None:
    async with world() as w:
        members = await two(w, CRAWL, 50)
        async with w.client(members[1].node.multiaddrs[:1]) as client:
            events = Events()
            await crawling(client, members, events)
            sampling = SamplingParams(tokens_max=8, temperature=0)
            named = members[0].node.multiaddrs[0]
            answer = client.chat("hello", model=SCRIPTED, peer=named, sampling=sampling)
            await read(answer)
            assert {item.peer for item in answer.bill} == {members[0].node.peer_id}
            assert [each["leaving"] for each in events.named("host.slow")] == [False]


async def test_a_host_that_is_slow_and_within_reason_is_not_left(autojump_clock: MockClock) -> None:
    async with world() as w:
        members = await two(w, 1.5 * DEFAULT_LIMITS.pace_ceiling, 50)
        async with w.client(members[0].node.multiaddrs[:1]) as client:
            events = Events()
            await crawling(client, members, events)
            answer = ask(client, tokens=300)
            await read(answer)
            assert [item.peer for item in answer.bill] == [members[0].node.peer_id]
            assert not events.named("host.slow")


async def test_a_reader_that_is_slow_is_not_taken_for_a_slow_host(autojump_clock: MockClock) -> None:
    async with world() as w:
        members = await two(w, None, 50)
        async with w.client(members[0].node.multiaddrs[:1]) as client:
            events = Events()
            await crawling(client, members, events)
            answer = ask(client, tokens=300)

            async def dawdle(_held: int) -> None:
                await trio.sleep(12)

            await read(answer, dawdle)
            assert len(answer.ids) == 300
            assert not events.named("host.slow")
            assert {item.peer for item in answer.bill} == {members[0].node.peer_id}
