"""What a voucher adds is shared out among the turns that it pays for, and keys have what may still come."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pnode.payments.journal.keys import Granted, KeyShare
from p2pnode.payments.turn_budgets import TurnBudgets, first_claim, share_out, tokens_ahead
from p2pnode.protocols.inference.commands import PaidPart
from p2pnode.protocols.inference.messages import WINDOW
from p2pnode.protocols.typed_data import amount_due
from tests.payments.journals import TERMS

FEE, PARTS = TERMS.session_fee, 1_000_000
ALICE, BOB = b"alice---", b"bob-----"


def granted(claim: int, key: bytes = ALICE, units: int = 1_000) -> Granted:
    return Granted(claim=claim, key=key, units=units)


def test_of_two_turns_in_one_voucher_each_key_gets_what_its_tokens_cost() -> None:
    budgets = TurnBudgets(TERMS, FEE)
    budgets.begin(1, 500, granted(10, ALICE), 10_000)
    budgets.begin(2, 500, granted(11, BOB), 10_000)
    # 100 in at 0.2 and 32 out at 0.8 are 45.6 units, 10 in and 32 out 27.6: the host bills 74.
    amount = amount_due(TERMS, 110, 64)
    shares = budgets.shares(amount, [PaidPart(1, 100, 32), PaidPart(2, 10, 32)], WINDOW)
    assert [(each.claim, each.key, each.units) for each in shares] == [(10, ALICE, 46), (11, BOB, 28)]
    assert sum(each.units for each in shares) == amount - FEE
    assert shares[0].ahead == -(-tokens_ahead(WINDOW) * 8 // 10) + 2


def test_a_turn_without_a_key_takes_its_part_and_no_key_pays_for_it() -> None:
    budgets = TurnBudgets(TERMS, FEE)
    budgets.begin(1, 500, None, 10_000)
    budgets.begin(2, 500, granted(11, BOB), 10_000)
    shares = budgets.shares(amount_due(TERMS, 100, 32), [PaidPart(1, 100, 0), PaidPart(2, 0, 32)], WINDOW)
    assert shares == [KeyShare(claim=11, key=BOB, units=26, ahead=shares[0].ahead)]


def test_a_voucher_that_adds_nothing_costs_no_key_anything() -> None:
    budgets = TurnBudgets(TERMS, FEE + 500)
    budgets.begin(1, 500, granted(10), 10_000)
    (share,) = budgets.shares(FEE + 400, [PaidPart(1, 100, 32)], WINDOW)
    assert share.units == 0


def test_what_was_paid_in_advance_and_not_billed_goes_off_what_is_signed_next() -> None:
    budgets = TurnBudgets(TERMS, FEE)
    budgets.begin(1, 500, granted(10), 10_000)
    (advance,) = budgets.shares(FEE + 100, [PaidPart(1, 500, 0)], WINDOW)
    assert advance.units == 100
    (after,) = budgets.shares(FEE + 120, [PaidPart(1, 0, 32)], WINDOW)
    assert after.units == 20, "25.6 units of output, of which the host holds 5.6 already"


def test_a_turn_may_spend_what_its_claim_and_the_day_allow_whichever_is_less() -> None:
    budgets = TurnBudgets(TERMS, FEE)
    assert budgets.begin(1, 500, granted(10, units=102), 10_000) == 100
    assert budgets.begin(2, 500, granted(11, units=102), 70) == 70
    assert budgets.begin(3, 500, None, 70) == 70
    budgets.shares(FEE + 30, [PaidPart(1, 150, 0)], WINDOW)
    assert budgets.claimed({10: 52}) == [(1, 80)], "30 are spent, and 52 claimed beside them"
    assert budgets.capped_by(1) == (ALICE, 26)
    assert budgets.capped_by(2) is None, "it is the day that ends this one"


def test_a_turn_that_is_over_keeps_the_claim_for_what_is_still_to_be_signed() -> None:
    budgets = TurnBudgets(TERMS, FEE)
    budgets.begin(1, 500, granted(10), 10_000)
    budgets.shares(FEE + 20, [PaidPart(1, 100, 0)], WINDOW)
    assert budgets.end(1, 100, 64) == (granted(10), -(-64 * 8 // 10) + 2)
    (late,) = budgets.shares(amount_due(TERMS, 100, 64), [PaidPart(1, 0, 64)], WINDOW)
    assert (late.claim, late.units) == (10, 52)
    assert budgets.end(1, 100, 64) is None, "nothing is known of it any more"


def test_a_turn_that_is_over_and_signed_for_gives_all_back() -> None:
    budgets = TurnBudgets(TERMS, FEE)
    budgets.begin(1, 500, granted(10), 10_000)
    budgets.shares(amount_due(TERMS, 100, 40), [PaidPart(1, 100, 40)], WINDOW)
    assert budgets.end(1, 100, 40) == (granted(10), 0)


def test_the_claim_that_a_session_was_opened_with_is_replaced_by_its_first_turn() -> None:
    budgets = TurnBudgets(TERMS, FEE)
    budgets.opened_for(granted(7))
    assert budgets.claim(b"", 10, 10, WINDOW) is None
    other, first = budgets.claim(BOB, 10, 10, WINDOW), budgets.claim(ALICE, 10, 10, WINDOW)
    second = budgets.claim(ALICE, 10, 10, WINDOW)
    assert other is not None
    assert first is not None
    assert second is not None
    assert (other.replaces, first.replaces, second.replaces) == (None, 7, None)


def test_a_prompt_claims_its_input_and_what_comes_before_it_can_be_stopped() -> None:
    claim = first_claim(TERMS, ALICE, 1_000, 10_000, window=WINDOW, fee=FEE)
    assert claim.least == 200 + -(-(WINDOW + 32) * 8 // 10) + 2
    assert claim.wanted == 200 + -(-tokens_ahead(WINDOW) * 8 // 10) + 2
    assert claim.fee == FEE
    short = first_claim(TERMS, ALICE, 1_000, 10, window=WINDOW)
    assert short.least == short.wanted == 200 + 8 + 2


amounts = st.integers(-(10**7), 10**13)


@settings(max_examples=60)
@given(st.integers(0, 10**9), st.lists(amounts, min_size=1, max_size=8))
def test_shares_are_whole_and_each_unit_went_to_whom_most_was_due(units: int, due: list[int]) -> None:
    shares = share_out(units, due)
    assert sum(shares) == units
    assert min(shares) >= 0
    rests = [each - share * PARTS for each, share in zip(due, shares, strict=True)]
    if units <= sum(each // PARTS + 1 for each in due):
        assert all(max(rests) - rest <= PARTS for rest, share in zip(rests, shares, strict=True) if share)


@settings(max_examples=60)
@example(33, 352_729, [{1: (2997, 0), 2: (2998, 0), 3: (2998, 0)}, {1: (0, 1)}, {2: (794, 1)}, {1: (0, 2)}])
@example(6313, 6259, [{1: (83, 1), 2: (169, 64)}, {1: (7, 2)}])
@given(
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.lists(
        st.dictionaries(st.integers(1, 4), st.tuples(st.integers(0, 3000), st.integers(0, 64)), min_size=1),
        max_size=30,
    ),
)
def test_whatever_vouchers_follow_a_turn_pays_two_units_too_much_at_most_and_few_too_little(
    price_in: int, price_out: int, steps: list[dict[int, tuple[int, int]]]
) -> None:
    terms = replace(TERMS, price_in=price_in, price_out=price_out)
    budgets = TurnBudgets(terms, FEE)
    for turn in range(1, 5):
        budgets.begin(turn, 10**6, granted(turn), 10**12)
    spent, exact = dict.fromkeys(range(1, 5), 0), dict.fromkeys(range(1, 5), 0)
    tokens_in = tokens_out = 0
    for step in steps:
        for turn, (more_in, more_out) in step.items():
            tokens_in, tokens_out = tokens_in + more_in, tokens_out + more_out
            exact[turn] += more_in * price_in + more_out * price_out
        parts = [PaidPart(turn, *counts) for turn, counts in step.items()]
        for share in budgets.shares(amount_due(terms, tokens_in, tokens_out), parts, WINDOW):
            spent[share.claim] += share.units
        assert sum(spent.values()) == amount_due(terms, tokens_in, tokens_out) - FEE
        for turn in spent:
            ahead = spent[turn] * PARTS - exact[turn]
            assert -len(spent) * PARTS < ahead < 2 * PARTS
