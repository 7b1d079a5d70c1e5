"""Anthropic's messages: what a request means, and the frames of a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pnode.gateway.faults import Fault, FaultError
from p2pnode.gateway.fields import Fields
from p2pnode.gateway.messages import error_object, read_messages
from p2pnode.gateway.turn import Ended, Stamp, Tally, Turn
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.messages import ToolCall

STAMP = Stamp(id="1", created=2)
USER = {"role": "user", "content": "hi"}


def turn(**fields: Any) -> Turn:
    return read_messages(Fields({"model": "m", "max_tokens": 9, "messages": [USER], **fields}), STAMP).turns[
        0
    ]


def test_a_conversation_with_tools_becomes_messages_of_the_wire() -> None:
    read = turn(
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "I "},
                    {"type": "text", "text": "look"},
                    {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "and?"},
                    {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "42"}]},
                    {"type": "tool_result", "tool_use_id": "b", "is_error": True},
                ],
            },
        ],
        tools=[
            {"name": "f", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "w"},
        ],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
    )
    told = [(each.role, each.text, each.tool_call_id) for each in read.messages]
    assert told == [
        ("system", "be brief", None),
        ("user", "hi", None),
        ("assistant", "I look", None),
        ("tool", "42", "a"),
        ("tool", "error", "b"),
        ("user", "and?", None),
    ]
    assert read.messages[2].tool_calls == (ToolCall(id="a", name="f", arguments='{"x": 1}'),)
    assert ([each.name for each in read.tools], read.tool_choice) == (["f"], "required")
    assert not read.parallel_tool_calls
    assert (read.sampling.tokens_max, read.sampling.stop) == (9, ("END",))


def test_a_billing_block_that_changes_leaves_the_prompt_as_it_is() -> None:
    def system(number: int) -> list[dict[str, str]]:
        return [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={number};"},
            {"type": "text", "text": "You are an agent."},
        ]

    assert turn(system=system(1)).messages == turn(system=system(2)).messages
    assert turn(system=system(1)).messages[0].text == "You are an agent."


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [{"type": "thinking"}]}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]},
            "messages[0].content[0].source.type",
        ),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 2}, "temperature"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ],
)
def test_what_is_wrong_is_refused_by_the_name_of_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(FaultError) as refused:
        turn(**fields)
    assert refused.value.fault.param == param


def frames_of(data: bytes) -> list[dict[str, Any]]:
    """The data of the events, whose names are those of their types."""
    found = []
    for each in data.decode().split("\n\n")[:-1]:
        name, _, line = each.partition("\n")
        told = json.loads(line.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        found.append(told)
    return found


@pytest.mark.parametrize("thinking", [True, False])
def test_blocks_begin_and_end_in_order_and_thoughts_only_where_they_are_asked_for(thinking: bool) -> None:
    fields = {"messages": [USER], "stream": True, "thinking": {"type": "enabled" if thinking else "disabled"}}
    writer = read_messages(Fields(fields), STAMP).writer
    ended = Ended(text="", finish="tool_calls", tally=Tally(tokens_in=10, reused=8, tokens_out=3))
    frames = frames_of(
        b"".join(
            [
                writer.begin(),
                writer.idle(),
                writer.said(0, Said("reasoning", "hm"), "", ()),
                writer.said(0, Said("content", "I"), "", ()),
                writer.said(0, Said("content", " look"), "", ()),
                writer.said(0, Said("call", "", 0, "f"), "id1", ()),
                writer.said(0, Said("call", "{}", 0), "", ()),
                writer.said(0, Said("call", "", 1, "g"), "id2", ()),
                writer.ended(0, ended),
                writer.finish([ended]),
            ]
        )
    )
    blocks = [each["content_block"] for each in frames if each["type"] == "content_block_start"]
    assert [each["type"] for each in blocks] == ["thinking"] * thinking + ["text", "tool_use", "tool_use"]
    assert [each.get("id") for each in blocks if each["type"] == "tool_use"] == ["id1", "id2"]
    stops = [each["index"] for each in frames if each["type"] == "content_block_stop"]
    assert stops == list(range(len(blocks)))
    assert [each["type"] for each in frames][-2:] == ["message_delta", "message_stop"]
    assert frames[1] == {"type": "ping"}
    assert frames[-2]["delta"]["stop_reason"] == "tool_use"
    usage = frames[-2]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (2, 8, 3)


@pytest.mark.parametrize("arguments", ['{"x": ', '{"x": NaN}', '{"x": 1e999}', "[1]", "5", "[" * 5000])
def test_a_call_that_was_cut_or_is_no_json_has_no_input(arguments: str) -> None:
    writer = read_messages(Fields({"messages": [USER]}), STAMP).writer
    cut = Ended(text="", calls=(ToolCall(id="a", name="f", arguments=arguments),), finish="length")
    told = writer.whole([cut])
    assert told["content"] == [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]
    assert told["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("ended", "reason", "stop"),
    [
        (Ended(text="a", stop="END"), "stop_sequence", "END"),
        (Ended(text="a"), "end_turn", None),
        (Ended(text="a", finish="length"), "max_tokens", None),
    ],
)
def test_an_answer_says_which_stop_sequence_ended_it(ended: Ended, reason: str, stop: str | None) -> None:
    writer = read_messages(Fields({"messages": [USER], "stop_sequences": ["END"]}), STAMP).writer
    told = writer.whole([ended])
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, stop)
    assert frames_of(writer.ended(0, ended))[-1]["delta"] == {"stop_reason": reason, "stop_sequence": stop}


def test_an_error_has_anthropics_shape() -> None:
    told = error_object(Fault(status=402, code="payment_required", message="fund it"))
    assert told["type"] == "error"
    assert (told["error"]["type"], told["error"]["message"]) == ("billing_error", "fund it")
