"""Prompts that would cost a host more than they pay: each is refused, and an honest client never notices."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock

from p2pnode.host.unpaid_work import ORIGIN_BURST, ORIGIN_PER_S, PAYER_BURST, CompileTurns, UnpaidWork
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.manifest import scripted_model_id
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.inference.messages import (
    CODEC,
    READ_CREDIT,
    Accept,
    Ack,
    Cancel,
    ChatMessage,
    Close,
    Credit,
    Done,
    Error,
    Open,
    Part,
    PromptBody,
    Quote,
    ResponseFormat,
    SamplingParams,
    Tokens,
    Tool,
)
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.wire import encode
from p2pnode.shares import Origin
from tests.host.support import attack, attacker, frame, honest_answer
from tests.node.world import Member, scripted_host, world

OPEN = Open(model=scripted_model_id(), salt=bytes(32), holder=bytes(16))
AT_ONCE = 4
"""Turns of one session: as many as the scripted engine has slots."""
ASKED = PromptBody(
    messages=(ChatMessage.of("user", "hi"),), sampling=SamplingParams(tokens_max=8), seed=bytes(16)
)


def _deep(depth: int) -> str:
    return '{"items":' * (depth - 1) + "{}" + "}" * (depth - 1)


def _schema(body: str) -> bytes:
    return encode(replace(ASKED, response_format=ResponseFormat(kind="json_schema", body=body)))


def _exploding() -> str:
    """Seven levels of objects that begin alike: 128 ways at once."""
    schema: Any = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    for _ in range(7):
        inner = {"type": "object", "properties": {"x": {"$ref": "#/$defs/last"}}, "required": ["x"]}
        schema = {
            "anyOf": [{**inner, "properties": {"x": schema}}, {**inner, "properties": {"x": schema, "y": {}}}]
        }
    return json.dumps(schema)


def _raw(**fields: Any) -> bytes:
    """The bytes of a prompt with fields that no client of ours could send."""
    body = msgpack.unpackb(encode(ASKED))
    body["sampling"] |= fields.pop("sampling", {})
    packed: bytes = msgpack.packb(body | fields)
    return packed


ATTACKS: dict[str, tuple[bytes, str]] = {
    "a schema of depth 500": (_schema(_deep(500)), "500 levels deep"),
    "a tool's schema of 60 KB": (
        encode(replace(ASKED, tools=(Tool(name="f", parameters=json.dumps({"enum": list(range(10_000))})),))),
        "4096 values",
    ),
    "two schemas that are too long together": (
        encode(
            replace(
                ASKED,
                tools=tuple(Tool(name=n, parameters=json.dumps({"d": "x" * 9_000})) for n in "abcdefgh"),
            )
        ),
        "65536 bytes",
    ),
    "a grammar that explodes": (_schema(_exploding()), "begin alike"),
    "a schema that refers to itself": (_schema('{"$ref": "#"}'), "refers to itself"),
    "a raw grammar": (
        encode(
            replace(ASKED, response_format=ResponseFormat(kind="grammar", body='root ::= root "x" | "y"'))
        ),
        "no grammar",
    ),
    "logit_bias of the whole vocabulary": (
        _raw(sampling={"logit_bias": [{"id": n, "bias": -100.0} for n in range(3000)]}),
        "logit_bias",
    ),
    "logit_bias beyond the vocabulary": (
        _raw(sampling={"logit_bias": [{"id": 1 << 30, "bias": 1.0}]}),
        "logit_bias",
    ),
    "a temperature of no number": (_raw(sampling={"temperature": float("nan")}), "temperature"),
    "an image": (
        encode(
            replace(ASKED, messages=(ChatMessage(role="user", content=(Part(kind="image", data=b"x"),)),))
        ),
        "reads none",
    ),
    "neither messages nor texts": (_raw(messages=[]), "either messages or texts"),
    "a seed that is too short": (_raw(seed=b"x"), "seed"),
    "a role of nobody": (_raw(messages=[{"role": "wizard", "content": []}]), "role"),
}


class _CountingEngine(ScriptedEngine):
    """Counts how often a prompt is rendered, and how often one grows."""

    def __init__(self, config: ScriptedConfig) -> None:
        super().__init__(config)
        self.rendered = self.grown = 0

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        self.rendered += 1
        return await super().prompt(body)

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        self.grown += 1
        return await super().extend(prompt, ids)


@asynccontextmanager
async def _session(world_: Any, host: Member) -> AsyncIterator[tuple[Any, MessageChannel]]:
    async with attacker(world_, host) as evil:
        stream = await attack(evil, host, frame(OPEN))
        channel = MessageChannel(stream, CODEC)
        assert isinstance(await _next(channel), Accept)
        yield evil, channel
        await stream.reset()


async def _next(channel: MessageChannel) -> Any:
    with trio.fail_after(60):
        return await channel.receive()


async def _answer(channel: MessageChannel, turn: int, body: bytes) -> list[Any]:
    """All that the host says to a prompt, up to its answer."""
    await channel.send(prompt_parts(turn, body))
    said: list[Any] = []
    while not said or type(said[-1]).__name__ not in ("Done", "Error"):
        said.append(await _next(channel))
    return said


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_prompt_that_explodes_costs_its_sender_an_error_and_the_host_nothing(
    name: str, autojump_clock: MockClock
) -> None:
    body, why = ATTACKS[name]
    async with world() as w:
        host = await w.add([replace(scripted_host(n_ctx=1 << 15), n_ctx=1 << 15)])
        assert host.host is not None
        async with w.client(host.node.multiaddrs[:1]) as client, _session(w, host) as (evil, channel):
            said = await _answer(channel, 1, body)
            error = said[-1]
            assert isinstance(error, Error)
            assert (error.code, error.turn) == ("bad_request", 1)
            assert why in error.detail
            assert {type(each).__name__ for each in said[:-1]} <= {"PromptReceived", "Quote"}
            assert host.host.models[0].new_engine().statistics().tokens_out == 0
            assert host.node.faults.count(evil.peer_id, trio.current_time()) == 0
            # The session goes on, and so does everybody else's.
            assert type((await _answer(channel, 2, encode(ASKED)))[-1]).__name__ == "Done"
            await honest_answer(client)


async def test_who_has_prompts_counted_for_nothing_is_let_wait_and_others_are_not(
    autojump_clock: MockClock,
) -> None:
    body, _ = ATTACKS["a schema that refers to itself"]
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client, _session(w, host) as (_, channel):
            codes = [(await _answer(channel, turn, body))[-1] for turn in range(1, ORIGIN_BURST + 300)]
            told = [each.code for each in codes]
            limited = told.index("rate_limited")
            assert limited >= ORIGIN_BURST
            assert codes[limited].retry_after_s == pytest.approx(1 / ORIGIN_PER_S, abs=0.2)
            assert told.count("bad_request") <= ORIGIN_BURST + ORIGIN_PER_S * 30
            await honest_answer(client)
            await trio.sleep(2)
            assert (await _answer(channel, ORIGIN_BURST + 300, body))[-1].code == "bad_request"
            await channel.send([Close()])


async def test_who_has_prompts_counted_and_cancels_them_is_let_wait_in_a_free_session_too(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host(prefill_tokens_per_s=1.0)])
        async with _session(w, host) as (_, channel):
            codes: list[str] = []
            for first in range(1, 2 * ORIGIN_BURST, AT_ONCE):
                turns = range(first, first + AT_ONCE)
                for turn in turns:
                    await channel.send(prompt_parts(turn, encode(ASKED)))
                ended = 0
                while ended < AT_ONCE:
                    message = await _next(channel)
                    ended += isinstance(message, Done | Error)
                    codes += [message.code] if isinstance(message, Error) else []
                    if isinstance(message, Quote):
                        await channel.send([Cancel(turn=message.turn)])
            assert set(codes) == {"rate_limited"}
            await channel.send([Close()])


async def test_the_prompts_of_one_wait_for_one_another_and_not_those_of_others(
    autojump_clock: MockClock,
) -> None:
    turns, compiler, done = CompileTurns(), trio.Lock(), list[str]()

    async def compiled(name: str) -> None:
        async with turns.turn_of(Origin(name, name)), compiler:
            await trio.sleep(1)
        done.append(name)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(compiled, "stranger")
        await trio.sleep(0.5)
        nursery.start_soon(compiled, "honest")
        with trio.move_on_after(0.1) as gives_up:
            await compiled("stranger")
        assert gives_up.cancelled_caught
    assert done.index("honest") <= 2  # after the one that is compiled, and at most one that waits
    assert done.count("stranger") == 20


def test_a_count_that_leads_to_an_answer_costs_no_share() -> None:
    work, one, payer, other = UnpaidWork(), Origin("a", "a"), Origin("payer/1", "payer/1"), Origin("b", "b")
    for _ in range(10 * ORIGIN_BURST):
        assert work.begin(one, payer, 0.0) == 0
        work.paid(one, payer)
    for _ in range(PAYER_BURST):
        assert work.begin(one, payer, 0.0) == 0
    assert work.begin(one, payer, 0.0) > 0
    assert work.begin(other, payer, 0.0) > 0  # from wherever it asks
    assert work.begin(one, None, 0.0) == 0  # others of its origin
    assert work.begin(other, None, 0.0) == 0


GRUDGING = {
    "pseudo-words": PromptBody(
        messages=(ChatMessage.of("user", "hi"),),
        sampling=SamplingParams(tokens_max=500, temperature=0),
        seed=bytes(16),
    ),
    "an answer of a schema": PromptBody(
        messages=(ChatMessage.of("user", "hi"),),
        sampling=SamplingParams(tokens_max=500, temperature=0, stop=("never said",)),
        response_format=ResponseFormat(
            kind="json_schema",
            body='{"type":"object","properties":{"a":{"pattern":"^[a-z]{99}[0-9]{99}$"},'
            '"b":{"pattern":"^[a-z]{99}$"}},"required":["a","b"]}',
        ),
        seed=bytes(16),
    ),
}


async def _read(channel: MessageChannel, body: PromptBody, *, grudging: bool) -> tuple[list[int], str]:
    """The ids and the text of an answer. ``grudging``: credit comes only when the host can do no more."""
    await channel.send(prompt_parts(1, encode(body)))
    ids: list[int] = []
    text = ""
    while True:
        message = None
        with trio.move_on_after(1 if grudging else 60):
            message = await channel.receive()
        match message:
            case Tokens():
                ids += message.ids
                text += message.text
            case Done():
                assert message.reason in ("stop", "length")
                return ids, text
            case Error():
                raise AssertionError(message.detail)
            case _:
                pass
        if message is None or (ids and not grudging):
            await channel.send([Ack(seq=len(ids)), Credit(turn=1, upto=len(ids) + READ_CREDIT)])


@pytest.mark.parametrize("name", GRUDGING)
async def test_a_client_that_gives_credit_by_the_drop_has_its_prompt_compiled_once(
    name: str, autojump_clock: MockClock
) -> None:
    """What it costs the host for each drop of 32 ids is an engine's call, and no compiler's."""
    body, engine = GRUDGING[name], _CountingEngine(ScriptedConfig(slots=1))
    async with world() as w:
        host = await w.add([replace(scripted_host(), new_engine=lambda: engine)])
        async with _session(w, host) as (_, channel):
            honest = await _read(channel, body, grudging=False)
        assert engine.rendered == 1
        engine.grown = 0
        async with _session(w, host) as (_, channel):
            assert await _read(channel, body, grudging=True) == honest
        assert engine.rendered == 2
        assert engine.grown >= 3
        if body.response_format.kind == "json_schema":
            assert {key: len(said) for key, said in json.loads(honest[1]).items()} == {"a": 198, "b": 99}
