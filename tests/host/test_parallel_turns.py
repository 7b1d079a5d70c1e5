"""Several questions at once from one client to one host: one escrow, one fee, no wait for a slow reader."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from p2pnode.errors import P2PNodeError
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net.memory import MemoryNet
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.spending import SpendingLimits
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.support import whole
from tests.host.paid import paid_world, priced
from tests.host.support import WINDOW
from tests.host.test_paid import due, settled
from tests.host.test_paid_failover import market, purchase
from tests.node.world import scripted_host, world
from tests.sqlite_disk import WatchedDisk

EIGHT: Final = 8
WINDOW_OF_EIGHT: Final = 32 * (EIGHT + 1)
KEEP_S: Final = 3600
TOKENS: Final = 200
SEEDS: Final = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 32))]


def asked(client: Client, number: int, tokens: int = TOKENS) -> Answer:
    """A question of its own, answered greedily."""
    sampling = SamplingParams(tokens_max=tokens, temperature=0)
    return client.chat(f"question {number}", model="scripted", sampling=sampling)


def bought_in(path: Path) -> BoughtSession:
    """The one session of a client's journal."""
    journal = Journal.open(path, in_thread=False)
    try:
        (bought,) = journal.purchases()
        return bought
    finally:
        journal.close()


async def read_all(answers: list[Answer]) -> None:
    """All of them at once, to their ends."""
    async with trio.open_nursery() as nursery:
        for answer in answers:
            nursery.start_soon(whole, answer)


async def alone(tokens: int = TOKENS) -> dict[int, str]:
    """What a host answers when it is asked one question after another."""
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            return {number: await whole(asked(client, number, tokens)) for number in range(EIGHT)}


@pytest.mark.parametrize("slots", [1, EIGHT])
async def test_eight_questions_at_once_are_one_open_one_fee_and_settled_to_the_unit(
    tmp_path: Path, autojump_clock: MockClock, slots: int
) -> None:
    texts = await alone()
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(slots=slots, tokens_per_s=50))
        async with w.client(member) as client:
            answers = [asked(client, number) for number in range(EIGHT)]
            began = trio.current_time()
            await read_all(answers)
            took_s = trio.current_time() - began
            assert [answer.text for answer in answers] == list(texts.values())
            (hosted,) = money.journal.hosted()
            assert {answer.bill[0].session for answer in answers} == {hosted.session}
            items = [item for answer in answers for item in answer.bill]
            assert len(items) == EIGHT
            in_all = due(
                sum(item.tokens_in - item.reused for item in items), sum(item.tokens_out for item in items)
            )
            assert sum(item.cost for item in items) == in_all
            at_best_s = EIGHT / slots * TOKENS / 50
            assert at_best_s <= took_s < 1.3 * at_best_s + 5
        await trio.sleep(10)
        settled(w, in_all)


async def test_one_of_eight_answers_that_is_never_read_and_one_read_slowly_hold_up_no_other(
    autojump_clock: MockClock,
) -> None:
    async def seconds(*, idle: bool) -> float:
        async with world() as w:
            host = await w.add([scripted_host(slots=EIGHT, tokens_per_s=20)])
            async with w.client(host.node.multiaddrs[:1]) as client:
                others = [asked(client, number, 400) for number in range(6)]
                unread, slow = asked(client, 6, 1000), asked(client, 7, 1000)
                if idle:
                    await anext(unread)
                    await anext(slow)
                began = trio.current_time()

                async def trickle() -> None:
                    async for _ in slow:
                        await trio.sleep(1)

                async with trio.open_nursery() as nursery:
                    if idle:
                        nursery.start_soon(trickle)
                    await read_all(others)
                    took_s = trio.current_time() - began
                    nursery.cancel_scope.cancel()
                return took_s

    six_alone = await seconds(idle=False)
    assert await seconds(idle=True) <= 1.05 * six_alone


@pytest.mark.parametrize("round_trip_s", [0.0, 0.1])
async def test_eight_turns_of_one_session_are_as_fast_as_eight_sessions(
    autojump_clock: MockClock, round_trip_s: float
) -> None:
    async def seconds(*, clients: int) -> float:
        net = MemoryNet(latency=round_trip_s / 2)
        limits = replace(DEFAULT_LIMITS, sessions_per_peer=EIGHT)
        async with world(net=net, limits=limits) as w, contextlib.AsyncExitStack() as stack:
            host = await w.add([scripted_host(slots=EIGHT, tokens_per_s=100)])
            asking = [
                await stack.enter_async_context(w.client(host.node.multiaddrs[:1], f"10.0.9.{10 + number}"))
                for number in range(clients)
            ]
            for client in asking:  # the search is over, and a session is open
                await whole(asked(client, 99, 1))
            answers = [asked(asking[number % clients], number, 500) for number in range(EIGHT)]
            began = trio.current_time()
            await read_all(answers)
            assert host.host is not None
            assert host.host.totals.sessions == clients
            return trio.current_time() - began

    eight, one = await seconds(clients=EIGHT), await seconds(clients=1)
    assert eight >= 0.97 * one


async def test_a_turn_that_is_cancelled_or_fails_leaves_the_others_of_its_session_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    texts = await alone()
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(slots=EIGHT, tokens_per_s=50))
        async with w.client(member) as client:
            answers = [asked(client, number) for number in range(EIGHT)]

            async def stop(answer: Answer) -> None:
                async for _ in answer:
                    if len(answer.ids) > 40:
                        break
                await answer.aclose()

            async with trio.open_nursery() as nursery:
                for number, answer in enumerate(answers):
                    nursery.start_soon(stop if number % 2 else whole, answer)
            assert [answer.text for answer in answers[::2]] == list(texts.values())[::2]
            (hosted,) = money.journal.hosted()
            cost = sum(item.cost for answer in answers for item in answer.bill)
        await trio.sleep(10)
        settled(w, cost)
        assert money.journal.hosted()[0].session == hosted.session


@pytest.mark.parametrize("seed", SEEDS)
async def test_connections_that_break_at_random_lose_and_bill_nothing_twice(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    """Eight answers through a connection that breaks at random; nothing is lost or billed twice."""
    rng = random.Random(seed)
    texts = await alone()
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(slots=EIGHT, tokens_per_s=50))
        async with w.client(member) as client:
            answers = [asked(client, number) for number in range(EIGHT)]

            async def break_off() -> None:
                await trio.sleep(0.5)  # until a session is open: before, another host would be asked
                for _ in range(rng.randint(1, 4)):
                    await trio.sleep(rng.uniform(0.05, 2.5))
                    w.world.net.partition(["10.0.9.9"], ["10.0.0.1"])
                    w.world.net.heal()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(break_off)
                await read_all(answers)
            assert [answer.text for answer in answers] == list(texts.values())
            items = [item for answer in answers for item in answer.bill]
            assert len({item.session for item in items}) == 1, "one open, one fee"
            cost = sum(item.cost for item in items)
        await trio.sleep(400)
        settled(w, cost)
        assert len(money.journal.hosted()) == 1


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_host_that_is_killed_loses_a_window_at_most_and_its_eight_answers_nothing(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    """Eight answers of a host that dies at a random moment; another host goes on with all of them."""
    rng = random.Random(seed)
    texts = await alone()
    async with market(tmp_path, 2) as (w, running, client):
        answers = [asked(client, number) for number in range(EIGHT)]

        async def kill() -> None:
            await trio.sleep(rng.uniform(0.5, 6))
            w.kill(*running[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            await read_all(answers)
        assert [answer.text for answer in answers] == list(texts.values())
        assert [len(money.journal.hosted()) for _, money in running] == [1, 1], "two opens, two fees"
        first = [
            item for answer in answers for item in answer.bill if item.peer == running[0][0].node.peer_id
        ]
        assert len({item.session for item in first}) == 1
        voucher = purchase(client, first[0]).voucher
        best = running[0][1].journal.hosted()[0].voucher
        assert voucher is not None
        assert best is not None
        # The client signed for exactly what it received; what the host holds lags by no more than a window
        # and the inputs whose first token had not come.
        assert (
            sum(item.cost for item in first) == voucher.amount == due(voucher.tokens_in, voucher.tokens_out)
        )
        assert sum(item.tokens_out for item in first) == voucher.tokens_out
        inputs = sorted(item.tokens_in for item in first)[-2:]
        assert best.amount <= voucher.amount
        assert voucher.tokens_out - best.tokens_out <= WINDOW
        assert voucher.tokens_in - best.tokens_in <= sum(inputs)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_client_that_is_killed_shows_honest_parts_and_pays_what_it_signed_when_it_is_back(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    """A client that dies with eight turns under way, and is started again on its journal."""
    rng = random.Random(seed)
    texts = list((await alone()).values())
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(slots=EIGHT, tokens_per_s=50), keep_s=KEEP_S)
        journal, disk = tmp_path / "client.sqlite", WatchedDisk()
        shown: list[str] = []
        with contextlib.suppress(P2PNodeError):
            async with w.client(member, journal=journal, keep_s=KEEP_S, ip="10.0.9.8", disk=disk) as client:
                answers = [asked(client, number) for number in range(EIGHT)]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read_all, answers)
                    await trio.sleep(rng.uniform(0.5, 4.5))
                    disk.dead = True  # from here on it writes nothing, and nobody hears of it
                    w.world.net.crash("10.0.9.8")
                    shown = [answer.text for answer in answers]
                    nursery.cancel_scope.cancel()
        assert all(whole.startswith(text) for whole, text in zip(texts, shown, strict=True))
        lost = bought_in(journal)
        (held,) = money.journal.hosted()
        best, signed = held.voucher, lost.final or lost.voucher
        # It may have died before its first voucher, or while that was on its way.
        best_out, best_amount = (best.tokens_out, best.amount) if best is not None else (0, 0)
        nothing = (0, due(0, 0))  # but the session's fee
        signed_out, signed_amount = (signed.tokens_out, signed.amount) if signed is not None else nothing
        assert 0 <= signed_out - best_out <= WINDOW_OF_EIGHT
        assert best_amount <= signed_amount
        await trio.sleep(400)  # longer than the host waits for it
        async with w.client(member, journal=journal, keep_s=KEEP_S, units=0) as client:
            again = [asked(client, number) for number in range(EIGHT)]
            await read_all(again)
            assert [answer.text for answer in again] == texts
            items = [item for answer in again for item in answer.bill]
            assert {item.session for item in items} == {held.session}, "no second fee"
            assert money.journal.hosted()[0].generation == 1
        after = bought_in(journal)
        assert after.owed is None
        assert after.voucher is not None
        # What was signed before it died is paid, and nothing of it twice.
        cost = sum(item.cost for item in items)
        assert after.voucher.amount == signed_amount + cost
        await trio.sleep(2 * KEEP_S)
        settled(w, after.voucher.amount)


async def test_a_deposit_that_is_used_up_by_many_turns_is_followed_by_one_new_escrow_for_all_of_them(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    texts = await alone()
    limits = SpendingLimits(session_max=due(60, 3 * TOKENS))
    async with market(tmp_path, 1, limits=limits) as (_, running, client):
        answers = [asked(client, number) for number in range(EIGHT)]
        await read_all(answers)
        assert [answer.text for answer in answers] == list(texts.values())
        await trio.sleep(5)  # the last voucher arrives
        sessions = running[0][1].journal.hosted()
        # 8 x 200 tokens of output in escrows for about 600 each, and one or two more for what was cut.
        assert 3 <= len(sessions) <= 5
        items = [item for answer in answers for item in answer.bill]
        assert sum(item.cost for item in items) == sum(
            record.voucher.amount for record in sessions if record.voucher is not None
        )
