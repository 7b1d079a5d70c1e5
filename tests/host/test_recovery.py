"""Hosts that are killed and come back, on whole nodes: handed what they are owed, settled to the token."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.ledger import RequestClose
from p2pnode.chain.memory.ledger import MemoryLedger
from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from p2pnode.errors import P2PNodeError, RefusedError, UnreachableError
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.virtual_time import wall_clock
from p2pnode.payments.books import open_journal
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.payer import bought_of
from p2pnode.payments.redelivery import Redelivery, redeliver, redeliver_all, undelivered
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.protocols.typed_data import session_id
from p2pnode.storage.conversations.records import INDEX_CODEC, SavedSession
from tests.host.paid import FEE, LIMITS, RICH, PaidWorld, domains, paid_world, priced
from tests.host.support import WINDOW
from tests.host.test_paid import answer, due, settled
from tests.host.test_payment_faults import books_of
from tests.net.memory_world import seed_of
from tests.node.world import Member

MARKET = domains().market
SLOW = 20
"""Tokens a second."""


async def broken_off(w: PaidWorld, member: Member, money: HostMoney, client: Client, pieces: int) -> Answer:
    """An answer whose host is killed after so many pieces."""
    asked = client.chat("hello", model="scripted")

    async def dies() -> None:
        w.kill(member, money)

    with pytest.raises(P2PNodeError):
        await read(asked, pieces, dies)
    assert asked.ids
    return asked


async def read(asked: Answer, pieces: int, upset: Callable[[], Awaitable[None]]) -> None:
    """To its end; ``upset`` is called at one piece."""
    received = 0
    async for _ in asked:
        received += 1
        if received == pieces:
            await upset()


def left(journal: Journal) -> BoughtSession:
    """The one purchase."""
    (record,) = journal.purchases()
    return record


async def bring(journal: Journal, network: Network) -> list[Redelivery]:
    now = int(wall_clock())
    return await redeliver_all(journal, MARKET, network, limits=LIMITS, now=now)


@contextlib.asynccontextmanager
async def another_process(w: PaidWorld, path: Path) -> AsyncIterator[tuple[Journal, Network]]:
    """A client's next start: its journal, and a peer id of its own."""
    network = Network(
        NetworkConfig(
            key_seed=seed_of(900),
            dht="off",
            gossip=False,
            transport=w.world.net.transport("10.0.7.1"),
        )
    )
    async with open_journal(path, in_thread=False) as journal, trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield journal, network
        await network.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pieces", [1, 4, 30])
async def test_a_host_killed_in_the_middle_of_an_answer_is_paid_for_exactly_what_was_received(
    tmp_path: Path, autojump_clock: MockClock, pieces: int
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            asked = await broken_off(w, member, money, client, pieces)
            journal = books_of(client)
            await trio.sleep(20)  # nobody answers when it is dialled again
            record = left(journal)
            assert record.state == "over"
            assert record.final is not None
            amount = due(record.final.tokens_in, len(asked.ids))
            assert (record.final.tokens_out, record.final.amount) == (len(asked.ids), amount)
            _, again = await w.host(index=0, model=priced(tokens_per_s=SLOW))
            (hosted,) = again.journal.hosted()
            held = hosted.voucher.amount if hosted.voucher is not None else FEE
            assert held < amount <= held + due(record.final.tokens_in, WINDOW)
            (done,) = await bring(journal, client.node.network)
            assert done == Redelivery(record.session, "delivered")
            assert undelivered(journal, int(wall_clock())) == []
            await trio.sleep(5)
            settled(w, amount)
            assert await bring(journal, client.node.network) == []
            with pytest.raises(RefusedError, match="no such session here"):  # nor does it go on again
                await redeliver(
                    replace(record, delivered=-1), journal, MARKET, client.node.network, limits=LIMITS
                )
        assert w.chain.block == 2  # one open, one close


@pytest.mark.parametrize("pieces", [12, 40])  # before its first receipt, and after it
async def test_a_machine_that_has_only_the_sealed_index_pays_a_killed_host_to_the_token(
    tmp_path: Path, autojump_clock: MockClock, pieces: int
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            asked = await broken_off(w, member, money, client, pieces)
            await trio.sleep(20)
            saved = client.runtime.purchase(left(books_of(client)).session)
            assert saved is not None
            assert saved.over
            assert (saved.receipt is None) == (pieces == 12)
        kept = INDEX_CODEC.decode(INDEX_CODEC.encode(saved))
        assert isinstance(kept, SavedSession)
        await w.host(index=0, model=priced(tokens_per_s=SLOW))
        async with another_process(w, tmp_path / "new.sqlite") as (journal, network):
            await journal.bought_restored(bought_of(kept), int(wall_clock()), kept.receipt)
            assert await bring(journal, network) == [Redelivery(kept.session, "delivered")]
        await trio.sleep(5)
        assert kept.voucher is not None
        assert kept.voucher.tokens_out == len(asked.ids)
        settled(w, due(kept.voucher.tokens_in, len(asked.ids)))


async def test_a_machine_that_recovers_leaves_a_session_alone_that_another_still_uses(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            await answer(client)
            saved = client.runtime.purchase(left(books_of(client)).session)
            assert saved is not None
            assert not saved.over
            async with another_process(w, tmp_path / "new.sqlite") as (journal, network):
                await journal.bought_restored(bought_of(saved), int(wall_clock()), saved.receipt)
                assert await bring(journal, network) == []
                await answer(client)
                assert len(money.journal.hosted("open")) == len(money.journal.hosted()) == 1
                saved = client.runtime.purchase(saved.session)
                assert saved is not None
                over = replace(saved, over=True)
                await journal.bought_restored(bought_of(over), int(wall_clock()), over.receipt)
                assert [each.session for each in undelivered(journal, int(wall_clock()))] == [over.session]


async def test_a_client_whose_process_is_gone_delivers_from_its_journal(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            asked = await broken_off(w, member, money, client, 12)
        _, again = await w.host(index=0)
        async with another_process(w, tmp_path / "client alice 0.sqlite") as (journal, network):
            final = left(journal).final
            assert final is not None
            amount = due(final.tokens_in, len(asked.ids))
            assert [each.outcome for each in await bring(journal, network)] == ["delivered"]
            assert left(journal).owed is None
        await trio.sleep(5)
        settled(w, amount)
        (record,) = again.journal.hosted()
        assert (record.state, record.amount) == ("settled", amount)


async def test_a_killed_client_hands_what_it_signed_last_to_a_host_that_waits(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What it had written down is paid; what it never knew of is the host's loss: a window at most."""
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        left_behind = tmp_path / "left behind" / "journal.sqlite"
        left_behind.parent.mkdir()
        async with w.client(member) as client:
            received = 0
            with contextlib.suppress(P2PNodeError):
                async for _ in client.chat("hello", model="scripted"):
                    received += 1
                    if received == 12:
                        # What stands on the disk at this moment, and no lock of a process that runs.
                        with contextlib.closing(sqlite3.connect(books_of(client).path)) as db:
                            db.execute("VACUUM INTO ?", (str(left_behind),))
                        w.world.net.crash("10.0.9.9")
                        break
            await trio.sleep(1)
            (hosted,) = money.journal.hosted()
            assert hosted.state == "over"
            assert hosted.settle_at == pytest.approx(int(wall_clock()) + 300, abs=3)
            async with another_process(w, left_behind) as (journal, network):
                record = left(journal)
                assert record.state == "open"
                assert [each.outcome for each in await bring(journal, network)] == ["delivered"]
                assert record.owed is not None
                await trio.sleep(5)
                settled(w, record.owed.amount)


async def test_a_session_goes_on_when_its_host_is_back_at_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            sampling = SamplingParams(tokens_max=80, temperature=0)
            asked = client.chat("hello", model="scripted", sampling=sampling)
            started: list[HostMoney] = []

            async def restarts() -> None:
                w.kill(member, money)
                started.append((await w.host(index=0))[1])

            await read(asked, 25, restarts)
            assert len(asked.ids) == 80, "one answer, from before the restart and after"
            await trio.sleep(1)  # its last voucher is on the way
            again = started[0]
            (record,) = again.journal.hosted()
            assert (record.state, record.settle_at) == ("open", None)
            assert record.voucher is not None
            assert record.voucher.tokens_out == 80
            await trio.sleep(400)  # it is served: the linger is over, and nothing is settled
            tokens_in, tokens_out = await answer(client, "and then", 40)
            assert [each.state for each in again.journal.hosted()] == ["open"]
        await trio.sleep(5)
        settled(w, due(record.voucher.tokens_in + tokens_in, 80 + tokens_out))
        epochs = {each.epoch for each in again.journal.issued_after(record.session, 0, 0, 100)}
        assert len(epochs) == 2
        assert w.chain.block == 2


# ---- settlement waits


async def test_what_a_crash_left_open_settles_after_the_linger_with_what_there_is(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            await broken_off(w, member, money, client, 12)
            await trio.sleep(1000)  # however long it was down
            _, again = await w.host(index=0)
            (record,) = again.journal.hosted()
            assert record.settle_at == pytest.approx(int(wall_clock()) + 300, abs=1)
            assert record.voucher is not None
            await trio.sleep(290)
            assert w.chain.block == 1
            await trio.sleep(20)
            settled(w, record.voucher.amount)
            (done,) = await bring(books_of(client), client.node.network)
            assert done.outcome == "refused"  # too late: its host is settled with
            await client.runtime.payer.opened.signer.reconcile()  # type: ignore[union-attr]
            assert undelivered(books_of(client), int(wall_clock())) == []


@pytest.mark.long
async def test_a_close_request_or_the_expiry_does_not_wait(tmp_path: Path, autojump_clock: MockClock) -> None:
    for expires in (False, True):
        folder = tmp_path / str(expires)
        folder.mkdir()
        async with paid_world(folder) as w:
            member, money = await w.host(model=priced(tokens_per_s=SLOW))
            async with w.client(member) as client:
                await broken_off(w, member, money, client, 12)
                terms = left(books_of(client)).terms
                if expires:
                    await trio.sleep(terms.expiry - LIMITS.expiry_margin_s - wall_clock() + 5)
                else:
                    await MemoryLedger(w.chain, terms.payer).transact(RequestClose(terms))
                blocks = w.chain.block
                _, again = await w.host(index=0)
                await trio.sleep(20)
                assert w.chain.block == blocks + 1
                assert [each.state for each in again.journal.hosted()] == ["settled"]


async def test_a_clean_end_settles_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        async with w.client(member) as client:
            counts = await answer(client)
            await member.node.aclose()
            settled(w, due(*counts))


async def test_a_client_that_leaves_in_order_owes_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        async with w.client(member) as client:
            counts = await answer(client)
        async with another_process(w, tmp_path / "client alice 0.sqlite") as (journal, _network):
            assert left(journal).delivered == due(*counts)
            assert undelivered(journal, int(wall_clock())) == []


async def test_a_final_voucher_is_taken_of_a_session_that_is_not_served_any_more(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The payer asked the chain to close it: what it owes is taken, and no more is served."""
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            asked = await broken_off(w, member, money, client, 12)
            await trio.sleep(20)  # until the client knows that the session is over
            record = left(books_of(client))
            await MemoryLedger(w.chain, record.terms.payer).transact(RequestClose(record.terms))
            # The watch has not looked yet, and will not for a while.
            w.world.limits = replace(LIMITS, chain_poll_s=10_000.0)
            _, again = await w.host(index=0, ledger=_Blind)  # type: ignore[arg-type]
            (done,) = await bring(books_of(client), client.node.network)
            assert done.outcome == "delivered"
            await trio.sleep(5)
            assert [each.state for each in again.journal.hosted()] == ["settled"]
            assert record.final is not None
            assert RICH - w.balance("alice") == due(record.final.tokens_in, len(asked.ids))


class _Blind:
    """A ledger whose log shows nothing."""

    def __init__(self, ledger: object) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> object:
        return getattr(self._ledger, name)

    async def events(self, cursor: int) -> object:
        await trio.sleep_forever()


# ---- who is not handed anything, and who stays owed


async def test_a_host_that_lost_its_journal_signs_nothing_and_stays_owed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            await broken_off(w, member, money, client, 12)
            _, again = await w.host(index=0, journal=tmp_path / "a new one.sqlite")
            (done,) = await bring(books_of(client), client.node.network)
            assert (done.outcome, "no such session here" in done.detail) == ("refused", True)
            assert again.journal.hosted() == []
            assert [each.session for each in undelivered(books_of(client), int(wall_clock()))] == [
                done.session
            ]


async def test_hosts_that_are_away_stay_owed_and_hold_nobody_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        path = tmp_path / "client alice 0.sqlite"
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            await broken_off(w, member, money, client, 12)
            await trio.sleep(20)  # until the client knows that the session is over
            record = left(books_of(client))
            assert record.owed is not None
        async with another_process(w, path) as (journal, network):
            for number in range(40):
                terms = replace(record.terms, salt=number.to_bytes(32, "big"))
                session = session_id(MARKET, terms)
                away = replace(record, session=session, terms=terms, opened_at=record.opened_at - 1)
                await journal.bought_restored(away, int(wall_clock()))
            with pytest.raises(UnreachableError):
                await redeliver(record, journal, MARKET, network, limits=LIMITS)
            started = trio.current_time()
            done = await bring(journal, network)
            assert len(done) == LIMITS.redeliveries_max
            assert {each.outcome for each in done} == {"away"}
            rounds = LIMITS.redeliveries_max / LIMITS.redeliveries_at_once
            assert trio.current_time() - started <= rounds * LIMITS.redelivery_deadline_s
            await w.host(index=0)
            (brought,) = [each for each in await bring(journal, network) if each.session == record.session]
            assert brought.outcome == "delivered"  # the newest goes first


async def test_sessions_of_another_market_or_long_over_are_left_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=SLOW))
        async with w.client(member) as client:
            await broken_off(w, member, money, client, 12)
            journal, network = books_of(client), client.node.network
            other = replace(MARKET, chain_id=1)
            assert await redeliver_all(journal, other, network, limits=LIMITS, now=int(wall_clock())) == []
            later = left(journal).terms.expiry + 86_400
            assert len(undelivered(journal, later - 1)) == 1
            assert undelivered(journal, later) == []
