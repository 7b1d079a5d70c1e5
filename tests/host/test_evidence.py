"""A host's receipts are fetched again; one that signed two for one place loses its stake."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.ledger import Approve, Register, UnavailableError
from p2pnode.chain.memory.ledger import MemoryLedger
from p2pnode.client.client import Client
from p2pnode.errors import NoHostError, ProtocolError, RefusedError, UnreachableError
from p2pnode.net.virtual_time import wall_clock
from p2pnode.payments.checkpoints import FetchedReceipts, fetch_receipts
from p2pnode.payments.evidence import submit_evidence
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.protocols.crypto import keccak256, key_address, sign_digest
from p2pnode.protocols.inference.messages import Checkpoint, Receipt
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.receipts import link_root, receipt_digest, receipt_holds
from tests.host.paid import LIMITS, PaidWorld, domains, paid_world, receipt_secret, wallet_address
from tests.host.test_paid import answer
from tests.host.test_payment_faults import books_of
from tests.node.world import Member

STAKE = 1_000 * 10**18


async def fetched(client: Client, record: BoughtSession) -> FetchedReceipts:
    with trio.fail_after(60):
        return await fetch_receipts(
            record,
            books_of(client),
            domains().market,
            client.node.network,
            limits=LIMITS,
            now=int(wall_clock()),
        )


def bought(client: Client) -> BoughtSession:
    journal: Journal = books_of(client)
    (record,) = journal.purchases()
    return record


def told_otherwise(member: Member, record: BoughtSession, receipt: Receipt, **changes: Any) -> Receipt:
    """Another content for the same place, signed by the same host."""
    other = replace(receipt.checkpoint, **changes)
    root = link_root(receipt.previous, other)
    signature = sign_digest(receipt_secret(member.index), receipt_digest(record.session, receipt.epoch, root))
    return replace(receipt, checkpoint=replace(other, root=root, signature=signature))


async def test_what_a_host_signed_is_shown_again_and_is_what_the_client_holds(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        async with w.client(member) as client:
            for turn in range(3):
                await answer(client, f"question {turn}", 80)
            await trio.sleep(1)  # the last voucher arrives, and with it its receipt is on the disk
            record, journal = bought(client), books_of(client)
            held = journal.taken(record.session)
            assert len(held) == 9
            assert all(receipt_holds(record.session, each, record.terms.receipt_key) for each in held)
            assert held == money.journal.issued_after(record.session, 0, 0, 100)
            found = await fetched(client, record)
            assert (found.same, found.unknown, found.conflicts, found.withheld) == (9, [], [], 0)
            assert found.voucher == journal.purchase(record.session).voucher
            assert journal.evidence() == []


async def test_lost_copies_come_back_and_left_out_ones_are_counted(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        async with w.client(member) as client:
            await answer(client, tokens=200)
            await trio.sleep(1)  # the last voucher arrives, and with it its receipt is on the disk
            record, journal = bought(client), books_of(client)
            held = journal.taken(record.session)
            with closing(sqlite3.connect(journal.path)) as db, db:
                db.execute("DELETE FROM taken WHERE seq = 2")
            found = await fetched(client, record)
            assert (found.same, found.unknown, found.withheld) == (len(held) - 1, [held[1]], 0)
            real = money.journal.issued_after
            shown = lambda *args: real(*args)[:2]  # noqa: E731
            money.journal.issued_after = shown  # type: ignore[method-assign]
            found = await fetched(client, record)
            assert (found.same, found.withheld) == (1, len(held) - 2)


async def test_nobody_else_is_shown_a_session(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        async with w.client(member) as client:
            await answer(client)
            await trio.sleep(1)  # the last voucher arrives, and with it its receipt is on the disk
            record = bought(client)
            with pytest.raises(RefusedError, match="not the voucher key's signature"):
                await fetched(client, replace(record, voucher_secret=keccak256(b"a thief's")))
            with pytest.raises(RefusedError, match="no such session here"):
                await fetched(client, replace(record, session=bytes(32)))  # type: ignore[arg-type]
            with pytest.raises(UnreachableError):
                await fetched(client, replace(record, addresses=("/ip4/10.0.0.77/tcp/4001",), host=_NOBODY))


_NOBODY: Any = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"


async def test_a_host_that_shows_what_it_did_not_sign_is_at_fault_and_accuses_nobody(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        async with w.client(member) as client:
            await answer(client)
            await trio.sleep(1)  # the last voucher arrives, and with it its receipt is on the disk
            record = bought(client)
            (first, *_) = money.journal.issued_after(record.session, 0, 0, 9)
            lie = replace(first, checkpoint=replace(first.checkpoint, tokens_out=1))
            money.journal.issued_after = lambda *_: [lie]  # type: ignore[method-assign]
            with pytest.raises(ProtocolError, match="did not sign"):
                await fetched(client, record)
            assert books_of(client).evidence() == []


async def accuse(w: PaidWorld, client: Client) -> list[Any]:
    """Whoever has the evidence and a little ether."""
    return await submit_evidence(books_of(client), MemoryLedger(w.chain, wallet_address("alice")))


async def test_a_host_that_shows_a_second_receipt_for_a_place_loses_its_stake(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        async with w.client(member) as client:
            await answer(client, tokens=80)
            await trio.sleep(1)  # the last voucher arrives, and with it its receipt is on the disk
            record = bought(client)
            real = money.journal.issued_after(record.session, 0, 0, 9)
            lie = told_otherwise(member, record, real[0], tokens_out=31)
            money.journal.issued_after = lambda *_: [lie]  # type: ignore[method-assign]
            found = await fetched(client, record)
            assert found.conflicts == [(real[0], lie)]
            (evidence,) = books_of(client).evidence()
            assert (evidence.one, evidence.other) == (real[0], lie)
            (refused,) = await accuse(w, client)
            assert "not the host's key" in refused.words, "it never registered a stake"
            assert await accuse(w, client) == [], "once is enough"


async def test_a_thieving_host_that_is_caught_live_loses_its_stake_to_its_client(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells its client of fewer tokens than it sent, and the rest of the world the truth."""
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        _stake(w, member)
        truth: list[Receipt] = []
        real = Meter.issue

        def lies(meter: Meter, sign: Any) -> Receipt:
            issued = real(meter, sign)
            told = issued.checkpoint
            if told.seq != 2:
                return issued
            truth.append(issued)
            other: Checkpoint = replace(told, tokens_out=told.tokens_out - 1)
            root = link_root(issued.previous, other)
            session = money.journal.hosted()[0].session
            signature = sign(receipt_digest(session, issued.epoch, root))
            return replace(issued, checkpoint=replace(other, root=root, signature=signature))

        monkeypatch.setattr(Meter, "issue", lies)
        async with w.client(member) as client:
            with pytest.raises(NoHostError, match="does not match what was received"):
                await answer(client, tokens=80)
            journal = books_of(client)
            await trio.sleep(1)
            await trio.sleep(1)  # the last voucher arrives, and with it its receipt is on the disk
            record = bought(client)
            assert record.final is not None
            assert record.final.tokens_out == 32, "nothing is signed for what came with a lie"
            assert journal.evidence() == [], "one receipt alone accuses nobody"
            shown = money.journal.issued_after(record.session, 0, 0, 1)
            money.journal.issued_after = lambda *_: [*shown, *truth]  # type: ignore[method-assign]
            found = await fetched(client, record)
            assert (found.same, found.unknown) == (1, truth)
            (evidence,) = journal.evidence()
            assert evidence.place == (truth[0].epoch, 2)
            (done,) = await accuse(w, client)
            assert done.reward == STAKE // 10
            assert w.chain.node(wallet_address("host 0")).stake == 0
            assert w.chain.fab(wallet_address("alice")).balance == STAKE // 10
            assert journal.evidence()[0].outcome.startswith("slashed: ")


def _stake(w: PaidWorld, member: Member) -> None:
    host = wallet_address("host 0")
    w.chain.mint_fab(host, STAKE)
    w.chain.send(host, Approve(w.chain.domains.node_registry, STAKE))
    w.chain.send(host, Register(bytes([1]) * 32, key_address(receipt_secret(member.index)), STAKE))


async def test_evidence_that_could_not_be_sent_is_sent_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        _stake(w, member)
        async with w.client(member) as client:
            await answer(client, tokens=80)
            await trio.sleep(1)  # the last voucher arrives, and with it its receipt is on the disk
            record = bought(client)
            real = money.journal.issued_after(record.session, 0, 0, 9)
            lie = told_otherwise(member, record, real[0], token_hash=bytes(32))
            await books_of(client).bought_shown(record.session, lie, int(wall_clock()))

            class Away(MemoryLedger):
                async def transact(self, call: Any, *, fee_max_wei: int | None = None) -> Any:
                    raise UnavailableError("nobody answers")

            with pytest.raises(UnavailableError):
                await submit_evidence(books_of(client), Away(w.chain, wallet_address("alice")))
            (done,) = await accuse(w, client)
            assert done.reward == STAKE // 10
