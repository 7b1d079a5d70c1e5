"""What can't fit a paid host's context is known before anything is signed."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from p2pnode.errors import RefusedError, UnreachableError
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.count.messages import CODEC, PROTOCOL, Count, Counted
from p2pnode.protocols.framing.codec import pack_frame
from p2pnode.protocols.inference.messages import SamplingParams
from tests.host.paid import RICH, PaidWorld, paid_world, priced
from tests.host.support import attack, attacker, read_to_end
from tests.node.world import Member

N_CTX = 2048


def ask(client: Client, size: int, tokens: int = 5) -> Answer:
    sampling = SamplingParams(tokens_max=tokens, temperature=0)
    return client.chat("x" * size, model=SCRIPTED, sampling=sampling)


async def read(answer: Answer) -> None:
    async for _ in answer:
        pass


def opened(w: PaidWorld) -> int:
    return w.chain.block


async def test_a_prompt_that_does_not_fit_is_refused_and_no_fee_is_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(n_ctx=N_CTX))
        async with w.client(member) as client:
            for size in (2135, 7000, 100_000):  # by the host's count; the last by its bytes alone
                with pytest.raises(RefusedError) as refused:
                    await read(ask(client, size))
                assert refused.value.code == "context_overflow"
        assert opened(w) == 0
        assert w.balance("alice") == RICH
        assert money.journal.hosted() == []


async def test_a_prompt_that_just_fits_is_counted_paid_and_answered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(n_ctx=N_CTX))
        async with w.client(member) as client:
            whole = ask(client, 100, tokens=1)
            await read(whole)
            assert whole.usage is not None
            template = whole.usage.tokens_in - 100  # each byte is a token of the scripted model
        assert len(money.journal.hosted()) == 1
        async with w.client(member) as client:
            answer = ask(client, N_CTX - template - 1, tokens=5)
            await read(answer)
            assert (answer.usage.tokens_in, len(answer.ids)) == (N_CTX - 1, 1)  # type: ignore[union-attr]
        async with w.client(member) as client:
            with pytest.raises(RefusedError, match=f"takes {N_CTX} tokens"):
                await read(ask(client, N_CTX - template))
        assert len(money.journal.hosted()) == 2


async def test_a_larger_context_elsewhere_is_used_and_only_that_host_is_paid(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        small, _ = await w.host(model=priced(n_ctx=N_CTX))
        large, _ = await w.host(model=priced(n_ctx=2 * N_CTX))
        async with w.client(small) as client:
            client.runtime.bootstrap = tuple(each.node.multiaddrs[0] for each in (small, large))
            await client.hosts(SCRIPTED)
            client.searches.note_answer(small.node.peer_id, 0.001, 10_000.0)
            answer = ask(client, 3000)
            await read(answer)
            assert answer.host == large.node.peer_id
        assert opened(w) == 1


async def misled(w: PaidWorld, member: Member, answer: object | None) -> str:
    """A host that says ``answer`` to a count, or nothing; what its client says to that."""

    async def handle(stream: Stream) -> None:
        channel = MessageChannel(stream, CODEC)
        while not isinstance(await channel.receive(), Count):
            pass
        if answer is not None:
            await channel.send([answer])
        await stream.aclose()

    member.node.network.serve(PROTOCOL, handle)
    async with w.client(member) as client:
        with pytest.raises((RefusedError, UnreachableError)) as error:
            await read(ask(client, 3000))
    assert opened(w) == 0
    return str(error.value)


async def test_a_host_that_does_not_count_is_not_paid(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(model=priced(n_ctx=N_CTX))
        assert "did not say how many tokens" in await misled(w, member, None)


async def test_a_count_that_can_not_be_is_no_answer(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(model=priced(n_ctx=N_CTX))
        told = await misled(w, member, Counted(tokens_in=N_CTX, n_ctx=4 * N_CTX))
        assert "takes 2048 tokens" in told


async def test_whoever_counts_nonsense_is_told_so_and_others_are_served(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(n_ctx=N_CTX))
        twice = 2 * pack_frame(CODEC.encode(Count(model=scripted_model_id(), total=5)))
        async with attacker(w.world, member) as network:
            assert b"bad_request" in await read_to_end(await attack(network, member, twice, PROTOCOL))
        async with w.client(member) as client:
            await read(ask(client, N_CTX - 100))
        assert len(money.journal.hosted()) == 1
