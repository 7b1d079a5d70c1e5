"""What a new machine must find: each thing that is missing stops the demo."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.demo.bills import Item
from p2pnode.demo.recovery import check_delivered, check_history, check_recovered
from p2pnode.errors import LocalError

OWED = Item(session="01", peer="a", tokens_in=44, reused=0, tokens_out=30, cost=10_104)
OTHER = Item(session="02", peer="b", tokens_in=74, reused=0, tokens_out=98, cost=10_270)
FOUND: list[dict[str, Any]] = [
    {"event": "recovered"},
    {"event": "conversation", "conversation": "0f"},
    {"event": "session", "session": "02"},
    {"event": "session", "session": "01"},
]
SAID = [("user", "why?"), ("assistant", "because")]
TURNS = [{"role": role, "text": text, "whole": True} for role, text in SAID]


def test_a_conversation_and_all_paid_sessions_are_recovered() -> None:
    check_recovered(FOUND, "0f", [OWED, OTHER])


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([*FOUND, {"event": "loss", "detail": "segment 3"}], "missing: segment 3"),
        ([FOUND[0], *FOUND[2:]], "not among those"),
        (FOUND[:-1], "1 paid sessions were recovered, not the 2"),
        ([*FOUND, {"event": "session", "session": "03"}], "3 paid sessions were recovered"),
    ],
)
def test_what_was_not_recovered_is_told(events: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(LocalError, match=why):
        check_recovered(events, "0f", [OWED, OTHER])


def voucher(session: str, outcome: str) -> dict[str, Any]:
    return {"event": "voucher", "session": session, "outcome": outcome, "detail": "so it says"}


def test_a_final_voucher_may_be_taken_at_the_second_try() -> None:
    check_delivered([voucher("01", "away"), voucher("02", "refused"), voucher("01", "delivered")], OWED)


@pytest.mark.parametrize(
    ("vouchers", "why"),
    [
        ([], "nothing was owed"),
        ([voucher("02", "delivered")], "nothing was owed"),
        ([voucher("01", "refused")], "refused, so it says"),
    ],
)
def test_a_final_voucher_that_was_not_taken_is_told(vouchers: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(LocalError, match=why):
        check_delivered(vouchers, OWED)


def test_the_history_is_all_that_was_said() -> None:
    check_history(TURNS, SAID)


@pytest.mark.parametrize(
    "turns",
    [
        TURNS[:1],
        TURNS[::-1],
        [*TURNS, TURNS[0]],
        [TURNS[0], {**TURNS[1], "text": "becaus"}],
        [TURNS[0], {**TURNS[1], "whole": False}],
    ],
)
def test_another_history_is_told(turns: list[dict[str, Any]]) -> None:
    with pytest.raises(LocalError, match="came to the new machine"):
        check_history(turns, SAID)
