"""What is encrypted is what s5.js encrypts, its size says little, and nothing changed is opened."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.encryption import (
    CHUNK_BYTES,
    OVERHEAD_BYTES,
    TAG_BYTES,
    blob_padding,
    decrypt_blob,
    decrypt_chunk,
    decrypt_mutable,
    encrypt_blob,
    encrypt_chunk,
    encrypt_mutable,
    padded_size,
)
from p2pnode.protocols.s5.ids import BlobId, hash_of

ZERO_KEY = bytes(32)
KIB = 1024


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        (1, 4096),
        (4096, 4096),
        (4097, 8192),
        (5 * KIB, 8 * KIB),
        (80 * KIB, 80 * KIB),
        (80 * KIB + 1, 88 * KIB),
        (105 * KIB, 112 * KIB),
        (160 * KIB, 160 * KIB),
        (160 * KIB + 1, 176 * KIB),
        (321 * KIB, 352 * KIB),
    ],
)
def test_sizes_are_padded_as_in_the_vectors(size: int, padded: int) -> None:
    assert padded_size(size) == padded


@given(st.integers(1, 2**40))
def test_a_padded_size_holds_it_is_stable_and_wastes_little(size: int) -> None:
    padded = padded_size(size)
    assert padded >= size
    assert padded_size(padded) == padded
    assert padded - size < max(4096, size // 10 + 1)


def test_something_that_changes_is_encrypted_as_in_the_vector() -> None:
    sealed = encrypt_mutable(b"hello", ZERO_KEY, bytes(range(24)))
    assert len(sealed) == 4096
    assert hash_of(sealed).hex() == "ca3aa495f2b638e42b0a6b5b17afdf3e9df78a7e9839cf55f3a451587321b596"
    assert decrypt_mutable(sealed, ZERO_KEY) == b"hello"
    assert OVERHEAD_BYTES == 46
    assert len(encrypt_mutable(b"", ZERO_KEY, bytes(24))) == 4096


@settings(max_examples=30)
@given(st.binary(max_size=5000), st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24))
def test_whatever_is_encrypted_is_decrypted(data: bytes, key: bytes, nonce: bytes) -> None:
    sealed = encrypt_mutable(data, key, nonce)
    assert padded_size(len(sealed)) == len(sealed)
    assert decrypt_mutable(sealed, key) == data


def test_a_record_with_another_key_or_changed_bytes_is_not_opened() -> None:
    sealed = encrypt_mutable(b"hello", ZERO_KEY, bytes(24))
    with pytest.raises(ProtocolError, match="another key"):
        decrypt_mutable(sealed, b"\x01" * 32)
    for index in (0, 1, 2, 30, 4095):
        changed = bytearray(sealed)
        changed[index] ^= 1
        with pytest.raises(ProtocolError):
            decrypt_mutable(bytes(changed), ZERO_KEY)
    for wrong in (b"", sealed[:-1], sealed[:46], sealed + bytes(1), sealed + bytes(4096)):
        with pytest.raises(ProtocolError):
            decrypt_mutable(wrong, ZERO_KEY)


def test_a_record_that_claims_more_than_it_holds_is_refused() -> None:
    nonce = bytes(24)
    claims = (5000).to_bytes(4, "little") + bytes(4096 - OVERHEAD_BYTES)
    # Sealed by hand: an honest writer can't make this. Chunk 0 has this nonce.
    sealed = b"\x8d\x01" + nonce + encrypt_chunk(claims, ZERO_KEY, 0)
    with pytest.raises(ProtocolError, match="more than it does"):
        decrypt_mutable(sealed, ZERO_KEY)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda data: b"\x8d\x01" + data.ljust(4094)))
def test_bytes_that_nobody_sealed_raise_a_protocol_error_and_nothing_else(raw: bytes) -> None:
    _, by = encrypt_blob(b"x", ZERO_KEY)
    with pytest.raises(ProtocolError):
        decrypt_mutable(raw, ZERO_KEY)
    with pytest.raises(ProtocolError):
        decrypt_chunk(raw, ZERO_KEY, 0)
    with pytest.raises(ProtocolError):
        decrypt_blob(raw, by)


# ---- blobs


def test_a_chunk_is_encrypted_as_in_the_vector() -> None:
    sealed = encrypt_chunk(b"abc", ZERO_KEY, 1)
    assert sealed.hex() == "0b5b70e026e52ffcfd815bd7f7f6db09de8eb2"
    assert decrypt_chunk(sealed, ZERO_KEY, 1) == b"abc"
    with pytest.raises(ProtocolError):
        decrypt_chunk(sealed, ZERO_KEY, 0)


@pytest.mark.parametrize(
    "size", [0, 1, 5000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 7]
)
def test_a_blob_of_any_number_of_chunks_is_opened_by_its_id(size: int) -> None:
    data, key = bytes([7]) * size, b"\x02" * 32
    sealed, by = encrypt_blob(data, key)
    assert by.original == BlobId.of(data)
    assert by.blob == hash_of(sealed)
    assert decrypt_blob(sealed, by) == data
    assert data not in sealed or size < 2
    for start in range(0, len(sealed) - TAG_BYTES, CHUNK_BYTES + TAG_BYTES):
        chunk = sealed[start : start + CHUNK_BYTES + TAG_BYTES]
        assert len(chunk) <= CHUNK_BYTES + TAG_BYTES
    assert CHUNK_BYTES + TAG_BYTES == 262_160


@given(st.integers(0, 5 * CHUNK_BYTES))
def test_padding_never_opens_another_chunk_and_reaches_a_padded_size_where_it_can(size: int) -> None:
    padding = blob_padding(size)
    chunks = max(1, -(-size // CHUNK_BYTES))
    assert 0 <= padding <= chunks * CHUNK_BYTES - size
    sealed = size + padding + chunks * TAG_BYTES
    assert padded_size(sealed) == sealed or size + padding == chunks * CHUNK_BYTES


def test_a_blob_that_is_cut_at_a_chunk_is_noticed() -> None:
    """Each chunk that is left opens rightly: only the hash of the whole tells."""
    sealed, by = encrypt_blob(bytes(CHUNK_BYTES + 5), b"\x02" * 32)
    cut = sealed[: CHUNK_BYTES + TAG_BYTES]
    assert decrypt_chunk(cut, by.key, 0) == bytes(CHUNK_BYTES)
    with pytest.raises(ProtocolError, match="ask another store"):
        decrypt_blob(cut, by)
    with pytest.raises(ProtocolError, match="not what the id says"):
        decrypt_blob(cut, replace(by, blob=hash_of(cut)))


def test_an_id_with_another_key_padding_or_original_opens_nothing() -> None:
    sealed, by = encrypt_blob(b"hello" * 1000, b"\x02" * 32)
    for wrong in (
        replace(by, key=b"\x03" * 32),
        replace(by, padding=by.padding - 1),
        replace(by, padding=2**32 - 1),
        replace(by, original=BlobId.of(b"other")),
        replace(by, chunk_log2=12),
    ):
        with pytest.raises(ProtocolError):
            decrypt_blob(sealed, wrong)
