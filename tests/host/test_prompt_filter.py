"""The owner's program sees each prompt first; what it refuses, or can't check, no model sees."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from p2pnode.errors import ConfigError, NoHostError, P2PNodeError
from p2pnode.host.prompt_filter import PromptFilter
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, ResponseFormat, Tool, ToolCall
from tests.client.failing import engine_of
from tests.client.support import ask, whole
from tests.net.support import eventually
from tests.node.world import scripted_host, world


def _body(text: str) -> PromptBody:
    return PromptBody(messages=(ChatMessage.of("user", text),), seed=bytes(16))


def _program(folder: Path, source: str) -> str:
    path = folder / "filter.py"
    path.write_text(source)
    return f"{sys.executable} -S -E '{path}'"


REFUSES = """
import json, sys
told = json.load(sys.stdin)
text = " ".join(each["content"] for each in told["messages"])
if "bomb" in text:
    print("no bombs here; $(touch hacked)")
    print("a second line")
    sys.exit(3)
"""


async def test_a_prompt_is_refused_with_the_programs_words_and_others_pass(tmp_path: Path) -> None:
    check = PromptFilter(_program(tmp_path, REFUSES))
    assert await check.refusal(_body("hello; $(touch hacked) `touch hacked`")) == ""
    assert await check.refusal(_body("a bomb")) == "no bombs here; $(touch hacked)"
    assert not (tmp_path / "hacked").exists()


async def test_what_a_program_is_told_is_the_prompt_and_nothing_else(tmp_path: Path) -> None:
    check = PromptFilter(_program(tmp_path, "import sys; print(sys.stdin.read()); sys.exit(1)"))
    told = json.loads(await check.refusal(_body("hi")))
    message = {"role": "user", "content": "hi", "tool_calls": []}
    assert told == {"messages": [message], "tools": [], "response_format": ""}
    embed = await check.refusal(PromptBody(embed=("one", "two"), seed=bytes(16)))
    assert json.loads(embed) == {"embed": ["one", "two"]}


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import sys; sys.exit(1)", "does not serve this prompt"),
        ("import time; time.sleep(60)", "can't check prompts now"),
        ("import sys; print('x' * 10_000_000); sys.exit(1)", "x" * 200),
        ("import os; os.kill(os.getpid(), 9)", "does not serve this prompt"),
    ],
)
async def test_a_program_that_fails_is_late_or_floods_lets_nothing_through(
    tmp_path: Path, source: str, said: str
) -> None:
    check = PromptFilter(_program(tmp_path, source), deadline_s=1.0 if "sleep" in source else 10.0)
    with trio.fail_after(20):
        assert said in await check.refusal(_body("x" * 200_000))


async def test_a_text_in_a_tool_or_in_a_call_does_not_go_around_the_program() -> None:
    check = PromptFilter("sh -c '! grep -q bomb'")
    call = ToolCall(id="1", name="find", arguments='{"what": "bomb"}')
    said = ChatMessage(role="assistant", tool_calls=(call,))
    for body in (
        PromptBody(messages=(ChatMessage.of("user", "hi"), said), seed=bytes(16)),
        replace(_body("hi"), tools=(Tool(name="find", description="a bomb"),)),
        replace(_body("hi"), tools=(Tool(name="find", parameters='{"title": "bomb"}'),)),
        replace(_body("hi"), response_format=ResponseFormat(kind="json_schema", body='{"title": "bomb"}')),
    ):
        assert await check.refusal(body)
    assert await check.refusal(replace(_body("hi"), tools=(Tool(name="find"),))) == ""


async def test_a_program_that_can_not_be_started_any_more_lets_nothing_through(tmp_path: Path) -> None:
    program = tmp_path / "filter"
    program.write_text("no program of any kind\n")
    program.chmod(0o755)
    check = PromptFilter(str(program))
    assert "can't check prompts now" in await check.refusal(_body("hi"))
    program.unlink()
    assert "can't check prompts now" in await check.refusal(_body("hi"))


async def test_what_a_late_program_has_started_is_killed_with_it(tmp_path: Path) -> None:
    program = tmp_path / "filter"
    program.write_text(f"#!/bin/sh\nsleep 300 & echo $! > '{tmp_path}/pid'; wait\n")
    program.chmod(0o755)
    assert "can't check prompts now" in await PromptFilter(str(program), deadline_s=1.0).refusal(_body("hi"))
    child = int((tmp_path / "pid").read_text())
    await eventually(lambda: not _is_alive(child))


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("command", ["", "  ", "'", "/no/such/program --flag"])
def test_a_program_that_there_is_not_is_told_before_anything_starts(command: str) -> None:
    with pytest.raises(ConfigError, match="--prompt-filter"):
        PromptFilter(command)


async def test_a_host_with_a_filter_serves_what_passes_and_tells_the_reason_of_what_does_not(
    tmp_path: Path,
) -> None:
    check = PromptFilter(_program(tmp_path, REFUSES))
    with trio.fail_after(30):
        async with world() as w:
            host = await w.add([scripted_host()], prompt_filter=check)
            async with w.client(host.node.multiaddrs[:1]) as client:
                assert await whole(ask(client, "hello"))
                made = engine_of(host).statistics().tokens_out
                with pytest.raises((NoHostError, P2PNodeError), match="no bombs here"):
                    await whole(ask(client, "a bomb"))
                assert engine_of(host).statistics().tokens_out == made
                assert client.searches.measured[host.node.peer_id].broken == 0  # it counts against nobody
