"""A model's embedder: loaded when it is asked, counted, unloaded, and no more offered when it fails."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.errors import EngineError, EngineLostError, P2PNodeError
from p2pnode.host.host import Host
from p2pnode.host.model_pool import Hold, HostedEmbedder, HostedModel, ModelPool, PoolLimits
from p2pnode.host.residency import FAILURES_MAX, Memory
from p2pnode.models.engine import Embedding, EmbedRequest, EngineInfo
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.scripted import DIMENSIONS, Faults, ScriptedConfig, ScriptedEngine
from p2pnode.net.virtual_time import wall_clock
from p2pnode.protocols.adverts.messages import Capability
from p2pnode.protocols.inference.messages import SamplingParams
from tests.node.world import Member, World, identity_of, scripted_host, world

TEXTS = ["the sea is wide", "a ledger of debts"]


@dataclass
class Parts:
    """The engines of one model: those that answer, and those that embed."""

    answering: list[ScriptedEngine] = field(default_factory=list)
    embedding: list[_Embedder] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    """Of embedders that are loaded from now on."""
    fails: bool = False
    """Whether none can be loaded."""

    def model(self, *, memory: int = 1, embedder: int = 1) -> HostedModel:
        def answers() -> ScriptedEngine:
            self.answering.append(ScriptedEngine(ScriptedConfig(embeddings=False, slots=1)))
            return self.answering[-1]

        def embeds() -> _Embedder:
            self.embedding.append(_Embedder(self))
            return self.embedding[-1]

        own = HostedEmbedder(new_engine=embeds, memory=Memory(embedder))
        return replace(scripted_host(), new_engine=answers, memory=Memory(memory), embedder=own)

    @property
    def loaded(self) -> list[_Embedder]:
        return [each for each in self.embedding if not each.closed]


class _Embedder(ScriptedEngine):
    def __init__(self, parts: Parts) -> None:
        super().__init__(ScriptedConfig(load_s=2.0))
        self._parts, self.closed, self.faults = parts, False, parts.faults

    async def load(self) -> EngineInfo:
        info = await super().load()
        if self._parts.fails:
            raise EngineError("out of memory")
        return info

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


async def host_of(
    w: World, model: HostedModel, memory: int, events: list[str] | None = None
) -> tuple[Member, Host]:
    member = await w.add()
    host = Host(
        member.node,
        identity_of(member.index, wall_clock()),
        [model],
        report=lambda name, _fields: events.append(name) if events is not None else None,
        pool=PoolLimits(memory=Memory(memory)),
    )
    member.host = host
    await host.start()
    return member, host


async def embed(client: Client, member: Member) -> list[array[float]]:
    found = client.embed(TEXTS, model=SCRIPTED, peer=member.node.multiaddrs[0])
    return [vector async for vector in found]


async def chat(client: Client, member: Member, tokens: int = 5) -> str:
    sampling = SamplingParams(tokens_max=tokens)
    answer = client.chat("hello", model=SCRIPTED, peer=member.node.multiaddrs[0], sampling=sampling)
    async for _ in answer:
        pass
    return answer.text


async def caps_of(client: Client, member: Member) -> Capability:
    await trio.sleep(2)
    advert = await client.advert_of(member.node.multiaddrs[:1])
    assert advert is not None
    offer = advert.offer(scripted_model_id())
    assert offer is not None
    return Capability(offer.caps)


async def test_texts_are_embedded_by_an_engine_of_their_own_that_is_there_while_it_is_asked(
    autojump_clock: MockClock,
) -> None:
    parts = Parts()
    async with world() as w, w.client() as client:
        member, host = await host_of(w, parts.model(), 2)
        assert Capability.EMBEDDINGS in await caps_of(client, member)
        assert parts.embedding == []
        vectors = await embed(client, member)
        assert [len(each) for each in vectors] == [DIMENSIONS] * 2
        assert len(parts.loaded) == 1
        assert host.free == Memory()
        assert await chat(client, member)
        assert len(parts.answering) == 1  # and it was not unloaded for them
        await trio.sleep(290)
        assert len(parts.loaded) == 1
        await trio.sleep(20)
        assert parts.loaded == []
        assert host.free == Memory(1)
        assert await embed(client, member) == vectors


async def test_where_memory_holds_one_of_both_each_makes_room_for_the_other(
    autojump_clock: MockClock,
) -> None:
    parts = Parts()
    async with world() as w, w.client() as client:
        member, _ = await host_of(w, parts.model(), 1)
        for _ in range(2):
            await trio.sleep(60)  # nothing is promised any more
            assert len(await embed(client, member)) == 2
            assert len(parts.loaded) == 1
            await trio.sleep(60)
            assert await chat(client, member)
            assert parts.loaded == []
        assert len(parts.answering) == 3


async def test_a_crash_of_an_embedder_costs_its_client_nothing_but_time(autojump_clock: MockClock) -> None:
    parts = Parts()
    async with world() as w, w.client() as client:
        member, _ = await host_of(w, parts.model(), 2)
        vectors = await embed(client, member)
        # The host goes on with the next text, by the engine that restarted itself.
        parts.loaded[0].faults = Faults(crash_after_tokens=1)
        assert await embed(client, member) == vectors


async def test_an_embedder_that_crashes_again_and_again_ends_its_own_capability_for_a_time(
    autojump_clock: MockClock,
) -> None:
    parts, events = Parts(faults=Faults(crash_after_tokens=0, crashes=FAILURES_MAX)), list[str]()
    async with trio.open_nursery() as nursery:
        pool = ModelPool(
            PoolLimits(memory=Memory(2)),
            start_soon=nursery.start_soon,
            report=lambda name, _fields: events.append(name),
        )
        pool.offer(parts.model())
        await pool.prepare()
        nursery.start_soon(pool.run)
        model = scripted_model_id()
        for _ in range(FAILURES_MAX):
            assert "embeddings" in _features(pool)
            held = await pool.hold(model, embeds=True)
            with pytest.raises(EngineLostError):
                await _vectors(held)
            held.release()
            await trio.sleep(30)
        assert "model.withdrawn" in events
        assert "embeddings" not in _features(pool)
        assert parts.loaded == []
        with pytest.raises(EngineError, match="no embeddings now") as refused:
            await pool.hold(model, embeds=True)
        assert (refused.value.code, bool(refused.value.retry_after_s)) == ("capacity", True)
        (await pool.hold(model)).release()
        parts.faults = Faults()
        await trio.sleep(700)  # it is tried again by itself
        assert "embeddings" in _features(pool)
        assert await _vectors(await pool.hold(model, embeds=True)) == 1
        await pool.aclose()
        nursery.cancel_scope.cancel()


def _features(pool: ModelPool) -> frozenset[str]:
    info = pool.info(scripted_model_id())
    return frozenset() if info is None else frozenset(info.features)


async def _vectors(held: Hold) -> int:
    async with held.engine.embed(EmbedRequest(texts=((1,),))) as events:
        return len([event async for event in events if isinstance(event, Embedding)])


async def test_one_that_can_not_be_loaded_is_refused_with_a_time_and_answers_go_on(
    autojump_clock: MockClock,
) -> None:
    parts = Parts(fails=True)
    async with world() as w, w.client() as client:
        member, _ = await host_of(w, parts.model(), 2)
        for _ in range(FAILURES_MAX):
            with pytest.raises(P2PNodeError):
                await embed(client, member)
            await trio.sleep(90)
        assert Capability.EMBEDDINGS not in await caps_of(client, member)
        assert await chat(client, member)


@pytest.mark.parametrize("memory", [1, 2])
async def test_a_host_without_memory_for_it_says_so_and_offers_none(
    memory: int, autojump_clock: MockClock
) -> None:
    parts, told = Parts(), dict[str, Any]()
    async with world() as w, w.client() as client:
        member = await w.add()
        host = Host(
            member.node,
            identity_of(member.index, wall_clock()),
            [parts.model(embedder=3)],
            report=told.__setitem__,
            pool=PoolLimits(memory=Memory(memory)),
        )
        member.host = host
        await host.start()
        assert "scripted (embeddings) takes 0.0 GB of memory" in told["model.no_embeddings"]["reason"]
        assert Capability.EMBEDDINGS not in await caps_of(client, member)
        with pytest.raises(P2PNodeError, match="embeddings"):
            await embed(client, member)
        assert await chat(client, member)
