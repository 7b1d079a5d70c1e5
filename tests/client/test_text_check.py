"""A client that has the vocabulary takes no text, and no call of a tool, that the ids do not say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pnode.client.text_check import TextCheck
from p2pnode.errors import HostFault
from p2pnode.models.answer import AnswerPieces, reader_of
from p2pnode.models.scripted import VOCABULARY
from p2pnode.models.text import TextAssembler
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, Quote, SamplingParams, Tokens, Tool

BODY = PromptBody(messages=(ChatMessage.of("user", "hi"),), seed=bytes(16), tools=(Tool(name="pay"),))
QUOTE = Quote(turn=1, tokens_in=1, prompt_hash=bytes(32), format="hermes/1", reasons=True)
ANSWER = '<think>hm</think>Grüße <tool_call>{"name": "pay", "arguments": {"to": "ü", "n": 1}}</tool_call> bye'


def frame(ids: tuple[int, ...] = (), text: str = "", **more: Any) -> Tokens:
    return Tokens(turn=1, index=0, ids=ids, text=text, **more)


def frames(answer: str, step: int, body: PromptBody = BODY) -> list[Tokens]:
    """What an honest host sends, so many ids at a time."""
    text = TextAssembler(VOCABULARY.piece, body.sampling.stop)
    pieces = AnswerPieces(
        reader_of(QUOTE.format, ["pay"], reasons=True, thinking=False), has=body.text_bytes or 0
    )
    before = pieces.feed(text.feed(body.prefix).text)
    made = [frame(text=each.text, channel=each.channel, call=each.call, name=each.name) for each in before]
    ids = tuple(answer.encode())[len(body.prefix) :]
    for at in range(0, len(ids), step):
        said = pieces.feed(text.feed(ids[at : at + step]).text)
        made.append(frame(ids[at : at + step]))
        made += [frame(text=each.text, channel=each.channel, call=each.call, name=each.name) for each in said]
    rest = pieces.feed(text.finish(complete=True).text) + pieces.finish(whole=True)
    return made + [
        frame(text=each.text, channel=each.channel, call=each.call, name=each.name) for each in rest
    ]


@pytest.mark.parametrize("step", [1, 3, 16, 200])
def test_what_an_honest_host_sends_passes(step: int) -> None:
    check = TextCheck(VOCABULARY, BODY, QUOTE)
    for each in frames(ANSWER, step):
        check.take(each)
    check.finish("stop")


@pytest.mark.parametrize("cut", [3, 20, 40, 70, 80])
def test_the_rest_of_an_answer_passes_from_where_the_client_stands(cut: int) -> None:
    prefix = tuple(ANSWER.encode()[:cut])
    for has in (None, 0, 2, 9):
        body = replace(BODY, prefix=prefix, text_bytes=has)
        sent = frames(ANSWER, 5, body if has is not None else replace(body, text_bytes=_certain(prefix)))
        check = TextCheck(VOCABULARY, body, QUOTE)
        for each in sent:
            check.take(each)
        check.finish("stop")


def _certain(prefix: tuple[int, ...]) -> int:
    """Bytes of text and names that follow from ``prefix`` alone."""
    pieces = AnswerPieces(reader_of(QUOTE.format, ["pay"], reasons=True, thinking=False))
    text = TextAssembler(VOCABULARY.piece).feed(prefix).text
    return sum(len((each.name + each.text).encode()) for each in pieces.feed(text))


@pytest.mark.parametrize(
    "lie",
    [
        frame(tuple(b"hello"), "hello you"),
        frame(tuple(b"hello"), "hullo"),
        frame(tuple(b"hello"), "hello", channel="reasoning"),
        frame(tuple(b"hello"), '{"to": "thief"}', channel="call", name="pay"),
        frame((), "", channel="call", name="pay"),
        frame(tuple(b'<tool_call>{"name": "pay", "arguments": {"to"'), '{"do"', channel="call", name="pay"),
    ],
)
def test_harmless_ids_with_another_text_or_a_call_are_a_fault(lie: Tokens) -> None:
    check = TextCheck(VOCABULARY, BODY, QUOTE)
    with pytest.raises(HostFault, match="do not say"):  # noqa: PT012 - some show at the end of the turn only
        check.take(lie)
        check.finish("stop")


def test_a_call_that_no_id_says_is_noticed_before_the_turn_ends() -> None:
    check = TextCheck(VOCABULARY, BODY, QUOTE)
    with pytest.raises(HostFault, match="a call of a tool"):
        check.take(frame((), "{}", channel="call", name="pay"))


def test_text_after_a_stop_string_is_a_lie_and_text_before_it_none() -> None:
    body = replace(BODY, sampling=SamplingParams(stop=("\n",)))
    check = TextCheck(VOCABULARY, body, QUOTE)
    check.take(frame(tuple(b"hello"), "hello"))
    check.finish("stop")
    with pytest.raises(HostFault):  # noqa: PT012
        check.take(frame((), "more"))
        check.finish("stop")


def test_an_unknown_format_is_a_fault() -> None:
    with pytest.raises(HostFault, match="not known"):
        TextCheck(VOCABULARY, BODY, replace(QUOTE, format="hermes/99"))
