"""Gas in USDC, to the unit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.contract_rules import SESSION_FEE_MAX
from p2pnode.payments.gas_budget import (
    OPEN_GAS,
    SESSION_GAS,
    SETTLE_GAS,
    SETTLE_IN_BATCH_GAS,
    WEI_PER_ETHER,
    GasBudget,
    break_even_tokens,
    session_fee_for,
    settlements_left,
)
from p2pnode.payments.price_suggestion import suggest_price

DOLLAR = 10**6
GWEI = 10**9


def test_a_session_on_a_cheap_chain_costs_less_than_a_cent() -> None:
    # 203,000 gas at 0.01 gwei and $3,000 an ether: $0.00609.
    assert session_fee_for(203_000, GWEI // 100, 3_000 * DOLLAR) == 6_090


def test_a_fee_is_rounded_up_so_that_the_host_does_not_lose() -> None:
    assert session_fee_for(1, 1, 1) == 1
    assert session_fee_for(0, GWEI, DOLLAR) == 0


@given(
    cost=st.integers(0, 10**9), price=st.integers(1, 10**12), fee=st.integers(0, 250_000)
)  # fmt: skip
def test_break_even_is_the_first_token_that_pays_the_cost(cost: int, price: int, fee: int) -> None:
    def income(tokens: int) -> int:
        earned = -(-tokens * price // 10**6)
        return fee + earned - earned // 10

    tokens = break_even_tokens(cost, price, fee)
    assert tokens is not None
    assert income(tokens) >= cost
    assert tokens == 0 or income(tokens - 1) < cost


def test_a_free_session_never_breaks_even_unless_the_fee_pays_it() -> None:
    assert break_even_tokens(1, 0) is None
    assert break_even_tokens(1, 0, session_fee=1) == 0


def test_the_suggestion_is_the_markets_median_and_the_gas() -> None:
    offers = [(1, 10), (3, 30), (0, 0), (100, 1_000)]
    found = suggest_price(offers, gas_price_wei=GWEI // 100, ether_price_usdc_units=3_000 * DOLLAR)
    assert (found.price_in, found.price_out, found.asked) == (3, 30, 3)
    assert found.session_fee == found.gas_cost == session_fee_for(SESSION_GAS, GWEI // 100, 3_000 * DOLLAR)
    assert found.fee_covers_gas
    even = suggest_price([(1, 4), (2, 7)], gas_price_wei=0, ether_price_usdc_units=0)
    assert (even.price_in, even.price_out) == (1, 5)


def test_without_paid_offers_no_price_is_made_up() -> None:
    found = suggest_price([(0, 0)], gas_price_wei=1, ether_price_usdc_units=1)
    assert (found.price_in, found.price_out, found.asked) == (None, None, 0)


def test_where_gas_is_dear_the_fee_stops_at_the_contracts_cap_and_says_so() -> None:
    found = suggest_price([], gas_price_wei=50 * GWEI, ether_price_usdc_units=3_000 * DOLLAR)
    assert found.session_fee == SESSION_FEE_MAX < found.gas_cost
    assert not found.fee_covers_gas


# ---- what gas may cost

ETHER = 3_000 * DOLLAR
BUDGET = GasBudget(ether_price=ETHER, day_max=DOLLAR)
CENT = 10_000
DAY = 86_400


def _price_for(units: int) -> int:
    """Of gas, at which an open and half a settlement in a batch cost so much."""
    return units * WEI_PER_ETHER // ETHER // (OPEN_GAS + SETTLE_IN_BATCH_GAS // 2)


def test_an_open_costs_at_most_its_session_fee() -> None:
    def why(units: int) -> str:
        return BUDGET.why_not_open(fee=CENT, gas_price_wei=_price_for(units), spent_day_wei=0)

    assert why(CENT) == ""
    assert "session fee" in why(CENT + 1)


def test_a_host_without_a_fee_pays_gas_within_its_budget_of_a_day() -> None:
    def why(spent: int) -> str:
        return BUDGET.why_not_open(fee=0, gas_price_wei=_price_for(CENT), spent_day_wei=BUDGET.wei(spent))

    assert why(DOLLAR - CENT) == ""
    assert "day's budget" in why(DOLLAR - CENT + 10)


def test_without_a_price_of_ether_nothing_is_held_against_the_fee() -> None:
    blind = GasBudget()
    assert not blind.known
    assert blind.why_not_open(fee=1, gas_price_wei=10**15, spent_day_wei=10**20) == ""


def test_a_settlement_may_cost_twice_the_fee_and_on_its_last_day_up_to_half_of_its_worth() -> None:
    def most(left_s: float, worth: int = DOLLAR) -> int:
        return BUDGET.settle_max_wei(fee=CENT, worth=worth, left_s=left_s)

    assert most(5 * DAY) == most(DAY) == BUDGET.wei(2 * CENT)
    assert most(DAY / 2) == BUDGET.wei((2 * CENT + DOLLAR // 2) // 2)
    assert most(0) == most(-DAY) == BUDGET.wei(DOLLAR // 2)
    assert most(0, worth=CENT) == BUDGET.wei(2 * CENT)  # never less than at first


def test_a_settlement_without_a_fee_may_cost_a_tenth_of_its_worth_from_the_first_day_on() -> None:
    assert BUDGET.settle_max_wei(fee=0, worth=DOLLAR, left_s=5 * DAY) == BUDGET.wei(DOLLAR // 10)
    assert BUDGET.settle_max_wei(fee=0, worth=0, left_s=5 * DAY) == 0


@given(left=st.integers(0, 2 * DAY), worth=st.integers(0, 10**9), fee=st.integers(0, 250_000))
def test_what_a_settlement_may_cost_never_falls_as_its_time_runs_out(left: int, worth: int, fee: int) -> None:
    sooner = BUDGET.settle_max_wei(fee=fee, worth=worth, left_s=left + 60)
    assert sooner <= BUDGET.settle_max_wei(fee=fee, worth=worth, left_s=left)


def test_a_wallets_settlements_are_counted() -> None:
    assert settlements_left(10 * SETTLE_GAS * GWEI, GWEI) == 10
    assert settlements_left(SETTLE_GAS * GWEI - 1, GWEI) == 0
    assert settlements_left(0, 0) is None
