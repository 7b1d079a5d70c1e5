"""Prompts in a process with limits: what explodes costs its sender an error, and the next prompt works."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
import trio

from p2pnode.errors import EngineError
from p2pnode.models.grammar import Matcher, PackedGrammar
from p2pnode.models.prompt_compiler import PromptCompiler, compile_prompt
from p2pnode.models.renderer import CHATML, ChatTemplate, Renderer
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, ResponseFormat, Tool
from tests.net.support import eventually

HELLO = PromptBody(messages=(ChatMessage.of("user", "Hello"),), seed=bytes(16))


def nested(depth: int) -> str:
    """A schema of so many levels."""
    return '{"items":' * (depth - 1) + "{}" + "}" * (depth - 1)


LOOPS = ChatTemplate(
    "{% if messages[0].content == '' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}{% endif %}{{ messages[-1].content }}"
)
GROWS = ChatTemplate(
    "{% if messages[0].content == '' %}{% set s = 'x' * (messages|length * 100000000) %}{% endif %}"
    "{{ messages[-1].content }}"
)
BAD = replace(HELLO, messages=(ChatMessage.of("user", ""), *HELLO.messages))


@pytest.fixture
async def compilers() -> AsyncIterator[Any]:
    made: list[PromptCompiler] = []

    def make(template: ChatTemplate) -> PromptCompiler:
        made.append(PromptCompiler(template))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


@pytest.mark.parametrize(("template", "why"), [(LOOPS, "more than 100 ms"), (GROWS, "MemoryError")])
async def test_a_prompt_that_makes_its_template_explode_fails_alone(
    compilers: Any, template: ChatTemplate, why: str
) -> None:
    compiler = compilers(template)
    first = await compiler.compile(HELLO, text="", letters_max=10_000)
    assert "".join(each.text for each in first.segments) == "Hello"
    with pytest.raises(EngineError, match=why) as refused:
        await compiler.compile(BAD, text="", letters_max=10_000)
    assert refused.value.code == "bad_request"
    assert await compiler.compile(HELLO, text="", letters_max=10_000) == first


async def test_the_process_says_what_the_function_says_also_in_the_middle_of_an_answer(
    compilers: Any,
) -> None:
    tool = Tool(
        name="f", parameters='{"type":"object","properties":{"x":{"type":"string"}},"required":["x"]}'
    )
    body = replace(HELLO, tools=(tool,), tool_choice="required")
    template, begun = ChatTemplate(CHATML), '{"tool_calls": [{"name": "f", "arguments": {"x": "a'
    here = compile_prompt(Renderer(template), body, text=begun, nonce="n0nce", letters_max=10_000)
    there = await compilers(template).compile(body, text=begun, letters_max=10_000)
    assert (there.segments, there.format, there.thinking) == (here.segments, "generic/1", False)
    assert here.grammar is not None
    assert there.grammar.unpacked().rules == here.grammar.unpacked().rules
    assert there.grammar.gbnf() == here.grammar.gbnf()


async def test_a_grammar_that_is_followed_again_and_again_stays_what_the_process_said(
    compilers: Any,
) -> None:
    """Nobody here reads its rules: they may be thousands, for each value that is begun leaves one."""
    body = replace(HELLO, response_format=ResponseFormat(kind="json_object"))
    compiler = compilers(ChatTemplate(CHATML))
    grammar = (await compiler.compile(body, text='{"a": ', letters_max=10_000)).grammar
    for step in range(1, 5):
        grown = await compiler.follow(grammar, "[" * 20)
        assert isinstance(grown, PackedGrammar)
        assert grown.held_bytes > grammar.held_bytes
        matcher = Matcher(grown.unpacked())
        assert matcher.feed("1" + "]" * 20 * step + "}")
        assert matcher.may_end
        grammar = grown


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (replace(HELLO, tools=(Tool(name="f", parameters=nested(500)),)), "500 levels"),
        (
            replace(
                HELLO,
                response_format=ResponseFormat(
                    kind="json_schema", body=json.dumps({"enum": ["x" * 60] * 1000})[:60_000]
                ),
            ),
            "no JSON",
        ),
    ],
)
async def test_a_schema_beyond_the_limits_is_refused_there(
    compilers: Any, body: PromptBody, why: str
) -> None:
    with pytest.raises(EngineError, match=why) as refused:
        await compilers(ChatTemplate(CHATML)).compile(body, text="", letters_max=100_000)
    assert refused.value.code == "bad_request"


async def test_who_cancels_costs_others_no_new_process(compilers: Any) -> None:
    before = {child.pid for child in psutil.Process().children()}
    compiler = compilers(ChatTemplate(CHATML))
    await compiler.compile(HELLO, text="", letters_max=1000)
    (child,) = {child.pid for child in psutil.Process().children()} - before
    with trio.move_on_after(0.001) as scope:
        await compiler.compile(HELLO, text="", letters_max=1000)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert (await compiler.compile(HELLO, text="", letters_max=1000)).format == ""
    assert {each.pid for each in psutil.Process().children()} - before == {child}


async def test_a_template_that_is_none_is_said_to_be_none(compilers: Any) -> None:
    with pytest.raises(EngineError, match="no Jinja"):
        await compilers(ChatTemplate("{{")).compile(HELLO, text="", letters_max=100)


async def test_a_compiler_that_is_closed_leaves_no_process() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    compiler = PromptCompiler(ChatTemplate(CHATML))
    await compiler.compile(HELLO, text="", letters_max=100)
    await compiler.aclose()
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


async def test_a_process_that_was_forked_ahead_has_the_limits_of_its_own_prompt(compilers: Any) -> None:
    compiler, before = compilers(ChatTemplate(CHATML)), set(psutil.Process().children(recursive=True))
    first = await compiler.compile(HELLO, text="", letters_max=1000)

    def processes() -> int:
        return len(set(psutil.Process().children(recursive=True)) - before)

    await eventually(lambda: processes() == 2)  # one that waits for jobs, and the next one's
    assert await compiler.compile(HELLO, text="", letters_max=1000) == first
    bad = compilers(LOOPS)
    await bad.compile(HELLO, text="", letters_max=1000)
    await eventually(lambda: processes() == 4)
    with pytest.raises(EngineError, match="more than 100 ms"):
        await bad.compile(BAD, text="", letters_max=1000)
    await compiler.aclose()
    await bad.aclose()
    await eventually(lambda: processes() == 0)
