"""What a host has yet to send of an answer, and what it may have to send again.

``SendQueue`` holds output that the client's credit doesn't cover yet. ``ReplayBuffer`` holds what was sent of
a paid session's turns until it is known to have arrived. Neither knows anything of streams or of the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import TEXT_MAX, WINDOW, Checkpoint, Done, Error, Quote, Tokens

_TEXT_CHARACTERS: Final = TEXT_MAX // 4
"""A character takes at most four bytes."""


def is_counted(message: object) -> bool:
    """Whether both sides count it: ``quote``, ``tokens``, ``checkpoint``, ``done``, a turn's ``error``."""
    return isinstance(message, Quote | Tokens | Checkpoint | Done) or (
        isinstance(message, Error) and message.turn is not None
    )


class ReplayBuffer:
    """Counted messages, oldest first. Their count over the session says where a replay begins.

    The window bounds it: a voucher and a new turn both prove what was received.
    """

    def __init__(self, count: int = 0, answered: int = 0) -> None:
        self._messages: deque[object] = deque()
        self._forgotten = count
        self.answered = answered
        """The last turn that had its ``done`` or ``error``."""

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
            self.answered = message.turn

    def forget(self, count: int) -> None:
        """The client holds the first ``count``."""
        while self._forgotten < count and self._messages:
            self._messages.popleft()
            self._forgotten += 1

    def since(self, count: int) -> Sequence[object] | None:
        """All but the first ``count``; None where some of these are forgotten or were never sent."""
        if not self._forgotten <= count <= self.count:
            return None
        return tuple(islice(self._messages, count - self._forgotten, None))


class SendQueue:
    """A queue of (ids, the text that completes them), and the credit to send from it.

    It counts what was sent and acknowledged over the whole session.
    """

    def __init__(self, sent: int = 0) -> None:
        self._pending: deque[tuple[tuple[int, ...], str]] = deque()
        self.acknowledged = sent
        self.sent = sent
        self.waiting = 0
        """Output tokens that wait for credit."""

    def __bool__(self) -> bool:
        return bool(self._pending)

    @property
    def credit(self) -> int:
        """Output tokens that may be sent now."""
        return self.acknowledged + WINDOW - self.sent

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

    def add(self, ids: tuple[int, ...], text: str) -> None:
        """Queue output. Text that no frame could carry at once follows in frames of its own."""
        if not ids and not text:
            return
        self._pending.append((ids, text[:_TEXT_CHARACTERS]))
        self.waiting += len(ids)
        for start in range(_TEXT_CHARACTERS, len(text), _TEXT_CHARACTERS):
            self._pending.append(((), text[start : start + _TEXT_CHARACTERS]))

    def take(self, ids_max: int) -> Tokens | None:
        """The next frame, of at most ``ids_max`` (1 or more) ids and what credit covers; None to wait."""
        if not self._pending:
            return None
        ids, text = self._pending[0]
        room = min(self.credit, ids_max)
        if ids and room <= 0:
            return None
        if len(ids) > room:
            ids, rest = ids[:room], ids[room:]
            self._pending[0], text = (rest, text), ""
        else:
            self._pending.popleft()
        frame = Tokens(seq=self.sent, ids=ids, text=text)
        self.sent += len(ids)
        self.waiting -= len(ids)
        return frame

    def drop_text_pending(self) -> int:
        """Drop waiting ids whose text has not come, and return how many.

        An engine can't continue from inside them: it would lose that text.
        """
        dropped = 0
        while self._pending and not self._pending[-1][1]:
            dropped += len(self._pending.pop()[0])
        self.waiting -= dropped
        return dropped

    def clear(self) -> None:
        """Forget what was not sent."""
        self._pending.clear()
        self.waiting = 0
