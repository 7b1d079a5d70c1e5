"""Requests that are wrong in any place lead to a fault with words, on each face; nothing else is raised."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.question import chat_messages, check_question
from p2pnode.errors import ConfigError
from p2pnode.gateway import chat, messages, responses
from p2pnode.gateway.faults import FaultError
from p2pnode.gateway.fields import Fields, read_object
from p2pnode.gateway.turn import Asked, Ended, Stamp, cache_key, routing_of
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.messages import PromptBody, ToolCall

STAMP = Stamp(id="1", created=2)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CHAT: dict[str, Any] = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "r"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "logit_bias": {"1": 2},
    "logprobs": True,
    "top_logprobs": 2,
    "n": 2,
    "seed": 1,
    "stop": ["x"],
    "temperature": 1,
    "max_tokens": 5,
    "stream": True,
    "stream_options": {"include_usage": True},
    "p2pnode": {"max_price": {"in": "1", "out": 2}, "max_cost": 0.5, "exclude": [], "min_reputation": 0.5},
}
COMPLETION: dict[str, Any] = {"prompt": ["a", "b"], "n": 2, "logprobs": 1, "stop": "x", "max_tokens": 3}
MESSAGES: dict[str, Any] = {
    "model": "scripted",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "tool_use", "id": "a", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "r"}]},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
            ],
        },
    ],
    "tools": [{"name": "f", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled"},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
}
RESPONSES: dict[str, Any] = {
    "model": "scripted",
    "instructions": "i",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "t"}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "r"}]},
        {"type": "reasoning", "summary": []},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}, {"type": "web_search"}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "metadata": {"a": "b"},
    "max_output_tokens": 9,
    "stream": True,
}
Reader = Callable[[Fields, Stamp], Asked]
FACES: list[tuple[Reader, dict[str, Any]]] = [
    (chat.read_chat, CHAT),
    (chat.read_completion, COMPLETION),
    (messages.read_messages, MESSAGES),
    (responses.read_response, RESPONSES),
]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e300, -(1 << 70), 1 << 70),
    *("", "x", "\ud800", "x" * 5000, "text", "{", "name:f"),
    *([], {}, [[]], [None], [{}], ["a"] * 300),
    *({"": None}, {"type": "function"}, {"type": ["x"]}, [{"type": {}}]),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, one in inner for each in places(one, (*path, key)))]


def spoiled(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same with one to three values that are odd, missing or doubled."""
    made = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(places(made)[1:] or [("x",)])
        inside: Any = made
        for key in path[:-1]:
            inside = inside[key]
        match rng.randrange(4):
            case 0:
                del inside[path[-1]]
            case 1 if isinstance(inside, list):
                inside += inside
            case _:
                inside[path[-1]] = copy.deepcopy(rng.choice(ODD))
    return made


def pass_through(read: Reader, value: dict[str, Any], rng: random.Random) -> bool:
    """Read it, check it as a client does, and write an answer to it; whether it was taken."""
    try:
        fields = read_object(json.dumps(value).encode())
        asked = read(fields, STAMP)
        routing = routing_of({}, fields)
        for turn in asked.turns:
            cache_key("k", turn, routing)
            options = ChatOptions(tools=turn.tools, tool_choice=turn.tool_choice)
            body = PromptBody(
                messages=chat_messages(turn.messages, None),
                tools=options.tools,
                tool_choice=options.tool_choice,
                response_format=turn.response_format,
                sampling=turn.sampling,
                seed=bytes(16),
                logprobs=turn.logprobs,
            )
            check_question(body)
    except (FaultError, ConfigError):
        return False
    ended = [Ended(text="t", calls=(ToolCall(id="a", name="f"),), finish="length")] * len(asked.turns)
    writer = asked.writer
    if rng.randrange(2):
        json.loads(chat.dumped(writer.whole(ended)))
    else:
        said = Said(rng.choice(["content", "reasoning", "call"]), "t", 0, "f")
        parts = [writer.begin(), writer.said(0, said, "a", ()), writer.idle(), writer.ended(0, ended[0])]
        assert b"".join([*parts, writer.finish(ended)])
        assert writer.failed(FaultError(503, "no_host", "x"))
    return True


def check(seed: int, count: int) -> None:
    """So many requests on each face."""
    rng = random.Random(seed)
    for read, template in FACES:
        assert pass_through(read, template, rng), read
        taken = sum(pass_through(read, spoiled(template, rng), rng) for _ in range(count))
        assert 0 < taken < count, read


def test_spoiled_requests_are_faults_or_answered() -> None:
    check(0, 150)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_ten_thousand_spoiled_requests_are_faults_or_answered(seed: int) -> None:
    check(seed, 625)
