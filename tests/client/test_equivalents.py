"""Models that the user takes for the one that is asked for: only then does an answer cross from id to id."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.client.ranking import Filters
from p2pnode.errors import NoHostError
from p2pnode.ids import ModelId
from p2pnode.models.manifest import SCRIPTED
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.failing import ONE_BY_ONE, TOKENS, check_whole, read, seeds
from tests.node.world import Member, World, scripted_host, world

OTHER = ModelId(b"the same weights in another file")
GREEDY = SamplingParams(tokens_max=TOKENS, temperature=0)
EQUAL = Filters(equivalents=(OTHER,))


@asynccontextmanager
async def two_files() -> AsyncIterator[tuple[World, list[Member], Client]]:
    """A slow host of the model, and a fast one of the same model under another id."""
    async with world(limits=ONE_BY_ONE) as w:
        very = await w.add([scripted_host(tokens_per_s=20.0)])
        same = await w.add(
            [replace(scripted_host(tokens_per_s=200.0), model=OTHER, name="other")], bootstrap=seeds([very])
        )
        await trio.sleep(5)
        async with w.client(seeds([very, same])) as client:
            yield w, [very, same], client


async def test_an_answer_goes_on_under_another_id_where_the_user_says_they_are_equal(
    autojump_clock: MockClock,
) -> None:
    async with two_files() as (w, (very, same), client):
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=EQUAL)

        def then(held: int) -> None:
            if held >= 5:
                w.crash(very)

        shown = await read(answer, then)
        await check_whole(answer, shown)
        assert [item.peer for item in answer.bill] == [very.node.peer_id, same.node.peer_id]


async def test_without_that_it_never_does(autojump_clock: MockClock) -> None:
    async with two_files() as (w, (very, same), client):
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY)

        def then(held: int) -> None:
            if held >= 5:
                w.crash(very)

        with pytest.raises(NoHostError):
            await read(answer, then)
        assert [item.peer for item in answer.bill] == [very.node.peer_id]
        assert same.host is not None
        assert same.host.totals.turns == 0


async def test_the_very_model_goes_before_its_equals_however_slow(autojump_clock: MockClock) -> None:
    async with two_files() as (_, (very, same), client):
        ranking = await client.hosts(SCRIPTED, filters=EQUAL)
        assert [(each.advert.peer, each.equivalent) for each in ranking.chosen] == [
            (very.node.peer_id, False),
            (same.node.peer_id, True),
        ]
        client.searches.note_answer(same.node.peer_id, 0.01, 10_000.0)
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=EQUAL)
        await check_whole(answer, await read(answer))
        assert [item.peer for item in answer.bill] == [very.node.peer_id]


async def test_a_question_that_no_host_of_its_model_can_take_goes_to_an_equal(
    autojump_clock: MockClock,
) -> None:
    async with two_files() as (w, (very, same), client):
        w.crash(very)
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=EQUAL)
        await check_whole(answer, await read(answer))
        assert [item.peer for item in answer.bill] == [same.node.peer_id]
