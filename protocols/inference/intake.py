"""The prompt that is being read at the host: its parts in, a whole turn out.

A turn that is refused meanwhile (too large, cancelled, no prompt) has its answer at once; the rest of
its parts is read and dropped. It knows nothing of how a turn is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.messages import Error, Prompt, PromptBody, detail_of, prompt_bytes_max
from p2pnode.protocols.inference.prompts import PromptReader
from p2pnode.protocols.inference.session import OpenSession

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
