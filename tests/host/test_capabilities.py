"""Hosts that lack what a question needs are left out with the reason, and no dial is spent on them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.ranking import Filters
from p2pnode.errors import RefusedError
from p2pnode.models.engine import EngineInfo
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.protocols.adverts.messages import Capability
from p2pnode.protocols.inference.messages import Tool
from tests.node.world import Member, World, scripted_host, world


class _WithTools(ScriptedEngine):
    """Says that it takes tools."""

    async def load(self) -> EngineInfo:
        return replace(await super().load(), features=frozenset({"tools"}))


async def _hosts(w: World) -> tuple[Member, Member, Member]:
    """One that lacks what is needed, one that has it, and a node that knows both."""
    relay = await w.add()
    plain = await w.add([replace(scripted_host(), new_engine=_Plain)], bootstrap=relay.node.multiaddrs[:1])
    able = await w.add([replace(scripted_host(), new_engine=_WithTools)], bootstrap=relay.node.multiaddrs[:1])
    await relay.node.follow([scripted_model_id()])
    await trio.sleep(60)  # their adverts reach it
    return relay, plain, able


class _Plain(ScriptedEngine):
    """Takes text only."""

    async def load(self) -> EngineInfo:
        return replace(await super().load(), features=frozenset())


async def test_the_bit_of_an_engine_reaches_the_client(autojump_clock: MockClock) -> None:
    async with world() as w:
        relay, plain, able = await _hosts(w)
        async with w.client([relay.node.multiaddrs[0]]) as client:
            ranking = await client.hosts(SCRIPTED, Filters(caps=int(Capability.TOOLS)))
            assert [each.advert.peer for each in ranking.chosen] == [able.node.peer_id]
            (excluded,) = ranking.excluded
            assert (excluded.advert.peer, excluded.excluded) == (
                plain.node.peer_id, "lacks tools, which is needed",
            )  # fmt: skip


async def test_no_dial_is_spent_on_a_host_whose_advert_says_what_it_lacks(autojump_clock: MockClock) -> None:
    async with world() as w:
        relay, plain, able = await _hosts(w)
        seeds = [relay.node.multiaddrs[0]]
        async with w.client(seeds) as client:
            lacking, found = list[str](), list[str]()
            find = partial(
                client.node.finder.find,
                scripted_model_id(),
                seeds=seeds,
                on_found=lambda host: found.append(host.advert.peer),
                on_lacking=lambda advert: lacking.append(advert.peer),
                caps=int(Capability.TOOLS),
                sources=frozenset({"bootstrap", "exchange"}),
            )
            await find()
            assert found == [able.node.peer_id]
            assert not client.node.network.is_connected(plain.node.peer_id)
            await able.node.aclose()
            await trio.sleep(600)
            found.clear()
            await find()
            # A node that knows none that has it says who is there, so that the user learns why.
            assert (found, lacking) == ([], [plain.node.peer_id])


async def test_a_question_with_a_tool_goes_to_a_host_that_takes_tools_and_is_refused_in_words_by_others(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        relay, plain, able = await _hosts(w)
        tools = (Tool(name="weather", parameters='{"type": "object"}'),)
        async with w.client([relay.node.multiaddrs[0]]) as client:
            client.searches.note_answer(plain.node.peer_id, 0.001, 10_000.0)  # the faster one
            estimates = await client.estimate("hello", ChatOptions(model=SCRIPTED, tools=tools))
            told = {each.candidate.advert.peer: each.candidate.excluded for each in estimates}
            assert told == {able.node.peer_id: "", plain.node.peer_id: "lacks tools, which is needed"}
            plain_one = await client.estimate("hello", ChatOptions(model=SCRIPTED))
            assert [each.candidate.excluded for each in plain_one] == ["", ""]
            named = ChatOptions(model=SCRIPTED, tools=tools, peer=plain.node.multiaddrs[0])
            with pytest.raises(RefusedError, match="that host: lacks tools, which is needed"):
                await client.estimate("hello", named)
