"""Content ids, which name bytes by their BLAKE3 hash and their size, in both dialects of S5.

::

    blob identifier   5b 82 | 1e | hash[32] | size          (the newer dialect: s5.js, docs)
    legacy raw CID    26 | 1f or 1e | hash[32] | size       (Dart nodes over HTTP)
    size              little-endian, trailing zero bytes cut; at least one byte

As text each has a multibase prefix: ``z`` base58btc, ``f`` base16, ``b`` base32, ``u`` base64url. A blob of
no bytes is written with one size byte and read with one or none. Pure.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final, Literal, NewType, TypeAlias

import base58
from blake3 import blake3

from p2pnode.errors import ProtocolError

BlobHash = NewType("BlobHash", bytes)
"""32 bytes of BLAKE3."""
Base: TypeAlias = Literal["z", "f", "b", "u"]

HASH_BYTES: Final = 32
MULTIHASH_BYTES: Final = HASH_BYTES + 1
SIZE_BYTES_MAX: Final = 8
TEXT_MAX: Final = 256
"""Characters; more than any id has, those of other kinds included."""
_BLOB: Final = b"\x5b\x82"
_LEGACY: Final = 0x26
_BLAKE3, _BLAKE3_OLD, _SHA256 = 0x1E, 0x1F, 0x12
_BASE32_GROUP: Final = 8
_BASE64_GROUP: Final = 4
_MULTIHASH_TEXT: Final = MULTIHASH_BYTES * 4 // 3


class UnsupportedHashError(ProtocolError):
    """The id names its bytes by a hash that this store doesn't keep."""


def hash_of(data: bytes) -> BlobHash:
    """The BLAKE3 hash of bytes that are at hand."""
    return BlobHash(blake3(data).digest())


@dataclass(frozen=True, slots=True)
class BlobId:
    """Which blob: its hash and its size in bytes (0 where the writer did not know it)."""

    hash: BlobHash
    size: int = 0

    @classmethod
    def of(cls, data: bytes) -> BlobId:
        """The id of these bytes."""
        return cls(hash_of(data), len(data))

    def to_bytes(self) -> bytes:
        """The newer dialect."""
        return _BLOB + bytes([_BLAKE3]) + self.hash + _size_bytes(self.size)

    def to_legacy_bytes(self) -> bytes:
        """The legacy dialect."""
        return bytes([_LEGACY, _BLAKE3_OLD]) + self.hash + _size_bytes(self.size)

    def text(self, base: Base = "b") -> str:
        """The newer dialect as text."""
        return multibase(self.to_bytes(), base)

    def legacy_text(self, base: Base = "z") -> str:
        """The legacy dialect as text."""
        return multibase(self.to_legacy_bytes(), base)


def parse_id(text: str) -> BlobId:
    """A content id as text, in either dialect. Raises ``ProtocolError``; see :func:`parse_id_bytes`."""
    return parse_id_bytes(from_multibase(text))


def parse_id_bytes(raw: bytes) -> BlobId:
    """A content id in either dialect.

    Raises ``UnsupportedHashError`` for SHA-256 and ``ProtocolError`` for what is no id of a blob.
    """
    if raw[:2] == _BLOB:
        kind, rest = raw[2:3], raw[3:]
        known: tuple[int, ...] = (_BLAKE3,)
    elif raw[:1] == bytes([_LEGACY]):
        kind, rest = raw[1:2], raw[2:]
        known = (_BLAKE3, _BLAKE3_OLD)
    else:
        msg = f"not the id of a blob: those begin with 5b82 or 26, this one with {raw[:2].hex() or 'nothing'}"
        raise ProtocolError(msg)
    if kind == bytes([_SHA256]):
        msg = "this id names its blob by SHA-256: only BLAKE3 is kept here"
        raise UnsupportedHashError(msg)
    if not kind or kind[0] not in known:
        msg = f"an id with an unknown kind of hash ({kind.hex() or 'none'})"
        raise ProtocolError(msg)
    digest, size = rest[:HASH_BYTES], rest[HASH_BYTES:]
    if len(digest) != HASH_BYTES or len(size) > SIZE_BYTES_MAX:
        msg = f"an id has a hash of {HASH_BYTES} bytes and a size of at most {SIZE_BYTES_MAX}: is it cut?"
        raise ProtocolError(msg)
    return BlobId(BlobHash(digest), int.from_bytes(size, "little"))


def multihash(digest: BlobHash, *, old: bool = False) -> bytes:
    """33 bytes: the kind of hash (``1e``; ``1f`` as older nodes write it), and the hash."""
    return bytes([_BLAKE3_OLD if old else _BLAKE3]) + digest


def is_old_multihash(raw: bytes) -> bool:
    """Whether it begins with ``1f``."""
    return raw[:1] == bytes([_BLAKE3_OLD])


def parse_multihash(raw: bytes) -> BlobHash:
    """The hash in 33 bytes. Raises ``UnsupportedHashError`` for SHA-256 and ``ProtocolError``."""
    if len(raw) == MULTIHASH_BYTES and raw[0] == _SHA256:
        msg = "this multihash is of SHA-256: only BLAKE3 is kept here"
        raise UnsupportedHashError(msg)
    if len(raw) != MULTIHASH_BYTES or raw[0] not in (_BLAKE3, _BLAKE3_OLD):
        msg = "a multihash has 33 bytes and begins with 1e or 1f"
        raise ProtocolError(msg)
    return BlobHash(raw[1:])


def parse_multihash_text(text: str) -> BlobHash:
    """Base64url of a multihash, with or without the multibase prefix ``u``. Raises ``ProtocolError``."""
    bare = text[1:] if len(text) == _MULTIHASH_TEXT + 1 and text.startswith("u") else text
    if len(bare) != _MULTIHASH_TEXT:
        msg = f"a multihash has {_MULTIHASH_TEXT} characters of base64url, not {len(bare)}"
        raise ProtocolError(msg)
    return parse_multihash(from_base64url(bare))


def multihash_text(digest: BlobHash, *, old: bool = False) -> str:
    """Base64url of the multihash, without a prefix."""
    return base64url(multihash(digest, old=old))


def _size_bytes(size: int) -> bytes:
    return size.to_bytes(max(1, (size.bit_length() + 7) // 8), "little")


# ---- multibase


def multibase(raw: bytes, base: Base) -> str:
    """Bytes as text with the prefix of their base."""
    match base:
        case "z":
            return "z" + base58.b58encode(raw).decode()
        case "f":
            return "f" + raw.hex()
        case "b":
            return "b" + base64.b32encode(raw).decode().rstrip("=").lower()
        case "u":
            return "u" + base64url(raw)


def from_multibase(text: str) -> bytes:
    """The bytes of a multibase text in its canonical form. Raises ``ProtocolError``."""
    if not text or len(text) > TEXT_MAX or not text.isascii():
        msg = f"not a content id: it has 1 to {TEXT_MAX} ASCII characters"
        raise ProtocolError(msg)
    base, body = text[0], text[1:]
    try:
        match base:
            case "z":
                raw = base58.b58decode(body)
            case "f":
                raw = bytes.fromhex(body)
            case "b":
                raw = base64.b32decode(body.upper() + "=" * (-len(body) % _BASE32_GROUP))
            case "u":
                raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % _BASE64_GROUP))
            case _:
                msg = f"a content id begins with z, f, b or u (its base); this one begins with {base!r}"
                raise ProtocolError(msg)
    except (ValueError, binascii.Error) as error:
        msg = f"not a content id: {text[:16]}… is no text of base {base!r}"
        raise ProtocolError(msg) from error
    if multibase(raw, base) != text:  # decoders forgive blanks, case and spare bits
        msg = f"not a content id: {text[:16]}… is not the canonical form of base {base!r}"
        raise ProtocolError(msg)
    return raw


def base64url(raw: bytes) -> str:
    """Base64url without padding, as S5 writes keys, hashes and signatures."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def from_base64url(text: str) -> bytes:
    """Bytes of base64url, padded or not. Raises ``ProtocolError``."""
    bare = text.rstrip("=")
    try:
        raw = base64.b64decode(bare + "=" * (-len(bare) % _BASE64_GROUP), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        msg = "not base64url"
        raise ProtocolError(msg) from error
    if base64url(raw) != bare:  # one value must not have many names
        msg = "not the canonical form of base64url"
        raise ProtocolError(msg)
    return raw
