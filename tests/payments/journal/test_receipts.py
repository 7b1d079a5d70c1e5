"""What a client keeps of its sessions besides money: receipts, evidence, and what a host is still owed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.errors import StorageError
from p2pnode.payments.journal import payer as journal_payer
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.journal.owner import Owner, is_alive
from tests.payments.journals import (
    NOW,
    PEER,
    TERMS,
    Anything,
    bought,
    hosted,
    receipt,
    session,
    voucher,
    writing,
)
from tests.sqlite_disk import WatchedDisk

OTHER = b"\xee" * 32


async def test_receipts_that_were_checked_are_kept_with_the_voucher_that_answers_them(tmp_path: Path) -> None:
    path, disk = tmp_path / "journal.sqlite", WatchedDisk()
    async with writing(path, disk) as journal:
        await journal.bought(bought(1), Anything(), NOW)
        commits = disk.commits
        for seq in (1, 2):
            journal.bought_receipt(session(1), receipt(seq, root=bytes([seq]) * 32), NOW)
            await journal.signed(session(1), voucher(seq, 1000 * seq), NOW)
        assert disk.commits == commits + 2
    async with writing(path) as journal:
        assert [each.checkpoint.seq for each in journal.taken(session(1))] == [1, 2]
        found = journal.taken_with_root(session(1), b"\x02" * 32)
        assert found == receipt(2, root=b"\x02" * 32)
        assert journal.taken_with_root(session(1), OTHER) is None
        assert journal.taken(session(2)) == []


@pytest.mark.parametrize("held_first", [True, False])
async def test_two_receipts_for_one_place_are_evidence_once(tmp_path: Path, held_first: bool) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        await journal.bought(bought(1), Anything(), NOW)
        true, lie = receipt(1), receipt(1, root=OTHER)
        for each in (true, lie) if held_first else (lie, true):
            if each is true:
                journal.bought_receipt(session(1), each, NOW)
                await journal.signed(session(1), voucher(1, 1000), NOW)
            else:
                await journal.bought_shown(session(1), each, NOW)
        await journal.bought_shown(session(1), receipt(1, root=b"\xdd" * 32), NOW + 1)
        (found,) = journal.evidence()
        assert {found.one.checkpoint.root, found.other.checkpoint.root} == {true.checkpoint.root, OTHER}
        assert (found.terms, found.host, found.place, found.noted_at) == (TERMS, PEER, (1, 1), NOW)
        assert journal.taken(session(1)) == [true]
        await journal.evidence_submitted(found, "slashed: 00")
        assert [each.outcome for each in journal.evidence()] == ["slashed: 00"]


async def test_what_no_two_receipts_say_is_no_evidence(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        await journal.bought(bought(1), Anything(), NOW)
        for each in (receipt(1), receipt(1), receipt(2, root=OTHER), receipt(1, root=OTHER, epoch=2)):
            await journal.bought_shown(session(1), each, NOW)
        assert journal.evidence() == []
        assert journal.taken(session(1)) == []  # shown, and never checked against anything


async def test_only_the_newest_receipts_of_a_session_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_payer, "TAKEN_MAX", 100)
    async with writing(tmp_path / "journal.sqlite") as journal:
        await journal.bought(bought(1), Anything(), NOW)
        for seq in range(1, 513):
            journal.bought_receipt(session(1), receipt(seq), NOW)
            if seq % 64 == 0:
                await journal.signed(session(1), voucher(seq, seq), NOW)
        kept = [each.checkpoint.seq for each in journal.taken(session(1))]
        assert kept == list(range(413, 513))


async def test_receipts_of_sessions_long_over_go_and_evidence_stays(tmp_path: Path) -> None:
    month = 30 * 86_400
    async with writing(tmp_path / "journal.sqlite") as journal:
        for number in (1, 2):
            await journal.bought(bought(number), Anything(), NOW)
            for each in (receipt(1), receipt(1, root=OTHER)):
                journal.bought_receipt(session(number), each, NOW)
        await journal.bought_settled(session(1), 5, NOW)
        for number, now in ((3, NOW + month), (4, NOW + month + 1)):
            kept = len(journal.taken(session(1)))
            await journal.bought(bought(number, opened_at=now), Anything(), now)
            assert (kept, len(journal.taken(session(1)))) == (1, 1 if number == 3 else 0)
        assert len(journal.taken(session(2))) == 1  # it is not over
        assert len(journal.evidence()) == 2


# ---- what is owed


async def test_the_last_voucher_is_owed_until_it_is_delivered(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        await journal.bought(bought(1), Anything(), NOW)
        await journal.bought_open(session(1))
        for each in (voucher(1, 3000), voucher(2, 2000)):  # the first paid input that was never billed
            await journal.signed(session(1), each, NOW)
        record = journal.purchase(session(1))
        assert record is not None
        assert (record.voucher, record.final, record.owed) == (voucher(1, 3000), *[voucher(2, 2000)] * 2)
        await journal.bought_delivered(session(1), 2000)
        await journal.bought_delivered(session(1), 100)
        record = journal.purchase(session(1))
        assert record is not None
        assert (record.delivered, record.owed) == (2000, None)
        with pytest.raises(StorageError, match="not in the journal"):
            await journal.bought_delivered(session(2), 1)


async def test_a_session_that_a_process_uses_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with writing(path) as journal:
        async with writing(path) as other:
            for number, state in enumerate(("signed", "open", "over"), 1):
                await other.bought(bought(number, opened_at=NOW + number), Anything(), NOW)
                if state != "signed":
                    await other.bought_open(session(number))
                if state == "over":
                    await other.bought_over(session(number))
            assert [each.session for each in journal.purchases_left()] == [session(3)]
        # It ended, whether in order or not: nobody uses what it had opened.
        assert [each.session for each in journal.purchases_left()] == [session(2), session(3)]
        await journal.bought_settled(session(3), 5, NOW)
        assert [each.session for each in journal.purchases_left()] == [session(2)]


def test_a_process_that_was_killed_uses_nothing_any_more(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    script = (
        "import sys, time; from pathlib import Path; from p2pnode.payments.journal.owner import Owner;"
        "o = Owner(Path(sys.argv[1])); print(o.name(), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert is_alive(path, name)
        process.kill()
        process.wait()
    assert not is_alive(path, name)
    assert list(tmp_path.iterdir()) == [], "its file is gone too"
    assert not is_alive(path, "")


def test_an_owner_holds_one_file_and_takes_it_away(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "journal.sqlite")
    assert list(tmp_path.iterdir()) == []
    name = owner.name()
    assert owner.name() == name
    assert is_alive(tmp_path / "journal.sqlite", name)
    owner.release()
    owner.release()
    assert list(tmp_path.iterdir()) == []


# ---- what comes back from elsewhere


async def test_a_purchase_is_put_back_and_none_of_its_vouchers_lowered(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        away = bought(1, state="over", voucher=voucher(2, 2000), final=voucher(2, 2000))
        await journal.bought_restored(away, NOW)
        assert journal.purchase(session(1)) == away
        assert [each.session for each in journal.purchases_left()] == [session(1)]
        await journal.bought_restored(replace(away, voucher=voucher(1, 1000), final=voucher(1, 1000)), NOW)
        assert journal.purchase(session(1)) == away
        higher = replace(away, voucher=voucher(3, 3000), final=voucher(3, 3000), state="open")
        await journal.bought_restored(higher, NOW)
        assert journal.purchase(session(1)) == replace(higher, state="over")  # it does not go on by that
        await journal.bought_delivered(session(1), 3000)
        await journal.bought_restored(higher, NOW)
        record = journal.purchase(session(1))
        assert record is not None
        assert record.owed is None


async def test_a_purchase_comes_back_with_the_receipt_its_voucher_goes_on_from_and_its_host_is_owed(
    tmp_path: Path,
) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        paid, unpaid = bought(1, voucher=voucher(1, 1000), state="over"), bought(2)
        await journal.bought_restored(paid, NOW, receipt(1))
        await journal.bought_restored(unpaid, NOW)
        assert [each.session for each in journal.purchases_left()] == [session(1)]  # nothing is owed for 2
        assert journal.taken_with_root(session(1), receipt(1).checkpoint.root) == receipt(1)
        assert journal.taken(session(2)) == []
        # What was paid was accepted: to settle it takes no fee for nothing.
        await journal.bought_settled(session(1), 1000, NOW)
        await journal.bought_settled(session(2), 1000, NOW)
        assert journal.taken_unserved(paid.terms.host, 0) == 1


async def test_a_purchase_that_another_machine_may_use_is_left_until_it_is_told_to_be_over(
    tmp_path: Path,
) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        used = bought(1, voucher=voucher(2, 2000))
        await journal.bought_restored(used, NOW, receipt(2))
        assert journal.purchases_left() == []
        # The last may be below one before: of input that was paid and never billed.
        last = replace(used, voucher=voucher(3, 1500), state="over")
        await journal.bought_restored(last, NOW, receipt(3))
        (left,) = journal.purchases_left()
        assert (left.state, left.owed) == ("over", voucher(3, 1500))
        await journal.bought_settled(session(1), 2000, NOW)
        await journal.bought_restored(last, NOW, receipt(3))
        assert journal.purchases_left() == []


# ---- a host's epochs


async def test_receipts_of_two_starts_have_the_same_places_and_never_the_same_epoch(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        await journal.host_relaying(hosted(1))
        await journal.host_open(session(1))
        first, again = receipt(1), receipt(1, root=OTHER, epoch=2)
        for each in (first, receipt(2), again):
            await journal.host_issued(session(1), each)
        assert journal.receipts(session(1)) == [each.checkpoint for each in (first, receipt(2), again)]
        assert journal.issued(session(1), 2, 1) == again
        assert journal.issued(session(1), 2, 2) is None
        assert journal.issued_after(session(1), 1, 1, 5) == [receipt(2), again]
        assert journal.issued_after(session(1), 0, 0, 1) == [first]
        with pytest.raises(StorageError, match="evidence against this host"):
            await journal.host_issued(session(1), receipt(1, epoch=2))


async def test_a_session_goes_on_in_a_later_start_only_once(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        await journal.host_relaying(hosted(1))
        await journal.host_open(session(1))
        await journal.host_over(session(1), NOW)
        await journal.host_resumed(session(1), 7)
        record = journal.hosted_one(session(1))
        assert record is not None
        assert (record.state, record.epoch, record.settle_at) == ("open", 7, None)
        await journal.host_resumed(session(1))
        for epoch in (6, 7):
            with pytest.raises(StorageError, match="went on at another start"):
                await journal.host_resumed(session(1), epoch)


async def test_what_an_earlier_start_left_open_waits_and_what_this_one_serves_does_not(
    tmp_path: Path,
) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        for number, epoch in ((1, 1), (2, 2)):
            await journal.host_relaying(hosted(number, epoch=epoch))
            await journal.host_open(session(number))
            await journal.host_left_open(session(number), NOW + 300, 2)
        states = [(each.state, each.settle_at) for each in journal.hosted()]
        assert states == [("over", NOW + 300), ("open", None)]


def test_a_journal_can_be_opened_without_a_purchase_and_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.sqlite")
    journal.close()
    assert not [each for each in tmp_path.iterdir() if each.name.endswith(".user")]
