"""What a host sent of its turns and the client may not have: kept until paid for, replayed on a resume.

It counts ``quote``, ``tokens``, ``checkpoint``, ``done`` and a turn's ``error`` over the session, and so does
the client: one number says where a replay begins. Bounded by the window: a voucher and a new turn both prove
what was received. It knows nothing of streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from p2pnode.protocols.inference.messages import Checkpoint, Done, Error, Quote, Tokens


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
