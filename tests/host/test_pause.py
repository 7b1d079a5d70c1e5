"""A host that is paused offers nothing and takes nothing new; what is under way ends, and it serves again
once every reason was taken back."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import NoHostError, RefusedError
from p2pnode.models.manifest import SCRIPTED
from tests.client.support import ask, whole
from tests.node.world import scripted_host, world


async def test_a_pause_withdraws_offers_and_lets_answers_under_way_end(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        other = await w.add(bootstrap=host.node.multiaddrs[:1])
        assert host.host is not None
        async with w.client(host.node.multiaddrs[:1]) as client:
            answer = ask(client, tokens=200)
            await anext(answer)
            host.host.pause("its owner paused it")
            await trio.sleep(2)
            assert len((await client.hosts(SCRIPTED)).chosen) == 0
            for _ in range(100):
                try:
                    await anext(answer)
                except StopAsyncIteration:
                    break
            assert len(answer.ids) == 200  # the answer under way was not cut
            with pytest.raises(NoHostError):
                await whole(ask(client))
            with pytest.raises(RefusedError, match=r"is paused|serves nothing"):
                await whole(ask(client, peer=host.node.multiaddrs[0]))
            assert host.host.sessions == 0
            assert host.host.resume("its owner paused it")
            await trio.sleep(2)
            assert [each.advert.peer for each in (await client.hosts(SCRIPTED)).chosen] == [host.node.peer_id]
            assert await whole(ask(client))
        assert other.node.adverts.book.get(host.node.peer_id, other.node.wall()) is not None


async def test_it_serves_again_when_the_last_reason_is_gone(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = (await w.add([scripted_host()])).host
        assert host is not None
        host.pause("one")
        host.pause("other")
        host.pause("one")
        assert list(host.pauses) == ["one", "other"]
        assert host.resume("one")
        assert not host.resume("one")
        assert list(host.pauses) == ["other"]
        assert host.resume("other")
        assert list(host.pauses) == []


async def test_a_refusal_during_a_pause_says_so_and_is_counted(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        assert host.host is not None
        async with w.client(host.node.multiaddrs[:1]) as client:
            found = await client.hosts(SCRIPTED)  # an advert of before the pause
            assert found.chosen
            host.host.pause("the machine is in use")
            with pytest.raises((RefusedError, NoHostError)):
                await whole(ask(client))
        if host.host.refusals.counts:
            assert "paused (the machine is in use)" in host.host.refusals.last[0].detail
