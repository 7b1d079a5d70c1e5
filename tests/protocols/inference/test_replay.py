"""The send queue and the replay buffer: what a host has yet to send, and may have to send again."""

from __future__ import annotations

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import (
    WINDOW,
    Error,
    Pong,
    Tokens,
)
from p2pnode.protocols.inference.replay import ReplayBuffer, SendQueue


def test_text_goes_with_the_last_of_the_ids_it_completes() -> None:
    queue = SendQueue()
    queue.add((1, 2, 3), "abc")
    assert queue.take(2) == Tokens(seq=0, ids=(1, 2), text="")
    assert queue.take(2) == Tokens(seq=2, ids=(3,), text="abc")
    assert queue.take(2) is None
    assert not queue


def test_no_more_leaves_the_queue_than_credit_covers() -> None:
    queue = SendQueue()
    queue.add(tuple(range(WINDOW + 5)), "x")
    first = queue.take(1000)
    assert first is not None
    assert len(first.ids) == WINDOW
    assert queue.take(1000) is None
    assert queue.waiting == 5
    assert queue.acknowledge(3)
    assert not queue.acknowledge(3)
    assert queue.take(1000) == Tokens(seq=WINDOW, ids=(64, 65, 66), text="")


def test_what_was_never_sent_can_not_be_acknowledged() -> None:
    queue = SendQueue()
    with pytest.raises(ProtocolError, match="acknowledged 1 tokens of 0 sent"):
        queue.acknowledge(1)


def test_only_ids_without_text_at_the_end_are_dropped() -> None:
    queue = SendQueue()
    for ids, text in (((1,), ""), ((2,), "b"), ((3, 4), ""), ((5,), "")):
        queue.add(ids, text)
    assert queue.drop_text_pending() == 3
    assert queue.waiting == 2
    assert queue.drop_text_pending() == 0


def test_the_replay_buffer_forgets_from_the_front_only() -> None:
    buffer = ReplayBuffer()
    said = [Tokens(seq=n, ids=(n,), text="") for n in range(5)]
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
