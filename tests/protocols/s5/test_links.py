"""Ids of directories, entries and encrypted blobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.ids import TEXT_MAX, BlobHash, BlobId, from_multibase, multibase
from p2pnode.protocols.s5.links import (
    Changing,
    DirectoryId,
    EncryptedId,
    Fixed,
    link_bytes,
    parse_directory_id,
    parse_encrypted_id,
    parse_link,
    parse_resolver,
    resolver_bytes,
)
from tests.protocols.s5.support import HELLO, HELLO_HASH, ZERO, hashes, keys

links = st.builds(Fixed, hashes) | st.builds(Changing, keys)
KEY = b"\x07" * 32
blob_ids = st.builds(BlobId, hashes, st.integers(0, 2**64 - 1))
encrypted_ids = st.builds(
    EncryptedId,
    blob=hashes,
    key=st.binary(min_size=32, max_size=32),
    padding=st.integers(0, 2**32 - 1),
    original=blob_ids,
    chunk_log2=st.integers(12, 24),
)


def test_ids_are_laid_out_as_other_programs_have_them() -> None:
    fixed, changing = Fixed(HELLO_HASH), Changing(ZERO.entry_key)
    assert DirectoryId(fixed).to_bytes() == b"\x5d\x1e" + HELLO_HASH
    assert DirectoryId(changing).to_bytes() == b"\x5d\xed" + ZERO.public
    assert DirectoryId(changing, KEY).to_bytes() == b"\x5d\x5e\xa6" + KEY + b"\xed" + ZERO.public
    assert resolver_bytes(ZERO.entry_key) == b"\x25\xed" + ZERO.public
    whole = EncryptedId(blob=BlobHash(bytes(32)), key=KEY, padding=258, original=BlobId.of(HELLO))
    assert whole.to_bytes() == (
        bytes.fromhex("aea6121f") + bytes(32) + KEY + b"\x02\x01\0\0" + BlobId.of(HELLO).to_legacy_bytes()
    )


@given(links, st.none() | st.binary(min_size=32, max_size=32))
def test_every_link_and_directory_comes_back(link: Fixed | Changing, key: bytes | None) -> None:
    assert parse_link(link_bytes(link)) == link
    assert parse_directory_id(DirectoryId(link, key).to_bytes()) == DirectoryId(link, key)


@given(encrypted_ids)
def test_every_encrypted_id_comes_back_also_from_its_longest_text(told: EncryptedId) -> None:
    text = multibase(told.to_bytes(), "f")
    assert len(text) < TEXT_MAX
    assert parse_encrypted_id(from_multibase(text)) == told


def test_the_documented_algorithm_and_the_other_dialects_are_read() -> None:
    link = b"\x1f" + HELLO_HASH
    assert parse_directory_id(b"\x5d\x5e\xe4" + KEY + link) == DirectoryId(Fixed(HELLO_HASH), KEY)
    newer = EncryptedId(blob=HELLO_HASH, key=KEY, padding=0, original=BlobId.of(HELLO))
    raw = b"\xae\xa6\x12\x1e" + HELLO_HASH + KEY + bytes(4) + BlobId.of(HELLO).to_bytes()
    assert parse_encrypted_id(raw) == newer


def test_a_resolver_names_its_entry() -> None:
    assert parse_resolver(resolver_bytes(ZERO.entry_key)) == ZERO.entry_key
    for raw in (b"", b"\x25", b"\x26\xed" + bytes(32), b"\x25\x1e" + bytes(32)):
        with pytest.raises(ProtocolError):
            parse_resolver(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x5d",
        b"\x5e\x1e" + bytes(32),
        b"\x5d\x12" + bytes(32),
        b"\x5d\x1e" + bytes(33),
        b"\x5d\x5e\xa5" + bytes(32) + b"\xed" + bytes(32),
        b"\x5d\x5e\xa6" + bytes(31) + b"\xed" + bytes(32),
        b"\x5d\x5e",
    ],
)
def test_what_is_no_directory_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_directory_id(raw)


def test_an_encrypted_id_out_of_bounds_is_refused() -> None:
    right = EncryptedId(blob=HELLO_HASH, key=KEY, padding=0, original=BlobId.of(HELLO)).to_bytes()
    parse_encrypted_id(right)
    for index, value in ((0, 0xAD), (1, 0xA5), (2, 11), (2, 25), (3, 0x12), (72, 0x27)):
        wrong = bytearray(right)
        wrong[index] = value
        with pytest.raises(ProtocolError):
            parse_encrypted_id(bytes(wrong))
    for length in (0, 50, 72, 90):
        with pytest.raises(ProtocolError):
            parse_encrypted_id(right[:length])


@given(st.binary(max_size=130) | st.binary(max_size=120).map(lambda tail: b"\xae\xa6\x12\x1f" + tail))
def test_no_bytes_do_anything_but_parse_or_raise_a_protocol_error(raw: bytes) -> None:
    for parse in (parse_link, parse_directory_id, parse_resolver, parse_encrypted_id):
        try:
            parse(raw)
        except ProtocolError as error:
            assert str(error)  # noqa: PT017 - any, as long as it says something


def test_no_id_shows_its_key() -> None:
    for held in (
        DirectoryId(Fixed(HELLO_HASH), KEY),
        EncryptedId(blob=HELLO_HASH, key=KEY, padding=0, original=BlobId.of(HELLO)),
    ):
        assert str(KEY) not in repr(held)
