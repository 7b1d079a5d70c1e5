"""Questions for adverts between two whole nodes: who asks keeps to what the other side answers."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.node.advert_exchange import QUESTIONS_BURST, QUESTIONS_PER_S
from p2pnode.node.driver import ask_once
from p2pnode.protocols.adverts.messages import CODEC, PROTOCOL, Advert, GetAdvert
from tests.client.failing import seeds
from tests.node.world import scripted_host, world

SECONDS, EACH_S = 5, 80


async def test_a_peer_that_many_lookups_ask_at_once_answers_all_of_them(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(seeds([host])) as client:
            await client.hosts("scripted")
            before, got = host.node.adverts.served.total(), list[Advert]()

            async def look_up() -> None:
                found = await client.runtime.node.finder.contact(host.node.peer_id, ())
                assert found is not None
                got.append(found)
                await client.runtime.node.adverts.sample(host.node.peer_id)

            async with trio.open_nursery() as nursery:
                for _ in range(SECONDS):
                    for _ in range(EACH_S):
                        nursery.start_soon(look_up)
                    await trio.sleep(1)
            assert len(got) == SECONDS * EACH_S
            asked = host.node.adverts.served.total() - before
            assert asked <= QUESTIONS_BURST + SECONDS * QUESTIONS_PER_S
            await trio.sleep(60)
            await client.runtime.node.adverts.fetch(host.node.peer_id)
            assert host.node.adverts.served.total() - before > asked, "later it is asked again"


async def test_a_peer_that_is_asked_too_much_gives_no_answer_and_broke_nothing(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(seeds([host])) as client:
            await client.hosts("scripted")
            node, peer = client.runtime.node, host.node.peer_id
            question = GetAdvert(peer=peer)
            answers = list[object]()

            async def ask() -> None:
                answers.append(await ask_once(node.network, peer, PROTOCOL, CODEC, [question]))

            errors = list[str]()

            async def fetch() -> None:
                try:
                    await node.adverts.fetch(peer)
                except UnreachableError as error:
                    errors.append(str(error))

            for _ in range(4):  # more streams at a time than these are refused
                async with trio.open_nursery() as nursery:
                    for _ in range(30):
                        nursery.start_soon(ask)
                    nursery.start_soon(fetch)
            assert answers.count(None) > 0
            assert errors
            assert all("gave no answer" in each for each in errors)
