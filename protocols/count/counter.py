"""The host's side: it reads one prompt, has it counted and says how many tokens it takes, without an engine.

States::

    opening --Count--> reading --the last part--> counting --Counted or CountFailed--> over
    any --violation, a timer, Closed--> over

The client's side is one question and one answer, and needs no machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.count.messages import Count, Counted
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
from p2pnode.protocols.inference import commands
from p2pnode.protocols.inference.messages import Prompt, Refuse, detail_of, prompt_bytes_max, retry_of
from p2pnode.protocols.inference.prompts import PROMPT_RATE_MIN, PromptReader

State: TypeAlias = Literal["opening", "reading", "counting", "over"]
WAIT_S: Final = 10.0
"""How long the first message may take. The whole prompt has this and its bytes at ``PROMPT_RATE_MIN``."""
TURN: Final = 1


@dataclass(frozen=True, slots=True)
class Answered:
    """The stream is over. ``fault`` is True when the peer broke the protocol."""

    reason: str
    fault: bool = False


class CountHost:
    """One stream of one client. ``admit`` gives the context of a model, in tokens, or a refusal.

    It emits ``commands.Count`` once, and is told ``commands.Counted`` or ``commands.CountFailed``.
    """

    def __init__(self, *, peer: PeerId, stream: StreamRef, admit: Callable[[ModelId], int | Refuse]) -> None:
        self._effects = Effects(peer, stream)
        self._admit = admit
        self._n_ctx = 0
        self._reader: PromptReader | None = None
        self.model: ModelId | None = None
        self.state: State = "opening"

    @property
    def n_ctx(self) -> int:
        """Context of the model that was asked for, in tokens."""
        return self._n_ctx

    def start(self, now: float) -> Sequence[Effect]:
        """The stream is open; the client must speak first."""
        self._effects.set_timer("wait", now + WAIT_S)
        return self._effects.take()

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the client's, commands those of a count, the timer is wait."""
        if self.state != "over":
            match event:
                case Received(message=message):
                    try:
                        self._received(message, now)
                    except ProtocolError as error:
                        self._refuse("bad_request", str(error), fault=True)
                case Command(value=value):
                    self._counted(value)
                case TimerFired(key=key):
                    if self._effects.fired(key):
                        self._refuse("stalled", "the rest of the prompt did not come")
                case HalfClosed() if self.state == "counting":
                    pass  # it may still read
                case HalfClosed():
                    self._over("closed")
                case Closed(code=code):
                    self._over(code or "closed")
                case _:
                    assert_never(event)
        return self._effects.take()

    def _received(self, message: object, now: float) -> None:
        match message:
            case Count() if self.state == "opening":
                self._begin(message, now)
            case Prompt() if self.state == "reading" and self._reader is not None:
                if self._reader.add(message):
                    body, _ = self._reader.body()
                    self.state, self._reader = "counting", None
                    self._effects.cancel_timers()
                    self._effects.emit(commands.Count(TURN, body))
            case _:
                msg = f"{type(message).__name__} is out of place while {self.state}"
                raise ProtocolError(msg)

    def _begin(self, request: Count, now: float) -> None:
        admitted = self._admit(request.model)
        if isinstance(admitted, Refuse):
            self._refuse(admitted.code, admitted.detail, admitted.retry_after_s)
            return
        bytes_max = prompt_bytes_max(admitted)
        if request.total > bytes_max:
            detail = f"a prompt of {request.total} bytes; a context of {admitted} tokens takes {bytes_max}"
            self._refuse("context_overflow", detail)
            return
        self.model, self._n_ctx, self.state = request.model, admitted, "reading"
        self._reader = PromptReader(TURN, request.total)
        # Set once: who trickles a prompt must not keep a stream for ever.
        self._effects.set_timer("wait", now + WAIT_S + request.total / PROMPT_RATE_MIN)

    def _counted(self, news: object) -> None:
        match news:
            case commands.Counted(tokens_in=tokens_in) if self.state == "counting":
                self._effects.send(Counted(tokens_in=tokens_in, n_ctx=self._n_ctx))
                self._over("counted")
            case commands.CountFailed(code=code, detail=detail, retry_after_s=retry_after_s):
                self._refuse(code, detail, retry_after_s)
            case _:
                pass

    def _refuse(
        self, code: WireCode, detail: str, retry_after_s: float | None = None, *, fault: bool = False
    ) -> None:
        detail = detail_of(detail)
        self._effects.send(Refuse(code=code, detail=detail, retry_after_s=retry_of(retry_after_s)))
        self._over(detail, fault=fault)

    def _over(self, reason: str, *, fault: bool = False) -> None:
        self.state = "over"
        self._effects.cancel_timers()
        self._effects.emit(Answered(reason, fault))
