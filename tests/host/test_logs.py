"""Logs are events with fields: at every level, nothing of a conversation or of a key stands in them."""

from __future__ import annotations

import contextlib

import structlog
from structlog.testing import capture_logs
from trio.testing import MockClock

from p2pnode.errors import P2PNodeError
from p2pnode.models.scripted import Faults, ScriptedEngine
from p2pnode.protocols.inference.messages import SamplingParams
from tests.net.memory_world import seed_of
from tests.node.world import scripted_host, world

SECRET = "the password of the safe is 0451"


def _answer(_prompt: tuple[int, ...], _seed: int) -> str:
    return "swordfish " * 30


async def test_neither_prompts_nor_answers_nor_keys_reach_the_log(autojump_clock: MockClock) -> None:
    structlog.reset_defaults()
    with capture_logs() as events:
        async with world() as w:
            host = await w.add([scripted_host(script=_answer)])
            async with w.client(host.node.multiaddrs[:1]) as client:
                for crash in (False, True):
                    engine = host.host.models[0].new_engine() if host.host is not None else None
                    assert isinstance(engine, ScriptedEngine)
                    if crash:
                        engine.faults = Faults(crash_after_tokens=0, crashes=2)
                    answer = client.chat(
                        SECRET, model="scripted", system=SECRET, sampling=SamplingParams(tokens_max=100)
                    )
                    with contextlib.suppress(P2PNodeError):  # the crash is the point
                        async for _ in answer:
                            pass
    told = repr(events)
    assert "turn.served" in told
    assert SECRET not in told
    assert "swordfish" not in told
    assert seed_of(0).hex() not in told
    assert repr(seed_of(0)) not in told
