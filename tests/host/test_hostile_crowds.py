"""Crowds of one prefix that ask a host for all it has: a client from elsewhere is answered all the same."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.host.count import serve_counts
from p2pnode.host.model_pool import HoldModel, ModelPool, PoolLimits
from p2pnode.host.unpaid_work import UnpaidWork
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.network import Network
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.count.messages import CODEC, PROTOCOL, Count, Counted
from p2pnode.protocols.framing.codec import pack_frame
from p2pnode.protocols.inference.messages import (
    ChatMessage,
    Open,
    Prompt,
    PromptBody,
    Refuse,
    SamplingParams,
)
from p2pnode.protocols.wire import encode
from tests.host.support import attack, attacker, frame, honest_answer, read_to_end
from tests.node.world import Member, World, scripted_host, world

LIMITS = replace(DEFAULT_LIMITS, sessions_max=16)
ELSEWHERE = "9.9.9.9"


def _question(tokens: int) -> bytes:
    body = encode(
        PromptBody(
            messages=(ChatMessage.of("user", "hi"),),
            sampling=SamplingParams(tokens_max=tokens),
            seed=bytes(16),
        )
    )
    prompt = Prompt(turn=1, part=0, last=True, total=len(body), body=body)
    return frame(Open(model=scripted_model_id(), salt=bytes(32), holder=bytes(16)), prompt)


async def _ask_for_ever(network: Network, host: Member) -> None:
    """Ask, read for two seconds, and ask again at once."""
    while True:
        with contextlib.suppress(UnreachableError):
            stream = await attack(network, host, _question(400))
            with trio.move_on_after(2):
                await read_to_end(stream)
            await stream.reset()
        await trio.sleep(0.1)


async def _crowd(w: World, host: Member, stack: contextlib.AsyncExitStack, size: int) -> list[Network]:
    return [
        await stack.enter_async_context(attacker(w, host, number, f"8.8.8.{number % 5 + 1}"))
        for number in range(size)
    ]


@pytest.mark.long
async def test_forty_peers_of_one_prefix_that_ask_without_end_keep_nobody_from_an_answer(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=LIMITS) as w, contextlib.AsyncExitStack() as stack:
        host = await w.add([scripted_host(tokens_per_s=40, slots=2, queue_max=4)])
        for network in await _crowd(w, host, stack, 40):
            w.nursery.start_soon(_ask_for_ever, network, host)
        client = await stack.enter_async_context(w.client(host.node.multiaddrs[:1], ELSEWHERE))
        await trio.sleep(5)
        assert host.host is not None
        assert host.host.models[0].new_engine().statistics().queued == 4
        with trio.fail_after(30):
            await honest_answer(client)


async def test_who_is_served_keeps_its_connection_and_is_a_stranger_again_afterwards(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        assert host.host is not None
        async with attacker(w, host) as network:
            assert host.host.standing_of(network.peer_id) == "stranger"
            await attack(network, host, _question(40))
            await trio.sleep(1)
            assert host.host.standing_of(network.peer_id) == "served"
            await trio.sleep(5)
            assert host.host.standing_of(network.peer_id) == "stranger"


async def _counted(network: Network, host: Member) -> object:
    body = encode(
        PromptBody(
            messages=(ChatMessage.of("user", "hi"),), sampling=SamplingParams(tokens_max=1), seed=bytes(16)
        )
    )
    question = Count(model=scripted_model_id(), total=len(body))
    prompt = Prompt(turn=1, part=0, last=True, total=len(body), body=body)
    data = b"".join(pack_frame(CODEC.encode(each)) for each in (question, prompt))
    stream = await attack(network, host, data, PROTOCOL)
    try:
        with trio.fail_after(5):
            return await MessageChannel(stream, CODEC).receive()
    finally:
        await stream.aclose()


def _engine_of(member: Member) -> HoldModel:
    """An engine on a node without a host."""
    pool = ModelPool(PoolLimits(), start_soon=member.node.start_soon)
    pool.offer(scripted_host())
    return partial(pool.hold, scripted_model_id())


@pytest.mark.parametrize("same", [True, False], ids=["one prefix", "a prefix each"])
async def test_prompts_that_never_end_do_not_keep_others_from_being_counted(
    autojump_clock: MockClock, *, same: bool
) -> None:
    begun = pack_frame(CODEC.encode(Count(model=scripted_model_id(), total=1000)))
    async with world() as w, contextlib.AsyncExitStack() as stack:
        host = await w.add()
        serve_counts(host.node, lambda _: (_engine_of(host), 4096), UnpaidWork())
        for number in range(20):
            ip = f"8.8.8.{number + 1}" if same else f"8.8.{number}.1"
            slow = await stack.enter_async_context(attacker(w, host, number, ip))
            await attack(slow, host, begun, PROTOCOL)
        await trio.sleep(3)
        honest = await stack.enter_async_context(attacker(w, host, 30, ELSEWHERE))
        assert isinstance(await _counted(honest, host), Counted)


async def test_a_prompt_that_gives_way_is_told_to_try_again(autojump_clock: MockClock) -> None:
    begun = pack_frame(CODEC.encode(Count(model=scripted_model_id(), total=1000)))
    async with world() as w, contextlib.AsyncExitStack() as stack:
        host = await w.add()
        serve_counts(host.node, lambda _: (_engine_of(host), 4096), UnpaidWork())
        streams = []
        for number in range(16):
            slow = await stack.enter_async_context(attacker(w, host, number, f"8.8.8.{number + 1}"))
            streams.append(await attack(slow, host, begun, PROTOCOL))
        await trio.sleep(0.5)
        honest = await stack.enter_async_context(attacker(w, host, 30, ELSEWHERE))
        assert isinstance(await _counted(honest, host), Counted)
        with trio.fail_after(1):
            refusal = await MessageChannel(streams[0], CODEC).receive()
        assert isinstance(refusal, Refuse)
        assert refusal.code == "capacity"
