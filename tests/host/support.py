"""A hostile peer: a network of its own that speaks bytes, not protocols; and an honest client beside it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio

from p2pnode.client.client import Client
from p2pnode.models.scripted import ScriptedConfig
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.stream import Stream
from p2pnode.protocols.framing.codec import pack_frame
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, CODEC, PROTOCOL, SamplingParams
from tests.net.memory_world import seed_of
from tests.node.world import Member, World

TOKENS = 80
WINDOW = CHECKPOINT_EVERY * (ScriptedConfig().slots + 1)
"""What a host with a scripted engine grants."""


@contextlib.asynccontextmanager
async def attacker(
    w: World, target: Member, number: int = 0, ip: str | None = None
) -> AsyncIterator[Network]:
    """A connected network that does as the test says; at a private address of its own unless told."""
    network = Network(
        NetworkConfig(
            key_seed=seed_of(500 + number),
            dht="off",
            gossip=False,
            transport=w.net.transport(ip or f"10.0.8.{number + 1}"),
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await network.connect(target.node.multiaddrs[0])
        yield network
        await network.aclose()
        nursery.cancel_scope.cancel()


def frame(*messages: object) -> bytes:
    """Well-formed frames of the inference protocol."""
    return b"".join(pack_frame(CODEC.encode(message)) for message in messages)


async def attack(network: Network, target: Member, data: bytes, protocol: str = PROTOCOL) -> Stream:
    """Open a stream and write bytes."""
    stream = await network.open_stream(target.node.peer_id, protocol)
    await stream.send_all(data)
    return stream


async def read_to_end(stream: Stream, seconds: float = 120) -> bytes:
    """Whatever the node answers until it ends the stream, cleanly or by a reset."""
    data = b""
    with trio.fail_after(seconds), contextlib.suppress(Exception):
        while piece := await stream.receive_some():
            data += piece
    return data


async def honest_answer(client: Client, question: str = "hello") -> str:
    """What a well-behaved client gets: all the tokens it asked for."""
    answer = client.chat(
        question, model="scripted", sampling=SamplingParams(tokens_max=TOKENS, temperature=0)
    )
    async for _ in answer:
        pass
    assert answer.usage is not None
    assert answer.usage.tokens_out == TOKENS == len(answer.ids)
    return answer.text
