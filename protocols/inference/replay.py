"""What a host has yet to send of an answer, how much it may send, and what it may have to send again.

``SendQueue`` and ``VectorQueue`` hold a turn's output that credit doesn't cover yet: ``PayCredit`` is the
session's, ``ReadCredit`` the turn's. ``ReplayBuffer`` holds what was sent of a paid session's turns until it
is known to have arrived.
None of them knows anything of streams or of the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    READ_CREDIT,
    TEXT_MAX,
    VECTOR_CREDIT,
    WINDOW,
    Checkpoint,
    Done,
    Error,
    Quote,
    StartCause,
    TextChannel,
    TokenLogprob,
    Tokens,
    Vector,
)

_LETTER_BYTES: Final = 4
_TEXT_CHARACTERS: Final = TEXT_MAX // _LETTER_BYTES
"""A character takes at most four bytes, on the wire and in memory."""
_OBJECT_BYTES: Final = 192
_ID_BYTES: Final = 40
"""Of a number in a tuple, and its place."""


def is_counted(message: object) -> bool:
    """Whether both sides count it: ``quote``, ``tokens``, ``vector``, ``checkpoint``, ``done``, a turn's
    ``error``."""
    return isinstance(message, Quote | Tokens | Vector | Checkpoint | Done) or (
        isinstance(message, Error) and message.turn is not None
    )


def _held_bytes(frame: Tokens | Vector) -> int:
    """Bytes of memory of a frame, estimated from above."""
    if isinstance(frame, Vector):
        return _OBJECT_BYTES + len(frame.data)
    told = sum(1 + len(each.top) for each in frame.logprobs)
    return _OBJECT_BYTES * (1 + told) + _ID_BYTES * len(frame.ids) + _LETTER_BYTES * len(frame.text)


class ReplayBuffer:
    """Counted messages, oldest first. Their count over the session says where a replay begins.

    ``count`` and ``answers`` are those of an earlier start. A voucher proves what was received; so does a new
    turn, because no more than so many turns may be under way.
    """

    def __init__(self, count: int = 0, answers: int = 0) -> None:
        self._messages: deque[object] = deque()
        self._forgotten = count
        self._answers: deque[tuple[int, int]] = deque()
        """Of each ``done`` or turn's ``error`` that is here: the count up to it, and its turn."""
        self._answers_forgotten = answers

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def count(self) -> int:
        """How many there were so far, the forgotten ones included."""
        return self._forgotten + len(self._messages)

    def add(self, message: object) -> None:
        """Keep it if it counts."""
        if not is_counted(message):
            return
        self._messages.append(message)
        if isinstance(message, Done | Error) and message.turn is not None:
            self._answers.append((self.count, message.turn))

    def forget(self, count: int) -> None:
        """The client holds the first ``count``."""
        while self._forgotten < count and self._messages:
            self._messages.popleft()
            self._forgotten += 1
        while self._answers and self._answers[0][0] <= self._forgotten:
            self._answers.popleft()
            self._answers_forgotten += 1

    def forget_answers(self, number: int) -> None:
        """The client holds the session's first ``number`` answers, and all before them."""
        while self._answers and self._answers_forgotten < number:
            self.forget(self._answers[0][0])

    def since(self, count: int) -> Sequence[object] | None:
        """All but the first ``count``; None where some of these are forgotten or were never sent."""
        if not self._forgotten <= count <= self.count:
            return None
        return tuple(islice(self._messages, count - self._forgotten, None))

    def bytes_of(self, turn: int) -> int:
        """Bytes of memory that the output of a turn takes here."""
        return sum(
            _held_bytes(message)
            for message in self._messages
            if isinstance(message, Tokens | Vector) and message.turn == turn
        )

    def answered_since(self, count: int) -> frozenset[int]:
        """The turns whose answer is not among the first ``count``."""
        return frozenset(turn for place, turn in self._answers if place > count)


class PayCredit:
    """The output tokens of a session that may be sent past the last ack or voucher, whatever their turn."""

    def __init__(self, sent: int = 0, window: int = WINDOW) -> None:
        self._window = window
        self.acknowledged = sent
        self.sent = sent

    @property
    def left(self) -> int:
        """Output tokens that may be sent now."""
        return self.acknowledged + self._window - self.sent

    def spend(self, count: int) -> None:
        """So many were sent."""
        self.sent += count

    def acknowledge(self, seq: int) -> bool:
        """The client holds all below ``seq``. True when that is news.

        Raises ``ProtocolError`` for more than was sent.
        """
        if seq > self.sent:
            msg = f"acknowledged {seq} tokens of {self.sent} sent"
            raise ProtocolError(msg)
        news = seq > self.acknowledged
        self.acknowledged = max(self.acknowledged, seq)
        return news


class ReadCredit:
    """What may be sent of a turn: output tokens, or bytes of ``vectors``, for which its client has room."""

    def __init__(self, *, vectors: bool = False) -> None:
        self.sent = 0
        self.ahead = VECTOR_CREDIT if vectors else READ_CREDIT
        """Past what was sent this is the most that a client may give."""
        self.step = VECTOR_CREDIT // 8 if vectors else CHECKPOINT_EVERY
        """Who takes less than this for a while reads nothing."""
        self._upto = self.ahead

    @property
    def left(self) -> int:
        """How much may be sent now."""
        return self._upto - self.sent

    def spend(self, count: int) -> None:
        """So many were sent."""
        self.sent += count

    def grant(self, upto: int) -> None:
        """Those below ``upto`` may be sent. Raises ``ProtocolError`` for more than a client may give."""
        if upto > self.sent + self.ahead:
            msg = f"read credit up to {upto} when {self.sent} were sent; {self.ahead} past it is most"
            raise ProtocolError(msg)
        self._upto = max(self._upto, upto)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Output of a turn as its engine made it: ids, and the text of one channel that they complete."""

    ids: tuple[int, ...] = ()
    text: str = ""
    channel: TextChannel = "content"
    call: int = 0
    name: str = ""
    start: StartCause = ""
    logprobs: tuple[TokenLogprob, ...] = ()


class SendQueue:
    """A turn's output that waits for credit, in order."""

    def __init__(self) -> None:
        self._pending: deque[Piece] = deque()
        self.waiting = 0
        """Output tokens that wait."""

    def __bool__(self) -> bool:
        return bool(self._pending)

    @property
    def needs_credit(self) -> bool:
        """Whether what comes next has ids. Text alone needs no credit."""
        return bool(self._pending and self._pending[0].ids)

    @property
    def credit_least(self) -> int:
        """Read credit that the next frame takes at least."""
        return 1 if self.needs_credit else 0

    def add(self, piece: Piece) -> None:
        """Queue output. Text that no frame could carry at once follows in frames of its own."""
        if not (piece.ids or piece.text or piece.name):
            return
        text = piece.text
        if len(text) > _TEXT_CHARACTERS:
            piece = replace(piece, text=text[:_TEXT_CHARACTERS])
        self._pending.append(piece)
        self.waiting += len(piece.ids)
        for start in range(_TEXT_CHARACTERS, len(text), _TEXT_CHARACTERS):
            rest = text[start : start + _TEXT_CHARACTERS]
            self._pending.append(Piece(text=rest, channel=piece.channel, call=piece.call))

    def take(self, turn: int, index: int, ids_max: int) -> Tokens:
        """The next frame, with at most ``ids_max`` (1 or more) ids. Only where something waits."""
        piece = self._pending[0]
        if len(piece.ids) > ids_max:  # its text completes the last of them
            first, rest = piece.ids[:ids_max], piece.ids[ids_max:]
            told, later = piece.logprobs[:ids_max], piece.logprobs[ids_max:]
            self._pending[0] = replace(piece, ids=rest, start="", logprobs=later)
            piece = Piece(ids=first, start=piece.start, logprobs=told)
        else:
            self._pending.popleft()
        self.waiting -= len(piece.ids)
        return Tokens(
            turn=turn,
            index=index,
            ids=piece.ids,
            text=piece.text,
            channel=piece.channel,
            call=piece.call,
            name=piece.name,
            start=piece.start,
            logprobs=piece.logprobs,
        )

    def clear(self) -> None:
        """Forget what was not sent."""
        self._pending.clear()
        self.waiting = 0


class VectorQueue:
    """The vectors of an embeddings turn that wait for read credit, in order. Their input is paid already."""

    def __init__(self) -> None:
        self._pending: deque[bytes] = deque()
        self._taken = 0
        self.waiting = 0
        """Bytes that wait."""

    def __bool__(self) -> bool:
        return bool(self._pending)

    @property
    def needs_credit(self) -> bool:
        """Whether any vector waits."""
        return bool(self._pending)

    @property
    def credit_least(self) -> int:
        """Bytes of the next one: none is sent in pieces."""
        return len(self._pending[0]) if self._pending else 0

    def add(self, data: bytes) -> None:
        """Queue the vector that follows."""
        self._pending.append(data)
        self.waiting += len(data)

    def take(self, turn: int) -> Vector:
        """The next one. Only where one waits."""
        data = self._pending.popleft()
        self.waiting -= len(data)
        vector = Vector(turn=turn, index=self._taken, data=data)
        self._taken += 1
        return vector

    def clear(self) -> None:
        """Forget what was not sent."""
        self._pending.clear()
        self.waiting = 0
