"""Chat completions: what a request means, and what is refused with words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pnode.gateway.chat import read_chat, read_completion
from p2pnode.gateway.faults import FaultError
from p2pnode.gateway.fields import Fields
from p2pnode.gateway.turn import Ended, Served, Stamp, Tally, Turn
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.messages import LogitBias, ResponseFormat, ToolCall

STAMP = Stamp(id="1", created=2)
PICTURE = {"type": "image_url", "image_url": {"url": "http://x"}}
USER = {"role": "user", "content": "hi"}


def turn(**fields: Any) -> Turn:
    return read_chat(Fields({"model": "m", "messages": [USER], **fields}), STAMP).turns[0]


def test_all_that_the_wire_has_is_read() -> None:
    read = turn(
        max_completion_tokens=7,
        max_tokens=9,
        stop="END",
        seed=3,
        temperature=1,
        presence_penalty=-1,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=2,
        tool_choice={"type": "function", "function": {"name": "f"}},
        tools=[{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}],
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        prompt_cache_key="c",
        user="ignored",
    )
    sampling = read.sampling
    assert (sampling.tokens_max, sampling.stop, sampling.temperature) == (7, ("END",), 1.0)
    assert (sampling.presence_penalty, sampling.logit_bias) == (-1.0, (LogitBias(id=5, bias=-100.0),))
    assert (read.logprobs, read.tool_choice, [each.name for each in read.tools]) == (2, "name:f", ["f"])
    assert read.response_format == ResponseFormat(kind="json_schema", body='{"type": "object"}')
    assert read.conversation == "c"
    assert read.seed == turn(seed=3).seed != turn(seed=4).seed
    assert turn().seed is None


def test_messages_come_in_every_form_that_programs_send() -> None:
    read = turn(
        messages=[
            {
                "role": "developer",
                "content": [{"type": "text", "text": "be"}, {"type": "text", "text": " brief"}],
            },
            USER,
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": 0}
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "42"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        ]
    )
    assert [each.role for each in read.messages] == ["developer", "user", "assistant", "tool", "assistant"]
    assert [each.text for each in read.messages] == ["be brief", "hi", "", "42", "no"]
    assert read.messages[2].tool_calls == (ToolCall(id="a", name="f"),)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ({"messages": [USER, {"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0]"),
        ({"n": 9}, "n"),
        ({"functions": []}, "functions"),
        ({"audio": {}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"4294967296": 1}}, "logit_bias.4294967296"),
        ({"logit_bias": {"00000000000" + "9" * 20: 1}}, "logit_bias.00000000000" + "9" * 20),
        ({"logit_bias": {"²": 1}}, "logit_bias.²"),
        ({"temperature": 10**400}, "temperature"),
        ({"model": "x" * 257}, "model"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"seed": "x"}, "seed"),
    ],
)  # fmt: skip
def test_what_no_host_can_do_is_refused_by_the_name_of_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(FaultError) as refused:
        turn(**fields)
    assert (refused.value.fault.status, refused.value.fault.param) == (400, param)


def test_a_stream_names_the_role_first_a_call_once_and_thoughts_by_both_names() -> None:
    asked = read_chat(
        Fields({"messages": [USER], "stream": True, "stream_options": {"include_usage": True}}), STAMP
    )
    writer = asked.writer
    ended = Ended(
        text="",
        finish="tool_calls",
        tally=Tally(tokens_in=5, reused=4, tokens_out=3),
        served=Served(host="h"),
    )
    frames = b"".join(
        [
            writer.begin(),
            writer.said(0, Said("reasoning", "hm"), "", ()),
            writer.said(0, Said("call", "", 0, "f"), "id1", ()),
            writer.said(0, Said("call", "{}"), "", ()),
            writer.idle(),
            writer.ended(0, ended),
            writer.finish([ended]),
        ]
    )
    lines = [each for each in frames.decode().split("\n\n") if each]
    assert lines[4].startswith(":")
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(each[6:]) for each in lines if each.startswith("data")]
    deltas = [each["choices"][0]["delta"] for each in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"reasoning_content": "hm", "reasoning": "hm"}
    assert deltas[2]["tool_calls"] == [
        {"index": 0, "id": "id1", "type": "function", "function": {"name": "f", "arguments": ""}}
    ]
    assert deltas[3]["tool_calls"] == [{"index": 0, "function": {"arguments": "{}"}}]
    assert [each["choices"][0]["finish_reason"] for each in chunks[:-1]] == [None] * 4 + ["tool_calls"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


def test_completions_answer_each_prompt_n_times() -> None:
    fields = {"prompt": ["a", "b"], "n": 2, "logprobs": 1}
    asked = read_completion(Fields(fields), STAMP)
    assert [each.messages[0].text for each in asked.turns] == ["a", "a", "b", "b"]
    for wrong in ({"prompt": [[1, 2]]}, {"prompt": ""}, {"suffix": "x"}, {"best_of": 2}, {"echo": True}):
        with pytest.raises(FaultError):
            read_completion(Fields({**fields, **wrong}), STAMP)
