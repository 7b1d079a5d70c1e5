"""What follows when an attempt at an answer is over, and what is asked for then."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.client.failover import (
    AGAIN_MAX,
    Attempt,
    Failover,
    Held,
    PartialAnswer,
    SessionState,
    Situation,
    after_failure,
    after_turn,
    least_pace,
)
from p2pnode.client.ranking import Candidate, Ranking
from p2pnode.errors import (
    WIRE_CODES,
    ChainError,
    DisagreementError,
    HostFault,
    NoHostError,
    P2PNodeError,
    RefusedError,
    UnreachableError,
)
from p2pnode.ids import PeerId, SessionId
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.commands import Quoted, TurnDone
from p2pnode.protocols.inference.messages import (
    PREFIX_MAX,
    ChatMessage,
    Done,
    PromptBody,
    Quote,
    SamplingParams,
)
from tests.client.support import advert, peer

BODY = PromptBody(
    messages=(ChatMessage.of("user", "hi"),), sampling=SamplingParams(tokens_max=10), seed=bytes(16)
)
PACES = {"floor": 0.2, "ceiling": 2.0}
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
    disputes=st.integers(0, 3),
    dropped=st.booleans(),
    again=st.integers(0, 3),
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
    for situation in (replace(MIDWAY, lost=False), FRESH):
        assert after_failure(error, situation) == ("again" if code == "in_use" else "next")
        assert after_failure(error, replace(situation, asked_again=True)) == "next"


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


def test_a_reused_session_that_died_of_age_is_opened_anew_once() -> None:
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
        assert where.again < AGAIN_MAX
        assert where.disputes < 2
    if move == "finish":
        assert where.cancelled or (where.held and not where.room)


# ---- a host that is slow


@pytest.mark.parametrize(
    ("usual", "least"),
    [
        ((), 0.2),
        ((0.5,), 0.2),
        ((10.0,), 1.0),
        ((3.0, 8.0, 300.0), 0.8),  # the median: one fast host changes nothing
        ((300.0, 400.0), 2.0),
    ],
)
def test_the_least_pace_follows_from_what_hosts_gave(usual: tuple[float, ...], least: float) -> None:
    assert least_pace(usual, **PACES) == pytest.approx(least)


# ---- the answer so far


def test_the_first_host_is_asked_what_was_asked() -> None:
    assert PartialAnswer(BODY).next_prompt() == BODY


def test_the_next_is_asked_for_the_rest_from_exactly_what_is_held() -> None:
    partial = PartialAnswer(BODY)
    partial.take((1, 2, 3), Said("content", "abc"))
    rest = partial.next_prompt()
    assert (rest.prefix, rest.text_bytes, rest.sampling.tokens_max) == ((1, 2, 3), 3, 7)
    assert (rest.messages, rest.seed) == (BODY.messages, BODY.seed)
    partial.take((4, 5), Said("content", ""))
    assert partial.next_prompt().text_bytes == 3
    partial.take((), Said("content", "dé"))
    assert partial.next_prompt().text_bytes == 6
    partial.take((), Said("content", ""))
    assert partial.text == "abcdé"


def test_all_that_an_answer_says_is_counted_and_goes_on_in_its_channel() -> None:
    partial = PartialAnswer(BODY)
    partial.take((1,), Said("reasoning", "hm"))
    partial.take((2,), Said("content", "é"))
    partial.take((3, 4), Said("call", "", 0, "weather"))
    partial.take((5,), Said("call", '{"city"'))
    assert partial.next_prompt().text_bytes == 2 + 2 + 7 + 7
    rest = PartialAnswer.of(BODY, partial.held)
    rest.take((), Said("call", ": 1}"))
    rest.take((6,), Said("call", "{}", 1, "add"))
    assert (rest.text, rest.reasoning) == ("é", "hm")
    assert rest.calls == [("weather", '{"city": 1}'), ("add", "{}")]
    for wrong in (
        Said("call", "x", 0),
        Said("call", "x", 2),
        Said("call", "", 3, "add"),
        Said("call", "", 1, "add"),
    ):
        with pytest.raises(HostFault, match="call"):
            rest.take((), wrong)


def test_no_host_is_blamed_for_a_call_that_does_not_follow_what_another_one_said() -> None:
    partial = PartialAnswer(BODY)
    partial.take((1,), Said("call", "{", 0, "made_up"))
    for earlier in (partial, PartialAnswer.of(BODY, partial.held)):
        earlier.left_by_host()
        with pytest.raises(DisagreementError, match="begun by other hosts"):
            earlier.take((2,), Said("call", "", 0, "real"))
    earlier.take((3,), Said("call", "}"))  # it goes on from that after all
    with pytest.raises(HostFault):
        earlier.take((4,), Said("call", "", 0, "real"))


# ---- vectors

TWO = PromptBody(embed=("a", "b"), seed=bytes(16))
ONE, SIXTY_FOUR = b"n" * 4, b"n" * 256


def test_a_vector_counts_once_a_receipt_covers_it_and_the_others_are_asked_for_again() -> None:
    partial = PartialAnswer(TWO)
    partial.take_vector(SIXTY_FOUR)
    assert (partial.size, partial.room) == (0, 2)
    partial.left_by_host()
    partial.receipt()
    assert partial.next_prompt().embed == ("a", "b")
    partial.take_vector(SIXTY_FOUR)
    partial.receipt()
    assert partial.next_prompt().embed == ("b",)
    partial.take_vector(SIXTY_FOUR)
    partial.receipt()
    assert (partial.vectors, partial.room) == ({0: SIXTY_FOUR, 1: SIXTY_FOUR}, 0)


def test_where_two_hosts_sign_for_vectors_of_two_sizes_the_older_ones_are_asked_for_again() -> None:
    partial = PartialAnswer(TWO)
    partial.take_vector(ONE)
    partial.receipt()
    partial.left_by_host()
    partial.take_vector(SIXTY_FOUR)
    assert partial.vectors == {0: ONE}, "a vector without a receipt drops none"
    partial.receipt()
    assert partial.vectors == {1: SIXTY_FOUR}
    assert partial.next_prompt().embed == ("a",)


def test_texts_to_embed_need_no_context_for_all_of_them_together() -> None:
    failover = Failover(PartialAnswer(TWO), attempts_max=9)
    start(failover).quoted(Quoted(Quote(turn=1, prompt_hash=bytes(32), tokens_in=8_000)))
    ended = failover.failed(LOST, STATE).ended
    assert ended is not None
    assert ended.context_needed is None


def test_a_vector_that_can_not_be_of_the_model_of_earlier_ones_counts_against_nobody_and_two_end_it() -> None:
    failover = Failover(PartialAnswer(TWO, vector_size=256), attempts_max=9)
    decisions = []
    for host in (PEER, OTHER):
        start(failover, host).embedded(1.0)
        with pytest.raises(DisagreementError, match="of 1 numbers after other hosts' vectors of 64") as said:
            failover.partial.take_vector(ONE)
        decisions.append(failover.failed(said.value, STATE))
    assert [(each.move, each.blames) for each in decisions] == [("next", False), ("stop", False)]
    assert {item.reason for item in failover.bill.items} == {"disagrees"}
    assert "may have been made up" in str(decisions[-1].error)


def test_a_faulty_host_costs_what_nobody_saw_and_no_receipt_covers() -> None:
    partial = PartialAnswer(BODY)
    partial.take((1, 2), Said("content", "ab"))
    partial.receipt()
    partial.take((3,), Said("content", "c"))
    partial.take((4, 5), Said("content", ""))
    assert partial.drop_unproven() == 2
    assert (partial.ids, partial.text) == ([1, 2, 3], "abc")
    partial.take((4,), Said("content", ""))
    partial.receipt()
    assert partial.drop_unproven() == 0  # its receipt stands for it, and the next host tells its text
    assert (partial.next_prompt().prefix, partial.next_prompt().text_bytes) == ((1, 2, 3, 4), 3)


def test_what_no_prompt_can_hold_can_not_go_on() -> None:
    long = PromptBody(
        messages=BODY.messages, sampling=SamplingParams(tokens_max=PREFIX_MAX + 10), seed=bytes(16)
    )
    partial = PartialAnswer(long)
    partial.take(tuple(range(PREFIX_MAX)), Said("content", "x"))
    assert partial.continuable
    partial.take((1,), Said("content", "y"))
    assert not partial.continuable


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=3), st.text("ab", max_size=2)), max_size=8))
def test_text_known_and_receipted_never_exceed_what_is_held(pieces: list[tuple[list[int], str]]) -> None:
    partial = PartialAnswer(BODY)
    for number, (ids, text) in enumerate(pieces):
        partial.take(ids, Said("content", text))
        if number % 3 == 2:
            partial.receipt()
        if number % 4 == 3:
            partial.drop_unproven()
        assert max(partial.text_known, partial.receipted) <= len(partial.ids)
        assert partial.room == max(0, 10 - len(partial.ids))
    assert partial.text == "".join(text for _, text in pieces)


# ---- the policy of one answer


PEER, OTHER = peer(1), peer(2)
STATE = SessionState(cost=30, n_ctx=100)
LOST = UnreachableError("the connection to the host was lost")


def policy(attempts_max: int = 4) -> Failover:
    return Failover(PartialAnswer(BODY), attempts_max=attempts_max)


def start(failover: Failover, host: PeerId = PEER, *, paid: bool = False, reused: bool = False) -> Attempt:
    failover.begin()
    attempt = Attempt(
        peer=host, session=SessionId(host.encode()[:32].ljust(32)), paid=paid, reused=reused,
        prefix=len(failover.partial.ids), started_at=0.0,
    )  # fmt: skip
    failover.opened(attempt)
    return attempt


def bring(failover: Failover, count: int, now: float = 1.0) -> None:
    assert failover.attempt is not None
    failover.attempt.delivered(count, now)
    failover.partial.take(range(count), Said("content", "x" * count))


def done(reason: str, tokens_in: int = 5, tokens_out: int = 0) -> TurnDone:
    return TurnDone(
        Done(turn=1, reason=reason, tokens_in=tokens_in, reused=0, tokens_out=tokens_out)  # type: ignore[arg-type]
    )


def test_an_answer_of_one_host_is_finished_with_one_item() -> None:
    failover = policy()
    attempt = start(failover, reused=True)
    attempt.quoted(Quoted(Quote(turn=1, prompt_hash=bytes(32), tokens_in=5)))
    bring(failover, 3)
    decision = failover.turn_ended(done("stop", tokens_out=3), STATE)
    assert (decision.move, decision.finish) == ("finish", "stop")
    (item,) = failover.bill.items
    assert (item.tokens_in, item.tokens_out, item.cost, item.reason) == (5, 3, 30, "stop")
    assert (failover.context_used, failover.n_ctx) == (8, 100)
    assert decision.ended is not None
    assert decision.ended.context_needed == 9
    assert failover.attempt is None


def test_the_next_host_is_asked_for_the_rest_and_each_host_has_its_item() -> None:
    failover = policy()
    start(failover)
    bring(failover, 4)
    decision = failover.failed(RefusedError("internal", "x"), STATE)
    assert (decision.move, decision.blames) == ("next", True)
    assert failover.wants_next_host
    assert failover.partial.next_prompt().prefix == (0, 1, 2, 3)
    second = start(failover, OTHER)
    assert second.prefix == 4
    bring(failover, 6)
    assert failover.turn_ended(done("length", tokens_out=6), STATE).move == "finish"
    assert [(i.peer, i.tokens_out, i.reason) for i in failover.bill.items] == [
        (PEER, 4, "internal"),
        (OTHER, 6, "length"),
    ]


def test_a_free_host_is_asked_again_once_for_each_time_that_something_came() -> None:
    failover = policy(attempts_max=9)
    lost = replace(STATE, lost=True)
    for _ in range(2):
        start(failover)
        bring(failover, 1)
        assert failover.failed(LOST, lost).move == "again"
        assert not failover.wants_next_host
    start(failover)
    assert failover.failed(LOST, lost).move == "next"  # nothing came: it may be gone


def test_a_free_host_that_hangs_up_after_each_token_is_asked_again_twice() -> None:
    failover, lost = policy(attempts_max=9), replace(STATE, lost=True)
    for move in (*["again"] * AGAIN_MAX, "next"):
        start(failover)
        bring(failover, 1)
        assert failover.failed(LOST, lost).move == move
    start(failover, OTHER)
    bring(failover, 1)
    assert failover.failed(LOST, lost).move == "again", "another host has its own count"


def test_a_reader_who_pauses_often_keeps_the_host() -> None:
    failover = policy(attempts_max=4)
    for _ in range(6):
        start(failover)
        bring(failover, 1)
        failover.spare_attempt()
        assert failover.turn_ended(done("cancelled"), STATE, early="cancelled").move == "again"


def test_a_vector_without_a_receipt_is_no_reason_to_ask_a_host_again_and_again() -> None:
    failover, lost = Failover(PartialAnswer(TWO), attempts_max=9), replace(STATE, lost=True)
    for move in ("again", "next"):
        start(failover).embedded(1.0)
        failover.partial.take_vector(SIXTY_FOUR)
        assert failover.failed(LOST, lost).move == move


WRONG = RefusedError("bad_request", "the text is none of the grammar")


def test_where_a_host_calls_wrong_what_nobody_saw_it_is_dropped_and_that_host_is_asked_again() -> None:
    for receipted in (False, True):
        failover = policy()
        start(failover)
        bring(failover, 2)
        failover.partial.take((4_000_000_000,), Said("content", ""))
        if receipted:
            failover.partial.receipt()  # it proves who sent it, not that a model made it
        failover.failed(RefusedError("internal", "x"), STATE)
        start(failover, OTHER)
        decision = failover.failed(WRONG, STATE)
        assert (decision.move, decision.blames) == ("again", False)
        assert failover.partial.next_prompt().prefix == (0, 1)
        start(failover, OTHER)
        bring(failover, 8)
        assert failover.turn_ended(done("length", tokens_out=8), STATE).move == "finish"


def test_two_hosts_that_can_not_go_on_from_what_was_seen_end_the_answer_and_are_not_blamed() -> None:
    failover = policy()
    start(failover)
    bring(failover, 2)
    failover.failed(RefusedError("internal", "x"), STATE)
    decisions = []
    for host in (OTHER, peer(3)):
        start(failover, host)
        decisions.append(failover.failed(WRONG, STATE))
    assert [(each.move, each.blames) for each in decisions] == [("next", False), ("stop", False)]
    assert failover.is_disputed
    error = decisions[-1].error
    assert isinstance(error, NoHostError)
    assert "ask anew" in str(error)
    assert error.__cause__ is WRONG


def test_a_host_that_calls_wrong_what_it_sent_itself_is_blamed_and_no_witness_against_others() -> None:
    failover, lost = policy(attempts_max=9), replace(STATE, lost=True)
    start(failover)
    bring(failover, 2)
    assert failover.failed(LOST, lost).move == "again"
    start(failover)
    decision = failover.failed(WRONG, STATE)
    assert (decision.move, decision.blames) == ("next", True)
    start(failover, OTHER)
    assert failover.failed(WRONG, STATE).move == "next", "the first that speaks of what another one sent"
    assert not failover.is_disputed


def test_a_host_that_calls_a_prompt_wrong_after_it_was_paid_for_it_is_blamed() -> None:
    failover = policy()
    start(failover)
    bring(failover, 2)
    failover.failed(RefusedError("internal", "x"), STATE)
    attempt = start(failover, OTHER, paid=True)
    attempt.quoted(Quoted(Quote(turn=1, prompt_hash=bytes(32), tokens_in=5)))
    decision = failover.failed(WRONG, STATE)
    assert (decision.blames, decision.took_for_nothing) == (True, True)


def test_what_an_answer_of_before_holds_may_be_of_anybody() -> None:
    partial = PartialAnswer.of(BODY, Held((1, 2), "ab", 2))
    failover = Failover(partial, attempts_max=4)
    start(failover)
    assert not failover.failed(WRONG, STATE).blames


def test_a_question_that_two_hosts_call_wrong_from_its_beginning_is_wrong() -> None:
    failover = policy()
    decisions = []
    for host in (PEER, OTHER):
        start(failover, host)
        decisions.append(failover.failed(WRONG, STATE))
    assert [(each.move, each.blames) for each in decisions] == [("next", True), ("stop", True)]
    assert decisions[-1].error is WRONG


def test_a_host_that_breaks_the_protocol_is_billed_no_less_for_what_others_left() -> None:
    failover = policy()
    start(failover)
    bring(failover, 2)
    failover.partial.take((3, 4), Said("content", ""))
    failover.failed(RefusedError("internal", "x"), STATE)
    start(failover, OTHER)
    failover.failed(HostFault("it lied"), STATE)
    assert [item.tokens_out for item in failover.bill.items] == [2, 0]


@pytest.mark.parametrize(
    ("tokens_in", "came", "took"), [(5, 0, True), (5, 31, True), (5, 32, False), (0, 0, False)]
)
def test_a_failure_says_whether_the_host_took_the_input_for_nothing(
    tokens_in: int, came: int, took: bool
) -> None:
    failover = policy()
    attempt = start(failover, paid=True)
    attempt.quoted(Quoted(Quote(turn=1, prompt_hash=bytes(32), tokens_in=tokens_in)))
    bring(failover, came)
    assert failover.failed(LOST, STATE).took_for_nothing is took


@pytest.mark.parametrize(("receipted", "took"), [(0, True), (1, True), (2, False)])
def test_a_host_that_gave_less_than_half_of_the_vectors_took_their_price_for_nothing(
    receipted: int, took: bool
) -> None:
    failover = Failover(PartialAnswer(replace(TWO, embed=("a", "b", "c", "d"))), attempts_max=4)
    attempt = start(failover, paid=True)
    attempt.quoted(Quoted(Quote(turn=1, prompt_hash=bytes(32), tokens_in=5)))
    for _ in range(receipted):
        attempt.embedded(1.0)
        failover.partial.take_vector(SIXTY_FOUR)
    attempt.receipted()
    failover.partial.receipt()
    assert failover.failed(RefusedError("internal", "x"), STATE).took_for_nothing is took


def test_a_host_that_contradicts_what_it_sent_itself_is_blamed() -> None:
    failover = policy()
    start(failover)
    bring(failover, 2)
    failover.failed(LOST, replace(STATE, lost=True))
    start(failover)
    decision = failover.failed(DisagreementError("another call"), STATE)
    assert (decision.move, decision.blames) == ("next", True)


def test_an_empty_rest_of_an_answer_was_paid_for_nothing() -> None:
    failover = policy()
    start(failover)
    bring(failover, 2)
    failover.failed(RefusedError("internal", "x"), STATE)
    start(failover, OTHER, paid=True)
    decision = failover.turn_ended(done("stop"), STATE)
    assert (decision.move, decision.blames, decision.took_for_nothing) == ("finish", True, True)


def test_a_slow_host_is_left_although_it_ended_its_turn_in_order() -> None:
    failover = policy()
    start(failover)
    bring(failover, 2)
    assert failover.turn_ended(done("cancelled"), STATE, early="slow").move == "again"
    failover.leave_host()
    assert failover.wants_next_host
    assert failover.bill.items[0].reason == "slow"


def candidate(price_out: int = 0) -> Candidate:
    other = advert(2, price_out=price_out)
    return Candidate(advert=other, offer=other.offers[0], score=1.0)


def test_a_slow_host_is_left_only_for_one_that_is_surely_better_and_costs_no_more() -> None:
    failover = policy(attempts_max=2)
    start(failover)
    assert failover.leaves_for(0.1, candidate(), None)
    assert failover.leaves_for(0.1, candidate(), 0.3)
    assert not failover.leaves_for(0.1, candidate(), 0.2)
    assert not failover.leaves_for(0.1, None, None)
    assert not failover.leaves_for(0.1, candidate(price_out=5), None), "it may be slow because it is free"
    start(failover, paid=True)
    assert not failover.leaves_for(0.1, candidate(), None), "no attempt is left"
    failover.spare_attempt()
    assert failover.leaves_for(0.1, candidate(price_out=5), None)


def test_a_faulty_host_is_not_billed_for_what_was_dropped() -> None:
    failover = policy()
    start(failover)
    bring(failover, 2)
    assert failover.attempt is not None
    failover.attempt.delivered(3, 2.0)
    failover.partial.take((7, 8, 9), Said("content", ""))
    decision = failover.failed(HostFault("it lied"), STATE)
    assert (decision.move, decision.blames) == ("next", True)
    assert failover.partial.ids == [0, 1]
    assert (failover.bill.items[0].tokens_out, failover.bill.items[0].reason) == (2, "fault")


def test_an_honest_refusal_counts_against_a_host_only_where_it_took_money_for_the_input() -> None:
    busy = RefusedError("capacity", "x")
    free = policy()
    start(free)
    assert not free.failed(busy, STATE).blames
    for tokens_in, covers_more, blames in [(5, True, True), (5, False, False), (0, True, False)]:
        paid = policy()
        attempt = start(paid, paid=True)
        attempt.quoted(Quoted(Quote(turn=1, prompt_hash=bytes(32), tokens_in=tokens_in)))
        assert paid.failed(busy, replace(STATE, covers_more=covers_more)).blames == blames


def test_where_no_attempt_is_left_the_user_is_told_that_the_answer_ends_here() -> None:
    failover = policy(attempts_max=1)
    start(failover)
    bring(failover, 2)
    decision = failover.failed(LOST, STATE)
    assert decision.move == "stop"
    assert isinstance(decision.error, NoHostError)
    assert decision.error.__cause__ is LOST


def test_a_turn_that_was_lost_where_nobody_can_go_on_is_a_failure() -> None:
    failover = policy(attempts_max=1)
    start(failover)
    bring(failover, 2)
    with pytest.raises(UnreachableError) as lost:
        failover.turn_ended(done("cancelled"), STATE)
    assert failover.attempt is not None, "it is ended by the failure that its caller reports"
    assert failover.failed(lost.value, STATE).move == "stop"


def test_without_a_host_the_last_failure_is_told_or_why_none_was_found() -> None:
    failover = policy()
    assert "nobody answered" in str(failover.no_host(Ranking(), {}))
    assert "connection refused" in str(failover.no_host(Ranking(), {OTHER: "connection refused"}))
    told = str(failover.no_host(Ranking(), {}, see="hosts --why --needs tools", alone=True))
    assert "this node knows no other" in told
    assert "`p2pnode hosts --why --needs tools`" in told
    failover.begin()
    assert failover.failed(LOST, None).move == "next"
    assert failover.no_host(Ranking(), {}) is LOST
    start(failover)
    bring(failover, 1)
    failover.failed(LOST, STATE)
    assert "no host is left to go on" in str(failover.no_host(Ranking(), {}))


def test_an_answer_that_the_user_left_is_not_asked_on_and_is_billed() -> None:
    failover = policy()
    start(failover)
    bring(failover, 2)
    failover.cancelled = True
    assert failover.turn_ended(done("cancelled", tokens_out=2), STATE).move == "finish"
    failover = policy()
    start(failover)
    bring(failover, 2)
    failover.cancelled = True
    assert failover.abandon(STATE).item.reason == "cancelled"
    assert failover.bill.items[0].tokens_out == 2


def test_the_pace_is_that_of_a_window_and_unknown_before_one_has_passed() -> None:
    failover = policy()
    attempt = start(failover)
    assert attempt.pace(30.0, 10.0) is None
    attempt.delivered(5, 1.0)
    assert attempt.pace(10.9, 10.0) is None
    assert attempt.pace(11.0, 10.0) == 0.0  # what came a window ago is not in it
    attempt.delivered(5, 12.0)
    assert attempt.pace(13.0, 10.0) == 0.5
    assert (attempt.ttft_s(50.0), attempt.speed(13.0)) == (1.0, 0.75)
