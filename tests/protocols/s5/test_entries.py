"""Registry entries: signed as others sign them, newest wins everywhere, nothing malformed passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import (
    DATA_MAX,
    REVISION_MAX,
    Entry,
    make_entry,
    parse_entry,
    parse_key,
    pointer_to,
    tagged,
)
from p2pnode.protocols.s5.ids import BlobHash, BlobId, hash_of, multihash
from tests.protocols.s5.support import HELLO, HELLO_HASH, OTHER, ZERO, entries

PK = "ed3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
SIGNATURE_OF_ZEROS = (
    "b5c2efc79193b5495838aaa6e9c4500ae685ab7d1f790ece3cb7244a63305c6b"
    "072a7190a088a81cc203e24cbd2cc1cf318022bdce4883d4a37600b3675a290f"
)
WHOLE = (
    "07ed3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da292a00000000000000211eaf1349b9f5f9a1a6"
    "a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f326280e4e006ceb0da7934bf6308ca6b17ab5f98f1593dee44644ea252a8"
    "2f77cf5dd43db1833f64c6461bc5cd20dee4e4dfcca051381021da89396693af5cfc3e0c"
)


def test_the_key_of_the_vectors_is_the_one_of_a_seed_of_zeros() -> None:
    assert tagged(ZERO.entry_key).hex() == PK
    assert parse_key(bytes.fromhex(PK)) == ZERO.entry_key


def test_the_entry_of_zeros_is_signed_as_in_the_vector() -> None:
    entry = ZERO.entry(1, bytes(33))
    assert entry.signature.hex() == SIGNATURE_OF_ZEROS
    assert entry.holds()


def test_the_entry_that_points_at_nothing_is_the_vector_byte_for_byte() -> None:
    entry = ZERO.entry(42, pointer_to(hash_of(b"")))
    assert entry.to_bytes().hex() == WHOLE
    assert parse_entry(bytes.fromhex(WHOLE)) == entry
    assert entry.points_at == hash_of(b"")


@given(entries)
def test_every_entry_comes_back_from_its_bytes(entry: Entry) -> None:
    raw = entry.to_bytes()
    assert len(raw) == 107 + len(entry.data)
    assert parse_entry(raw) == entry


@given(st.binary(max_size=200) | st.binary(max_size=180).map(lambda tail: b"\x07\xed" + tail))
def test_no_bytes_do_anything_but_parse_or_raise_a_protocol_error(raw: bytes) -> None:
    for parse in (parse_entry, parse_key):
        try:
            parse(raw)
        except ProtocolError as error:
            assert str(error)  # noqa: PT017 - any, as long as it says something


@pytest.mark.parametrize("index", [0, 1, 42])
def test_a_wrong_tag_key_kind_or_length_is_refused(index: int) -> None:
    raw = bytearray.fromhex(WHOLE)
    raw[index] += 1
    with pytest.raises(ProtocolError):
        parse_entry(bytes(raw))


@pytest.mark.parametrize("raw", [WHOLE[:-2], WHOLE + "00", "", "07ed"])
def test_an_entry_of_another_length_is_refused(raw: str) -> None:
    with pytest.raises(ProtocolError):
        parse_entry(bytes.fromhex(raw))


@pytest.mark.parametrize("index", [20, 34, 50, 80])
def test_a_changed_entry_does_not_hold(index: int) -> None:
    raw = bytearray.fromhex(WHOLE)
    assert parse_entry(bytes(raw)).holds()
    raw[index] ^= 1
    assert not parse_entry(bytes(raw)).holds()


def test_an_entry_under_another_key_does_not_hold() -> None:
    assert not replace(ZERO.entry(), key=OTHER.entry_key).holds()


def test_revisions_and_data_have_their_bounds() -> None:
    assert ZERO.entry(0, b"").holds()
    assert parse_entry(ZERO.entry(REVISION_MAX, bytes(DATA_MAX)).to_bytes()).holds()
    for revision, data in ((-1, b""), (REVISION_MAX + 1, b""), (0, bytes(DATA_MAX + 1)), (0, bytes(300))):
        with pytest.raises(ProtocolError):
            make_entry(ZERO.entry_key, revision, data, ZERO.sign)
    beyond = bytearray.fromhex(WHOLE)
    beyond[41] = 1
    with pytest.raises(ProtocolError, match="revision"):
        parse_entry(bytes(beyond))


def test_a_higher_revision_replaces_and_nothing_is_replaced_by_its_equal() -> None:
    old, new = ZERO.entry(1), ZERO.entry(2)
    assert new.replaces(old)
    assert not old.replaces(new)
    assert not old.replaces(old)
    assert not old.replaces(replace(old, signature=bytes(64)))
    assert old.replaces(None)


@given(entries, entries, entries)
def test_whatever_the_order_of_arrival_the_same_entry_is_kept(one: Entry, two: Entry, three: Entry) -> None:
    heard = [replace(each, revision=5) for each in (one, two, three)]
    kept = []
    for order in (heard, heard[::-1], [heard[1], heard[2], heard[0]]):
        newest: Entry | None = None
        for each in order:
            newest = each if each.replaces(newest) else newest
        assert newest is not None
        kept.append(newest.data)
    assert kept[0] == kept[1] == kept[2]
    assert kept[0] == min((each.data for each in heard), key=hash_of)


@pytest.mark.parametrize(
    "data",
    [
        multihash(HELLO_HASH),
        multihash(HELLO_HASH, old=True),
        multihash(HELLO_HASH) + b"more",
        b"\x5a" + BlobId.of(HELLO).to_legacy_bytes(),
        b"\x5a" + BlobId.of(HELLO).to_bytes(),
        BlobId.of(HELLO).to_bytes(),
        b"\x00\x00" + multihash(HELLO_HASH),
    ],
)
def test_a_pointer_is_read_in_all_the_ways_that_it_is_written(data: bytes) -> None:
    assert ZERO.entry(1, data).points_at == HELLO_HASH


@pytest.mark.parametrize(
    "data", [b"", b"\x1e", multihash(HELLO_HASH)[:-1], b"\x5a", b"\x5a\x26\x1f", bytes(64)]
)
def test_what_points_at_nothing_is_known_as_such(data: bytes) -> None:
    assert ZERO.entry(1, data).points_at is None


def test_a_tombstone_points_at_the_hash_of_zeros() -> None:
    assert ZERO.entry(9, pointer_to(BlobHash(bytes(32)))).points_at == bytes(32)


@pytest.mark.parametrize("raw", ["", "ed", PK[2:], "ec" + PK[2:], PK + "00"])
def test_a_key_without_its_tag_or_length_is_refused(raw: str) -> None:
    with pytest.raises(ProtocolError):
        parse_key(bytes.fromhex(raw))
