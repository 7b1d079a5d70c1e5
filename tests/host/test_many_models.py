"""Hosts of several models, more than fit into memory: whole nodes in virtual time, with scripted engines."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import ConfigError, EngineError, P2PNodeError
from p2pnode.host.host import Host
from p2pnode.host.model_pool import HostedModel, PoolLimits
from p2pnode.host.residency import FAILURES_MAX, Memory
from p2pnode.ids import ModelId
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.engine import EngineInfo
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine
from p2pnode.models.manifest import model_id_text
from p2pnode.models.pull.pull import pull
from p2pnode.models.scripted import Faults, ScriptedConfig, ScriptedEngine
from p2pnode.net.virtual_time import wall_clock
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.inference.messages import SamplingParams
from tests.net.support import eventually
from tests.node.world import Member, World, identity_of, world

TRUE_WITHIN_S = 2.0
LOAD_S = 3.0
A, B, C, D = (ModelId(bytes([0xA0 + number]) * 32) for number in range(4))
MEMORY = {A: 1, B: 2, C: 2, D: 3}


@dataclass
class Machine:
    """The memory of a host, and the engines that are in it."""

    memory: int
    taken: int = 0
    loads: Counter[ModelId] = field(default_factory=Counter)
    engines: dict[ModelId, LoadedEngine] = field(default_factory=dict)
    fails: set[ModelId] = field(default_factory=set)
    """Models that can't be loaded now."""

    def model(self, model: ModelId, *, memory: int = 1, load_s: float = LOAD_S, **more: Any) -> HostedModel:
        config = ScriptedConfig(load_s=load_s, tokens_per_s=5.0)
        return HostedModel(
            model=model,
            name=f"model {model.hex()[:2]}",
            new_engine=lambda: LoadedEngine(self, model, memory, config),
            n_ctx=2048,
            memory=Memory(memory),
            **more,
        )


class LoadedEngine(ScriptedEngine):
    """Takes its memory while it is loaded; a machine that has no more of it is a failed test."""

    def __init__(self, machine: Machine, model: ModelId, memory: int, config: ScriptedConfig) -> None:
        super().__init__(config)
        self._machine, self._model, self._memory = machine, model, memory
        self._has_memory = False

    async def load(self) -> EngineInfo:
        machine = self._machine
        if not self._has_memory:
            assert self._model not in machine.engines, "a model is loaded twice"
            machine.taken += self._memory
            machine.engines[self._model], self._has_memory = self, True
            machine.loads[self._model] += 1
            assert machine.taken <= machine.memory, "more is loaded than fits into memory"
        info = await super().load()
        if self._model in machine.fails:
            raise EngineError("out of memory")
        return info

    async def aclose(self) -> None:
        if self._has_memory:
            self._has_memory = False
            self._machine.taken -= self._memory
            del self._machine.engines[self._model]
        await super().aclose()


async def host_of(
    w: World, models: list[HostedModel], machine: Machine, events: list[Any] | None = None, **limits: float
) -> tuple[Member, Host]:
    """A host with so much memory, that is not started yet."""
    member = await w.add()

    def told(name: str, fields: dict[str, object]) -> None:
        if events is not None:
            events.append((name, fields))

    host = Host(
        member.node,
        identity_of(member.index, wall_clock()),
        models,
        report=told,
        pool=PoolLimits(memory=Memory(machine.memory), **limits),  # type: ignore[arg-type]
    )
    member.host = host
    return member, host


async def ask(client: Client, member: Member, model: ModelId, tokens: int = 5) -> str:
    answer = client.chat(
        "hello",
        model=model_id_text(model),
        peer=member.node.multiaddrs[0],
        sampling=SamplingParams(tokens_max=tokens, temperature=0),
    )
    async for _ in answer:
        pass
    return answer.text


async def advert_of(client: Client, member: Member) -> Advert:
    advert = await client.advert_of(member.node.multiaddrs[:1])
    assert advert is not None
    return advert


async def heard_by(reader: Member, member: Member) -> Advert:
    """What gossip has brought by now."""
    heard = reader.node.adverts.book.get(member.node.peer_id, wall_clock())
    assert heard is not None
    return heard.advert


async def reader_of(w: World, member: Member) -> Member:
    """A node that only listens to the topics of the models."""
    reader = await w.add(bootstrap=member.node.multiaddrs[:1])
    await reader.node.follow([A, B, C])
    await trio.sleep(2)
    return reader


def is_answering(machine: Machine, model: ModelId) -> bool:
    return model in machine.engines and machine.engines[model].statistics().active > 0


def states(advert: Advert, *models: ModelId) -> list[str]:
    return [offer.state if (offer := advert.offer(model)) is not None else "gone" for model in models]


async def test_the_model_that_was_used_least_recently_makes_room_for_a_third_one(
    autojump_clock: MockClock,
) -> None:
    machine = Machine(2)
    async with world() as w, w.client() as client:
        member, host = await host_of(w, [machine.model(each) for each in (A, B, C)], machine)
        await host.start()
        reader = await reader_of(w, member)
        assert states(await advert_of(client, member), A, B, C) == ["warm", "warm", "cold"]
        assert await ask(client, member, B)
        assert await ask(client, member, A)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, member, C)
            # No sleep says how far the client is: its worker threads may take any part of virtual time.
            await eventually(lambda: set(machine.engines) == {A, C})
            await trio.sleep(TRUE_WITHIN_S)
            assert states(await heard_by(reader, member), A, B, C) == ["warm", "cold", "warming"]
        assert trio.current_time() - began > LOAD_S
        assert machine.loads == {A: 1, B: 1, C: 2}  # each is loaded once at the start
        offer = (await advert_of(client, member)).offer(B)
        assert offer is not None
        assert offer.warm_in == LOAD_S
        await trio.sleep(TRUE_WITHIN_S)
        assert states(await heard_by(reader, member), A, B, C) == ["warm", "cold", "warm"]


async def test_who_asks_while_all_memory_is_in_use_waits_and_is_refused_with_a_time(
    autojump_clock: MockClock,
) -> None:
    machine = Machine(2)
    async with world() as w, w.client() as client:
        member, host = await host_of(w, [machine.model(each) for each in (A, B, C)], machine, wait_s=10.0)
        await host.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, member, A, 300)  # 60 s
            nursery.start_soon(ask, client, member, B, 1500)  # 300 s
            await eventually(lambda: is_answering(machine, A) and is_answering(machine, B))
            began = trio.current_time()
            with pytest.raises(P2PNodeError, match="capacity") as refused:
                await ask(client, member, C)
            assert trio.current_time() - began >= 10.0  # no more is sure: a thread may take any time of it
            assert getattr(refused.value, "retry_after_s", None) == LOAD_S
            await eventually(lambda: not is_answering(machine, A), 120)
            began = trio.current_time()
            assert await ask(client, member, C, 5)
            assert trio.current_time() - began > LOAD_S
            assert set(machine.engines) == {B, C}
            nursery.cancel_scope.cancel()


async def test_an_engine_that_crashes_again_and_again_withdraws_its_own_offer_only(
    autojump_clock: MockClock,
) -> None:
    machine = Machine(2)
    events: list[Any] = []
    async with world() as w, w.client() as client:
        member, host = await host_of(w, [machine.model(A), machine.model(B)], machine, events)
        await host.start()
        reader = await reader_of(w, member)
        machine.engines[A].faults = Faults(crash_after_tokens=0, crashes=100)
        for _ in range(FAILURES_MAX):
            with pytest.raises(P2PNodeError):
                await ask(client, member, A)
            await trio.sleep(1)
        await trio.sleep(TRUE_WITHIN_S)
        assert states(await heard_by(reader, member), A, B) == ["gone", "warm"]
        assert [fields["name"] for name, fields in events if name == "model.withdrawn"] == ["model a0"]
        assert await ask(client, member, B)
        with pytest.raises(P2PNodeError, match="serves"):
            await ask(client, member, A)
        await trio.sleep(600 + LOAD_S + TRUE_WITHIN_S)  # it is tried again, and loads
        assert states(await advert_of(client, member), A, B) == ["warm", "warm"]
        assert await ask(client, member, A)


async def test_a_model_is_swapped_while_the_node_runs_and_answers_under_way_end(
    autojump_clock: MockClock,
) -> None:
    machine = Machine(2)
    async with world() as w, w.client() as client:
        member, host = await host_of(w, [machine.model(A), machine.model(B)], machine)
        await host.start()
        reader = await reader_of(w, member)
        answers: list[str] = []

        async def long_answer() -> None:
            answers.append(await ask(client, member, A, 50))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(long_answer)
            await eventually(lambda: is_answering(machine, A))
            host.withdraw(A)
            await trio.sleep(TRUE_WITHIN_S)
            assert states(await heard_by(reader, member), A, B) == ["gone", "warm"]
            with pytest.raises(P2PNodeError, match="serves"):
                await ask(client, member, A)
        assert len(answers[0]) == 50
        await eventually(lambda: set(machine.engines) == {B}, 30)
        await host.offer(machine.model(C))
        await trio.sleep(TRUE_WITHIN_S)
        assert states(await heard_by(reader, member), A, B, C) == ["gone", "warm", "warm"]
        assert await ask(client, member, C)
        with pytest.raises(ConfigError, match="offered already"):
            await host.offer(machine.model(C))
        with pytest.raises(ConfigError, match=r"takes 5\.0 GB of memory, and 0\.0 GB can be had"):
            await host.offer(machine.model(A, memory=5_000_000_000))


async def test_what_can_not_be_loaded_at_the_start_is_not_offered_and_the_rest_is(
    autojump_clock: MockClock,
) -> None:
    machine = Machine(2, fails={B})
    events: list[Any] = []
    async with world() as w, w.client() as client:
        member, host = await host_of(w, [machine.model(A), machine.model(B)], machine, events)
        await host.start()
        assert [each.model for each in host.models] == [A]
        assert ("model.withdrawn", {"name": "model a1", "reason": "out of memory"}) in events
        assert await ask(client, member, A)
        with pytest.raises(EngineError, match="out of memory"):
            await host.offer(machine.model(B))
        _, other = await host_of(w, [replace(machine.model(B), memory=Memory())], Machine(2, fails={B}))
        machine.fails = {A, B}
        with pytest.raises(EngineError, match="out of memory"):
            await other.start()


async def test_a_model_without_work_is_unloaded_after_the_time_that_its_owner_set(
    autojump_clock: MockClock,
) -> None:
    machine = Machine(2)
    async with world() as w, w.client() as client:
        models = [machine.model(A), machine.model(B, pinned=True)]
        member, host = await host_of(w, models, machine, idle_s=120.0)
        await host.start()
        await trio.sleep(115)
        assert set(machine.engines) == {A, B}
        await trio.sleep(10)
        assert set(machine.engines) == {B}
        assert states(await advert_of(client, member), A, B) == ["cold", "warm"]
        assert await ask(client, member, A)


class _Chance:
    """Asks, kills, breaks, mends, withdraws and offers, as it is drawn."""

    def __init__(
        self, seed: int, nursery: trio.Nursery, client: Client, member: Member, machine: Machine
    ) -> None:
        assert member.host is not None
        self._draw, self._nursery, self._client = random.Random(seed), nursery, client
        self._member, self._host, self._machine = member, member.host, machine
        self.outcomes: Counter[str] = Counter()

    async def step(self) -> None:
        model, machine = self._draw.choice(list(MEMORY)), self._machine
        match self._draw.choice(["ask"] * 8 + ["kill", "fail", "mend", "withdraw", "offer", "offer"]):
            case "ask":
                self._nursery.start_soon(self._ask, model, self._draw.choice([1, 4, 20]))
            case "kill" if model in machine.engines:
                machine.engines[model].faults = Faults(crash_after_tokens=self._draw.choice([0, 2]))
            case "fail":
                machine.fails.add(model)
            case "mend":
                machine.fails.discard(model)
            case "withdraw":
                self._host.withdraw(model)
            case "offer":
                self._nursery.start_soon(_offered, self._host, machine.model(model, memory=MEMORY[model]))
            case _:
                pass
        await trio.sleep(self._draw.expovariate(1 / 2.0))

    async def _ask(self, model: ModelId, tokens: int) -> None:
        try:
            await ask(self._client, self._member, model, tokens)
        except P2PNodeError as error:
            self.outcomes[getattr(error, "code", type(error).__name__)] += 1
        else:
            self.outcomes["answered"] += 1

    async def check(self) -> None:
        """Once nothing is broken any more, whatever the advert offers is served."""
        self._machine.fails.clear()
        for engine in self._machine.engines.values():
            engine.faults = Faults()
        await trio.sleep(120)
        advert = await advert_of(self._client, self._member)
        offered = [each.model for each in advert.offers if each.n_ctx]
        assert offered == [each.model for each in self._host.models]
        for model in offered:
            assert await ask(self._client, self._member, model, 3)
        self.outcomes["checked"] += len(offered)


@pytest.mark.parametrize(
    "steps", [30, pytest.param(1000, marks=pytest.mark.long)], ids=["30 steps", "1,000 steps"]
)
async def test_whatever_happens_no_offer_is_left_that_can_not_serve(
    steps: int, autojump_clock: MockClock
) -> None:
    machine = Machine(4)
    async with world() as w, w.client() as client:
        models = [machine.model(model, memory=memory) for model, memory in MEMORY.items()]
        member, host = await host_of(w, models, machine, idle_s=60.0, wait_s=20.0)
        await host.start()
        async with trio.open_nursery() as nursery:
            chance = _Chance(steps, nursery, client, member, machine)
            for number in range(1, steps + 1):
                await chance.step()
                if number % 30 == 0:
                    await chance.check()
    # Each check asks, too. How many others are answered hangs on the order of tasks, which trio draws.
    assert chance.outcomes["answered"] >= steps // 30, chance.outcomes
    assert chance.outcomes["checked"] >= steps // 30, chance.outcomes


async def _offered(host: Host, model: HostedModel) -> None:
    with contextlib.suppress(ConfigError, EngineError):
        await host.offer(model)


@pytest.mark.long
async def test_three_models_of_llama_cpp_share_memory_for_two(tmp_path: Path) -> None:
    """In real time: the one that is not used goes, and its process with it."""
    file = await pull(Catalogue.load().find(DEFAULT_MODEL), tmp_path / "models")
    data = file.weights_path.read_bytes()
    at = data.index(b"general.name") + len(b"general.name") + 12
    models: list[HostedModel] = []
    for letter in (b"X", b"Y", b"Z"):
        path = tmp_path / f"model-{letter.decode()}.gguf"
        path.write_bytes(data[:at] + letter + data[at + 1 :])
        local = await pull(Catalogue.load().find(str(path)), tmp_path / "models")
        config = LlamaCppConfig(n_ctx=512, slots=1, threads=1)
        models.append(
            HostedModel(
                model=local.model_id,
                name=local.name,
                new_engine=partial(LlamaCppEngine, local, config),
                n_ctx=512,
                memory=Memory(1),
            )
        )
    first, second, third = (each.model for each in models)
    with trio.fail_after(240):
        async with world() as w, w.client() as client:
            member, host = await host_of(w, models, Machine(2), wait_s=60.0)
            await host.start()
            assert states(await advert_of(client, member), first, second, third) == ["warm", "warm", "cold"]
            assert await ask(client, member, first)
            assert await ask(client, member, third)
            advert = await advert_of(client, member)
            assert states(advert, first, second, third) == ["warm", "cold", "warm"]
            cold = advert.offer(second)
            assert cold is not None
            assert 0 < cold.warm_in_s < 60
            assert len(_llama_processes()) == 2
            assert await ask(client, member, second)
            assert len(_llama_processes()) == 2
            host.withdraw(third)
            await eventually(lambda: len(_llama_processes()) == 1, 30)
    assert _llama_processes() == []


def _llama_processes() -> list[int]:
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [each.pid] if "p2pnode.models.llamacpp.server" in each.cmdline() else []
    return found
