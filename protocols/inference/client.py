"""The client's side of a session: checks everything before it counts. It holds no key and no host list.

States::

    fresh --Start--> opening --Accept--> idle --Ask--> asking --Done or Error--> idle
    any --violation, Refuse, silence, Closed--> over

A host that sends more than was asked, out of order, or a receipt that doesn't match what arrived
has broken the protocol: the session ends with ``fault`` and the role remembers the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.errors import WireCode
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.crypto import verify_peer
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
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    PROMPT_BYTES_PER_CTX,
    PROMPT_PART_MAX,
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
    Prompt,
    Quote,
    Refuse,
    Tokens,
)
from p2pnode.protocols.inference.receipts import ReceiptChain, request_hash, token_hash
from p2pnode.protocols.wire import encode

State: TypeAlias = Literal["fresh", "opening", "idle", "asking", "over"]
PROMPT_SLACK_BYTES: Final = 4096


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
    request: bytes
    billed: int = 0
    tokens_in: int = 0
    reused: int = 0
    tokens_out: int = 0
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
        self._host, self._stream, self._model, self._salt = host, stream, model, salt
        self._times = times or ClientTimes()
        self._verify = verify
        self._state: State = "fresh"
        self._accept: Accept | None = None
        self._chain: ReceiptChain | None = None
        self._turn: _Turn | None = None
        self._turns = 0
        self._received_out = 0
        self._billed_in = 0
        self._unreceipted: list[int] = []
        self._pings = 0
        self._effects: list[Effect] = []

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the host's; commands are ``ClientCommand``; timers are open, silence, progress."""
        self._effects = []
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
        return self._effects

    # ---- what the role says

    def _command(self, command: ClientCommand, now: float) -> None:
        match command:
            case Start():
                self._state = "opening"
                self._send(Open(model=self._model, salt=self._salt))
                self._effects.append(SetTimer("open", now + self._times.open_s))
            case Ask():
                self._ask(command, now)
            case CancelTurn():
                if self._turn is not None and not self._turn.cancelled:
                    self._turn.cancelled = True
                    self._send(Cancel(turn=self._turn.number))
            case End():
                self._send(Close())
                self._state = "over"
                self._emit(Ended())
            case _:
                assert_never(command)

    def _ask(self, ask: Ask, now: float) -> None:
        if self._state != "idle" or self._accept is None:
            self._emit(TurnFailed("bad_request", f"the session can't take a turn while {self._state}"))
            return
        raw = encode(ask.body)
        bytes_max = PROMPT_BYTES_PER_CTX * self._accept.n_ctx + PROMPT_SLACK_BYTES
        if len(raw) > bytes_max:
            detail = (
                f"the conversation takes {len(raw)} bytes; this host's context of {self._accept.n_ctx} "
                f"tokens takes {bytes_max}: shorten it or choose a host with a larger context"
            )
            self._emit(TurnFailed("context_overflow", detail))
            return
        self._turns += 1
        self._turn = _Turn(self._turns, ask, request_hash(raw))
        self._state = "asking"
        for part, start in enumerate(range(0, len(raw), PROMPT_PART_MAX)):
            piece = raw[start : start + PROMPT_PART_MAX]
            self._send(
                Prompt(
                    turn=self._turns,
                    part=part,
                    last=start + len(piece) == len(raw),
                    total=len(raw),
                    body=piece,
                )
            )
        self._effects.append(SetTimer("progress", now + self._times.first_token_s))
        self._heard(now)

    # ---- what the host says

    def _received(self, message: object, now: float) -> None:
        self._heard(now)
        match message:
            case Ping(nonce=nonce):
                self._send(Pong(nonce=nonce))
            case Pong():
                pass
            case Accept() if self._state == "opening":
                self._accept = message
                self._chain = ReceiptChain.begin(message.session, self._model, self._salt, message.epoch)
                self._state = "idle"
                self._effects.append(CancelTimer("open"))
                self._emit(Accepted(message))
            case Refuse(code=code, detail=detail, retry_after_s=retry_after_s) if self._state == "opening":
                self._over(code, detail, retry_after_s)
            case Error(turn=None, code=code, detail=detail, retry_after_s=retry_after_s):
                self._over(code, detail, retry_after_s)
            case Error(code=code, detail=detail, retry_after_s=retry_after_s) if self._turn is not None:
                self._rest()
                self._emit(TurnFailed(code, detail, retry_after_s))
            case _ if self._turn is not None:
                self._turn_message(self._turn, message, now)
            case _:
                self._violation(f"{type(message).__name__} is out of place while {self._state}")

    def _turn_message(self, turn: _Turn, message: object, now: float) -> None:
        match message:
            case Quote() if not turn.quoted and message.turn == turn.number:
                self._quote(turn, message)
            case Progress() if message.turn == turn.number:
                self._effects.append(SetTimer("progress", now + self._times.first_token_s))
                self._emit(Progressed(message))
            case Tokens() if turn.quoted:
                self._tokens(turn, message, now)
            case Checkpoint():
                self._checkpoint(turn, message)
            case Done() if message.turn == turn.number:
                self._done(turn, message)
            case _:
                self._violation(f"{type(message).__name__} is out of place in turn {turn.number}")

    def _quote(self, turn: _Turn, quote: Quote) -> None:
        if quote.tokens_in > turn.ask.input_max or quote.reused > quote.tokens_in:
            self._violation(
                f"quoted {quote.tokens_in} input tokens; at most {turn.ask.input_max} are possible"
            )
            return
        turn.quoted = True
        turn.tokens_in, turn.reused = quote.tokens_in, quote.reused
        self._billed_in += quote.tokens_in - quote.reused
        self._emit(Quoted(quote))

    def _tokens(self, turn: _Turn, message: Tokens, now: float) -> None:
        if message.seq != self._received_out:
            self._violation(f"tokens from {message.seq} on; {self._received_out} were next")
            return
        turn.tokens_out += len(message.ids)
        self._unreceipted.extend(message.ids)
        if turn.tokens_out > turn.ask.body.sampling.tokens_max:
            self._violation("more tokens than were asked for")
            return
        if len(self._unreceipted) > CHECKPOINT_EVERY:
            self._violation(f"more than {CHECKPOINT_EVERY} tokens without a checkpoint")
            return
        self._received_out += len(message.ids)
        self._effects.append(SetTimer("progress", now + self._times.stall_s))
        self._emit(Delivered(message.seq, message.ids, message.text))

    def _checkpoint(self, turn: _Turn, message: Checkpoint) -> None:
        chain = self._chain
        if chain is None:
            return
        tokens = token_hash(self._unreceipted, turn.request)
        root = chain.advance(self._billed_in, self._received_out, tokens, message.fingerprint_hash)
        told = (message.seq, message.tokens_in, message.tokens_out, message.token_hash, message.root)
        if told != (chain.seq, chain.tokens_in, chain.tokens_out, tokens, root):
            self._violation("a receipt that does not match what was received")
            return
        if not self._verify(self._host, chain.digest(), message.signature):
            self._violation("a receipt with a wrong signature")
            return
        turn.request = b""
        self._unreceipted.clear()
        self._send(Ack(seq=self._received_out))
        self._emit(Receipted(message))

    def _done(self, turn: _Turn, message: Done) -> None:
        chain = self._chain
        counted = (turn.tokens_in, turn.reused, turn.tokens_out)
        receipted = chain is not None and (chain.tokens_in, chain.tokens_out) == (
            self._billed_in,
            self._received_out,
        )
        if (message.tokens_in, message.reused, message.tokens_out) != counted or not receipted:
            self._violation("a bill that does not match what was received")
            return
        self._rest()
        self._emit(TurnDone(message))

    # ---- time

    def _heard(self, now: float) -> None:
        self._pings = 0
        if self._state == "asking":
            self._effects.append(SetTimer("silence", now + self._times.stall_s / 3))

    def _timer(self, key: str, now: float) -> None:
        if key == "open":
            self._over("stalled", "the host did not answer")
        elif key == "progress":
            self._over("stalled", "the host stopped making progress")
        elif self._pings >= 2:  # noqa: PLR2004 - two unanswered pings are three thirds of the stall time
            self._over("stalled", "the host went silent")
        else:
            self._pings += 1
            self._send(Ping(nonce=self._pings))
            self._effects.append(SetTimer("silence", now + self._times.stall_s / 3))

    # ---- endings

    def _rest(self) -> None:
        self._turn = None
        self._state = "idle"
        self._effects += [CancelTimer("progress"), CancelTimer("silence")]

    def _violation(self, detail: str) -> None:
        self._send(Error(code="bad_request", detail=detail))
        self._over("bad_request", f"the host broke the protocol: {detail}", fault=True)

    def _over(
        self, code: WireCode, detail: str, retry_after_s: float | None = None, *, fault: bool = False
    ) -> None:
        self._state = "over"
        self._emit(SessionFailed(code, detail, retry_after_s, fault))

    def _send(self, message: object) -> None:
        self._effects.append(Send(self._host, self._stream, message))

    def _emit(self, value: object) -> None:
        self._effects.append(Emit(value))
