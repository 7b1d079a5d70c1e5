"""The messages are those of other S5 nodes, byte for byte, and nothing else passes for one."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import Entry
from p2pnode.protocols.s5.locations import (
    FILE,
    PART_MAX,
    PARTS_MAX,
    StorageLocation,
    make_location,
    parse_location,
)
from p2pnode.protocols.s5.messages import (
    FRAME_MAX,
    PEERS_MAX,
    URIS_MAX,
    AnnouncePeers,
    HandshakeDone,
    HandshakeOpen,
    HashQuery,
    Ignored,
    KnownPeer,
    RegistryQuery,
    Signed,
    decode,
    decode_statement,
    encode,
    encode_statement,
    sign_statement,
)
from p2pnode.protocols.s5.nodes import URI_MAX
from p2pnode.protocols.s5.values import Reader, pack
from tests.protocols.s5.support import COUNTING, HELLO_HASH, OTHER, ZERO, messages, statements

OPEN = "01c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
DONE = "02c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f0300"
SIGNED = (
    "0ac421ed3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29c440728ea1c11a1bec306ba109c7d9f5"
    "c4a0eae4ce23aa7137a90137cc09d71ce071622286cc58ae47d2e3cb856c572dc2ac94da7a931299ae55dcb725b673a3f602c425"
    + DONE
)
HASH_QUERY = "04c4211fede5c0b10f2ec4979c69b52f61e42ff5b413519ce09be0f14d098dcfe5f6f98d920305"
REGISTRY_QUERY = "0dc421ed3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
LOCATION = (
    "051fede5c0b10f2ec4979c69b52f61e42ff5b413519ce09be0f14d098dcfe5f6f98d0300943577011400687474703a2f2f313237"
    "2e302e302e313a312f7800ed3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da2903be4d7281562f14"
    "b66ccedf8c3cf43a4e52599044a10477fbe2461ef1fee808c86506ed8348a2a547998cf81ed67822d1a79ecba2632fc79aed0828"
    "9dc22d02"
)
VECTORS: list[tuple[str, Any]] = [
    (OPEN, HandshakeOpen(challenge=COUNTING)),
    (SIGNED, sign_statement(HandshakeDone(challenge=COUNTING), ZERO.node, ZERO.sign)),
    (HASH_QUERY, HashQuery(digest=HELLO_HASH)),
    (REGISTRY_QUERY, RegistryQuery(key=ZERO.entry_key)),
    (
        LOCATION,
        make_location(
            HELLO_HASH,
            parts=("http://127.0.0.1:1/x",),
            expires_at=2_000_000_000,
            node=ZERO.node,
            sign=ZERO.sign,
        ),
    ),
]


def refused(frame: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode(frame)
    return str(caught.value)


@pytest.mark.parametrize(("told", "message"), VECTORS, ids=[type(each).__name__ for _, each in VECTORS])
def test_each_vector_is_what_is_written_and_is_read(told: str, message: Any) -> None:
    assert encode(message).hex() == told
    assert decode(bytes.fromhex(told)) == message


def test_the_statement_of_the_handshake_is_the_vector_and_its_signature_holds() -> None:
    done = HandshakeDone(challenge=COUNTING)
    assert encode_statement(done).hex() == DONE
    assert decode_statement(bytes.fromhex(DONE)) == done
    signed = decode(bytes.fromhex(SIGNED))
    assert isinstance(signed, Signed)
    assert signed.node == ZERO.node
    assert signed.holds()
    assert not Signed(node=OTHER.node, signature=signed.signature, inner=signed.inner).holds()


def test_the_location_of_the_vector_is_signed_and_a_changed_one_is_not() -> None:
    location = decode(bytes.fromhex(LOCATION))
    assert isinstance(location, StorageLocation)
    assert location.type == FILE
    assert location.holds()
    for index in (1, 20, 34, 36, 50):
        changed = bytearray.fromhex(LOCATION)
        changed[index] ^= 1
        assert not parse_location(bytes(changed)).holds()


@given(messages)
def test_every_message_comes_back_from_its_bytes(message: Any) -> None:
    assert decode(encode(message)) == message


@given(statements)
def test_every_statement_comes_back_from_its_bytes(statement: Any) -> None:
    assert decode_statement(encode_statement(statement)) == statement


@given(messages, st.integers(0, 400))
def test_a_message_that_is_cut_is_refused_or_is_a_shorter_whole_one(message: Any, at: int) -> None:
    frame = encode(message)
    try:
        read = decode(frame[: at % len(frame)])
    except ProtocolError:
        return
    assert isinstance(read, HandshakeOpen)
    assert read.network == ""


@given(
    st.binary(max_size=400)
    | st.builds(
        lambda head, tail: bytes([head]) + tail, st.sampled_from([1, 4, 5, 7, 8, 10, 13]), st.binary()
    )
)
@example(b"\x05" + bytes(38) + b"\x08")
@example(b"\x05\x1f" + bytes(37) + b"\x01\xff\xff")
@example(b"\x01\xc6\xff\xff\xff\xff")
@example(b"\x04\xc4\x21" + b"\x1f" + bytes(32) + b"\xdd\xff\xff\xff\xff")
@example(b"\x0a\xc4")
@example(b"\x90")
def test_no_bytes_do_anything_but_decode_or_raise_a_protocol_error(frame: bytes) -> None:
    for parse in (decode, decode_statement):
        try:
            parse(frame)
        except ProtocolError as error:
            assert str(error)  # noqa: PT017 - any, as long as it says something


@given(st.builds(lambda head, tail: bytes([head]) + tail, st.sampled_from([2, 8]), st.binary(max_size=300)))
@example(b"\x08\xcd\xff\xff")
@example(b"\x02\xc4\x20" + bytes(32) + b"\x03\x08\xd9")
def test_no_statement_does_anything_but_decode_or_raise_a_protocol_error(inner: bytes) -> None:
    try:
        decode_statement(inner)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 - any, as long as it says something


def test_the_longer_challenge_of_s5js_is_read_and_a_longer_still_is_not() -> None:
    assert decode(pack(1, bytes(64))) == HandshakeOpen(challenge=bytes(64))
    assert "32 to 64" in refused(pack(1, bytes(65)))
    assert "32 to 64" in refused(pack(1, bytes(31)))


def test_what_follows_the_known_values_is_ignored() -> None:
    assert decode(pack(13, b"\xed" + ZERO.public, "later", 7)) == RegistryQuery(key=ZERO.entry_key)
    assert decode(pack(1, bytes(32), "closed", 9)) == HandshakeOpen(challenge=bytes(32), network="closed")


@pytest.mark.parametrize("frame", [b"\x08" + bytes(200), b"\x09", b"\x49\xc4\x00", b"\xcd\xff\xff"])
def test_messages_of_streams_and_of_the_future_are_ignored(frame: bytes) -> None:
    assert isinstance(decode(frame), Ignored)
    assert isinstance(decode_statement(b"\x0d"), Ignored)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc0",
        b"\xa1x",
        bytes([1]) + bytes(FRAME_MAX),
        pack(1, "text"),
        pack(1, bytes(32), 5),
        pack(4, b"\x12" + bytes(32), [3]),
        pack(4, b"\x1f" + bytes(31), [3]),
        pack(4, b"\x1f" + bytes(32), list(range(17))),
        pack(4, b"\x1f" + bytes(32), [256]),
        pack(4, b"\x1f" + bytes(32), [-1]),
        pack(4, b"\x1f" + bytes(32), ["3"]),
        pack(10, b"\xec" + bytes(32), bytes(64), b"x"),
        pack(10, b"\xed" + bytes(32), bytes(63), b"x"),
        pack(10, b"\xed" + bytes(32), bytes(64), b""),
        pack(13, b"\xee" + bytes(32)),
    ],
)
def test_what_is_out_of_bounds_is_refused(frame: bytes) -> None:
    assert refused(frame)


def location_bytes(parts: list[bytes], count: int | None = None, end: bytes = b"\0") -> bytes:
    head = b"\x05\x1f" + bytes(32) + b"\x03" + bytes(4) + bytes([len(parts) if count is None else count])
    body = b"".join(len(part).to_bytes(2, "little") + part for part in parts)
    return head + body + end + b"\xed" + bytes(32) + bytes(64)


def test_a_location_may_have_so_many_parts_of_so_many_bytes_and_no_more() -> None:
    whole = decode(location_bytes([b"x" * PART_MAX] * PARTS_MAX))
    assert isinstance(whole, StorageLocation)
    assert len(whole.parts) == PARTS_MAX
    assert refused(location_bytes([b"x"] * (PARTS_MAX + 1)))
    assert refused(location_bytes([b"x" * (PART_MAX + 1)]))
    assert refused(location_bytes([b"\xff"]))
    assert refused(location_bytes([b"x"], end=b"\1"))
    assert refused(location_bytes([b"x"], end=b""))
    assert refused(location_bytes([b"x"], count=2))


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": ("x",) * (PARTS_MAX + 1)},
        {"parts": ("x" * (PART_MAX + 1),)},
        {"expires_at": 2**32},
        {"expires_at": -1},
        {"type_": 256},
    ],
)
def test_a_location_that_nobody_would_read_is_not_made(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"parts": ("x",), "expires_at": 1, **changes}
    with pytest.raises(ProtocolError):
        make_location(HELLO_HASH, node=ZERO.node, sign=ZERO.sign, **fields)


def test_of_a_long_announcement_the_first_peers_are_read() -> None:
    known = KnownPeer(node=OTHER.node, connected=True, uris=("wss://x/s5/p2p",))
    whole = encode_statement(AnnouncePeers(peers=(known,) * (PEERS_MAX + 5)))
    assert decode_statement(whole) == AnnouncePeers(peers=(known,) * PEERS_MAX)


@pytest.mark.parametrize(
    "inner",
    [
        pack(8, 1, b"\xed" + bytes(32), 1, 0),
        pack(8, 1, b"\xed" + bytes(32), True, URIS_MAX + 1, *["x"] * (URIS_MAX + 1)),
        pack(8, 1, b"\xed" + bytes(32), True, 1, "x" * (URI_MAX + 1)),
        pack(8, 2, b"\xed" + bytes(32), True, 0),
        pack(2, bytes(32), "3", 0),
        pack(2, bytes(32)),
    ],
)
def test_a_statement_out_of_bounds_is_refused(inner: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_statement(inner)


def test_an_entry_is_read_as_it_is() -> None:
    entry = ZERO.entry(7)
    assert decode(entry.to_bytes()) == entry
    assert isinstance(entry, Entry)
    assert refused(entry.to_bytes() + b"\0")


@given(st.lists(st.one_of(st.integers(0, 2**32 - 1), st.booleans(), st.binary(), st.text()), max_size=6))
def test_values_are_read_as_msgpack_writes_them(told: list[Any]) -> None:
    reader = Reader(pack(*told))
    for value in told:
        match value:
            case bool():
                assert reader.take_bool("it") is value
            case int():
                assert reader.take_int(2**32 - 1, "it") == value
            case bytes():
                assert reader.take_bytes(0, 1000, "it") == value
            case _:
                assert reader.take_text(4000, "it") == value
    assert reader.at_end


@given(st.lists(st.integers(0, 2**16), max_size=40))
def test_lists_of_numbers_are_read_as_msgpack_writes_them(told: list[int]) -> None:
    assert Reader(msgpack.packb(told)).take_ints(40, 2**16, "they") == tuple(told)
