"""The meter that both sides keep: what was billed in all and since the last receipt, and the receipts of it.

The host issues a link of the receipt chain, the client checks it against what it counted itself. It knows
nothing of credit, of text or of time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.inference.messages import Checkpoint, Receipt
from p2pnode.protocols.inference.receipts import (
    NO_FINGERPRINT,
    ReceiptChain,
    link_root,
    receipt_digest,
    token_hash,
)

_PLACES_MAX: Final = 64
"""How many of the last receipts are remembered with the root that they followed."""


class MisstatedError(ProtocolError):
    """A receipt does not hold. ``receipt`` is set if the host signed it all the same."""

    def __init__(self, message: str, receipt: Receipt | None) -> None:
        super().__init__(message)
        self.receipt = receipt


class Meter:
    """Cumulative counts over a session, and the output ids that no receipt covers yet (at most 32)."""

    def __init__(self, chain: ReceiptChain) -> None:
        self._chain = chain
        self._ids: list[int] = []
        self._request = b""
        self._previous: deque[tuple[int, bytes]] = deque(maxlen=_PLACES_MAX)
        self.tokens_in, self.tokens_out = chain.tokens_in, chain.tokens_out

    @property
    def unreceipted(self) -> int:
        """Output tokens since the last receipt."""
        return len(self._ids)

    @property
    def due(self) -> bool:
        """Whether anything was billed since the last receipt."""
        return (self.tokens_in, self.tokens_out) != (self._chain.tokens_in, self._chain.tokens_out)

    @property
    def seq(self) -> int:
        """The number of the last receipt; 0 before the first."""
        return self._chain.seq

    @property
    def root(self) -> bytes:
        """The last root of the receipt chain."""
        return self._chain.root

    def begin_turn(self, request: bytes) -> None:
        """The next receipt is a turn's first: it covers ``request``, the hash of the prompt."""
        self._request = request

    def bill(self, tokens_in: int) -> None:
        """Add ``tokens_in`` input tokens, which are charged."""
        self.tokens_in += tokens_in

    def waive(self) -> None:
        """Take back input tokens that no receipt covers: they are not charged after all."""
        self.tokens_in = self._chain.tokens_in

    def count(self, ids: Sequence[int]) -> None:
        """Add output tokens, in order."""
        self._ids.extend(ids)
        self.tokens_out += len(ids)

    def rebase(self, epoch: int, tokens_in: int, tokens_out: int) -> None:
        """Go on from the last receipt's root under another epoch, with these counts as paid for.

        What came after that receipt is forgotten: no receipt will ever cover it.
        """
        chain = self._chain
        chain.epoch, chain.tokens_in, chain.tokens_out = epoch, tokens_in, tokens_out
        self.tokens_in, self.tokens_out = tokens_in, tokens_out
        self._ids.clear()
        self._request = b""
        self._previous.clear()

    def issue(self, sign: Signer) -> Receipt:
        """Sign the next receipt."""
        previous = self.root
        tokens, root = self._advance(NO_FINGERPRINT)
        chain = self._chain
        checkpoint = Checkpoint(
            seq=chain.seq,
            tokens_in=chain.tokens_in,
            tokens_out=chain.tokens_out,
            token_hash=tokens,
            fingerprint_hash=NO_FINGERPRINT,
            root=root,
            signature=sign(chain.digest()),
        )
        return Receipt(epoch=chain.epoch, previous=previous, checkpoint=checkpoint)

    def check(self, claimed: Checkpoint, verify: Callable[[bytes, bytes], bool]) -> Receipt:
        """Take the host's receipt; ``verify(digest, signature)`` checks its signature.

        Raises ``MisstatedError`` for one that does not hold. Then the chain has moved on, and the session
        must end.
        """
        shown = self.signed(claimed, verify)
        if not self.due:
            msg = "a receipt for nothing new"
            raise MisstatedError(msg, shown)
        previous = self.root
        tokens, root = self._advance(claimed.fingerprint_hash)
        chain = self._chain
        said = (claimed.seq, claimed.tokens_in, claimed.tokens_out, claimed.token_hash, claimed.root)
        if said != (chain.seq, chain.tokens_in, chain.tokens_out, tokens, root):
            msg = "a receipt that does not match what was received"
            raise MisstatedError(msg, shown)
        if shown is None:
            msg = "a receipt with a wrong signature"
            raise MisstatedError(msg, None)
        self._previous.append((chain.seq, previous))
        return shown

    def signed(self, claimed: Checkpoint, verify: Callable[[bytes, bytes], bool]) -> Receipt | None:
        """The receipt if the host signed it in this epoch, whether it is true or not; otherwise None."""
        chain = self._chain
        for seq, previous in (*self._previous, (chain.seq + 1, chain.root)):
            if seq == claimed.seq and link_root(previous, claimed) == claimed.root:
                digest = receipt_digest(chain.session, chain.epoch, claimed.root)
                if verify(digest, claimed.signature):
                    return Receipt(epoch=chain.epoch, previous=previous, checkpoint=claimed)
        return None

    def _advance(self, fingerprint: bytes) -> tuple[bytes, bytes]:
        tokens = token_hash(self._ids, self._request)
        self._request = b""  # only the turn's first link covers it
        self._ids.clear()
        return tokens, self._chain.advance(self.tokens_in, self.tokens_out, tokens, fingerprint)
