"""Storage locations: a node says, and signs, where a blob's bytes are to be had, and until when.

::

    05 | multihash[33] | type | expiry u32 LE | count | (length u16 LE | UTF-8)* | 00    (signed to here)
    | ed | key[32] | signature[64]

The first part is the URL of the bytes. Anybody may hand a location on. Pure: signing is injected, and whoever
has a clock judges whether a location has expired.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import Signer, verify_key
from p2pnode.protocols.s5.ids import MULTIHASH_BYTES, BlobHash, is_old_multihash, multihash, parse_multihash
from p2pnode.protocols.s5.nodes import NodeId, node_bytes, parse_node

ARCHIVE, FILE, FULL, BRIDGE = 0, 3, 5, 7
"""Types: a copy that must be asked for, the bytes, the bytes with their tree, a bridge's."""
PARTS_MAX: Final = 8
PART_MAX: Final = 1024
"""Bytes of one part."""
_TAG: Final = 5
_U8: Final = 2**8 - 1
_U32: Final = 2**32 - 1
_HEAD: Final = 40
_NODE_BYTES: Final = 33
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLocation:
    """The blob is to be had at ``parts[0]`` until ``expires_at`` (epoch seconds).

    ``old`` writes the kind of hash as 1f, as it was asked for. :meth:`holds` checks that ``node`` signed it.
    """

    digest: BlobHash
    type: int
    expires_at: int
    parts: tuple[str, ...]
    node: NodeId
    signature: bytes
    old: bool = True

    def to_bytes(self) -> bytes:
        """As it travels."""
        return self.signed_bytes() + node_bytes(self.node) + self.signature

    def signed_bytes(self) -> bytes:
        """What the node signs."""
        head = bytes([_TAG]) + multihash(self.digest, old=self.old) + bytes([self.type])
        parts = [part.encode() for part in self.parts]
        body = b"".join(len(part).to_bytes(2, "little") + part for part in parts)
        return head + self.expires_at.to_bytes(4, "little") + bytes([len(parts)]) + body + b"\0"

    def holds(self) -> bool:
        """Whether the node signed it. It takes a third of a millisecond."""
        return verify_key(self.node, self.signed_bytes(), self.signature)


def make_location(
    digest: BlobHash,
    *,
    parts: tuple[str, ...],
    expires_at: int,
    node: NodeId,
    sign: Signer,
    type_: int = FILE,
    old: bool = True,
) -> StorageLocation:
    """A signed location; ``sign`` is Ed25519 of ``node``. Raises ``ProtocolError`` out of bounds."""
    parts_fit = len(parts) <= PARTS_MAX and all(len(part.encode()) <= PART_MAX for part in parts)
    if not parts_fit or not 0 <= expires_at <= _U32 or not 0 <= type_ <= _U8:
        msg = f"a location has at most {PARTS_MAX} parts of {PART_MAX} bytes and expires before 2106"
        raise ProtocolError(msg)
    bare = StorageLocation(
        digest=digest, type=type_, expires_at=expires_at, parts=parts, node=node, signature=b"", old=old
    )
    return replace(bare, signature=sign(bare.signed_bytes()))


def parse_location(raw: bytes) -> StorageLocation:
    """A location from its bytes; its signature is not checked. Raises ``ProtocolError``."""
    if len(raw) < _HEAD or raw[0] != _TAG or raw[_HEAD - 1] > PARTS_MAX:
        msg = f"not a storage location: 05, a hash, a type, an expiry and at most {PARTS_MAX} parts"
        raise ProtocolError(msg)
    at, parts = _HEAD, []
    for _ in range(raw[_HEAD - 1]):
        length = int.from_bytes(raw[at : at + 2], "little")
        if length > PART_MAX or at + 2 + length > len(raw):
            msg = f"a part of a storage location has at most {PART_MAX} bytes, all of them there"
            raise ProtocolError(msg)
        parts.append(_text(raw[at + 2 : at + 2 + length]))
        at += 2 + length
    end = at + 1 + _NODE_BYTES
    if len(raw) != end + _SIGNATURE_BYTES or raw[at]:
        msg = "a storage location ends with a zero byte, a node id of 33 bytes and a signature of 64"
        raise ProtocolError(msg)
    named = raw[1 : 1 + MULTIHASH_BYTES]
    return StorageLocation(
        digest=parse_multihash(named),
        type=raw[34],
        expires_at=int.from_bytes(raw[35:39], "little"),
        parts=tuple(parts),
        node=parse_node(raw[at + 1 : end]),
        signature=raw[end:],
        old=is_old_multihash(named),
    )


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        msg = "a part of a storage location is not UTF-8"
        raise ProtocolError(msg) from error
