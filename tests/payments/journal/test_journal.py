"""What the journal remembers of sessions, on both sides, and what it refuses to write."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pnode.chain.evm.fees import Fees
from p2pnode.chain.evm.order_book import Order, SentOrder, SignedTransaction
from p2pnode.durable import QUEUE_MAX
from p2pnode.errors import ConfigError, StorageError
from p2pnode.payments.journal.journal import Journal, Spending
from p2pnode.payments.journal.orders import WalletOnChain
from p2pnode.payments.spending import SpendingLimitError, SpendingLimits
from tests.payments.journals import (
    DAY,
    NOW,
    PEER,
    TERMS,
    Anything,
    bought,
    checkpoint,
    hosted,
    receipt,
    session,
    voucher,
    writing,
)
from tests.sqlite_disk import WatchedDisk


@pytest.fixture
def disk() -> WatchedDisk:
    return WatchedDisk()


@pytest.fixture
async def journal(tmp_path: Path, disk: WatchedDisk) -> AsyncIterator[Journal]:
    async with writing(tmp_path / "journal.sqlite", disk) as made:
        yield made


# ---- host


async def test_a_session_is_read_as_it_was_written(journal: Journal) -> None:
    record = hosted(1, voucher=voucher(1, 30_000), detail="relayed")
    await journal.host_relaying(record)
    assert journal.hosted_one(record.session) == record
    assert journal.hosted("relaying") == journal.hosted() == [record]
    assert journal.hosted("open", "over") == []
    assert journal.hosted_one(session(2)) is None


async def test_a_session_goes_from_relaying_to_settled(journal: Journal) -> None:
    one = session(1)
    await journal.host_relaying(hosted(1))
    await journal.host_open(one)
    await journal.host_over(one, NOW + 300)
    held = journal.hosted_one(one)
    assert held is not None
    assert (held.state, held.settle_at) == ("over", NOW + 300)
    await journal.host_resumed(one)
    held = journal.hosted_one(one)
    assert held is not None
    assert (held.state, held.settle_at) == ("open", None)
    await journal.host_over(one, NOW + 900)
    await journal.host_settled(one, 31_000, "close_many")
    held = journal.hosted_one(one)
    assert held is not None
    assert (held.state, held.settle_at, held.amount, held.detail) == ("settled", None, 31_000, "close_many")


async def test_what_the_chain_says_twice_changes_nothing(journal: Journal) -> None:
    one = session(1)
    await journal.host_relaying(hosted(1))
    await journal.host_open(one)
    await journal.host_over(one, NOW + 300)
    await journal.host_open(one)
    held = journal.hosted_one(one)
    assert held is not None
    assert (held.state, held.settle_at) == ("over", NOW + 300)
    await journal.host_settled(one, 5)
    await journal.host_open(one)
    await journal.host_settled(one, 5)
    assert [each.state for each in journal.hosted()] == ["settled"]


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ("settled", lambda journal, one: journal.host_lost(one, "")),
        ("settled", lambda journal, one: journal.host_resumed(one)),
        ("lost", lambda journal, one: journal.host_over(one, NOW)),
        ("relaying", lambda journal, one: journal.host_resumed(one)),
    ],
)
async def test_a_step_that_makes_no_sense_is_refused(
    journal: Journal, state: str, step: Callable[[Journal, bytes], Awaitable[None]]
) -> None:
    await journal.host_relaying(hosted(1, state=state))
    with pytest.raises(StorageError, match=f"is {state} in the journal"):
        await step(journal, session(1))
    held = journal.hosted_one(session(1))
    assert held is not None
    assert held.state == state


@pytest.mark.parametrize(
    "step",
    [
        lambda journal: journal.host_open(session(9)),
        lambda journal: journal.host_paid(session(9), voucher(1, 1)),
        lambda journal: journal.host_settled(session(9), 1),
        lambda journal: journal.bought_open(session(9)),
        lambda journal: journal.signed(session(9), voucher(1, 1), NOW),
    ],
)
async def test_a_session_nobody_wrote_down_is_told(
    journal: Journal, step: Callable[[Journal], Awaitable[None]]
) -> None:
    with pytest.raises(StorageError, match="was an older journal restored"):
        await step(journal)


async def test_terms_used_before_are_refused(journal: Journal) -> None:
    await journal.host_relaying(hosted(1))
    await journal.host_open(session(1))
    with pytest.raises(StorageError, match="in the journal already"):
        await journal.host_relaying(hosted(1))
    assert [each.state for each in journal.hosted()] == ["open"]


async def test_a_lost_open_may_be_mined_after_all(journal: Journal) -> None:
    await journal.host_relaying(hosted(1))
    await journal.host_lost(session(1), "reorganised away")
    assert [(each.state, each.detail) for each in journal.hosted()] == [("lost", "reorganised away")]
    await journal.host_open(session(1))
    assert [each.state for each in journal.hosted()] == ["open"]


async def test_a_stale_voucher_never_replaces_a_better_one(journal: Journal) -> None:
    await journal.host_relaying(hosted(1))
    for each in (voucher(1, 30_000), voucher(2, 50_000), voucher(3, 40_000), voucher(9, 50_000)):
        await journal.host_paid(session(1), each)
    held = journal.hosted_one(session(1))
    assert held is not None
    assert held.voucher == voucher(9, 50_000)


async def test_of_two_vouchers_of_one_amount_the_later_is_kept(journal: Journal) -> None:
    """Cheap tokens round up to the same unit: the counts still grow."""
    record = hosted(1)
    await journal.host_relaying(record)
    for seq in (1, 2):
        await journal.host_paid(record.session, voucher(seq, 5000))
    found = journal.hosted_one(record.session)
    assert found is not None
    assert found.voucher == voucher(2, 5000)


async def test_a_voucher_of_nothing_is_kept_all_the_same(journal: Journal) -> None:
    await journal.host_relaying(hosted(1))
    await journal.host_paid(session(1), voucher(0, 0))
    held = journal.hosted_one(session(1))
    assert held is not None
    assert held.voucher == voucher(0, 0)


async def test_a_second_receipt_for_one_place_is_refused_and_the_first_stays(journal: Journal) -> None:
    await journal.host_relaying(hosted(1))
    for seq in (2, 1, 3):
        await journal.host_issued(session(1), receipt(seq))
    await journal.host_issued(session(1), receipt(2))
    with pytest.raises(StorageError, match="evidence against this host"):
        await journal.host_issued(session(1), receipt(2, root=b"\xff" * 32))
    assert journal.receipts(session(1)) == [checkpoint(1), checkpoint(2), checkpoint(3)]


async def test_a_receipt_of_an_unknown_session_is_refused(journal: Journal) -> None:
    with pytest.raises(StorageError, match="FOREIGN KEY"):
        await journal.host_issued(session(1), receipt(1))
    assert journal.receipts(session(1)) == []


async def test_receipts_of_old_settled_sessions_are_dropped_and_no_others(journal: Journal) -> None:
    for number, opened_at in ((1, NOW - DAY), (2, NOW), (3, NOW - DAY)):
        await journal.host_relaying(hosted(number, opened_at=opened_at))
        await journal.host_issued(session(number), receipt(1))
    await journal.host_settled(session(1), 5)
    await journal.host_settled(session(2), 5)
    await journal.prune(NOW - 1)
    kept = [len(journal.receipts(session(number))) for number in (1, 2, 3)]
    assert kept == [0, 1, 1]
    assert len(journal.hosted()) == 3


# ---- client


async def test_a_purchase_is_read_as_it_was_written(journal: Journal) -> None:
    record = bought(1)
    await journal.bought(record, Anything(), NOW)
    assert journal.purchase(record.session) == record
    assert journal.purchases("signed") == journal.purchases() == [record]
    assert journal.purchases("open") == []


async def test_what_a_rule_refuses_is_not_recorded(journal: Journal) -> None:
    class Nothing:
        def check(self, spending: Spending) -> None:
            raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        await journal.bought(bought(1), Nothing(), NOW)
    assert journal.purchases() == []
    assert journal.outstanding(TERMS.payer, NOW) == 0


async def _used(journal: Journal, at: int, **terms: bytes) -> Spending:
    """What a rule would be shown for another deposit. Nothing is recorded."""
    seen = Anything()

    class Look:
        def check(self, spending: Spending) -> None:
            seen.check(spending)
            raise ConfigError("only looking")

    with pytest.raises(ConfigError, match="only looking"):
        await journal.bought(bought(99, terms=replace(TERMS, **terms)), Look(), at)  # type: ignore[arg-type]
    return seen.shown[0]


async def test_a_deposit_is_locked_until_the_chain_settled_it_and_what_was_signed_is_spent_for_a_day(
    journal: Journal,
) -> None:
    one, rule, fee = session(1), Anything(), TERMS.session_fee
    nothing = Spending(
        deposit=TERMS.deposit, session_fee=fee, locked=0, day_spent=0, day_reserved=0, host_locked=0,
        host_spent=0, host_ended=0, outstanding=0,
    )  # fmt: skip
    await journal.bought(bought(1), rule, NOW)
    assert rule.shown == [nothing]
    used = await _used(journal, NOW)
    assert (used.locked, used.day_spent) == (TERMS.deposit, fee)
    await journal.bought_open(one)
    used = await _used(journal, NOW + 10 * DAY)
    assert (used.locked, used.day_spent) == (TERMS.deposit, 0)  # locked whatever day, spent within one
    await journal.signed(one, voucher(1, 70_000), NOW + DAY)
    await journal.signed(one, voucher(1, 70_000), NOW + DAY)  # the same again adds nothing
    await journal.signed(one, voucher(2, 75_000), NOW + DAY + 3600)
    used = await _used(journal, NOW + DAY + 3600)
    assert (used.locked, used.day_spent) == (TERMS.deposit, 55_000)
    assert (await _used(journal, NOW + 2 * DAY + 60)).day_spent == 5_000
    await journal.bought_over(one)
    assert (await _used(journal, NOW)).locked == TERMS.deposit  # the chain still has it
    await journal.bought_settled(one, 75_000, NOW + DAY + 4000)
    used = await _used(journal, NOW + DAY + 4000)
    assert (used.locked, used.day_spent, used.host_spent, used.host_ended) == (0, 55_000, 55_000, 55_000)
    await journal.bought_settled(one, 75_000, NOW + 5 * DAY)  # heard again
    assert (await _used(journal, NOW + 5 * DAY)) == nothing


async def test_a_host_is_known_by_its_wallet_and_by_its_peer_id(journal: Journal) -> None:
    await journal.bought(bought(1), Anything(), NOW)
    assert (await _used(journal, NOW)).host_locked == TERMS.deposit
    assert (await _used(journal, NOW, host=b"\x77" * 20)).host_locked == TERMS.deposit  # the same peer id
    await journal.bought(
        bought(2, terms=replace(TERMS, host=b"\x55" * 20), host="12D3KooWOther"), Anything(), NOW
    )
    assert (await _used(journal, NOW, host=b"\x77" * 20)).host_locked == TERMS.deposit
    used = await _used(journal, NOW, host=b"\x55" * 20)
    assert (used.host_locked, used.host_spent) == (2 * TERMS.deposit, 2 * TERMS.session_fee)


async def test_what_a_turn_may_still_add_is_held_against_the_turns_of_all_processes(
    tmp_path: Path, journal: Journal
) -> None:
    limits, fee = SpendingLimits(day_max=100_000), TERMS.session_fee
    await journal.bought(bought(1), Anything(), NOW)
    async with writing(tmp_path / "journal.sqlite") as other:
        await other.bought(bought(2), Anything(), NOW)
        assert await journal.bought_reserve(session(1), limits, 50_000, 1_000, NOW) == (50_000, None)
        left = 100_000 - 2 * fee - 50_000
        assert await other.bought_reserve(session(2), limits, 50_000, 1_000, NOW) == (left, None)
        with pytest.raises(SpendingLimitError, match=r"answers that are under way may take 0\.06 USDC"):
            await other.bought_reserve(session(2), limits, 50_000, 1_000, NOW)
        await journal.signed(session(1), voucher(1, fee + 20_000), NOW)
        used = other.spending(TERMS, PEER, NOW)
        assert (used.day_spent, used.day_reserved) == (2 * fee + 20_000, 40_000)
        await journal.bought_release(session(1), 30_000)
        assert other.spending(TERMS, PEER, NOW).day_reserved == 10_000
    # The process of the second session has ended: nothing that it reserved can be spent any more.
    assert journal.spending(TERMS, PEER, NOW).day_reserved == 0


async def test_a_session_that_was_left_is_taken_by_one_process_and_given_back_where_its_host_is_away(
    tmp_path: Path, journal: Journal
) -> None:
    one, path = session(1), tmp_path / "journal.sqlite"
    async with writing(path) as first:
        await first.bought(bought(1), Anything(), NOW)
        await first.bought_open(one, keep_s=3600, settle_above=400_000)
        await first.signed(one, voucher(1, 70_000), NOW)
        assert journal.purchases_kept(NOW) == []  # it is used
        await first.bought_left(one, NOW + 3600, 0)
        (kept,) = journal.purchases_kept(NOW)
        assert (kept.left_until, kept.generation, kept.keep_s) == (NOW + 3600, 0, 3600)
        assert await journal.bought_take(one, NOW) == kept
        assert await first.bought_take(one, NOW) is None
        assert first.purchases_kept(NOW) == []
        await journal.bought_given_back(one)
        assert await first.bought_take(one, NOW) == kept
        await first.bought_gone_on(one, 1)
    # That process was killed while it used the session: its host leaves it by itself.
    (kept,) = journal.purchases_kept(NOW)
    assert (kept.left_until, kept.generation, kept.state) == (None, 1, "open")
    await journal.bought_left(one, NOW + 10, 1)
    assert journal.purchases_kept(NOW + 10) == []  # its time is up
    assert await journal.bought_take(one, NOW + 10) is None


async def test_a_host_gives_a_left_session_to_one_resume_after_another_and_settles_it_in_its_time(
    journal: Journal,
) -> None:
    one = session(1)
    await journal.host_relaying(hosted(1, keep_s=DAY, origin="10.0.0.0/24"))
    await journal.host_open(one)
    await journal.host_left(one, NOW + DAY)
    held = journal.hosted_one(one)
    assert held is not None
    assert (held.state, held.settle_at, held.left_until) == ("over", NOW + DAY, NOW + DAY)
    await journal.host_taken_up(one, 1, 1)
    with pytest.raises(StorageError, match="went on elsewhere already"):
        await journal.host_taken_up(one, 1, 1)
    held = journal.hosted_one(one)
    assert held is not None
    assert (held.state, held.settle_at, held.left_until, held.generation) == ("open", None, None, 1)
    await journal.host_left_open(one, NOW + 60, 2, left_until=NOW + 60)  # the host was killed
    await journal.host_taken_up(one, 2, 2)
    with pytest.raises(StorageError, match="went on elsewhere already"):
        await journal.host_taken_up(one, 1, 3)  # an epoch that is over
    await journal.host_left(one, NOW + DAY)
    await journal.host_settled(one, 31_000)
    held = journal.hosted_one(one)
    assert held is not None
    assert (held.state, held.settle_at, held.left_until, held.epoch) == ("settled", None, None, 2)
    await journal.host_left(one, NOW + DAY)  # said late, it changes nothing
    assert journal.hosted_one(one) == held


async def test_the_one_that_is_due_first_is_found_among_those_that_are_over(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        assert journal.hosted_next(lambda _record: True) is None
        for number, settle_at in enumerate((30, 10, 20, 5)):
            await journal.host_relaying(hosted(number))
            await journal.host_open(session(number))
            await journal.host_over(session(number), NOW + settle_at)
        await journal.host_resumed(session(3))  # it was due first, and is in use again
        await journal.host_settled(session(2), 1)

        def due(until: int, *mine: int) -> list[bytes]:
            wanted = [session(number) for number in mine]
            return [each.session for each in journal.hosted_due(until, lambda each: each.session in wanted)]

        assert due(NOW + 30, 0, 1, 2, 3) == [session(1), session(0)]
        assert due(NOW + 29, 0, 1) == [session(1)]
        assert due(NOW + 30, 0) == [session(0)]
        first = journal.hosted_next(lambda _record: True)
        assert first is not None
        assert (first.session, first.settle_at) == (session(1), NOW + 10)
        assert [journal.hosted_count(*states) for states in (("over",), ("open", "settled"))] == [2, 2]


async def test_an_unexpired_authorisation_is_outstanding_until_it_is_seen_on_the_chain(
    journal: Journal,
) -> None:
    payer = TERMS.payer
    await journal.bought(bought(1), Anything(), NOW)
    await journal.bought(bought(2), Anything(), NOW)
    assert journal.outstanding(payer, NOW) == 2 * TERMS.deposit
    assert journal.outstanding(b"\xee" * 20, NOW) == 0
    await journal.bought_open(session(1))  # the host serves ahead of the chain: the money is still here
    assert journal.outstanding(payer, NOW) == 2 * TERMS.deposit
    await journal.bought_mined(session(1))
    assert journal.outstanding(payer, NOW) == TERMS.deposit
    await journal.bought_over(session(2))  # the client gave up, the host may open it all the same
    assert journal.outstanding(payer, NOW + 599) == TERMS.deposit
    assert journal.outstanding(payer, NOW + 600) == 0


async def test_an_authorisation_past_its_time_still_counts_until_the_chain_was_asked(
    journal: Journal,
) -> None:
    await journal.bought(bought(1), Anything(), NOW)
    assert (await _used(journal, NOW + DAY)).locked == TERMS.deposit
    await journal.bought_expired(session(1))
    used = await _used(journal, NOW)
    assert (used.locked, used.day_spent) == (0, 0)
    await journal.bought_mined(session(1))  # a reorganisation brought it back
    used = await _used(journal, NOW)
    assert (used.locked, used.day_spent) == (TERMS.deposit, TERMS.session_fee)


async def test_a_purchase_that_was_settled_can_not_expire_but_one_reorganised_away_can(
    journal: Journal,
) -> None:
    for number in (1, 2):
        await journal.bought(bought(number), Anything(), NOW)
        await journal.bought_mined(session(number))
    await journal.bought_expired(session(1))
    await journal.bought_settled(session(2), 5, NOW)
    with pytest.raises(StorageError, match="is settled in the journal: it can't become expired"):
        await journal.bought_expired(session(2))


async def test_a_purchase_goes_on_after_a_resume(journal: Journal) -> None:
    await journal.bought(bought(1), Anything(), NOW)
    await journal.bought_open(session(1))
    await journal.bought_over(session(1))
    await journal.bought_resumed(session(1))
    assert [each.state for each in journal.purchases()] == ["open"]


async def test_a_client_keeps_its_highest_voucher(journal: Journal) -> None:
    await journal.bought(bought(1), Anything(), NOW)
    for each in (voucher(1, 30_000), voucher(3, 60_000), voucher(2, 50_000)):
        await journal.signed(session(1), each, NOW)
    held = journal.purchase(session(1))
    assert held is not None
    assert held.voucher == voucher(3, 60_000)


async def test_a_host_that_finished_a_turn_is_known_by_its_wallet_and_to_the_wallet_that_asked(
    journal: Journal,
) -> None:
    first = bought(1)
    await journal.bought(first, Anything(), NOW)
    payer, host, other = first.terms.payer, first.terms.host, b"o" * 20
    assert not journal.has_finished(payer, host)
    await journal.bought_finished(first.session)
    await journal.bought_finished(first.session)
    await journal.bought_settled(first.session, 5, NOW)
    assert journal.has_finished(payer, host)
    assert not journal.has_finished(other, host)
    assert not journal.has_finished(payer, other)
    with pytest.raises(StorageError, match="not in the journal"):
        await journal.bought_finished(session(2))


async def test_the_same_terms_are_not_bought_twice(journal: Journal) -> None:
    await journal.bought(bought(1), Anything(), NOW)
    with pytest.raises(StorageError, match="UNIQUE"):
        await journal.bought(bought(1), Anything(), NOW)


# ---- both


async def test_secrets_are_not_shown(journal: Journal) -> None:
    shown = repr(hosted(1)) + repr(bought(1))
    for secret in (hosted(1).salt, hosted(1).authorisation, bought(1).voucher_secret):
        assert repr(secret) not in shown


async def test_cursors_are_kept_by_name(journal: Journal) -> None:
    assert journal.cursor("market") is None
    await journal.save_cursor("market", 120)
    await journal.save_cursor("other", 5)
    await journal.save_cursor("market", 90)  # a reorganisation takes it back
    assert (journal.cursor("market"), journal.cursor("other")) == (90, 5)


def test_the_number_of_a_start_never_goes_back_with_the_clock(tmp_path: Path) -> None:
    given = []
    for now_ms in (1000, 1000, 500, 5000, 4000):
        journal = Journal.open(tmp_path / "journal.sqlite")
        given.append(journal.next_epoch(now_ms))
        journal.close()
    assert given == [1000, 1001, 1002, 5000, 5001]


# ---- the writer


async def test_what_waits_is_committed_together(journal: Journal, disk: WatchedDisk) -> None:
    await journal.host_relaying(hosted(0))
    before = disk.commits
    async with trio.open_nursery() as nursery:
        for seq in range(1, 101):
            nursery.start_soon(journal.host_issued, session(0), receipt(seq))
    assert len(journal.receipts(session(0))) == 100
    assert disk.commits - before <= 3


async def test_a_clock_that_jumps_does_not_jump_over_a_commit_without_a_thread(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    journal = Journal.open(tmp_path / "journal.sqlite", in_thread=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        begun = trio.current_time()
        with trio.fail_after(1e-6):
            for number in range(5):
                await journal.host_relaying(hosted(number))
        assert trio.current_time() == begun
        nursery.cancel_scope.cancel()
    assert len(journal.hosted()) == 5
    journal.close()


async def test_a_receipt_that_rides_along_is_on_disk_with_the_voucher_that_pays_for_it(
    tmp_path: Path, disk: WatchedDisk
) -> None:
    async with writing(tmp_path / "journal.sqlite", disk) as journal:
        await journal.host_relaying(hosted(1))
        commits = disk.commits
        await journal.host_issuing(session(1), receipt(1))
        assert disk.commits == commits  # no commit of its own
        await journal.host_paid(session(1), voucher(1, 30_000))
        assert disk.commits == commits + 1
        other = Journal.open(journal.path)
        try:
            assert other.receipts(session(1)) == [checkpoint(1)]
        finally:
            other.close()
        await journal.host_issuing(session(1), receipt(2))
    left = Journal.open(tmp_path / "journal.sqlite")
    try:
        assert [each.seq for each in left.receipts(session(1))] == [1, 2]  # an orderly end writes the rest
    finally:
        left.close()


async def test_a_second_receipt_that_rides_along_leaves_the_first_and_what_it_rides_with(
    journal: Journal,
) -> None:
    await journal.host_relaying(hosted(1))
    await journal.host_issued(session(1), receipt(1))
    await journal.host_issuing(session(1), receipt(1, root=b"\xff" * 32))
    await journal.host_paid(session(1), voucher(1, 30_000))
    assert journal.receipts(session(1)) == [checkpoint(1)]
    found = journal.hosted_one(session(1))
    assert found is not None
    assert found.voucher == voucher(1, 30_000)


async def test_one_refused_write_takes_no_other_with_it(journal: Journal) -> None:
    await journal.host_relaying(hosted(1))
    refused = []

    async def unknown() -> None:
        try:
            await journal.host_issued(session(7), receipt(1))
        except StorageError:
            refused.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.host_issued, session(1), receipt(1))
        nursery.start_soon(unknown)
        nursery.start_soon(journal.host_issued, session(1), receipt(2))
    assert refused == [1]
    assert journal.receipts(session(1)) == [checkpoint(1), checkpoint(2)]


async def test_more_callers_than_the_queue_holds_wait_their_turn(journal: Journal) -> None:
    await journal.host_relaying(hosted(1))
    async with trio.open_nursery() as nursery:
        for seq in range(1, 3 * QUEUE_MAX + 1):
            nursery.start_soon(journal.host_issued, session(1), receipt(seq))
    assert len(journal.receipts(session(1))) == 3 * QUEUE_MAX


async def test_what_waits_when_the_writer_is_stopped_is_still_written(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.sqlite")
    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        await journal.host_relaying(hosted(1))
        for seq in range(1, 2 * QUEUE_MAX):
            callers.start_soon(journal.host_issued, session(1), receipt(seq))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(journal.receipts(session(1))) == 2 * QUEUE_MAX - 1
    with pytest.raises(StorageError, match="its writer has not started or was stopped"):
        await journal.host_open(session(1))
    journal.close()


async def test_a_caller_that_leaves_does_not_take_its_write_back(journal: Journal) -> None:
    await journal.host_relaying(hosted(1))
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.host_issued, session(1), receipt(1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    other.execute("ROLLBACK")
    other.close()
    await journal.save_cursor("after", 1)
    assert journal.receipts(session(1)) == [checkpoint(1)]


# ---- orders to the chain


async def test_orders_of_a_process_that_ended_go_to_one_that_can_follow_them(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    here, elsewhere = (WalletOnChain(chain_id, b"\x01" * 20) for chain_id in (1, 2))
    async with writing(path) as dead:
        for wallet in (here, elsewhere):
            name = f"on chain {wallet.chain_id}"
            order = Order(to=b"\x02" * 20, data=b"", gas_max=21_000)
            sent = SentOrder(
                id=name, chain_id=wallet.chain_id, account=wallet.account, nonce=0, order=order, gas=21_000,
                since_block=0,
            )  # fmt: skip
            await dead.order_sending(
                sent, SignedTransaction(raw=b"", hash=name.encode(), fees=Fees(most=2, tip=1))
            )
    async with writing(path) as one, writing(path) as other, writing(path) as late:
        assert [each.id for each in await one.orders_taken_over(here)] == ["on chain 1"]
        assert [each.id for each in await other.orders_taken_over(elsewhere)] == ["on chain 2"]
        assert await late.orders_taken_over(here) == []
