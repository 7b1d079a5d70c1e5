"""ExLlamaV2's real generator: the conformance suite, pages and scopes, cancels, and whatever breaks."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import trio

from p2pnode.errors import ConfigError, EngineError, EngineLostError
from p2pnode.models.engine import GenerateRequest, InspectableEngine, Prefill, Started, Tokens
from p2pnode.models.exllama import engine as engine_module
from p2pnode.models.exllama.engine import ExllamaEngine
from p2pnode.models.exllama.run import ExllamaRun
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine
from p2pnode.models.local_models import LocalModel, describe_at
from p2pnode.protocols.inference.messages import SamplingParams
from tests.models.engine_conformance import (
    GREEDY,
    Answer,
    EngineConformance,
    ask,
    fresh_key,
    question,
)
from tests.models.exllama.support import CONFIG, FOLDER, model_under_test, needs_exllama
from tests.models.model_folders import FILES, write

pytestmark = needs_exllama
PAGE = 256


@pytest.fixture(scope="module")
def model(smollm: LocalModel) -> LocalModel:
    return model_under_test(smollm)


@pytest.fixture(scope="module")
def shared(model: LocalModel) -> Iterator[ExllamaEngine]:
    engine = ExllamaEngine(model, CONFIG)
    yield engine
    trio.run(engine.aclose)


@pytest.fixture
def engine(shared: ExllamaEngine) -> ExllamaEngine:
    return shared


@pytest.fixture(scope="module")
def roomy(model: LocalModel) -> Iterator[ExllamaEngine]:
    """Contexts of several pages."""
    engine = ExllamaEngine(model, replace(CONFIG, n_ctx=4 * PAGE))
    yield engine
    trio.run(engine.aclose)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="run-") as name:
        yield Path(name)


@pytest.fixture
async def own(model: LocalModel, run_dir: Path) -> AsyncIterator[ExllamaEngine]:
    """An engine that the test may kill."""
    engine = ExllamaEngine(model, replace(CONFIG, slots=2, runtime_dir=run_dir, hang_s=20.0))
    await engine.load()
    yield engine
    await engine.aclose()


class TestExllama(EngineConformance):
    pass


# ---- pages


async def long_prompt(engine: ExllamaEngine, tokens: int, about: str = "sea") -> tuple[int, ...]:
    words = await engine.tokenize(f" Tell me about the {about}, the ledger and 17 ships." * (tokens // 8))
    assert len(words) >= tokens
    return words[:tokens]


async def test_whole_pages_and_a_begun_one_are_reused_by_their_own_key_only(roomy: ExllamaEngine) -> None:
    prompt, key, stranger = await long_prompt(roomy, 2 * PAGE + 90), fresh_key(), fresh_key()
    few = replace(GREEDY, tokens_max=4)
    first = await ask(roomy, prompt, few, key)
    assert first.started.reused == 0
    again = await ask(roomy, prompt, few, key)
    assert again.started.reused == len(prompt) - 1
    assert again.ids == first.ids
    theirs = await ask(roomy, prompt, few, stranger)
    assert theirs.started.reused == 0
    assert theirs.ids == first.ids
    longer = (*prompt, *first.ids, *await long_prompt(roomy, 40, "land"))
    assert (await ask(roomy, longer, few, key)).started.reused >= len(prompt) + 3
    # The stranger's own pages, and no more: its prompt and the ids that it made itself.
    assert (await ask(roomy, longer, few, stranger)).started.reused == len(prompt) + 3


async def test_equal_prompts_of_two_keys_at_once_share_nothing(roomy: ExllamaEngine) -> None:
    prompt = await long_prompt(roomy, PAGE + 30, "wind")
    answers = []

    async def one() -> None:
        answers.append(await ask(roomy, prompt, replace(GREEDY, tokens_max=6), fresh_key()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert [answer.started.reused for answer in answers] == [0, 0]
    assert answers[0].ids == answers[1].ids


async def test_an_answer_that_fills_a_page_goes_on_in_the_next_and_is_found_again(
    roomy: ExllamaEngine,
) -> None:
    prompt, key = await long_prompt(roomy, PAGE - 6, "moon"), fresh_key()
    whole = await ask(roomy, prompt, replace(GREEDY, tokens_max=16), key)
    if whole.done.reason == "length":
        rest = await ask(roomy, prompt + whole.ids[:12], replace(GREEDY, tokens_max=4), key)
        assert rest.started.reused == len(prompt) + 11
        assert rest.ids == whole.ids[12:]


async def test_pages_that_were_reserved_and_never_written_stay_their_owners(roomy: ExllamaEngine) -> None:
    prompt, key = await long_prompt(roomy, 120, "harbour"), fresh_key()
    await ask(roomy, prompt, replace(GREEDY, tokens_max=2), key)
    greedy = GenerateRequest(
        prompt_ids=await long_prompt(roomy, 20, "cloud"),
        sampling=replace(GREEDY, tokens_max=3 * PAGE),
        seed=0,
        cache_key=fresh_key(),
    )
    for _ in range(3):  # each reserves pages for all that it may say, and leaves after a token
        async with roomy.generate(greedy) as stream:
            async for event in stream:
                if isinstance(event, Tokens):
                    break
    for stranger in (fresh_key(), fresh_key()):
        assert (await ask(roomy, prompt, replace(GREEDY, tokens_max=1), stranger)).started.reused == 0
    # What it shares with the other question is its own, too: the first words of both.
    assert (await ask(roomy, prompt, replace(GREEDY, tokens_max=1), greedy.cache_key)).started.reused == 4


async def test_cancel_during_prefill_stops_within_one_iteration(roomy: ExllamaEngine) -> None:
    prompt, key = await long_prompt(roomy, 4 * PAGE - 20, "storm"), fresh_key()
    request = GenerateRequest(prompt_ids=prompt, sampling=GREEDY, seed=0, cache_key=key)
    read = 0
    async with roomy.generate(request) as stream:
        async for event in stream:
            if isinstance(event, Prefill):
                read = event.processed
                break
    assert read == PAGE
    assert roomy.statistics().active == 0
    again = await ask(roomy, prompt, replace(GREEDY, tokens_max=1), key)
    # The iteration that was under way when we left, and at most one that had begun before it was heard.
    assert again.started.reused <= read + 2 * PAGE < len(prompt)


@pytest.fixture(scope="module")
def unpaged(model: LocalModel) -> Iterator[ExllamaEngine]:
    """As without flash-attn."""
    engine = ExllamaEngine(model, replace(CONFIG, paged=False, slots=2, n_ctx=2 * PAGE))
    yield engine
    trio.run(engine.aclose)


async def test_without_flash_attn_there_is_one_slot_and_it_is_said(unpaged: ExllamaEngine) -> None:
    info = await unpaged.load()
    assert info.slots == 1
    assert "one request at a time: flash-attn" in info.note
    prompt = await question(unpaged)
    answers = []

    async def one() -> None:
        answers.append(await ask(unpaged, prompt))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(one)
    assert answers[0].ids == answers[1].ids
    assert answers[0].done.tokens_out == 12


async def test_without_pages_too_a_cache_is_for_its_own_key_only(
    unpaged: ExllamaEngine, engine: ExllamaEngine
) -> None:
    prompt, key = await question(unpaged), fresh_key()
    first = await ask(unpaged, prompt, replace(GREEDY, tokens_max=20), key)
    assert first.ids == (await ask(engine, prompt, replace(GREEDY, tokens_max=20))).ids
    rest = await ask(unpaged, prompt + first.ids[:15], replace(GREEDY, tokens_max=5), key)
    assert rest.started.reused >= len(prompt) + 13
    assert rest.ids == first.ids[15:20]
    stranger = await ask(unpaged, prompt, key=fresh_key())
    assert stranger.started.reused == 0
    assert stranger.ids == first.ids[:12]
    # The one cache is the stranger's now, and what the first key left is gone.
    assert (await ask(unpaged, prompt, key=key)).started.reused == 0


# ---- numbers


async def test_draws_are_llama_cpps_so_that_a_seed_leads_to_the_same_first_token(
    engine: ExllamaEngine, smollm: LocalModel
) -> None:
    if FOLDER:
        pytest.skip("another model than llama.cpp's")
    other = LlamaCppEngine(smollm, LlamaCppConfig(n_ctx=PAGE, slots=1, threads=1))
    sampling = SamplingParams(tokens_max=1, temperature=1.0, top_k=40, top_p=1.0, min_p=0.05)
    key, same = fresh_key(), 0
    try:
        prompt = await question(other)
        assert prompt == await question(engine)
        for seed in range(12):
            theirs = await ask(other, prompt, sampling, key, seed=seed)
            same += theirs.ids == (await ask(engine, prompt, sampling, key, seed=seed)).ids
    finally:
        await other.aclose()
    assert same >= 9  # 32-bit floats here, 8-bit products there: near the border of two tokens they differ


async def test_hidden_states_are_told_of_each_token(engine: ExllamaEngine) -> None:
    assert isinstance(engine, InspectableEngine)
    ids = await engine.tokenize("The sea is wide.")
    states = await engine.hidden_states(ids)
    rows = np.frombuffer(states.data, dtype="<f2").reshape(states.rows, states.width).astype(np.float32)
    assert len(rows) == len(ids)
    assert np.isfinite(rows).all()
    shorter = await engine.hidden_states(ids[:-1])
    begin = np.frombuffer(shorter.data, dtype="<f2").reshape(shorter.rows, shorter.width).astype(np.float32)
    # A token's state depends on those before it only.
    assert np.allclose(begin, rows[:-1], atol=0.02 * np.abs(rows).max())


async def test_the_generator_alone_makes_as_many_tokens_and_leaves_others_their_turn(
    engine: ExllamaEngine,
) -> None:
    prompt = await question(engine)
    request = GenerateRequest(prompt_ids=prompt, sampling=GREEDY, seed=0, cache_key=fresh_key())
    answers: list[Answer] = []

    async def beside() -> None:
        answers.append(await ask(engine, prompt))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beside)
        times = await engine.bare([request, replace(request, cache_key=fresh_key())])
    assert [made for made, _, _ in times] == [12, 12]
    assert all(0 < first < last for _, first, last in times)
    assert answers[0].done.tokens_out == 12


# ---- when it breaks


async def test_killing_the_child_costs_its_request_an_error_and_the_next_one_works(
    own: ExllamaEngine,
) -> None:
    prompt, killed = await question(own), own.child_pid
    assert killed is not None
    request = GenerateRequest(
        prompt_ids=prompt, sampling=replace(GREEDY, tokens_max=150), seed=0, cache_key=b"k"
    )
    async with own.generate(request) as stream:
        async for event in stream:
            if isinstance(event, Tokens):
                break
        os.kill(killed, signal.SIGKILL)
        with trio.fail_after(10), pytest.raises(EngineLostError, match=r"crashed.*ask again"):
            async for _ in stream:
                pass
    assert own.reusable(b"k", prompt) == 0
    answer = await ask(own, prompt, key=b"k")
    assert answer.started.reused == 0
    assert (own.statistics().restarts, own.child_pid != killed) == (1, True)


async def test_a_library_that_breaks_costs_all_its_requests_an_error_that_says_why(
    own: ExllamaEngine,
) -> None:
    """More tokens than the cache has pages: an assertion of the generator's own, as a CUDA error would be."""
    prompt, broken = await question(own), own.child_pid
    assert broken is not None
    bystander = GenerateRequest(
        prompt_ids=prompt, sampling=replace(GREEDY, tokens_max=150), seed=0, cache_key=b"by"
    )
    async with own.generate(bystander) as stream:
        assert isinstance(await anext(stream), Started)
        child = own.child
        assert child is not None
        too_much = ExllamaRun.body_of(bystander, 1_000_000)
        with trio.fail_after(20), pytest.raises(Exception, match="cannot"):
            async for _ in child.http.stream("/completion", too_much, stall_s=20):
                pass
        with (
            trio.fail_after(20),
            pytest.raises(EngineLostError, match=r"crashed \(AssertionError: .*being restarted"),
        ):
            async for _ in stream:
                pass
    assert not psutil.pid_exists(broken)
    assert (await ask(own, prompt)).done.tokens_out == 12


async def test_closing_ends_requests_and_leaves_no_process_and_no_directory(
    own: ExllamaEngine, run_dir: Path
) -> None:
    request = GenerateRequest(
        prompt_ids=await question(own), sampling=replace(GREEDY, tokens_max=150), seed=0, cache_key=b"k"
    )
    child = own.child_pid
    assert child is not None
    async with own.generate(request) as stream:
        assert isinstance(await anext(stream), Started)
        await own.aclose()
        with pytest.raises(EngineError) as closed:
            async for _ in stream:
                pass
    assert closed.value.code == "shutting_down"
    assert not psutil.pid_exists(child)
    assert os.listdir(run_dir) == []  # noqa: PTH208 - asynchronous code lists no paths


@pytest.mark.skipif(bool(FOLDER), reason="there is a GPU")
async def test_a_torch_without_cuda_is_told_by_the_child_with_what_to_install(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "missing", lambda *_: "")
    folder = describe_at("small", write(tmp_path / "m", FILES))
    engine = ExllamaEngine(folder, replace(CONFIG, device="cuda", runtime_dir=run_dir))
    words = r"can't load small: torch .* was built without CUDA.*\. Install a torch built for this machine's"
    with pytest.raises(EngineError, match=words):
        await engine.load()
    assert os.listdir(run_dir) == []  # noqa: PTH208
    await engine.aclose()


@pytest.mark.skipif(bool(FOLDER), reason="there is a GPU")
async def test_a_machine_without_cuda_is_told_what_to_install(model: LocalModel) -> None:
    with pytest.raises(ConfigError, match=r"no CUDA device.*nvidia-smi.*--engine llamacpp"):
        await ExllamaEngine(model, replace(CONFIG, device="cuda")).load()
