"""The meter both sides keep: what was billed since when, and the receipts that must agree about it.

The host issues a link of the chain, the client checks it against what it counted itself. It knows
nothing of credit, of text or of time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.inference.messages import Checkpoint
from p2pnode.protocols.inference.receipts import NO_FINGERPRINT, ReceiptChain, token_hash


class Meter:
    """Cumulative counts over a session, and the output ids no receipt covers yet (at most 32)."""

    def __init__(self, chain: ReceiptChain) -> None:
        self._chain = chain
        self._ids: list[int] = []
        self._request = b""
        self.tokens_in = 0
        self.tokens_out = 0

    @property
    def unreceipted(self) -> int:
        """Output tokens since the last receipt."""
        return len(self._ids)

    @property
    def due(self) -> bool:
        """Was anything billed since the last receipt?"""
        return (self.tokens_in, self.tokens_out) != (self._chain.tokens_in, self._chain.tokens_out)

    @property
    def seq(self) -> int:
        """Of the last receipt; 0 before the first."""
        return self._chain.seq

    @property
    def root(self) -> bytes:
        """Of the receipt chain."""
        return self._chain.root

    def begin_turn(self, request: bytes) -> None:
        """The next receipt is a turn's first: its request hash goes in."""
        self._request = request

    def bill(self, tokens_in: int) -> None:
        """Count input tokens that are charged."""
        self.tokens_in += tokens_in

    def waive(self) -> None:
        """Input that no receipt covers is not charged after all."""
        self.tokens_in = self._chain.tokens_in

    def count(self, ids: Sequence[int]) -> None:
        """Count output tokens, in order."""
        self._ids.extend(ids)
        self.tokens_out += len(ids)

    def issue(self, sign: Signer) -> Checkpoint:
        """The next receipt."""
        tokens, root = self._advance(NO_FINGERPRINT)
        chain = self._chain
        return Checkpoint(
            seq=chain.seq,
            tokens_in=chain.tokens_in,
            tokens_out=chain.tokens_out,
            token_hash=tokens,
            fingerprint_hash=NO_FINGERPRINT,
            root=root,
            signature=sign(chain.digest()),
        )

    def check(self, receipt: Checkpoint, verify: Callable[[bytes, bytes], bool]) -> None:
        """Take the other side's receipt. ``verify(digest, signature)``. Raises ``ProtocolError``.

        After an error the chain has moved on and the session can't go on.
        """
        if not self.due:
            msg = "a receipt for nothing new"
            raise ProtocolError(msg)
        tokens, root = self._advance(receipt.fingerprint_hash)
        chain = self._chain
        told = (receipt.seq, receipt.tokens_in, receipt.tokens_out, receipt.token_hash, receipt.root)
        if told != (chain.seq, chain.tokens_in, chain.tokens_out, tokens, root):
            msg = "a receipt that does not match what was received"
            raise ProtocolError(msg)
        if not verify(chain.digest(), receipt.signature):
            msg = "a receipt with a wrong signature"
            raise ProtocolError(msg)

    def _advance(self, fingerprint: bytes) -> tuple[bytes, bytes]:
        tokens = token_hash(self._ids, self._request)
        self._request = b""  # leads only the turn's first link
        self._ids.clear()
        return tokens, self._chain.advance(self.tokens_in, self.tokens_out, tokens, fingerprint)
