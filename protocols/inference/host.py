"""The host's side of a session on one stream: it admits, reads prompts and has them served.

States (``SPEC.md`` has the whole tables, those of a turn too)::

    free   opening --Open--> idle
    paid   opening --Open--> relaying --Escrowed--> idle
           opening --Resume with proof--> idle or busy
           opening --Resume--> opening --Resume with proof over the Challenge--> idle or busy
    idle   --a prompt's first part--> busy --the last turn's Done or Error--> idle
    any    --violation, Close, Error, a timer, Closed, another stream that proved itself--> over

What outlives the stream is in ``open_session.py``; ``host_open.py`` begins it, ``host_turn.py`` serves a
turn.
The role's ``admit`` runs ``open_rules.check_open``: it knows the wall clock and the payer.
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
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.commands import (
    Alive,
    AskAlive,
    Counted,
    CountFailed,
    Drain,
    Escrowed,
    Finished,
    GenDone,
    GenFailed,
    GenProgress,
    GenTokens,
    GenVector,
    GiveWay,
    Grown,
    HostCommand,
    InUse,
    Kept,
    Leaving,
    NotEscrowed,
    Replaced,
)
from p2pnode.protocols.inference.host_open import Handshake
from p2pnode.protocols.inference.messages import (
    Ack,
    Cancel,
    Close,
    Credit,
    Error,
    Leave,
    Left,
    Open,
    Ping,
    Pong,
    Prompt,
    Refuse,
    Resume,
    Voucher,
    detail_of,
    retry_of,
)
from p2pnode.protocols.inference.open_session import Admit, FindSession, OpenSession

State: TypeAlias = Literal["opening", "relaying", "idle", "busy", "over"]
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
        self._session: OpenSession | None = None  # from Accept on
        self._draining = False
        self._half_closed = False
        """Whether the client says nothing more: then nothing is waited for that it would have to say."""
        self._deadlines: dict[str, float] = {}
        """When the timers fire that follow the turns."""
        self._leaving = False
        """Whether the client leaves, and the role writes that down."""
        self._asked_alive = False
        """Whether the next message is to be told: somebody else wants the session."""
        self._over = False

    @property
    def session(self) -> OpenSession | None:
        """What outlives this stream, once the session is open; the role keeps it where it lingers."""
        return self._session

    @property
    def state(self) -> State:
        """Where the session stands."""
        if self._over:
            return "over"
        if self._session is None:
            return "relaying" if self._handshake.relaying else "opening"
        return "busy" if self._session.turns else "idle"

    def start(self, now: float) -> Sequence[Effect]:
        """The stream is open; the client must speak first."""
        self._effects.set_timer("open", now + self._open_s)
        return self._effects.take()

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the client's, commands ``HostCommand``; the timers are those of ``SPEC.md``."""
        if self._over:
            return self._effects.take()
        if self._session is not None and self._session.holder is not self:
            self._finish("the session goes on on another stream", replaced=True)
            return self._effects.take()
        match event:
            case Received(message=message):
                self._received(message, now)
            case Command(value=value):
                self._command(value, now)
            case TimerFired(key=key):
                self._timer(key, now)
            case HalfClosed():
                self._half_close()
            case Closed(code=code):
                self._finish(code or "closed", lingers=True)
            case _:
                assert_never(event)
        if self._session is not None and not self._over:
            self._session.pump(now)
            self._go_on(self._session, now)
        return self._effects.take()

    # ---- what the client says

    def _received(self, message: object, now: float) -> None:
        session = self._session
        if session is not None:
            session.former_nonce, session.unheard = None, False  # it has our Accept
            session.heard_at = now
            if self._asked_alive:
                self._asked_alive = False
                self._effects.emit(Alive(session.session))
        match message:
            case Ping(nonce=nonce):
                self._effects.send(Pong(nonce=nonce))
            case Pong():
                pass
            case Close():
                self._finish("closed by the client")
            case Error(code=code):
                self._finish(f"client error {code}")
            case _ if session is not None:
                try:
                    self._in_session(session, message, now)
                except ProtocolError as error:
                    self._violation(str(error))
            case Open() if not (self._handshake.relaying or self._handshake.challenged):
                self._began(self._handshake.request(message, now))
            case Resume() if not (self._handshake.relaying or self._handshake.probing):
                self._began(self._handshake.resume(message, now))
            case _:
                self._out_of_place(message)

    def _in_session(self, session: OpenSession, message: object, now: float) -> None:
        match message:
            case Prompt():
                session.prompt(message, now, draining=self._draining)
            case Credit(turn=turn, upto=upto):
                session.grant(turn, upto)
            case Ack() | Voucher():
                if session.credit(message):
                    self._effects.cancel_timer("stall")
            case Cancel(turn=turn):
                session.cancel(turn)
            case Leave(until=until) if session.may_be_left and not self._leaving:
                self._leaving = True
                self._effects.emit(Leaving(until))
            case _:
                self._out_of_place(message)

    def _began(self, session: OpenSession | Refuse | None) -> None:
        if isinstance(session, Refuse):
            self._refuse(session)
        elif session is not None:
            self._session = session
            if self._handshake.handed_over:
                self._fail("shutting_down", _HANDED_OVER, reason="handed its last voucher")
            elif self._draining:
                session.fail_prompts("shutting_down", _GOING_AWAY)

    # ---- what the role says

    def _command(self, command: HostCommand, now: float) -> None:
        session = self._session
        match command:
            case Drain():
                self._draining = True
                if session is None:
                    self._drained()
                else:
                    session.fail_prompts("shutting_down", _GOING_AWAY)
            case Escrowed():
                self._began(self._handshake.landed(now))
            case NotEscrowed(refusal=refusal):
                if session is not None and not session.channel.free:
                    self._fail(refusal.code, refusal.detail, reason="the deposit was lost")
                elif self._handshake.relaying:
                    self._refuse(refusal)
            case (
                Counted() | CountFailed() | GenProgress() | GenTokens() | GenVector() | GenDone()
                | GenFailed() | Grown() | GiveWay()
            ):  # fmt: skip
                if session is not None:
                    session.report(command)
            case Kept(until=until) if session is not None and self._leaving:
                settle_above = session.granted.settle_above
                self._effects.send(
                    Left(until=until, generation=session.generation, settle_above=settle_above)
                )
                self._finish("left by the client", left=True)
            case AskAlive() if session is not None:
                self._asked_alive = True
                self._effects.send(Ping(nonce=0))
            case InUse():
                self._began(self._handshake.in_use())
            case Kept() | AskAlive():
                pass
            case Replaced():
                pass  # seen before: another machine holds the session
            case _:
                assert_never(command)

    # ---- what follows

    def _half_close(self) -> None:
        """Go on with what needs no further message of the client, and end what does."""
        self._half_closed = True
        session = self._session
        if session is None:
            if self._handshake.relaying:
                detail = f"{_HALF_CLOSED}, and a paid session needs vouchers"
                self._refuse(Refuse(code="stalled", detail=detail))
            else:
                self._finish("nothing was asked")
        elif not session.channel.free:
            detail = f"{_HALF_CLOSED}, and a paid session needs vouchers: resume it on another one"
            self._fail("stalled", detail, reason="half-closed by the client", lingers=True)
        else:
            session.fail_prompts("stalled", f"{_HALF_CLOSED}, and the rest of the prompt did not come")

    def _go_on(self, session: OpenSession, now: float) -> None:
        """End the session where nothing more may come; otherwise wait for what must."""
        starving = session.is_starving
        if not session.turns and self._draining:
            if not session.channel.owed:
                self._drained()
                return
            starving = True  # for the last voucher, which is on its way
        if self._half_closed:
            if not session.turns:
                self._finish("closed by the client")
                return
            if starving or session.is_unread:
                detail = f"{_HALF_CLOSED}, and the rest needs an acknowledgement"
                self._fail("stalled", detail, reason="half-closed by the client")
                return
        granted, effects = session.granted, self._effects
        if session.turns or self._draining:
            effects.cancel_timer("idle")
        elif not effects.armed("idle"):
            effects.set_timer("idle", now + granted.idle_s)
        if not starving:
            effects.cancel_timer("stall")
        elif not effects.armed("stall"):
            # Set once, not pushed out by new output: only credit counts.
            effects.set_timer("stall", now + granted.stall_s)
        self._follow("prompt", session.prompt_by)
        self._follow("read", session.read_by)

    def _follow(self, key: str, at: float | None) -> None:
        """Keep a timer at the first of several deadlines."""
        if at is None:
            self._effects.cancel_timer(key)
        elif not self._effects.armed(key) or self._deadlines.get(key) != at:
            self._deadlines[key] = at
            self._effects.set_timer(key, at)

    def _timer(self, key: str, now: float) -> None:
        if not self._effects.fired(key):
            return
        if key == "read":
            if self._session is not None:
                self._session.end_unread(max(now, self._deadlines[key]))
            return
        if key == "probe":
            self._began(self._handshake.unanswered(now))
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
        self,
        reason: str,
        *,
        fault: bool = False,
        lingers: bool = False,
        replaced: bool = False,
        left: bool = False,
    ) -> None:
        self._over = True
        session = self._session
        lingers = lingers and session is not None and (not session.channel.free or session.granted.keep_s > 0)
        if session is not None and not replaced:
            if lingers:
                session.detach()
            else:
                session.abandon(reason)
        self._effects.cancel_timers()
        self._effects.emit(Finished(reason, fault, lingers, replaced, left))
