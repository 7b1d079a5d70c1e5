"""An engine that belongs to somebody else: gone, it is no offer; there again, it is one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import EngineError
from p2pnode.host.model_pool import HostedModel, ModelPool, PoolLimits
from p2pnode.ids import ModelId
from p2pnode.models.engine import EngineInfo
from p2pnode.models.scripted import Faults, ScriptedConfig, ScriptedEngine
from tests.models.engine_conformance import ask, question

MODEL = ModelId(bytes(32))


@dataclass
class Server:
    """What all engines are made of that the pool makes of the model."""

    there: bool = True
    build: str = "1"
    loads: int = 0
    engines: list[Any] = field(default_factory=list)

    def new_engine(self) -> RemoteEngine:
        self.engines.append(RemoteEngine(self))
        made: RemoteEngine = self.engines[-1]
        return made


class RemoteEngine(ScriptedEngine):
    def __init__(self, server: Server) -> None:
        super().__init__(ScriptedConfig(tokens_per_s=100.0))
        self._server = server

    async def load(self) -> EngineInfo:
        self._server.loads += 1
        if not self._server.there:
            raise EngineError("http://127.0.0.1:1 is not to be reached: is its server running?")
        return replace(await super().load(), remote=True, build=self._server.build)


@asynccontextmanager
async def pool_of(server: Server, told: list[tuple[str, dict[str, object]]]) -> AsyncIterator[ModelPool]:
    async with trio.open_nursery() as nursery:
        pool = ModelPool(
            PoolLimits(),
            start_soon=nursery.start_soon,
            report=lambda name, fields: told.append((name, fields)),
        )
        pool.offer(HostedModel(model=MODEL, name="theirs", new_engine=server.new_engine, pinned=True))
        nursery.start_soon(pool.run)
        await pool.prepare()
        yield pool
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await pool.aclose()


def offered(pool: ModelPool) -> list[str]:
    return [each.name for each in pool.models]


async def test_a_server_that_is_gone_is_withdrawn_and_offered_again(autojump_clock: MockClock) -> None:
    server, told = Server(), list[tuple[str, dict[str, object]]]()
    async with pool_of(server, told) as pool:
        assert offered(pool) == ["theirs"]
        server.there = False
        await trio.sleep(3.5)
        assert offered(pool) == []
        assert [name for name, _ in told] == ["model.withdrawn", "model.cold"]
        assert "is its server running" in str(told[0][1]["reason"])
        with pytest.raises(EngineError) as refused:
            await pool.hold(MODEL)
        assert refused.value.code == "model_not_available"
        await trio.sleep(3600)
        assert server.loads > 1000, "it is asked every few seconds, however long it is away"
        server.there = True
        await trio.sleep(3.5)
        assert offered(pool) == ["theirs"]
        assert pool.state(MODEL) == "warm"
        assert [name for name, _ in told] == ["model.withdrawn", "model.cold", "model.warm"]


async def test_a_request_that_its_server_breaks_has_it_looked_at_at_once(autojump_clock: MockClock) -> None:
    server = Server()
    async with pool_of(server, []) as pool:
        engine = server.engines[-1]
        hold = await pool.hold(MODEL)
        engine.faults = Faults(crash_after_tokens=3)
        await trio.sleep(1)
        before = server.loads
        with pytest.raises(EngineError):
            await ask(hold.engine, await question(engine))
        hold.release()
        server.there = False
        await trio.testing.wait_all_tasks_blocked()
        assert server.loads > before
        await trio.sleep(3.5)
        assert offered(pool) == []


async def test_a_server_that_changed_is_told_with_what_it_does_now(autojump_clock: MockClock) -> None:
    server = Server()
    async with pool_of(server, []) as pool:
        server.build = "2"
        await trio.sleep(3.5)
        info = pool.info(MODEL)
        assert info is not None
        assert info.build == "2"
        assert offered(pool) == ["theirs"]
