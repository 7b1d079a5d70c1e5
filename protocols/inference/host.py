"""The host's side of a session: meters, credits, chains receipts. It never touches an engine or a key.

States (``SPEC.md`` draws them)::

    opening --Open--> idle --Prompt parts--> reading --last--> serving --Done--> idle
    any --violation, Close, stall, Closed--> over

Output passes through ``_pending``: ids the engine made and the client's credit does not cover yet.
At most one window waits there; beyond it the engine request is cancelled, the ids are kept, and
the engine goes on from them at the token level when credit comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    Received,
    Send,
    SetTimer,
    StreamRef,
    TimerFired,
)
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    Drain,
    Finished,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenStarted,
    GenTokens,
    HostCommand,
    Opened,
    TurnServed,
)
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    PROMPT_BYTES_PER_CTX,
    WINDOW,
    Accept,
    Ack,
    Cancel,
    Checkpoint,
    Close,
    Done,
    Error,
    FinishReason,
    Open,
    Ping,
    Pong,
    Progress,
    Prompt,
    PromptBody,
    Quote,
    Refuse,
    Resume,
    Tokens,
    Voucher,
)
from p2pnode.protocols.inference.receipts import NO_FINGERPRINT, ReceiptChain, request_hash, token_hash
from p2pnode.protocols.wire import decode_record

State: TypeAlias = Literal["opening", "idle", "reading", "serving", "over"]
PROMPT_SLACK_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTerms:
    """What this host grants a session of one model."""

    n_ctx: int
    stall_s: float = 30.0
    idle_s: float = 900.0
    open_s: float = 10.0


Admit: TypeAlias = Callable[[Open], HostTerms | Refuse]
"""The role's decision on an ``Open``: what it grants, or why not."""


@dataclass(slots=True)
class _Turn:
    """A turn being read or served."""

    number: int
    total: int
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    next_part: int = 0
    body: PromptBody | None = None
    request: bytes = b""
    made: list[int] = field(default_factory=list)  # every id the engine made and we kept
    sent: int = 0
    quoted: Quote | None = None
    ended: FinishReason | None = None


class HostSession:
    """One session with one client over one stream."""

    def __init__(
        self,
        *,
        peer: PeerId,
        stream: StreamRef,
        admit: Admit,
        sign: Signer,
        epoch: int,
        draw: Callable[[int], bytes],
        terms: HostTerms,
    ) -> None:
        self._peer, self._stream = peer, stream
        self._admit, self._sign, self._epoch, self._draw = admit, sign, epoch, draw
        self._terms = terms
        self._state: State = "opening"
        self._chain: ReceiptChain | None = None
        self._turn: _Turn | None = None
        self._turns = 0
        self._refused_turn = 0
        self._draining = False
        # output, cumulative over the session
        self._sent = 0
        self._acked = 0
        self._unreceipted: list[int] = []
        self._billed_in = 0
        self._pending: list[tuple[tuple[int, ...], str]] = []
        # the engine
        self._run = 0
        self._running = False
        self._effects: list[Effect] = []

    def start(self, now: float) -> Sequence[Effect]:
        """The stream is open; the client must speak first."""
        return [SetTimer("open", now + self._terms.open_s)]

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the client's; commands are ``HostCommand``; timers are open, idle, stall."""
        self._effects = []
        if self._state != "over":
            match event:
                case Received(message=message):
                    self._received(message, now)
                case Command(value=value):
                    self._command(value, now)
                case TimerFired(key=key):
                    self._timer(key)
                case Closed(code=code):
                    self._finish(code or "closed")
                case _:
                    assert_never(event)
        return self._effects

    # ---- what the client says

    def _received(self, message: object, now: float) -> None:
        match message:
            case Ping(nonce=nonce):
                self._send(Pong(nonce=nonce))
            case Pong():
                pass
            case Close():
                self._finish("closed by the client")
            case Error(code=code):
                self._finish(f"client error {code}")
            case Open() if self._state == "opening":
                self._open(message, now)
            case Resume() if self._state == "opening":
                self._refuse(Refuse(code="bad_request", detail="no such session here: open a new one"))
            case Prompt() if self._state in ("idle", "reading") or message.turn == self._refused_turn:
                self._prompt(message, now)
            case Ack(seq=seq) if self._state != "opening":
                self._credit(seq, now)
            case Voucher(tokens_out=tokens_out) if self._state != "opening":
                self._credit(tokens_out, now)
            case Cancel(turn=turn) if self._state != "opening":
                if self._state == "serving" and self._turn is not None and turn == self._turn.number:
                    self._pending.clear()
                    self._end_turn("cancelled", now)
            case _:
                self._violation(f"{type(message).__name__} is out of place while {self._state}")

    def _open(self, message: Open, now: float) -> None:
        verdict = (
            Refuse(code="shutting_down", detail="this host is going away: try another")
            if self._draining
            else self._admit(message)
        )
        if isinstance(verdict, Refuse):
            self._refuse(verdict)
            return
        self._terms = verdict
        session = SessionId(self._draw(32))
        self._chain = ReceiptChain.begin(session, message.model, message.salt, self._epoch)
        self._send(
            Accept(
                session=session, nonce=self._draw(32), epoch=self._epoch, n_ctx=verdict.n_ctx, window=WINDOW
            )
        )
        self._emit(Opened(session, message.model))
        self._effects.append(CancelTimer("open"))
        self._idle(now)

    def _prompt(self, message: Prompt, now: float) -> None:
        if message.turn == self._refused_turn:
            return  # the rest of a prompt that was refused at its first part
        if self._turn is None:
            if message.turn != self._turns + 1 or message.part != 0:
                self._violation(f"turn {self._turns + 1} starts with part 0")
                return
            self._turns = message.turn
            if (refusal := self._refusal(message.total)) is not None:
                self._refused_turn = 0 if message.last else message.turn
                self._send(refusal)
                return
            self._state = "reading"
            self._turn = _Turn(message.turn, message.total)
        turn = self._turn
        turn.size += len(message.body)
        if message.turn != turn.number or message.part != turn.next_part or turn.size > turn.total:
            self._violation("the parts of a prompt come in order and add up to its total")
            return
        turn.next_part += 1
        turn.parts.append(message.body)
        if message.last:
            self._read(turn, now)

    def _refusal(self, total: int) -> Error | None:
        if self._draining:
            return Error(
                code="shutting_down", detail="this host is going away: try another", turn=self._turns
            )
        bytes_max = PROMPT_BYTES_PER_CTX * self._terms.n_ctx + PROMPT_SLACK_BYTES
        if total > bytes_max:
            detail = (
                f"a prompt of {total} bytes; a context of {self._terms.n_ctx} tokens takes {bytes_max}: "
                "shorten the conversation"
            )
            return Error(code="context_overflow", detail=detail, turn=self._turns)
        return None

    def _read(self, turn: _Turn, now: float) -> None:
        raw = b"".join(turn.parts)
        turn.parts.clear()
        try:
            if turn.size != turn.total:
                msg = f"the prompt holds {turn.size} bytes and announced {turn.total}"
                raise ProtocolError(msg)
            turn.body = decode_record(PromptBody, raw)
        except ProtocolError as error:
            self._turn = None
            self._send(Error(code="bad_request", detail=str(error)[:500], turn=turn.number))
            self._idle(now)
            return
        turn.request = request_hash(raw)
        self._state = "serving"
        self._effects.append(CancelTimer("idle"))
        self._generate(turn, turn.body)

    def _credit(self, seq: int, now: float) -> None:
        if seq > self._sent:
            self._violation(f"acknowledged {seq} tokens of {self._sent} sent")
            return
        if seq > self._acked:
            self._acked = seq
            self._effects.append(CancelTimer("stall"))
            self._pump(now)

    # ---- what the role says

    def _command(self, command: HostCommand, now: float) -> None:
        match command:
            case Drain():
                self._draining = True
                if self._state in ("idle", "opening", "reading"):
                    self._send(Error(code="shutting_down", detail="this host is going away: try another"))
                    self._finish("drained")
            case GenStarted() | GenProgress() | GenTokens() | GenDone() | GenFailed():
                turn = self._turn
                if turn is not None and self._running and command.run == self._run:
                    self._generated(turn, command, now)
            case _:
                assert_never(command)

    def _generated(
        self, turn: _Turn, command: GenStarted | GenProgress | GenTokens | GenDone | GenFailed, now: float
    ) -> None:
        match command:
            case GenStarted(tokens_in=tokens_in, reused=reused):
                if turn.quoted is None:
                    turn.quoted = Quote(turn=turn.number, tokens_in=tokens_in, reused=reused)
                    self._billed_in += tokens_in - reused
                    self._send(turn.quoted)
            case GenProgress(processed=processed, total=total):
                if not turn.made:
                    self._send(Progress(turn=turn.number, processed=processed, total=total))
            case GenTokens(ids=ids, text=text):
                turn.made.extend(ids)
                self._pending.append((ids, text))
                self._pump(now)
            case GenDone(reason=reason):
                self._running = False
                turn.ended = reason
                self._pump(now)
            case GenFailed(code=code, detail=detail, retry_after_s=retry_after_s):
                self._running = False
                self._pending.clear()
                self._receipt(turn)
                self._send(
                    Error(code=code, detail=detail[:500], retry_after_s=retry_after_s, turn=turn.number)
                )
                self._emit(TurnServed(self._turn_in(turn), turn.sent, code))
                self._next(now)
            case _:
                assert_never(command)

    # ---- metering

    def _pump(self, now: float) -> None:
        """Send what credit covers, receipt what is due, and keep the engine no further ahead than a window."""
        turn = self._turn
        if turn is None or self._state != "serving":
            return
        while self._pending:
            ids, text = self._pending[0]
            room = min(self._acked + WINDOW - self._sent, CHECKPOINT_EVERY - len(self._unreceipted))
            if ids and not room:
                break
            if len(ids) > room:
                ids, rest = ids[:room], ids[room:]
                self._pending[0], text = (rest, text), ""
            else:
                del self._pending[0]
            self._send(Tokens(seq=self._sent, ids=ids, text=text))
            self._sent += len(ids)
            turn.sent += len(ids)
            self._unreceipted.extend(ids)
            if len(self._unreceipted) == CHECKPOINT_EVERY:
                self._receipt(turn)
        waiting = sum(len(ids) for ids, _ in self._pending)
        if not self._pending and turn.ended is not None:
            self._end_turn(turn.ended, now)
        elif waiting > WINDOW and self._running:
            self._pause(turn)
        elif waiting <= WINDOW // 2 and not self._running and turn.ended is None and turn.body is not None:
            self._generate(turn, turn.body)
        if waiting and self._sent - self._acked >= WINDOW and self._turn is turn:
            self._effects.append(SetTimer("stall", now + self._terms.stall_s))

    def _pause(self, turn: _Turn) -> None:
        self._running = False
        self._emit(CancelGenerate(self._run))
        # Ids whose text has not come yet can't be continued from: the engine would lose that text.
        while self._pending and not self._pending[-1][1]:
            ids, _ = self._pending.pop()
            del turn.made[len(turn.made) - len(ids) :]

    def _generate(self, turn: _Turn, body: PromptBody) -> None:
        tokens_max = body.sampling.tokens_max - len(turn.made)
        if tokens_max <= 0:
            turn.ended = "length"
            return
        self._run += 1
        self._running = True
        self._emit(Generate(self._run, body, tuple(turn.made), tokens_max))

    def _receipt(self, turn: _Turn) -> None:
        chain = self._chain
        if chain is None or (self._billed_in, self._sent) == (chain.tokens_in, chain.tokens_out):
            return
        tokens = token_hash(self._unreceipted, turn.request)
        turn.request = b""  # leads only the turn's first link
        root = chain.advance(self._billed_in, self._sent, tokens, NO_FINGERPRINT)
        self._unreceipted.clear()
        self._send(
            Checkpoint(
                seq=chain.seq,
                tokens_in=chain.tokens_in,
                tokens_out=chain.tokens_out,
                token_hash=tokens,
                fingerprint_hash=NO_FINGERPRINT,
                root=root,
                signature=self._sign(chain.digest()),
            )
        )

    def _end_turn(self, reason: FinishReason, now: float) -> None:
        turn = self._turn
        if turn is None:
            return
        if self._running:
            self._running = False
            self._emit(CancelGenerate(self._run))
        self._receipt(turn)
        quoted = turn.quoted or Quote(turn=turn.number, tokens_in=0)
        self._send(
            Done(
                turn=turn.number,
                reason=reason,
                tokens_in=quoted.tokens_in,
                reused=quoted.reused,
                tokens_out=turn.sent,
            )
        )
        self._emit(TurnServed(self._turn_in(turn), turn.sent, reason))
        self._next(now)

    @staticmethod
    def _turn_in(turn: _Turn) -> int:
        return turn.quoted.tokens_in - turn.quoted.reused if turn.quoted is not None else 0

    # ---- endings

    def _next(self, now: float) -> None:
        self._turn = None
        self._effects.append(CancelTimer("stall"))
        if self._draining:
            self._send(Error(code="shutting_down", detail="this host is going away: try another"))
            self._finish("drained")
        else:
            self._idle(now)

    def _idle(self, now: float) -> None:
        self._state = "idle"
        self._effects.append(SetTimer("idle", now + self._terms.idle_s))

    def _timer(self, key: str) -> None:
        details = {
            "open": "the first message did not come",
            "idle": "the session was idle for too long: open a new one",
            "stall": "tokens were not acknowledged",
        }
        self._fail("stalled", details.get(key, key), fault=False)

    def _violation(self, detail: str) -> None:
        self._fail("bad_request", detail, fault=True)

    def _fail(self, code: WireCode, detail: str, *, fault: bool) -> None:
        self._send(Error(code=code, detail=detail))
        self._finish(detail, fault=fault)

    def _refuse(self, refusal: Refuse) -> None:
        self._send(refusal)
        self._finish(f"refused: {refusal.code}")

    def _finish(self, reason: str, *, fault: bool = False) -> None:
        if self._running:
            self._running = False
            self._emit(CancelGenerate(self._run))
        self._state = "over"
        self._emit(Finished(reason, fault))

    def _send(self, message: object) -> None:
        self._effects.append(Send(self._peer, self._stream, message))

    def _emit(self, value: object) -> None:
        self._effects.append(Emit(value))
