"""What the turns of a host hold of its memory, shared out by origin.

A turn is counted from its first part to its end: while its prompt comes, while it waits to be paid, while it
is served, and while it waits for credit. Output that is kept for a resume is counted until its client is
known to have it. What a turn can come to hold is counted before it does, so that a turn that is paid for
never lacks memory. Where there is none left, a turn that no engine has begun, or a free one that waits for
its client's credit, gives way to one of an origin that holds less.

The figures are estimates from above, of CPython's own objects. Pure: it knows neither streams nor engines.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Protocol

from p2pnode.protocols.inference.messages import VECTOR_CREDIT, VECTOR_MAX, PromptBody
from p2pnode.shares import Origin, SizedShares

MEMORY_BYTES: Final = 256 << 20
"""For the turns of all sessions of a host."""
SESSION_BYTES: Final = 32 << 20
"""For the turns of one session, or one turn of any size."""
LEAVING_BYTES: Final = MEMORY_BYTES // 4
"""Where turns that were told to give way, and are not over yet or could not any more, hold so much, no other
one is told."""
TURN_BYTES: Final = 64 << 10
"""Of each turn, whatever it is: what waits to be sent, with log-probabilities."""
_SOMEWHERE: Final = Origin("", "")
_TEXT_FACTOR: Final = 4
"""One letter beyond U+FFFF makes each letter of a string take four bytes."""
_OBJECT_BYTES: Final = 192
"""Of a part, a call or a tool, with its place and its strings' heads."""
_ID_BYTES: Final = 40
"""Of an id in a tuple: the number and its place."""
_MADE_BYTES: Final = 96
"""Of an output id: in the turn, in the prompt that goes on from it, and at the engine; with its text, which
the reader of a call holds once more."""


def bytes_announced(total: int) -> int:
    """What a prompt of ``total`` bytes holds while it comes."""
    return TURN_BYTES + _TEXT_FACTOR * total


def bytes_of_prompt(body: PromptBody, total: int) -> int:
    """What a prompt of ``total`` bytes holds once it is read."""
    objects = len(body.messages) + len(body.tools) + len(body.embed)
    objects += sum(len(message.content) + len(message.tool_calls) for message in body.messages)
    return bytes_announced(total) + _OBJECT_BYTES * objects + _ID_BYTES * len(body.prefix)


def bytes_compiled(tokens_in: int, tokens_out: int, beside: int) -> int:
    """What a turn holds to its end once its prompt is ids. ``tokens_out`` are the most that may follow,
    ``beside`` are the bytes that the role holds beside the ids."""
    return TURN_BYTES + _ID_BYTES * tokens_in + _MADE_BYTES * tokens_out + beside


def bytes_beside_embedding(texts: tuple[str, ...]) -> int:
    """What a turn that embeds ``texts`` holds beside its ids: them, and vectors that wait or were sent."""
    if not texts:
        return 0
    return 2 * VECTOR_CREDIT + VECTOR_MAX + sum(_OBJECT_BYTES + _TEXT_FACTOR * len(each) for each in texts)


class MemoryHolder(Hashable, Protocol):
    """A turn."""

    @property
    def number(self) -> int:
        """Its number in its session."""
        ...

    @property
    def gives_way(self) -> int | None:
        """In which order turns give way, the lowest first; None: it doesn't."""
        ...


class TurnMemory:
    """Of one host."""

    def __init__(self, bytes_max: int = MEMORY_BYTES) -> None:
        self._shares: SizedShares[MemoryHolder] = SizedShares(bytes_max)
        self._sessions: dict[MemoryHolder, SessionMemory] = {}
        self._leaving: dict[MemoryHolder, int] = {}
        """What turns hold that were told to give way, and are not over yet."""

    @property
    def used(self) -> int:
        """Bytes that turns hold, or will come to hold; those left out that were told to give way."""
        return self._shares.used

    @property
    def leaving(self) -> int:
        """Bytes of turns that were told to give way and are not over yet."""
        return sum(self._leaving.values())

    def hold(self, turn: MemoryHolder, size: int, session: SessionMemory) -> bool:
        """Whether ``turn`` may hold ``size`` bytes. Others are told to give way where it must be."""
        before = self._shares.size_of(turn)
        others = session.held - before
        if turn in self._leaving or (others and others + size > SESSION_BYTES):
            return False
        beyond = self.leaving + max(0, self.used - self._shares.room)
        rank = _never if beyond >= LEAVING_BYTES else _rank
        lost = self._shares.resize(turn, session.origin, size, rank)
        if lost is None:
            return False
        self._sessions[turn] = session
        session.held += size - before
        for victim, held in lost.items():
            self._leaving[victim] = held
            self._sessions[victim].give_way(victim.number)
        return True

    def take(self, holder: MemoryHolder, size: int, session: SessionMemory) -> None:
        """Let a holder that has nothing hold ``size`` bytes, whether there is room or not."""
        self._shares.enter_again(holder, session.origin, size)
        self._sessions[holder] = session
        session.held += size

    def is_leaving(self, turn: MemoryHolder) -> bool:
        """Whether the turn was told to give way, and is not over yet."""
        return turn in self._leaving

    def stay(self, turn: MemoryHolder) -> None:
        """The turn was told to give way when it could, and cannot any more: it holds what it held, whether
        there is room or not. ``LEAVING_BYTES`` bounds that."""
        if (held := self._leaving.pop(turn, None)) is not None:
            self._shares.enter_again(turn, self._sessions[turn].origin, held)

    def release(self, turn: MemoryHolder) -> None:
        """The turn is over."""
        session = self._sessions.pop(turn, None)
        if session is not None:
            session.held -= self._leaving.pop(turn, 0) or self._shares.size_of(turn)
            self._shares.leave(turn)


@dataclass(frozen=True, slots=True, eq=False)
class KeptOutput:
    """What was sent of a turn that is over, and may have to be sent again."""

    number: int
    gives_way: None = None
    """Its client paid for it, and may not have it yet."""


def _rank(turn: MemoryHolder) -> int | None:
    return turn.gives_way


def _never(_turn: MemoryHolder) -> None:
    return None


class SessionMemory:
    """The memory of one session's turns. ``origin`` is whose share it is: a payer's or, in a free session,
    that of where its client is."""

    __slots__ = ("_memory", "give_way", "held", "origin")

    def __init__(self, memory: TurnMemory | None = None, origin: Origin = _SOMEWHERE) -> None:
        self._memory, self.origin = memory or TurnMemory(), origin
        self.held = 0
        """Bytes of all turns of the session."""
        self.give_way: Callable[[int], None] = _ignore
        """Told the number of a turn that must end so that another one has room. The role sets it."""

    def hold(self, turn: MemoryHolder, size: int) -> bool:
        """Whether ``turn`` may hold ``size`` bytes; where it may not, it holds what it held before."""
        return self._memory.hold(turn, size, self)

    def is_leaving(self, turn: MemoryHolder) -> bool:
        """Whether the turn was told to give way, and is not over yet."""
        return self._memory.is_leaving(turn)

    def stay(self, turn: MemoryHolder) -> None:
        """The turn was told to give way, and cannot any more."""
        self._memory.stay(turn)

    def keep(self, turn: MemoryHolder, size: int) -> KeptOutput:
        """The turn is over; ``size`` bytes of what was sent of it are kept until they are known to have come.

        Nobody is asked for room: they were a part of what the turn held.
        """
        kept = KeptOutput(turn.number)
        self._memory.release(turn)
        self._memory.take(kept, size, self)
        return kept

    def release(self, turn: MemoryHolder) -> None:
        """The turn is over, or nothing is kept of it any more."""
        self._memory.release(turn)

    def forget_role(self) -> None:
        """Nobody serves the session any more."""
        self.give_way = _ignore


def _ignore(_turn: int) -> None:
    pass
