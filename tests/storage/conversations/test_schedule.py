"""What is sent, fetched and renewed, and in which order."""

from __future__ import annotations

from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.conversations.records import Link
from p2pnode.storage.conversations.schedule import (
    RENEW_S,
    LocalHead,
    floor_of,
    to_fetch,
    to_renew,
    to_send,
    unknown_to,
)
from p2pnode.storage.keys import INDEX_SID

ONE, TWO = b"1" * 16, b"2" * 16


def link(seq: int) -> Link:
    return Link(seq=seq, hash=BlobHash(bytes([seq]) * 32))


def head(sid: bytes, seq: int = 2, acked: int | None = None) -> LocalHead:
    return LocalHead(sid, link(seq), 0, acked=None if acked is None else link(acked))


def test_the_index_goes_before_the_conversations_that_it_names() -> None:
    heads = [head(ONE), head(INDEX_SID), head(TWO)]
    first, then = to_send(heads)
    assert [each.sid for each in first] == [INDEX_SID]
    assert [each.sid for each in then] == [ONE, TWO]


def test_only_what_lags_is_sent_and_what_some_replica_lacks() -> None:
    heads = [head(ONE, acked=2), head(TWO, acked=1)]
    assert to_send(heads) == ([], [heads[1]])
    assert to_send(heads, lacking={ONE}) == ([], heads)


def test_a_revision_is_covered_once_it_or_a_later_one_was_acknowledged() -> None:
    assert not head(ONE).covers(link(1))
    assert not head(ONE, acked=1).covers(link(2))
    assert head(ONE, acked=2).covers(link(2))


def test_what_is_listed_and_not_here_is_fetched() -> None:
    assert to_fetch([ONE, TWO], [head(ONE)]) == [TWO]


def test_leases_are_renewed_a_week_later_the_longest_ago_first() -> None:
    now = 10 * RENEW_S
    renewed_at = {ONE: now - RENEW_S - 1, TWO: now - RENEW_S - 2, INDEX_SID: now - RENEW_S}
    assert to_renew(renewed_at, now) == [TWO, ONE]
    assert to_renew(renewed_at, now + 1) == [TWO, ONE, INDEX_SID]


def test_everything_below_what_was_acknowledged_or_recovered_is_known() -> None:
    assert floor_of(None, 0) == 0
    assert floor_of(head(ONE, acked=2), 1) == 2
    assert floor_of(head(ONE, acked=2), 3) == 3
    assert unknown_to({link(3)}, [link(4), link(3), link(2), link(1)], 2) == [link(4), link(2)]
