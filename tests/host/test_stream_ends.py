"""How streams end on whole nodes: what was decided to be said arrives before the end, on every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import P2PNodeError
from p2pnode.ids import ModelId, SessionId
from p2pnode.models.scripted_model import scripted_model_id
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.channel import MessageChannel
from p2pnode.protocols.checkpoint import messages as checkpoint
from p2pnode.protocols.framing.codec import FrameDecoder, pack_frame
from p2pnode.protocols.inference import messages as inference
from p2pnode.protocols.inference.messages import Accept, Error, Open, Ping, Pong, Refuse
from p2pnode.protocols.wire import Codec
from tests.client.support import misbehave
from tests.host.paid import paid_world
from tests.host.support import attack, attacker, frame, honest_answer, read_to_end
from tests.node.world import Member, World, scripted_host, world

OPEN = Open(model=scripted_model_id(), salt=bytes(32))


def messages_of(data: bytes, codec: Codec = inference.CODEC) -> list[Any]:
    return [codec.decode(payload) for payload in FrameDecoder().feed(data)]


async def said(network: Network, member: Member, *told: object, later: Sequence[object] = ()) -> list[Any]:
    """What a host answers to its end, read only when everything has arrived."""
    stream = await attack(network, member, frame(*told))
    if later:
        await trio.sleep(0.001)
        await stream.send_all(frame(*later))
    await trio.sleep(1)
    return messages_of(await read_to_end(stream))


async def _host(w: World) -> Member:
    return await w.add([scripted_host(tokens_per_s=500)])


async def test_two_opens_back_to_back_are_answered_by_an_error(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as evil:
            for later in ([], [Ping(nonce=1)] * 50):
                answers = await said(evil, host, OPEN, OPEN, later=later)
                assert isinstance(answers[0], Accept)
                assert isinstance(answers[-1], Error)
                assert answers[-1].code == "bad_request"
            assert host.node.faults.count(evil.peer_id, trio.current_time()) == 2


async def test_a_refusal_arrives_though_the_client_goes_on_talking(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        wrong = Open(model=ModelId(bytes(32)), salt=bytes(32))
        async with attacker(w, host) as evil:
            stream = await attack(evil, host, frame(wrong))
            for nonce in range(20):
                await stream.send_all(frame(Ping(nonce=nonce)))
                await trio.sleep(0.01)
            answers = messages_of(await read_to_end(stream))
            assert isinstance(answers[-1], Refuse)
            assert answers[-1].code == "model_not_available"


@pytest.mark.parametrize(
    "told",
    [
        [checkpoint.Fetch(session=SessionId(bytes(32)))] * 2,  # of no session here
        [checkpoint.More(epoch=1, seq=1)],  # out of place
    ],
    ids=["refused", "at fault"],
)
async def test_who_asks_for_receipts_in_vain_is_told_why(
    tmp_path: Path, autojump_clock: MockClock, told: list[object]
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        async with attacker(w.world, member) as evil:
            data = b"".join(pack_frame(checkpoint.CODEC.encode(each)) for each in told)
            stream = await attack(evil, member, data, checkpoint.PROTOCOL)
            await trio.sleep(1)
            answers = messages_of(await read_to_end(stream), checkpoint.CODEC)
            assert [type(answer) for answer in answers] == [checkpoint.Refuse]
            assert answers[0].code == "bad_request"


async def test_a_host_that_breaks_the_protocol_is_told_so(autojump_clock: MockClock) -> None:
    heard: list[Any] = []

    async def lies(stream: Stream) -> None:
        channel = MessageChannel(stream, inference.CODEC)
        await channel.receive()
        await channel.send([inference.Tokens(seq=0, ids=(1,)), *[Ping(nonce=1)] * 50])
        await trio.sleep(1)
        while (message := await channel.receive()) is not None:
            heard.append(message)

    async with world() as w:
        host = await _host(w)
        misbehave(host, lies)
        async with w.client(host.node.multiaddrs[:1]) as client:
            with pytest.raises(P2PNodeError, match="broke the protocol"):
                await honest_answer(client)
            await trio.sleep(5)
    assert [type(message) for message in heard if not isinstance(message, Pong)] == [Error]
