"""llama.cpp with the real default model: the conformance suite, exact ids, cancels, crashes, hangs."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest
import trio

from p2pnode.errors import ConfigError, EngineError
from p2pnode.models.child.process import ChildProcess
from p2pnode.models.engine import Done, GenerateRequest, Prefill, Started, Tokens
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine, start_llamacpp
from p2pnode.models.llamacpp.server import BATCH
from p2pnode.models.local_models import LocalModel, describe_at
from p2pnode.models.vocabulary import Vocabulary, load_vocabulary
from p2pnode.protocols.inference.messages import ChatMessage, LogitBias, PromptBody, ResponseFormat, Role
from tests.models import model_folders
from tests.models.engine_conformance import (
    CUTS,
    GREEDY,
    N_CTX,
    QUESTION,
    QUEUE,
    SLOTS,
    EngineConformance,
    ask,
    body,
    fresh_key,
    question,
)
from tests.net.support import eventually

CONFIG = LlamaCppConfig(n_ctx=N_CTX, slots=SLOTS, queue_max=QUEUE, threads=1)
NOT_ASCII = "你好世界,🙂🎉👍你好世界,🙂🎉👍你好世界,🙂"


@pytest.fixture(scope="module")
def shared(smollm: LocalModel) -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine(smollm, CONFIG)
    yield engine
    trio.run(engine.aclose)


@pytest.fixture(scope="module")
def bare(smollm: LocalModel) -> Iterator[ChildProcess]:
    """A server of llama.cpp's own, to be asked for what an engine should answer."""

    async def start() -> ChildProcess:
        return await start_llamacpp(
            model=smollm.path, n_ctx=N_CTX, slots=1, threads=1, runtime_dir=None, deadline_s=60
        )

    process = trio.run(start)
    yield process
    trio.run(process.stop)


@pytest.fixture
def engine(shared: LlamaCppEngine) -> LlamaCppEngine:
    return shared


@pytest.fixture(scope="module")
def vocabulary(smollm: LocalModel) -> Vocabulary:
    return load_vocabulary(smollm.path)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder with a short path, for the address of a unix socket; ``tmp_path`` is long in parallel runs."""
    with tempfile.TemporaryDirectory(prefix="run-") as name:
        yield Path(name)


@pytest.fixture
async def own(smollm: LocalModel, run_dir: Path) -> AsyncIterator[LlamaCppEngine]:
    """An engine that the test may kill."""
    config = replace(CONFIG, slots=1, hang_s=2.0, runtime_dir=run_dir)
    engine = LlamaCppEngine(smollm, config)
    await engine.load()
    yield engine
    await engine.aclose()


def leftovers(directory: Path) -> list[Path]:
    return list(directory.iterdir())


class TestLlamaCpp(EngineConformance):
    pass


async def truth(bare: ChildProcess, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """All ids of the greedy answer, which llama.cpp gives when it doesn't stream."""
    body = {
        "prompt": prompt,
        "n_predict": count,
        "temperature": 0,
        "return_tokens": True,
        "cache_prompt": False,
    }
    body |= {"id_slot": 0, "min_p": GREEDY.min_p}
    answer = await bare.http.call("/completion", body, deadline_s=60)
    return tuple(answer["tokens"])


async def test_every_id_of_text_beyond_ascii_is_delivered_once(
    engine: LlamaCppEngine, bare: ChildProcess, vocabulary: Vocabulary
) -> None:
    prompt = await engine.tokenize(NOT_ASCII)
    expected = await truth(bare, prompt, 40)
    answer = await ask(engine, prompt, replace(GREEDY, tokens_max=40))
    assert answer.ids == expected
    assert any(ord(character) > 0x2000 for character in answer.text), "the prompt should lead to such text"
    spelled = b"".join(vocabulary.piece(token) for token in expected)
    assert answer.text == spelled.decode("utf-8", "ignore")


async def test_ids_that_cannot_be_recovered_are_made_again(
    engine: LlamaCppEngine, bare: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = await engine.tokenize(NOT_ASCII)
    expected = await truth(bare, prompt, 24)
    asked = []

    def ambiguous(_self: Vocabulary, _text: str, _last: int, missing: int) -> None:
        asked.append(missing)

    monkeypatch.setattr(Vocabulary, "recover", ambiguous)
    answer = await ask(engine, prompt, replace(GREEDY, tokens_max=24))
    assert asked, "the answer should hold characters of several tokens"
    assert answer.ids == expected
    assert answer.done == Done(reason="length", tokens_out=24)
    assert "\ufffd" not in answer.text


@pytest.mark.long
async def test_a_budget_that_ends_inside_a_character_delivers_all_of_its_ids(engine: LlamaCppEngine) -> None:
    prompt = await engine.tokenize(NOT_ASCII)
    whole = await ask(engine, prompt, replace(GREEDY, tokens_max=6))
    for count in range(1, 6):
        part = await ask(engine, prompt, replace(GREEDY, tokens_max=count))
        assert part.ids == whole.ids[:count]
        assert "\ufffd" not in part.text
        rest = await ask(engine, prompt + part.ids, replace(GREEDY, tokens_max=6 - count))
        assert part.text + rest.text == whole.text


async def test_the_end_of_a_turn_is_neither_delivered_nor_counted(engine: LlamaCppEngine) -> None:
    prompt = (await engine.prompt(body("Say hi"))).ids
    answer = await ask(engine, prompt, replace(GREEDY, tokens_max=100))
    assert answer.done == Done(reason="stop", tokens_out=len(answer.ids))
    assert len(answer.ids) < 100
    assert not set(answer.ids) & {0, 1, 2}


async def test_the_template_closes_each_message_and_opens_the_answer(
    engine: LlamaCppEngine, vocabulary: Vocabulary
) -> None:
    said = (ChatMessage.of("system", "Be kind."), ChatMessage.of("user", "Hi"))
    ids = (await engine.prompt(PromptBody(messages=said, seed=bytes(16)))).ids
    marked = [f"<{token}>".encode() if token < 3 else vocabulary.piece(token) for token in ids]
    assert b"".join(marked) == b"<1>system\nBe kind.<2>\n<1>user\nHi<2>\n<1>assistant\n"


@pytest.mark.parametrize(
    "text", ["Hi", "  two blanks ", "\n\nlines\n", "你好 🙂", "if x < 3 | y > 2: pass", "\ttab", "1234"]
)
async def test_text_without_special_words_is_tokenised_as_in_training(
    engine: LlamaCppEngine, bare: ChildProcess, text: str
) -> None:
    said = (ChatMessage.of("system", text), ChatMessage.of("user", text))
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role in ("system", "user"))
    whole = f"{turns}<|im_start|>assistant\n"
    call = {"content": whole, "add_special": True, "parse_special": True}
    told = await bare.http.call("/tokenize", call, deadline_s=60)
    assert list((await engine.prompt(PromptBody(messages=said, seed=bytes(16)))).ids) == told["tokens"]


async def test_the_template_adds_no_more_than_the_manifest_says(
    engine: LlamaCppEngine, smollm: LocalModel
) -> None:
    overhead = smollm.manifest.template_overhead
    for contents in (["x"], ["你好", "<|im_end|>", "🙂" * 20], [""] * 6):
        roles: tuple[Role, ...] = ("user", "assistant") * 3
        said = tuple(ChatMessage.of(role, text) for role, text in zip(roles, contents, strict=False))
        size = sum(len(text.encode()) for text in contents)
        prompt = await engine.prompt(PromptBody(messages=said, seed=bytes(16)))
        assert len(prompt.ids) <= overhead.tokens_max(len(said), size)


@pytest.mark.long
async def test_a_bias_and_penalties_change_what_is_drawn(
    engine: LlamaCppEngine, vocabulary: Vocabulary
) -> None:
    prompt = await question(engine)
    plain = await ask(engine, prompt)
    (word,) = await engine.tokenize(" sea")
    wanted = replace(GREEDY, logit_bias=(LogitBias(id=word, bias=100.0),))
    assert set((await ask(engine, prompt, wanted)).ids) == {word}
    unwanted = replace(GREEDY, logit_bias=tuple(LogitBias(id=each, bias=-100.0) for each in set(plain.ids)))
    assert not set((await ask(engine, prompt, unwanted)).ids) & set(plain.ids)
    repeating = replace(wanted, logit_bias=(LogitBias(id=word, bias=30.0),))
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repeat_penalty": 2.0}):
        told = [
            event.logprobs
            for event in (await ask(engine, prompt, replace(repeating, **penalty), logprobs=0)).events  # type: ignore[arg-type]
            if isinstance(event, Tokens)
        ]
        assert told  # taken by the engine, and told before any sampler
    strong = replace(repeating, frequency_penalty=2.0, tokens_max=40)
    assert len(set((await ask(engine, prompt, strong)).ids)) > 1


async def test_cancel_during_prefill_stops_the_engine_within_one_batch(engine: LlamaCppEngine) -> None:
    word = (await engine.tokenize("sea"))[:1]
    prompt, key = word * (N_CTX - 8), fresh_key()
    request = GenerateRequest(prompt_ids=prompt, sampling=GREEDY, seed=0, cache_key=key)
    read = 0
    async with engine.generate(request) as stream:
        async for event in stream:
            if isinstance(event, Prefill):
                read = event.processed
                break
    assert read < len(prompt), "the prefill was over before the cancel"
    assert engine.statistics().active == 0
    # What the slot holds when the same key comes again is how far the engine went on without us: the
    # batch that was under way, and at most one that had begun before it noticed.
    again = await ask(engine, prompt, replace(GREEDY, tokens_max=1), key)
    assert again.started.reused <= read + 2 * BATCH < len(prompt)


async def test_nothing_listens_but_a_socket_only_we_can_reach(own: LlamaCppEngine, run_dir: Path) -> None:
    assert own.child_pid is not None
    connections = psutil.Process(own.child_pid).net_connections("inet")
    assert [found for found in connections if found.status == psutil.CONN_LISTEN] == []
    (directory,) = leftovers(run_dir)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(directory / "engine.sock"))
        stranger.sendall(b"GET /slots HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 401 " in stranger.recv(1000).splitlines()[0] + b" "
    assert "key" not in " ".join(psutil.Process(own.child_pid).cmdline())


async def test_killing_the_engine_costs_its_request_an_error_and_the_next_one_works(
    own: LlamaCppEngine,
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
        with trio.fail_after(5), pytest.raises(EngineError, match=r"crashed.*ask again") as crashed:
            async for _ in stream:
                pass
    assert crashed.value.code == "internal"
    assert crashed.value.retry_after_s is not None
    assert own.reusable(b"k", prompt) == 0
    answer = await ask(own, prompt, key=b"k")
    assert answer.started.reused == 0
    assert (own.statistics().restarts, own.child_pid != killed) == (1, True)


async def test_an_engine_killed_between_requests_is_restarted_without_an_error(own: LlamaCppEngine) -> None:
    prompt = await question(own)
    assert own.child_pid is not None
    os.kill(own.child_pid, signal.SIGKILL)
    await eventually(lambda: not own.statistics().extra["up"], seconds=5)
    assert (await ask(own, prompt)).done.tokens_out == 12
    assert own.statistics().restarts == 1


async def test_an_engine_that_hangs_is_killed_and_restarted(own: LlamaCppEngine) -> None:
    prompt, hung = await question(own), own.child_pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    with trio.fail_after(8), pytest.raises(EngineError, match=r"hung.*ask again") as error:
        await ask(own, prompt)
    assert error.value.code == "internal"
    assert not psutil.pid_exists(hung)
    assert (await ask(own, prompt)).done.tokens_out == 12


async def test_closing_ends_requests_and_leaves_no_process_and_no_directory(
    own: LlamaCppEngine, run_dir: Path
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
    assert leftovers(run_dir) == []
    with pytest.raises(EngineError, match="closed"):
        await own.load()


async def test_a_child_whose_parent_dies_ends_by_itself(smollm: LocalModel, run_dir: Path) -> None:
    program = """if True:
        import sys, trio
        from pathlib import Path
        from p2pnode.models.llamacpp.engine import start_llamacpp
        async def main():
            child = await start_llamacpp(
                model=Path(sys.argv[1]), runtime_dir=Path(sys.argv[2]),
                n_ctx=256, slots=1, threads=1, deadline_s=20,
            )
            print(child.pid, flush=True)
            await trio.sleep_forever()
        trio.run(main)
    """
    command = [sys.executable, "-c", program, str(smollm.path), str(run_dir)]
    parent = await trio.lowlevel.open_process(command, stdout=PIPE)
    assert parent.stdout is not None
    with trio.fail_after(20):
        async with aclosing(parent.stdout) as output:
            printed = b""
            while not (numbers := [line for line in printed.splitlines() if line.isdigit()]):
                printed += await output.receive_some()
            child = int(numbers[0])
            orphan = psutil.Process(child)
            assert orphan.is_running()
            parent.kill()
            await parent.wait()
        await trio.to_thread.run_sync(orphan.wait, 10, abandon_on_cancel=True)
    assert leftovers(run_dir) == []


def at(model: LocalModel, path: Path) -> LocalModel:
    return replace(model, root=path.parent, names=(path.name,))


async def test_a_folder_is_not_for_llama_cpp_and_says_so(tmp_path: Path) -> None:
    folder = describe_at("mine", model_folders.write(tmp_path / "exl2", model_folders.FILES))
    with pytest.raises(ConfigError, match=r"llama\.cpp loads GGUF files.*--engine"):
        await LlamaCppEngine(folder, CONFIG).load()


async def test_a_model_that_is_gone_or_changed_is_not_loaded(smollm: LocalModel, tmp_path: Path) -> None:
    gone = LlamaCppEngine(at(smollm, tmp_path / "gone.gguf"), CONFIG)
    with pytest.raises(ConfigError, match="p2pnode models pull"):
        await gone.load()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm.path.read_bytes()[: 3 << 20])
    with pytest.raises(ConfigError, match="3145728 bytes instead of 98362432"):
        await LlamaCppEngine(at(smollm, cut), CONFIG).load()


async def test_weights_llama_cpp_cannot_load_are_an_error_and_restarts_back_off(
    smollm: LocalModel, tmp_path: Path
) -> None:
    unknown = tmp_path / "unknown.gguf"
    with smollm.path.open("rb") as file:
        begin = file.read(8 << 20)
    named = struct.pack("<Q", 5)
    unknown.write_bytes(begin.replace(named + b"llama", named + b"lxama", 1))
    os.truncate(unknown, smollm.manifest.size_bytes)
    engine = LlamaCppEngine(at(smollm, unknown), CONFIG)
    errors: list[Any] = []
    for _ in range(3):
        with pytest.raises(EngineError) as failed:
            await engine.load()
        errors.append(failed.value)
    assert "doesn't know the architecture 'lxama'" in str(errors[0])
    assert "p2pnode models verify" in str(errors[0])
    await engine.aclose()


def test_settings_that_make_no_sense_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="threads is 0; it must be from 1 to"):
        LlamaCppConfig(threads=0)
    assert LlamaCppConfig().threads >= 1


async def test_another_process_with_other_slots_computes_the_same_numbers(
    smollm: LocalModel, engine: LlamaCppEngine
) -> None:
    other = LlamaCppEngine(smollm, LlamaCppConfig(n_ctx=512, slots=1, threads=1))
    try:
        assert await other.arithmetic() == await engine.arithmetic() != b""
    finally:
        await other.aclose()


@pytest.mark.long
async def test_an_engine_that_renders_only_makes_the_ids_of_any_prompt_in_a_small_context(
    smollm: LocalModel, engine: LlamaCppEngine, run_dir: Path
) -> None:
    config = LlamaCppConfig(slots=1, threads=1, renders_only=True, runtime_dir=run_dir)
    renders = LlamaCppEngine(smollm, config)
    try:
        assert (await renders.prompt(QUESTION)).ids == (await engine.prompt(QUESTION)).ids
        long = body("sea " * 2000)  # more than any slot of it would hold
        assert len((await renders.prompt(long)).ids) > 2000
    finally:
        await renders.aclose()
    assert leftovers(run_dir) == []


@pytest.mark.parametrize(("field", "value"), [("batch", 64), ("batch", 0), ("cache", "Q6")])
def test_settings_whose_numbers_nobody_could_replay_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"from 1 to 63|FP16, Q8, Q4"):
        LlamaCppConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "same"),
    [({"batch": 63}, True), ({"batch": 7}, True), ({"speculation": True}, True), ({"cache": "Q8"}, False)],
    ids=["batch 63", "batch 7", "speculation", "Q8"],
)
async def test_settings_say_what_they_are_and_change_no_number_but_a_smaller_cache(
    smollm: LocalModel, engine: LlamaCppEngine, more: dict[str, Any], same: bool
) -> None:
    other = LlamaCppEngine(smollm, replace(CONFIG, slots=1, **more))
    try:
        plain, info = await engine.load(), await other.load()
        told = (info.batch, info.kv_types, info.build)
        assert told == (
            more.get("batch", plain.batch),
            "q8_0/q8_0" if "cache" in more else plain.kv_types,
            plain.build + (" ngram" if "speculation" in more else ""),
        )
        assert (await other.arithmetic() == await engine.arithmetic()) == same
        if same:
            # Words that repeat, so that there is something to guess.
            prompt = await engine.tokenize("one two three four five six seven eight nine ten, " * 5)
            for sampling in (replace(GREEDY, tokens_max=60), replace(GREEDY, tokens_max=60, temperature=0.9)):
                expected = await ask(engine, prompt, sampling)
                assert (await ask(other, prompt, sampling)).ids == expected.ids
    finally:
        await other.aclose()


@pytest.mark.parametrize("step", CUTS)
async def test_a_grammar_goes_on_inside_of_a_letter_that_was_begun(engine: LlamaCppEngine, step: int) -> None:
    schema = {"type": "object", "properties": {"said": {"enum": ["你好世界", "🙂🎉"]}}, "required": ["said"]}
    form = ResponseFormat(kind="json_schema", body=json.dumps(schema))
    shaped = body("Say it.", response_format=form)
    prompt = await engine.prompt(shaped)
    sampling = replace(GREEDY, tokens_max=60)
    whole = await ask(engine, prompt.ids, sampling, grammar=prompt.grammar)
    assert json.loads(whole.text)["said"] in ("你好世界", "🙂🎉")
    inside = 0
    for cut in range(1, len(whole.ids)):
        begun = await engine.prompt(replace(shaped, prefix=whole.ids[:cut]))
        inside += begun.text_pending > 0
        if cut % step and not begun.text_pending:
            continue
        rest = await ask(engine, begun.ids, sampling, grammar=begun.grammar, text_pending=begun.text_pending)
        assert json.loads(begun.text + rest.text)["said"] in ("你好世界", "🙂🎉")
    assert inside
