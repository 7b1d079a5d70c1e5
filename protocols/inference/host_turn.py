"""One turn at the host: the engine's reports in; frames, receipts and the turn's answer out.

::

    free   Generate -> GenStarted -> Quote -> Tokens, receipts -> Done or Error
    paid   Count -> Counted -> Quote -> the input's voucher -> Generate -> Tokens, receipts -> Done or Error

In a paid session the engine is not asked and nothing is billed until the input's voucher is there: a turn
that ends before that says 0. The engine is kept no further ahead of the client's credit than a window. Beyond
it the engine request is cancelled, the ids are kept, and the engine goes on from them at the token level when
credit comes. It is never asked for a token that the session can't pay for. Every turn is answered exactly
once, by ``Done`` or ``Error``, unless the session ends under it.

It knows nothing of how a turn came to be, of what follows, or of what a voucher must say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, assert_never

from p2pnode.errors import WireCode
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import ChannelReceiver
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    Count,
    Counted,
    CountFailed,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenStarted,
    GenTokens,
    TurnServed,
)
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    TEXT_PER_TOKEN_MAX,
    TEXT_SLACK_BYTES,
    WINDOW,
    Done,
    Error,
    FinishReason,
    Progress,
    PromptBody,
    Quote,
    detail_of,
    retry_of,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.replay import SendQueue
from p2pnode.protocols.typed_data import amount_due

Report: TypeAlias = GenStarted | GenProgress | GenTokens | GenDone | GenFailed


class HostTurn:
    """Turn ``number`` of a session, with that session's meter, channel and send queue.

    ``next_run`` numbers an engine request. ``stall_s`` is how long the turn waits for credit, or for the
    input's voucher.
    """

    def __init__(
        self,
        number: int,
        body: PromptBody,
        *,
        meter: Meter,
        channel: ChannelReceiver,
        queue: SendQueue,
        next_run: Callable[[], int],
        stall_s: float,
        effects: Effects,
    ) -> None:
        self.number = number
        self.quoting = not channel.free
        """Whether its input is still to be counted or paid."""
        self.over = False
        """Whether it was answered, or its session ended under it."""
        self._body, self._effects = body, effects
        self._meter, self._channel, self._queue = meter, channel, queue
        self._next_run, self._stall_s = next_run, stall_s
        self._quote: Quote | None = None
        self._billed = Quote(turn=number, tokens_in=0)
        self._tokens_max = 0
        self._made: list[int] = []  # every id the engine made and we kept
        self._sent = 0
        self._text_bytes = 0
        self._ended: FinishReason | None = None
        self._run = 0
        self._running = False

    def start(self) -> None:
        """Have the input counted where it is paid first; otherwise ask the engine at once."""
        if self.quoting:
            self._effects.emit(Count(self.number, self._body))
        else:
            self._serve()

    def counted(self, news: Counted | CountFailed, now: float) -> None:
        """Take what the count gave. That of another turn comes too late and means nothing."""
        if news.turn != self.number or not self.quoting or self._quote is not None or self.over:
            return
        if isinstance(news, CountFailed):
            self._fail(news.code, news.detail, news.retry_after_s)
            return
        reused = min(news.reused, news.tokens_in)
        billed = news.tokens_in - reused
        meter, terms = self._meter, self._channel.terms
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
        self._channel.owe_input(meter, billed, self._queue, self._effects)
        self.pump(now)

    def report(self, report: Report, now: float) -> None:
        """Take what the engine says. What an earlier run still reports is ignored."""
        if not self._running or report.run != self._run:
            return
        match report:
            case GenStarted(tokens_in=tokens_in, reused=reused):
                if self._quote is None:
                    self._quote = Quote(turn=self.number, tokens_in=tokens_in, reused=min(reused, tokens_in))
                    self._bill(self._quote)
                    self._effects.send(self._quote)
            case GenProgress(processed=processed, total=total):
                if not self._made:
                    self._effects.send(Progress(turn=self.number, processed=processed, total=total))
            case GenTokens(ids=ids, text=text):
                # An engine that overshoots must not make us break the protocol.
                ids = ids[: self._tokens_max - len(self._made)]
                self._made.extend(ids)
                self._queue.add(ids, self._within_bounds(text))
                self.pump(now)
            case GenDone(reason=reason):
                self._running = False
                self._ended = reason
                self.pump(now)
            case GenFailed(code=code, detail=detail, retry_after_s=retry_after_s):
                self._running = False
                self._fail(code, detail, retry_after_s)
            case _:
                assert_never(report)

    def pump(self, now: float) -> None:
        """Do what credit allows; called whenever something was paid, acknowledged or made."""
        if self.quoting:
            if self._quote is None:
                return
            if not self._channel.owed:
                self._effects.cancel_timer("stall")
                self.quoting = False
                self._bill(self._quote)
                self._serve()
            elif not self._effects.armed("stall"):
                self._effects.set_timer("stall", now + self._stall_s)
            return
        while (frame := self._queue.take(CHECKPOINT_EVERY - self._meter.unreceipted)) is not None:
            self._effects.send(frame)
            self._meter.count(frame.ids)
            self._sent += len(frame.ids)
            if self._meter.unreceipted == CHECKPOINT_EVERY:
                self._receipt()
        self._steer()
        if self._ended is not None and not self._queue:
            self._conclude(self._ended)
        elif self._starving and not self._effects.armed("stall"):
            # Set once, not pushed out by new output: only credit counts.
            self._effects.set_timer("stall", now + self._stall_s)

    def cancel(self) -> None:
        """The client wants no more; what was delivered stays billed, and unpaid input isn't."""
        self._finish("cancelled")

    def abandon(self, reason: str) -> None:
        """The session ends under the turn: there is nobody to answer."""
        self._stop_engine()
        self._close(reason)

    def interrupt(self, effects: Effects) -> None:
        """The stream is gone, the session isn't: end here, for whoever resumes it."""
        self._effects = effects
        self._finish("cancelled")

    def _bill(self, quote: Quote) -> None:
        self._billed = quote
        self._meter.bill(quote.tokens_in - quote.reused)

    # ---- the engine

    def _serve(self) -> None:
        self._tokens_max = min(self._body.sampling.tokens_max, self._channel.affordable(self._meter))
        self._generate()

    def _generate(self) -> None:
        tokens_max = self._tokens_max - len(self._made)
        if tokens_max <= 0:  # the pause came between the engine's last token and its Done
            self._ended = "length"
            return
        self._run = self._next_run()
        self._running = True
        self._effects.emit(Generate(self._run, self._body, tuple(self._made), tokens_max))

    def _steer(self) -> None:
        if self._running:
            if self._queue.waiting > WINDOW:
                self._stop_engine()
                if dropped := self._queue.drop_text_pending():
                    del self._made[-dropped:]
        elif self._ended is None and self._queue.waiting <= WINDOW // 2:
            self._generate()

    def _stop_engine(self) -> None:
        if self._running:
            self._running = False
            self._effects.emit(CancelGenerate(self._run))

    def _within_bounds(self, text: str) -> str:
        """``text``, cut where an engine makes more than a turn's tokens may hold: the client would object."""
        raw = text.encode(errors="replace")
        room = max(0, TEXT_SLACK_BYTES + TEXT_PER_TOKEN_MAX * len(self._made) - self._text_bytes)
        self._text_bytes += min(len(raw), room)
        return text if len(raw) <= room else raw[:room].decode(errors="ignore")

    @property
    def _starving(self) -> bool:
        stopped = not self._running and self._ended is None
        return self._queue.credit <= 0 and (self._queue.waiting > 0 or stopped)

    # ---- answers

    def _conclude(self, reason: FinishReason) -> None:
        if reason == "length" and len(self._made) == self._tokens_max < self._body.sampling.tokens_max:
            detail = (
                f"the deposit is used up: the session cost {self._channel.cost(self._meter)} USDC units; "
                "open another one to go on"
            )
            self._fail("payment_required", detail, None)
        else:
            self._finish(reason)

    def _finish(self, reason: FinishReason) -> None:
        self._stop_engine()
        self._receipt()
        self._effects.send(
            Done(
                turn=self.number,
                reason=reason,
                tokens_in=self._billed.tokens_in,
                reused=self._billed.reused,
                tokens_out=self._sent,
                cost=self._channel.cost(self._meter),
            )
        )
        self._close(reason)

    def _fail(self, code: WireCode, detail: str, retry_after_s: float | None) -> None:
        self._receipt()
        self._effects.send(
            Error(
                code=code, detail=detail_of(detail), retry_after_s=retry_of(retry_after_s), turn=self.number
            )
        )
        self._close(code)

    def _receipt(self) -> None:
        if self._meter.due:
            self._channel.issue(self._meter, self._effects)

    def _close(self, reason: str) -> None:
        self.over = True
        self._queue.clear()
        self._effects.cancel_timer("stall")
        if self.quoting and self._quote is not None and self._quote.tokens_in > self._quote.reused:
            self._channel.waive_last()
        self._effects.emit(TurnServed(self._billed.tokens_in - self._billed.reused, self._sent, reason))
