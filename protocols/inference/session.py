"""What a session is to its host besides its stream. A paid one outlives that: see ``taking_over.py``.

Exactly one machine holds an open session, or none. A machine that finds another holder must not touch
it again. It knows nothing of prompts being read, of timers or of the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import HostPayment, PaidTill, Till
from p2pnode.protocols.inference.messages import (
    Done,
    Open,
    Receipt,
    Refuse,
    Resume,
    SessionTerms,
    Voucher,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.replay import Outbox

if TYPE_CHECKING:
    from p2pnode.protocols.inference.host_turn import PaidTurn, Serving


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTerms:
    """What this host grants a session of one model. ``payment`` stands in the terms of a paid one."""

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
    till: Till
    outbox: Outbox = field(default_factory=Outbox)
    turns: int = 0
    runs: int = 0
    turn: Serving | PaidTurn | None = None
    holder: object | None = None
    """The machine whose stream it is on."""
    former_nonce: bytes | None = None
    """Good too until the client is heard on its new stream: the ``Accept`` that renewed it may be lost."""
    unheard: bool = False
    """Rebuilt from the journal, and the client not heard since: it may know neither nonce."""

    def interrupt(self, effects: Effects) -> None:
        """The stream is gone: the turn under way ends as cancelled, for whoever resumes the session."""
        if not isinstance(self.till, PaidTill):
            return
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.interrupt(effects)
        elif self.till.sent.answered < self.turns:  # its prompt never came whole
            self.cancel_unserved(self.turns, effects)
        self.till.tab.allow_advance()

    def cancel_unserved(self, turn: int, effects: Effects) -> None:
        """Answer a turn of which nothing was billed."""
        cost = self.till.cost(self.meter)
        effects.send(Done(turn=turn, reason="cancelled", tokens_in=0, reused=0, tokens_out=0, cost=cost))

    def begin_turn(self, turn: int) -> None:
        """The first part of a prompt came."""
        self.turns = turn
        self.till.begin_turn(self.meter)


@dataclass(slots=True, eq=False, kw_only=True)
class LapsedSession:
    """A session of an earlier start, as this host's journal has it. See ``recovering.py``.

    Its epoch must be below that of this start: within one, a session is rebuilt once.
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
    """From then on it is that one."""


Admit: TypeAlias = Callable[[Open], HostTerms | Refuse]
"""The role's decision on an ``Open``: what it grants, or why not. With terms: after ``check_open``."""
FindSession: TypeAlias = Callable[[Resume], OpenSession | LapsedSession | Refuse]
"""The role's answer to a ``Resume``: the session it keeps, or why there is none. It checks no proof."""
