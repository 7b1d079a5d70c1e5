"""Hosts and clients that sleep in mid-answer: the session goes on, for one fee, and nobody is blamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.interface import Answer
from p2pnode.errors import NoHostError
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.models.manifest import SCRIPTED
from tests.client.failing import ask, check_whole, read
from tests.client.support import Events
from tests.host.paid import FEE, LIMITS, PRICE_IN, PRICE_OUT, RICH, PaidWorld, paid_world, priced
from tests.node.world import Member

TOKENS = 200
NAP_S = 120.0


@asynccontextmanager
async def one_host(
    folder: Path, *, tokens_per_s: float | None = 10, host_limits: Limits = LIMITS
) -> AsyncIterator[tuple[PaidWorld, Member]]:
    async with paid_world(folder, limits=host_limits) as w:
        member, _ = await w.host(model=priced(tokens_per_s=tokens_per_s))
        w.world.limits = LIMITS
        yield w, member


def states(w: PaidWorld) -> list[str]:
    (member,) = w.world.members
    assert member.host is not None
    assert member.host.escrow is not None
    return [each.state for each in member.host.escrow.journal.hosted()]


async def fall_silent(w: PaidWorld, seconds: float) -> None:
    """Whatever is sent from now on arrives when the nap is over."""
    usual, w.world.net.latency = w.world.net.latency, seconds
    await trio.sleep(seconds)
    w.world.net.latency = usual


async def cut_off(w: PaidWorld, answer: Answer, at: int) -> str:
    """Read until the host sleeps and the answer is cut short; what was shown."""
    shown: list[str] = []

    async def read_all(nursery: trio.Nursery) -> None:
        asleep = False
        async for piece in answer:
            shown.append(piece)
            if len(answer.ids) >= at and not asleep:
                asleep = True
                nursery.start_soon(fall_silent, w, NAP_S)

    async with trio.open_nursery() as nursery:
        with pytest.raises(NoHostError, match="came stay"):
            await read_all(nursery)
    return "".join(shown)


async def test_a_host_that_slept_for_two_minutes_goes_on_in_its_session_when_it_is_asked(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with one_host(tmp_path) as (w, member):
        async with w.client(member) as client:
            answer = ask(client, tokens=TOKENS)
            shown = await cut_off(w, answer, 20)
            rest = client.go_on(answer)
            async for piece in rest:
                shown += piece
            assert rest.text == shown
            assert len(rest.ids) == TOKENS
            assert {item.session for item in (*answer.bill, *rest.bill)} == {answer.bill[0].session}
            assert states(w) == ["open"]
            cost = sum(item.cost for item in (*answer.bill, *rest.bill))
        await trio.sleep(5)
        assert states(w) == ["settled"]
        assert w.chain.block == 2, "one open, one close"
        assert RICH - w.balance("alice") == cost


async def test_whoever_leaves_while_the_host_sleeps_waits_for_nothing_and_owes_the_last_voucher(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with one_host(tmp_path) as (w, member), w.client(member) as client:
        answer = ask(client, tokens=TOKENS)
        await anext(answer)
        w.world.nursery.start_soon(fall_silent, w, NAP_S)
        with pytest.raises(NoHostError):
            await read(answer)
        assert client.runtime.payer is not None
        assert client.runtime.payer.opened is not None
        journal = client.runtime.payer.opened.journal
        assert [each.state for each in journal.purchases()] == ["open"]
        client.pool.close()
        with trio.fail_after(DEFAULT_LIMITS.close_deadline_s):
            await client.pool.wait_closed()
        await trio.sleep(1)
        (record,) = journal.purchases()
        assert record.state == "over"
        assert record.owed is not None
        assert record.owed.tokens_out == len(answer.ids)


async def test_a_host_that_sleeps_longer_than_its_session_lives_is_paid_and_a_new_one_is_opened(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with one_host(tmp_path) as (w, member), w.client(member) as client:
        answer = ask(client, tokens=TOKENS)
        await cut_off(w, answer, 20)
        w.world.net.partition(["10.0.9.9"], ["10.0.0.1"])
        await trio.sleep(2 * DEFAULT_LIMITS.linger_s)
        assert states(w) == ["settled"]
        w.world.net.heal()
        await client.searches.advert_of(member.node.multiaddrs[:1])
        rest = client.go_on(answer)
        async for _ in rest:
            pass
        assert len(rest.ids) == TOKENS
        assert states(w) == ["settled", "open"]


async def test_a_client_that_was_stopped_in_mid_answer_blames_nobody_and_loses_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with one_host(tmp_path) as (w, member), w.client(member) as client:
        events = Events()
        events.of(client)
        answer = ask(client, tokens=TOKENS)
        naps = [50, 120]

        def then(held: int) -> None:
            if naps and held >= naps[0]:
                naps.pop(0)
                autojump_clock.jump(NAP_S)  # as by SIGSTOP: no task runs meanwhile

        shown = await read(answer, then)
        await check_whole(answer, shown, tokens=TOKENS)
        assert not events.named("host.failed")
        assert client.searches.measured[member.node.peer_id].failure_rate == 0
        assert states(w) == ["open"]
        assert answer.usage is not None
        item = answer.bill[0]
        assert answer.usage.cost == FEE + -(-((item.tokens_in - item.reused) * PRICE_IN) // 1_000_000) + (
            TOKENS * PRICE_OUT // 1_000_000
        )


async def test_a_client_whose_host_gave_up_while_it_slept_goes_on_in_the_same_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The host runs on: its stall timer ends the stream, and it keeps the session for a while."""
    impatient = replace(LIMITS, stall_s=5.0)
    world = one_host(tmp_path, tokens_per_s=None, host_limits=impatient)
    async with world as (w, member), w.client(member) as client:
        answer = ask(client, tokens=1500)
        held = await anext(answer)
        await trio.sleep(3 * impatient.stall_s)  # what comes is not read
        async for piece in answer:
            held += piece
        assert held == answer.text
        assert len(answer.ids) == 1500
        assert states(w) == ["open"]
        assert len({item.session for item in answer.bill}) == 1
        assert client.searches.measured[member.node.peer_id].failures_in_a_row == 0


async def test_a_host_that_is_silent_while_another_one_lives_is_left_all_the_same(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        members = [(await w.host(model=priced(tokens_per_s=10)))[0] for _ in range(2)]
        async with w.client(members[0]) as client:
            client.runtime.bootstrap = tuple(each.node.multiaddrs[0] for each in members)
            await client.hosts(SCRIPTED)
            client.searches.note_answer(members[0].node.peer_id, 0.001, 10_000.0)
            answer = ask(client, tokens=60)
            async for _ in answer:
                if len(answer.ids) == 20 and answer.host == members[0].node.peer_id:
                    engine = members[0].host.models[0].new_engine()  # type: ignore[union-attr]
                    w.world.net.partition(["10.0.0.1"], ["10.0.9.9"])
                    assert engine.statistics().active == 1
            assert len(answer.ids) == 60
            assert answer.host == members[1].node.peer_id
