"""Signed registry entries: small values under an Ed25519 key, the one thing in S5 that changes.

::

    serialised   07 | ed | key[32] | revision u64 LE | length u8 | data | signature[64]
    signed       07 | revision u64 LE | length u8 | data

An entry replaces another of its key when its revision is higher; at the same revision the smaller BLAKE3
of its data wins (s5-rs's rule: two nodes that hear both agree, whichever came first). Pure: signing is
injected, nothing is stored here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NewType

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import Signer, verify_key
from p2pnode.protocols.s5.ids import (
    MULTIHASH_BYTES,
    BlobHash,
    hash_of,
    multihash,
    parse_id_bytes,
    parse_multihash,
)

EntryKey = NewType("EntryKey", bytes)
"""32 bytes: an Ed25519 public key. On S5's wire and in its API ``ed`` leads it."""

KEY_TAG: Final = 0xED
DATA_MAX: Final = 64
"""As S5's code has it; its documents say 48, and ours are 33."""
REVISION_MAX: Final = 2**48
"""Beyond it JavaScript nodes lose digits."""
_TAG: Final = 0x07
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_HEAD: Final = 1 + 33 + 8 + 1
_MULTIHASH_KINDS: Final = (b"\x1e", b"\x1f")
_POINTER_TAG: Final = b"\x5a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A value under a key. :meth:`holds` checks that the key signed it."""

    key: EntryKey
    revision: int
    data: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As it travels and is stored."""
        return bytes([_TAG]) + tagged(self.key) + _body(self.revision, self.data) + self.signature

    def holds(self) -> bool:
        """Whether the key signed it. It takes a third of a millisecond."""
        return verify_key(self.key, signed_bytes(self.revision, self.data), self.signature)

    def replaces(self, other: Entry | None) -> bool:
        """Whether it is the one to keep of two under one key. Of equal ones neither replaces the other."""
        if other is None or self.revision != other.revision:
            return other is None or self.revision > other.revision
        return self.data != other.data and hash_of(self.data) < hash_of(other.data)

    @property
    def points_at(self) -> BlobHash | None:
        """The blob its data names, in any of the ways that S5's nodes write; None where it names none.

        ``1e`` (or ``1f``) and a hash: s5.js and ours; ``5a`` and a content id: LumeWeb; a content id, or
        another tag of two bytes before ``1e`` and a hash: Dart.
        """
        data = self.data
        try:
            if data[:1] in _MULTIHASH_KINDS:
                return parse_multihash(data[:MULTIHASH_BYTES])
            if data[:1] == _POINTER_TAG:
                return parse_id_bytes(data[1:]).hash
            return parse_multihash(data[2 : 2 + MULTIHASH_BYTES])
        except ProtocolError:
            return None


def parse_entry(raw: bytes) -> Entry:
    """An entry from its bytes; its signature is not checked. Raises ``ProtocolError``."""
    if len(raw) < _HEAD or raw[0] != _TAG or raw[1] != KEY_TAG or raw[42] > DATA_MAX:
        msg = "not a registry entry: 07, an Ed25519 key, a revision, at most 64 bytes of data, a signature"
        raise ProtocolError(msg)
    end = _HEAD + raw[42]
    if len(raw) != end + _SIGNATURE_BYTES:
        msg = f"a registry entry with {raw[42]} bytes of data has {end + _SIGNATURE_BYTES}, not {len(raw)}"
        raise ProtocolError(msg)
    return checked(
        key=EntryKey(raw[2:34]),
        revision=int.from_bytes(raw[34:42], "little"),
        data=raw[_HEAD:end],
        signature=raw[end:],
    )


def checked(*, key: EntryKey, revision: int, data: bytes, signature: bytes) -> Entry:
    """An entry whose parts are within their bounds. Raises ``ProtocolError``."""
    if not 0 <= revision <= REVISION_MAX:
        msg = f"a registry revision is from 0 to 2^48, not {revision}"
        raise ProtocolError(msg)
    if len(key) != _KEY_BYTES or len(data) > DATA_MAX or len(signature) != _SIGNATURE_BYTES:
        msg = f"a registry entry has a key of 32 bytes, at most {DATA_MAX} of data and a signature of 64"
        raise ProtocolError(msg)
    return Entry(key=key, revision=revision, data=data, signature=signature)


def make_entry(key: EntryKey, revision: int, data: bytes, sign: Signer) -> Entry:
    """A signed entry; ``sign`` is Ed25519 of ``key``. Raises ``ProtocolError`` out of bounds."""
    bare = checked(key=key, revision=revision, data=data, signature=bytes(_SIGNATURE_BYTES))
    return replace(bare, signature=sign(signed_bytes(revision, data)))


def pointer_to(digest: BlobHash) -> bytes:
    """The data of an entry that names a blob."""
    return multihash(digest)


def signed_bytes(revision: int, data: bytes) -> bytes:
    """What the key signs."""
    return bytes([_TAG]) + _body(revision, data)


def tagged(key: EntryKey) -> bytes:
    """33 bytes: ``ed`` and the key."""
    return bytes([KEY_TAG]) + key


def parse_key(raw: bytes) -> EntryKey:
    """The key in 33 bytes. Raises ``ProtocolError``."""
    if len(raw) != _KEY_BYTES + 1 or raw[0] != KEY_TAG:
        msg = "a registry key has 33 bytes and begins with ed (Ed25519)"
        raise ProtocolError(msg)
    return EntryKey(raw[1:])


def _body(revision: int, data: bytes) -> bytes:
    return revision.to_bytes(8, "little") + bytes([len(data)]) + data
