"""What a client may try against a node that stores: it ends its request or its stream, never more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.protocols.blob import allowance as rates
from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob import messages as m
from p2pnode.protocols.blob.allowance import Allowance
from p2pnode.protocols.blob.server import READS_MAX, UPLOAD_BYTES_PER_S, UPLOAD_S
from p2pnode.protocols.events import HalfClosed
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.protocols.s5.ids import hash_of
from tests.protocols.blob.pair import CLIENT, OTHER, OWNER, SERVER, STREAM, Side, put, server_side
from tests.protocols.strategies import messages
from tests.protocols.support import Identity

HASH = hash_of(b"some blob")
WRITES: list[Any] = [
    m.Admit(id=0),
    put(0, b"data"),
    put(0, b"data", inline=False),
    m.Pin(id=0, hash=HASH, lease_s=1),
    m.Unpin(id=0, hash=HASH),
    m.SetEntry(id=0, entry=OWNER.entry(1).to_bytes()),
]
READS: list[Any] = [
    m.Get(id=0, hash=HASH),
    m.Has(id=0, hashes=(HASH,)),
    m.GetEntry(id=0, key=EntryKey(OWNER.key)),
]


def claimed(**kwargs: Any) -> Side:
    side = server_side(**kwargs)
    assert side.hear(OWNER.claim()) == []
    return side


def fault_of(side: Side) -> str:
    over = side.over
    assert over is not None
    assert over.fault
    assert side.hear(m.Has(id=99, hashes=(HASH,))) == []  # it hears nothing more
    return over.reason


@pytest.mark.parametrize("write", WRITES, ids=lambda each: type(each).__name__)
def test_a_write_without_a_claim_is_refused_and_reaches_no_store(write: Any) -> None:
    side = server_side()
    (answer,) = side.hear(write)
    assert (answer.id, answer.code) == (0, "not_admitted")
    assert side.orders() == []
    side.hear(OWNER.claim())
    side.hear(replace(write, id=1))
    assert len(side.orders()) == 1 or isinstance(side.said[-1], m.Done)


@pytest.mark.parametrize("write", WRITES, ids=lambda each: type(each).__name__)
def test_a_write_of_an_owner_who_is_not_admitted_is_refused_with_the_reason(write: Any) -> None:
    side = claimed(admits=lambda owner: "no strangers" if owner == OWNER.key else "")
    (answer,) = side.hear(write)
    assert (answer.code, answer.detail) == ("not_admitted", "no strangers")
    assert side.orders() == []
    side.hear(OTHER.claim())
    side.hear(m.Admit(id=1))
    assert side.said[-1] == m.Done(id=1)


@pytest.mark.parametrize("read", READS, ids=lambda each: type(each).__name__)
def test_a_read_needs_no_claim(read: Any) -> None:
    side = server_side(admits=lambda _owner: "nobody")
    assert side.hear(read) == []
    assert len(side.orders()) == 1


@pytest.mark.parametrize(
    "signature",
    [
        bytes(64),
        OTHER.sign(m.claim_digest(Identity("blob client").peer, SERVER)),
        OWNER.sign(m.claim_digest(SERVER, Identity("blob client").peer)),
        OWNER.sign(m.claim_digest(Identity("blob client").peer, Identity("another server").peer)),
    ],
    ids=["zeros", "another's", "of the other side", "made for another server"],
)
def test_a_claim_that_is_not_the_owners_for_these_two_ends_the_stream(signature: bytes) -> None:
    side = server_side()
    side.hear(m.Claim(owner=OWNER.key, signature=signature))
    assert "claim" in fault_of(side)


def test_a_flood_of_claims_costs_no_more_signatures_than_the_rate() -> None:
    side = server_side()
    for _ in range(int(rates.CHECKS_BURST)):
        side.hear(OWNER.claim())
    side.hear(m.Claim(owner=OWNER.key, signature=bytes(64)))  # not looked at
    assert side.over is None
    (answer,) = side.hear(m.Admit(id=0))
    assert answer.code == "rate_limited"
    assert 0 < answer.retry_after_s <= 1
    side.now += answer.retry_after_s
    side.hear(OWNER.claim())
    assert side.hear(m.Admit(id=1)) == [m.Done(id=1)]


def test_a_flood_of_entries_costs_no_more_signatures_than_the_rate() -> None:
    side = claimed()
    raw = OWNER.entry(1).to_bytes()
    for id_ in range(int(rates.CHECKS_BURST)):
        side.hear(m.SetEntry(id=id_, entry=raw))
        side.tell(c.WorkDone(id_))
    assert sum(isinstance(each, m.Done) for each in side.said) == rates.CHECKS_BURST - 1
    assert side.said[-1].code == "rate_limited"


def test_a_peer_has_one_allowance_for_all_its_streams_and_all_peers_have_one_together() -> None:
    everyone = Allowance()
    allowance = Allowance(everyone)
    first = [server_side(allowance=allowance) for _ in range(2)]
    for id_ in range(int(rates.REQUESTS_BURST)):
        side = first[id_ % 2]
        side.hear(m.Has(id=id_, hashes=(HASH,)))
        side.tell(c.SizesFound(id_, (None,)))
    for side in first:
        (answer,) = side.hear(m.Has(id=10**6, hashes=(HASH,)))
        assert answer.code == "rate_limited"
    other = server_side(allowance=Allowance(everyone))
    assert other.hear(m.Has(id=0, hashes=(HASH,))) == []
    for _ in range(3):
        drained = Allowance(everyone)
        while not drained.request(100.0):
            pass
    assert server_side(allowance=Allowance(everyone)).hear(m.Has(id=0, hashes=(HASH,)))


def test_who_read_too_much_waits() -> None:
    side, size, id_ = server_side(), m.SIZE_MAX, 0
    for id_ in range(20):
        answers = side.hear(m.Get(id=id_, hash=HASH))
        if answers:
            break
        side.tell(c.BlobRead(id_, bytes(m.CHUNK), size))
        side.tell(c.NotDone(id_, "internal"))
    assert 1 < id_ < 10
    assert side.said[-1].code == "rate_limited"
    side.now += side.said[-1].retry_after_s
    assert side.hear(m.Get(id=id_ + 1, hash=HASH)) == []


def test_who_wrote_too_much_waits_whether_or_not_it_was_kept() -> None:
    side, id_ = claimed(), 0
    for id_ in range(20):
        if side.hear(put(id_, b"", inline=False, size=m.SIZE_MAX)):
            break
        side.tell(c.NotDone(id_, "quota"))
        side.hear(m.Cancel(id=id_))
    assert 1 < id_ < 10
    assert side.said[-1].code == "rate_limited"
    side.hear(m.Cancel(id=id_))
    side.now += side.said[-1].retry_after_s
    assert side.hear(put(id_ + 1, b"x")) == []


def test_a_blob_larger_than_the_protocol_knows_is_not_served() -> None:
    side = server_side()
    side.hear(m.Get(id=0, hash=HASH))
    (answer,) = side.tell(c.BlobRead(0, bytes(m.CHUNK), m.SIZE_MAX + 1))
    assert answer.code == "too_large"
    side.hear(m.Has(id=1, hashes=(HASH, HASH)))
    assert side.tell(c.SizesFound(1, (m.SIZE_MAX, m.SIZE_MAX + 1))) == [m.Sizes(id=1, sizes=(m.SIZE_MAX, -1))]


@pytest.mark.parametrize("id_", [5, 4, 0])
def test_an_id_that_does_not_grow_ends_the_stream(id_: int) -> None:
    side = claimed()
    side.hear(m.Has(id=5, hashes=(HASH,)))
    side.hear(m.Has(id=id_, hashes=(HASH,)))
    assert "grow" in fault_of(side)


def test_one_request_too_many_ends_the_stream() -> None:
    side = claimed()
    for id_ in range(m.IN_FLIGHT_MAX):
        side.hear(m.Has(id=id_, hashes=(HASH,)))
    assert side.over is None
    side.hear(m.Has(id=m.IN_FLIGHT_MAX, hashes=(HASH,)))
    assert "requests" in fault_of(side)


def test_more_inline_bytes_than_may_wait_end_the_stream() -> None:
    side, data = claimed(), bytes(m.INLINE_MAX)
    for id_ in range(m.PENDING_MAX // m.INLINE_MAX):
        side.hear(put(id_, data))
    assert side.over is None
    side.hear(put(100, b"x"))
    assert "bytes" in fault_of(side)


def test_one_upload_too_many_ends_the_stream() -> None:
    side = claimed()
    for id_ in range(m.UPLOADS_MAX):
        side.hear(put(id_, b"data", inline=False))
    assert side.over is None
    side.hear(put(9, b"data", inline=False))
    assert "uploads" in fault_of(side)


def test_an_inline_blob_of_another_size_than_announced_ends_the_stream() -> None:
    side = claimed()
    side.hear(put(0, b"data", size=5))
    assert "size" in fault_of(side)


@pytest.mark.parametrize(
    "pieces",
    [
        [m.Data(id=0, data=b"12345678901", last=True)],
        [m.Data(id=0, data=b"1234567890", last=False)],
        [m.Data(id=0, data=b"123", last=True)],
        [m.Data(id=0, data=b"", last=False)],
        [m.Data(id=0, data=b"12345")],
        [m.Data(id=0, data=b"1234567890", last=True), m.Data(id=0, data=b"", last=True)],
        [m.Data(id=7, data=b"1234567890", last=True)],
        [m.Cancel(id=0), m.Data(id=0, data=b"12345")],
    ],
    ids=["too long", "not ended", "too short", "empty", "crumbs", "twice", "unknown", "after cancel"],
)
@pytest.mark.parametrize("refused", [False, True])
def test_pieces_that_are_not_what_was_announced_end_the_stream(pieces: list[Any], refused: bool) -> None:
    side = claimed()
    side.hear(put(0, b"1234567890", inline=False))
    if refused:
        side.tell(c.NotDone(0, "quota"))
    for piece in pieces:
        side.hear(piece)
    fault_of(side)


def test_an_empty_blob_may_come_either_way() -> None:
    side = claimed()
    side.hear(put(0, b""))
    side.hear(put(1, b"", inline=False))
    side.hear(m.Data(id=1, data=b"", last=True))
    orders = side.orders()
    assert [type(each) for each in orders] == [c.KeepBlob, c.KeepBlob, c.Piece]
    assert side.tell(c.WorkDone(1)) == [m.Done(id=1)]


def test_a_trickled_upload_is_cut_off_in_bounded_time() -> None:
    side = claimed()
    side.hear(put(0, b"1234567890", inline=False, size=m.SIZE_MAX))
    began = side.now
    for _ in range(100):
        side.now += 1
        side.hear(m.Data(id=0, data=bytes(m.PIECE_MIN)))
        side.tell(c.Taken(0, m.PIECE_MIN))
    side.fire("upload 0")
    assert "slowly" in fault_of(side)
    assert side.now - began == pytest.approx(UPLOAD_S + m.SIZE_MAX / UPLOAD_BYTES_PER_S)


def test_an_upload_ahead_of_its_credit_ends_the_stream() -> None:
    side = claimed()
    side.hear(put(0, bytes(2 * m.UPLOAD_WINDOW), inline=False))
    for _ in range(m.UPLOAD_WINDOW // m.CHUNK):
        side.hear(m.Data(id=0, data=bytes(m.CHUNK)))
    (credit,) = side.tell(c.Taken(0, m.CHUNK))
    assert credit == m.Credit(id=0, received=m.CHUNK)
    side.hear(m.Data(id=0, data=bytes(m.CHUNK)))
    assert side.over is None
    side.hear(m.Data(id=0, data=bytes(m.PIECE_MIN)))
    assert "credit" in fault_of(side)


def test_an_upload_that_creeps_over_its_size_ends_the_stream() -> None:
    side = claimed()
    side.hear(put(0, bytes(m.PIECE_MIN + 5), inline=False))
    side.hear(m.Data(id=0, data=bytes(m.PIECE_MIN)))
    assert side.over is None
    side.hear(m.Data(id=0, data=bytes(m.PIECE_MIN)))
    assert "size" in fault_of(side)


def test_an_upload_that_was_refused_and_is_never_ended_is_cut_off_too() -> None:
    side = claimed()
    side.hear(put(0, b"1234567890", inline=False))
    side.tell(c.NotDone(0, "quota"))
    side.fire("upload 0")
    fault_of(side)


def test_a_stranger_can_not_keep_a_stream_busy_with_an_upload_that_was_refused() -> None:
    side = server_side()
    side.hear(replace(put(0, b"1234567890", inline=False), size=m.SIZE_MAX))
    assert side.timers["upload 0"] == side.now + UPLOAD_S
    assert side.machine.resting
    side.fire("idle")
    assert side.over == c.Over("idle")


@pytest.mark.parametrize("end", [m.Cancel(id=0), m.Data(id=0, data=b"1234567890", last=True)])
def test_a_refused_upload_ends_by_a_cancel_or_its_last_piece_and_costs_no_store_work(end: Any) -> None:
    side = claimed()
    side.hear(put(0, b"1234567890", inline=False))
    side.orders()
    assert [each.code for each in side.tell(c.NotDone(0, "disk_full"))] == ["disk_full"]
    assert side.hear(end) == []
    assert side.orders() == []
    assert side.machine.resting


@pytest.mark.parametrize(("code", "faulty"), [("hash_mismatch", True), ("bad_entry", True), ("quota", False)])
def test_what_only_a_liar_sends_counts_and_the_stream_goes_on(code: Any, faulty: bool) -> None:
    side = claimed()
    side.hear(put(0, b"data"))
    side.orders()
    (answer,) = side.tell(c.NotDone(0, code, "why"))
    assert answer.code == code
    assert [type(each) for each in side.orders()] == ([c.Fault] if faulty else [])
    assert side.over is None


def test_an_entry_that_is_none_ends_the_stream() -> None:
    side = claimed()
    side.hear(m.SetEntry(id=0, entry=bytes(m.ENTRY_MIN)))
    assert "registry entry" in fault_of(side)


@pytest.mark.parametrize(
    "message",
    [
        m.Blob(id=0, size=1), m.Sizes(id=0, sizes=(1,)), m.EntryIs(id=0), m.Done(id=0),
        m.Failed(id=0, code="quota"), m.Stale(id=0, current=OWNER.entry(1).to_bytes()),
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_a_message_of_the_other_side_ends_the_stream(message: Any) -> None:
    side = claimed()
    side.hear(message)
    assert "from a client" in fault_of(side)


def test_few_blobs_are_read_at_a_time_and_the_rest_wait_in_order() -> None:
    side = server_side()
    for id_ in range(READS_MAX + 2):
        side.hear(m.Get(id=id_, hash=HASH))
    assert [each.id for each in side.orders()] == list(range(READS_MAX))
    side.tell(c.NotDone(3, "not_found"))
    side.tell(c.BlobRead(0, b"x", 1))
    assert [each.id for each in side.orders()] == [READS_MAX, READS_MAX + 1]


def test_a_cancelled_get_that_waits_costs_no_read() -> None:
    side = server_side()
    for id_ in range(READS_MAX + 1):
        side.hear(m.Get(id=id_, hash=HASH))
    side.orders()
    (answer,) = side.hear(m.Cancel(id=READS_MAX))
    assert answer.code == "cancelled"
    for id_ in range(READS_MAX):
        side.tell(c.BlobRead(id_, b"x", 1))
    assert side.orders() == []


def test_work_that_is_cancelled_counts_until_the_store_has_stopped() -> None:
    side = claimed()
    for id_ in range(m.IN_FLIGHT_MAX):
        side.hear(put(id_, b"data"))
        assert side.hear(m.Cancel(id=id_)) == []
    assert sum(isinstance(each, c.Abandon) for each in side.orders()) == m.IN_FLIGHT_MAX
    assert [each.code for each in side.tell(c.NotDone(0, "cancelled"))] == ["cancelled"]
    assert side.tell(c.WorkDone(1)) == [m.Done(id=1)]  # it was done before it could be stopped
    side.hear(put(100, b"data"))
    side.hear(put(101, b"data"))
    assert side.over is None
    side.hear(put(102, b"data"))
    fault_of(side)


def test_a_blob_that_shrinks_while_it_is_read_fails_that_request_alone() -> None:
    side = server_side()
    side.hear(m.Get(id=0, hash=HASH))
    side.tell(c.BlobRead(0, bytes(m.CHUNK), 2 * m.CHUNK))
    (answer,) = side.tell(c.BlobRead(0, b"short"))
    assert answer.code == "internal"
    assert side.over is None


def test_an_idle_stream_ends_without_fault_and_a_busy_one_stays() -> None:
    side = server_side()
    for id_ in range(2):
        side.hear(m.Has(id=id_, hashes=(HASH,)))
    for id_ in range(2):
        assert "idle" not in side.timers
        side.tell(c.SizesFound(id_, (None,)))
    side.fire("idle")
    assert side.over == c.Over("idle")


def test_a_detail_of_any_length_fits_the_frame() -> None:
    side = claimed()
    side.hear(put(0, b"data"))
    (answer,) = side.tell(c.NotDone(0, "internal", "ü" * 10_000))
    assert len(answer.detail.encode()) <= m.DETAIL_MAX


@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            *(messages(cls, id=st.integers(0, 5)) for cls in m.CODEC.classes if cls is not m.Claim),
            st.just(OWNER.claim()),
            st.builds(c.WorkDone, st.integers(0, 5)),
            st.builds(c.BlobRead, st.integers(0, 5), st.binary(max_size=3), st.none() | st.integers(0, 3)),
            st.builds(c.NotDone, st.integers(0, 5), st.just("internal")),
            st.builds(c.SizesFound, st.integers(0, 5), st.just((1,))),
        ),
        max_size=30,
    )
)
def test_no_sequence_of_messages_and_reports_makes_it_raise_or_speak_after_its_end(said: list[Any]) -> None:
    side = server_side()
    for each in said:
        over = side.over is not None
        sent = side.tell(each) if type(each).__module__.endswith("commands") else side.hear(each)
        assert not (over and sent)
    side.lose()
    assert sum(isinstance(each, c.Over) for each in side.emitted) == 1
    assert not side.timers


# ---- a client that closed its half


def test_what_was_asked_before_a_half_close_is_answered_and_then_the_stream_ends() -> None:
    side = server_side()
    for id_ in range(2):
        side.hear(m.Has(id=id_, hashes=(hash_of(b"x"),)))
    side.handle(HalfClosed(CLIENT, STREAM))
    assert side.over is None
    for id_ in range(2):
        side.tell(c.SizesFound(id_, (None,)))
    assert [type(each) for each in side.said] == [m.Sizes, m.Sizes]
    assert side.over == c.Over("closed by the client")


def test_an_upload_that_a_half_close_cut_is_cancelled_and_no_fault() -> None:
    side = claimed()
    side.hear(m.Put(id=0, hash=hash_of(b"x"), size=10_000, lease_s=9))
    side.orders()
    side.handle(HalfClosed(CLIENT, STREAM))
    assert side.orders() == [c.Abandon(0)]
    side.tell(c.NotDone(0, "cancelled"))
    assert side.said[-1] == m.Failed(id=0, code="cancelled")
    assert side.over == c.Over("closed by the client")


def test_a_half_close_of_a_stream_on_which_nothing_is_asked_ends_it() -> None:
    side = server_side()
    side.handle(HalfClosed(CLIENT, STREAM))
    assert side.over == c.Over("closed by the client")
