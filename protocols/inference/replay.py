"""What a host sent of its turns and the client may not have: kept until paid for, replayed on a resume.

It counts ``quote``, ``tokens``, ``checkpoint``, ``done`` and a turn's ``error`` over the session, and so does
the client: one number says where a replay begins. Bounded by the window: a voucher and a new turn both prove
what was received. It knows nothing of streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import TEXT_MAX, WINDOW, Checkpoint, Done, Error, Quote, Tokens


def is_counted(message: object) -> bool:
    """Is it one of the messages that both sides count?"""
    return isinstance(message, Quote | Tokens | Checkpoint | Done) or (
        isinstance(message, Error) and message.turn is not None
    )


class SentLog:
    """Counted messages, oldest first."""

    def __init__(self, count: int = 0, answered: int = 0) -> None:
        self._kept: deque[object] = deque()
        self._forgotten = count
        self.answered = answered
        """The last turn that had its ``done`` or ``error``."""

    @property
    def count(self) -> int:
        """Of all messages so far."""
        return self._forgotten + len(self._kept)

    def add(self, message: object) -> None:
        """Keep it if it counts."""
        if not is_counted(message):
            return
        self._kept.append(message)
        if isinstance(message, Done | Error) and message.turn is not None:
            self.answered = message.turn

    def forget(self, count: int) -> None:
        """The client holds the first ``count``."""
        while self._forgotten < count and self._kept:
            self._kept.popleft()
            self._forgotten += 1

    def since(self, count: int) -> Sequence[object] | None:
        """All but the first ``count``; None when that can't be."""
        if not self._forgotten <= count <= self.count:
            return None
        return tuple(islice(self._kept, count - self._forgotten, None))


# Output between the engine and the client: ids the engine made that the client's credit doesn't cover yet.
#
# It counts what was sent and acknowledged over the whole session. It knows nothing of receipts, of
# turns or of the engine; the machine keeps the engine at most a window ahead.


_TEXT_CHARACTERS: int = TEXT_MAX // 4


class Outbox:
    """A queue of (ids, the text that completes them), and the credit to send from it."""

    def __init__(self, sent: int = 0) -> None:
        self._pending: deque[tuple[tuple[int, ...], str]] = deque()
        self._acked = sent
        self.sent = sent
        self.waiting = 0
        """Output tokens that wait for credit."""

    def __bool__(self) -> bool:
        return bool(self._pending)

    @property
    def credit(self) -> int:
        """Output tokens that may be sent now."""
        return self._acked + WINDOW - self.sent

    def acknowledge(self, seq: int) -> bool:
        """The client holds all below ``seq``. True when that is news. Raises ``ProtocolError`` for a lie."""
        if seq > self.sent:
            msg = f"acknowledged {seq} tokens of {self.sent} sent"
            raise ProtocolError(msg)
        news = seq > self._acked
        self._acked = max(self._acked, seq)
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

    def drop_untold(self) -> int:
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
