"""Two machines of one user, who know the twelve words, and one session that was left: by the sealed index."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.ledger import SessionClosed
from p2pnode.client.client import Client
from p2pnode.node.datadir import DataDir
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.journal.journal import HostedSession
from tests.client.machines import machine, options
from tests.client.support import Events
from tests.host.paid import FEE, RICH, PaidWorld, paid_world, wallet_address
from tests.host.test_paid import due
from tests.node.world import Member
from tests.storage.blob_world import serve_store

KEEP_S = 600


@dataclass
class User:
    """Machines of one user. What is asked on any of them is counted."""

    w: PaidWorld
    host: Member
    money: HostMoney
    stores: list[Member]
    tokens: list[tuple[int, int]] = field(default_factory=list)

    def at(self, name: str, number: int, told: Events | None = None) -> AbstractAsyncContextManager[Client]:
        """A command on the machine of this name; the machine is made where there is none."""
        folder = self.w.folder / name
        rng = random.Random(f"{name} {number}")
        return machine(
            self.w.world,
            folder,
            knows=[self.host, *self.stores],
            stores=self.stores,
            ip=f"10.0.8.{number}",
            told=told,
            payer=self.w.payer("alice", DataDir(folder).journal, rng),
            keep_s=KEEP_S,
        )

    async def ask(self, client: Client, question: str) -> None:
        conversation = await client.new_conversation(options())
        answer = conversation.ask(question)
        async for _ in answer:
            pass
        assert answer.usage is not None
        (item,) = answer.bill
        self.tokens.append((item.tokens_in - item.reused, item.tokens_out))

    def due_in(self, sessions: int) -> int:
        """What all of it costs, in so many sessions."""
        tokens_in, tokens_out = (sum(each) for each in zip(*self.tokens, strict=True))
        return due(tokens_in, tokens_out) + (sessions - 1) * FEE

    @property
    def hosted(self) -> list[HostedSession]:
        """The host's sessions, the one that was opened first first."""
        return self.money.journal.hosted()

    def check_settled(self, sessions: int) -> None:
        """Each session was settled once, and every unit is where it belongs."""
        assert [each.state for each in self.hosted] == ["settled"] * sessions
        due = self.due_in(sessions)
        assert RICH - self.w.balance("alice") == due
        assert self.w.earned("host 0") + self.w.treasury == due
        events = self.w.chain.page(0).events
        assert sum(isinstance(each, SessionClosed) for each in events) == sessions


async def user(w: PaidWorld) -> User:
    """With USDC, a host that keeps sessions and two nodes that store."""
    host, money = await w.host(keep_s=KEEP_S)
    stores = [await w.world.add(bootstrap=host.node.multiaddrs[:1]) for _ in range(2)]
    for each in stores:
        serve_store(each)
    w.chain.mint(wallet_address("alice"), RICH)
    return User(w, host, money, stores)


async def test_what_one_machine_left_another_one_resumes_that_has_the_words_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        alice = await user(w)
        async with alice.at("one", 1) as client:
            await alice.ask(client, "first")
        async with alice.at("other", 2) as client:
            recovery = await client.conversations.recover()
            assert [(each.left_until is not None, each.generation) for each in recovery.sessions] == [
                (True, 0)
            ]
            await alice.ask(client, "second")
        (record,) = alice.hosted
        assert (record.generation, record.voucher and record.voucher.amount) == (1, alice.due_in(1))
        # The first machine's journal is a generation old: the host's voucher and receipt are enough.
        async with alice.at("one", 3) as client:
            await alice.ask(client, "third")
        (record,) = alice.hosted
        assert (record.generation, record.voucher and record.voucher.amount) == (2, alice.due_in(1))
        await trio.sleep(KEEP_S + 60)
        alice.check_settled(1)


async def test_while_one_machine_uses_it_the_other_is_told_and_neither_loses(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        alice = await user(w)
        async with alice.at("one", 1) as client:
            await alice.ask(client, "first")
        told = Events()
        async with alice.at("other", 2) as other:
            await other.conversations.recover()
            await alice.ask(other, "second")
            async with alice.at("one", 3, told) as one:
                await alice.ask(one, "third")
            await alice.ask(other, "fourth")  # the other machine still has the session
        first, second = alice.hosted
        assert (first.generation, second.generation) == (1, 0)
        assert told.named("session.elsewhere") == [{"peer": alice.host.node.peer_id}]
        assert told.named("host.failed") == []
        await trio.sleep(KEEP_S + 60)
        alice.check_settled(2)


@pytest.mark.long
async def test_a_machine_leaves_a_session_alone_that_the_index_says_is_used(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        alice = await user(w)
        async with alice.at("one", 1) as one:
            await alice.ask(one, "first")
            async with alice.at("other", 2) as other:
                recovery = await other.conversations.recover()
                assert [each.left_until for each in recovery.sessions] == [None]
                await alice.ask(other, "second")
            await alice.ask(one, "third")
        assert [each.generation for each in alice.hosted] == [0, 0]
        await trio.sleep(KEEP_S + 60)
        alice.check_settled(2)


@pytest.mark.long
@pytest.mark.parametrize("first", ["one", "other"])
async def test_of_two_machines_at_once_one_has_it_and_each_is_billed_for_its_own(
    tmp_path: Path, autojump_clock: MockClock, first: str
) -> None:
    async with paid_world(tmp_path) as w:
        alice = await user(w)
        async with alice.at("one", 1) as client:
            await alice.ask(client, "first")
        async with alice.at("one", 2) as one, alice.at("other", 3) as other:
            await other.conversations.recover()
            order = [(one, "second"), (other, "third")]
            async with trio.open_nursery() as nursery:
                for client, question in order if first == "one" else order[::-1]:
                    nursery.start_soon(alice.ask, client, question)
        assert sorted(each.generation for each in alice.hosted) == [0, 1]
        await trio.sleep(KEEP_S + 60)
        alice.check_settled(2)
