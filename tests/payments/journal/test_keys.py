"""Keys in the journal: what is spent and claimed of their budgets, whatever ends when."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import BudgetError, ConfigError
from p2pnode.ids import ModelId
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.journal.keys import Claim, Granted, Key, KeyLimits, KeyShare, KeyUsage
from p2pnode.payments.spending import SpendingLimits
from tests.payments.journals import DAY, NOW, TERMS, Anything, bought, session, voucher, writing

FEE = TERMS.session_fee
LIMITS = SpendingLimits()
ID, DIGEST = b"\x01" * 8, b"\x02" * 32
BUDGET = 100_000


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with writing(tmp_path / "journal.sqlite") as journal:
        yield journal


async def key(journal: Journal, *, id_: bytes = ID, name: str = "codex", **limits: Any) -> Key:
    made = Key(id=id_, name=name, limits=KeyLimits(**limits), made_at=NOW)
    await journal.key_add(made, DIGEST[:-8] + id_)
    return made


def claim(least: int, wanted: int | None = None, **more: Any) -> Claim:
    return Claim(key=ID, wanted=least if wanted is None else wanted, least=least, **more)


async def reserve(journal: Journal, number: int, asked: Claim, now: int = NOW) -> Granted:
    _, granted = await journal.bought_reserve(session(number), LIMITS, 1_000, 1_000, now, claim=asked)
    assert granted is not None
    return granted


def usage(journal: Journal, now: int = NOW) -> KeyUsage:
    return journal.key_usage(ID, now)


async def test_a_key_is_found_by_its_hash_and_read_as_it_was_written(journal: Journal) -> None:
    models = (ModelId(b"\x05" * 32), ModelId(b"\x06" * 32))
    limits: dict[str, Any] = {
        "day_max": 1,
        "total_max": 2,
        "price_in_max": 3,
        "price_out_max": 4,
        "expires_at": NOW + DAY,
    }
    made = await key(journal, models=models, **limits)
    assert journal.key_with_digest(DIGEST[:-8] + ID) == (made, DIGEST[:-8] + ID)
    assert journal.key_with_digest(b"\x00" * 32) is None
    assert journal.all_keys() == [made]


async def test_a_name_is_free_again_once_its_key_was_revoked(journal: Journal) -> None:
    await key(journal)
    with pytest.raises(ConfigError, match="already"):
        await key(journal, id_=b"\x09" * 8)
    await journal.key_revoke(ID, NOW + 5)
    await journal.key_revoke(ID, NOW + 9)
    await key(journal, id_=b"\x09" * 8)
    assert [each.revoked_at for each in journal.all_keys()] == [NOW + 5, None]


async def test_the_fee_is_spent_by_the_key_whose_turn_opens_the_session(journal: Journal) -> None:
    await key(journal, total_max=BUDGET)
    granted = await journal.bought(bought(1), Anything(), NOW, claim(500, 900, fee=FEE))
    assert granted is not None
    assert (granted.key, granted.units) == (ID, 900)
    assert usage(journal) == KeyUsage(day=FEE, total=FEE, claimed=900)


async def test_a_session_whose_fee_no_budget_has_is_not_recorded(journal: Journal) -> None:
    await key(journal, total_max=FEE + 499)
    with pytest.raises(BudgetError) as caught:
        await journal.bought(bought(1), Anything(), NOW, claim(500, fee=FEE))
    assert (caught.value.reason, caught.value.retry_after_s) == ("total", None)
    assert journal.purchases() == []
    assert usage(journal) == KeyUsage(day=0, total=0, claimed=0)


async def test_the_fee_of_a_session_that_was_never_opened_is_not_spent_and_one_that_was_after_all_is(
    journal: Journal,
) -> None:
    await key(journal, total_max=BUDGET)
    await journal.bought(bought(1), Anything(), NOW, claim(500, fee=FEE))
    await journal.bought_expired(session(1))
    assert usage(journal) == KeyUsage(day=0, total=0, claimed=0)
    await journal.bought_mined(session(1))
    assert usage(journal).total == FEE


async def test_a_claim_and_what_is_spent_never_exceed_the_budget_together(journal: Journal) -> None:
    await key(journal, total_max=1_000)
    await journal.bought(bought(1), Anything(), NOW)
    first = await reserve(journal, 1, claim(300, 600))
    second = await reserve(journal, 1, claim(300, 600))
    assert (first.units, second.units) == (600, 400)
    with pytest.raises(BudgetError) as caught:
        await reserve(journal, 1, claim(1))
    assert caught.value.retry_after_s is not None, "what is under way may be given back"
    shares = [KeyShare(claim=first.claim, key=ID, units=250, ahead=200)]
    assert await journal.signed(session(1), voucher(1, FEE + 250), NOW, shares) == {first.claim: 200}
    assert usage(journal) == KeyUsage(day=250, total=250, claimed=600), "150 were given back"
    shares = [KeyShare(claim=second.claim, key=ID, units=400, ahead=900)]
    assert await journal.signed(session(1), voucher(2, FEE + 650), NOW, shares) == {second.claim: 150}
    assert usage(journal) == KeyUsage(day=650, total=650, claimed=350)


async def test_a_claim_that_grows_takes_no_more_than_is_left(journal: Journal) -> None:
    await key(journal, day_max=500)
    await journal.bought(bought(1), Anything(), NOW)
    made = await reserve(journal, 1, claim(100))
    shares = [KeyShare(claim=made.claim, key=ID, units=60, ahead=10_000)]
    assert await journal.signed(session(1), voucher(1, FEE + 60), NOW, shares) == {made.claim: 440}


async def test_what_was_claimed_when_a_session_was_opened_is_replaced_by_its_turn(journal: Journal) -> None:
    await key(journal, total_max=FEE + 500)
    made = await journal.bought(bought(1), Anything(), NOW, claim(500, fee=FEE))
    assert made is not None
    assert (await reserve(journal, 1, claim(450, replaces=made.claim))).units == 450
    assert usage(journal).claimed == 450


async def test_a_turn_that_is_over_gives_back_all_but_what_is_still_to_be_signed(journal: Journal) -> None:
    await key(journal, total_max=1_000)
    await journal.bought(bought(1), Anything(), NOW)
    made = await reserve(journal, 1, claim(800))
    await journal.key_release(made.claim, 30)
    assert usage(journal).claimed == 30
    await journal.key_release(made.claim, 0)
    assert usage(journal).claimed == 0
    shares = [KeyShare(claim=made.claim, key=ID, units=30, ahead=50)]
    assert await journal.signed(session(1), voucher(1, FEE + 30), NOW, shares) == {}
    assert usage(journal) == KeyUsage(day=30, total=30, claimed=0), "it is spent all the same"


@pytest.mark.parametrize("end", ["over", "left", "settled", "expired", "released"])
async def test_nothing_is_claimed_for_a_session_without_turns(journal: Journal, end: str) -> None:
    await key(journal, total_max=BUDGET)
    await journal.bought(bought(1), Anything(), NOW)
    if end not in ("expired", "settled"):
        await journal.bought_open(session(1), keep_s=60)
    await reserve(journal, 1, claim(800))
    match end:
        case "over":
            await journal.bought_over(session(1))
        case "left":
            await journal.bought_left(session(1), NOW + 60, 1)
        case "settled":
            await journal.bought_settled(session(1), 1, NOW)
        case "expired":
            await journal.bought_expired(session(1))
        case _:
            await journal.bought_release_all(session(1))
    assert usage(journal).claimed == 0


async def test_a_day_is_the_last_24_hours_and_an_error_says_when_there_is_room_again(
    journal: Journal,
) -> None:
    await key(journal, day_max=1_000)
    await journal.bought(bought(1), Anything(), NOW)
    for hours, amount in ((0, 600), (10, 900)):
        now = NOW + hours * 3600
        made = await reserve(journal, 1, claim(100), now)
        before = 0 if hours == 0 else 600
        shares = [KeyShare(claim=made.claim, key=ID, units=amount - before, ahead=0)]
        await journal.signed(session(1), voucher(hours + 1, FEE + amount), now, shares)
    with pytest.raises(BudgetError, match="for 24 hours") as caught:
        await reserve(journal, 1, claim(200), NOW + 12 * 3600)
    assert caught.value.reason == "day"
    assert caught.value.retry_after_s is not None
    at = NOW + 12 * 3600 + int(caught.value.retry_after_s)
    assert abs(at - (NOW + DAY)) <= 120
    assert (await reserve(journal, 1, claim(200), at)).units == 200
    assert usage(journal, at) == KeyUsage(day=300, total=900, claimed=200)


async def test_what_a_question_needs_and_no_day_has_is_not_to_be_waited_for(journal: Journal) -> None:
    await key(journal, day_max=1_000)
    await journal.bought(bought(1), Anything(), NOW)
    with pytest.raises(BudgetError) as caught:
        await reserve(journal, 1, claim(2_000))
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"expires_at": NOW}, "expired"),
        ({"models": (ModelId(b"\x99" * 32),)}, "model"),
        ({"price_in_max": TERMS.price_in - 1}, "price"),
        ({"price_out_max": TERMS.price_out - 1}, "price"),
    ],
)
async def test_what_a_key_does_not_allow_is_refused_where_it_would_be_signed(
    journal: Journal, limits: dict[str, Any], reason: str
) -> None:
    await key(journal, **limits)
    with pytest.raises(BudgetError) as caught:
        await journal.bought(bought(1), Anything(), NOW, claim(1))
    assert caught.value.reason == reason
    assert journal.purchases() == []


async def test_a_key_pays_for_nothing_more_from_the_moment_it_is_revoked(journal: Journal) -> None:
    await key(journal, total_max=BUDGET)
    await journal.bought(bought(1), Anything(), NOW)
    made = await reserve(journal, 1, claim(300))
    await journal.key_revoke(ID, NOW)
    shares = [KeyShare(claim=made.claim, key=ID, units=100, ahead=1_000)]
    assert await journal.signed(session(1), voucher(1, FEE + 100), NOW, shares) == {made.claim: 200}
    with pytest.raises(BudgetError) as caught:
        await reserve(journal, 1, claim(1))
    assert caught.value.reason == "revoked"


async def test_new_limits_hold_at_once_and_what_was_spent_stays(journal: Journal) -> None:
    made = await key(journal, total_max=1_000)
    await journal.bought(bought(1), Anything(), NOW)
    granted = await reserve(journal, 1, claim(900))
    shares = [KeyShare(claim=granted.claim, key=ID, units=900, ahead=0)]
    await journal.signed(session(1), voucher(1, FEE + 900), NOW, shares)
    with pytest.raises(BudgetError):
        await reserve(journal, 1, claim(200))
    await journal.key_change(ID, replace(made.limits, total_max=2_000))
    assert (await reserve(journal, 1, claim(200))).units == 200
    assert usage(journal).total == 900


async def test_what_a_process_that_was_killed_had_claimed_is_dropped_by_the_next_and_what_it_signed_counts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.sqlite"
    async with writing(path) as killed:
        await key(killed, total_max=1_000)
        await killed.bought(bought(1), Anything(), NOW)
        made = await reserve(killed, 1, claim(400, 700))
        shares = [KeyShare(claim=made.claim, key=ID, units=250, ahead=400)]
        await killed.signed(session(1), voucher(1, FEE + 250), NOW, shares)
    # Closing gave its lock up, as a SIGKILL does; its claim stands in the file as it was.
    async with writing(path) as journal:
        assert usage(journal) == KeyUsage(day=250, total=250, claimed=400), "counted until it is looked at"
        assert (await reserve(journal, 1, claim(750))).units == 750
        assert usage(journal) == KeyUsage(day=250, total=250, claimed=750)


async def test_what_another_process_that_runs_has_claimed_holds(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with writing(path) as one, writing(path) as other:
        await key(one, total_max=1_000)
        await one.bought(bought(1), Anything(), NOW)
        await reserve(one, 1, claim(700))
        with pytest.raises(BudgetError):
            await reserve(other, 1, claim(400))
        assert (await reserve(other, 1, claim(300))).units == 300


async def test_what_was_spent_long_ago_is_kept_by_the_day_and_still_counts_in_all(journal: Journal) -> None:
    await key(journal)
    await journal.bought(bought(1), Anything(), NOW)
    for minute in range(5):
        made = await reserve(journal, 1, claim(10), NOW + 60 * minute)
        shares = [KeyShare(claim=made.claim, key=ID, units=10, ahead=0)]
        await journal.signed(
            session(1), voucher(minute + 1, FEE + 10 * minute + 10), NOW + 60 * minute, shares
        )
    assert usage(journal).day == 50
    later = NOW + 4 * DAY
    await journal.bought(bought(2), Anything(), later)
    assert usage(journal, later) == KeyUsage(day=0, total=50, claimed=0)
    db = sqlite3.connect(journal.path)
    assert db.execute("SELECT at, units FROM key_spent").fetchall() == [(NOW // DAY * DAY, 50)]
    db.close()


async def test_a_claim_of_a_key_that_nobody_knows_is_refused(journal: Journal) -> None:
    with pytest.raises(BudgetError):
        await journal.bought(bought(1), Anything(), NOW, claim(1))
