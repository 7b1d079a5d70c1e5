"""Sealed objects open in their own place only, and tell nothing but a size in blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.keys import StorageKeys
from p2pnode.storage.sealing import RECORD_MAX, SEALED_MAX, SealError, padded, seal, unseal

KEYS = StorageKeys.from_entropy(bytes(range(16)))
LOG = KEYS.conversation(bytes(range(16, 32)))


def counting(count: int) -> bytes:
    return bytes(range(count))


def test_the_vector_of_a_sealed_object_holds() -> None:
    sealed = seal(LOG, 7, "S", b"hello", counting)
    assert len(sealed) == 4096
    assert sealed[:29] == b"p2pc\x01" + bytes(range(24))
    assert hash_of(sealed).hex() == "2777d1344b8b1682b2930e60cac10c0a877d6528f50f733b60e4e62ccc166468"
    assert unseal(LOG, 7, "S", sealed) == b"hello"


@given(st.binary(max_size=10_000), st.integers(0, 2**64 - 1), st.sampled_from(["S", "M", "I"]))
def test_what_is_sealed_opens_again_and_is_whole_blocks(record: bytes, seq: int, kind: str) -> None:
    sealed = seal(LOG, seq, kind, record, counting)  # type: ignore[arg-type]
    assert len(sealed) % 4096 == 0
    assert unseal(LOG, seq, kind, sealed) == record  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "seq", "kind"),
    [
        (LOG, 8, "S"),
        (LOG, 7, "M"),
        (LOG, 7, "I"),
        (KEYS.conversation(bytes(16)), 7, "S"),
        (KEYS.index, 7, "S"),
        (StorageKeys.from_entropy(bytes(16)).conversation(bytes(range(16, 32))), 7, "S"),
    ],
)
def test_it_opens_in_no_other_place(keys: object, seq: int, kind: str) -> None:
    sealed = seal(LOG, 7, "S", b"hello", counting)
    with pytest.raises(SealError, match="does not open"):
        unseal(keys, seq, kind, sealed)  # type: ignore[arg-type]


@given(st.integers(0, 4095), st.integers(1, 255))
def test_a_changed_byte_is_noticed_wherever_it_is(at: int, change: int) -> None:
    sealed = bytearray(seal(LOG, 7, "S", b"hello", counting))
    sealed[at] ^= change
    with pytest.raises(SealError):
        unseal(LOG, 7, "S", bytes(sealed))


@given(st.binary(max_size=100))
def test_rubbish_is_refused(data: bytes) -> None:
    for raw in (data, b"p2pc\x01" + data):
        with pytest.raises(SealError):
            unseal(LOG, 7, "S", raw)


def test_a_cut_object_is_refused() -> None:
    sealed = seal(LOG, 7, "S", b"hello", counting)
    for end in (0, 5, 44, 45, 4095):
        with pytest.raises(SealError):
            unseal(LOG, 7, "S", sealed[:end])


def test_the_largest_record_fits_and_one_byte_more_does_not() -> None:
    sealed = seal(LOG, 1, "S", bytes(RECORD_MAX), counting)
    assert len(sealed) == SEALED_MAX
    assert len(unseal(LOG, 1, "S", sealed)) == RECORD_MAX
    with pytest.raises(ValueError, match="at most"):
        seal(LOG, 1, "S", bytes(RECORD_MAX + 1), counting)
    with pytest.raises(SealError):
        unseal(LOG, 1, "S", sealed + bytes(1))


@pytest.mark.parametrize(
    ("size", "total"),
    [
        (0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (80 << 10, 80 << 10), ((80 << 10) + 1, 88 << 10),
        (105 << 10, 112 << 10), (SEALED_MAX, SEALED_MAX),
    ],
)  # fmt: skip
def test_sizes_are_padded_as_s5_pads(size: int, total: int) -> None:
    assert padded(size) == total


@given(st.integers(0, SEALED_MAX))
def test_padding_costs_a_tenth_at_most_beyond_the_first_block(size: int) -> None:
    total = padded(size)
    assert size <= total <= max(4096, size * 1.1 + 4096)
    assert padded(total) == total
