"""A host settles each session that was left exactly once, and nothing is read for those that are not due."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.ledger import Open, SessionClosed
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.ids import ModelId, SessionId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net.virtual_time import wall_clock
from p2pnode.payments.books import open_journal
from p2pnode.payments.gas import HostGas
from p2pnode.payments.gas_budget import GasBudget
from p2pnode.payments.journal.journal import HostedSession, Journal
from p2pnode.payments.journal.records import hosted_of
from p2pnode.payments.settlement import LOOK_S, Settler
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from p2pnode.protocols.typed_data import amount_due, authorisation_digest, session_id, voucher_digest
from tests.chain.contracts.support import ADDRESS, DAY, DOLLAR, sign
from tests.chain.memory_world import MEMORY_DOMAINS
from tests.payments.journals import hosted

FEE, DEPOSIT = 10_000, DOLLAR // 10
KEPT_S = DAY // 2
LIMITS = replace(DEFAULT_LIMITS, chain_poll_s=900.0)


@dataclass
class LeftWorld:
    """A host's journal and settler, on a chain in memory."""

    chain: MemoryChain
    journal: Journal
    made: int = 0

    def settler(self) -> Settler:
        ledger = MemoryLedger(self.chain, ADDRESS["host"])
        gas = HostGas(ledger, GasBudget(), wall_clock)
        return Settler(ledger, self.journal, limits=LIMITS, wall=wall_clock, gas=gas)

    async def leave(self, until: int, *, on_chain: bool = True, **changes: object) -> SessionId:
        """A session that was paid for, and left until then. ``changes`` are of its record."""
        self.made += 1
        now = int(wall_clock())
        terms = SessionTerms(
            payer=ADDRESS["payer"], host=ADDRESS["host"], voucher_key=ADDRESS["voucher key"],
            receipt_key=ADDRESS["receipt key"], model=ModelId(bytes(32)), deposit=DEPOSIT,
            price_in=DOLLAR, price_out=DOLLAR, session_fee=FEE, tip=0,
            expiry=now + 2 * DAY, salt=self.made.to_bytes(32, "big"),
        )  # fmt: skip
        session = session_id(MEMORY_DOMAINS.market, terms)
        digest = authorisation_digest(
            MEMORY_DOMAINS.token, payer=terms.payer, to=MEMORY_DOMAINS.market.contract, amount=DEPOSIT,
            valid_before=now + 600, nonce=session,
        )  # fmt: skip
        if on_chain:
            self.chain.mint(terms.payer, DEPOSIT)
            self.chain.send(ADDRESS["host"], Open(terms, now + 600, sign("payer", digest)))
        bare = Voucher(
            seq=1, tokens_in=10, tokens_out=self.made, amount=amount_due(terms, 10, self.made),
            root=bytes(32), signature=b"",
        )  # fmt: skip
        voucher = replace(
            bare, signature=sign("voucher key", voucher_digest(MEMORY_DOMAINS.market, session, bare))
        )
        record = replace(
            hosted(0), session=session, terms=terms, voucher=voucher, state="over", settle_at=until,
            left_until=until, keep_s=KEPT_S, opened_at=now, valid_before=now + 600,
        )  # fmt: skip
        await self.journal.host_relaying(replace(record, **changes))  # type: ignore[arg-type]
        return session

    @property
    def closed(self) -> Counter[SessionId]:
        """How often the chain closed each session."""
        events, cursor = Counter[SessionId](), 0
        while True:
            page = self.chain.page(cursor)
            events.update(each.session for each in page.events if isinstance(each, SessionClosed))
            if page.caught_up:
                return events
            cursor = page.cursor

    def check_settled_once(self, count: int) -> None:
        """So many sessions, each closed once, by its own voucher."""
        assert set(self.closed.values()) == {1}
        assert len(self.closed) == count
        for record in self.journal.hosted():
            assert record.voucher is not None
            assert (record.state, record.amount) == ("settled", record.voucher.amount)


@asynccontextmanager
async def left_world(folder: Path) -> AsyncIterator[LeftWorld]:
    chain = MemoryChain(MEMORY_DOMAINS, lambda: int(wall_clock()))
    async with open_journal(folder / "host.sqlite", in_thread=False) as journal:
        yield LeftWorld(chain, journal)


async def leave_all(w: LeftWorld, count: int, until: int, apart_s: int) -> None:
    """So many sessions, due one after another."""
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(w.leave, until + number * apart_s)


async def expires(w: LeftWorld, count: int) -> None:
    until = int(wall_clock()) + KEPT_S
    await leave_all(w, count, until, 7)
    async with trio.open_nursery() as nursery:
        await nursery.start(w.settler().run)
        await trio.sleep(KEPT_S - 60)
        assert not w.closed
        await trio.sleep(60 + 7 * count + 60)
        nursery.cancel_scope.cancel()


async def drains(w: LeftWorld, count: int) -> None:
    await leave_all(w, count, int(wall_clock()) + KEPT_S, 7)
    async with trio.open_nursery() as nursery:
        settler = w.settler()
        await nursery.start(settler.run)
        await settler.settle_all()
        settler.due()
        await trio.sleep(2 * DAY)  # the loop finds nothing more to settle
        nursery.cancel_scope.cancel()


async def restarts(w: LeftWorld, count: int) -> None:
    """The host is killed while it settles, and starts again; some were in use when it died."""
    now = int(wall_clock())
    await leave_all(w, count // 2, now + 30, 0)
    for _ in range(count - count // 2):
        await w.leave(now, state="open", settle_at=None, left_until=None)
    with trio.move_on_after(40):
        await w.settler().run()
    killed_at = len(w.closed)
    assert killed_at == count // 2
    for epoch in (2, 3):
        settler = w.settler()
        await settler.prepare(epoch)
        with trio.move_on_after(KEPT_S):
            await settler.run()
        assert w.journal.hosted_count("open") == 0


Ends: TypeAlias = Callable[[LeftWorld, int], Awaitable[None]]


@pytest.mark.parametrize("ends", [expires, drains, restarts])
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.long)])
async def test_sessions_that_were_left_are_settled_once_each_however_they_end(
    tmp_path: Path, autojump_clock: MockClock, ends: Ends, count: int
) -> None:
    async with left_world(tmp_path) as w:
        await ends(w, count)
        w.check_settled_once(count)


async def test_a_wake_reads_one_of_a_thousand_sessions_that_are_left(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def counted(row: sqlite3.Row) -> HostedSession:
        nonlocal read
        read += 1
        return hosted_of(row)

    async with left_world(tmp_path) as w:
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(partial(w.leave, int(wall_clock()) + KEPT_S, on_chain=False))
        monkeypatch.setattr("p2pnode.payments.journal.payee.hosted_of", counted)
        settler = w.settler()
        async with trio.open_nursery() as nursery:
            await nursery.start(settler.run)
            await trio.sleep(LOOK_S - 1)
            assert read == 1  # nothing is read again while nothing happens
            for _ in range(20):  # as when another client leaves
                settler.due()
                await trio.sleep(1)
            assert read <= 1 + 1 + 20
            nursery.cancel_scope.cancel()


async def test_what_another_market_left_in_the_journal_is_neither_settled_nor_in_the_way(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with left_world(tmp_path) as w:
        until = int(wall_clock()) + 60
        mine = await w.leave(until)
        record = w.journal.hosted_one(mine)
        assert record is not None
        for number in range(3):  # ids that are not those of its terms in this market
            foreign = replace(record, session=SessionId(number.to_bytes(32, "big")), settle_at=until - 50)
            await w.journal.host_relaying(foreign)
        with trio.move_on_after(120):
            await w.settler().run()
        assert w.closed == {mine: 1}
        assert w.journal.hosted_count("over") == 3
