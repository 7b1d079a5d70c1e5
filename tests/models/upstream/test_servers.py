"""The engine ``upstream`` through real servers: llama.cpp's own, and LiteLLM's proxy in front of it.

LiteLLM has an environment of its own, which ``make test-upstream`` makes; without it its tests are skipped.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import DEVNULL, PIPE

import httpx
import pytest
import trio

from p2pnode.errors import EngineError, EngineLostError
from p2pnode.models.engine import Engine, GenerateRequest, Tokens
from p2pnode.models.local_models import LocalModel
from p2pnode.models.upstream.engine import UpstreamConfig, UpstreamEngine
from p2pnode.models.upstream.text_model import text_model_of
from tests.models.engine_conformance import (
    GREEDY,
    N_CTX,
    QUEUE,
    SLOTS,
    EngineConformance,
    ask,
    fresh_key,
    question,
)
from tests.net.support import eventually

pytestmark = pytest.mark.long
LITELLM = Path(__file__).parents[3] / ".venv-others" / "bin" / "litellm"
KEY = "sk-of-the-test"
_READY_S = 120.0
_SERVER = Path(__file__).with_name("llamacpp_server.py")
_PROXY = """\
model_list:
  - model_name: small
    litellm_params:
      model: text-completion-openai/small
      api_base: {url}/v1
      api_key: none
litellm_settings:
  telemetry: false
general_settings:
  master_key: {key}
"""


@dataclass(frozen=True)
class Running:
    url: str
    pid: int

    def is_busy(self) -> bool:
        """Whether llama.cpp computes for anybody."""
        slots = httpx.get(f"{self.url}/slots", trust_env=False, timeout=30).json()
        return any(each["is_processing"] for each in slots)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def llamacpp(model: Path, port: int = 0) -> Iterator[Running]:
    port = port or _free_port()
    command = [sys.executable, str(_SERVER), str(model), str(port), str(N_CTX), str(SLOTS)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert b"ready" in process.stdout.read(5)
            yield Running(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.kill()


@contextmanager
def litellm(upstream: str, directory: Path) -> Iterator[Running]:
    if not LITELLM.exists():
        pytest.skip("LiteLLM is not installed: `make test-upstream` installs it and runs these tests")
    config, port = directory / "litellm.yaml", _free_port()
    config.write_text(_PROXY.format(url=upstream, key=KEY))
    command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "LITELLM_TELEMETRY": "False"}
    with subprocess.Popen(command, stdout=DEVNULL, stderr=DEVNULL, cwd=directory, env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            until = time.monotonic() + _READY_S
            while time.monotonic() < until and process.poll() is None:
                try:
                    httpx.get(f"{url}/health/liveliness", trust_env=False, timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.05)
            yield Running(url, process.pid)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(smollm: LocalModel) -> Iterator[Running]:
    with llamacpp(smollm.weights_path) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with litellm(server.url, tmp_path_factory.mktemp("litellm")) as running:
        yield running


@contextmanager
def engine_of(smollm: LocalModel, url: str, key: str = "") -> Iterator[UpstreamEngine]:
    config = UpstreamConfig(url=url, key=key, n_ctx=N_CTX, slots=SLOTS, queue_max=QUEUE, stall_s=30)
    model = text_model_of(smollm)
    engine = UpstreamEngine(model, model.prompts(N_CTX), config)
    yield engine
    trio.run(engine.aclose)


@pytest.fixture(scope="module")
def direct(smollm: LocalModel, server: Running) -> Iterator[UpstreamEngine]:
    with engine_of(smollm, server.url) as engine:
        yield engine


@pytest.fixture(scope="module")
def proxied(smollm: LocalModel, server: Running, proxy: Running) -> Iterator[UpstreamEngine]:
    with engine_of(smollm, proxy.url, KEY) as engine:
        yield engine


class _Upstream(EngineConformance):
    """What an engine does that knows nothing of its server's cache."""

    async def test_a_continuation_gives_exactly_the_rest_and_reports_reuse(self, engine: Engine) -> None:
        prompt, key = await question(engine), fresh_key()
        whole = await ask(engine, prompt, replace(GREEDY, tokens_max=30), key)
        held = await ask(engine, prompt, replace(GREEDY, tokens_max=20), key)
        assert held.ids == whole.ids[:20]
        longer = prompt + held.ids
        assert engine.reusable(key, longer) == 0
        rest = await ask(engine, longer, replace(GREEDY, tokens_max=10), key)
        assert rest.ids == whole.ids[20:]
        assert held.text + rest.text == whole.text
        assert rest.started.reused == 0

    async def test_an_answer_is_cut_where_the_context_ends(self, engine: Engine) -> None:
        word = (await engine.tokenize("sea"))[:1]
        answer = await ask(engine, word * (N_CTX - 3))
        assert answer.done.reason == "length"
        assert 1 <= len(answer.ids) <= 3  # what the model wrote in three, its tokenizer may write in fewer

    async def test_another_key_never_reuses_a_prefix(self, engine: Engine) -> None:
        prompt, key = await question(engine), fresh_key()
        await ask(engine, prompt, key=key)
        assert engine.reusable(key, prompt) == engine.reusable(fresh_key(), prompt) == 0


class TestLlamaCppServer(_Upstream):
    @pytest.fixture
    def engine(self, direct: UpstreamEngine) -> Engine:
        return direct


class TestLiteLlm(_Upstream):
    async def test_logprobs_come_with_each_id_and_name_the_likeliest(self, engine: Engine) -> None:
        """It drops them from streams: they are not offered, and whoever asks for them is told."""
        assert "logprobs" not in (await engine.load()).features
        with pytest.raises(EngineError, match="takes no logprobs: leave them out"):
            await ask(engine, await question(engine), logprobs=3)

    @pytest.fixture
    def engine(self, proxied: UpstreamEngine) -> Engine:
        return proxied


async def test_everything_that_llama_cpp_does_is_found_out(direct: UpstreamEngine) -> None:
    info = await direct.load()
    assert info.features == {"tools", "schema", "logprobs"}
    assert info.samplers == ("logit_bias", "penalties", "top_k", "top_p", "min_p", "temperature")
    abilities = direct.abilities
    assert (abilities.ids, abilities.seeds, abilities.isolates, abilities.chat) == (True, True, True, False)
    assert info.build.startswith("llamacpp")


async def test_a_proxy_that_drops_log_probabilities_from_streams_is_not_asked_for_them(
    proxied: UpstreamEngine,
) -> None:
    info = await proxied.load()
    assert info.features == {"tools", "schema"}
    assert proxied.abilities.seeds


@pytest.mark.parametrize("which", ["direct", "proxied"])
async def test_leaving_an_answer_stops_the_server(
    which: str, server: Running, request: pytest.FixtureRequest
) -> None:
    engine: UpstreamEngine = request.getfixturevalue(which)
    prompt = await question(engine)
    long = GenerateRequest(
        prompt_ids=prompt, sampling=replace(GREEDY, tokens_max=200), seed=0, cache_key=fresh_key()
    )
    came = 0
    async with engine.generate(long) as stream:
        async for event in stream:
            came += isinstance(event, Tokens)
            if came == 3:
                break
        assert server.is_busy()
    await eventually(lambda: not server.is_busy(), seconds=2)


async def test_killing_the_server_costs_its_request_an_error_and_it_is_taken_back(smollm: LocalModel) -> None:
    model = text_model_of(smollm)
    with ExitStack() as stack:
        server = stack.enter_context(llamacpp(smollm.weights_path))
        config = UpstreamConfig(url=server.url, n_ctx=N_CTX, slots=SLOTS, queue_max=QUEUE, stall_s=30)
        engine = UpstreamEngine(model, model.prompts(N_CTX), config)
        info, prompt = await engine.load(), await question(engine)
        request = GenerateRequest(
            prompt_ids=prompt, sampling=replace(GREEDY, tokens_max=200), seed=0, cache_key=fresh_key()
        )
        async with engine.generate(request) as stream:
            async for event in stream:
                if isinstance(event, Tokens):
                    break
            os.kill(server.pid, signal.SIGKILL)
            with trio.fail_after(5), pytest.raises(EngineLostError, match="ask again"):
                async for _ in stream:
                    pass
        with pytest.raises(EngineError, match="is its server running"):
            await engine.load()
        stack.enter_context(llamacpp(smollm.weights_path, int(server.url.rpartition(":")[2])))
        assert await engine.load() == info
        assert (await ask(engine, prompt)).done.tokens_out == 12
        await engine.aclose()
