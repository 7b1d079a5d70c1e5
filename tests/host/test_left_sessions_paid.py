"""Sessions that are left with a host and resumed by another command: one fee, each unit where it belongs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.errors import ConfigError, LocalError, NoHostError, P2PNodeError, RefusedError
from p2pnode.net.virtual_time import wall_clock
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.books import open_journal
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.exposure import ExposureLimits
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, Journal
from p2pnode.payments.payer import Payer, Purchase
from p2pnode.payments.redelivery import close_at_host, redeliver_all
from p2pnode.payments.spending import SpendingLimits
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.support import Events
from tests.host.paid import FEE, LIMITS, RICH, PaidWorld, domains, paid_world
from tests.host.test_paid import answer, due, settled
from tests.node.world import Member
from tests.sqlite_disk import WatchedDisk

KEEP_S = 3600
PARALLEL_WINDOW = 3 * 32 * 5
"""Token units: the window of a session of four turns at once."""


@dataclass
class User:
    """Commands of one user, one after another, on one journal."""

    world: PaidWorld
    member: Member
    journal: Path
    tokens: list[tuple[int, int]] = field(default_factory=list)
    events: list[Events] = field(default_factory=list)
    units: int = RICH
    limits: SpendingLimits | None = None

    def command(self, ip: str = "10.0.9.9") -> AbstractAsyncContextManager[Client]:
        units, self.units = self.units, 0
        return self.world.client(
            self.member, journal=self.journal, keep_s=KEEP_S, units=units, ip=ip, limits=self.limits
        )

    async def ask(self, tokens: int = 80) -> tuple[int, int]:
        async with self.command() as client:
            self.events.append(Events())
            self.events[-1].of(client)
            self.tokens.append(await answer(client, tokens=tokens))
        return self.tokens[-1]

    @property
    def due(self) -> int:
        """What all of it costs in one session."""
        return due(*(sum(each) for each in zip(*self.tokens, strict=True)))

    @property
    def bought(self) -> list[BoughtSession]:
        journal = Journal.open(self.journal, in_thread=False)
        try:
            return journal.purchases()
        finally:
            journal.close()


def user(w: PaidWorld, member: Member) -> User:
    return User(w, member, w.folder / "client.sqlite")


def reserved(member: Member) -> int:
    """Token units that this host reserves for sessions that are in use."""
    assert member.host is not None
    assert member.host.escrow is not None
    return member.host.escrow.exposure.units


def hosted(money: HostMoney) -> HostedSession:
    (record,) = money.journal.hosted()
    return record


async def test_three_commands_share_one_session_and_one_fee(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        for _ in range(3):
            await alice.ask()
            await trio.sleep(60)
        record = hosted(money)
        assert (record.state, record.generation) == ("over", 2)
        assert record.left_until == record.settle_at
        assert record.voucher is not None
        assert record.voucher.amount == alice.due
        (mine,) = alice.bought
        assert (mine.state, mine.left_until, mine.generation) == ("open", record.left_until, 2)
        assert mine.owed is None
        assert w.chain.block == 1  # one open
        await trio.sleep(KEEP_S)
        settled(w, alice.due)
        assert w.chain.block == 2
        assert hosted(money).state == "settled"


@pytest.mark.parametrize("keep_s", [0, KEEP_S])
async def test_a_later_command_knows_that_the_host_has_finished_a_turn_for_its_wallet(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, keep_s: int
) -> None:
    known: list[bool] = []
    for name in ("buy", "take_left"):
        pay = getattr(Payer, name)

        async def noting(*given: Any, pay: Any = pay, **named: Any) -> Any:
            if (purchase := await pay(*given, **named)) is not None:
                known.append(purchase.payment.has_finished)
            return purchase

        monkeypatch.setattr(Payer, name, noting)
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(keep_s=keep_s)
        alice = user(w, member)
        for _ in range(2):
            await alice.ask()
            await trio.sleep(60)
        async with w.client(member, name="bob") as other:
            await answer(other)
    assert known == [False, True, False]


async def test_a_second_command_finds_the_cache_of_the_first(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        first, second = await alice.ask(), await alice.ask()
        assert second[0] < first[0]


async def test_a_host_that_keeps_nothing_settles_when_its_client_closes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        alice = user(w, member)
        await alice.ask()
        await trio.sleep(2)
        settled(w, alice.due)
        assert hosted(money).keep_s == 0


@pytest.mark.parametrize("killed", [False, True])
async def test_a_session_that_is_left_reserves_nothing_and_owes_its_window_again_when_it_is_resumed(
    tmp_path: Path, autojump_clock: MockClock, *, killed: bool
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        async with alice.command() as client:
            alice.tokens.append(await answer(client))
            assert reserved(member) == PARALLEL_WINDOW
        await trio.sleep(1)
        assert reserved(member) == 0
        if killed:
            w.kill(member, money)
            member, money = await w.host(index=0, journal=tmp_path / "host 0.sqlite", keep_s=KEEP_S)
            alice.member = member
        async with alice.command() as client:
            alice.tokens.append(await answer(client))
            assert reserved(member) == PARALLEL_WINDOW


async def test_one_whose_window_is_not_free_now_is_refused_and_stays_also_where_a_smaller_one_would_be(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        free = PARALLEL_WINDOW + 3 * 64
        member, money = await w.host(keep_s=KEEP_S, exposure_limits=ExposureLimits(payer=free))
        alice = user(w, member)
        await alice.ask()
        async with w.client(member, units=RICH, ip="10.0.9.7") as other:  # the same wallet, another machine
            await answer(other)
            assert reserved(member) == PARALLEL_WINDOW
            with pytest.raises(RefusedError, match="may owe this host"):
                await alice.ask()
            assert reserved(member) == PARALLEL_WINDOW
        await trio.sleep(2)
        async with alice.command() as client:
            alice.tokens.append(await answer(client))
            assert reserved(member) == PARALLEL_WINDOW
        assert money.journal.hosted()[0].generation == 1


async def test_one_whose_payer_owes_too_much_already_is_refused_and_stays(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S, exposure_limits=ExposureLimits(payer=3 * 64))
        alice = user(w, member)
        await alice.ask()
        async with w.client(member, units=RICH, ip="10.0.9.7") as other:  # the same wallet, another machine
            await answer(other)
            with pytest.raises(RefusedError, match="may owe this host"):
                await alice.ask()
        assert (hosted_first := money.journal.hosted()[0]).state == "over"
        assert hosted_first.left_until is not None
        await trio.sleep(2)
        await alice.ask()
        assert money.journal.hosted()[0].generation == 1


# ---- it ends once, whatever ends it


async def test_a_host_that_stops_settles_what_is_left_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        await alice.ask()
        await member.node.aclose()
        settled(w, alice.due)
        assert w.chain.block == 2
        assert hosted(money).state == "settled"


async def test_one_that_owes_more_than_is_worth_waiting_for_is_settled_when_it_is_left(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "SETTLE_ABOVE_LEAST", 0)
    monkeypatch.setattr(policy, "SETTLE_ABOVE_FEES", 1)
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        await alice.ask()
        await trio.sleep(2)
        settled(w, alice.due)
        assert hosted(money).state == "settled"
        assert [each.state for each in alice.bought] == ["over"]
        await alice.ask()
        assert len(money.journal.hosted()) == 2


@pytest.mark.parametrize("left", [True, False], ids=["left", "in use"])
async def test_a_host_that_was_killed_keeps_it_and_settles_it_once(
    tmp_path: Path, autojump_clock: MockClock, *, left: bool
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        if left:
            await alice.ask()
            w.kill(member, money)
        else:
            async with alice.command() as client:
                alice.tokens.append(await answer(client))
                w.kill(member, money)
        again, money = await w.host(index=0, journal=tmp_path / "host 0.sqlite", keep_s=KEEP_S)
        alice.member = again
        await alice.ask()
        assert hosted(money).generation == 1
        assert hosted(money).voucher is not None
        await trio.sleep(KEEP_S + 5)
        settled(w, alice.due)
        assert w.chain.block == 2


async def test_seventeen_sessions_of_one_payer_leave_sixteen_and_the_first_is_settled(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnode.host.left_sessions.LEFT_PER_PAYER", 2)
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        for number in range(3):
            async with w.client(member, journal=tmp_path / f"{number}.sqlite", keep_s=KEEP_S) as client:
                await answer(client)
        await trio.sleep(2)
        assert [each.state for each in money.journal.hosted()] == ["settled", "over", "over"]


# ---- who resumes it


async def test_a_command_that_is_killed_leaves_its_session_by_itself(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        with suppress(P2PNodeError):
            async with alice.command() as client:
                alice.tokens.append(await answer(client))
                w.world.net.crash("10.0.9.9")
        w.world.net.restart("10.0.9.9")
        assert hosted(money).left_until is not None
        await alice.ask()
        assert hosted(money).generation == 1
        await trio.sleep(KEEP_S + 400)
        settled(w, alice.due)


async def test_of_two_commands_at_once_one_has_it_and_neither_loses(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        await alice.ask()
        alice.units = RICH
        async with alice.command() as one, alice.command(ip="10.0.9.8") as two:
            alice.tokens += [await answer(one), await answer(two)]
        first, second = money.journal.hosted()
        assert (first.generation, second.generation) == (1, 0)
        assert first.voucher is not None
        assert second.voucher is not None
        assert first.voucher.amount + second.voucher.amount == alice.due + FEE


async def test_one_that_its_host_closed_before_its_time_is_bought_anew_and_remembered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        await alice.ask()
        await money.journal.host_over(hosted(money).session, 0)
        await trio.sleep(2)
        async with alice.command() as client:
            await answer(client)
            assert client.searches.measured[member.node.peer_id].left_closed == 1
        assert [each.state for each in alice.bought] == ["over", "open"]


async def test_one_whose_host_is_away_stays_left(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        await alice.ask()
        w.kill(member, money)
        with pytest.raises(NoHostError):
            await alice.ask()
        (mine,) = alice.bought
        assert (mine.state, mine.left_until is not None) == ("open", True)


# ---- the limit of a day


async def test_a_limit_that_is_reached_ends_the_answer_and_closes_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        alice.limits = SpendingLimits(day_max=FEE + 1_000, locked_max=RICH)
        async with alice.command() as client:
            asked = client.chat(
                "hello", model="scripted", sampling=SamplingParams(tokens_max=400, temperature=0)
            )
            with pytest.raises(ConfigError, match="spend_day_max"):
                async for _ in asked:
                    pass
            (item,) = asked.bill
            assert 0 < item.tokens_out < 400
            assert FEE + 1_000 - 3 * 2 * 96 < item.cost <= FEE + 1_000
            # Up to two windows may be left of the limit: a short answer would still fit in them.
            with pytest.raises(ConfigError, match="spend_day_max"):
                await answer(client, tokens=400)
        record = hosted(money)
        assert record.left_until is not None
        assert record.voucher is not None
        assert item.cost <= record.voucher.amount <= FEE + 1_000
        (mine,) = alice.bought
        assert (mine.state, mine.due) == ("open", record.voucher.amount)


# ---- power cuts


class DyingDisk(WatchedDisk):
    """A disk that takes so many commits; then the process is dead, and ``then`` is told."""

    def __init__(self, commits: int, then: Callable[[], None]) -> None:
        super().__init__()
        self.left, self.then = commits, then

    def commit(self, db: sqlite3.Connection) -> None:
        if self.left <= 0 and not self.dead:
            self.dead = True
            self.then()
        self.left -= 1
        super().commit(db)


def audited(w: PaidWorld, alice: User, money: HostMoney) -> None:
    """Each session was settled once, for what the host's best voucher says, and at most what was signed."""
    bought = {each.session: each for each in alice.bought}
    paid = 0
    for record in money.journal.hosted():
        if record.state == "lost":
            continue
        assert record.state == "settled", record
        assert record.amount == (record.voucher.amount if record.voucher is not None else FEE)
        signed = bought[record.session]
        assert record.amount <= max(FEE, signed.due)
        paid += record.amount
    assert RICH - w.balance("alice") == paid
    assert w.earned("host 0") + w.treasury == paid
    assert w.chain.block <= 2 * len(bought)


async def _host_dies(folder: Path, commits: int) -> bool:
    """Whether the host was killed in the middle of two commands that use one session."""
    async with paid_world(folder) as w:
        disk = DyingDisk(10**9, lambda: w.kill(member, money))
        member, money = await w.host(keep_s=KEEP_S, disk=disk)
        disk.left = commits
        alice = user(w, member)
        for _ in range(2):
            with suppress(P2PNodeError):
                await alice.ask(40)
        killed = disk.dead
        if not killed:
            w.kill(member, money)
        again, money = await w.host(index=0, journal=folder / "host 0.sqlite", keep_s=KEEP_S)
        alice.member = again
        await alice.ask(40)
        await trio.sleep(2 * KEEP_S)
        audited(w, alice, money)
        return killed


@pytest.mark.long
async def test_a_host_that_is_killed_at_any_write_loses_no_session_and_settles_each_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    commits = 0
    while True:
        folder = tmp_path / str(commits)
        folder.mkdir()
        if not await _host_dies(folder, commits):
            break
        commits += 1
    assert commits > 8


async def _client_dies(folder: Path, commits: int) -> bool:
    """Whether the second of three commands was killed."""
    async with paid_world(folder) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        await alice.ask(40)
        disk = DyingDisk(commits, lambda: w.world.net.crash("10.0.9.8"))
        with suppress(P2PNodeError):
            async with w.client(
                member, journal=alice.journal, keep_s=KEEP_S, units=0, ip="10.0.9.8", disk=disk
            ) as client:
                await answer(client, tokens=40)
        await trio.sleep(400)  # longer than a host waits for a client that was lost
        await alice.ask(40)
        await trio.sleep(2 * KEEP_S)
        audited(w, alice, money)
        (record,) = money.journal.hosted()  # one fee, whatever died when
        assert record.voucher is not None
        return disk.dead


@pytest.mark.long
async def test_a_command_that_is_killed_at_any_write_loses_no_session_and_pays_no_second_fee(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    commits = 0
    while True:
        folder = tmp_path / str(commits)
        folder.mkdir()
        if not await _client_dies(folder, commits):
            break
        commits += 1
    assert commits > 3


async def test_a_disk_that_fails_at_the_end_of_an_answer_keeps_nobody_waiting_for_it(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_purchase: Purchase) -> None:
        msg = "the disk is full"
        raise LocalError(msg)

    monkeypatch.setattr(Purchase, "release_all", full)
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        with trio.fail_after(600):
            assert (await alice.ask(40))[1] == 40
        record = hosted(money)
        assert record.voucher is not None
        assert alice.due - PARALLEL_WINDOW <= record.voucher.amount <= alice.due


# ---- closed by hand


async def test_a_session_that_was_left_is_closed_by_its_host_when_its_user_says_so(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        await alice.ask()
        (mine,) = alice.bought
        async with alice.command() as client, open_journal(alice.journal, in_thread=False) as journal:
            assert await journal.bought_take(mine.session, int(wall_clock())) is not None
            await client.node.network.connect_peer(member.node.peer_id, (), trusted=member.node.multiaddrs)
            market = domains().market
            assert await close_at_host(mine, journal, market, client.node.network, limits=LIMITS) == ""
        await trio.sleep(2)
        settled(w, alice.due)
        assert [each.state for each in alice.bought] == ["over"]


async def test_one_whose_host_is_away_is_closed_when_a_later_command_finds_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(keep_s=KEEP_S)
        alice = user(w, member)
        await alice.ask()
        (mine,) = alice.bought
        w.kill(member, money)
        async with alice.command() as client, open_journal(alice.journal, in_thread=False) as journal:
            await journal.bought_take(mine.session, int(wall_clock()))
            why = await close_at_host(mine, journal, domains().market, client.node.network, limits=LIMITS)
            assert why != ""
            again, money = await w.host(index=0, journal=tmp_path / "host 0.sqlite", keep_s=KEEP_S)
            await client.node.network.connect_peer(again.node.peer_id, (), trusted=again.node.multiaddrs)
            now = int(wall_clock())
            done = await redeliver_all(journal, domains().market, client.node.network, limits=LIMITS, now=now)
            assert [each.outcome for each in done] == ["delivered"]
        await trio.sleep(2)
        settled(w, alice.due)
