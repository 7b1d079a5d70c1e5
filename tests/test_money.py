"""Money as people write and read it: exact in both directions, in one language."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.money import decimal_units, ether_text, gwei_text, price_text, usdc_number, usdc_text, usdc_units


@pytest.mark.parametrize(
    ("text", "digits", "units"),
    [("3000", 6, 3_000_000_000), ("0.01", 9, 10_000_000), ("1.50", 1, 15), (" 7 ", 0, 7), ("0", 6, 0)],
)
def test_decimals_become_units_exactly(text: str, digits: int, units: int) -> None:
    assert decimal_units(text, digits) == units


@pytest.mark.parametrize("text", ["", "-1", "1e3", "1.", ".5", "0.0000001", "nan", "1,5", "0x10", "1" * 19])
def test_what_is_no_amount_of_units_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"decimal number|digits after"):
        decimal_units(text, 6)


@pytest.mark.parametrize(
    ("wei", "text"),
    [(0, "0 ETH"), (1, "0.000000000000000001 ETH"), (15 * 10**17, "1.5 ETH"), (10**19, "10 ETH")],
)
def test_ether_is_written_exactly(wei: int, text: str) -> None:
    assert ether_text(wei) == text


def test_a_price_of_gas_is_written_exactly() -> None:
    assert [gwei_text(wei) for wei in (10**9, 1_000_001, 0)] == ["1 gwei", "0.001000001 gwei", "0 gwei"]


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (0, "0.00 USDC"),
        (1, "0.000001 USDC"),
        (10_000, "0.01 USDC"),
        (1_250_000, "1.25 USDC"),
        (2**63 - 1, "9223372036854.775807 USDC"),
        (-1, "-0.000001 USDC"),
        (-1_500_000, "-1.50 USDC"),
    ],
)
def test_amounts_are_written_exactly(units: int, text: str) -> None:
    assert usdc_text(units) == text


@given(st.integers(0, 2**63 - 1))
def test_what_is_written_can_be_typed_again(units: int) -> None:
    assert usdc_units(usdc_number(units)) == units


@pytest.mark.parametrize("amount", ["0.3", Decimal("0.3"), Decimal("3e-1"), Decimal("0.300000")])
def test_three_tenths_are_three_tenths(amount: str | Decimal) -> None:
    assert usdc_units(amount) == 300_000


@pytest.mark.parametrize("amount", ["", "-1", -1, Decimal("inf"), Decimal("nan"), Decimal("1e-7"), "0,5"])
def test_what_is_no_amount_is_refused(amount: str | int | Decimal) -> None:
    with pytest.raises(ValueError, match=r"decimal number|digits after"):
        usdc_units(amount)


def test_a_price_is_told_in_one_language() -> None:
    assert price_text(0, 0, 10_000) == "free"
    assert price_text(500_000, 1_500_000) == "0.50/1.50 USDC per million tokens in/out"
    assert price_text(0, 7, 10_000) == "0.00/0.000007 USDC per million tokens in/out, 0.01 USDC a session"
