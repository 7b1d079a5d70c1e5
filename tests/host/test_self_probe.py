"""A host finds out that a model of its own does not answer, withdraws it within a minute, and offers it
again once it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import EngineError
from p2pnode.host.health import FAILURES_MAX, PROBE_EVERY_S, Health
from p2pnode.host.model_pool import HostedModel, PoolLimits
from p2pnode.host.residency import Memory
from p2pnode.ids import ModelId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.manifest import SCRIPTED, model_id_text
from p2pnode.models.scripted import Faults, ScriptedEngine
from p2pnode.protocols.inference.messages import PromptBody
from tests.client.failing import engine_of
from tests.client.support import ask, whole
from tests.host.paid import priced
from tests.node.world import Member, World, scripted_host, world

A, B = ModelId(b"a" * 32), ModelId(b"b" * 32)


# ---- what follows from turns and probes


def test_a_model_is_sick_after_two_failures_in_a_row_and_well_after_one_answer() -> None:
    health = Health()
    assert not health.failed(A, "late", 0.0)
    assert health.wait_s(A, 0.0) == 0  # one failure may be chance: it is asked again at once
    assert not health.succeeded(A, 1.0)
    assert not health.failed(A, "late", 2.0)
    assert health.failed(A, "later", 3.0)
    assert health.is_sick(A)
    assert health.reason(A) == "later"
    assert not health.failed(A, "still", 4.0)  # it is sick already
    assert health.wait_s(A, 4.0) == PROBE_EVERY_S
    assert health.succeeded(A, 30.0)
    assert not health.is_sick(A)
    assert health.reason(A) == ""


def test_turns_of_clients_count_as_probes_and_what_clients_do_does_not() -> None:
    health = Health()
    assert health.wait_s(A, 0.0) == 0
    health.note_turn(A, "length", 5.0)
    assert health.wait_s(A, 10.0) == PROBE_EVERY_S - 5
    for reason in ("cancelled", "context_overflow", "bad_request", "capacity"):
        assert not health.note_turn(A, reason, 11.0)
    assert not health.is_sick(A)
    for _ in range(FAILURES_MAX):
        health.note_turn(A, "stalled", 12.0)
    assert health.is_sick(A)
    health.forget(A)
    assert not health.is_sick(A)


# ---- whole nodes


async def _until(what: Callable[[], bool], within_s: int) -> None:
    for _ in range(2 * within_s):
        if what():
            return
        await trio.sleep(0.5)
    pytest.fail(f"not within {within_s} s")


def _offers(member: Member, other: Member) -> bool:
    """Whether another node hears that this one offers anything."""
    entry = other.node.adverts.book.get(member.node.peer_id, other.node.wall())
    return entry is not None and any(offer.n_ctx for offer in entry.advert.offers)


async def _two(w: World, *, paid: bool = False) -> tuple[Member, Member, list[str]]:
    told: list[str] = []
    model = priced() if paid else scripted_host()
    host = await w.add([model], probes=True, report=lambda name, _fields: told.append(name))
    other = await w.add([scripted_host()], bootstrap=host.node.multiaddrs[:1])
    await trio.sleep(5)
    return host, other, told


async def test_a_model_that_hangs_is_withdrawn_within_a_minute_and_comes_back(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host, other, told = await _two(w)
        assert _offers(host, other)
        await trio.sleep(100)
        assert _offers(host, other)
        assert told == []
        engine_of(host).faults = Faults(hang_after_tokens=0)
        await _until(lambda: not _offers(host, other), 60)
        assert told == ["model.sick"]
        await trio.sleep(120)
        assert not _offers(host, other)
        engine_of(host).faults = Faults()
        await _until(lambda: _offers(host, other), 60)
        assert told == ["model.sick", "model.well"]
        async with w.client(host.node.multiaddrs[:1]) as client:
            assert await whole(ask(client, peer=host.node.multiaddrs[0]))


def _named(model: ModelId, name: str) -> HostedModel:
    engine = ScriptedEngine()
    return HostedModel(model=model, name=name, new_engine=lambda: engine, n_ctx=2048)


def _offered(member: Member, other: Member) -> set[str]:
    """Which models another node hears that this one offers."""
    entry = other.node.adverts.book.get(member.node.peer_id, other.node.wall())
    found = [] if entry is None else [offer.model for offer in entry.advert.offers if offer.n_ctx]
    return {"a" if model == A else "b" for model in found}


@pytest.mark.parametrize(
    ("phase", "sick", "hangs_after"),
    [
        (13.0, "a", 0),
        (4.5, "ab", 0),
        *(
            pytest.param(phase, sick, hangs_after, marks=pytest.mark.long)
            for phase in (0.0, 1.0, 6.0, 9.0, 14.9, 15.1, 19.0, 22.0)
            for sick in ("a", "b", "ab")
            for hangs_after in (0, 1)
        ),
    ],
)
async def test_models_are_withdrawn_a_minute_after_they_became_sick_and_no_others(
    phase: float, sick: str, hangs_after: int, autojump_clock: MockClock
) -> None:
    """Others hear of it within that minute, whenever in the course of the probes it begins."""
    told: list[tuple[str, object]] = []
    async with world() as w:
        host = await w.add(
            [_named(A, "a"), _named(B, "b")],
            probes=True,
            report=lambda name, fields: told.append((name, fields.get("name"))),
        )
        others = [_named(A, "a"), _named(B, "b")]  # so that it hears of these models
        other = await w.add(others, bootstrap=host.node.multiaddrs[:1])
        await trio.sleep(100 + phase)
        assert _offered(host, other) == {"a", "b"}
        engines = {"a": engine_of(host, 0), "b": engine_of(host, 1)}
        for each in sick:
            engines[each].faults = Faults(hang_after_tokens=hangs_after)
        with trio.fail_after(60):
            while _offered(host, other) & set(sick):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.5)
        await trio.sleep(100)
        assert _offered(host, other) == {"a", "b"} - set(sick)
        for each in sick:
            engines[each].faults = Faults()
        with trio.fail_after(60):
            while _offered(host, other) != {"a", "b"}:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.5)
        names = [(name, model) for name, model in told if str(name) in ("model.sick", "model.well")]
        assert sorted(names) == sorted((f"model.{how}", each) for how in ("sick", "well") for each in sick)


@pytest.mark.long
async def test_probes_are_on_no_account_and_in_no_count(autojump_clock: MockClock) -> None:
    async with world() as w:
        host, _, told = await _two(w)
        await trio.sleep(200)
        assert host.host is not None
        assert engine_of(host).statistics().tokens_out > 10  # it was asked indeed
        totals = host.host.totals
        assert (totals.sessions, totals.turns, totals.tokens_out) == (0, 0, 0)
        assert host.host.refusals.last == ()
        assert told == []


@pytest.mark.long
async def test_a_host_that_asks_money_probes_itself_free_and_serves_no_stranger_so(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host, other, told = await _two(w, paid=True)
        engine = engine_of(host)
        await trio.sleep(100)
        assert engine.statistics().tokens_out > 2
        engine.faults = Faults(hang_after_tokens=0)
        await _until(lambda: not _offers(host, other), 60)
        assert told == ["model.sick"]
        async with w.client(host.node.multiaddrs[:1]) as client:
            assert not [
                each
                for each in (await client.hosts(SCRIPTED)).chosen
                if each.advert.peer == host.node.peer_id
            ]


@pytest.mark.long
async def test_a_busy_host_is_not_probed(autojump_clock: MockClock) -> None:
    async with world() as w:
        told: list[str] = []
        host = await w.add(
            [scripted_host(tokens_per_s=5, slots=1)], probes=True, report=lambda name, _: told.append(name)
        )
        async with w.client(host.node.multiaddrs[:1]) as client:
            await whole(ask(client, tokens=600))  # two minutes
        assert told == ["answered"]


@pytest.mark.long
@pytest.mark.parametrize("paused", [True, False])
async def test_a_paused_host_does_not_ask_itself(paused: bool, autojump_clock: MockClock) -> None:
    async with world() as w:
        host, _, _ = await _two(w)
        assert host.host is not None
        if paused:
            host.host.pause("its owner paused it")
        before = engine_of(host).statistics().tokens_out
        await trio.sleep(100)
        assert (engine_of(host).statistics().tokens_out == before) == paused


class _OnlyEmbeds(ScriptedEngine):
    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        await trio.lowlevel.checkpoint()
        raise EngineError("it writes no answers", code="bad_request")


async def test_a_model_that_only_embeds_is_asked_for_a_vector(autojump_clock: MockClock) -> None:
    async with world() as w:
        told: list[str] = []
        engine = _OnlyEmbeds()
        model = replace(scripted_host(), new_engine=lambda: engine, only_embeds=True)
        await w.add([model], probes=True, report=lambda name, _: told.append(name))
        await trio.sleep(100)
        assert told == []
        engine.faults = Faults(hang_after_tokens=0)
        await trio.sleep(60)
        assert told == ["model.sick"]


def _on_demand(model: ModelId, made: list[ScriptedEngine]) -> HostedModel:
    def new_engine() -> ScriptedEngine:
        made.append(ScriptedEngine())
        return made[-1]

    name = f"model {model.hex()[:2]}"
    return HostedModel(model=model, name=name, new_engine=new_engine, n_ctx=2048, memory=Memory(1))


async def test_a_probe_keeps_no_model_in_memory(autojump_clock: MockClock) -> None:
    models = [_on_demand(each, []) for each in (A, B)]
    async with world() as w:
        host = await w.add(models, probes=True, pool=PoolLimits(memory=Memory(1)))
        assert host.host is not None
        await trio.sleep(102.5)  # a probe may begin each 5 s, and who asks meanwhile waits
        assert [host.host.state_of(each) for each in (A, B)] == ["warm", "cold"]
        async with w.client(host.node.multiaddrs[:1]) as client:
            began = trio.current_time()
            assert await whole(client.chat("hello", peer=host.node.multiaddrs[0], model=model_id_text(B)))
            assert trio.current_time() - began < 5
        assert [host.host.state_of(each) for each in (A, B)] == ["cold", "warm"]


async def test_a_sick_model_whose_engine_was_unloaded_is_offered_again(autojump_clock: MockClock) -> None:
    made: list[ScriptedEngine] = []
    told: list[str] = []
    async with world() as w:
        host = await w.add(
            [_on_demand(A, made)],
            probes=True,
            pool=PoolLimits(memory=Memory(1), idle_s=60),
            report=lambda name, _: told.append(name),
        )
        assert host.host is not None
        made[0].faults = Faults(hang_after_tokens=0)
        await _until(lambda: host.host is not None and host.host.state_of(A) == "cold", 120)
        await trio.sleep(30)
        assert told[0] == "model.sick"
        assert sorted(told[1:]) == ["model.cold", "model.well"]
        async with w.client(host.node.multiaddrs[:1]) as client:
            assert await whole(client.chat("hello", peer=host.node.multiaddrs[0], model=model_id_text(A)))
        assert len(made) == 2


async def test_nobody_gives_way_to_a_probe(autojump_clock: MockClock) -> None:
    limits = replace(DEFAULT_LIMITS, sessions_max=2)
    async with world(limits=limits) as w:
        host = await w.add([scripted_host()], probes=True)
        assert host.host is not None
        address = host.node.multiaddrs[0]
        await trio.sleep(5)  # its first probe is over
        async with w.client([address]) as one, w.client([address], "10.0.9.10") as other:
            for client in (one, other):
                assert await whole(ask(client, peer=address))
            before = engine_of(host).statistics().tokens_out
            await trio.sleep(50)
            assert engine_of(host).statistics().tokens_out == before
            assert all(host.host.has_session(each.node.peer_id) for each in (one, other))
