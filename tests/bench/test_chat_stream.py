"""A chat stream as the bench reads it, from any server: here the echo that it compares with."""

from __future__ import annotations

import pytest

from p2pnode.bench.chat_stream import ChatStream, chat, chat_request
from p2pnode.bench.processes import child
from p2pnode.errors import LocalError
from p2pnode.models.child.http import ChildHttp

MESSAGES = [{"role": "user", "content": "a lighthouse"}]


def delta(text: str | None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def test_the_first_text_counts_and_neither_a_role_nor_the_end() -> None:
    stream = ChatStream(asked_at=1.0)
    for now, frame in ((2.0, delta(None)), (3.0, delta("Once")), (5.0, delta(" upon")), (7.0, delta(""))):
        stream.take(frame, now)
    assert (stream.text, stream.first_token_s, stream.last_at) == ("Once upon", 2.0, 5.0)


def test_tokens_are_those_that_the_server_counted() -> None:
    stream = ChatStream(asked_at=0.0)
    details = {"cached_tokens": 90}
    usage = {"completion_tokens": 7, "prompt_tokens": 100, "prompt_tokens_details": details}
    stream.take({"choices": [], "usage": usage}, 1.0)
    stream.take(delta("!") | {"usage": None}, 2.0)
    assert (stream.tokens, stream.tokens_in, stream.cached) == (7, 100, 90)


async def test_the_echo_answers_with_what_it_was_asked_and_a_server_that_is_gone_is_told() -> None:
    async with child("echo_process", {}) as (_, told):
        http = ChildHttp(told["port"], "none")
        assert (await chat(http, chat_request(MESSAGES, "echo", 2))).text == "a lighthouse"
    with pytest.raises(LocalError, match="gave no whole answer"):
        await chat(http, chat_request(MESSAGES, "echo", 2))
