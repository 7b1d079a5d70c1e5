"""Peers that ask for places and questions only to have them: they give way to who wants an answer."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import RefusedError, RemoteError
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import scripted_model_id
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.adverts.messages import CODEC, PROTOCOL, Adverts, SampleAdverts
from p2pnode.protocols.framing.codec import pack_frame
from p2pnode.protocols.inference.messages import CODEC as INFERENCE_CODEC
from p2pnode.protocols.inference.messages import PROTOCOL as INFERENCE
from p2pnode.protocols.inference.messages import (
    ChatMessage,
    Open,
    Ping,
    Pong,
    Prompt,
    PromptBody,
    SamplingParams,
)
from p2pnode.protocols.wire import encode
from tests.host.support import attack, attacker, frame, honest_answer
from tests.node.world import scripted_host, world

OPEN = Open(model=scripted_model_id(), salt=bytes(32), holder=bytes(16))
PLACES = 4


def _long_prompt() -> Prompt:
    body = encode(
        PromptBody(
            messages=(ChatMessage.of("user", "hi"),), sampling=SamplingParams(tokens_max=60), seed=bytes(16)
        )
    )
    return Prompt(turn=1, part=0, last=True, total=len(body), body=body)


SITTERS = {
    "silent": b"",
    "idle": frame(OPEN),
    "reading": frame(OPEN, Prompt(turn=1, part=0, last=False, total=100, body=b"x")),
}


@pytest.mark.parametrize("state", SITTERS)
async def test_sessions_that_only_sit_there_give_way_to_a_client(
    state: str, autojump_clock: MockClock
) -> None:
    limits = replace(DEFAULT_LIMITS, sessions_max=PLACES, sessions_per_peer=2)
    async with world(limits=limits) as w, contextlib.AsyncExitStack() as stack:
        host = await w.add([scripted_host()])
        client = await stack.enter_async_context(w.client(host.node.multiaddrs[:1]))
        await client.hosts("scripted")
        for number in range(PLACES // 2):
            evil = await stack.enter_async_context(attacker(w, host, number))
            for _ in range(2):
                await attack(evil, host, SITTERS[state])
        assert host.host is not None
        await trio.sleep(6)
        assert host.host.sessions == PLACES
        await honest_answer(client)
        await trio.sleep(1)
        assert host.host.sessions == PLACES  # one of them was ended


async def test_sessions_that_are_served_or_just_came_do_not_give_way(autojump_clock: MockClock) -> None:
    limits = replace(DEFAULT_LIMITS, sessions_max=PLACES, sessions_per_peer=2)
    async with world(limits=limits) as w, contextlib.AsyncExitStack() as stack:
        host = await w.add([scripted_host(tokens_per_s=2, slots=PLACES)])
        client = await stack.enter_async_context(w.client(host.node.multiaddrs[:1]))
        await client.hosts("scripted")
        for number in range(PLACES):
            evil = await stack.enter_async_context(attacker(w, host, number))
            await attack(evil, host, frame(OPEN, _long_prompt()) if number % 2 else frame(OPEN))
        await trio.sleep(1)
        with pytest.raises(RefusedError, match="all sessions"):
            await honest_answer(client)
        await trio.sleep(10)
        for number in range(2):  # the two idle ones give way, the two that are served do not
            evil = await stack.enter_async_context(attacker(w, host, 10 + number))
            await attack(evil, host, frame(OPEN))
        assert host.host is not None
        await trio.sleep(1)
        assert host.host.models[0].new_engine().statistics().active == 2
        assert host.host.sessions == PLACES


async def test_a_peer_with_more_than_its_share_gives_way_at_once_and_after_its_turn(
    autojump_clock: MockClock,
) -> None:
    limits = replace(DEFAULT_LIMITS, sessions_max=PLACES, sessions_per_peer=PLACES)
    async with world(limits=limits) as w, contextlib.AsyncExitStack() as stack:
        host = await w.add([scripted_host(tokens_per_s=20, slots=2)])
        client = await stack.enter_async_context(w.client(host.node.multiaddrs[:1]))
        await client.hosts("scripted")
        evil = await stack.enter_async_context(attacker(w, host, 0))
        for _ in range(PLACES):
            await attack(evil, host, frame(OPEN, _long_prompt()))
        await trio.sleep(0.5)
        assert host.host is not None
        assert host.host.models[0].new_engine().statistics().queued == 2
        await honest_answer(client)
        await trio.sleep(10)
        assert host.host.sessions == PLACES  # one of the greedy peer's ended after its turn


async def test_a_flood_of_pings_is_read_no_faster_than_a_peer_needs(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with attacker(w, host) as evil, w.client(host.node.multiaddrs[:1]) as client:
            stream = await evil.open_stream(host.node.peer_id, INFERENCE)
            pongs = 0

            async def flood() -> None:
                for _ in range(20):
                    await stream.send_all(frame(*(Ping(nonce=n) for n in range(1000))))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                channel = MessageChannel(stream, INFERENCE_CODEC)
                with trio.move_on_after(3):
                    while isinstance(await channel.receive(), Pong):
                        pongs += 1
                nursery.cancel_scope.cancel()
            assert 1000 < pongs < 8000
            await stream.reset()
            await honest_answer(client)


async def test_a_peer_that_floods_questions_is_cut_short_and_others_are_answered(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with attacker(w, host) as evil, w.client(host.node.multiaddrs[:1]) as client:
            answered = 0
            question = pack_frame(CODEC.encode(SampleAdverts()))
            for _ in range(100):
                stream = await attack(evil, host, question * 4, PROTOCOL)
                channel = MessageChannel(stream, CODEC)
                with contextlib.suppress(RemoteError):
                    while isinstance(await channel.receive(), Adverts):
                        answered += 1
                await stream.aclose()
            assert 64 <= answered < 250
            assert host.node.adverts.served["SampleAdverts"] == answered
            await honest_answer(client)
            await trio.sleep(10)
            stream = await attack(evil, host, question, PROTOCOL)
            assert isinstance(await MessageChannel(stream, CODEC).receive(), Adverts)
            await stream.aclose()
