"""What a prompt must be beyond its fields, with limits that cost little to check; and the seeds of calls."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import ChatMessage, Part, PromptBody, ResponseFormat, Tool, ToolCall
from p2pnode.protocols.inference.prompt_rules import (
    JSON_BYTES_MAX,
    JSON_DEPTH_MAX,
    JSON_NODES_MAX,
    call_seed,
    check_prompt,
    next_seed,
    seed_of,
)

LONG = json.dumps({"d": "x" * 40_000})
ASKED = PromptBody(messages=(ChatMessage.of("user", "hi"),), seed=bytes(16))


def nested(depth: int) -> str:
    """A schema of so many levels."""
    return '{"items":' * (depth - 1) + "{}" + "}" * (depth - 1)


def schema(text: str) -> PromptBody:
    return replace(ASKED, response_format=ResponseFormat(kind="json_schema", body=text))


def called(**fields: Any) -> PromptBody:
    call = ToolCall(id="1", name=fields.pop("name", "f"), arguments=fields.pop("arguments", "{}"))
    said = ChatMessage(role=fields.pop("role", "assistant"), tool_calls=(call,), **fields)
    return replace(ASKED, messages=(*ASKED.messages, said))


@pytest.mark.parametrize(
    "body",
    [
        ASKED,
        replace(ASKED, messages=(), embed=("a",)),
        replace(ASKED, tools=(Tool(name="f"), Tool(name="g", parameters=nested(32))), tool_choice="name:g"),
        replace(ASKED, tools=(Tool(name="f"),), tool_choice="required"),
        called(),
        schema(nested(JSON_DEPTH_MAX)),
        schema(json.dumps({"enum": list(range(JSON_NODES_MAX - 2))})),
    ],
)
def test_a_prompt_within_the_limits_passes(body: PromptBody) -> None:
    check_prompt(body)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (replace(ASKED, messages=()), "either messages or texts"),
        (replace(ASKED, embed=("a",)), "either messages or texts"),
        (replace(ASKED, tools=(Tool(name="f"), Tool(name="f"))), "one name"),
        (replace(ASKED, tools=(Tool(name="<f>"),)), "letters, digits"),
        (replace(ASKED, tool_choice="name:f"), "none of the tools"),
        (replace(ASKED, tool_choice="maybe"), "tool_choice is"),
        (replace(ASKED, tool_choice="required"), "no tools"),
        (called(role="user"), "only the assistant"),
        (called(tool_call_id="1"), "names the call"),
        (called(arguments="[]"), "an object of JSON"),
        (called(arguments="{"), "no JSON"),
        (called(arguments='{"a": NaN}'), "no JSON"),
        (called(arguments='{"a":' + nested(JSON_DEPTH_MAX) + "}"), "32 deep"),
        (called(name="a b"), "letters, digits"),
        (replace(ASKED, messages=(ChatMessage(role="tool", content=(Part(text="x"),)),)), "names the call"),
        (replace(ASKED, messages=(ChatMessage(role="user", content=(Part(data=b"x"),)),)), "carries data"),
        (replace(ASKED, response_format=ResponseFormat(kind="json_object", body="{}")), "has no body"),
        (schema("[]"), "it must be an object"),
        (schema(nested(JSON_DEPTH_MAX + 1)), "33 levels deep"),
        (schema(nested(500)), "500 levels deep"),
        (schema(nested(6500)), "deeper than 32"),
        (schema(json.dumps({"enum": list(range(JSON_NODES_MAX - 1))})), f"more than {JSON_NODES_MAX} values"),
        (
            replace(ASKED, tools=tuple(Tool(name=n, parameters=LONG) for n in "ab")),
            f"more than {JSON_BYTES_MAX} bytes",
        ),
    ],
)  # fmt: skip
def test_a_prompt_beyond_them_is_refused_with_the_reason(body: PromptBody, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        check_prompt(body)


def test_a_calls_seed_is_the_hash_of_the_prompts_and_of_where_the_call_begins() -> None:
    seed = bytes(range(16))
    assert call_seed(seed, 5) == int.from_bytes(
        keccak256(b"p2pnode/seed/1" + seed + b"\0\0\0\x05")[-4:], "big"
    )
    assert len({call_seed(seed, start) for start in range(100)}) == 100


def test_seeds_of_integers_and_the_next_ones_have_their_length_and_differ() -> None:
    seeds = [seed_of(0), seed_of(1), seed_of(-1), next_seed(seed_of(0)), next_seed(seed_of(1))]
    assert all(len(seed) == 16 for seed in seeds)
    assert len(set(seeds)) == 5
