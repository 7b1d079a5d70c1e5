"""Sealed objects: what a replica holds. Ciphertext of a padded size, bound to its place.

::

    "p2pc" 01 | nonce[24] | XChaCha20-Poly1305( length u32 LE | record | zeros )
    additional data   "p2pc1" | sid[16] | seq u64 BE | kind[1]

The whole is padded as S5 pads: up to 80 KiB to a multiple of 4 KiB; up to 160 KiB to one of 8 KiB, and so
on. Kinds: ``S`` is a segment of a conversation, ``M`` a manifest, ``I`` a segment of the index. The nonce is
drawn by the caller's ``draw`` and is never used twice. What a record says is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from p2pnode.errors import StorageError
from p2pnode.storage.keys import LogKeys

Kind: TypeAlias = Literal["S", "M", "I"]
Draw: TypeAlias = Callable[[int], bytes]
"""Returns so many random bytes."""

SEALED_MAX: Final = 4 << 20
MAGIC: Final = b"p2pc\x01"
NONCE_BYTES: Final = 24
_TAG_BYTES: Final = 16
_LENGTH_BYTES: Final = 4
OVERHEAD: Final = len(MAGIC) + NONCE_BYTES + _TAG_BYTES + _LENGTH_BYTES
RECORD_MAX: Final = SEALED_MAX - OVERHEAD
_BLOCK: Final = 4 << 10
_BLOCK_UP_TO: Final = 80 << 10


class SealError(StorageError):
    """The bytes are not what was sealed for this place with this key."""


def seal(keys: LogKeys, seq: int, kind: Kind, record: bytes, draw: Draw) -> bytes:
    """The object to store. Raises ``ValueError`` for more than ``RECORD_MAX`` bytes."""
    if len(record) > RECORD_MAX:
        msg = f"a sealed object holds at most {RECORD_MAX} bytes, not {len(record)}"
        raise ValueError(msg)
    padding = bytes(padded(len(record) + OVERHEAD) - len(record) - OVERHEAD)
    plain = len(record).to_bytes(_LENGTH_BYTES, "little") + record + padding
    nonce = draw(NONCE_BYTES)
    bound = _bound_to(keys.sid, seq, kind)
    return MAGIC + nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plain, bound, nonce, keys.sealing)


def unseal(keys: LogKeys, seq: int, kind: Kind, sealed: bytes) -> bytes:
    """The record. Raises ``SealError`` for anything that was not sealed for exactly this place."""
    body = len(MAGIC) + NONCE_BYTES
    if not sealed.startswith(MAGIC) or not body + _TAG_BYTES <= len(sealed) <= SEALED_MAX:
        msg = "not a sealed object of this version: another program wrote it, or a newer p2pnode"
        raise SealError(msg)
    nonce, bound = sealed[len(MAGIC) : body], _bound_to(keys.sid, seq, kind)
    try:
        plain = crypto_aead_xchacha20poly1305_ietf_decrypt(sealed[body:], bound, nonce, keys.sealing)
    except CryptoError as error:
        msg = "a sealed object does not open: it was changed, moved from its place, or belongs to other words"
        raise SealError(msg) from error
    length = int.from_bytes(plain[:_LENGTH_BYTES], "little")
    record, padding = plain[_LENGTH_BYTES:][:length], plain[_LENGTH_BYTES + length :]
    if len(record) != length or any(padding):
        msg = "a sealed object is shorter than it says, or padded with something: a newer p2pnode wrote it"
        raise SealError(msg)
    return record


def padded(size: int) -> int:
    """The padded size of an object of ``size`` bytes."""
    block, up_to = _BLOCK, _BLOCK_UP_TO
    while size > up_to:
        block, up_to = block * 2, up_to * 2
    return max(1, -(-size // block)) * block


def _bound_to(sid: bytes, seq: int, kind: Kind) -> bytes:
    return b"p2pc1" + sid + seq.to_bytes(8, "big") + kind.encode()
