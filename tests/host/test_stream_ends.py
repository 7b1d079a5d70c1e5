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
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.checkpoint import messages as checkpoint
from p2pnode.protocols.framing.codec import FrameDecoder, pack_frame
from p2pnode.protocols.inference import messages as inference
from p2pnode.protocols.inference.commands import SessionFailed, TurnDone
from p2pnode.protocols.inference.messages import (
    Accept,
    Done,
    Error,
    Open,
    Ping,
    Pong,
    PromptReceived,
    Refuse,
    Tokens,
)
from p2pnode.protocols.wire import Codec, encode
from tests.client.support import misbehave
from tests.host.paid import RICH, paid_world, priced, wallet_address
from tests.host.support import WINDOW, attack, attacker, frame, honest_answer, read_to_end
from tests.host.test_payment_attacks import honest
from tests.host.thief import payment, thief
from tests.node.world import Member, World, scripted_host, world

OPEN = Open(model=scripted_model_id(), salt=bytes(32), holder=bytes(16))


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
        wrong = Open(model=ModelId(bytes(32)), salt=bytes(32), holder=bytes(16))
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
        await channel.send([inference.Tokens(turn=1, index=0, ids=(1,)), *[Ping(nonce=1)] * 50])
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


# ---- half-closes


def prompt(tokens_max: int, *, last: bool = True) -> inference.Prompt:
    sampling = inference.SamplingParams(tokens_max=tokens_max, temperature=0)
    body = encode(
        inference.PromptBody(
            messages=(inference.ChatMessage.of("user", "hi"),), sampling=sampling, seed=bytes(16)
        )
    )
    total = len(body) if last else len(body) + 1
    return inference.Prompt(turn=1, part=0, last=last, total=total, body=body)


async def half_closed(network: Network, member: Member, *told: object) -> tuple[list[Any], float]:
    """What a host says to a client that has closed its half, and how long that took."""
    began = trio.current_time()
    stream = await attack(network, member, frame(*told))
    await stream.send_eof()
    answers = messages_of(await read_to_end(stream))
    return answers, trio.current_time() - began


async def test_a_free_turn_of_a_client_that_half_closed_is_served_to_its_end(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as peer:
            answers, _ = await half_closed(peer, host, OPEN, prompt(WINDOW))
            ids = [each for message in answers if isinstance(message, Tokens) for each in message.ids]
            assert len(ids) == WINDOW
            assert isinstance(answers[-1], Done)
            assert answers[-1].reason == "length"
            assert host.host is not None
            await trio.sleep(1)
            assert host.host.sessions == 0
            assert host.node.faults.count(peer.peer_id, trio.current_time()) == 0


async def test_a_free_turn_that_needs_an_ack_which_can_not_come_ends_with_a_word_at_once(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as peer:
            answers, took_s = await half_closed(peer, host, OPEN, prompt(WINDOW + 1))
            ids = [each for message in answers if isinstance(message, Tokens) for each in message.ids]
            assert len(ids) == WINDOW
            assert isinstance(answers[-1], Error)
            assert (answers[-1].code, answers[-1].turn) == ("stalled", None)
            assert took_s < 2


async def test_half_a_prompt_before_a_half_close_is_answered_at_once(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as peer:
            answers, took_s = await half_closed(peer, host, OPEN, prompt(WINDOW, last=False))
            assert [type(message) for message in answers] == [Accept, PromptReceived, Error]
            assert (answers[-1].code, answers[-1].turn) == ("stalled", 1)
            assert took_s < 1


async def test_a_paid_session_of_a_client_that_half_closed_ends_with_a_word_and_is_resumed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=50))
        w.chain.mint(wallet_address("alice"), RICH)
        signed = payment("alice", member)
        async with thief(w.world, member, signed) as one, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.run(honest, tokens=200))
            await one.delivered.wait()
            await one.half_close()
            with trio.fail_after(1):
                await one.over.wait()
            assert isinstance(one.outcome, SessionFailed)
            assert one.outcome.code == "stalled"
            assert "resume it" in one.outcome.detail
            received = len(one.ids)
            held = one.machine.held if one.machine is not None else None
            async with thief(w.world, member, signed, number=1) as two:
                nursery.start_soon(lambda: two.run(honest, resume=held))
                with trio.fail_after(5):
                    await two.told.wait()
                assert isinstance(two.outcome, TurnDone)
                assert two.outcome.done.reason == "length", "the turn went on"
                assert two.outcome.done.tokens_out == received + len(two.ids)
                two.close()
                await trio.sleep(10)
            (record,) = money.journal.hosted()
            assert record.voucher is not None
            assert record.voucher.tokens_out == two.outcome.done.tokens_out
