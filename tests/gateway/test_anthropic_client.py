"""Anthropic's own Python client against hosts: what it asks is answered in the form that it reads."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import anthropic
import pytest

from p2pnode.gateway.access import SingleKey
from tests.client.test_tools import ARGUMENTS, script
from tests.gateway.support import LIMITS, Stage, in_thread, stage

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0}
ASKED: dict[str, Any] = {"model": "scripted", "max_tokens": 20, "extra_body": GREEDY}
TOOLS = [{"name": "weather", "input_schema": {"type": "object"}}]


def client_of(s: Stage, key: str = "none") -> Any:
    return anthropic.Anthropic(base_url=s.url, api_key=key, max_retries=0, timeout=30)


async def test_a_message_streams_as_it_comes_whole_and_tells_what_was_cached() -> None:
    async with stage(3) as s:

        def work() -> None:
            client = client_of(s)
            whole = client.messages.create(messages=HELLO, **ASKED)
            assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 20)
            with client.messages.stream(messages=HELLO, **ASKED) as stream:
                text = "".join(stream.text_stream)
                final = stream.get_final_message()
            assert text == whole.content[0].text == final.content[0].text
            usage = final.usage
            assert usage.input_tokens + usage.cache_read_input_tokens == whole.usage.input_tokens == 8
            assert usage.cache_read_input_tokens == 7
            counted = client.messages.count_tokens(messages=HELLO, model="scripted")
            assert counted.input_tokens == 8
            assert [each.id for each in client.models.list()] == ["scripted"]
            beta = client.beta.messages.create(messages=HELLO, **ASKED)  # to ?beta=true
            assert beta.content[0].text == text

        await in_thread(work)


async def test_a_message_names_the_stop_sequence_that_ended_it() -> None:
    async with stage(1) as s:

        def work() -> None:
            client = client_of(s)
            plain = client.messages.create(messages=HELLO, **ASKED).content[0].text
            asked = {**ASKED, "stop_sequences": ["never there", plain[10:14]]}
            whole = client.messages.create(messages=HELLO, **asked)
            with client.messages.stream(messages=HELLO, **asked) as stream:
                final = stream.get_final_message()
            for told in (whole, final):
                assert (told.stop_reason, told.stop_sequence) == ("stop_sequence", plain[10:14])
                assert told.content[0].text == plain[: plain.index(plain[10:14])]

        await in_thread(work)


@pytest.mark.long
async def test_a_tool_is_used_and_its_result_answered() -> None:
    async with stage(1, script=script) as s:

        def work() -> None:
            client = client_of(s)
            asked = {**ASKED, "max_tokens": 400, "tools": TOOLS}
            with client.messages.stream(messages=HELLO, **asked) as stream:
                final = stream.get_final_message()
            whole = client.messages.create(messages=HELLO, **asked)
            for told in (final, whole):
                assert [each.type for each in told.content] == ["text", "tool_use"]
                assert told.stop_reason == "tool_use"
                assert told.content[1].input == json.loads(ARGUMENTS)
            use = final.content[1]
            result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
            messages = [
                *HELLO,
                {"role": "assistant", "content": final.content},
                {"role": "user", "content": [result]},
            ]
            last = client.messages.create(messages=messages, **asked)
            assert last.content[0].text == "It says: rain."
            assert last.stop_reason == "end_turn"

        await in_thread(work)


@pytest.mark.long
async def test_errors_have_the_classes_that_the_client_knows() -> None:
    async with stage(1, ring=SingleKey("p2p-right", where="a file")) as s:

        def work() -> None:
            with pytest.raises(anthropic.AuthenticationError, match="a file"):
                client_of(s, "p2p-wrong").messages.create(messages=HELLO, **ASKED)
            messages = client_of(s, "p2p-right").messages
            with pytest.raises(anthropic.NotFoundError, match="claude"):
                messages.create(messages=HELLO, **{**ASKED, "model": "claude-x"})
            with pytest.raises(anthropic.BadRequestError, match="temperature"):
                messages.create(messages=HELLO, **{**ASKED, "extra_body": {"temperature": 1.5}})
            with pytest.raises(anthropic.APIStatusError) as failed:
                messages.create(messages=HELLO, **ASKED, extra_headers={"x-p2pnode-exclude": host})
            assert failed.value.status_code == 503

        host = str(s.members[0].node.peer_id)
        await in_thread(work)


@pytest.mark.long
async def test_pings_fill_the_silence_of_a_long_prompt() -> None:
    async with stage(1, limits=replace(LIMITS, gateway_idle_s=0.05), prefill_tokens_per_s=200.0) as s:
        said = [{"role": "user", "content": "word " * 20}]
        asked = {"model": "scripted", "max_tokens": 20, "messages": said, "stream": True}
        async with s.http() as http:
            answer = await http.post("/v1/messages?beta=true", json=asked)
        names = [each for each in answer.text.splitlines() if each.startswith("event: ")]
        assert names[:3] == ["event: message_start", "event: ping", "event: ping"]
        assert names[-1] == "event: message_stop"


@pytest.mark.long
async def test_a_changing_billing_block_costs_no_cache() -> None:
    async with stage(2) as s:

        def work() -> None:
            client = client_of(s)
            for number in range(3):
                billing = {"type": "text", "text": f"x-anthropic-billing-header: cch={number}"}
                agent = {"type": "text", "text": "You are an agent. " * 30}
                told = client.messages.create(messages=HELLO, system=[billing, agent], **ASKED).usage
                if number:
                    cached = told.cache_read_input_tokens
                    assert cached > 0.95 * (cached + told.input_tokens)

        await in_thread(work)
