"""Ids of more than a blob: of directories, of registry entries, of encrypted blobs with their keys.

::

    link           1e (or 1f) | hash[32]       bytes that stay
                   ed | key[32]                a registry entry, which changes
    directory      5d | link
                   5d | 5e | a6 | key[32] | link          encrypted; documents say e4 for a6
    resolver       25 | ed | key[32]                      as older programs write it
    encrypted      ae | a6 | log2 of a chunk's bytes (12) | 1f | hash[32] | key[32] | padding u32 LE | id

The last names an encrypted blob, how to open it, and what comes out. An id with a key is a secret: whoever
has it can read. As text they have the bases of ``ids``. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import EntryKey, parse_key, tagged
from p2pnode.protocols.s5.ids import (
    MULTIHASH_BYTES,
    BlobHash,
    BlobId,
    multihash,
    parse_id_bytes,
    parse_multihash,
)

CHUNK_LOG2: Final = 18
"""256 KiB, as everybody encrypts."""
_CHUNK_LOG2_RANGE: Final = range(12, 25)
_DIRECTORY, _ENCRYPTED_MUTABLE, _ENCRYPTED, _RESOLVER = 0x5D, 0x5E, 0xAE, 0x25
_XCHACHA: Final = 0xA6
_XCHACHA_DOCUMENTED: Final = 0xE4
_KEY_BYTES: Final = 32
_PADDING_BYTES: Final = 4
_ENCRYPTED_HEAD: Final = 3 + MULTIHASH_BYTES + _KEY_BYTES + _PADDING_BYTES


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same bytes."""

    digest: BlobHash


@dataclass(frozen=True, slots=True)
class Changing:
    """Whatever the newest entry of a key points at."""

    key: EntryKey


Link: TypeAlias = Fixed | Changing


def link_bytes(link: Link) -> bytes:
    """33 bytes."""
    return multihash(link.digest) if isinstance(link, Fixed) else tagged(link.key)


def parse_link(raw: bytes) -> Link:
    """What 33 bytes link to. Raises ``ProtocolError``."""
    return Changing(parse_key(raw)) if raw[:1] == b"\xed" else Fixed(parse_multihash(raw))


@dataclass(frozen=True, slots=True)
class DirectoryId:
    """Which directory, and the 32-byte key of its bytes where they are encrypted."""

    link: Link
    key: bytes | None = field(default=None, repr=False)

    def to_bytes(self) -> bytes:
        """34 bytes, or 68 with a key."""
        how = b"" if self.key is None else bytes([_ENCRYPTED_MUTABLE, _XCHACHA]) + self.key
        return bytes([_DIRECTORY]) + how + link_bytes(self.link)


def parse_directory_id(raw: bytes) -> DirectoryId:
    """A directory's id. Raises ``ProtocolError``."""
    if raw[:1] != bytes([_DIRECTORY]):
        msg = f"not the id of a directory: those begin with 5d, this one with {raw[:1].hex() or 'nothing'}"
        raise ProtocolError(msg)
    if raw[1:2] != bytes([_ENCRYPTED_MUTABLE]):
        return DirectoryId(parse_link(raw[1:]))
    if raw[2:3] not in (bytes([_XCHACHA]), bytes([_XCHACHA_DOCUMENTED])):
        msg = f"a directory encrypted with something unknown ({raw[2:3].hex() or 'nothing'}, not a6)"
        raise ProtocolError(msg)
    return DirectoryId(parse_link(raw[3 + _KEY_BYTES :]), raw[3 : 3 + _KEY_BYTES])


def resolver_bytes(key: EntryKey) -> bytes:
    """The id of a registry entry, 34 bytes."""
    return bytes([_RESOLVER]) + tagged(key)


def parse_resolver(raw: bytes) -> EntryKey:
    """The key of the entry that a resolver id names. Raises ``ProtocolError``."""
    if raw[:1] != bytes([_RESOLVER]):
        msg = f"not a resolver id: those begin with 25, this one with {raw[:1].hex() or 'nothing'}"
        raise ProtocolError(msg)
    return parse_key(raw[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedId:
    """An encrypted blob, the key of its bytes, and what comes out: ``original``, then ``padding`` zeros."""

    blob: BlobHash
    key: bytes = field(repr=False)
    padding: int
    original: BlobId
    chunk_log2: int = CHUNK_LOG2

    def to_bytes(self) -> bytes:
        """As s5.js writes it: both hashes with their older kind, the original in the legacy dialect."""
        head = bytes([_ENCRYPTED, _XCHACHA, self.chunk_log2]) + multihash(self.blob, old=True)
        padding = self.padding.to_bytes(_PADDING_BYTES, "little")
        return head + self.key + padding + self.original.to_legacy_bytes()


def parse_encrypted_id(raw: bytes) -> EncryptedId:
    """An encrypted blob's id; the original may be in either dialect. Raises ``ProtocolError``."""
    if len(raw) < _ENCRYPTED_HEAD or raw[0] != _ENCRYPTED or raw[1] != _XCHACHA:
        msg = "not the id of an encrypted blob: aea6, a chunk size, a hash, a key, a padding and an id"
        raise ProtocolError(msg)
    if raw[2] not in _CHUNK_LOG2_RANGE:
        msg = f"an encrypted blob in chunks of 2^{raw[2]} bytes; from 2^12 to 2^24 are read"
        raise ProtocolError(msg)
    key_at = 3 + MULTIHASH_BYTES
    padding_at = key_at + _KEY_BYTES
    return EncryptedId(
        blob=parse_multihash(raw[3:key_at]),
        key=raw[key_at:padding_at],
        padding=int.from_bytes(raw[padding_at:_ENCRYPTED_HEAD], "little"),
        original=parse_id_bytes(raw[_ENCRYPTED_HEAD:]),
        chunk_log2=raw[2],
    )
