"""One turn of a paid session at the host: counted, quoted, paid for, and only then served.

::

    Count -> Counted -> Quote -> the input's voucher -> serving

Until the voucher is there the engine is not asked and nothing is billed: a turn that ends before says 0.
It knows nothing of how a prompt is read, nor of what a voucher must say.
"""

from __future__ import annotations

from p2pnode.errors import WireCode
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import PaidTill
from p2pnode.protocols.inference.commands import Count, Counted, CountFailed, TurnServed
from p2pnode.protocols.inference.host_turn import Report, Serving
from p2pnode.protocols.inference.messages import Error, PromptBody, Quote, detail_of, retry_of
from p2pnode.protocols.inference.session import OpenSession
from p2pnode.protocols.typed_data import amount_due


class PaidTurn:
    """Turn ``number``; the same to a machine as :class:`Serving`."""

    def __init__(
        self, number: int, body: PromptBody, *, session: OpenSession, till: PaidTill, effects: Effects
    ) -> None:
        self.number = number
        self._body, self._session, self._till, self._effects = body, session, till, effects
        self._quote: Quote | None = None
        self._serving: Serving | None = None
        self._answered = False

    @property
    def quoting(self) -> bool:
        """Is its input still to be paid?"""
        return self._serving is None

    @property
    def over(self) -> bool:
        """Was it answered?"""
        return self._answered or (self._serving is not None and self._serving.over)

    def start(self) -> None:
        """Have the input counted."""
        self._effects.emit(Count(self.number, self._body))

    def counted(self, news: Counted | CountFailed, now: float) -> None:
        """What the count gave. That of another turn comes too late and means nothing."""
        if news.turn != self.number or self._quote is not None or self.over:
            return
        if isinstance(news, CountFailed):
            self._fail(news.code, news.detail, news.retry_after_s)
            return
        reused = min(news.reused, news.tokens_in)
        billed = news.tokens_in - reused
        meter, terms = self._session.meter, self._till.terms
        # An input after which not one token could follow is no use to anybody.
        needed = amount_due(terms, meter.tokens_in + billed, meter.tokens_out + 1)
        if needed > terms.deposit:
            detail = (
                f"with this turn's {billed} input tokens and one of output the session costs {needed} USDC "
                f"units, the deposit is {terms.deposit}: open another session or shorten the conversation"
            )
            self._fail("payment_required", detail, None)
            return
        self._quote = Quote(turn=self.number, tokens_in=news.tokens_in, reused=reused)
        self._effects.send(self._quote)
        self._till.owe_input(meter, billed, self._session.outbox, self._effects)
        self.pump(now)

    def pump(self, now: float) -> None:
        """Something was paid, or has to be."""
        if self._serving is not None:
            self._serving.pump(now)
        elif self._quote is None:
            return
        elif not self._till.owed:
            self._serve(self._quote)
        elif not self._effects.armed("stall"):
            self._effects.set_timer("stall", now + self._session.granted.stall_s)

    def report(self, report: Report, now: float) -> None:
        """What the engine says."""
        if self._serving is not None:
            self._serving.report(report, now)

    def cancel(self) -> None:
        """The client wants no more."""
        if self._serving is not None:
            self._serving.cancel()
        else:
            self._cancel_unpaid()

    def interrupt(self, effects: Effects) -> None:
        """The stream is gone, the session isn't."""
        self._effects = effects
        if self._serving is not None:
            self._serving.interrupt(effects)
        else:
            self._cancel_unpaid()

    def abandon(self, reason: str) -> None:
        """The session ends under the turn."""
        if self._serving is not None:
            self._serving.abandon(reason)
        else:
            self._end_unpaid(reason)

    def _serve(self, quote: Quote) -> None:
        self._effects.cancel_timer("stall")
        self._session.meter.bill(quote.tokens_in - quote.reused)
        self._serving = Serving(
            self.number, self._body, session=self._session, effects=self._effects, quote=quote
        )
        self._serving.start()

    def _cancel_unpaid(self) -> None:
        self._end_unpaid("cancelled")
        self._session.cancel_unserved(self.number, self._effects)

    def _fail(self, code: WireCode, detail: str, retry_after_s: float | None) -> None:
        self._end_unpaid(code)
        retry_after_s = retry_of(retry_after_s)
        self._effects.send(
            Error(code=code, detail=detail_of(detail), retry_after_s=retry_after_s, turn=self.number)
        )

    def _end_unpaid(self, reason: str) -> None:
        self._answered = True
        self._effects.emit(TurnServed(0, 0, reason))
        self._effects.cancel_timer("stall")
        if self._quote is not None and self._quote.tokens_in > self._quote.reused:
            self._till.tab.waive_last()
