"""The decision after an attempt at an answer is over, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.client.failover import Situation, after_failure, after_turn
from p2pnode.errors import WIRE_CODES, ChainError, HostFault, P2PNodeError, RefusedError, UnreachableError

MIDWAY = Situation(held=10, room=30, attempts_left=5, progressed=True, lost=True)
FRESH = Situation(room=40, attempts_left=5, fruitless=1)
SITUATIONS = st.builds(
    Situation,
    held=st.integers(0, 3),
    continuable=st.booleans(),
    room=st.integers(0, 3),
    attempts_left=st.integers(0, 2),
    cancelled=st.booleans(),
    refusals=st.integers(0, 3),
    progressed=st.booleans(),
    fruitless=st.integers(0, 3),
    reused=st.booleans(),
    lost=st.booleans(),
    paid=st.booleans(),
)
ERRORS = st.one_of(
    st.sampled_from(sorted(WIRE_CODES)).map(lambda code: RefusedError(code, "x")),  # type: ignore[arg-type]
    st.sampled_from([UnreachableError("x"), HostFault("x"), ChainError("x")]),
)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_the_host_ended_is_whole(reason: str) -> None:
    assert after_turn(reason, MIDWAY) == "finish"  # type: ignore[arg-type]


def test_a_turn_that_was_cancelled_unasked_goes_on_with_the_same_host_once() -> None:
    assert after_turn("cancelled", MIDWAY) == "again"
    assert after_turn("cancelled", FRESH) == "again"
    assert after_turn("cancelled", replace(FRESH, fruitless=2)) == "next"
    assert after_turn("cancelled", replace(MIDWAY, cancelled=True)) == "finish"
    assert after_turn("cancelled", replace(MIDWAY, room=0)) == "finish"
    assert after_turn("cancelled", replace(MIDWAY, attempts_left=0)) == "stop"
    assert after_turn("cancelled", replace(MIDWAY, continuable=False)) == "stop"


@pytest.mark.parametrize("code", sorted(WIRE_CODES - {"bad_request"}))
def test_whatever_a_host_says_the_next_one_is_asked(code: str) -> None:
    error = RefusedError(code, "x")  # type: ignore[arg-type]
    assert after_failure(error, replace(MIDWAY, lost=False)) == "next"
    assert after_failure(error, FRESH) == "next"


def test_what_any_host_would_say_and_what_is_our_own_fault_stops() -> None:
    refused = RefusedError("bad_request", "x")
    assert after_failure(refused, replace(MIDWAY, refusals=2)) == "stop"
    assert after_failure(refused, replace(FRESH, refusals=1)) == "next", "one host alone may lie"
    assert after_failure(ChainError("the cap is reached"), MIDWAY) == "stop"
    assert after_failure(ChainError("the cap is reached"), FRESH) == "stop"


def test_a_free_host_whose_connection_broke_is_asked_again_and_a_paid_one_was_already() -> None:
    lost = UnreachableError("the connection to the host was lost")
    assert after_failure(lost, MIDWAY) == "again"
    assert after_failure(lost, replace(MIDWAY, paid=True)) == "next"
    assert after_failure(lost, replace(MIDWAY, lost=False)) == "next"  # it went silent
    assert after_failure(lost, replace(MIDWAY, progressed=False, fruitless=1)) == "next"


def test_a_host_that_restarted_in_a_session_is_asked_again_and_one_whose_engine_failed_is_not() -> None:
    failed = UnreachableError("the host restarted in the middle of this turn")
    here = replace(MIDWAY, lost=False, restarted=True, paid=True)
    assert after_failure(failed, here) == "again"
    assert after_failure(failed, replace(here, fruitless=2)) == "next"
    assert after_failure(RefusedError("internal", "boom"), replace(here, restarted=False)) == "next"
    assert after_failure(RefusedError("capacity", "x"), replace(here, restarted=False)) == "next"


def test_a_kept_session_that_died_of_age_is_opened_anew_once() -> None:
    lost = UnreachableError("the session was idle for too long")
    kept = replace(FRESH, reused=True)
    assert after_failure(lost, kept) == "again"
    assert after_failure(lost, replace(kept, fruitless=2)) == "next"
    assert after_failure(RefusedError("shutting_down", "x"), kept) == "next"  # an honest answer
    assert after_failure(lost, FRESH) == "next"


def test_where_nothing_is_left_to_generate_the_answer_is_whole_whoever_died() -> None:
    assert after_failure(UnreachableError("x"), replace(MIDWAY, room=0, continuable=False)) == "finish"


@pytest.mark.parametrize("limit", [{"attempts_left": 0}, {"continuable": False}])
def test_beyond_its_limits_an_answer_stops(limit: dict[str, int]) -> None:
    assert after_failure(UnreachableError("x"), replace(MIDWAY, **limit)) == "stop"  # type: ignore[arg-type]


@given(ERRORS, SITUATIONS)
def test_nothing_goes_on_for_a_user_who_left_nor_without_end(error: P2PNodeError, where: Situation) -> None:
    move = after_failure(error, where)
    if where.cancelled:
        assert move == "finish"
    elif not where.attempts_left or not where.continuable:
        assert move in ("stop", "finish")
    if move == "again":
        assert where.fruitless <= 1
    if move == "finish":
        assert where.cancelled or (where.held and not where.room)
