"""What a client reports of its replication, for people and scripts: short, each reason once."""

from __future__ import annotations

from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.conversations.archive import Status
from p2pnode.storage.conversations.log_sender import Sent
from p2pnode.storage.conversations.records import Link
from p2pnode.storage.conversations.replicator import OWN, ReplicationReport
from p2pnode.storage.conversations.schedule import LocalHead
from p2pnode.storage.replication.quorum import Counted, Written
from p2pnode.storage.store import OwnerKey

SID = bytes(16)
LINK = Link(seq=1, hash=hash_of(b"manifest"))
ENTRY = Entry(key=EntryKey(OwnerKey(bytes(32))), revision=1, data=b"points at it", signature=bytes(64))


def _kept(*acks: str, lags: bool = True, **failures: str) -> ReplicationReport:
    written = Written(ENTRY, frozenset(acks), Counted(frozenset({"a", "b"}), 2), failures)
    row = LocalHead(SID, LINK, 0, acked=None if lags else LINK)
    sent = Sent(SID, LINK, kept=not lags, written=written)
    return ReplicationReport(Status((row,) if lags else (), {SID: sent}, written.counted, ()))


def test_a_reason_that_several_nodes_give_is_said_once() -> None:
    fields = _kept(OWN, "c", a="a: it is full", b="it is full").fields(SID)
    assert (fields["replicas"], fields["kept"]) == (1, False)
    assert fields["waiting"] == "it is full (2 nodes)"


def test_a_node_that_keeps_nothing_for_us_is_no_failure() -> None:
    fields = _kept(OWN, a="not_admitted: this node stores for clients with an open session only").fields(SID)
    assert "not_admitted" not in str(fields["waiting"])
    both = _kept(OWN, a="not_admitted: for others", b="it is full").fields(SID)
    assert both["waiting"] == "it is full (1 node)"


def test_of_a_peer_that_could_be_dialled_nowhere_the_first_address_is_named() -> None:
    fields = _kept(OWN, a="could not reach a at here: refused; could not reach a at there: refused").fields(
        SID
    )
    assert fields["waiting"] == "could not reach a at here: refused (1 node)"


def test_nothing_waits_where_a_quorum_has_all() -> None:
    fields = _kept(OWN, "a", "b", lags=False, c="it is full").fields(SID)
    assert (fields["replicas"], fields["kept"], fields["waiting"]) == (2, True, "")


def test_only_what_was_sent_or_waits_is_news() -> None:
    assert _kept(OWN).is_news(SID)
    assert not _kept(OWN).is_news(bytes(15) + b"1")
