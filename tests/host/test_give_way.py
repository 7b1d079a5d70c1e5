"""A turn that is told to give way does so at once, also where its client takes nothing of what is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pnode.host.model_pool import HostedModel, ModelPool, PoolLimits
from p2pnode.host.session_work import SessionWork
from p2pnode.host.unpaid_work import CompileTurns, UnpaidWork
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.node.driver import Driver
from p2pnode.protocols.inference.commands import CancelGenerate, Count, Embed, Generate, Opened, TurnServed
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import Open, Prompt, Tokens
from p2pnode.protocols.inference.prompts import TurnPlaces, prompt_parts
from p2pnode.protocols.inference.turn_memory import SessionMemory, TurnMemory, bytes_announced
from p2pnode.protocols.wire import encode
from p2pnode.shares import Origin
from tests.protocols.inference.pair import CLIENT, HOLDER, HOST, TERMS, ask
from tests.protocols.support import MODEL

TRICKLED = 100_000
"""Bytes of a prompt of which only the first comes."""


class _Client:
    """A channel of a client that takes no output once the first tokens come."""

    peer: PeerId = CLIENT
    frame_max = 65_536

    def __init__(self) -> None:
        self.says, self._hears = trio.open_memory_channel[Any](64)
        self.is_stuck = False

    async def send(self, messages: Iterable[Any]) -> None:
        self.is_stuck = any(isinstance(each, Tokens) for each in messages)
        if self.is_stuck:
            await trio.sleep_forever()

    def queue_now(self, messages: Iterable[Any]) -> bool:
        return False

    async def receive(self) -> Any:
        return await self._hears.receive()

    def take_with(self, has_room: Callable[[], bool], take: Callable[[Any], None]) -> None:
        pass


class _Newcomer:
    number, gives_way = 1, None


@pytest.mark.parametrize("loses_stream", [False, True])
async def test_a_client_that_takes_nothing_holds_up_nobody_who_needs_its_memory(
    autojump_clock: MockClock, loses_stream: bool
) -> None:
    memory, client, limits = TurnMemory(2 << 20), _Client(), Limits()
    share = SessionMemory(memory, Origin("stuck", "stuck"))
    terms = replace(TERMS, n_ctx=16_384, turns_max=8, memory=share, places=TurnPlaces(8))
    machine = HostSession(
        peer=CLIENT,
        stream=0,
        admit=lambda _open: terms,
        sign=HOST.sign,
        epoch=1,
        draw=bytes,
        terms=terms,
    )
    async with trio.open_nursery() as nursery:
        model = HostedModel(model=MODEL, name="scripted", new_engine=ScriptedEngine)
        pool = ModelPool(PoolLimits(), start_soon=nursery.start_soon)
        pool.offer(model)
        work = SessionWork(
            partial(pool.hold, MODEL),
            share.origin,
            limits=limits,
            start_soon=nursery.start_soon,
            escrow=None,
            on_turn=lambda _turn, _times: None,
            unpaid=UnpaidWork(),
            compiling=CompileTurns(),
        )

        async def emitted(value: Any) -> None:
            if isinstance(value, Opened) and machine.session is not None:
                work.attach(driver, machine.session)
            elif isinstance(value, Count | Generate | Embed | CancelGenerate | TurnServed):
                work.perform(value)

        driver = Driver(machine, client, on_emit=emitted, write_deadline_s=limits.stall_s)
        nursery.start_soon(driver.run, machine.start(trio.current_time()))
        await client.says.send(Open(model=MODEL, salt=bytes(32), holder=HOLDER))
        for turn in range(2, 6):  # those that come while the answer to the first is not taken
            if turn == 2:
                for part in prompt_parts(1, encode(ask(tokens_max=200).body)):
                    await client.says.send(part)
            await client.says.send(Prompt(turn=turn, part=0, last=False, total=TRICKLED, body=b"x"))
        await trio.sleep(1)
        assert client.is_stuck
        assert machine.session is not None
        assert len(machine.session.turns) == 5
        if loses_stream:  # the word comes between the end of a stream and what follows it
            driver.stop()
            await wait_all_tasks_blocked()
        before = trio.current_time()
        other = SessionMemory(memory, Origin("other", "other"))
        assert other.hold(_Newcomer(), (2 << 20) - memory.used + bytes_announced(TRICKLED))
        assert memory.leaving
        if loses_stream:
            machine.session.detach()
            work.detach()
        await wait_all_tasks_blocked()
        assert trio.current_time() == before, "long before its stream is given up"
        assert memory.leaving == 0
        nursery.cancel_scope.cancel()
