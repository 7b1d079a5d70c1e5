"""The receipt chain: what a host signs at each checkpoint, and how anyone checks it.

::

    root_0 = keccak(abi.encode(TAG, session, model, keccak(salt)))
    root_i = keccak(abi.encode(root_{i-1}, seq, tokens_in, tokens_out, token_hash, fingerprint_hash))
    token_hash = keccak(leaves, in order of turn)
    leaf = keccak(abi.encode(LEAF_TAG, turn, first output index in the turn, request hash, prompt hash,
                             ids hash, text hash, starts hash, end reason or 0))
    signed digest = keccak(abi.encode(RECEIPT_TAG, session, epoch, root_i))

A leaf covers what one turn did since the receipt before. It can be shown alone, the others by their hash.
A free session's receipts are signed by the host's peer key (Ed25519). Free of I/O and of keys.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.crypto import Recover, abi_encode, keccak256, recover_address
from p2pnode.protocols.inference.messages import (
    Checkpoint,
    EndReason,
    Receipt,
    StartCause,
    TextChannel,
    Tokens,
    Vector,
)
from p2pnode.protocols.wire import encode

_SESSION_TAG: Final = keccak256(b"p2pnode/session/1")
_RECEIPT_TAG: Final = keccak256(b"p2pnode/receipt/1")
_LEAF_TAG: Final = keccak256(b"p2pnode/leaf/1")
NO_FINGERPRINT: Final = bytes(32)
_NOTHING: Final = keccak256(b"")
CHANNEL_NUMBERS: Final[dict[TextChannel, int]] = {"content": 0, "reasoning": 1, "call": 2}
_VECTOR: Final = 3
"""Stands for a vector where a channel's number stands for a text."""
START_NUMBERS: Final[dict[StartCause, int]] = {"credit": 1, "restart": 2}
END_NUMBERS: Final[dict[EndReason, int]] = {
    "stop": 1,
    "length": 2,
    "cancelled": 3,
    "tool_calls": 4,
    "failed": 5,
    "stalled": 6,
}


def request_hash(body: object) -> bytes:
    """Keccak-256 of the msgpack of a ``PromptBody``, as it travels."""
    return keccak256(body if isinstance(body, bytes) else encode(body))


def ids_hash(ids: Sequence[int]) -> bytes:
    """Hash of token ids, each four bytes big-endian: a leaf's output, or a prompt as it was rendered."""
    return keccak256(struct.pack(f">{len(ids)}I", *ids))


def token_hash(leaves: Sequence[bytes]) -> bytes:
    """What a checkpoint says of the turns that moved: the hash of their leaves, in order of turn."""
    return keccak256(b"".join(leaves))


@dataclass(slots=True, kw_only=True)
class Leaf:
    """What one turn did since the last receipt. Mutable: both sides add each frame to it."""

    turn: int
    first: int
    """Output index in the turn from which it goes on."""
    request: bytes
    """Hash of the prompt as it travelled."""
    prompt: bytes
    """Hash of the prompt's ids."""
    ids: list[int] = field(default_factory=list)
    text: bytearray = field(default_factory=bytearray)
    """Each frame's text with its channel, call and name; each vector's hash with its index."""
    starts: bytearray = field(default_factory=bytearray)
    ended: EndReason | None = None

    def add(self, frame: Tokens | Vector) -> None:
        """Add a frame of the turn, in order."""
        if isinstance(frame, Vector):
            # By its hash: 256 vectors of 32 KiB would be kept until the receipt otherwise.
            self.text += struct.pack(">BI", _VECTOR, frame.index) + keccak256(frame.data)
            return
        self.ids.extend(frame.ids)
        if frame.text or frame.name:
            name, text = (each.encode(errors="replace") for each in (frame.name, frame.text))
            head = (CHANNEL_NUMBERS[frame.channel], frame.call, len(name))
            self.text += struct.pack(">BIH", *head) + name + struct.pack(">I", len(text)) + text
        if frame.start:
            self.starts += struct.pack(">IB", frame.index, START_NUMBERS[frame.start])

    def digest(self) -> bytes:
        """The leaf."""
        return keccak256(
            abi_encode(
                _LEAF_TAG,
                self.turn,
                self.first,
                self.request,
                self.prompt,
                ids_hash(self.ids),
                keccak256(bytes(self.text)),
                keccak256(bytes(self.starts)) if self.starts else _NOTHING,
                END_NUMBERS[self.ended] if self.ended is not None else 0,
            )
        )


def receipt_digest(session: SessionId, epoch: int, root: bytes) -> bytes:
    """The 32 bytes that a receipt with this root signs."""
    return keccak256(abi_encode(_RECEIPT_TAG, session, epoch, root))


def receipt_holds(
    session: SessionId, receipt: Receipt, receipt_key: bytes, recover: Recover = recover_address
) -> bool:
    """Whether a paid session's receipt has the root of its own fields, signed by ``receipt_key``."""
    if link_root(receipt.previous, receipt.checkpoint) != receipt.checkpoint.root:
        return False
    digest = receipt_digest(session, receipt.epoch, receipt.checkpoint.root)
    return recover(digest, receipt.checkpoint.signature) == receipt_key


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
