"""Keys with budgets over whole nodes: what hosts can claim is what keys spent, within their budgets."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.client.hedging import SAMPLES_MIN, SHARE
from p2pnode.client.host_rules import HostRules
from p2pnode.client.interface import Answer
from p2pnode.client.ranking import Filters
from p2pnode.errors import BudgetError, NoHostError, P2PNodeError
from p2pnode.ids import ModelId
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.scripted import ScriptedConfig
from p2pnode.net.virtual_time import wall_clock
from p2pnode.payments.books import open_journal
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.keys import Key, KeyBook, KeyLimits
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, SamplingParams
from tests.client.failing import meet
from tests.client.support import Events
from tests.host.paid import FEE, PRICE_OUT, PaidWorld, paid_world, priced
from tests.node.world import Member
from tests.sqlite_disk import WatchedDisk

Running = tuple[Member, HostMoney]
OUT = PRICE_OUT // 1_000_000
ROUNDING = 2
QUESTIONS = 16


async def key(journal: Journal, name: str = "codex", **limits: Any) -> Key:
    book = KeyBook(journal, wall=wall_clock, draw=random.Random(name).randbytes)
    return (await book.new(name, KeyLimits(**limits))).key


def spent(journal: Journal, *keys: Key) -> int:
    return sum(journal.key_usage(each.id, int(wall_clock())).total for each in keys)


def claimed(journal: Journal, each: Key) -> int:
    return journal.key_usage(each.id, int(wall_clock())).claimed


def signed(journal: Journal) -> int:
    """What hosts can claim by what this wallet signed: of each session its fee or its best voucher."""
    sessions = [each for each in journal.purchases() if each.state != "expired"]
    return sum(max(each.terms.session_fee, each.voucher.amount if each.voucher else 0) for each in sessions)


@contextlib.asynccontextmanager
async def market(
    folder: Path, count: int, *, prefill: Sequence[float | None] = (None,)
) -> AsyncIterator[tuple[PaidWorld, list[Running]]]:
    """``prefill``: tokens of input that each host reads in a second; None for all at once."""
    async with paid_world(folder) as w:
        paces = itertools.islice(itertools.cycle(prefill), count)
        models = [priced(tokens_per_s=200.0, prefill_tokens_per_s=pace) for pace in paces]
        yield w, [await w.host(model=model, keep_s=3600) for model in models]


@contextlib.asynccontextmanager
async def client_of(
    w: PaidWorld, running: Sequence[Running], folder: Path, disk: WatchedDisk | None = None
) -> AsyncIterator[tuple[Client, Journal]]:
    """The user's client, with one journal whenever it starts, and that journal as another process sees it."""
    members = [member for member, _ in running]
    path = folder / "client.sqlite"
    async with (
        open_journal(path, in_thread=False) as journal,
        w.client(members[0], journal=path, disk=disk, keep_s=3600) as client,
    ):
        client.runtime.bootstrap = tuple(member.node.multiaddrs[0] for member in members)
        await meet(client, members)
        yield client, journal


def ask(client: Client, budget: Key | None, tokens: int = 80, only: Member | None = None) -> Answer:
    rules = HostRules.of(only=[only.node.peer_id]) if only is not None else HostRules()
    return client.chat(
        "hello", model=SCRIPTED, filters=Filters(rules=rules), budget=budget,
        sampling=SamplingParams(tokens_max=tokens, temperature=0),
    )  # fmt: skip


async def read(answer: Answer) -> None:
    async for _ in answer:
        pass


async def test_what_a_key_spent_is_what_its_hosts_can_claim_to_the_unit(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 1) as (w, running), client_of(w, running, tmp_path) as (client, journal):
        codex = await key(journal, total_max=100_000)
        for _ in range(2):
            await read(ask(client, codex))
        assert spent(journal, codex) == signed(journal)
        assert spent(journal, codex) > FEE + 2 * 80 * OUT
        assert claimed(journal, codex) == 0, "what was not used is given back"


async def test_an_answer_ends_at_a_step_where_its_budget_ends_and_another_key_goes_on_in_the_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 1) as (w, running), client_of(w, running, tmp_path) as (client, journal):
        poor = await key(journal, "poor", total_max=FEE + 1_500)
        rich = await key(journal, "rich", total_max=100_000)
        answer = ask(client, poor, tokens=1_000)
        with pytest.raises(BudgetError, match="'poor'") as caught:
            await read(answer)
        assert caught.value.reason == "total"
        assert 0 < len(answer.ids) < 500
        assert spent(journal, poor) <= FEE + 1_500
        window = CHECKPOINT_EVERY * (ScriptedConfig().slots + 1)
        assert spent(journal, poor) > FEE + 1_500 - OUT * (window + 3 * CHECKPOINT_EVERY), "it is made use of"
        with pytest.raises(BudgetError):
            await read(ask(client, poor, tokens=1_000))
        await read(ask(client, rich))
        assert len(journal.purchases()) == 1, "nothing was closed, and no second fee was paid"
        assert spent(journal, poor, rich) == signed(journal)
        assert spent(journal, rich) < 1_000


async def test_two_keys_share_a_session_and_its_vouchers_and_each_pays_for_its_own_tokens(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 1) as (w, running), client_of(w, running, tmp_path) as (client, journal):
        one, other = await key(journal, "one"), await key(journal, "other")
        first, second, own = ask(client, one, 100), ask(client, other, 150), ask(client, None, 90)
        await read(ask(client, one, 1))  # it opens the session, and pays the fee
        before = {each.id: spent(journal, each) for each in (one, other)}
        unkeyed = signed(journal)
        async with trio.open_nursery() as nursery:
            for answer in (first, second, own):
                nursery.start_soon(read, answer)
        assert len(journal.purchases()) == 1
        for each, answer in ((one, first), (other, second)):
            (item,) = answer.bill
            cost = item.tokens_in - item.reused + OUT * item.tokens_out
            assert abs(spent(journal, each) - before[each.id] - cost) <= ROUNDING
        (item,) = own.bill
        rest = signed(journal) - unkeyed - spent(journal, one, other) + sum(before.values())
        assert abs(rest - (item.tokens_in - item.reused + OUT * item.tokens_out)) <= ROUNDING


async def test_a_host_that_asks_more_than_a_key_allows_is_left_out(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 1) as (w, running), client_of(w, running, tmp_path) as (client, journal):
        careful = await key(journal, price_out_max=PRICE_OUT - 1)
        with pytest.raises(NoHostError):
            await read(ask(client, careful))
        assert journal.purchases() == []
        elsewhere = await key(journal, "elsewhere", models=(ModelId(b"\x01" * 32),))
        with pytest.raises(BudgetError) as caught:
            ask(client, elsewhere)
        assert caught.value.reason == "model"


class Asked:
    """A question of which a second host is asked, too, when the first is late; the client decides which."""

    def __init__(self, client: Client, budget: Key, draw: random.Random) -> None:
        hedging = client.searches.hedging
        for _ in range(math.ceil(1 / SHARE)):  # each question may have a second host
            hedging.turn()
        sampling = SamplingParams(tokens_max=draw.choice([20, 80, 400]), temperature=0)
        question = f"{draw.randrange(10**6)}: hello"  # none of it is in a cache
        self._answer = client.chat(question, model=SCRIPTED, budget=budget, sampling=sampling, hedge="always")
        self.refusals: list[BudgetError] = []

    async def run(self) -> None:
        try:
            await read(self._answer)
        except BudgetError as error:
            self.refusals.append(error)
        except P2PNodeError:
            pass  # a killed process asks nobody


async def spend_until_killed(
    w: PaidWorld, running: Sequence[Running], folder: Path, budget: Key, *, seconds: float, seed: int
) -> tuple[list[BudgetError], int]:
    """16 questions at once over all hosts, over and over, until the process is killed; returns what refused
    them, and how many second hosts were asked."""
    disk, draw = WatchedDisk(), random.Random(seed)
    refusals: list[BudgetError] = []
    hedges = Events()
    with trio.CancelScope() as alive:
        async with client_of(w, running, folder, disk) as (client, journal):
            hedges.of(client)
            for member, _ in running:
                for _ in range(SAMPLES_MIN):
                    client.searches.hedging.first_tokens.note(member.node.peer_id, 100, 0.1)

            async def kill() -> None:
                await trio.sleep(seconds)
                disk.dead = True
                alive.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                while not refusals:
                    questions = [Asked(client, budget, draw) for _ in range(QUESTIONS)]
                    async with trio.open_nursery() as asking:
                        for question in questions:
                            asking.start_soon(question.run)
                    refusals += itertools.chain.from_iterable(each.refusals for each in questions)
                    check(journal, budget)
                nursery.cancel_scope.cancel()
    return refusals, len(hedges.named("hedge"))


def check(journal: Journal, budget: Key) -> None:
    """All that hosts can claim is this key's, and it is within its budget."""
    used = journal.key_usage(budget.id, int(wall_clock()))
    most = budget.limits.total_max
    assert most is not None
    assert used.total == signed(journal)
    assert used.total <= most
    assert used.total + used.claimed <= most


async def killed_and_started_again(folder: Path, seed: int, starts: int) -> None:
    draw = random.Random(seed)
    async with market(folder, 3, prefill=(20.0, 15.0, 60.0)) as (w, running):
        async with open_journal(folder / "client.sqlite", in_thread=False) as journal:
            budget = await key(journal, total_max=3 * FEE + draw.randrange(3_000, 30_000))
        refused, hedged = False, 0
        for start in range(starts):
            seconds = draw.uniform(0.05, 3.0) if start < starts - 1 else 600.0
            refusals, hedges = await spend_until_killed(
                w, running, folder, budget, seconds=seconds, seed=seed + start
            )
            refused, hedged = refused or bool(refusals), hedged + hedges
            with open_reading(folder / "client.sqlite") as journal:
                check(journal, budget)
        assert refused, "in the end the budget was used up"
        assert hedged, "second hosts were asked"
        with open_reading(folder / "client.sqlite") as journal:
            claims = {each.session: each for each in journal.purchases()}
        for _, money in running:
            for hosted in money.journal.hosted():
                ours, theirs = claims[hosted.session].voucher, hosted.voucher
                assert (theirs.amount if theirs else 0) <= (ours.amount if ours else 0)


@contextlib.contextmanager
def open_reading(path: Path) -> Iterator[Journal]:
    journal = Journal.open(path, in_thread=False)
    try:
        yield journal
    finally:
        journal.close()


@pytest.mark.parametrize("seed", [1])
async def test_no_budget_is_passed_by_16_hedged_questions_over_three_hosts_and_kills(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    await killed_and_started_again(tmp_path, seed, 2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 22))
async def test_no_budget_is_passed_whenever_the_kills_come(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    await killed_and_started_again(tmp_path, seed, 6)
