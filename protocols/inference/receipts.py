"""The receipt chain: what a host signs at each checkpoint, and how anyone checks it.

::

    root_0 = keccak(abi.encode(TAG, session, model, keccak(salt)))
    root_i = keccak(abi.encode(root_{i-1}, seq, tokens_in, tokens_out, token_hash, fingerprint_hash))
    token_hash = keccak([request hash, in a turn's first checkpoint] + ids as big-endian uint32)
    signed digest = keccak(abi.encode(RECEIPT_TAG, session, epoch, root_i))

A free session's receipts are signed by the host's peer key (Ed25519). Free of I/O and of keys.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.crypto import abi_encode, keccak256, recover_address
from p2pnode.protocols.inference.messages import Checkpoint, Receipt
from p2pnode.protocols.wire import encode

_SESSION_TAG: Final = keccak256(b"p2pnode/session/1")
_RECEIPT_TAG: Final = keccak256(b"p2pnode/receipt/1")
NO_FINGERPRINT: Final = bytes(32)


def request_hash(body: object) -> bytes:
    """Keccak-256 of the msgpack of a ``PromptBody``, as it travels."""
    return keccak256(body if isinstance(body, bytes) else encode(body))


def token_hash(ids: Sequence[int], request: bytes = b"") -> bytes:
    """Hash of the ids since the last checkpoint; ``request`` leads in a turn's first."""
    return keccak256(request + struct.pack(f">{len(ids)}I", *ids))


def receipt_digest(session: SessionId, epoch: int, root: bytes) -> bytes:
    """The 32 bytes that a receipt with this root signs."""
    return keccak256(abi_encode(_RECEIPT_TAG, session, epoch, root))


def receipt_holds(session: SessionId, receipt: Receipt, receipt_key: bytes) -> bool:
    """Whether a paid session's receipt has the root of its own fields, signed by ``receipt_key``."""
    if link_root(receipt.previous, receipt.checkpoint) != receipt.checkpoint.root:
        return False
    digest = receipt_digest(session, receipt.epoch, receipt.checkpoint.root)
    return recover_address(digest, receipt.checkpoint.signature) == receipt_key


def conflicting(one: Receipt, other: Receipt) -> bool:
    """Whether two receipts of one session have one place and two roots. An honest host signs one only."""
    places = [(each.epoch, each.checkpoint.seq) for each in (one, other)]
    return places[0] == places[1] and one.checkpoint.root != other.checkpoint.root


def link_root(previous: bytes, link: Checkpoint) -> bytes:
    """The root that follows from ``previous`` and the link's own fields."""
    counts = (link.seq, link.tokens_in, link.tokens_out)
    return keccak256(abi_encode(previous, *counts, link.token_hash, link.fingerprint_hash))


@dataclass(slots=True)
class ReceiptChain:
    """The chain that both sides keep, and whose roots must agree at every checkpoint. Mutable."""

    session: SessionId
    epoch: int
    root: bytes
    seq: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @classmethod
    def begin(cls, session: SessionId, model: ModelId, salt: bytes, epoch: int) -> ReceiptChain:
        """The chain of a new session."""
        return cls(session, epoch, keccak256(abi_encode(_SESSION_TAG, session, model, keccak256(salt))))

    def advance(self, tokens_in: int, tokens_out: int, tokens: bytes, fingerprint: bytes) -> bytes:
        """Add a link (cumulative counts) and return the new root."""
        self.seq += 1
        self.tokens_in, self.tokens_out = tokens_in, tokens_out
        self.root = keccak256(abi_encode(self.root, self.seq, tokens_in, tokens_out, tokens, fingerprint))
        return self.root

    def digest(self) -> bytes:
        """The 32 bytes a receipt signs."""
        return receipt_digest(self.session, self.epoch, self.root)
