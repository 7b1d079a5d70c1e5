"""Full disks, chains that talk nonsense, books that were closed elsewhere: nobody hangs, no node dies."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from p2pnode.chain.evm.rpc_answers import RpcError
from p2pnode.chain.ledger import (
    Call,
    ChainMadeAnewError,
    Close,
    EscrowState,
    EventPage,
    Ledger,
    Open,
    Outcome,
    Release,
    RequestClose,
    RevertedError,
)
from p2pnode.chain.memory.ledger import MemoryLedger
from p2pnode.client.client import Client
from p2pnode.errors import P2PNodeError, RefusedError, RemoteError, StorageError
from p2pnode.ids import SessionId
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.driver import MessageChannel
from p2pnode.payments.books import open_journal
from p2pnode.payments.checkpoints import fetch_receipts
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, Refuse, Resume
from tests.client.support import misbehave
from tests.host.paid import CHAIN_ID, FEE, LIMITS, MARKET, RICH, domains, paid_world, priced
from tests.host.test_paid import answer, due, settled
from tests.host.thief import takes_and_refuses
from tests.sqlite_disk import WatchedDisk


class Moody:
    """A ledger whose log can't be read while ``moody``."""

    moody = False

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def events(self, cursor: int) -> EventPage:
        if self.moody:
            raise RpcError(-32000, "invalid block range params", None)
        return await self._ledger.events(cursor)


class Slow:
    """A ledger that takes half a minute to mine."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
        await trio.sleep(30)
        return await self._ledger.transact(call)


async def test_a_client_is_told_while_its_host_brings_the_deposit_to_a_slow_chain(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    async with paid_world(tmp_path) as w:
        slow, _ = await w.host(ledger=lambda ledger: cast("Ledger", Slow(ledger)))
        async with w.client(slow, on_event=lambda name, fields: told.append((name, fields))) as client:
            await answer(client)
        assert [fields["waited_s"] for name, fields in told if name == "deposit.waiting"] == [8, 16, 24]
        told.clear()
        quick, _ = await w.host()
        async with w.client(quick, on_event=lambda name, fields: told.append((name, fields))) as client:
            await answer(client)
        assert "deposit.waiting" not in [name for name, _ in told]


class Anew:
    """A ledger whose chain is made anew while ``anew``."""

    anew = False

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        if self.anew and name in ("events", "session", "balances", "head", "check", "transact"):
            raise ChainMadeAnewError
        return getattr(self._ledger, name)


async def test_a_host_whose_chain_was_made_anew_says_so_to_its_owner_and_to_its_clients_at_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    ledgers: list[Anew] = []

    def wrapped(ledger: Ledger) -> Any:
        ledgers.append(Anew(ledger))
        return ledgers[-1]

    async with paid_world(tmp_path) as w:
        member, _ = await w.host(ledger=wrapped)
        async with w.client(member) as client:
            with capture_logs() as logs:
                ledgers[0].anew = True
                began = trio.current_time()
                with pytest.raises(RemoteError, match="made anew: its owner has to start the host again"):
                    await answer(client)
                assert trio.current_time() - began < 5
                await trio.sleep(30)
            # Once by whoever asked, once by the watcher, and not at each of its looks.
            assert [each["event"] for each in logs].count("chain.made_anew") == 2
        ledgers[0].anew = False
        await trio.sleep(30)
        async with w.client(member) as client:
            assert (await answer(client))[1] > 0


def books_of(client: Client) -> Any:
    """The journal of a client that has paid."""
    return client.runtime.payer.opened.journal  # type: ignore[union-attr]


async def test_an_endpoint_that_answers_with_an_error_does_not_end_the_host(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    moods: list[Moody] = []

    def moody(ledger: Ledger) -> Any:
        moods.append(Moody(ledger))
        return moods[-1]

    async with paid_world(tmp_path) as w:
        member, _ = await w.host(ledger=moody)
        moods[0].moody = True
        await trio.sleep(60)
        async with w.client(member) as client:
            counts = await answer(client)
        moods[0].moody = False
        await trio.sleep(60)
        settled(w, due(*counts))


async def read(client: Client, upset: Callable[[], Awaitable[None]]) -> None:
    """A long answer; ``upset`` is called at its third piece."""
    received = 0
    async for _ in client.chat("hello", model="scripted"):
        received += 1
        if received == 3:
            await upset()


@pytest.mark.parametrize("times", [1, 10**6])
async def test_a_client_whose_disk_is_full_stops_paying_and_does_not_hang(
    tmp_path: Path, autojump_clock: MockClock, times: int
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(model=priced(tokens_per_s=20))
        disk = WatchedDisk()
        async with w.client(member, disk=disk) as client:

            async def upset() -> None:
                disk.full_for = times

            with trio.fail_after(600), pytest.raises(StorageError, match="full"):
                await read(client, upset)
        await trio.sleep(400)
        assert FEE < RICH - w.balance("alice") < due(1000, 100)  # what it signed for before, and no more


async def test_a_host_whose_disk_is_full_takes_no_deposit_and_stays_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        disk = WatchedDisk()
        member, _ = await w.host(disk=disk)
        disk.full_for = 10**6
        async with w.client(member) as client:
            with pytest.raises(RemoteError, match="write its journal"):
                await answer(client)
        assert w.chain.block == 0
        disk.full_for = 0
        async with w.client(member, name="bob") as client:
            counts = await answer(client)
        await trio.sleep(10)
        settled(w, due(*counts), payer="bob")


async def test_a_session_that_was_settled_behind_its_clients_back_ends_and_does_not_hang(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=20))
        async with w.client(member) as client:

            async def upset() -> None:
                (record,) = money.journal.hosted()
                await money.ledger.transact(Release(record.terms))
                await client.runtime.payer.opened.signer.reconcile()  # type: ignore[union-attr]
                w.kill(member, money)

            with trio.fail_after(600), pytest.raises(P2PNodeError):
                await read(client, upset)


async def test_a_disk_that_is_full_when_a_session_ends_delays_its_settlement_only(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        disk = WatchedDisk()
        member, _ = await w.host(disk=disk)
        async with w.client(member) as client:
            counts = await answer(client)
            await trio.sleep(1)  # the last voucher is there
            disk.full_for = 3
        await trio.sleep(60)
        settled(w, due(*counts))


async def test_a_host_that_takes_fees_and_refuses_gets_two_of_them_a_day(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        misbehave(member, takes_and_refuses(money))
        async with w.client(member) as client:
            reasons = []
            for _ in range(6):
                with pytest.raises(RefusedError) as caught:
                    await answer(client)
                reasons.append(caught.value.detail)
        assert RICH - w.balance("alice") == 2 * FEE
        assert "never accepted" in reasons[-1]


async def test_a_client_beside_its_own_host_pays_another(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        own, _ = await w.host()
        other, _ = await w.host()
        async with w.client(own, name="host 0") as client:
            client.runtime.bootstrap = (own.node.multiaddrs[0], other.node.multiaddrs[0])
            for _ in range(2):
                await answer(client)
        await trio.sleep(5)
        assert w.earned("host 0") == 0
        assert w.earned("host 1") > 0


async def test_a_host_that_remembers_a_longer_chain_watches_the_one_there_is(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A development chain that was made anew, or another one under the same id."""
    async with open_journal(tmp_path / "host 0.sqlite", in_thread=False) as journal:
        await journal.save_cursor(f"host {CHAIN_ID} {MARKET.hex()}", 10**6)
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=20))
        async with w.client(member) as client:

            async def upset() -> None:
                (record,) = money.journal.hosted()
                await MemoryLedger(w.chain, record.terms.payer).transact(RequestClose(record.terms))

            await read(client, upset)
            await trio.sleep(10)
            (record,) = money.journal.hosted()
            assert record.state == "settled"


async def test_claims_that_can_not_be_paid_cost_no_gas(tmp_path: Path, autojump_clock: MockClock) -> None:
    sent: list[object] = []

    class Refusing(Moody):
        async def check(self, call: Call, sender: bytes | None = None) -> None:
            if isinstance(call, Close):
                raise RevertedError("JobMarketplace: bad voucher")
            await self._ledger.check(call, sender)

        async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
            sent.append(call)
            return await self._ledger.transact(call)

    async with paid_world(tmp_path) as w:
        member, money = await w.host(ledger=Refusing)
        for name in ("alice", "bob"):
            async with w.client(member, name=name) as client:
                await answer(client)
        await trio.sleep(600)
        assert [type(call) for call in sent] == [Open, Open]
        assert [each.state for each in money.journal.hosted()] == ["over", "over"]  # nothing is written off


async def test_a_host_whose_journal_can_not_be_read_says_so_and_blames_nobody(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        async with w.client(member) as client:
            await answer(client)
            (record,) = books_of(client).purchases()
            with sqlite3.connect(tmp_path / "host 0.sqlite") as other:  # a damaged file, to whoever reads it
                other.execute("ALTER TABLE hosted RENAME TO gone")
            with pytest.raises(RefusedError, match="this host can't read its books"):
                await fetch_receipts(
                    record,
                    books_of(client),
                    domains().market,
                    client.node.network,
                    limits=LIMITS,
                    now=int(wall_clock()),
                )
            stream = await client.node.network.open_stream(member.node.peer_id, PROTOCOL)
            channel = MessageChannel(stream, CODEC)
            await channel.send([Resume(holder=bytes(16), session=record.session, received=0, turn=0)])
            refused = await channel.receive()
            assert isinstance(refused, Refuse)
            assert refused.code == "internal"
            assert member.node.faults.count(client.node.peer_id, trio.current_time()) == 0
            with sqlite3.connect(tmp_path / "host 0.sqlite") as other:
                other.execute("ALTER TABLE gone RENAME TO hosted")


class OneOfTwoLies:
    """A ledger whose first endpoint calls open sessions closed while ``lies``; the second one doesn't."""

    lies = False

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def session(self, session: SessionId) -> EscrowState:
        state = await self._ledger.session(session)
        return EscrowState(status="closed", recorded=FEE) if self.lies and state.status == "open" else state

    async def check(self, call: Call, sender: bytes | None = None) -> None:
        if self.lies:
            raise RevertedError("JobMarketplace: closed")
        await self._ledger.check(call, sender)


async def test_one_endpoint_of_two_that_calls_a_session_closed_writes_off_no_voucher(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        made: list[OneOfTwoLies] = []

        def wrapped(ledger: Ledger) -> Ledger:
            made.append(OneOfTwoLies(ledger))
            return cast("Ledger", made[0])

        member, money = await w.host(ledger=wrapped)
        async with w.client(member) as client:
            counts = await answer(client)
            made[0].lies = True
        await trio.sleep(60)
        (record,) = money.journal.hosted()
        assert (record.state, record.due) == ("over", due(*counts))
        made[0].lies = False
        await trio.sleep(2 * LIMITS.settle_retry_max_s)
        settled(w, due(*counts))
