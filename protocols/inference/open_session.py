"""What a session is to its host besides the stream it is on. A paid one outlives its streams.

Exactly one machine holds an open session, or none. A machine that finds another holder must not touch
it again. It knows nothing of prompts being read, of timers or of the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import ChannelReceiver, HostPayment
from p2pnode.protocols.inference.host_turn import HostTurn
from p2pnode.protocols.inference.messages import (
    Done,
    Open,
    PromptBody,
    Receipt,
    Refuse,
    Resume,
    SessionTerms,
    Voucher,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.replay import SendQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTerms:
    """What this host grants a session of one model. ``payment`` is there for a paid session."""

    n_ctx: int
    stall_s: float = 30.0
    idle_s: float = 900.0
    open_s: float = 10.0
    relay_s: float = 100.0
    payment: HostPayment | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class OpenSession:
    """A session that was accepted."""

    session: SessionId
    model: ModelId
    granted: HostTerms
    epoch: int
    nonce: bytes
    """The next resume signs it."""
    meter: Meter
    channel: ChannelReceiver
    queue: SendQueue = field(default_factory=SendQueue)
    turns: int = 0
    runs: int = 0
    """Engine requests of all its turns. Their numbers tell a late report of one from a report of the next."""
    turn: HostTurn | None = None
    holder: object | None = None
    """The machine whose stream it is on."""
    former_nonce: bytes | None = None
    """Good too until the client is heard on its new stream: the ``Accept`` that renewed it may be lost."""
    unheard: bool = False
    """Rebuilt from the journal, and the client not heard since: it may know neither nonce."""

    def interrupt(self, effects: Effects) -> None:
        """The stream of a paid session is gone: the turn under way ends as cancelled, for whoever resumes."""
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.interrupt(effects)
        elif self.channel.replay.answered < self.turns:  # its prompt never came whole
            self.cancel_unserved(self.turns, effects)
        self.channel.allow_advance()

    def cancel_unserved(self, turn: int, effects: Effects) -> None:
        """Answer a turn of which nothing was billed."""
        cost = self.channel.cost(self.meter)
        effects.send(Done(turn=turn, reason="cancelled", tokens_in=0, reused=0, tokens_out=0, cost=cost))

    def begin_turn(self, turn: int) -> None:
        """The first part of a prompt came."""
        self.turns = turn
        self.channel.begin_turn(self.meter)

    def start_turn(self, number: int, body: PromptBody, request: bytes, effects: Effects) -> None:
        """All of a prompt came; ``request`` is its hash."""
        self.meter.begin_turn(request)
        self.turn = HostTurn(
            number,
            body,
            meter=self.meter,
            channel=self.channel,
            queue=self.queue,
            next_run=self._next_run,
            stall_s=self.granted.stall_s,
            effects=effects,
        )
        self.turn.start()

    def _next_run(self) -> int:
        self.runs += 1
        return self.runs


@dataclass(slots=True, eq=False, kw_only=True)
class LapsedSession:
    """A session of an earlier start, as this host's journal has it. ``host_open.recover`` rebuilds it.

    Its epoch must be below that of this start: within one start, a session is rebuilt once.
    """

    session: SessionId
    terms: SessionTerms
    salt: bytes = field(repr=False)
    granted: HostTerms
    voucher: Voucher | None
    """The best there is."""
    issued: Callable[[int, int], Receipt | None]
    """The receipt that was written down for an epoch and a place."""
    rebuilt: OpenSession | None = None
    """What it became; it is used in its place from then on."""


Admit: TypeAlias = Callable[[Open], HostTerms | Refuse]
"""The role's decision on an ``Open``: what it grants, or why not. With terms: after ``check_open``."""
FindSession: TypeAlias = Callable[[Resume], OpenSession | LapsedSession | Refuse]
"""The role's answer to a ``Resume``: the session it keeps, or why there is none. It checks no proof."""
