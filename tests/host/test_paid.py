"""Paid sessions from end to end on whole nodes: what is received is what is paid, to the unit."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.errors import HostFault, NoHostError, RefusedError, UnreachableError, WireCode
from p2pnode.ids import PeerId
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import (
    CODEC,
    Accept,
    ChatMessage,
    Checkpoint,
    Error,
    Open,
    PromptBody,
    Quote,
    Refuse,
    Resume,
    SamplingParams,
    Tokens,
    Voucher,
)
from p2pnode.protocols.typed_data import session_id
from tests.client.support import HELLO_HASH, misbehave
from tests.host.paid import FEE, PRICE_IN, PRICE_OUT, RICH, PaidWorld, paid_world
from tests.host.thief import quoted


async def answer(client: Client, question: str = "hello", tokens: int = 80) -> tuple[int, int]:
    """Tokens in and out of one whole answer."""
    asked = client.chat(question, model="scripted", sampling=SamplingParams(tokens_max=tokens, temperature=0))
    async for _ in asked:
        pass
    assert asked.usage is not None
    return asked.usage.tokens_in - asked.usage.reused, asked.usage.tokens_out


def due(tokens_in: int, tokens_out: int) -> int:
    return FEE + -(-(tokens_in * PRICE_IN + tokens_out * PRICE_OUT) // 1_000_000)


def settled(w: PaidWorld, amount: int, payer: str = "alice", host: str = "host 0") -> None:
    """Every unit is where it belongs."""
    treasury = (amount - FEE) // 10
    assert RICH - w.balance(payer) == amount
    assert w.earned(host) == amount - treasury
    assert w.treasury == treasury


async def test_a_client_without_ether_pays_for_exactly_what_it_received(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        async with w.client(member) as client:
            tokens_in, tokens_out = await answer(client)
            assert tokens_out == 80
        await trio.sleep(2)
        settled(w, due(tokens_in, tokens_out))
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", due(tokens_in, tokens_out))
        assert w.chain.block == 2  # one open, one close


async def test_a_conversation_pays_for_all_its_turns_in_one_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        async with w.client(member) as client:
            counts = [await answer(client, f"question {turn}", 40 + turn) for turn in range(4)]
        await trio.sleep(2)
        settled(w, due(sum(c[0] for c in counts), sum(c[1] for c in counts)))
        assert w.chain.block == 2


async def test_a_payer_keeps_its_connection_from_its_first_voucher_until_the_linger_is_over(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        assert member.host is not None
        standing_of, strangers = member.host.standing_of, member.node.network.connected_peers()
        async with w.client(member) as client:
            await answer(client)
            (payer,) = set(member.node.network.connected_peers()) - set(strangers)
            assert standing_of(payer) == "payer"
            assert standing_of(PeerId("nobody")) == "stranger"
        await trio.sleep(2)
        assert standing_of(payer) == "payer"
        await trio.sleep(member.node.limits.linger_s)
        assert standing_of(payer) == "stranger"


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 65])
async def test_every_length_of_answer_is_paid_to_the_unit(
    tmp_path: Path, autojump_clock: MockClock, tokens: int
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        async with w.client(member) as client:
            tokens_in, tokens_out = await answer(client, tokens=tokens)
            assert tokens_out == tokens
        await trio.sleep(2)
        settled(w, due(tokens_in, tokens_out))


async def test_a_session_without_a_token_costs_its_fee_and_nothing_else(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        async with w.client(member) as client:
            (candidate,) = (await client.hosts("scripted")).chosen
            body = PromptBody(messages=(ChatMessage.of("user", "hello"),), seed=bytes(16))
            client.pool.release(await client.pool.open(candidate, Ask(body, 100)))
        await trio.sleep(5)
        settled(w, FEE)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount, record.voucher) == ("settled", FEE, None)


async def test_a_host_that_asks_for_more_than_it_sent_is_dropped_and_remembered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()

        async def overcharge(stream: Stream) -> None:
            channel = await quoted(stream)
            paid.append(await channel.receive())
            receipt = Checkpoint(
                seq=1, tokens_in=8, tokens_out=20, token_hash=bytes(32), fingerprint_hash=bytes(32),
                root=bytes(32), signature=bytes(65),
            )  # fmt: skip
            await channel.send([Tokens(turn=1, index=0, ids=tuple(range(10)), text="ten words"), receipt])
            with suppress(UnreachableError):
                while (more := await channel.receive()) is not None:
                    paid.append(more)

        paid: list[Any] = []
        misbehave(member, overcharge)
        async with w.client(member) as client:
            with pytest.raises(NoHostError, match="does not match what was received") as caught:
                await answer(client)
            assert isinstance(caught.value.__cause__, HostFault)
            vouchers = [each for each in paid if isinstance(each, Voucher)]
            assert [(each.tokens_in, each.tokens_out) for each in vouchers] == [(8, 0)]  # not one for output
            (candidate,) = (await client.hosts("scripted")).excluded
            assert "broke the protocol" in candidate.excluded
            with pytest.raises(NoHostError):
                await answer(client)


@pytest.mark.parametrize("code", ["internal", "stalled"])
async def test_a_session_is_resumed_only_where_its_host_says_that_it_keeps_it(
    tmp_path: Path, autojump_clock: MockClock, code: WireCode
) -> None:
    """``internal`` is a host's word like others; it is not taken for a lost connection."""
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        heard: list[type] = []

        async def gives_up(stream: Stream) -> None:
            channel = MessageChannel(stream, CODEC)
            request = await channel.receive()
            heard.append(type(request))
            if not isinstance(request, Open) or request.terms is None:
                await channel.send([Refuse(code="bad_request", detail="no such session here")])
                return
            session = session_id(money.ledger.domains.market, request.terms)
            await channel.send(
                [Accept(session=session, nonce=bytes(32), epoch=1, n_ctx=2048, session_fee=FEE)]
            )
            await channel.receive()
            await channel.send([Quote(turn=1, prompt_hash=HELLO_HASH, tokens_in=8)])
            await channel.receive()
            await channel.send([Error(code=code, detail="so there")])

        misbehave(member, gives_up)
        async with w.client(member) as client:
            with pytest.raises(RefusedError, match="so there"):
                await answer(client)
            assert heard == ([Open] if code == "internal" else [Open, Resume])
