"""Identify's messages: the same bytes as libp2p's own classes, and nothing kept beyond its bounds."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.identity.identify.pb.identify_pb2 import Identify

from p2pnode.errors import ProtocolError
from p2pnode.protocols.identify import messages as m
from p2pnode.protocols.identify.messages import Statement, decode, encode
from tests.protocols.make_vectors import identify_vectors

VECTORS = identify_vectors()
TCP = bytes.fromhex("04c0000201060fa1")


def test_our_message_is_read_by_libp2p() -> None:
    said = Statement((TCP,), frozenset({m.PROTOCOL, "/a/1"}))
    data = encode(said, public_key=b"key", observed=b"seen", agent="p2pnode/1", signed_record=b"record")
    read = Identify()
    read.ParseFromString(data)
    assert (list(read.listen_addrs), frozenset(read.protocols)) == ([TCP], said.protocols)
    assert (read.public_key, read.observed_addr, read.signedPeerRecord) == (b"key", b"seen", b"record")
    assert (read.protocol_version, read.agent_version) == ("ipfs/0.1.0", "p2pnode/1")


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=30), st.lists(st.text(max_size=20), max_size=30))
def test_what_libp2p_writes_is_kept_up_to_the_bounds(addresses: list[bytes], names: list[str]) -> None:
    data = Identify(listen_addrs=addresses, protocols=names, public_key=b"x").SerializeToString()
    kept = decode(data)
    assert kept.addresses == tuple(dict.fromkeys(addresses))[: m.ADDRESSES_MAX]
    assert kept.protocols == {name for name in names if 0 < len(name.encode()) <= m.PROTOCOL_NAME_MAX}


@pytest.mark.parametrize("each", VECTORS["messages"], ids=lambda each: each["name"])
def test_a_message_of_the_vectors_is_kept_as_they_say(each: dict[str, object]) -> None:
    data = bytes.fromhex(str(each["hex"]))
    kept = decode(data)
    assert [address.hex() for address in kept.addresses] == each["addresses"]
    assert sorted(kept.protocols) == each["protocols"]
    with contextlib.suppress(UnicodeDecodeError):  # libp2p's class refuses a name that is no text
        Identify.FromString(data)


@pytest.mark.parametrize("each", VECTORS["refused"], ids=lambda each: each["name"])
def test_a_malformed_message_is_the_peers_fault(each: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        decode(bytes.fromhex(each["hex"]))


def test_a_message_that_is_too_large_is_not_even_parsed() -> None:
    with pytest.raises(ProtocolError, match="8193 bytes"):
        decode(bytes(m.MESSAGE_MAX + 1))
    assert decode(m.IDENTIFY.make(agent_version=bytes(m.MESSAGE_MAX - 3)).SerializeToString()) == Statement()


def kept_bytes(kept: Statement) -> int:
    return sum(map(len, kept.addresses)) + sum(len(name.encode()) for name in kept.protocols)


def test_at_most_4_kib_are_kept_of_a_peer() -> None:
    data = m.IDENTIFY.make(
        listen_addrs=[bytes([n]) * 128 for n in range(18)], protocols=[b"%064d" % n for n in range(80)]
    ).SerializeToString()
    kept = decode(data)
    assert len(kept.addresses) == m.ADDRESSES_MAX
    assert m.KEPT_MAX - 128 < kept_bytes(kept) <= m.KEPT_MAX


@given(st.binary(max_size=400))
def test_any_bytes_are_a_statement_within_bounds_or_the_peers_fault(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        kept = decode(data)
        assert len(kept.addresses) <= m.ADDRESSES_MAX
        assert len(kept.protocols) <= m.PROTOCOLS_MAX
        assert all(len(each) <= m.ADDRESS_MAX for each in kept.addresses)
