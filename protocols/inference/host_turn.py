"""One turn being served: the engine's reports in, frames, receipts and the turn's answer out.

It keeps the engine no further ahead of the client's credit than a window: beyond it the engine
request is cancelled, the ids are kept, and the engine goes on from them at the token level when
credit comes. It never asks for a token that the session can't pay for. Every turn is answered exactly
once, by ``Done`` or ``Error``, unless the session ends under it. It knows nothing of how a turn came to
be, of what follows, or of how it is paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import PaidTill
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
    Prompt,
    PromptBody,
    Quote,
    detail_of,
    prompt_bytes_max,
    retry_of,
)
from p2pnode.protocols.inference.prompts import PromptReader
from p2pnode.protocols.inference.session import OpenSession
from p2pnode.protocols.typed_data import amount_due

Report: TypeAlias = GenStarted | GenProgress | GenTokens | GenDone | GenFailed


class Serving:
    """Serves turn ``number``. A ``quote`` that is given was sent and billed already."""

    def __init__(
        self,
        number: int,
        body: PromptBody,
        *,
        session: OpenSession,
        effects: Effects,
        quote: Quote | None = None,
    ) -> None:
        self.number = number
        self.over = False
        self._body, self._session, self._effects = body, session, effects
        self._meter, self._outbox, self._till = session.meter, session.outbox, session.till
        self._tokens_max = min(body.sampling.tokens_max, session.till.affordable(session.meter))
        self._made: list[int] = []  # every id the engine made and we kept
        self._sent = 0
        self._text_bytes = 0
        self._quote = quote
        self._ended: FinishReason | None = None
        self._running = False

    def start(self) -> None:
        """Ask for the first engine request."""
        self._generate()

    def report(self, report: Report, now: float) -> None:
        """What the engine says. What an earlier run still reports is ignored."""
        if not self._running or report.run != self._session.runs:
            return
        match report:
            case GenStarted(tokens_in=tokens_in, reused=reused):
                self._started(tokens_in, min(reused, tokens_in))
            case GenProgress(processed=processed, total=total):
                if not self._made:
                    self._effects.send(Progress(turn=self.number, processed=processed, total=total))
            case GenTokens(ids=ids, text=text):
                # An engine that overshoots must not make us break the protocol.
                ids = ids[: self._tokens_max - len(self._made)]
                self._made.extend(ids)
                self._outbox.add(ids, self._within_bounds(text))
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
        """Send what credit covers and receipt what is due; then see to the engine and the clock."""
        while (frame := self._outbox.take(CHECKPOINT_EVERY - self._meter.unreceipted)) is not None:
            self._effects.send(frame)
            self._meter.count(frame.ids)
            self._sent += len(frame.ids)
            if self._meter.unreceipted == CHECKPOINT_EVERY:
                self._receipt()
        self._steer()
        if self._ended is not None and not self._outbox:
            self._conclude(self._ended)
        elif self._starving and not self._effects.armed("stall"):
            # Set once, not pushed out by new output: only credit counts.
            self._effects.set_timer("stall", now + self._session.granted.stall_s)

    def cancel(self) -> None:
        """The client wants no more; what was delivered stays billed."""
        self._finish("cancelled")

    def abandon(self, reason: str) -> None:
        """The session ends under the turn: there is nobody to answer."""
        self._stop_engine()
        self._close(reason)

    def interrupt(self, effects: Effects) -> None:
        """The stream is gone, the session isn't: end here, for whoever resumes it."""
        self._effects = effects
        self._finish("cancelled")

    def _started(self, tokens_in: int, reused: int) -> None:
        if self._quote is None:
            self._quote = Quote(turn=self.number, tokens_in=tokens_in, reused=reused)
            self._meter.bill(tokens_in - reused)
            self._effects.send(self._quote)

    def _within_bounds(self, text: str) -> str:
        """Nor must one that babbles: no turn holds more text than its tokens can."""
        raw = text.encode(errors="replace")
        room = max(0, TEXT_SLACK_BYTES + TEXT_PER_TOKEN_MAX * len(self._made) - self._text_bytes)
        self._text_bytes += min(len(raw), room)
        return text if len(raw) <= room else raw[:room].decode(errors="ignore")

    # ---- the engine

    def _steer(self) -> None:
        if self._running:
            if self._outbox.waiting > WINDOW:
                self._stop_engine()
                if dropped := self._outbox.drop_untold():
                    del self._made[-dropped:]
        elif self._ended is None and self._outbox.waiting <= WINDOW // 2:
            self._generate()

    def _generate(self) -> None:
        tokens_max = self._tokens_max - len(self._made)
        if tokens_max <= 0:  # the pause came between the engine's last token and its Done
            self._ended = "length"
            return
        self._session.runs += 1
        self._running = True
        self._effects.emit(Generate(self._session.runs, self._body, tuple(self._made), tokens_max))

    def _stop_engine(self) -> None:
        if self._running:
            self._running = False
            self._effects.emit(CancelGenerate(self._session.runs))

    @property
    def _starving(self) -> bool:
        stopped = not self._running and self._ended is None
        return self._outbox.credit <= 0 and (self._outbox.waiting > 0 or stopped)

    # ---- answers

    def _conclude(self, reason: FinishReason) -> None:
        if reason == "length" and len(self._made) == self._tokens_max < self._body.sampling.tokens_max:
            detail = (
                f"the deposit is used up: the session cost {self._till.cost(self._meter)} USDC units; "
                "open another one to go on"
            )
            self._fail("payment_required", detail, None)
        else:
            self._finish(reason)

    def _finish(self, reason: FinishReason) -> None:
        self._stop_engine()
        self._receipt()
        quote = self._quote or Quote(turn=self.number, tokens_in=0)
        self._effects.send(
            Done(
                turn=self.number,
                reason=reason,
                tokens_in=quote.tokens_in,
                reused=quote.reused,
                tokens_out=self._sent,
                cost=self._till.cost(self._meter),
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
            self._till.issue(self._meter, self._effects)

    def _close(self, reason: str) -> None:
        self.over = True
        self._outbox.clear()
        self._effects.cancel_timer("stall")
        billed_in = self._quote.tokens_in - self._quote.reused if self._quote is not None else 0
        self._effects.emit(TurnServed(billed_in, self._sent, reason))


# One turn of a paid session at the host: counted, quoted, paid for, and only then served.
#
# ::
#
#     Count -> Counted -> Quote -> the input's voucher -> serving
#
# Until the voucher is there the engine is not asked and nothing is billed: a turn that ends before says 0.
# It knows nothing of how a prompt is read, nor of what a voucher must say.


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


# The prompt that is being read at the host: its parts in, a whole turn out.
#
# A turn that is refused meanwhile (too large, cancelled, no prompt) has its answer at once; the rest of
# its parts is read and dropped. It knows nothing of how a turn is served.


PROMPT_RATE_MIN: Final = 16 * 1024
"""Bytes a second at which a prompt must arrive, on top of the stall time."""


@dataclass(frozen=True, slots=True)
class WholePrompt:
    """All parts of one turn."""

    turn: int
    body: PromptBody
    request: bytes


class Intake:
    """At most one prompt at a time."""

    def __init__(self, session: OpenSession, effects: Effects) -> None:
        self._session, self._effects = session, effects
        self._reader: PromptReader | None = None

    @property
    def reading(self) -> bool:
        """Are parts to follow?"""
        return self._reader is not None

    def take(self, part: Prompt, now: float) -> WholePrompt | None:
        """Take a part. Raises ``ProtocolError`` when it isn't the one that follows."""
        reader = self._reader or self._begin(part, now)
        if not reader.add(part):
            return None
        self._reader = None
        self._effects.cancel_timer("prompt")
        if reader.discarding:
            return None
        try:
            body, request = reader.body()
        except ProtocolError as error:
            self._effects.send(Error(code="bad_request", detail=detail_of(str(error)), turn=reader.turn))
            return None
        return WholePrompt(reader.turn, body, request)

    def cancel(self, turn: int) -> None:
        """Of the turn being read; of any other it means nothing."""
        if self._reader is not None and self._reader.turn == turn and not self._reader.discarding:
            self._reader.discard()
            self._session.cancel_unserved(turn, self._effects)

    def _begin(self, first: Prompt, now: float) -> PromptReader:
        session = self._session
        if first.turn != session.turns + 1 or first.part != 0:
            msg = f"turn {session.turns + 1} starts with part 0"
            raise ProtocolError(msg)
        session.begin_turn(first.turn)
        self._reader = reader = PromptReader(first.turn, first.total)
        bytes_max = prompt_bytes_max(session.granted.n_ctx)
        self._effects.cancel_timer("idle")
        # Set once: a client that trickles its prompt must not keep its place for ever.
        patience_s = session.granted.stall_s + min(first.total, bytes_max) / PROMPT_RATE_MIN
        self._effects.set_timer("prompt", now + patience_s)
        if first.total > bytes_max:
            detail = (
                f"a prompt of {first.total} bytes; a context of {session.granted.n_ctx} tokens "
                f"takes {bytes_max}: shorten the conversation"
            )
            reader.discard()
            self._effects.send(Error(code="context_overflow", detail=detail, turn=first.turn))
        return reader
