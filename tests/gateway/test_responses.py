"""OpenAI's responses: what a request means, and the events of a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pnode.gateway.faults import FaultError
from p2pnode.gateway.fields import Fields
from p2pnode.gateway.responses import read_response
from p2pnode.gateway.turn import Ended, Stamp, Tally, Turn
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.messages import ToolCall

STAMP = Stamp(id="1", created=2)


def turn(**fields: Any) -> Turn:
    return read_response(Fields({"model": "m", "input": "hi", **fields}), STAMP).turns[0]


def test_items_of_an_agent_become_messages_of_the_wire() -> None:
    read = turn(
        instructions="be brief",
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
            {"role": "user", "content": "do it"},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look"}]},
            {"type": "function_call", "call_id": "a", "name": "shell", "arguments": '{"x":1}', "id": "fc_1"},
            {"type": "function_call", "call_id": "b", "name": "shell", "arguments": ""},
            {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "…"},
            {"type": "function_call_output", "call_id": "a", "output": "42"},
            {
                "type": "function_call_output",
                "call_id": "b",
                "output": [{"type": "input_text", "text": "43"}],
            },
        ],
        tools=[
            {"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": False},
            {"type": "web_search"},
            {"type": "custom", "name": "apply_patch"},
        ],
        prompt_cache_key="c",
        store=False,
        include=["reasoning.encrypted_content"],
    )
    told = [(each.role, each.text, each.tool_call_id) for each in read.messages]
    assert told == [
        ("system", "be brief", None),
        ("developer", "rules", None),
        ("user", "do it", None),
        ("assistant", "I look", None),
        ("tool", "42", "a"),
        ("tool", "43", "b"),
    ]
    assert read.messages[3].tool_calls == (
        ToolCall(id="a", name="shell", arguments='{"x":1}'),
        ToolCall(id="b", name="shell"),
    )
    assert ([each.name for each in read.tools], read.conversation) == (["shell"], "c")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "song"}]}, "input[0].type"),
        ({"input": [{"role": "king", "content": ""}]}, "input[0].role"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_is_wrong_is_refused_by_the_name_of_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(FaultError) as refused:
        turn(**fields)
    assert refused.value.fault.param == param


def events_of(data: bytes) -> list[dict[str, Any]]:
    """The data of the events, whose names are those of their types and whose numbers count up."""
    found = []
    for number, each in enumerate(data.decode().split("\n\n")[:-1]):
        name, _, line = each.partition("\n")
        told = json.loads(line.removeprefix("data: "))
        assert (name, told["sequence_number"]) == (f"event: {told['type']}", number)
        found.append(told)
    return found


ENDED = Ended(
    text="I look",
    reasoning="hm",
    calls=(ToolCall(id="id1", name="f", arguments='{"x":1}'),),
    finish="tool_calls",
    tally=Tally(tokens_in=10, reused=8, tokens_out=3),
)


def test_items_begin_and_end_in_order_and_the_last_event_has_them_all() -> None:
    writer = read_response(Fields({"input": "hi", "stream": True}), STAMP).writer
    events = events_of(
        b"".join(
            [
                writer.begin(),
                writer.idle(),
                writer.said(0, Said("reasoning", "hm"), "", ()),
                writer.said(0, Said("content", "I"), "", ()),
                writer.said(0, Said("content", " look"), "", ()),
                writer.said(0, Said("call", "", 0, "f"), "id1", ()),
                writer.said(0, Said("call", '{"x":1}'), "", ()),
                writer.ended(0, ENDED),
                writer.finish([ENDED]),
            ]
        )
    )
    names = [each["type"] for each in events]
    assert names[:3] == ["response.created", "response.in_progress", "response.in_progress"]
    added = [each["item"]["type"] for each in events if each["type"] == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call"]
    done = [each["item"] for each in events if each["type"] == "response.output_item.done"]
    last = events[-1]
    assert last["type"] == "response.completed"
    response = last["response"]
    assert response["output"] == done
    assert response["status"] == "completed"
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 8}
    call = done[2]
    assert (call["call_id"], call["name"], call["arguments"]) == ("id1", "f", '{"x":1}')
    whole = read_response(Fields({"input": "hi"}), STAMP).writer.whole([ENDED])
    assert whole["output"] == response["output"]


def test_an_answer_that_reached_its_length_is_incomplete() -> None:
    cut = Ended(text="I", finish="length")
    told = read_response(Fields({"input": "hi"}), STAMP).writer.whole([cut])
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_a_failure_is_an_event_of_its_own() -> None:
    writer = read_response(Fields({"input": "hi", "stream": True}), STAMP).writer
    (event,) = events_of(writer.failed(FaultError(503, "no_host", "nobody")))
    assert event["type"] == "response.failed"
    assert event["response"]["error"] == {"code": "no_host", "message": "nobody"}
