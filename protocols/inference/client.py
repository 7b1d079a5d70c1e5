"""The client's side of a session: checks everything before it counts. It holds no key and no host list.

States (``SPEC.md`` has the whole table)::

    fresh --Start--> opening --Accept--> idle --Ask--> asking --Done or Error--> idle
    any --violation, Refuse, silence, Closed--> over

A host that sends more than was asked, out of order, or a receipt that doesn't match what arrived
has broken the protocol: the session ends with ``fault`` and the role remembers the host. Each turn
ends in exactly one ``TurnDone``, ``TurnFailed`` or (with the session) ``SessionFailed`` or ``Ended``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.crypto import verify_peer
from p2pnode.protocols.events import Closed, Command, Effect, Event, Received, StreamRef, TimerFired
from p2pnode.protocols.inference.commands import (
    Accepted,
    Ask,
    CancelTurn,
    ClientCommand,
    Delivered,
    End,
    Ended,
    Progressed,
    Quoted,
    Receipted,
    SessionFailed,
    Start,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.effects import Effects
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    TEXT_PER_TOKEN_MAX,
    TEXT_SLACK_BYTES,
    Accept,
    Ack,
    Cancel,
    Checkpoint,
    Close,
    Done,
    Error,
    Open,
    Ping,
    Pong,
    Progress,
    PromptBody,
    Quote,
    Refuse,
    Tokens,
    detail_of,
    prompt_bytes_max,
)
from p2pnode.protocols.inference.metering import Meter
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.inference.receipts import ReceiptChain, request_hash
from p2pnode.protocols.wire import decode_record, encode

State: TypeAlias = Literal["fresh", "opening", "idle", "asking", "over"]
PREFILL_S_PER_TOKEN: Final = 0.1
"""Each prompt token a host reports as read buys it this much patience, and none buys it twice."""
_PINGS_UNANSWERED: Final = 2  # and the silence before the first: three thirds of the stall time


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTimes:
    """How long a client waits, in seconds."""

    open_s: float = 10.0
    first_token_s: float = 120.0
    stall_s: float = 30.0


@dataclass(slots=True)
class _Turn:
    number: int
    ask: Ask
    meter: Meter
    first_token_by: float
    tokens_in: int = 0
    reused: int = 0
    tokens_out: int = 0
    text_bytes: int = 0
    processed: int = -1
    quoted: bool = False
    cancelled: bool = False


class ClientSession:
    """One session with one host over one stream."""

    def __init__(
        self,
        *,
        host: PeerId,
        stream: StreamRef,
        model: ModelId,
        salt: bytes,
        times: ClientTimes | None = None,
        verify: Callable[[str, bytes, bytes], bool] = verify_peer,
    ) -> None:
        self._host, self._model, self._salt = host, model, salt
        self._times = times or ClientTimes()
        self._verify = verify
        self._effects = Effects(host, stream)
        self._state: State = "fresh"
        self._accept: Accept | None = None
        self._meter: Meter | None = None  # from Accept on
        self._turn: _Turn | None = None
        self._turns = 0
        self._pings = 0

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._state

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the host's; commands are ``ClientCommand``; timers are open, silence, progress."""
        if self._state != "over":
            match event:
                case Received(message=message):
                    self._received(message, now)
                case Command(value=value):
                    self._command(value, now)
                case TimerFired(key=key):
                    self._timer(key, now)
                case Closed(code=code):
                    self._over("internal", f"the connection to the host was lost ({code or 'closed'})")
                case _:
                    assert_never(event)
        return self._effects.take()

    # ---- what the role says

    def _command(self, command: ClientCommand, now: float) -> None:
        match command:
            case Start():
                if self._state == "fresh":
                    self._state = "opening"
                    self._effects.send(Open(model=self._model, salt=self._salt))
                    self._effects.set_timer("open", now + self._times.open_s)
            case Ask():
                self._ask(command, now)
            case CancelTurn():
                if self._turn is not None and not self._turn.cancelled:
                    self._turn.cancelled = True
                    self._effects.send(Cancel(turn=self._turn.number))
                    # From here on nothing buys the host more time.
                    self._effects.set_timer("progress", now + self._times.stall_s)
            case End():
                self._effects.send(Close())
                self._state = "over"
                self._effects.cancel_timers()
                self._effects.emit(Ended())
            case _:
                assert_never(command)

    def _ask(self, ask: Ask, now: float) -> None:
        if self._state != "idle" or self._accept is None or self._meter is None:
            self._effects.emit(
                TurnFailed("bad_request", f"the session can't take a turn while {self._state}")
            )
            return
        raw = encode(ask.body)
        bytes_max = prompt_bytes_max(self._accept.n_ctx)
        if len(raw) > bytes_max:
            detail = (
                f"the conversation takes {len(raw)} bytes; this host's context of {self._accept.n_ctx} "
                f"tokens takes {bytes_max}: shorten it or choose a host with a larger context"
            )
            self._effects.emit(TurnFailed("context_overflow", detail))
            return
        try:
            decode_record(PromptBody, raw)
        except ProtocolError as error:  # the host would say the same, one round trip later
            self._effects.emit(TurnFailed("bad_request", f"no host takes this prompt: {error}"))
            return
        self._turns += 1
        self._turn = _Turn(self._turns, ask, self._meter, now + self._times.first_token_s)
        self._meter.begin_turn(request_hash(raw))
        self._state = "asking"
        for part in prompt_parts(self._turns, raw):
            self._effects.send(part)
        self._effects.set_timer("progress", self._turn.first_token_by)
        self._heard(now)

    # ---- what the host says

    def _received(self, message: object, now: float) -> None:
        self._heard(now)
        turn = self._turn
        match message:
            case Ping(nonce=nonce):
                self._effects.send(Pong(nonce=nonce))
            case Pong():
                pass
            case Accept() if self._state == "opening":
                self._accepted(message)
            case Refuse(code=code, detail=detail, retry_after_s=retry_after_s) if self._state == "opening":
                self._over(code, detail, retry_after_s)
            case Error(turn=None, code=code, detail=detail, retry_after_s=retry_after_s):
                self._over(code, detail, retry_after_s)
            case _ if turn is not None:
                self._turn_message(turn, message, now)
            case _:
                self._violation(f"{type(message).__name__} is out of place while {self._state}")

    def _accepted(self, accept: Accept) -> None:
        self._accept = accept
        self._meter = Meter(ReceiptChain.begin(accept.session, self._model, self._salt, accept.epoch))
        self._state = "idle"
        self._effects.cancel_timer("open")
        self._effects.emit(Accepted(accept))

    def _turn_message(self, turn: _Turn, message: object, now: float) -> None:
        match message:
            case Quote() if not turn.quoted and message.turn == turn.number:
                self._quote(turn, message)
            case Progress() if message.turn == turn.number:
                self._progress(turn, message)
            case Tokens() if turn.quoted:
                self._tokens(turn, message, now)
            case Checkpoint():
                self._checkpoint(turn, message)
            case Done() if message.turn == turn.number:
                self._done(turn, message)
            case Error(code=code, detail=detail, retry_after_s=retry_after_s) if message.turn == turn.number:
                if turn.meter.due:
                    self._violation("a turn that failed without a receipt for what was delivered")
                    return
                self._rest()
                self._effects.emit(TurnFailed(code, detail, retry_after_s))
            case _:
                self._violation(f"{type(message).__name__} is out of place in turn {turn.number}")

    def _quote(self, turn: _Turn, quote: Quote) -> None:
        if quote.tokens_in > turn.ask.input_max:
            self._violation(
                f"quoted {quote.tokens_in} input tokens; at most {turn.ask.input_max} are possible"
            )
            return
        if quote.reused > quote.tokens_in:
            self._violation(f"quoted {quote.reused} reused of {quote.tokens_in} input tokens")
            return
        turn.quoted = True
        turn.tokens_in, turn.reused = quote.tokens_in, quote.reused
        turn.meter.bill(quote.tokens_in - quote.reused)
        self._effects.emit(Quoted(quote))

    def _progress(self, turn: _Turn, message: Progress) -> None:
        if message.processed > message.total:
            self._violation(f"processed {message.processed} of {message.total} prompt tokens")
            return
        if message.processed <= turn.processed:
            return  # says nothing new
        turn.processed = message.processed
        if not (turn.tokens_out or turn.cancelled):
            earned_s = min(message.processed, turn.ask.input_max) * PREFILL_S_PER_TOKEN
            self._effects.set_timer("progress", turn.first_token_by + earned_s)
        self._effects.emit(Progressed(message))

    def _tokens(self, turn: _Turn, message: Tokens, now: float) -> None:
        if (fault := _fault_of(turn, message)) is not None:
            self._violation(fault)
            return
        turn.tokens_out += len(message.ids)
        turn.text_bytes += len(message.text.encode())
        turn.meter.count(message.ids)
        if message.ids and not turn.cancelled:
            self._effects.set_timer("progress", now + self._times.stall_s)
        self._effects.emit(Delivered(message.seq, message.ids, message.text))

    def _checkpoint(self, turn: _Turn, message: Checkpoint) -> None:
        try:
            turn.meter.check(message, lambda digest, signature: self._verify(self._host, digest, signature))
        except ProtocolError as error:
            self._violation(str(error))
            return
        self._effects.send(Ack(seq=message.tokens_out))
        self._effects.emit(Receipted(message))

    def _done(self, turn: _Turn, message: Done) -> None:
        counted = (turn.tokens_in, turn.reused, turn.tokens_out)
        if (message.tokens_in, message.reused, message.tokens_out) != counted or turn.meter.due:
            self._violation("a bill that does not match what was received")
            return
        self._rest()
        self._effects.emit(TurnDone(message))

    # ---- time

    def _heard(self, now: float) -> None:
        self._pings = 0
        if self._state == "asking":
            self._effects.set_timer("silence", now + self._times.stall_s / 3)

    def _timer(self, key: str, now: float) -> None:
        if not self._effects.fired(key):
            return
        if key == "open":
            self._over("stalled", "the host did not answer")
        elif key == "progress":
            self._over("stalled", "the host stopped making progress")
        elif self._pings >= _PINGS_UNANSWERED:
            self._over("stalled", "the host went silent")
        else:
            self._pings += 1
            self._effects.send(Ping(nonce=self._pings))
            self._effects.set_timer("silence", now + self._times.stall_s / 3)

    # ---- endings

    def _rest(self) -> None:
        self._turn = None
        self._state = "idle"
        self._effects.cancel_timer("progress", "silence")

    def _violation(self, detail: str) -> None:
        self._effects.send(Error(code="bad_request", detail=detail_of(detail)))
        self._over("bad_request", f"the host broke the protocol: {detail}", fault=True)

    def _over(
        self, code: WireCode, detail: str, retry_after_s: float | None = None, *, fault: bool = False
    ) -> None:
        self._state = "over"
        self._turn = None
        self._effects.cancel_timers()
        self._effects.emit(SessionFailed(code, detail, retry_after_s, fault))


def _fault_of(turn: _Turn, message: Tokens) -> str | None:
    """What is wrong with these tokens, if anything."""
    count = turn.tokens_out + len(message.ids)
    text_bytes = turn.text_bytes + len(message.text.encode())
    if message.seq != turn.meter.tokens_out:
        return f"tokens from {message.seq} on; {turn.meter.tokens_out} were next"
    if not message.ids and not message.text:
        return "empty tokens"
    if count > turn.ask.body.sampling.tokens_max:
        return "more tokens than were asked for"
    if turn.meter.unreceipted + len(message.ids) > CHECKPOINT_EVERY:
        return f"more than {CHECKPOINT_EVERY} tokens without a checkpoint"
    if text_bytes > TEXT_SLACK_BYTES + TEXT_PER_TOKEN_MAX * count:
        return "more text than its tokens can hold"
    return None
