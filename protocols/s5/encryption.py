"""How S5 encrypts: things that change, and blobs that don't. XChaCha20-Poly1305 without associated data.

::

    changing   8d 01 | nonce[24] | sealed(length u32 LE | data | zeros)       in all a padded size
    fixed      chunks of 256 KiB, sealed; a chunk's nonce is its index, 24 bytes LE; zeros end the last

The key of a fixed blob is drawn anew for each: its nonces repeat. A chunk at the end that is missing can't be
told from the chunks alone: only the blob's hash tells, so whole blobs are opened here by their id. A padded
size is at least 4 KiB and hides the true one to within a twentieth. Pure: nonces and keys are the caller's.
"""

from __future__ import annotations

from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.ids import BlobId, hash_of
from p2pnode.protocols.s5.links import CHUNK_LOG2, EncryptedId

NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16
CHUNK_BYTES: Final = 1 << CHUNK_LOG2
_HEADER: Final = b"\x8d\x01"
_LENGTH_BYTES: Final = 4
_FRONT: Final = len(_HEADER) + NONCE_BYTES
OVERHEAD_BYTES: Final = _FRONT + _LENGTH_BYTES + TAG_BYTES
_BLOCK: Final = 4096
_BLOCKS: Final = 20


def padded_size(size: int) -> int:
    """The padded size that holds ``size`` bytes (at least one).

    Up to 80 KiB a multiple of 4 KiB; with each doubling of the size the step doubles.
    """
    block = _BLOCK
    while size > block * _BLOCKS:
        block *= 2
    return max(1, -(-size // block)) * block


def encrypt_mutable(data: bytes, key: bytes, nonce: bytes) -> bytes:
    """Something that changes. ``nonce`` is 24 random bytes, never used twice."""
    length = len(data).to_bytes(_LENGTH_BYTES, "little")
    zeros = bytes(padded_size(len(data) + OVERHEAD_BYTES) - len(data) - OVERHEAD_BYTES)
    return _HEADER + nonce + _seal(length + data + zeros, nonce, key)


def decrypt_mutable(raw: bytes, key: bytes) -> bytes:
    """What :func:`encrypt_mutable` was given. Raises ``ProtocolError``."""
    if raw[:2] != _HEADER or len(raw) < OVERHEAD_BYTES or padded_size(len(raw)) != len(raw):
        msg = "not encrypted as S5 does it: 8d01, a nonce, and a padded size in all"
        raise ProtocolError(msg)
    opened = _open(raw[_FRONT:], raw[len(_HEADER) : _FRONT], key)
    end = _LENGTH_BYTES + int.from_bytes(opened[:_LENGTH_BYTES], "little")
    if end > len(opened):
        msg = "an encrypted record claims to hold more than it does"
        raise ProtocolError(msg)
    return opened[_LENGTH_BYTES:end]


def encrypt_chunk(data: bytes, key: bytes, index: int) -> bytes:
    """Chunk ``index`` of a fixed blob, from 0."""
    return _seal(data, index.to_bytes(NONCE_BYTES, "little"), key)


def decrypt_chunk(sealed: bytes, key: bytes, index: int) -> bytes:
    """What :func:`encrypt_chunk` was given. Raises ``ProtocolError``."""
    return _open(sealed, index.to_bytes(NONCE_BYTES, "little"), key)


def blob_padding(size: int) -> int:
    """Zero bytes after a fixed blob of ``size`` bytes: to a padded size, but never into another chunk."""
    chunks = max(1, -(-size // CHUNK_BYTES))
    sealed = size + chunks * TAG_BYTES
    return min(padded_size(sealed) - sealed, chunks * CHUNK_BYTES - size)


def encrypt_blob(data: bytes, key: bytes) -> tuple[bytes, EncryptedId]:
    """A fixed blob's bytes, and the id to open it by. ``key`` is 32 random bytes, for this blob only."""
    padding = blob_padding(len(data))
    plain = data + bytes(padding)
    sealed = b"".join(
        encrypt_chunk(plain[at : at + CHUNK_BYTES], key, index)
        for index, at in enumerate(range(0, len(plain), CHUNK_BYTES))
    )
    return sealed, EncryptedId(blob=hash_of(sealed), key=key, padding=padding, original=BlobId.of(data))


def decrypt_blob(sealed: bytes, by: EncryptedId) -> bytes:
    """The original. Raises ``ProtocolError``, also for a blob that is not the id's, whole and unchanged."""
    if hash_of(sealed) != by.blob:
        msg = "not the encrypted blob that the id names: ask another store"
        raise ProtocolError(msg)
    step = (1 << by.chunk_log2) + TAG_BYTES
    plain = b"".join(
        decrypt_chunk(sealed[at : at + step], by.key, index)
        for index, at in enumerate(range(0, len(sealed), step))
    )
    data = plain[: max(0, len(plain) - by.padding)]
    if hash_of(data) != by.original.hash:
        msg = "what was encrypted is not what the id says"
        raise ProtocolError(msg)
    return data


def _seal(data: bytes, nonce: bytes, key: bytes) -> bytes:
    return crypto_aead_xchacha20poly1305_ietf_encrypt(data, None, nonce, key)


def _open(sealed: bytes, nonce: bytes, key: bytes) -> bytes:
    if len(sealed) < TAG_BYTES:
        msg = f"nothing encrypted is shorter than its tag of {TAG_BYTES} bytes"
        raise ProtocolError(msg)
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, None, nonce, key)
    except CryptoError as error:
        msg = "can't be decrypted: another key, or changed bytes"
        raise ProtocolError(msg) from error
