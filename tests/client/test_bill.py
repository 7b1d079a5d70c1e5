"""The bill of an answer."""

from __future__ import annotations

import pytest

from p2pnode.client.bill import Bill, BillItem, CostShares
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.typed_data import amount_due
from tests.protocols.inference.paid_pair import TERMS

ONE, TWO = SessionId(b"1" * 32), SessionId(b"2" * 32)
PEER = PeerId("a host")


def test_attempts_in_one_session_are_one_item_and_the_sums_are_the_usage() -> None:
    bill = Bill()
    bill.add(BillItem(peer=PEER, session=ONE, tokens_in=5, tokens_out=3, cost=20, reason="lost"))
    bill.add(BillItem(peer=PEER, session=ONE, tokens_in=8, reused=7, tokens_out=4, cost=5, reason="internal"))
    bill.add(BillItem(peer=PEER, session=TWO, reason="capacity"))  # nothing was used
    bill.add(BillItem(peer=PEER, session=TWO, tokens_in=12, tokens_out=6, cost=40, reason="stop"))
    assert [(i.session, i.tokens_in, i.reused, i.tokens_out, i.cost, i.reason) for i in bill.items] == [
        (ONE, 13, 7, 7, 25, "internal"),
        (TWO, 12, 0, 6, 40, "stop"),
    ]
    usage = bill.usage(reason="stop", ttft_s=0.5, total_s=2.0)
    assert (usage.tokens_in, usage.reused, usage.tokens_out, usage.cost) == (25, 7, 13, 65)


class _Turn:
    """A turn of a session, as it is billed."""

    def __init__(self, tokens_in: int, tokens_out: int) -> None:
        self.tokens_in, self.tokens_out = tokens_in, tokens_out
        self.cost: int | None = None


@pytest.mark.parametrize(
    ("reason", "used", "n_ctx", "full"),
    [
        ("length", 2048, 2048, True),
        ("length", 2000, 2048, False),
        ("stop", 2048, 2048, False),
        ("length", 0, 0, False),
    ],
)
def test_an_answer_ended_at_the_end_of_the_context_only_where_a_limit_cut_it_and_nothing_is_left(
    reason: str, used: int, n_ctx: int, full: bool
) -> None:
    usage = Bill().usage(reason=reason, ttft_s=0.5, total_s=2.0, context_used=used, n_ctx=n_ctx)
    assert usage.context_full == full


def test_the_shares_of_parallel_turns_are_the_sessions_cost_to_the_unit() -> None:
    shares, first, second = CostShares(TERMS), _Turn(1000, 7), _Turn(500, 11)
    shares.begin(first)
    shares.begin(second)
    cost = amount_due(TERMS, 1500, 18)
    one = shares.take(first, amount_due(TERMS, 1500, 9))
    assert one == amount_due(TERMS, 1000, 7)
    assert shares.take(first, cost) == one  # asked again
    assert one + shares.take(second, cost) == cost


def test_an_attempt_that_asked_no_turn_bears_the_fee_unless_a_turn_is_under_way() -> None:
    alone = CostShares(TERMS)
    assert alone.take(None, TERMS.session_fee) == TERMS.session_fee
    shares, turn = CostShares(TERMS), _Turn(10, 1)
    shares.begin(turn)
    assert shares.take(None, TERMS.session_fee) == 0
    shares.give_up(turn)
    assert shares.take(None, TERMS.session_fee) == TERMS.session_fee
