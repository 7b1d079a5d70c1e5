"""The host's tab: the exact vouchers it would take now, and the last one it took.

A voucher is right or it is a violation; there is no third case but one. A client that counted its input
itself pays together with the prompt, before it can know what the host's cache makes free: such an
*advance* is exact for another count, one per turn is let through, and it is used only if it turns out
to be the quote's. It knows nothing of streams, text or time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import recover_address
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from p2pnode.protocols.typed_data import Domain, amount_due, voucher_digest

_UNMATCHED: Final = "a voucher that is not for what was delivered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """One voucher as it must be. ``frames`` were sent before it could be signed."""

    seq: int
    tokens_in: int
    tokens_out: int
    amount: int
    root: bytes
    frames: int = 0

    def is_what(self, voucher: Voucher) -> bool:
        """Does it say exactly this?"""
        told = (voucher.seq, voucher.tokens_in, voucher.tokens_out, voucher.amount, voucher.root)
        return told == (self.seq, self.tokens_in, self.tokens_out, self.amount, self.root)


class Tab:
    """The vouchers of one session."""

    def __init__(self, market: Domain, session: SessionId, terms: SessionTerms) -> None:
        self._market, self._session, self._terms = market, session, terms
        self._due: deque[Due] = deque()
        self._start: Due | None = None  # where the present turn began
        self._advance_open = False
        self._advance: Voucher | None = None
        self.paid: Voucher | None = None
        """The last voucher taken: the best there is."""

    @property
    def owed(self) -> bool:
        """Is there anything the client has not signed for?"""
        return bool(self._due)

    def due(self, *, seq: int, tokens_in: int, tokens_out: int, root: bytes, frames: int = 0) -> Due:
        """These counts, priced."""
        amount = amount_due(self._terms, tokens_in, tokens_out)
        return Due(
            seq=seq, tokens_in=tokens_in, tokens_out=tokens_out, amount=amount, root=root, frames=frames
        )

    def begin_turn(self, start: Due) -> None:
        """A prompt comes; an advance on it would go on from ``start``."""
        self._start, self._advance = start, None
        self.allow_advance()

    def allow_advance(self) -> None:
        """One voucher may be an advance, or what is left of one that a lost stream swallowed."""
        self._advance_open = self._start is not None

    def owe(self, due: Due) -> Voucher | None:
        """From now on this is due. Returns the advance, if it is exactly that: it still has to be taken."""
        self._due.append(due)
        advance, self._advance = self._advance, None
        return advance if advance is not None and due.is_what(advance) else None

    def waive_last(self) -> None:
        """The input that was quoted last is not billed after all."""
        self._advance = None
        if self._due:
            self._due.pop()

    def take(self, voucher: Voucher) -> Due | None:
        """What it pays; None when it changes nothing. Raises ``ProtocolError`` for any that isn't exact."""
        if voucher == self.paid:
            return None
        for place, due in enumerate(self._due):
            if due.is_what(voucher):
                self._check_signature(voucher)
                for _ in range(place + 1):
                    self._due.popleft()
                self.paid = voucher
                # It was signed after the quote, so an advance would have come before it.
                self._advance_open, self._advance = False, None
                return due
        self._hold(voucher)
        return None

    def why_not_final(self, voucher: Voucher) -> str:
        """What is wrong with a voucher for what a client received in all, or ""."""
        exact = self.due(
            seq=voucher.seq, tokens_in=voucher.tokens_in, tokens_out=voucher.tokens_out, root=voucher.root
        )
        if not exact.is_what(voucher):
            return f"a voucher of {voucher.amount} for counts that cost {exact.amount}"
        if voucher.amount > self._terms.deposit:
            return f"a voucher of {voucher.amount} above the deposit of {self._terms.deposit}"
        best = self.paid
        if best is not None and not (
            voucher.seq >= best.seq
            and voucher.tokens_in >= best.tokens_in
            and voucher.tokens_out >= best.tokens_out
        ):
            return "a voucher below one that this host has"
        try:
            self._check_signature(voucher)
        except ProtocolError as error:
            return str(error)
        return ""

    def _hold(self, voucher: Voucher) -> None:
        start = self._start
        if not self._advance_open or start is None or voucher.tokens_in <= start.tokens_in:
            raise ProtocolError(_UNMATCHED)
        other = self.due(
            seq=start.seq, tokens_in=voucher.tokens_in, tokens_out=start.tokens_out, root=start.root
        )
        if not other.is_what(voucher):
            raise ProtocolError(_UNMATCHED)
        self._check_signature(voucher)
        self._advance_open, self._advance = False, voucher

    def _check_signature(self, voucher: Voucher) -> None:
        digest = voucher_digest(self._market, self._session, voucher)
        if recover_address(digest, voucher.signature) != self._terms.voucher_key:
            msg = "a voucher that the voucher key did not sign"
            raise ProtocolError(msg)
