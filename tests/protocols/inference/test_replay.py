"""Queues, credits and the replay buffer: what a host may send, and what it may have to send again."""

from __future__ import annotations

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import (
    READ_CREDIT,
    WINDOW,
    Done,
    Error,
    Pong,
    TokenLogprob,
    Tokens,
)
from p2pnode.protocols.inference.replay import PayCredit, Piece, ReadCredit, ReplayBuffer, SendQueue


def test_text_goes_with_the_last_of_the_ids_it_completes() -> None:
    queue = SendQueue()
    told = tuple(TokenLogprob(logprob=-float(n)) for n in range(3))
    queue.add(Piece(ids=(1, 2, 3), text="abc", channel="reasoning", start="credit", logprobs=told))
    assert queue.needs_credit
    first = Tokens(turn=4, index=0, ids=(1, 2), text="", start="credit", logprobs=told[:2])
    assert queue.take(4, 0, 2) == first
    last = Tokens(turn=4, index=2, ids=(3,), text="abc", channel="reasoning", logprobs=told[2:])
    assert queue.take(4, 2, 2) == last
    assert not queue
    assert queue.waiting == 0


def test_what_says_nothing_is_not_queued_and_a_name_alone_is() -> None:
    queue = SendQueue()
    queue.add(Piece())
    assert not queue
    queue.add(Piece(channel="call", call=1, name="weather"))
    assert not queue.needs_credit
    assert queue.take(1, 5, 1) == Tokens(turn=1, index=5, ids=(), channel="call", call=1, name="weather")


def test_pay_credit_is_a_window_past_what_was_acknowledged() -> None:
    credit = PayCredit(10, window=100)
    assert credit.left == 100
    credit.spend(60)
    assert credit.left == 40
    assert credit.acknowledge(13)
    assert not credit.acknowledge(13)
    assert credit.left == 43
    assert PayCredit().left == WINDOW


def test_what_was_never_sent_can_not_be_acknowledged() -> None:
    with pytest.raises(ProtocolError, match="acknowledged 1 tokens of 0 sent"):
        PayCredit().acknowledge(1)


def test_read_credit_begins_with_256_and_never_reaches_more_than_256_past_what_was_sent() -> None:
    credit = ReadCredit()
    credit.spend(READ_CREDIT)
    assert credit.left == 0
    credit.grant(READ_CREDIT)
    assert credit.left == 0
    credit.grant(2 * READ_CREDIT)
    assert credit.left == READ_CREDIT
    credit.grant(READ_CREDIT)  # an older one takes nothing back
    assert credit.left == READ_CREDIT
    with pytest.raises(ProtocolError, match="read credit up to 513"):
        credit.grant(2 * READ_CREDIT + 1)


def test_the_replay_buffer_forgets_from_the_front_only() -> None:
    buffer = ReplayBuffer()
    said = [Tokens(turn=1, index=n, ids=(n,), text="") for n in range(5)]
    for message in (said[0], Pong(nonce=1), Error(code="internal"), *said[1:]):
        buffer.add(message)
    assert buffer.count == 5
    buffer.forget(3)
    assert buffer.since(2) is None
    assert buffer.since(3) == (said[3], said[4])
    assert buffer.since(5) == ()
    assert buffer.since(6) is None
    buffer.forget(2)
    assert buffer.count == 5


def test_the_replay_buffer_forgets_answers_that_a_new_turn_proves() -> None:
    buffer = ReplayBuffer(count=7, answers=2)
    for turn in (4, 3, 5):
        buffer.add(Tokens(turn=turn, index=0, ids=(1,)))
        buffer.add(Done(turn=turn, reason="stop", tokens_in=0, reused=0, tokens_out=1))
    assert buffer.answered_since(7) == {3, 4, 5}
    assert buffer.answered_since(9) == {3, 5}
    buffer.forget_answers(2)
    assert len(buffer) == 6
    buffer.forget_answers(3)  # the first one that came
    assert len(buffer) == 4
    assert buffer.answered_since(7) == {3, 5}
    buffer.forget(11)
    buffer.forget_answers(4)
    assert len(buffer) == 2
