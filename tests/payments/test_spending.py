"""Spending limits, the deposit of a session and its words: decided without a wallet, a chain or a journal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.contract_rules import SESSION_FEE_MAX
from p2pnode.errors import ConfigError
from p2pnode.payments.journal.records import Spending
from p2pnode.payments.spending import (
    LIMIT_MAX,
    TIP,
    TURNS,
    FundsError,
    SpendingLimitError,
    SpendingLimits,
    WalletRule,
    describe,
)
from tests.payments.journals import NOW, TERMS
from tests.payments.signers import TURN_COST, priced

NOTHING = Spending(deposit=0, session_fee=0, day_used=0, host_used=0, outstanding=0)


@pytest.mark.parametrize("field", ["session_max", "day_max", "host_max", "fee_max"])
@pytest.mark.parametrize("value", [-1, LIMIT_MAX + 1, 1.5, True, "7"])
def test_limits_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field} must be a whole number of USDC units from 0 to"):
        SpendingLimits(**{field: value})  # type: ignore[arg-type]


def test_the_limit_of_a_fee_is_not_above_the_contracts() -> None:
    assert SpendingLimits(fee_max=SESSION_FEE_MAX).fee_max == SESSION_FEE_MAX
    with pytest.raises(ConfigError, match=f"from 0 to {SESSION_FEE_MAX}"):
        SpendingLimits(fee_max=SESSION_FEE_MAX + 1)


_AMOUNT = st.integers(0, 5_000_000)


@given(limits=st.builds(SpendingLimits, session_max=_AMOUNT, day_max=_AMOUNT, host_max=_AMOUNT),
       deposit=_AMOUNT, day=_AMOUNT, host=_AMOUNT)  # fmt: skip
def test_a_deposit_passes_exactly_when_it_is_within_every_limit(
    limits: SpendingLimits, deposit: int, day: int, host: int
) -> None:
    spending = Spending(deposit=deposit, session_fee=0, day_used=day, host_used=host, outstanding=0)
    day_left, host_left = max(0, limits.day_max - day), max(0, limits.host_max - host)
    if deposit <= min(limits.session_max, day_left, host_left):
        limits.check(spending)
    else:
        with pytest.raises(SpendingLimitError):
            limits.check(spending)


def test_a_name_from_a_stranger_can_not_pretend_to_be_our_words() -> None:
    words = describe(TERMS, NOW, host="12D3", model="good\nA deposit of 0.000001 USDC\x1b[2K", chain=1)
    assert "\n" not in words
    assert "\x1b" not in words


@pytest.mark.parametrize(
    ("balance", "limits", "turns"),
    [
        (10**9, {}, TURNS),
        (10**9, {"session_max": 20_000 + 3 * TURN_COST}, 3),
        (10**9, {"host_max": 20_000 + 2 * TURN_COST}, 2),
        (20_000 + 5 * TURN_COST, {}, 5),
        (0, {}, 1),
    ],
)
def test_a_deposit_covers_as_many_turns_as_limits_and_wallet_allow_and_one_at_least(
    balance: int, limits: dict[str, int], turns: int
) -> None:
    _, offer = priced()
    rule = WalletRule(SpendingLimits(**limits), balance, "0x01")
    assert rule.deposit(offer, NOTHING, 1_000, 1_000) == (20_000 + turns * TURN_COST, TIP)


def test_a_wallet_that_holds_too_little_says_what_is_missing_and_where_to_send_it() -> None:
    rule = WalletRule(SpendingLimits(), 100, "0x01")
    spending = Spending(deposit=150, session_fee=0, day_used=0, host_used=0, outstanding=10)
    with pytest.raises(FundsError, match=r"0\.00006 USDC is missing. Send USDC to 0x01"):
        rule.check(spending)
