"""Hosts that die under an answer, and what must be left: one text, each token once, each billed once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from p2pnode.ids import SessionId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.engine import GenerateRequest, Tokens
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.inference.messages import (
    CODEC,
    Accept,
    ChatMessage,
    Prompt,
    PromptBody,
    SamplingParams,
)
from tests.node.world import Member, World, scripted_host, world

TOKENS = 40
ONE_BY_ONE = replace(DEFAULT_LIMITS, flush_interval_s=0.0, flush_tokens=1, settle_batch_s=0.5)
"""Every token is a frame, so that a host can die after any of them."""
QUESTION = "hello"
LONG_QUESTION = "again and " * 12
"""Of two batches: a host says where it is between them."""
SESSION = SessionId(b"s" * 32)


async def unkilled(question: str = QUESTION, tokens: int = TOKENS) -> tuple[list[int], str]:
    """What the engine alone says."""
    engine = ScriptedEngine()
    body = PromptBody(messages=(ChatMessage.of("user", question),), seed=bytes(16))
    prompt = await engine.prompt(body)
    request = GenerateRequest(
        prompt_ids=prompt.ids,
        sampling=SamplingParams(tokens_max=tokens, temperature=0),
        seed=0,
        cache_key=b"alone",
    )
    ids: list[int] = []
    text = ""
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, Tokens):
                ids += event.ids
                text += event.text
    return ids, text


def ask(client: Client, question: str = QUESTION, tokens: int = TOKENS) -> Answer:
    """A greedy question to the scripted model."""
    sampling = SamplingParams(tokens_max=tokens, temperature=0)
    return client.chat(question, model=SCRIPTED, sampling=sampling)


async def check_whole(answer: Answer, shown: str, question: str = QUESTION, tokens: int = TOKENS) -> None:
    """Nothing missing, nothing twice, and the bill says so."""
    ids, text = await unkilled(question, tokens)
    assert answer.ids == ids
    assert shown == answer.text == text
    usage = answer.usage
    assert usage is not None
    assert usage.reason == "length"
    assert usage.tokens_out == sum(item.tokens_out for item in answer.bill) == len(ids)
    assert usage.tokens_in == sum(item.tokens_in for item in answer.bill)
    assert usage.cost == sum(item.cost for item in answer.bill)


async def read(answer: Answer, then: Callable[[int], Awaitable[None] | None] = lambda _held: None) -> str:
    """The whole text as a reader sees it; ``then`` is called with the tokens held after each piece."""
    shown = ""
    async for piece in answer:
        shown += piece
        called = then(len(answer.ids))
        if called is not None:
            await called
    return shown


async def hosts(w: World, count: int, *, tokens_per_s: float = 50.0) -> list[Member]:
    """Free hosts that know one another."""
    members = [await w.add([scripted_host(tokens_per_s=tokens_per_s)])]
    for _ in range(count - 1):
        first = members[0].node.multiaddrs[:1]
        members.append(await w.add([scripted_host(tokens_per_s=tokens_per_s)], bootstrap=first))
    await trio.sleep(5)
    return members


async def meet(client: Client, members: list[Member]) -> None:
    """The client knows them all, and prefers them in this order."""
    await client.hosts(SCRIPTED)
    for rank, member in enumerate(members):  # by more than how fast each was dialled may differ
        client.searches.note_answer(member.node.peer_id, 1.0 * (rank + 1), 10_000.0 / (rank + 1))


def seeds(members: list[Member]) -> list[str]:
    """Where they are."""
    return [member.node.multiaddrs[0] for member in members]


def engine_of(member: Member, at: int = 0) -> ScriptedEngine:
    """The engine of a host's model number ``at``, from 0."""
    assert member.host is not None
    engine = member.host.models[at].new_engine()
    assert isinstance(engine, ScriptedEngine)
    return engine


def speaks(messages: list[object]) -> Callable[[Stream], Awaitable[None]]:
    """A host that accepts a free session, and answers its first turn like this."""

    async def handler(stream: Stream) -> None:
        channel = MessageChannel(stream, CODEC)
        await channel.receive()
        await channel.send([Accept(session=SESSION, nonce=bytes(32), epoch=1, n_ctx=2048)])
        while not isinstance(request := await channel.receive(), Prompt) or not request.last:
            pass
        await channel.send(messages)
        while await channel.receive() is not None:
            pass

    return handler


def serving(answer: Answer, members: list[Member]) -> int:
    """Which of these the answer comes from now."""
    return [member.node.peer_id for member in members].index(answer.host)  # type: ignore[arg-type]


@asynccontextmanager
async def stage(
    count: int, *, tokens_per_s: float = 50.0
) -> AsyncIterator[tuple[World, list[Member], Client]]:
    """Free hosts that send every token in a frame, and a client that knows them and prefers the first."""
    async with world(limits=ONE_BY_ONE) as w:
        members = await hosts(w, count, tokens_per_s=tokens_per_s)
        async with w.client(seeds(members)) as client:
            await meet(client, members)
            yield w, members, client
