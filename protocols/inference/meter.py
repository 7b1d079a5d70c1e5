"""The meter that both sides keep: what was billed in all and since the last receipt, and the receipts of it.

The host issues a link of the receipt chain, the client checks it against what it counted itself. Output is
counted by turn: a receipt has a leaf for each turn that moved. The meter knows nothing of credit or of time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.inference.messages import Checkpoint, EndReason, Receipt, Tokens, TurnEnd, Vector
from p2pnode.protocols.inference.receipts import (
    NO_FINGERPRINT,
    Leaf,
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


@dataclass(slots=True, kw_only=True)
class MeteredTurn:
    """A turn whose output is counted. ``request`` and ``prompt`` are the hashes that its leaves name."""

    number: int
    request: bytes = bytes(32)
    prompt: bytes = bytes(32)
    tokens_out: int = 0
    """Its output so far."""
    has_frames: bool = False
    """Whether anything of it was delivered, if only text or vectors."""
    ended: EndReason | None = None
    """How it ended, once a receipt says so."""


class Meter:
    """Cumulative counts over a session, and what turns did that no receipt covers yet (at most 32 ids)."""

    def __init__(self, chain: ReceiptChain) -> None:
        self._chain = chain
        self._leaves: dict[int, Leaf] = {}
        self._previous: deque[tuple[int, bytes]] = deque(maxlen=_PLACES_MAX)
        self.unreceipted = 0
        """Output tokens since the last receipt."""
        self.tokens_in, self.tokens_out = chain.tokens_in, chain.tokens_out

    @property
    def seq(self) -> int:
        """The number of the last receipt; 0 before the first."""
        return self._chain.seq

    @property
    def root(self) -> bytes:
        """The last root of the receipt chain."""
        return self._chain.root

    @property
    def receipted(self) -> tuple[int, int]:
        """Input and output tokens that the last receipt names."""
        return self._chain.tokens_in, self._chain.tokens_out

    @property
    def moved(self) -> Collection[int]:
        """The turns of which something was delivered since the last receipt."""
        return self._leaves.keys()

    def count(self, turn: MeteredTurn, frame: Tokens | Vector) -> None:
        """Add a frame of a turn. A vector is paid with the input: it is no output token."""
        self._leaf(turn).add(frame)
        count = 0 if isinstance(frame, Vector) else len(frame.ids)
        self.unreceipted += count
        self.tokens_out += count
        turn.tokens_out += count
        turn.has_frames = True

    def end(self, turn: MeteredTurn, reason: EndReason) -> None:
        """The next receipt says that a turn ended."""
        self._leaf(turn).ended = turn.ended = reason

    def _leaf(self, turn: MeteredTurn) -> Leaf:
        leaf = self._leaves.get(turn.number)
        if leaf is None:
            leaf = self._leaves[turn.number] = Leaf(
                turn=turn.number, first=turn.tokens_out, request=turn.request, prompt=turn.prompt
            )
        return leaf

    def rebase(self, epoch: int, tokens_in: int, tokens_out: int) -> None:
        """Go on from the last receipt's root under another epoch, with these counts as paid for.

        What came after that receipt is forgotten: no receipt will ever cover it.
        """
        chain = self._chain
        chain.epoch, chain.tokens_in, chain.tokens_out = epoch, tokens_in, tokens_out
        self.tokens_in, self.tokens_out = tokens_in, tokens_out
        self.unreceipted = 0
        self._leaves.clear()
        self._previous.clear()

    def issue(self, sign: Signer) -> Receipt:
        """Sign the next receipt."""
        previous = self.root
        ended = tuple(
            TurnEnd(turn=turn, reason=leaf.ended)
            for turn, leaf in sorted(self._leaves.items())
            if leaf.ended is not None
        )
        tokens, root = self._advance(self.tokens_in, NO_FINGERPRINT)
        chain = self._chain
        checkpoint = Checkpoint(
            seq=chain.seq,
            tokens_in=chain.tokens_in,
            tokens_out=chain.tokens_out,
            token_hash=tokens,
            fingerprint_hash=NO_FINGERPRINT,
            root=root,
            signature=sign(chain.digest()),
            ended=ended,
        )
        return Receipt(epoch=chain.epoch, previous=previous, checkpoint=checkpoint)

    def check(
        self,
        claimed: Checkpoint,
        turns: Callable[[int], MeteredTurn | None],
        verify: Callable[[bytes, bytes], bool],
    ) -> Receipt:
        """Take the host's receipt, whose ``tokens_in`` the caller has judged.

        ``turns`` gives a turn that is under way by its number, ``verify(digest, signature)`` checks a
        signature. Raises ``MisstatedError`` for a receipt that does not hold. Then the chain has moved on,
        and the session must end.
        """
        shown = self.signed(claimed, verify)
        for end in claimed.ended:
            turn = turns(end.turn)
            if turn is None or turn.ended is not None:
                msg = f"a receipt that ends turn {end.turn}, which is not under way"
                raise MisstatedError(msg, shown)
            self.end(turn, end.reason)
        if not self._leaves:
            msg = "a receipt for nothing new"
            raise MisstatedError(msg, shown)
        previous = self.root
        tokens, root = self._advance(claimed.tokens_in, claimed.fingerprint_hash)
        chain = self._chain
        said = (claimed.seq, claimed.tokens_out, claimed.token_hash, claimed.root)
        if said != (chain.seq, chain.tokens_out, tokens, root):
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

    def _advance(self, tokens_in: int, fingerprint: bytes) -> tuple[bytes, bytes]:
        tokens = token_hash([leaf.digest() for _, leaf in sorted(self._leaves.items())])
        self._leaves.clear()
        self.unreceipted = 0
        return tokens, self._chain.advance(tokens_in, self.tokens_out, tokens, fingerprint)
