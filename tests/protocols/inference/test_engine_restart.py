"""An engine that dies in a turn: its host calls it again, once an answer, and says so in the receipt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.protocols.events import Received
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.commands import GenFailed, SessionFailed, TurnDone, TurnFailed
from p2pnode.protocols.inference.receipts import Leaf
from tests.protocols.inference.paid_pair import PaidPair
from tests.protocols.inference.pair import HOST, STREAM, Pair, Step, ask, embed, turn_of, vector_of
from tests.protocols.support import emitted, only


def serving(made: int, *, answer_tokens: int = 100) -> Pair:
    """A free turn of which so many ids were made and heard."""
    pair = Pair(answer_tokens=answer_tokens)
    pair.open()
    pair.ask(ask())
    while pair.run is None:
        pair.deliver_to_host()
    pair.engine(0)
    for _ in range(made):
        pair.engine(1)
        hear_all(pair)
    return pair


def hear_all(pair: Pair) -> list[m.Tokens]:
    """Both sides hear all; the tokens that the client heard."""
    heard: list[m.Tokens] = []
    while pair.to_client or pair.to_host:
        heard += [each for each in map(m.CODEC.decode, pair.to_client) if isinstance(each, m.Tokens)]
        while pair.deliver_to_client():
            pass
        pair.deliver_to_host()
    return heard


@pytest.mark.parametrize("made", [0, 1, 5, 31, 32, 33, 64])
def test_the_answer_goes_on_where_it_was_and_its_first_ids_say_why(made: int) -> None:
    pair = serving(made)
    runs = pair.runs
    pair.fail_engine(lost=True)
    assert pair.runs == runs + 1
    run = pair.run
    assert run is not None
    assert (run.order.start, len(run.order.answer_ids)) == ("restart", made)
    pair.engine(0)
    pair.engine(3)
    first, *others = [each for each in hear_all(pair) if each.ids]
    assert (first.index, first.start) == (made, "restart")
    assert not any(each.start for each in others)
    pair.settle()
    assert pair.delivered == pair.expected(512)
    assert isinstance(pair.outcomes[-1], TurnDone)


def test_a_second_death_in_one_answer_fails_its_turn_and_the_session_lives() -> None:
    pair = serving(5)
    pair.fail_engine(lost=True)
    pair.engine(0)
    pair.engine(3)
    pair.fail_engine(lost=True)
    pair.settle()
    failed = pair.outcomes[-1]
    assert isinstance(failed, TurnFailed)
    assert failed.code == "internal"
    pair.ask(ask(20))
    pair.settle()
    assert pair.delivered == pair.expected(20)


def test_another_failure_of_an_engine_is_no_death() -> None:
    pair = serving(5)
    pair.fail_engine()
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnFailed)


def test_the_start_is_in_the_leaf_with_its_cause() -> None:
    def leaf(start: m.StartCause) -> bytes:
        made = Leaf(turn=1, first=0, request=bytes(32), prompt=bytes(32))
        made.add(m.Tokens(turn=1, index=5, ids=(7,), start=start))
        return made.digest()

    assert len({leaf(""), leaf("credit"), leaf("restart")}) == 3


def test_a_host_that_restarts_twice_in_one_answer_is_at_fault() -> None:
    pair = serving(5)
    ids = iter(pair.expected(512)[5:])

    def hear(index: int) -> list[object]:
        frame = m.Tokens(turn=1, index=index, ids=(next(ids),), start="restart")
        return emitted(pair.client.handle(Received(HOST.peer, STREAM, frame), pair.now))

    assert not [each for each in hear(5) if isinstance(each, SessionFailed)]
    failed = only(SessionFailed, hear(6))
    assert failed.fault
    assert "an engine call that may not begin here" in failed.detail


def test_a_pause_for_credit_comes_32_ids_after_a_restart_at_the_earliest() -> None:
    pair = Pair(answer_tokens=600)
    pair.idle.add(1)
    pair.open()
    pair.ask(ask())
    while pair.run is None:
        pair.deliver_to_host()
    pair.engine(0)
    while turn_of(pair.host).queue.waiting < 60:  # the reader holds it back
        pair.engine(1)
        hear_all(pair)
    pair.fail_engine(lost=True)
    run = pair.run
    assert run is not None
    at = len(run.order.answer_ids)
    pair.engine(0)
    while pair.run is not None:
        pair.engine(1)
        hear_all(pair)
    assert run.position - at == 32
    pair.taken_again(1)
    pair.settle()
    assert pair.delivered == pair.expected(512)
    assert isinstance(pair.outcomes[-1], TurnDone)


def test_a_restart_of_which_nothing_came_before_a_pause_is_told_after_it() -> None:
    pair = Pair(answer_tokens=600)
    pair.idle.add(1)
    pair.open()
    pair.ask(ask())
    while pair.run is None:
        pair.deliver_to_host()
    pair.engine(0)
    while pair.run is not None:
        pair.engine(1)
        hear_all(pair)
    pair.taken_again(1)
    while pair.run is None:
        pair.deliver_to_host()
        pair.deliver_to_client()
    pair.fail_engine(lost=True)
    run = pair.run
    assert run is not None
    assert run.order.start == "restart"


def test_a_dead_engine_of_an_embeddings_turn_goes_on_with_the_next_text_once() -> None:
    pair = Pair()
    pair.open()
    pair.ask(embed("a", "b", "c"))
    while not pair.embeds:
        pair.deliver_to_host()
    pair.embed(1)
    (run,) = pair.embeds
    pair.embeds.clear()
    pair.host_does(GenFailed(run, "internal", "boom", 1.0, lost=True))
    (again,) = pair.embeds.values()
    assert (again.first, again.start) == (1, "restart")
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.vectors_of[1] == [vector_of(text) for text in "abc"]


_steps = st.lists(
    st.tuples(
        st.sampled_from(["host", "client", "client", "engine", "engine", "engine", "count", "lost", "late"]),
        st.integers(0, 40),
        st.booleans(),
    ),
    max_size=80,
)


@settings(max_examples=80)
@given(_steps, st.integers(0, 200), st.sampled_from([0, 5, 20]), st.booleans(), st.booleans())
def test_wherever_an_engine_dies_the_text_is_one_and_each_token_comes_and_is_paid_once(
    script: list[Step], answer: int, reused: int, unread: bool, breaks: bool
) -> None:
    pair = PaidPair(answer_tokens=answer, reused=reused)
    if unread:
        pair.idle.add(1)
    pair.open()
    pair.ask(ask())
    pair.play(script)
    if breaks:
        pair.lose()
        pair.play([step for step in script if step[0] in ("engine", "count", "lost")])
        pair.resume()
        pair.play(script)
    pair.taken_again(1)
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone | TurnFailed)
    if isinstance(outcome, TurnDone) and outcome.done.reason != "cancelled":
        assert pair.delivered == pair.expected(512)
    assert pair.delivered == pair.expected(512)[: len(pair.delivered)]
    assert pair.sent_out == len(pair.delivered)
    pair.settled()
    assert pair.paid == [] or pair.paid[-1].amount == pair.cost
    pair.ask(replace(ask(), input_max=4096))
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    pair.settled()
