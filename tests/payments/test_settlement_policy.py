"""What a host settles when, and what follows a refusal: decided from records and the chain's answer alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from p2pnode.chain.ledger import Close, EscrowState, Release
from p2pnode.contract_rules import CHALLENGE_S, CLAIMS_MAX
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.journal.records import HostedSession
from tests.payments.journals import DAY, NOW, TERMS, bought, hosted, voucher

PAID = hosted(1, state="over", settle_at=NOW, voucher=voucher(1, 50_000))
UNPAID = hosted(2, state="over", settle_at=NOW)
OPEN, NONE = EscrowState(status="open"), EscrowState(status="none")
CLOSING = EscrowState(status="open", closing_at=NOW + 100)


def test_what_a_restart_finds_open_waits_for_its_client_and_never_past_its_expiry() -> None:
    limits = DEFAULT_LIMITS
    live = hosted(1, state="open")
    assert policy.due_after_restart(live, NOW, limits) == NOW + limits.linger_s
    soon = replace(live, terms=replace(TERMS, expiry=int(NOW + limits.expiry_margin_s + 10)))
    assert policy.due_after_restart(soon, NOW, limits) == NOW + 10
    late = replace(live, terms=replace(TERMS, expiry=NOW))
    assert policy.due_after_restart(late, NOW, limits) == NOW
    assert policy.due_after_restart(hosted(1, state="relaying"), NOW, limits) == NOW


def test_what_a_restart_finds_open_and_is_kept_waits_for_its_client_as_long_as_was_granted() -> None:
    limits = DEFAULT_LIMITS
    live = hosted(1, state="open", keep_s=3600)
    assert policy.due_after_restart(live, NOW, limits) == NOW + 3600
    owed = policy.settle_above(TERMS.session_fee) + 1
    rich = replace(live, voucher=voucher(1, owed))
    assert policy.due_after_restart(rich, NOW, limits) == NOW + limits.linger_s
    assert policy.keeps(replace(live, voucher=voucher(1, owed - 1)))


@pytest.mark.parametrize(
    ("wanted", "keep_s", "until"),
    [
        (NOW + 10, 3600, NOW + 10),
        (NOW + 7200, 3600, NOW + 3600),
        (2**63 - 1, 2**31, NOW + policy.KEEP_MAX_S),  # however far in the future it asks for
        (NOW + 7200, 0, NOW),
        (5, 3600, NOW),
    ],
)
def test_a_session_is_left_no_longer_than_was_granted(wanted: int, keep_s: int, until: int) -> None:
    terms = replace(TERMS, expiry=NOW + 10 * DAY)
    assert policy.left_until(terms, wanted, keep_s, NOW, 900.0) == until


def test_a_session_is_left_until_a_margin_before_it_expires_at_the_longest() -> None:
    terms = replace(TERMS, expiry=NOW + 5000)
    assert policy.left_until(terms, NOW + DAY, DAY, NOW, 900.0) == NOW + 5000 - 900
    late = replace(TERMS, expiry=NOW + 800)
    assert policy.left_until(late, NOW + DAY, DAY, NOW, 900.0) == NOW


def test_twenty_fees_may_wait_and_a_tenth_of_a_dollar_where_the_fee_is_small() -> None:
    assert policy.settle_above(20_000) == 400_000
    assert policy.settle_above(0) == policy.settle_above(5_000) == 100_000


def test_a_session_is_due_from_its_time_on() -> None:
    record = hosted(1, state="over", settle_at=NOW)
    assert [policy.due_in_s(record, now) for now in (NOW - 3, NOW, NOW + 2)] == [3, 0, -2]
    assert policy.due_in_s(None, NOW) == math.inf


def test_sessions_end_a_margin_before_they_expire() -> None:
    record = hosted(1, state="open")
    assert policy.expiring([record], TERMS.expiry - 10, 10) == [record]
    assert policy.expiring([record], TERMS.expiry - 11, 10) == []


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (CLAIMS_MAX + 1, [CLAIMS_MAX, 1])])
def test_vouchers_go_together_as_far_as_the_contract_allows(count: int, sizes: list[int]) -> None:
    records = [replace(PAID, session=hosted(n).session) for n in range(count)]
    groups = policy.batches([*records, UNPAID, UNPAID])
    assert [len(group) for group in groups] == [*sizes, 1, 1]
    assert [record for group in groups for record in group] == [*records, UNPAID, UNPAID]


def test_a_session_settles_with_its_voucher_or_for_its_fee() -> None:
    assert policy.call_of(PAID) == Close(TERMS, voucher(1, 50_000))
    assert policy.worth(PAID) == 50_000
    assert policy.call_of(UNPAID) == Release(TERMS)
    assert policy.worth(UNPAID) == TERMS.session_fee


def test_anybody_may_bring_the_refund_after_the_challenge() -> None:
    assert policy.deadline(PAID, OPEN) == TERMS.expiry + CHALLENGE_S
    assert policy.deadline(PAID, CLOSING) == NOW + 100


def test_closed_by_another_is_settled_only_where_no_endpoint_denies_it() -> None:
    closed = EscrowState(status="closed", recorded=7)
    believed = policy.after_refusal(PAID, closed, "not open", NOW, confirmed=True)
    assert believed == policy.Settled(7, "settled by another")
    assert isinstance(policy.after_refusal(PAID, closed, "not open", NOW, confirmed=False), policy.Postpone)


def test_a_voucher_on_record_that_the_host_lost_is_paid_by_a_refund_once_it_may_be() -> None:
    better = replace(CLOSING, recorded=TERMS.session_fee + 1)
    step = policy.after_refusal(UNPAID, better, "voucher on record", NOW, confirmed=False)
    assert isinstance(step, policy.Postpone)
    assert step.wait_s == 101
    late = policy.after_refusal(UNPAID, better, "voucher on record", NOW + 100, confirmed=False)
    assert late == policy.BringRefund()


def test_an_open_session_that_the_contract_refuses_is_tried_again_later() -> None:
    step = policy.after_refusal(PAID, OPEN, "bad voucher", NOW, confirmed=False)
    assert step == policy.Postpone("it can't be settled: bad voucher")


@pytest.mark.parametrize(
    ("record", "after_s", "step"),
    [
        (PAID, 0, policy.BringAgain),
        (UNPAID, 0, policy.WaitUntil),
        (PAID, 600, policy.Postpone),
        (UNPAID, 600, policy.Postpone),
        (UNPAID, 720, policy.Lost),
        (PAID, 720, policy.Postpone),
        (PAID, DAY + CHALLENGE_S - 1, policy.Postpone),
        (PAID, DAY + CHALLENGE_S, policy.Lost),
    ],
)
def test_a_deposit_that_the_chain_does_not_show_is_given_up_when_it_can_not_come(
    record: HostedSession, after_s: int, step: type[object]
) -> None:
    found = policy.after_refusal(record, NONE, "not open", NOW + after_s, confirmed=False)
    assert isinstance(found, step)


def test_a_deposit_that_lands_late_is_settled_for_its_fee() -> None:
    waiting = replace(UNPAID, settle_at=policy.given_up_at(UNPAID))
    assert policy.after_landing(waiting) == "settle"
    assert policy.after_landing(UNPAID) == ""
    assert policy.after_landing(hosted(1, state="lost")) == "open and settle"
    assert policy.after_landing(hosted(1, state="open")) == ""


@pytest.mark.parametrize(
    ("state", "after_s", "action"),
    [
        (OPEN, 0, "request"),
        (CLOSING, 99, "wait"),
        (CLOSING, 100, "refund"),
        (OPEN, DAY + CHALLENGE_S - 1, "request"),
        (OPEN, DAY + CHALLENGE_S, "refund"),
    ],
)
def test_a_payer_asks_then_waits_then_brings_the_refund(
    state: EscrowState, after_s: int, action: str
) -> None:
    step = policy.payer_step(bought(1, state="over"), state, NOW + after_s)
    assert (step.action, step.until) == (action, policy.deadline(bought(1), state))
