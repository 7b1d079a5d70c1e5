"""The warm standby: ready before it is needed, replaced when it is gone, gone with the answer."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from tests.client.failing import ONE_BY_ONE, TOKENS, ask, check_whole, hosts, read, seeds, stage
from tests.client.support import whole
from tests.node.world import Member, world

LONG = 400


async def until_ready(client: Client, answer: Answer, members: list[Member]) -> Member:
    """Wait for one of these to stand by: looked for every 15 s, and the host here gives up after 30."""
    with trio.fail_after(25):
        while True:
            for member in members:
                if answer.standby == member.node.peer_id:
                    assert client.node.network.is_connected(member.node.peer_id)
                    return member
            await trio.sleep(0.1)


async def test_while_an_answer_streams_the_next_best_host_is_connected(autojump_clock: MockClock) -> None:
    async with stage(3) as (_, members, client):
        for member in members[1:]:
            await client.node.network.disconnect(member.node.peer_id)
        async with ask(client, tokens=LONG) as answer:
            await anext(answer)
            standby = await until_ready(client, answer, members[1:])
            assert standby.host is not None
            assert standby.host.sessions == 0  # nothing was opened, let alone signed


async def test_a_better_host_takes_the_place_of_the_standby(autojump_clock: MockClock) -> None:
    async with stage(3, tokens_per_s=5) as (_, members, client), ask(client, tokens=LONG) as answer:
        await anext(answer)
        await until_ready(client, answer, [members[1]])
        for _ in range(20):
            client.searches.note_answer(members[2].node.peer_id, 0.0001, 100_000.0)
        with trio.move_on_after(15):
            async for _ in answer:
                if answer.standby == members[2].node.peer_id:
                    break
        assert answer.standby == members[2].node.peer_id


async def test_an_idle_session_too_gets_a_standby_although_nothing_was_looked_up(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        members = await hosts(w, 2)
        async with w.client([seeds(members)[0]]) as client:
            await whole(ask(client))
            async with ask(client, "more", LONG) as answer:
                await anext(answer)
                used = next(m for m in members if m.node.peer_id == answer.host)
                await until_ready(client, answer, [m for m in members if m is not used])


async def test_when_the_standby_dies_another_takes_its_place_and_the_answer_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with stage(3) as (w, members, client):
        left: list[Member] = []

        async def then(held: int) -> None:
            if held == 5:
                first = await until_ready(client, answer, members[1:])
                w.crash(first)
                left.extend(member for member in members[1:] if member is not first)
                await until_ready(client, answer, left)
                w.crash(members[0])

        answer = ask(client, tokens=LONG)
        shown = await read(answer, then)
        await check_whole(answer, shown, tokens=LONG)
        assert answer.host == left[0].node.peer_id
        assert len(answer.bill) == 2


async def test_without_another_host_the_lookup_is_repeated_until_there_is_one(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        members = await hosts(w, 1, tokens_per_s=10)
        async with w.client(seeds(members)) as client, ask(client, tokens=LONG) as answer:
            await anext(answer)
            (late,) = await hosts(w, 1)
            client.runtime.bootstrap = (*client.runtime.bootstrap, late.node.multiaddrs[0])
            with trio.move_on_after(30):
                async for _ in answer:
                    if answer.standby is not None:
                        break
            assert answer.standby == late.node.peer_id


async def test_the_standby_ends_with_its_answer(autojump_clock: MockClock) -> None:
    async with stage(2) as (_, _, client):
        await whole(ask(client))
        await trio.sleep(1)
        before = trio.lowlevel.current_statistics().tasks_living
        for end in ("left", "whole"):
            answer = ask(client, end, LONG if end == "left" else TOKENS)
            async with answer:
                if end == "left":
                    await anext(answer)
                else:
                    await whole(answer)
            await trio.sleep(3)
            assert trio.lowlevel.current_statistics().tasks_living <= before


async def test_the_advert_of_the_standby_is_renewed_before_it_expires(autojump_clock: MockClock) -> None:
    async with stage(2, tokens_per_s=2) as (_, members, client), ask(client, tokens=LONG) as answer:
        began = trio.current_time()
        async for _ in answer:
            if trio.current_time() - began > 120:  # an advert lives 90 s
                break
        peer = members[1].node.peer_id
        assert answer.standby == peer
        entry = client.node.adverts.book.get(peer, client.node.wall())
        assert entry is not None
        assert entry.advert.expires_at > client.node.wall() + 30
