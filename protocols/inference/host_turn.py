"""One turn at the host: prompt parts and the engine's reports in; frames, receipts and the turn's answer out.

::

    reading --the last part--> quoting --Counted--> Quote --the input's voucher, if any--> serving --> over

Several turns of a session may be under way, each on its own. Nothing is generated and nothing billed before
the input is paid: a turn that ends before that says 0. The engine is kept no further ahead of the client's
credit than a window. Beyond it the engine request is cancelled, the ids are kept, and the engine goes on
from them at the token level when credit comes. Every turn is answered exactly once, by ``Done`` or
``Error``, unless the session ends under it.

It knows nothing of what other turns do, or of what a voucher must say.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final, Literal, Protocol, TypeAlias, assert_never

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import ChannelReceiver, HostTerms
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    Count,
    Counted,
    CountFailed,
    Embed,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenTokens,
    GenVector,
    TurnServed,
)
from p2pnode.protocols.inference.embeddings import VectorCheck
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    TEXT_PER_TOKEN_MAX,
    TEXT_SLACK_BYTES,
    WINDOW,
    Done,
    EndReason,
    Error,
    FinishReason,
    Progress,
    Prompt,
    PromptBody,
    PromptReceived,
    Quote,
    StartCause,
    Tokens,
    Vector,
    detail_of,
    retry_of,
)
from p2pnode.protocols.inference.meter import Meter, MeteredTurn
from p2pnode.protocols.inference.prompts import PROMPT_RATE_MIN, PromptReader
from p2pnode.protocols.inference.replay import Piece, ReadCredit, SendQueue, VectorQueue
from p2pnode.protocols.inference.turn_memory import bytes_beside_embedding, bytes_compiled, bytes_of_prompt

Report: TypeAlias = GenProgress | GenTokens | GenVector | GenDone | GenFailed
TurnState: TypeAlias = Literal["reading", "quoting", "serving"]
AHEAD_MAX: Final = WINDOW
"""Output tokens of a turn that wait for credit before its engine is paused, besides its last report."""

RETRY_S: Final = 2.0
"""After how long a client may ask again, where a turn found no place or no memory."""
NO_MEMORY: Final = "this host holds as many turns of others as it has memory for: ask again"


class TurnSession(Protocol):
    """What a turn needs of its session."""

    granted: HostTerms
    channel: ChannelReceiver
    effects: Effects
    turns: dict[int, HostTurn]

    @property
    def meter(self) -> Meter:
        """What was delivered and paid."""
        ...

    @property
    def reserved_out(self) -> int:
        """Output tokens of the turns that were quoted, for which the deposit must have room."""
        ...

    def next_run(self) -> int:
        """A number for an engine request."""
        ...

    def free_memory(self, turn: HostTurn) -> None:
        """A turn is over: give back what it held, but for what is kept of its output."""
        ...


class HostTurn:
    """Turn ``number`` of a session, whose prompt has ``total`` bytes.

    ``is_parallel``: others were under way when it began, so that it has a place of its payer or origin.
    """

    def __init__(
        self, number: int, total: int, session: TurnSession, now: float, *, is_parallel: bool
    ) -> None:
        self.number = number
        self.read = ReadCredit()
        self.queue: SendQueue | VectorQueue = SendQueue()
        self.last_sent = 0
        """Its place in the rotation of turns: the lowest is next."""
        self.read_by: float | None = None
        """When it ends because nobody takes its output; None while there is credit."""
        self._read_from = 0
        """How much of it could be sent when that was set."""
        # Set once: a client that trickles its prompt must not keep its place for ever.
        self.prompt_by = now + session.granted.stall_s + total / PROMPT_RATE_MIN
        self._session = session
        self._is_parallel = is_parallel
        self._reader: PromptReader | None = PromptReader(number, total)
        self._body: PromptBody | None = None
        self._quote: Quote | None = None
        self._compiled_bytes = 0
        """What it was counted for then, to its end."""
        self._metered = MeteredTurn(number=number)
        self._vectors: VectorCheck | None = None
        """What the engine made, where texts are embedded."""
        self._sent: deque[tuple[int, int]] = deque()
        """Of each vector that was sent: the bytes of all up to it, and its place in what the session sent."""
        self._serving = False
        self._tokens_max = 0
        self._made: list[int] = []  # every id the engine made and we kept
        self._text_bytes = 0
        self._ended: FinishReason | None = None
        self._stop = ""
        """The stop string that ended it."""
        self._run = 0
        self._running = False
        self._start: StartCause = ""
        self._started_at = 0
        """How many ids there were when the engine's present call began."""
        self._has_restarted = False

    @property
    def state(self) -> TurnState:
        """Where it stands."""
        if self._reader is not None:
            return "reading"
        return "serving" if self._serving else "quoting"

    @property
    def is_quoted(self) -> bool:
        """Whether its input was counted, and it is not cancelled."""
        return self._quote is not None

    @property
    def is_ready(self) -> bool:
        """Whether its client has room for what comes next."""
        return bool(self.queue) and self.read.left >= self.queue.credit_least

    @property
    def is_unread(self) -> bool:
        """Whether it waits for its client to take what was sent."""
        return self.read.left < self.queue.credit_least

    @property
    def embeds(self) -> bool:
        """Whether it is an embeddings turn: all of it is paid with its input."""
        return self._vectors is not None

    @property
    def needs_pay(self) -> bool:
        """Whether what comes next takes of the session's pay credit, and of the deposit."""
        return self.queue.needs_credit and not self.embeds

    @property
    def reserved_out(self) -> int:
        """Output tokens for which the deposit must have room while it is under way."""
        body = self._body
        return 0 if body is None else min(CHECKPOINT_EVERY, body.tokens_out_max - self._metered.tokens_out)

    # ---- the prompt

    def add(self, part: Prompt) -> None:
        """Take a part. Raises ``ProtocolError`` when it isn't the one that follows."""
        reader, session = self._reader, self._session
        if reader is None:
            msg = f"turn {self.number} had its last part"
            raise ProtocolError(msg)
        is_last = reader.add(part)
        session.effects.send(PromptReceived(turn=self.number, bytes=reader.size))
        if not is_last:
            return
        self._reader = None
        try:
            body, self._metered.request = reader.body()
        except ProtocolError as error:
            self.fail("bad_request", str(error))
            return
        if not self.hold(bytes_of_prompt(body, reader.total)):
            return
        self._body = body
        if body.embed:
            self._vectors = VectorCheck(len(body.embed))
            self.queue, self.read = VectorQueue(), ReadCredit(vectors=True)
        session.effects.emit(Count(self.number, body))

    # ---- memory

    @property
    def gives_way(self) -> int | None:
        """In which order turns give way to those of others, the lowest first; None: it doesn't.

        One whose input is paid never does, nor one that an engine works for. Of one that is quoted the
        voucher may be on its way.
        """
        if self._reader is not None:
            return 0
        if not self._serving:
            return 1 if self._quote is None else 3
        waits = not self._running and self._ended is None
        return 2 if waits and self._session.channel.free else None

    def hold(self, size: int) -> bool:
        """Whether there is memory for all that it holds, or will come to hold; otherwise it ends."""
        held = self._session.granted.memory.hold(self, size)
        if not held:
            self.fail("capacity", NO_MEMORY, RETRY_S)
        return held

    def grown(self, more: int) -> None:
        """What its prompt was compiled to holds ``more`` bytes than it was counted for.

        Where there is no room for them the turn ends here; its client may go on with another host.
        """
        if self._quote is not None:
            self.hold(self._compiled_bytes + more)

    def give_way(self) -> None:
        """Others have less than their share of this host's memory: end, where it still may.

        It was told so when it could. Since then its input may have been paid, or an engine may work for it.
        """
        memory = self._session.granted.memory
        if not memory.is_leaving(self):
            return
        if self.gives_way is None:
            memory.stay(self)
        else:
            self.fail("capacity", NO_MEMORY, RETRY_S)

    # ---- the input

    def counted(self, news: Counted | CountFailed) -> None:
        """Take what the count gave. A second one means nothing."""
        body, session = self._body, self._session
        if self._quote is not None or body is None:
            return
        if isinstance(news, CountFailed):
            self.fail(news.code, news.detail, news.retry_after_s)
            return
        reused = min(news.reused, news.tokens_in)
        billed = news.tokens_in - reused
        # An input after which not one receipt's output could follow is no use to anybody.
        needed = session.channel.needed(billed, session.reserved_out + self.reserved_out)
        if needed > session.channel.terms.deposit:
            detail = (
                f"with this turn's {billed} input tokens and some output of each turn the session costs "
                f"{needed} USDC units, the deposit is {session.channel.terms.deposit}: open another session "
                "or shorten the conversation"
            )
            self.fail("payment_required", detail)
            return
        tokens_out = min(body.tokens_out_max, max(0, session.granted.n_ctx - news.tokens_in))
        beside = news.held + bytes_beside_embedding(body.embed)
        self._compiled_bytes = bytes_compiled(news.tokens_in, tokens_out, beside)
        if not self.hold(self._compiled_bytes):
            return
        self._body = replace(body, messages=())  # what they say is compiled, and the role has that
        self._metered.prompt = news.prompt_hash
        self._quote = Quote(
            turn=self.number,
            tokens_in=news.tokens_in,
            prompt_hash=news.prompt_hash,
            reused=reused,
            format=news.format,
            reasons=news.reasons,
            thinking=news.thinking,
        )
        session.effects.send(self._quote)
        if session.channel.quote(self.number, billed, session.effects):
            self.serve()

    def serve(self) -> None:
        """The input is paid: ask the engine."""
        if self._quote is None or self._body is None or self._serving:
            return
        self._serving = True
        self._tokens_max = min(self._body.tokens_out_max, self._session.channel.affordable)
        self._generate()

    @property
    def _billed(self) -> int:
        return self._quote.tokens_in - self._quote.reused if self._quote is not None and self._serving else 0

    # ---- the engine

    def report(self, report: Report) -> None:
        """Take what the engine says. What an earlier run still reports is ignored."""
        if not self._running or report.run != self._run:
            return
        match report:
            case GenProgress(processed=processed, total=total):
                if not (self._made or self._metered.has_frames):
                    self._session.effects.send(
                        Progress(turn=self.number, processed=min(processed, total), total=total)
                    )
            case GenTokens(piece=piece):
                self._made_more(piece)
            case GenVector(data=data):
                self._made_vector(data)
            case GenDone(reason=reason, stop=stop):
                self._running = False
                self._engine_done(reason, stop)
            case GenFailed(lost=True) if not self._has_restarted:
                # Once in an answer: a host that died again and again could draw until it likes what comes.
                self._running, self._has_restarted = False, True
                self._generate("restart")
            case GenFailed(code=code, detail=detail, retry_after_s=retry_after_s):
                self._running = False
                self.fail(code, detail, retry_after_s)
            case _:
                assert_never(report)

    def _made_more(self, piece: Piece) -> None:
        # An engine that overshoots must not make us break the protocol.
        ids = piece.ids[: self._tokens_max - len(self._made)]
        self._made.extend(ids)
        text, name = self._within_bounds(piece.text), self._within_bounds(piece.name)
        start: StartCause = ""
        if ids:
            start, self._start = self._start, ""
        logprobs = piece.logprobs[: len(ids)]
        if not isinstance(self.queue, SendQueue):
            return
        # This runs for each token: mostly nothing is cut, and ``replace`` takes three times as long.
        is_cut = len(ids) < len(piece.ids) or len(logprobs) < len(piece.logprobs)
        if is_cut or start != piece.start or text != piece.text or name != piece.name:
            channel, call = piece.channel, piece.call
            piece = Piece(
                ids=ids, text=text, channel=channel, call=call, name=name, start=start, logprobs=logprobs
            )
        self.queue.add(piece)

    def _made_vector(self, data: bytes) -> None:
        vectors = self._vectors
        # An engine that overshoots must not make us break the protocol.
        if vectors is None or vectors.is_whole or not isinstance(self.queue, VectorQueue):
            return
        try:
            vectors.take(vectors.count, data)
        except ProtocolError as error:
            self.fail("internal", f"the engine failed: it made {error}")
            return
        self.queue.add(data)

    def _engine_done(self, reason: FinishReason, stop: str) -> None:
        vectors = self._vectors
        if vectors is None:
            self._ended = reason
            # One that was not asked for would break the protocol.
            if reason == "stop" and self._body is not None and stop in self._body.sampling.stop:
                self._stop = stop
        elif vectors.is_whole:
            self._ended = "stop"
        else:
            self.fail("internal", f"the engine made {vectors.count} of {vectors.inputs} vectors")

    def _generate(self, start: StartCause = "") -> None:
        if self._vectors is not None:
            self._embed(self._vectors, start)
            return
        tokens_max = self._tokens_max - len(self._made)
        if tokens_max <= 0:  # the pause came between the engine's last token and its Done
            self._ended = "length"
            return
        if self._body is None:
            return
        if self._start == "restart":  # nothing came of that call: its cause stands for this one
            start = "restart"
        self._start, self._started_at = start, len(self._made)
        self._run, self._running = self._session.next_run(), True
        order = Generate(
            self.number,
            self._run,
            self._body,
            tuple(self._made),
            tokens_max,
            answer_text_bytes=self._text_bytes,
            start=start,
        )
        self._session.effects.emit(order)

    def _embed(self, vectors: VectorCheck, start: StartCause) -> None:
        if vectors.is_whole:  # the pause came between the engine's last vector and its Done
            self._ended = "stop"
        elif self._body is not None:
            # Nothing is drawn, so another engine call needs no seed, and no leaf says that there was one.
            self._run, self._running = self._session.next_run(), True
            self._session.effects.emit(Embed(self.number, self._run, self._body, vectors.count, start))

    def steer(self) -> None:
        """Pause the engine, or let it go on, by how much waits for credit."""
        ahead = self.read.ahead if self.embeds else AHEAD_MAX
        if self._running:
            # What follows a pause is another start, and two of them are 32 ids apart at least.
            is_young = not self.embeds and 0 < len(self._made) - self._started_at < CHECKPOINT_EVERY
            if self.queue.waiting > ahead and not is_young:
                self._stop_engine()
        elif self._serving and self._ended is None and self.queue.waiting <= ahead // 2:
            self._generate("credit" if self._run else "")

    def _stop_engine(self) -> None:
        if self._running:
            self._running = False
            self._session.effects.emit(CancelGenerate(self._run))

    def _within_bounds(self, text: str) -> str:
        """``text``, cut where an engine makes more than a turn's tokens may hold: the client would object."""
        raw = text.encode(errors="replace")
        slack = TEXT_SLACK_BYTES if self._body is not None and self._body.prefix else 0
        room = max(0, slack + TEXT_PER_TOKEN_MAX * len(self._made) - self._text_bytes)
        self._text_bytes += min(len(raw), room)
        return text if len(raw) <= room else raw[:room].decode(errors="ignore")

    # ---- what is sent

    def next_frame(self, ids_max: int) -> Tokens | Vector:
        """The next frame, which is sent now; of ids it has ``ids_max`` at most."""
        frame: Tokens | Vector
        if isinstance(self.queue, VectorQueue):
            frame = self.queue.take(self.number)
            self.read.spend(len(frame.data))
        else:
            frame = self.queue.take(self.number, self._metered.tokens_out, ids_max)
            self.read.spend(len(frame.ids))
        self._session.meter.count(self._metered, frame)
        return frame

    def sent(self, place: int) -> None:
        """Its last vector is the message number ``place`` of those that the session counts."""
        self._sent.append((self.read.sent, place))

    def received(self, upto: int) -> int:
        """How many of the session's messages its client has, by the read credit that it gives for vectors.

        It gives credit past what its application took, so all before that arrived.
        """
        place = 0
        while self._sent and self._sent[0][0] <= upto - self.read.ahead:
            _, place = self._sent.popleft()
        return place

    def watch_reading(self, now: float) -> None:
        """Note since when nobody takes its output, or less than a receipt's."""
        sent = self.read.sent
        if not self.is_unread:
            self.read_by = None
        elif self.read_by is None or sent >= self._read_from + self.read.step:
            self.read_by, self._read_from = now + self._session.granted.read_stall_s, sent

    # ---- answers

    def conclude(self) -> None:
        """Answer it when the engine is done and everything was sent."""
        reason, body = self._ended, self._body
        if reason is None or self.queue or body is None:
            return
        if reason == "length" and len(self._made) == self._tokens_max < body.sampling.tokens_max:
            self.lacks_deposit()
        else:
            self._finish(reason)

    def lacks_deposit(self) -> None:
        """The deposit is used up: nothing more can be sent."""
        cost = self._session.channel.cost
        detail = f"the deposit is used up: the session cost {cost} USDC units; open another one to go on"
        self.fail("payment_required", detail)

    def cancel(self) -> None:
        """The client wants no more; what was delivered stays billed, and unpaid input isn't."""
        self._session.channel.end_turn(self.number)
        self._finish("cancelled")

    def abandon(self, reason: str) -> None:
        """The session ends under the turn: there is nobody to answer."""
        self._stop_engine()
        self._close(reason)

    def fail(
        self, code: WireCode, detail: str, retry_after_s: float | None = None, *, as_: EndReason = "failed"
    ) -> None:
        """End it with an error of its own."""
        self._stop_engine()
        self._receipt(as_)
        self._session.effects.send(
            Error(
                code=code, detail=detail_of(detail), retry_after_s=retry_of(retry_after_s), turn=self.number
            )
        )
        self._close(code)

    def _finish(self, reason: FinishReason) -> None:
        self._stop_engine()
        self._receipt(reason)
        quote = self._quote if self._serving else None
        self._session.effects.send(
            Done(
                turn=self.number,
                reason=reason,
                tokens_in=quote.tokens_in if quote is not None else 0,
                reused=quote.reused if quote is not None else 0,
                tokens_out=self._metered.tokens_out,
                stop=self._stop if reason == "stop" else "",
            )
        )
        self._close(reason)

    def _receipt(self, reason: EndReason) -> None:
        """Say by a receipt how it ended, where anything of it was billed or delivered."""
        if self._billed or self._metered.has_frames:
            self._session.meter.end(self._metered, reason)
            self._session.channel.issue(self._session.effects)

    def _close(self, reason: str) -> None:
        self._session.free_memory(self)
        if self._is_parallel:
            self._session.granted.places.leave()
        if not self.is_quoted:  # no voucher can follow but an advance
            self._session.channel.end_turn(self.number)
        self._session.turns.pop(self.number, None)
        tokens_out = self._metered.tokens_out
        self._session.effects.emit(TurnServed(self.number, self._billed, tokens_out, reason))
