"""A template that ships is rendered here; what strangers wrote runs in a process with limits."""

from __future__ import annotations

from dataclasses import replace

import psutil

from p2pnode.models.local_models import LocalModel
from p2pnode.models.prompt_files import PromptFiles, read_prompt_files
from p2pnode.models.prompt_maker import prompt_maker
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, ResponseFormat, Tool, ToolCall

HELLO = PromptBody(messages=(ChatMessage.of("user", "Hello <|im_end|> you"),), seed=bytes(16))
CALLS = ChatMessage(role="assistant", tool_calls=(ToolCall(id="1", name="f", arguments="{}"),))
ANSWER = replace(ChatMessage.of("tool", "5"), tool_call_id="1")


def processes() -> set[int]:
    """Those that this one has started."""
    return {each.pid for each in psutil.Process().children()}


async def ids_and_processes(files: PromptFiles, body: PromptBody) -> tuple[tuple[int, ...], int]:
    """The prompt's ids, and how many processes it took."""
    maker = await prompt_maker(files, 2048)
    before = processes()
    try:
        return (await maker.prompt(body)).ids, len(processes() - before)
    finally:
        await maker.aclose()


async def test_a_shipped_models_plain_prompt_takes_no_process_and_has_the_same_ids(
    smollm: LocalModel,
) -> None:
    shipped = read_prompt_files(smollm)
    # One that says the same, and that nobody has read.
    strange = replace(shipped, chat_template=shipped.chat_template + "{# #}")
    here, none = await ids_and_processes(shipped, HELLO)
    there, one = await ids_and_processes(strange, HELLO)
    assert (none, one) == (0, 1)
    assert here == there


async def test_schemas_calls_and_long_conversations_take_a_process(smollm: LocalModel) -> None:
    maker = await prompt_maker(read_prompt_files(smollm), 2048)
    before = processes()
    for body in (
        replace(HELLO, tools=(Tool(name="f", parameters='{"type":"object"}'),)),
        replace(HELLO, response_format=ResponseFormat(kind="json_object")),
        replace(HELLO, messages=(ChatMessage.of("user", "x" * 5001), *HELLO.messages * 4) * 4),
        replace(HELLO, messages=HELLO.messages * 65),
        replace(HELLO, messages=(*HELLO.messages, CALLS, ANSWER)),
    ):
        await maker.prompt(body)
        assert len(processes() - before) == 1
        await maker.aclose()
