"""What the demo holds its bills to: each wrong one stops it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.demo.bills import (
    SESSION_FEE,
    Item,
    by_session,
    check_failover,
    dues,
    items_of,
    price_of,
)
from p2pnode.errors import LocalError

NAMES = {"peer a": "A", "peer b": "B", "peer c": "C"}


def item(session: str = "01", peer: str = "peer a", tokens_in: int = 44, tokens_out: int = 30) -> Item:
    price = price_of(tokens_in, tokens_out)
    return Item(session=session, peer=peer, tokens_in=tokens_in, reused=0, tokens_out=tokens_out, cost=price)


KILLED, OTHER = item(), item("02", "peer b", tokens_in=44 + 30, tokens_out=98)


def done(*items: Item, **changes: int) -> dict[str, Any]:
    fields = ("session", "peer", "tokens_in", "reused", "tokens_out", "cost")
    bill = [{name: getattr(each, name) for name in fields} | {"reason": "stop"} for each in items]
    sums = {name: sum(getattr(each, name) for each in items) for name in fields[2:]}
    return {**sums, "bill": bill, **changes}


def test_a_bill_is_read_whose_items_add_up() -> None:
    assert items_of(done(KILLED, OTHER)) == [KILLED, OTHER]


@pytest.mark.parametrize("name", ["tokens_in", "tokens_out", "cost"])
def test_a_bill_that_does_not_add_up_is_told(name: str) -> None:
    wrong = done(KILLED, OTHER)
    with pytest.raises(LocalError, match=f"{name} together"):
        items_of({**wrong, name: wrong[name] + 1})


def test_an_item_that_is_not_what_its_tokens_cost_is_told() -> None:
    with pytest.raises(LocalError, match="its tokens cost 10104"):
        items_of(done(replace(KILLED, cost=KILLED.cost + 1)))


def test_what_was_reused_is_not_paid_for() -> None:
    reusing = replace(KILLED, reused=40, cost=price_of(4, 30))
    assert items_of(done(reusing)) == [reusing]


def test_a_host_that_went_on_read_the_prompt_and_what_was_held_again() -> None:
    assert check_failover([KILLED, OTHER], killed="peer a", held=30) == (KILLED, OTHER)


@pytest.mark.parametrize(
    ("items", "held", "why"),
    [
        ([KILLED], 30, "has 1 items"),
        ([KILLED, OTHER, item("03", "peer c")], 30, "has 3 items"),
        ([OTHER, KILLED], 30, "not one of the killed host"),
        ([KILLED, replace(OTHER, peer="peer a")], 30, "not one of the killed host"),
        ([KILLED, OTHER], 29, "29 tokens were held"),
        ([KILLED, replace(OTHER, tokens_in=44)], 30, "the second host read 44 tokens"),
    ],
)
def test_any_other_failover_is_told(items: list[Item], held: int, why: str) -> None:
    with pytest.raises(LocalError, match=why):
        check_failover(items, killed="peer a", held=held)


def test_a_session_may_serve_many_answers_for_one_fee() -> None:
    again = replace(KILLED, tokens_in=10, reused=8, tokens_out=5, cost=12)
    first, second = by_session([KILLED, OTHER, again]).values()
    assert (first.session, first.peer, first.answers) == ("01", "peer a", 2)
    assert first.price == KILLED.cost + 12 == price_of(44 + 2, 30 + 5)
    assert second.price == OTHER.cost
    assert (KILLED.fee, again.fee) == (SESSION_FEE, 0)


def test_a_fee_that_is_billed_twice_or_never_is_told() -> None:
    with pytest.raises(LocalError, match="was billed 2 times for 2 answers"):
        by_session([KILLED, replace(KILLED)])
    with pytest.raises(LocalError, match="was billed 0 times for 1 answers"):
        by_session([replace(KILLED, cost=KILLED.cost - SESSION_FEE)])


@given(
    st.lists(
        st.builds(
            item,
            peer=st.sampled_from(sorted(NAMES)),
            tokens_in=st.integers(0, 5000),
            tokens_out=st.integers(0, 5000),
        )
    )
)
def test_what_the_client_pays_is_what_the_others_get(items: list[Item]) -> None:
    items = [replace(each, session=str(number)) for number, each in enumerate(items)]
    due = dues(by_session(items).values(), NAMES)
    assert sum(due.values()) == 0
    assert due["client"] == -sum(each.cost for each in items)
    for_tokens = sum(each.cost - SESSION_FEE for each in items)
    assert for_tokens - 9 * len(items) <= 10 * due["treasury"] <= for_tokens
