"""What was earned and spent, by day, week and model; each unit counts once."""

from __future__ import annotations

from dataclasses import replace

from p2pnode.ids import ModelId
from p2pnode.views.earnings import DAYS, WEEKS, earnings_fields, spending_fields
from p2pnode.views.sessions import session_fields, terms_fields
from tests.payments.journals import DAY, NOW, TERMS, bought, hosted, voucher


def test_each_session_counts_on_its_day_in_its_week_and_for_its_model() -> None:
    other = replace(TERMS, model=ModelId(b"\x06" * 32))
    found = earnings_fields(
        [
            hosted(1, state="settled", amount=500),
            hosted(2, state="open", voucher=voucher(1, 300)),
            hosted(3, state="settled", amount=70, opened_at=NOW - DAY, terms=other),
            hosted(4, state="settled", amount=9, opened_at=NOW - 200 * DAY),
            hosted(5, state="lost"),
        ],
        NOW,
    )
    assert (found["earned"], found["owed"], found["sessions"]) == (579, 300, 5)
    assert len(found["days"]) == DAYS
    assert found["days"][-1] == {"day": "2027-01-15", "units": 800, "sessions": 2}
    assert found["days"][-2] == {"day": "2027-01-14", "units": 70, "sessions": 1}
    assert sum(each["units"] for each in found["days"]) == 870
    assert len(found["weeks"]) == WEEKS
    assert found["weeks"][-1] == {"week": "2027-01-11", "units": 870, "sessions": 3}
    assert [each["units"] for each in found["models"]] == [809, 70]
    assert found["stuck"] == []


def test_what_should_be_settled_and_is_not_is_stuck_with_its_reason() -> None:
    late = hosted(1, state="over", voucher=voucher(1, 300), settle_at=NOW - 1, detail="gas is too dear")
    soon = hosted(2, state="over", voucher=voucher(1, 900), settle_at=NOW + 60)
    (stuck,) = earnings_fields([late, soon], NOW)["stuck"]
    assert (stuck["units"], stuck["why"]) == (300, "gas is too dear")


def test_what_a_client_spent_is_apart_from_what_is_locked() -> None:
    found = spending_fields(
        [bought(1, state="settled", spent=40), bought(2, state="open", voucher=voucher(1, 30_000))], NOW
    )
    assert (found["spent"], found["locked"], found["signed"]) == (30_040, 1_000_000, 30_000)
    assert found["hosts"] == [{"peer": "12D3KooWHost", "units": 30_040}]
    assert found["days"][-1]["units"] == 30_040


def test_a_session_says_whose_it_is() -> None:
    assert session_fields(bought(1))["as"] == "client"
    assert session_fields(hosted(1))["as"] == "host"
    assert terms_fields(hosted(1, voucher=voucher(2, 300)))["tokens_out"] == 64
