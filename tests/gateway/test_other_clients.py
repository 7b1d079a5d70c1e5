"""Programs of others that ask the gateway, each as a process of its own: LangChain, LiteLLM, curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.client.test_tools import ARGUMENTS, script
from tests.gateway.support import Stage, stage

HERE = Path(__file__).parent / "other_clients"
PYTHON = Path(__file__).parents[2] / ".venv-others" / "bin" / "python"
SAID = json.loads(ARGUMENTS)


def answer(prompt: tuple[int, ...], seed: int) -> str:
    """Call the tool where one is offered; else say something, as JSON where that is asked for."""
    said = bytes(each for each in prompt if each < 256).decode()
    if "weather" in said:
        return script(prompt, seed)
    return '{"city": "Rome", "days": 3}' if "as JSON" in said else "The sky is blue."


async def output_of(s: Stage, program: str) -> Any:
    """What one of the programs prints."""
    if not PYTHON.exists():
        pytest.skip("LangChain and LiteLLM are not installed: `make test-clients` installs them")
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(PYTHON), "-P", str(HERE / program), s.url]
    with trio.fail_after(120):
        ran = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env=environment
        )
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    return json.loads(ran.stdout.decode().splitlines()[-1])


@pytest.mark.long
async def test_langchain_chats_streams_calls_tools_reads_a_schema_and_embeds() -> None:
    async with stage(3, script=answer) as s:
        told = await output_of(s, "langchain_client.py")
    assert told["text"] == told["streamed"] == "The sky is blue."
    assert told["finish"] == "stop"
    for usage in (told["usage"], told["streamed_usage"]):
        assert (usage["input_tokens"], usage["output_tokens"]) == (8, 16)
    assert told["call"] == json.loads(told["streamed_call"]) == SAID
    assert told["after_tool"] == "It says: rain."
    assert told["structured"] == {"city": "Rome", "days": 3}
    assert told["vectors"][0] == told["vectors"][1] > 1
    assert told["query"] is True


@pytest.mark.long
async def test_litellm_chats_streams_calls_tools_by_both_apis_and_embeds() -> None:
    async with stage(3, script=answer) as s:
        told = await output_of(s, "litellm_client.py")
    assert told["text"] == told["streamed"] == "The sky is blue."
    assert told["usage"] == told["streamed_usage"] == [8, 16]
    assert told["finish"] == "tool_calls"
    for call in ("call", "streamed_call", "by_messages"):
        assert json.loads(told[call]) == SAID
    assert told["vectors"][0] == told["vectors"][1] > 1
    assert "no model is named 'nobodys'" in told["failed"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_shows_each_piece_as_it_comes() -> None:
    asked = {
        "model": "scripted",
        "stream": True,
        "max_tokens": 40,
        "messages": [{"role": "user", "content": "hi"}],
    }
    async with stage(1, tokens_per_s=80.0) as s:
        command = ["curl", "-sN", f"{s.url}/v1/chat/completions", "-H", "content-type: application/json"]
        run = partial(trio.run_process, [*command, "-d", json.dumps(asked)], stdout=subprocess.PIPE)
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(run)
            assert process.stdout is not None
            pieces = [piece async for piece in process.stdout]
    assert len(pieces) > 3  # several reads: it was not kept back until the end
    frames = b"".join(pieces).decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    said = [json.loads(each.removeprefix("data: ")) for each in frames[:-2]]
    assert said[-1]["choices"][0]["finish_reason"] == "length"
    assert len("".join(each["choices"][0]["delta"].get("content") or "" for each in said)) == 40


async def test_curl_is_told_in_words_what_is_wrong() -> None:
    async with stage(1) as s:
        command = [
            "curl",
            "-s",
            f"{s.url}/v1/chat/completions",
            "-H",
            "content-type: application/json",
            "-d",
            "{",
        ]
        ran = await trio.run_process(command, capture_stdout=True)
    assert "JSON" in json.loads(ran.stdout)["error"]["message"]
