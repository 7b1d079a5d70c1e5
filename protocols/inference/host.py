"""The host's side of a session: it admits, reads prompts and has them served. It touches no engine.

States (``SPEC.md`` has the whole table)::

    free   opening --Open--> idle
    paid   opening --Open--> relaying --Escrowed--> idle
           opening --Resume with proof--> idle
           opening --Resume--> opening --Resume with proof over the Challenge--> idle
    free   idle --Prompt parts--> reading --last--> serving --Done or Error--> idle
    paid   idle --Prompt parts--> reading --last--> quoting --the input's voucher--> serving --...--> idle
    any    --violation, Close, Error, a timer, Closed, another stream that proved itself--> over

What outlives the stream is in ``session.py``; ``host_open.py`` begins it, and ``host_turn.py`` serves a turn.
The role's ``admit`` runs ``channel.check_open``: it knows the wall clock and the payer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Event,
    HalfClosed,
    Received,
    StreamRef,
    TimerFired,
)
from p2pnode.protocols.inference.commands import (
    Counted,
    CountFailed,
    Drain,
    Escrowed,
    Finished,
    GenDone,
    GenFailed,
    GenProgress,
    GenStarted,
    GenTokens,
    HostCommand,
    NotEscrowed,
    Replaced,
)
from p2pnode.protocols.inference.host_open import Handshake
from p2pnode.protocols.inference.messages import (
    Ack,
    Cancel,
    Close,
    Error,
    Open,
    Ping,
    Pong,
    Prompt,
    Refuse,
    Resume,
    Voucher,
    detail_of,
    prompt_bytes_max,
    retry_of,
)
from p2pnode.protocols.inference.open_session import Admit, FindSession, HostTerms, OpenSession
from p2pnode.protocols.inference.prompts import PROMPT_RATE_MIN, PromptReader

State: TypeAlias = Literal["opening", "relaying", "idle", "reading", "quoting", "serving", "over"]
_GOING_AWAY: Final = "this host is going away: try another"
_HANDED_OVER: Final = "this session is settled with the voucher you brought: open a new one"
_STALLED: Final = {
    "open": "the first message did not come",
    "relay": "the chain did not take the deposit in time: try again later or use another host",
    "idle": "the session was idle for too long: open a new one",
    "prompt": "the rest of the prompt did not come",
    "stall": "what was sent was not acknowledged or paid",
}
_HALF_CLOSED: Final = "your half of this stream is closed"


class HostSession:
    """One session with one client over one stream. Without ``resume`` no session is ever resumed."""

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
        resume: FindSession | None = None,
    ) -> None:
        self._open_s = terms.open_s
        self._effects = effects = Effects(peer, stream)
        self._handshake = Handshake(
            peer=peer,
            admit=admit,
            find=resume,
            sign=sign,
            epoch=epoch,
            draw=draw,
            effects=effects,
            holder=self,
        )
        self._held: tuple[OpenSession, PromptAssembly] | None = None  # from Accept on
        self._draining = False
        self._half_closed = False
        """Whether the client says nothing more: then nothing is waited for that it would have to say."""
        self._over = False

    @property
    def session(self) -> OpenSession | None:
        """What outlives this stream, once the session is open; the role keeps it where it lingers."""
        return self._held[0] if self._held is not None else None

    @property
    def n_ctx(self) -> int:
        """Context of one request, once the session is open."""
        return self._held[0].granted.n_ctx if self._held is not None else 0

    @property
    def state(self) -> State:
        """Where the session stands."""
        if self._over:
            return "over"
        if self._held is None:
            return "relaying" if self._handshake.relaying else "opening"
        session, prompt = self._held
        match session.turn:
            case None:
                return "reading" if prompt.reading else "idle"
            case turn:
                return "quoting" if turn.quoting else "serving"

    def start(self, now: float) -> Sequence[Effect]:
        """The stream is open; the client must speak first."""
        self._effects.set_timer("open", now + self._open_s)
        return self._effects.take()

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the client's, commands ``HostCommand``, timers open, relay, idle, prompt, stall."""
        if self._over:
            return self._effects.take()
        if self._held is not None and self._held[0].holder is not self:
            self._finish("the session goes on on another stream", replaced=True)
            return self._effects.take()
        match event:
            case Received(message=message):
                self._received(message, now)
            case Command(value=value):
                self._command(value, now)
            case TimerFired(key=key):
                self._timer(key)
            case HalfClosed():
                self._half_close()
            case Closed(code=code):
                self._finish(code or "closed", lingers=True)
            case _:
                assert_never(event)
        self._after(now)
        return self._effects.take()

    # ---- what the client says

    def _received(self, message: object, now: float) -> None:
        if self._held is not None:
            self._held[0].former_nonce, self._held[0].unheard = None, False  # it has our Accept
        match message:
            case Ping(nonce=nonce):
                self._effects.send(Pong(nonce=nonce))
            case Pong():
                pass
            case Close():
                self._finish("closed by the client")
            case Error(code=code):
                self._finish(f"client error {code}")
            case _ if self._held is not None:
                self._in_session(*self._held, message, now)
            case Open() if not (self._handshake.relaying or self._handshake.challenged):
                self._began(self._handshake.request(message, now), now)
            case Resume() if not self._handshake.relaying:
                self._began(self._handshake.resume(message), now)
            case _:
                self._out_of_place(message)

    def _in_session(self, session: OpenSession, prompt: PromptAssembly, message: object, now: float) -> None:
        try:
            match message:
                case Prompt() if session.turn is None and self._draining:
                    self._drained()
                case Prompt() if session.turn is None:
                    if prompt.take(message, now):
                        self._rest(session, now)
                case Ack() | Voucher():
                    self._credit(session, message, now)
                case Cancel(turn=turn):
                    # Of the present turn; of any other it comes too late and means nothing.
                    if session.turn is None:
                        prompt.cancel(turn)
                    elif session.turn.number == turn:
                        session.turn.cancel()
                case _:
                    self._out_of_place(message)
        except ProtocolError as error:
            self._violation(str(error))

    def _credit(self, session: OpenSession, message: Ack | Voucher, now: float) -> None:
        if not session.channel.credit(message, session.queue, self._effects):
            return
        self._effects.cancel_timer("stall")
        if session.turn is not None:
            session.turn.pump(now)
        elif self._draining:
            self._rest(session, now)

    def _began(self, session: OpenSession | Refuse | None, now: float) -> None:
        if isinstance(session, Refuse):
            self._refuse(session)
        elif session is not None:
            self._held = session, PromptAssembly(session, self._effects)
            if self._handshake.handed_over:
                self._fail("shutting_down", _HANDED_OVER, reason="handed its last voucher")
            else:
                self._rest(session, now)

    # ---- what the role says

    def _command(self, command: HostCommand, now: float) -> None:
        turn = self._held[0].turn if self._held is not None else None
        match command:
            case Drain():
                self._draining = True
                if self._held is None or self._held[1].reading:
                    self._drained()
                elif turn is None:
                    self._rest(self._held[0], now)
            case Escrowed():
                self._began(self._handshake.landed(), now)
            case NotEscrowed(refusal=refusal):
                if self._held is not None and not self._held[0].channel.free:
                    self._fail(refusal.code, refusal.detail, reason="the deposit was lost")
                elif self._handshake.relaying:
                    self._refuse(refusal)
            case Counted() | CountFailed():
                if turn is not None:
                    turn.counted(command, now)
            case GenStarted() | GenProgress() | GenTokens() | GenDone() | GenFailed():
                if turn is not None:
                    turn.report(command, now)
            case Replaced():
                pass  # seen before: another machine holds the session
            case _:
                assert_never(command)

    # ---- endings

    def _half_close(self) -> None:
        """Go on with what needs no further message of the client, and end what does."""
        self._half_closed = True
        if self._held is None:
            if self._handshake.relaying:
                detail = f"{_HALF_CLOSED}, and a paid session needs vouchers"
                self._refuse(Refuse(code="stalled", detail=detail))
            else:
                self._finish("nothing was asked")
            return
        session, prompt = self._held
        if not session.channel.free:
            detail = f"{_HALF_CLOSED}, and a paid session needs vouchers: resume it on another one"
            self._fail("stalled", detail, reason="half-closed by the client", lingers=True)
        elif prompt.reading:
            detail = f"{_HALF_CLOSED}, and the rest of the prompt did not come"
            self._fail("stalled", detail, reason="half-closed in a prompt")

    def _after(self, now: float) -> None:
        """When this event ended the turn, the session rests or, draining, ends too."""
        if self._over or self._held is None:
            return
        session = self._held[0]
        if session.turn is not None and session.turn.over:
            session.turn = None
            self._rest(session, now)
        if not self._half_closed or self._over:
            return
        if session.turn is None:
            self._finish("closed by the client")
        elif self._effects.armed("stall"):
            detail = f"{_HALF_CLOSED}, and the rest needs an acknowledgement"
            self._fail("stalled", detail, reason="half-closed by the client")

    def _rest(self, session: OpenSession, now: float) -> None:
        if not self._draining:
            self._effects.set_timer("idle", now + session.granted.idle_s)
        elif not session.channel.owed:
            self._drained()
        elif not self._effects.armed("stall"):  # the last voucher is on its way
            self._effects.set_timer("stall", now + session.granted.stall_s)

    def _timer(self, key: str) -> None:
        if not self._effects.fired(key):
            return
        detail = _STALLED[key]
        if key == "relay":
            self._refuse(Refuse(code="stalled", detail=detail))
        else:
            self._fail("stalled", detail, reason=detail, lingers=True)

    def _out_of_place(self, message: object) -> None:
        self._violation(f"{type(message).__name__} is out of place while {self.state}")

    def _violation(self, detail: str) -> None:
        self._fail("bad_request", detail, reason=detail, fault=True)

    def _drained(self) -> None:
        self._fail("shutting_down", _GOING_AWAY, reason="drained")

    def _fail(
        self, code: WireCode, detail: str, *, reason: str, fault: bool = False, lingers: bool = False
    ) -> None:
        self._effects.send(Error(code=code, detail=detail_of(detail)))
        self._finish(reason, fault=fault, lingers=lingers)

    def _refuse(self, refusal: Refuse) -> None:
        detail, retry_after_s = detail_of(refusal.detail), retry_of(refusal.retry_after_s)
        self._effects.send(replace(refusal, detail=detail, retry_after_s=retry_after_s))
        self._finish(f"refused: {refusal.code}")

    def _finish(
        self, reason: str, *, fault: bool = False, lingers: bool = False, replaced: bool = False
    ) -> None:
        self._over = True
        session = self.session
        lingers = lingers and session is not None and not session.channel.free
        if session is not None and not replaced:
            if lingers:
                self._effects.muted = True
                session.interrupt(self._effects)
            elif session.turn is not None:
                session.turn.abandon(reason)
            session.turn = session.holder = None
        self._effects.cancel_timers()
        self._effects.emit(Finished(reason, fault, lingers, replaced))


class PromptAssembly:
    """Puts the parts of one prompt after another together, and starts a turn with each whole one.

    A turn that is refused meanwhile (too large, cancelled, no prompt) has its answer at once; the rest of
    its parts is read and dropped.
    """

    def __init__(self, session: OpenSession, effects: Effects) -> None:
        self._session, self._effects = session, effects
        self._reader: PromptReader | None = None

    @property
    def reading(self) -> bool:
        """Whether parts are to follow."""
        return self._reader is not None

    def take(self, part: Prompt, now: float) -> bool:
        """Take a part. True when it was the last one of a turn that is not served.

        Raises ``ProtocolError`` when it isn't the one that follows.
        """
        reader = self._reader or self._begin(part, now)
        if not reader.add(part):
            return False
        self._reader = None
        self._effects.cancel_timer("prompt")
        if reader.discarding:
            return True
        try:
            body, request = reader.body()
        except ProtocolError as error:
            self._effects.send(Error(code="bad_request", detail=detail_of(str(error)), turn=reader.turn))
            return True
        self._session.start_turn(reader.turn, body, request, self._effects)
        return False

    def cancel(self, turn: int) -> None:
        """Cancel the turn that is being read; any other number means nothing."""
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
