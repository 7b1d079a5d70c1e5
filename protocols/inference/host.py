"""The host's side of a session: admits, reads prompts, has them served. It touches no engine and no key.

States (``SPEC.md`` has the whole table)::

    opening --Open--> idle --Prompt parts--> reading --last--> serving --Done or Error--> idle
    any --violation, Close, Error, a timer, Closed--> over

``serving.py`` has what happens inside a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.events import Closed, Command, Effect, Event, Received, StreamRef, TimerFired
from p2pnode.protocols.inference.commands import (
    Drain,
    Finished,
    GenDone,
    GenFailed,
    GenProgress,
    GenStarted,
    GenTokens,
    HostCommand,
    Opened,
)
from p2pnode.protocols.inference.effects import Effects
from p2pnode.protocols.inference.messages import (
    Accept,
    Ack,
    Cancel,
    Close,
    Done,
    Error,
    Open,
    Ping,
    Pong,
    Prompt,
    Refuse,
    Resume,
    detail_of,
    prompt_bytes_max,
    retry_of,
)
from p2pnode.protocols.inference.metering import Meter
from p2pnode.protocols.inference.outbox import Outbox
from p2pnode.protocols.inference.prompts import PromptReader
from p2pnode.protocols.inference.receipts import ReceiptChain
from p2pnode.protocols.inference.serving import Serving

State: TypeAlias = Literal["opening", "idle", "reading", "serving", "over"]
PROMPT_RATE_MIN: Final = 16 * 1024
"""Bytes a second at which a prompt must arrive, on top of the stall time."""
_GOING_AWAY: Final = "this host is going away: try another"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTerms:
    """What this host grants a session of one model."""

    n_ctx: int
    stall_s: float = 30.0
    idle_s: float = 900.0
    open_s: float = 10.0


Admit: TypeAlias = Callable[[Open], HostTerms | Refuse]
"""The role's decision on an ``Open``: what it grants, or why not."""


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
        self._admit, self._sign, self._epoch, self._draw = admit, sign, epoch, draw
        self._terms = terms
        self._effects = Effects(peer, stream)
        self._outbox = Outbox()
        self._meter: Meter | None = None  # from Accept on
        self._reader: PromptReader | None = None
        self._serving: Serving | None = None
        self._turns = 0
        self._runs = 0
        self._draining = False
        self._over = False

    @property
    def state(self) -> State:
        """Where the session stands."""
        if self._over:
            return "over"
        if self._meter is None:
            return "opening"
        if self._serving is not None:
            return "serving"
        return "reading" if self._reader is not None else "idle"

    def start(self, now: float) -> Sequence[Effect]:
        """The stream is open; the client must speak first."""
        self._effects.set_timer("open", now + self._terms.open_s)
        return self._effects.take()

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the client's; commands are ``HostCommand``; timers are open, idle, prompt, stall."""
        if not self._over:
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
            self._after(now)
        return self._effects.take()

    # ---- what the client says

    def _received(self, message: object, now: float) -> None:
        state = self.state
        match message:
            case Ping(nonce=nonce):
                self._effects.send(Pong(nonce=nonce))
            case Pong():
                pass
            case Close():
                self._finish("closed by the client")
            case Error(code=code):
                self._finish(f"client error {code}")
            case Open() if state == "opening":
                self._open(message, now)
            case Resume() if state == "opening":
                self._refuse(Refuse(code="bad_request", detail="no such session here: open a new one"))
            case Prompt() if state in ("idle", "reading"):
                self._prompt(message, now)
            case Ack(seq=seq) if state != "opening":
                self._credit(seq, now)
            case Cancel(turn=turn) if state != "opening":
                self._cancel(turn)
            case _:
                self._violation(f"{type(message).__name__} is out of place while {state}")

    def _open(self, message: Open, now: float) -> None:
        if message.terms is not None:
            # A paid session must fail loudly rather than run free.
            detail = "this host serves free sessions only: leave the terms out"
            self._refuse(Refuse(code="bad_request", detail=detail))
            return
        verdict = self._admit(message)
        if isinstance(verdict, Refuse):
            self._refuse(verdict)
            return
        self._terms = verdict
        session, nonce = SessionId(self._draw(32)), self._draw(32)
        self._meter = Meter(ReceiptChain.begin(session, message.model, message.salt, self._epoch))
        self._effects.send(Accept(session=session, nonce=nonce, epoch=self._epoch, n_ctx=verdict.n_ctx))
        self._effects.emit(Opened(session, message.model))
        self._effects.cancel_timer("open")
        self._idle(now)

    def _prompt(self, message: Prompt, now: float) -> None:
        if self._reader is None:
            if message.turn != self._turns + 1 or message.part != 0:
                self._violation(f"turn {self._turns + 1} starts with part 0")
                return
            self._begin(message, now)
        reader = self._reader
        if reader is None:
            return
        try:
            last = reader.add(message)
        except ProtocolError as error:
            self._violation(str(error))
            return
        if last:
            self._read(reader, now)

    def _begin(self, first: Prompt, now: float) -> None:
        self._turns = first.turn
        self._reader = reader = PromptReader(first.turn, first.total)
        bytes_max = prompt_bytes_max(self._terms.n_ctx)
        self._effects.cancel_timer("idle")
        # Set once: a client that trickles its prompt must not keep its place for ever.
        patience_s = self._terms.stall_s + min(first.total, bytes_max) / PROMPT_RATE_MIN
        self._effects.set_timer("prompt", now + patience_s)
        if first.total > bytes_max:
            detail = (
                f"a prompt of {first.total} bytes; a context of {self._terms.n_ctx} tokens "
                f"takes {bytes_max}: shorten the conversation"
            )
            reader.discard()
            self._effects.send(Error(code="context_overflow", detail=detail, turn=first.turn))

    def _read(self, reader: PromptReader, now: float) -> None:
        self._reader = None
        self._effects.cancel_timer("prompt")
        if reader.discarding or self._meter is None:
            self._idle(now)
            return
        try:
            body, request = reader.body()
        except ProtocolError as error:
            self._effects.send(Error(code="bad_request", detail=detail_of(str(error)), turn=reader.turn))
            self._idle(now)
            return
        self._meter.begin_turn(request)
        self._serving = Serving(
            reader.turn,
            body,
            runs=self._runs,
            meter=self._meter,
            outbox=self._outbox,
            effects=self._effects,
            sign=self._sign,
            stall_s=self._terms.stall_s,
        )
        self._serving.start()

    def _credit(self, seq: int, now: float) -> None:
        try:
            news = self._outbox.acknowledge(seq)
        except ProtocolError as error:
            self._violation(str(error))
            return
        if news:
            self._effects.cancel_timer("stall")
            if self._serving is not None:
                self._serving.pump(now)

    def _cancel(self, turn: int) -> None:
        """Of the present turn; of any other it comes too late and means nothing."""
        if self._serving is not None and self._serving.number == turn:
            self._serving.cancel()
        elif self._reader is not None and self._reader.turn == turn and not self._reader.discarding:
            self._reader.discard()
            self._effects.send(Done(turn=turn, reason="cancelled", tokens_in=0, reused=0, tokens_out=0))

    # ---- what the role says

    def _command(self, command: HostCommand, now: float) -> None:
        match command:
            case Drain():
                self._draining = True
                if self._serving is None:
                    self._drained()
            case GenStarted() | GenProgress() | GenTokens() | GenDone() | GenFailed():
                if self._serving is not None:
                    self._serving.report(command, now)
            case _:
                assert_never(command)

    # ---- endings

    def _after(self, now: float) -> None:
        """When this event ended the turn, the session rests or, draining, ends too."""
        if self._serving is None or not self._serving.over:
            return
        self._runs, self._serving = self._serving.runs, None
        if self._over:
            return
        if self._draining:
            self._drained()
        else:
            self._idle(now)

    def _idle(self, now: float) -> None:
        self._effects.set_timer("idle", now + self._terms.idle_s)

    def _timer(self, key: str) -> None:
        details = {
            "open": "the first message did not come",
            "idle": "the session was idle for too long: open a new one",
            "prompt": "the rest of the prompt did not come",
            "stall": "tokens were not acknowledged",
        }
        if self._effects.fired(key):
            self._fail("stalled", details[key], reason=details[key])

    def _violation(self, detail: str) -> None:
        self._fail("bad_request", detail, reason=detail, fault=True)

    def _drained(self) -> None:
        self._fail("shutting_down", _GOING_AWAY, reason="drained")

    def _fail(self, code: WireCode, detail: str, *, reason: str, fault: bool = False) -> None:
        self._effects.send(Error(code=code, detail=detail_of(detail)))
        self._finish(reason, fault=fault)

    def _refuse(self, refusal: Refuse) -> None:
        detail, retry_after_s = detail_of(refusal.detail), retry_of(refusal.retry_after_s)
        self._effects.send(replace(refusal, detail=detail, retry_after_s=retry_after_s))
        self._finish(f"refused: {refusal.code}")

    def _finish(self, reason: str, *, fault: bool = False) -> None:
        self._over = True
        self._reader = None
        if self._serving is not None:
            self._serving.abandon(reason)
        self._effects.cancel_timers()
        self._effects.emit(Finished(reason, fault))
