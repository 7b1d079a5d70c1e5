"""Tools over whole nodes in memory: calls stream, go on elsewhere when a host dies, and are checked."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.chat_options import ChatOptions, tools_of
from p2pnode.client.interface import Answer
from p2pnode.client.question import KnownModel
from p2pnode.errors import ConfigError, HostFault, P2PNodeError
from p2pnode.ids import ModelId
from p2pnode.models.answer import Said
from p2pnode.models.engine import EngineEvent, GenerateRequest, Tokens
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.renderer import Renderer
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.models.template_overhead import template_overhead
from p2pnode.protocols.inference.messages import ResponseFormat, SamplingParams
from tests.client.failing import ONE_BY_ONE, meet, seeds, serving
from tests.models import chat_templates
from tests.models.schemas import SCHEMAS
from tests.models.vectors import SMALL
from tests.node.world import Member, World, scripted_host, world

ARGUMENTS = '{"city": "Zürich", "days": [1, 2, 3], "note": "</tool_call> \\"quoted\\""}'
CALL = f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
GREEDY = SamplingParams(tokens_max=400, temperature=0)


def script(prompt: tuple[int, ...], _seed: int) -> str:
    """Call the tool; once it has answered, say what it said."""
    said = bytes(each for each in prompt if each < 256).decode()
    return f"It says: {said.rpartition('rain')[1] or 'nothing'}." if "rain" in said else CALL


@asynccontextmanager
async def stage(count: int = 1, **config: Any) -> AsyncIterator[tuple[World, list[Member], Any]]:
    async with world(limits=ONE_BY_ONE) as w:
        members: list[Member] = []
        for _ in range(count):
            first = members[0].node.multiaddrs[:1] if members else ()
            members.append(await w.add([scripted_host(**{"script": script, **config})], bootstrap=first))
        await trio.sleep(5)
        async with w.client(seeds(members)) as client:
            await meet(client, members)
            yield w, members, client


async def heard(answer: Answer) -> list[Said]:
    async with answer:
        return [said async for said in answer.events()]


def whole(said: list[Said]) -> list[tuple[str, int, str, str]]:
    """Neighbours of one channel as one: channel, call, name, text."""
    made: list[tuple[str, int, str, str]] = []
    for each in said:
        if made and made[-1][:2] == (each.channel, each.call) and not each.name:
            made[-1] = (*made[-1][:3], made[-1][3] + each.text)
        else:
            made.append((each.channel, each.call, each.name, each.text))
    return made


EXPECTED = [("content", 0, "", "Let me see.\n"), ("call", 0, "weather", ARGUMENTS)]


async def test_a_call_streams_its_arguments_is_answered_and_the_answer_uses_it(
    autojump_clock: MockClock,
) -> None:
    async with stage(tokens_per_s=50.0) as (_, _, client):
        messages: list[dict[str, Any]] = [{"role": "user", "content": "Weather?"}]
        asked = client.chat(messages, model=SCRIPTED, tools=TOOLS, sampling=GREEDY)
        said = await heard(asked)
        assert whole(said) == EXPECTED
        assert sum(1 for each in said if each.channel == "call") > 10
        assert asked.usage.reason == "tool_calls"
        assert asked.text_checked
        (call,) = asked.tool_calls
        assert (call.name, json.loads(call.arguments)["city"], len(call.id)) == ("weather", "Zürich", 9)
        function = {"name": call.name, "arguments": call.arguments}
        messages += [
            {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": call.id, "content": "rain"},
        ]
        last = client.chat(messages, model=SCRIPTED, tools=TOOLS, sampling=GREEDY)
        assert whole(await heard(last)) == [("content", 0, "", "It says: rain.")]
        assert last.usage.reason == "stop"
        assert last.tool_calls == ()


@pytest.mark.parametrize("at", [1, 14, 31, 60, 90, 120])
async def test_a_call_whose_host_dies_in_its_middle_is_ended_by_another_one(
    autojump_clock: MockClock, at: int
) -> None:
    async with stage(2, tokens_per_s=50.0) as (w, members, client):
        answer = client.chat("Weather?", model=SCRIPTED, tools=TOOLS, sampling=GREEDY)
        said: list[Said] = []
        async for each in answer.events():
            said.append(each)
            if len(answer.ids) >= at and members[0].host is not None and len(answer.bill) == 0:
                w.crash(members[0])
                at = 10_000
        assert whole(said) == EXPECTED
        assert bytes(answer.ids).decode() == CALL
        assert len(answer.bill) == 2
        assert sum(item.tokens_out for item in answer.bill) == len(answer.ids)
        assert answer.usage.reason == "tool_calls"
        assert answer.text_checked


async def test_where_one_call_is_asked_for_the_answer_ends_with_it(autojump_clock: MockClock) -> None:
    async with stage(script=lambda *_: f"{CALL}\n{CALL} and more", tokens_per_s=100.0) as (
        _,
        members,
        client,
    ):
        for several, calls in ((True, 2), (False, 1)):
            options = ChatOptions(
                model=SCRIPTED, tools=tools_of(TOOLS), sampling=GREEDY, parallel_tool_calls=several
            )
            answer = client.answer("Weather?", options)
            said = whole(await heard(answer))
            assert [each[2] for each in said if each[0] == "call"] == ["weather"] * calls
            assert answer.usage.reason == "tool_calls"
            assert said[-1][0] == ("content" if several else "call")
        assert members[0].host is not None
        assert members[0].host.models[0].new_engine().statistics().active == 0


async def test_the_content_alone_is_what_a_plain_reader_gets(autojump_clock: MockClock) -> None:
    async with stage() as (_, _, client):
        answer = client.chat("Weather?", model=SCRIPTED, tools=TOOLS, sampling=GREEDY)
        assert "".join([piece async for piece in answer]) == answer.text == "Let me see.\n"


async def test_a_reader_that_leaves_in_the_middle_of_a_call_frees_the_host(autojump_clock: MockClock) -> None:
    async with stage(tokens_per_s=50.0) as (_, members, client):
        async with client.chat("Weather?", model=SCRIPTED, tools=TOOLS, sampling=GREEDY) as answer:
            async for said in answer.events():
                if said.channel == "call":
                    break
        assert answer.tool_calls[0].name == "weather"
        assert members[0].host is not None
        await trio.sleep(1)
        assert members[0].host.models[0].new_engine().statistics().active == 0


async def test_without_tools_a_call_is_text(autojump_clock: MockClock) -> None:
    async with stage() as (_, _, client):
        for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
            answer = client.chat("Weather?", model=SCRIPTED, sampling=GREEDY, **options)
            assert whole(await heard(answer)) == [("content", 0, "", CALL)]
            assert answer.usage.reason == "stop"


async def test_a_schema_shapes_an_answer_across_a_host_that_dies(autojump_clock: MockClock) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "n": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["name", "n"],
    }
    form = ResponseFormat(kind="json_schema", body=json.dumps(schema))
    async with stage(2, script=None, tokens_per_s=50.0) as (w, members, client):
        answer = client.chat("Hello", model=SCRIPTED, response_format=form, sampling=GREEDY)
        async for _ in answer:
            if len(answer.ids) == 12:
                w.crash(members[0])
        assert answer.usage.reason == "stop"
        assert len(answer.bill) == 2
        alone = client.chat("Hello", model=SCRIPTED, response_format=form, sampling=GREEDY)
        assert "".join([piece async for piece in alone]) == answer.text  # as one host would have said it
        jsonschema.validate(json.loads(answer.text), schema)


def forced(name: str) -> dict[str, Any]:
    """What makes an answer fit a schema: as its form or, for ``call: …``, as the arguments of a tool."""
    kind, _, named = name.rpartition(": ")
    if kind:
        return {"tools": tools_of([{"name": "f", "parameters": SCHEMAS[named]}]), "tool_choice": "required"}
    return {"response_format": ResponseFormat(kind="json_schema", body=json.dumps(SCHEMAS[named]))}


async def killed_anywhere(names: Iterable[str], rng: random.Random) -> int:
    """Each answer is given by one host, and again by two of which the first dies in its middle.

    Returns how many died: where an answer is one token long none does.
    """
    died = 0
    async with stage(2, script=None, tokens_per_s=50.0) as (w, members, client):
        for name in names:
            options = ChatOptions(model=SCRIPTED, sampling=GREEDY, **forced(name))
            one = client.answer("Hello", options)
            expected = whole(await heard(one))
            answer = client.answer("Hello", options)
            at, said = rng.randrange(1, max(2, len(one.ids) - 1)), []
            async for each in answer.events():
                said.append(each)
                if len(answer.ids) >= at and not answer.bill:
                    w.crash(members[serving(answer, members)])
                    at = len(one.ids) + 1
            assert (whole(said), answer.ids) == (expected, one.ids), name
            assert answer.usage.reason == one.usage.reason
            assert sum(item.tokens_out for item in answer.bill) == len(one.ids)
            for each in answer.tool_calls:
                jsonschema.validate(json.loads(each.arguments), SCHEMAS[name.rpartition(": ")[2]])
            if answer.usage.reason == "stop":
                jsonschema.validate(json.loads(answer.text), SCHEMAS[name])
            lost = [member for member in members if member.scope.cancel_called]
            died += len(lost)
            assert len(answer.bill) == 1 + len(lost), name
            for member in lost:
                members[members.index(member)] = await w.add(
                    [scripted_host(tokens_per_s=50.0)], bootstrap=seeds(members)[:2]
                )
            if lost:
                await trio.sleep(5)
                await meet(client, members)
    return died


@pytest.mark.parametrize("name", ["nested", "call: weather"])
async def test_an_answer_that_is_forced_is_what_one_host_would_have_said(
    autojump_clock: MockClock, name: str
) -> None:
    assert await killed_anywhere([name], random.Random(name)) == 1


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
async def test_answers_of_all_forms_are_what_one_host_would_have_said(
    autojump_clock: MockClock, seed: int
) -> None:
    names = list(SCHEMAS)[seed::5]
    calls = [f"call: {name}" for name in names if SCHEMAS[name].get("type") == "object"]
    names += calls
    assert await killed_anywhere(names, random.Random(seed)) > len(names) // 2


async def test_logprobs_come_one_for_each_id(autojump_clock: MockClock) -> None:
    async with stage() as (_, _, client):
        answer = client.chat("Hi", model=SCRIPTED, sampling=replace(GREEDY, tokens_max=20), logprobs=2)
        await heard(answer)
        assert len(answer.logprobs) == len(answer.ids) == 20
        assert all(len(each.top) == 2 for each in answer.logprobs)


class Liar(ScriptedEngine):
    """Makes harmless ids, and tells another text."""

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        async with super().generate(request) as events:

            async def lies() -> AsyncGenerator[EngineEvent, None]:
                told = False
                async for event in events:
                    if isinstance(event, Tokens):
                        yield replace(event, text="" if told else CALL.replace("weather", "pay"))
                        told = True
                    else:
                        yield event

            yield lies()


async def test_harmless_ids_with_a_malicious_call_reach_nobody(autojump_clock: MockClock) -> None:
    pay = [{"name": "pay", "parameters": {"type": "object"}}]
    liar = replace(scripted_host(), new_engine=lambda: Liar(ScriptedConfig(script=lambda *_: "Hello there.")))
    async with world(limits=ONE_BY_ONE) as w:
        member = await w.add([liar])
        async with w.client(member.node.multiaddrs[:1]) as client:
            answer = client.chat("Hi", model=SCRIPTED, tools=pay, sampling=GREEDY)
            heard_so_far: list[Said] = []
            with pytest.raises(P2PNodeError) as error:  # noqa: PT012
                async for said in answer.events():
                    heard_so_far += [said]
            assert not [said for said in heard_so_far if said.channel == "call"]
            assert answer.tool_calls == ()
            fault = error.value if isinstance(error.value, HostFault) else error.value.__cause__
            assert "do not say" in str(fault or error.value)


@pytest.mark.parametrize("template", chat_templates.TEMPLATES)
@pytest.mark.parametrize("prompt", chat_templates.PROMPTS)
def test_no_family_puts_more_into_a_prompt_than_a_client_allows_for(template: str, prompt: str) -> None:
    chat, body = chat_templates.TEMPLATES[template], chat_templates.PROMPTS[prompt]
    said = Renderer(chat).render(body, "n0nce", letters_max=1 << 20)
    size = sum(len(each.text.encode()) for each in said.segments)
    overhead = template_overhead(chat.source)
    known = KnownModel(ModelId(bytes(32)), replace(SMALL, template_overhead=overhead))
    assert size <= known.input_max(body)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tools": [{"name": "a b"}]}, "letters, digits"),
        ({"tools": [{"description": "x"}]}, "each tool is"),
        ({"tools": TOOLS, "tool_choice": "name:rain"}, "none of the tools"),
        ({"tools": [{"name": "f", "parameters": {"a": ["x"] * 5000}}]}, "4096 values"),
        ({"response_format": ResponseFormat(kind="json_schema", body="[")}, "no JSON"),
        (
            {"response_format": ResponseFormat(kind="json_schema", body='{"type": "strng"}')},
            'the type "strng"',
        ),
        ({"response_format": ResponseFormat(kind="json_schema", body='{"not": {}}')}, "at # uses 'not'"),
        ({"tools": [{"name": "f", "parameters": {"items": {"type": 1}}}]}, "f at #/items has the type 1"),
    ],
)
async def test_what_no_host_would_take_is_said_before_one_is_looked_for(
    options: dict[str, Any], why: str
) -> None:
    async with world() as w, w.client([]) as client:
        with pytest.raises(ConfigError, match=why):
            client.chat("Hi", model=SCRIPTED, **options)
