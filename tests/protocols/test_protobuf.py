"""Protocol buffers: what libp2p's generated classes write is read, and nothing is parsed before it is
counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.pubsub.pb import rpc_pb2

from p2pnode.errors import ProtocolError
from p2pnode.protocols.protobuf import Field, Schema

SUBSCRIPTION = Schema("SubOpts", Field("subscribe", 1, "bool"), Field("topic", 2, "bytes"))
RPC = Schema("RPC", Field("subscriptions", 1, SUBSCRIPTION, many=True), Field("record", 4, "bytes"))


def test_what_the_library_writes_is_read() -> None:
    theirs = rpc_pb2.RPC(
        subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid="tea"), rpc_pb2.RPC.SubOpts()],
        senderRecord=b"\x00" * 300,
    )
    ours = RPC.decode(theirs.SerializeToString(), entries_max=5)
    assert [(each.subscribe, each.topic) for each in ours.subscriptions] == [(True, b"tea"), (False, b"")]
    assert ours.record == bytes(300)


def test_what_is_written_is_read_by_the_library() -> None:
    ours = RPC.make(subscriptions=[SUBSCRIPTION.make(subscribe=True, topic=b"tea")])
    theirs = rpc_pb2.RPC.FromString(ours.SerializeToString())
    assert theirs.subscriptions[0].topicid == "tea"


@pytest.mark.parametrize(("entries", "fits"), [(8, True), (7, False)])
def test_every_entry_counts_those_of_nested_messages_too(entries: int, fits: bool) -> None:
    one = SUBSCRIPTION.make(subscribe=True, topic=b"x")
    data = RPC.make(subscriptions=[one, one], record=b"r").SerializeToString() + b"\x38\x01"  # an unknown one
    if fits:
        assert len(RPC.decode(data, entries_max=entries).subscriptions) == 2
    else:
        with pytest.raises(ProtocolError, match="more than 7 entries"):
            RPC.decode(data, entries_max=entries)


def test_a_list_of_empty_messages_is_counted() -> None:
    with pytest.raises(ProtocolError, match="more than 100 entries"):
        RPC.decode(b"\x0a\x00" * 100_000, entries_max=100)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # no length
        b"\x0a\x05ab",  # longer than what there is
        b"\x22" + b"\xff" * 11,  # an endless length
        b"\x0b\x0c",  # a group
        b"\x0a\x03\x12\x05a",  # longer than the message it is in
        b"\x39\x00",  # eight bytes that aren't there
        b"\x80" * 11,
    ],
)
def test_what_is_malformed_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"not a \w+ message"):
        RPC.decode(data, entries_max=100)


def test_text_that_is_no_utf8_is_bytes_like_any_other() -> None:
    data = RPC.make(subscriptions=[SUBSCRIPTION.make(topic=b"\xff\xfe")]).SerializeToString()
    assert RPC.decode(data, entries_max=9).subscriptions[0].topic == b"\xff\xfe"


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = RPC.decode(data, entries_max=64)
    except ProtocolError:
        return
    assert len(message.subscriptions) <= 64


@given(st.binary(max_size=400))
def test_what_is_read_is_what_the_library_reads(data: bytes) -> None:
    try:
        ours = RPC.decode(data, entries_max=1000)
    except ProtocolError:
        return
    theirs = rpc_pb2.RPC.FromString(data)
    assert [each.subscribe for each in ours.subscriptions] == [
        each.subscribe for each in theirs.subscriptions
    ]
    assert ours.record == theirs.senderRecord
