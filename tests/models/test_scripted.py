"""The scripted engine: the conformance suite, exact pacing on a mock clock, injected faults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import EngineError
from p2pnode.models.engine import Done, GenerateRequest, Started, Tokens
from p2pnode.models.scripted import Faults, ScriptedConfig, ScriptedEngine
from p2pnode.protocols.inference.messages import SamplingParams
from tests.models.engine_conformance import (
    GREEDY,
    N_CTX,
    QUESTION,
    QUEUE,
    SLOTS,
    EngineConformance,
    ask,
    question,
)

CONFIG = ScriptedConfig(n_ctx=N_CTX, slots=SLOTS, queue_max=QUEUE)


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(CONFIG)
    yield engine
    await engine.aclose()


class TestScripted(EngineConformance):
    pass


async def test_tokens_come_at_their_rate_from_the_start_on(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(ScriptedConfig(tokens_per_s=2000.0))
    prompt = (await engine.prompt(QUESTION)).ids
    began = trio.current_time()
    answer = await ask(engine, prompt, replace(GREEDY, tokens_max=1000))
    assert len(answer.ids) == 1000
    assert trio.current_time() - began == pytest.approx(0.5, abs=0.002)
    deliveries = sum(isinstance(event, Tokens) for event in answer.events)
    assert 400 <= deliveries <= 501


async def test_a_late_reader_gets_all_that_is_due_at_once(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(ScriptedConfig(tokens_per_s=100.0))
    request = GenerateRequest(
        prompt_ids=(await engine.prompt(QUESTION)).ids,
        sampling=replace(GREEDY, tokens_max=200),
        seed=0,
        cache_key=b"",
    )
    async with engine.generate(request) as stream:
        async for event in stream:
            if isinstance(event, Tokens):
                break
        await trio.sleep(1)
        late = await anext(stream)
    assert isinstance(late, Tokens)
    assert len(late.ids) == 100


async def test_prefill_takes_its_time_and_a_reused_prefix_takes_none(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(ScriptedConfig(prefill_tokens_per_s=100.0, load_s=3.0))
    await engine.load()
    assert trio.current_time() == pytest.approx(3.0)
    prompt = await engine.tokenize("x" * 200)
    await ask(engine, prompt, key=b"k")
    assert trio.current_time() == pytest.approx(5.0)
    await ask(engine, prompt, key=b"k")
    assert trio.current_time() == pytest.approx(5.01, abs=0.001)


async def test_a_script_is_told_in_full_and_continues_where_a_part_of_it_ends() -> None:
    engine = ScriptedEngine(ScriptedConfig(script=lambda prompt, _seed: f"né {len(prompt)} 🙂"))
    prompt = (await engine.prompt(QUESTION)).ids
    whole = await ask(engine, prompt)
    assert whole.text == f"né {len(prompt)} 🙂"
    assert whole.done == Done(reason="stop", tokens_out=len(whole.text.encode()))
    for part in range(len(whole.ids) + 1):
        rest = await ask(engine, prompt + whole.ids[:part])
        assert rest.ids == whole.ids[part:]
        shown = bytes(whole.ids[:part]).decode("utf-8", "ignore")
        assert shown + rest.text == whole.text


async def test_a_crash_costs_every_request_an_error_and_the_next_one_works() -> None:
    engine = ScriptedEngine(CONFIG)
    prompt = await question(engine)
    bystander = GenerateRequest(prompt_ids=prompt, sampling=GREEDY, seed=0, cache_key=b"by")
    async with engine.generate(bystander) as stream:
        assert isinstance(await anext(stream), Started)
        engine.faults = Faults(crash_after_tokens=5)
        with pytest.raises(EngineError, match="ask again") as crashed:
            await ask(engine, prompt, key=b"k")
        assert (crashed.value.code, crashed.value.retry_after_s) == ("internal", 0.5)
        with pytest.raises(EngineError) as also:
            async for _ in stream:
                pass
        assert also.value.code == "internal"
    assert engine.statistics().restarts == 1
    assert (await ask(engine, prompt, key=b"k")).started.reused == 0


async def test_a_hang_lasts_until_the_caller_gives_up(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(CONFIG)
    engine.faults = Faults(hang_after_tokens=0)
    with pytest.raises(trio.TooSlowError):
        await ask(engine, await question(engine))
    assert engine.statistics().active == 0


async def test_closing_ends_requests_with_an_error_that_says_so() -> None:
    engine = ScriptedEngine(ScriptedConfig(tokens_per_s=1.0))
    request = GenerateRequest(
        prompt_ids=await question(engine), sampling=SamplingParams(tokens_max=5), seed=0, cache_key=b""
    )
    async with engine.generate(request) as stream:
        assert isinstance(await anext(stream), Started)
        await engine.aclose()
        with pytest.raises(EngineError) as closed:
            async for _ in stream:
                pass
    assert closed.value.code == "shutting_down"
    with pytest.raises(EngineError, match="closed"):
        await engine.load()


async def test_an_engine_without_embeddings_refuses_texts_in_words() -> None:
    with pytest.raises(EngineError, match="makes no embeddings: ask one that does") as refused:
        await ScriptedEngine(ScriptedConfig(embeddings=False)).embed_ids(["a"])
    assert refused.value.code == "bad_request"
