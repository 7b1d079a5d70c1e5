"""Spending limits, the deposit of a session and its words: decided without a wallet, a chain or a journal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.contract_rules import SESSION_FEE_MAX
from p2pnode.errors import ConfigError
from p2pnode.payments.journal.records import Spending
from p2pnode.payments.spending import (
    FEES,
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

NOTHING = Spending(
    deposit=0, session_fee=0, locked=0, day_spent=0, day_reserved=0, host_locked=0, host_spent=0,
    host_ended=0, outstanding=0,
)  # fmt: skip


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


@given(limits=st.builds(SpendingLimits, session_max=_AMOUNT, day_max=_AMOUNT, host_max=_AMOUNT,
                        locked_max=_AMOUNT | st.none()),
       deposit=_AMOUNT, fee=st.integers(0, SESSION_FEE_MAX), locked=_AMOUNT, spent=_AMOUNT,
       reserved=_AMOUNT, at_host=st.tuples(_AMOUNT, _AMOUNT))  # fmt: skip
def test_a_deposit_passes_exactly_when_it_is_within_every_limit(
    *,
    limits: SpendingLimits,
    deposit: int,
    fee: int,
    locked: int,
    spent: int,
    reserved: int,
    at_host: tuple[int, int],
) -> None:
    spending = replace(
        NOTHING, deposit=deposit, session_fee=fee, locked=locked, day_spent=spent, day_reserved=reserved,
        host_locked=at_host[0], host_ended=at_host[1],
    )  # fmt: skip
    locked_max = limits.day_max if limits.locked_max is None else limits.locked_max
    fits = (
        deposit <= limits.session_max
        and deposit <= max(0, locked_max - locked)
        and deposit <= max(0, limits.host_max - sum(at_host))
        and fee <= max(0, limits.day_max - spent - reserved)
    )
    if fits:
        limits.check(spending)
    else:
        with pytest.raises(SpendingLimitError):
            limits.check(spending)


@given(day=_AMOUNT, spent=_AMOUNT, reserved=_AMOUNT, wanted=_AMOUNT, least=_AMOUNT)
def test_a_turn_is_granted_what_is_left_of_the_day_and_refused_where_that_is_too_little_to_begin(
    day: int, spent: int, reserved: int, wanted: int, least: int
) -> None:
    limits, spending = (
        SpendingLimits(day_max=day),
        replace(NOTHING, day_spent=spent, day_reserved=reserved),
    )
    left = max(0, day - spent - reserved)
    if left < min(wanted, least):
        with pytest.raises(SpendingLimitError, match="spend_day_max"):
            limits.grant(wanted, least, spending)
    else:
        assert limits.grant(wanted, least, spending) == min(wanted, left)


def test_a_name_from_a_stranger_can_not_pretend_to_be_our_words() -> None:
    words = describe(TERMS, NOW, host="12D3", model="good\nA deposit of 0.000001 USDC\x1b[2K", chain=1)
    assert "\n" not in words
    assert "\x1b" not in words


SMALL_FEE = 100
"""So small that a deposit is of turns, and not of fees."""


@pytest.mark.parametrize(
    ("balance", "limits", "turns"),
    [
        (10**9, {}, TURNS),
        (10**9, {"session_max": SMALL_FEE + 3 * TURN_COST}, 3),
        (10**9, {"host_max": SMALL_FEE + 2 * TURN_COST}, 2),
        (SMALL_FEE + 4 * TURN_COST, {}, 4),
        (10**9, {"locked_max": SMALL_FEE + 3 * TURN_COST}, 3),
        (0, {}, 1),
    ],
)
def test_a_deposit_covers_as_many_turns_as_limits_and_wallet_allow_and_one_at_least(
    balance: int, limits: dict[str, int], turns: int
) -> None:
    _, offer = priced(session_fee=SMALL_FEE)
    rule = WalletRule(SpendingLimits(**limits), balance, "0x01")
    assert rule.deposit(offer, NOTHING, 1_000, 1_000) == (SMALL_FEE + turns * TURN_COST, SMALL_FEE)


@pytest.mark.parametrize(("spent", "turns"), [(2 * TURN_COST, TURNS), (6 * TURN_COST, 12)])
def test_a_deposit_covers_two_days_like_the_last_with_a_host_that_is_used_much(
    spent: int, turns: int
) -> None:
    _, offer = priced(session_fee=SMALL_FEE)
    rule = WalletRule(SpendingLimits(), 10**9, "0x01")
    spending = replace(NOTHING, host_spent=spent)
    assert rule.deposit(offer, spending, 1_000, 1_000) == (SMALL_FEE + turns * TURN_COST, SMALL_FEE)


def test_a_deposit_covers_ten_fees_where_these_are_more_than_the_tokens() -> None:
    _, offer = priced()
    rule = WalletRule(SpendingLimits(), 10**9, "0x01")
    fee = offer.session_fee
    assert rule.deposit(offer, NOTHING, 1_000, 1_000) == (fee + FEES * fee, TIP)


def test_a_wallet_that_holds_too_little_says_what_is_missing_and_where_to_send_it() -> None:
    rule = WalletRule(SpendingLimits(), 100, "0x01")
    spending = replace(NOTHING, deposit=150, outstanding=10)
    with pytest.raises(FundsError, match=r"0\.00006 USDC is missing. Send USDC to 0x01"):
        rule.check(spending)
