"""One host's part of an answer: a turn of a session, what it brought, and its item on the bill.

It takes what the session says; what follows from the part's end is not its business.
"""

from __future__ import annotations

from collections import deque

import trio

from p2pnode.client.bill import BillItem
from p2pnode.client.session import Session
from p2pnode.protocols.inference.commands import Ask, Delivered, Quoted, TurnDone
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY


class Part:
    """Asked of ``session`` when it is made."""

    def __init__(self, session: Session, ask: Ask) -> None:
        self.session, self.peer = session, session.host
        self._prefix = len(ask.body.prefix)
        self._cost_before = session.cost if session.kept else 0
        self._tokens_in = self._reused = 0
        self.tokens_out = 0
        self.started_at = trio.current_time()
        self.first_at: float | None = None
        self._arrivals: deque[tuple[float, int]] = deque()
        """When tokens were taken, and how many."""
        self.turn_over = False
        """Is the session free for another turn?"""
        self.restarted = False
        """Whether the host restarted in the middle of it."""
        self.messages_tokens: int | None = None
        """Prompt tokens without the prefix, once the host has counted them."""

    @property
    def progressed(self) -> bool:
        """Did any token come?"""
        return self.tokens_out > 0

    @property
    def fruitful(self) -> bool:
        """May the same host be asked again? A paid one bills its input anew: not for a few tokens."""
        return self.tokens_out >= (CHECKPOINT_EVERY if self.session.paid else 1)

    @property
    def owes_output(self) -> bool:
        """Did it take money for the input, and is there enough in the deposit for more output?"""
        return self.session.paid and self._tokens_in > self._reused and self.session.covers(0, 1)

    def quoted(self, quoted: Quoted) -> None:
        """The host counted the input."""
        self._tokens_in, self._reused = quoted.quote.tokens_in, quoted.quote.reused
        self.messages_tokens = self._tokens_in - self._prefix

    def delivered(self, delivered: Delivered) -> None:
        """Output came."""
        now = trio.current_time()
        if self.first_at is None:
            self.first_at = now
        self._arrivals.append((now, len(delivered.ids)))
        self.tokens_out += len(delivered.ids)

    def pace(self, now: float, window_s: float) -> float | None:
        """Tokens a second over the last ``window_s``; None before one has passed since the first token.

        None too where the reader is behind: the host has sent what was not taken yet.
        """
        if self.first_at is None or now - self.first_at < window_s or self.session.has_unread:
            return None
        while self._arrivals and self._arrivals[0][0] <= now - window_s:
            self._arrivals.popleft()
        return sum(count for _, count in self._arrivals) / window_s

    def done(self, over: TurnDone) -> None:
        """The host's own count, which was checked: input whose voucher was lost is not billed."""
        self._tokens_in, self._reused = over.done.tokens_in, over.done.reused
        self.turn_over = True

    def speed(self, now: float) -> float | None:
        """Tokens a second after the first; None for what came in one piece."""
        if self.first_at is None or self.tokens_out <= 1 or now <= self.first_at:
            return None
        return (self.tokens_out - 1) / (now - self.first_at)

    def item(self, reason: str, *, dropped: int = 0) -> BillItem | None:
        """Its line on the bill; None where no session came to be. ``dropped`` ids were not kept."""
        accept = self.session.accept
        if accept is None:
            return None
        return BillItem(
            peer=self.peer,
            session=accept.session,
            tokens_in=self._tokens_in,
            reused=self._reused,
            tokens_out=self.tokens_out - dropped,
            cost=self.session.cost - self._cost_before,
            reason=reason,
        )
