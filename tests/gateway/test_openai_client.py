"""OpenAI's own Python client against hosts: what it asks is answered in the form that it reads."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
import trio

from p2pnode.gateway.access import SingleKey
from p2pnode.models.manifest import scripted_model_id
from tests.client.test_tools import ARGUMENTS, TOOLS, script
from tests.gateway.support import Stage, in_thread, stage, until

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
GREEDY: dict[str, Any] = {"model": "scripted", "max_tokens": 20, "temperature": 0}


def client_of(s: Stage, key: str = "none") -> Any:
    return openai.OpenAI(base_url=f"{s.url}/v1", api_key=key, max_retries=0, timeout=30)


async def test_an_answer_streams_as_it_comes_whole_and_tells_what_was_cached() -> None:
    async with stage(3) as s:

        def work() -> None:
            client = client_of(s)
            chat = client.chat.completions
            whole = chat.create(messages=HELLO, **GREEDY)
            assert whole.choices[0].finish_reason == "length"
            assert whole.usage.completion_tokens == 20
            asked = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = list(chat.create(messages=HELLO, **GREEDY, **asked))
            text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
            assert text == whole.choices[0].message.content
            assert [each.usage for each in chunks[:-1]] == [None] * (len(chunks) - 1)
            usage = chunks[-1].usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (8, 20)
            assert usage.prompt_tokens_details.cached_tokens == 7  # the same host, with its cache
            assert usage.p2pnode == whole.usage.p2pnode
            assert usage.p2pnode["host"] in {str(each.node.peer_id) for each in s.members}

        await in_thread(work)
        await until(lambda: len(s.records) == 2, 5)
        assert [(each.status, each.outcome, each.tokens_out) for each in s.records] == [(200, "ok", 20)] * 2


@pytest.mark.long
async def test_several_choices_differ_and_a_seed_repeats_them() -> None:
    async with stage(3) as s:

        def work() -> None:
            chat = client_of(s).chat.completions
            asked = {"model": "scripted", "messages": HELLO, "max_tokens": 12, "n": 2, "seed": 7}
            one, two = (each.message.content for each in chat.create(**asked).choices)
            assert one != two
            texts = ["", ""]
            for chunk in chat.create(**asked, stream=True):
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
            assert texts == [one, two]
            assert (
                client_of(s)
                .completions.create(model="scripted", prompt="hello", max_tokens=12, seed=7)
                .choices[0]
                .text
                == one
            )

        await in_thread(work)


async def test_a_call_of_a_tool_streams_right_and_its_result_is_answered() -> None:
    async with stage(1, script=script) as s:

        def work() -> None:
            chat = client_of(s).chat.completions
            asked = {**GREEDY, "max_tokens": 400, "tools": TOOLS}
            deltas = [
                call
                for chunk in chat.create(messages=HELLO, stream=True, **asked)
                for call in chunk.choices[0].delta.tool_calls or ()
            ]
            assert {each.index for each in deltas} == {0}
            assert (deltas[0].type, deltas[0].function.name) == ("function", "weather")
            assert {(each.id, each.type, each.function.name) for each in deltas[1:]} == {(None, None, None)}
            assert "".join(each.function.arguments for each in deltas) == ARGUMENTS
            whole = chat.create(messages=HELLO, **asked).choices[0]
            assert whole.finish_reason == "tool_calls"
            (call,) = whole.message.tool_calls
            assert json.loads(call.function.arguments)["city"] == "Zürich"
            said = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
            result = {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "rain"}]}
            last = chat.create(messages=[*HELLO, said, result], **asked).choices[0]
            assert last.message.content == "It says: rain."
            assert last.finish_reason == "stop"

        await in_thread(work)


class Weather(pydantic.BaseModel):
    """What an answer is parsed into."""

    city: str
    days: int


@pytest.mark.long
async def test_an_answer_is_parsed_into_a_schema_and_log_probabilities_come_with_tokens() -> None:
    async with stage(1) as s:

        def work() -> None:
            client = client_of(s)
            found = client.chat.completions.parse(
                messages=HELLO, response_format=Weather, **{**GREEDY, "max_tokens": 500}
            )
            assert isinstance(found.choices[0].message.parsed, Weather)
            told = client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=2, **GREEDY)
            tokens = told.choices[0].logprobs.content
            assert "".join(each.token for each in tokens) == told.choices[0].message.content
            assert {len(each.top_logprobs) for each in tokens} == {2}
            streamed = [
                each.token
                for chunk in client.chat.completions.create(
                    messages=HELLO, logprobs=True, stream=True, **GREEDY
                )
                if chunk.choices[0].logprobs
                for each in chunk.choices[0].logprobs.content
            ]
            assert streamed == [each.token for each in tokens]

        await in_thread(work)


@pytest.mark.long
async def test_vectors_and_models_come_in_openais_form() -> None:
    async with stage(3) as s:

        def work() -> None:
            client = client_of(s)
            found = client.embeddings.create(model="scripted", input=["rain in Rome", "rain in Roma", "tax"])
            one, two, other = (each.embedding for each in found.data)
            assert _dot(one, two) > _dot(one, other)
            plain = client.embeddings.create(model="scripted", input="tax", encoding_format="float")
            assert plain.data[0].embedding == other
            (model,) = client.models.list().data
            assert (model.id, model.hosts, model.context_length) == ("scripted", 3, 2048)
            assert client.models.retrieve("scripted").id == "scripted"

        await in_thread(work)


def _dot(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))


@pytest.mark.long
async def test_errors_have_the_classes_that_the_client_knows() -> None:
    async with stage(1, ring=SingleKey("p2p-right", where="a file")) as s:

        def work() -> None:
            wrong = client_of(s, "p2p-wrong").chat.completions
            with pytest.raises(openai.AuthenticationError, match="a file"):
                wrong.create(messages=HELLO, **GREEDY)
            chat = client_of(s, "p2p-right").chat.completions
            with pytest.raises(openai.NotFoundError, match="no model is named 'gpt-4'"):
                chat.create(messages=HELLO, model="gpt-4")
            with pytest.raises(openai.BadRequestError, match="temperature: is from 0 to 5") as refused:
                chat.create(messages=HELLO, model="scripted", temperature=9)
            assert refused.value.param == "temperature"
            with pytest.raises(openai.BadRequestError, match="larger context") as refused:
                chat.create(messages=[{"role": "user", "content": "x" * 3000}], model="scripted")
            assert refused.value.code == "context_length_exceeded"
            with pytest.raises(openai.APIStatusError, match="you said never to ask it") as failed:
                chat.create(messages=HELLO, **GREEDY, extra_body={"p2pnode": {"exclude": [host]}})
            assert failed.value.status_code == 503
            assert failed.value.response.headers["retry-after"]

        host = str(s.members[0].node.peer_id)
        await in_thread(work)
        assert "p2p-right" not in str(s.records)


@pytest.mark.long
async def test_an_answer_goes_on_at_another_host_when_its_own_dies() -> None:
    async with stage(2, tokens_per_s=100.0) as s:
        begun = trio.Event()
        token = trio.lowlevel.current_trio_token()
        texts: list[str] = []

        def work() -> None:
            asked = {**GREEDY, "max_tokens": 120}
            for chunk in client_of(s).chat.completions.create(messages=HELLO, stream=True, **asked):
                texts.append(chunk.choices[0].delta.content or "")
                if len(texts) == 10:
                    token.run_sync_soon(begun.set)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, work)
            await begun.wait()
            host = s.client.pool.peers(scripted_model_id())[0]
            s.world.crash(next(each for each in s.members if each.node.peer_id == host))
        assert len("".join(texts)) == 120
        await until(lambda: bool(s.records), 5)
        assert s.records[0].tokens_out == 120


@pytest.mark.long
async def test_a_response_streams_as_it_comes_whole() -> None:
    async with stage(1, script=script) as s:

        def work() -> None:
            client = client_of(s)
            tools = [
                {"type": "function", "name": "weather", "parameters": {"type": "object"}},
                {"type": "web_search"},
            ]
            asked = {"model": "scripted", "input": "hello", "max_output_tokens": 400, "tools": tools}
            whole = client.responses.create(**asked)
            assert [each.type for each in whole.output] == ["message", "function_call"]
            assert whole.output[1].arguments == ARGUMENTS
            with client.responses.stream(**asked) as stream:
                kinds = [each.type for each in stream]
                final = stream.get_final_response()
            assert kinds[-1] == "response.completed"
            assert final.output_text == whole.output_text == "Let me see.\n"
            assert final.output[1].arguments == ARGUMENTS
            call = final.output[1]
            result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
            history = [{"role": "user", "content": "hello"}, call.model_dump(exclude_none=True), result]
            last = client.responses.create(**{**asked, "input": history})
            assert last.output_text == "It says: rain."
            with pytest.raises(openai.BadRequestError, match="keeps no state"):
                client.responses.create(**asked, previous_response_id=whole.id)
            parsed = client_of(s).models.list()
            assert parsed.models[0]["slug"] == "scripted"

        await in_thread(work)
