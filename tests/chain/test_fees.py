"""Gas in USDC, to the unit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.chain.fees import (
    SESSION_GAS,
    break_even_tokens,
    session_fee_for,
    suggest_price,
)
from p2pnode.chain.memory.market_rules import SESSION_FEE_MAX

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
