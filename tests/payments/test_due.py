"""What a session costs or earns: one figure for every list, at each state it may be in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.payments.funds import local_funds
from p2pnode.protocols.typed_data import market_domain, session_id
from tests.payments.journals import NOW, TERMS, Anything, bought, hosted, voucher, writing

MARKET = market_domain(1, b"\x11" * 20)
FEE = TERMS.session_fee


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"state": "signed"}, 0),
        ({"state": "expired"}, 0),
        ({"state": "open"}, FEE),
        ({"state": "over"}, FEE),
        ({"state": "over", "voucher": voucher(1, FEE + 500)}, FEE + 500),
        ({"state": "settled", "voucher": voucher(1, FEE + 500), "spent": FEE + 400}, FEE + 400),
        ({"state": "settled", "spent": 0}, 0),
    ],
)
def test_what_a_bought_session_costs_follows_from_what_its_host_can_claim(
    changes: dict[str, Any], due: int
) -> None:
    assert bought(1, **changes).due == due


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"state": "relaying"}, 0),
        ({"state": "lost"}, 0),
        ({"state": "over"}, FEE),
        ({"state": "over", "voucher": voucher(1, FEE + 500)}, FEE + 500),
        ({"state": "settled", "amount": FEE}, FEE),
    ],
)
def test_what_a_served_session_earns_follows_from_what_can_be_claimed(
    changes: dict[str, Any], due: int
) -> None:
    assert hosted(1, **changes).due == due


async def test_the_funds_are_the_sum_of_what_the_sessions_cost(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal.sqlite") as journal:
        terms = [replace(TERMS, salt=bytes([number]) * 32) for number in range(1, 4)]
        one, two, three = (session_id(MARKET, each) for each in terms)
        for number, each in enumerate(terms):
            record = replace(bought(number, terms=each), session=session_id(MARKET, each))
            await journal.bought(record, Anything(), NOW)
        await journal.bought_open(one)
        await journal.bought_over(one)  # it was opened, and its only question refused
        await journal.bought_open(two)
        await journal.signed(two, voucher(1, FEE + 7), NOW)
        await journal.bought_settled(three, FEE + 1, NOW)
        found = local_funds(journal, MARKET, TERMS.payer, NOW)
        assert (found.signed, found.spent) == (FEE + FEE + 7, FEE + 1)
        assert found.signed + found.spent == sum(each.due for each in journal.purchases())
