"""A prompt in parts: the client cuts it and sends as much as was confirmed, the host puts it together.

Neither holds more bytes than were announced. It knows nothing of sessions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import (
    PROMPT_PART_MAX,
    TURNS_MAX,
    UNCONFIRMED_MAX,
    Prompt,
    PromptBody,
    PromptReceived,
)
from p2pnode.protocols.inference.receipts import request_hash
from p2pnode.protocols.wire import decode_record

PROMPT_RATE_MIN: Final = 16 * 1024
"""Bytes a second at which a prompt must arrive, on top of the stall time."""


def prompt_parts(turn: int, raw: bytes) -> Iterator[Prompt]:
    """The messages that carry the msgpack of a ``PromptBody``."""
    for part, start in enumerate(range(0, len(raw), PROMPT_PART_MAX)):
        end = min(start + PROMPT_PART_MAX, len(raw))
        yield Prompt(turn=turn, part=part, last=end == len(raw), total=len(raw), body=raw[start:end])


class Upload:
    """The prompts that a client sends on one stream: one after another, as fast as the host confirms them.

    So vouchers, acks and pings never wait behind more than ``UNCONFIRMED_MAX`` bytes.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Iterator[Prompt]]] = deque()
        self._sent: dict[int, int] = {}
        """Bytes of each prompt that were sent."""
        self._confirmed: dict[int, int] = {}

    def add(self, turn: int, raw: bytes) -> None:
        """Send this prompt after those that wait."""
        self._waiting.append((turn, prompt_parts(turn, raw)))
        self._sent[turn] = self._confirmed[turn] = 0

    def parts(self) -> Iterator[Prompt]:
        """What may be sent now."""
        while self._waiting and self._unconfirmed + PROMPT_PART_MAX <= UNCONFIRMED_MAX:
            turn, parts = self._waiting[0]
            part = next(parts)
            self._sent[turn] += len(part.body)
            if part.last:
                self._waiting.popleft()
            yield part

    def confirm(self, message: PromptReceived) -> bool:
        """Take what the host has read; True when it is news. Raises ``ProtocolError`` for too much."""
        sent, before = self._sent.get(message.turn), self._confirmed.get(message.turn)
        if sent is None or before is None:
            return False  # of a turn that is over
        if message.bytes > sent:
            msg = f"confirmed {message.bytes} bytes of a prompt, of which {sent} were sent"
            raise ProtocolError(msg)
        self._confirmed[message.turn] = max(before, message.bytes)
        return message.bytes > before

    def drop(self, turn: int) -> None:
        """The turn is over or cancelled: send no more of it."""
        self._waiting = deque(each for each in self._waiting if each[0] != turn)
        self._sent.pop(turn, None)
        self._confirmed.pop(turn, None)

    @property
    def _unconfirmed(self) -> int:
        return sum(self._sent.values()) - sum(self._confirmed.values())


class TurnPlaces:
    """How many turns of one payer or origin may be under way besides the first of each of its sessions."""

    def __init__(self, turns_max: int = TURNS_MAX) -> None:
        self._left = turns_max

    def enter(self) -> bool:
        """Take a place for a turn; False where there is none."""
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    def leave(self) -> None:
        """A turn is over."""
        self._left += 1


class PromptReader:
    """Reads one turn's parts."""

    def __init__(self, turn: int, total: int) -> None:
        self.turn, self.total = turn, total
        self.size = 0
        """Bytes that came so far."""
        self._bytes = bytearray()
        self._next_part = 0

    def add(self, part: Prompt) -> bool:
        """Take a part; True for the last. Raises ``ProtocolError`` when it is not the one that follows."""
        self.size += len(part.body)
        place = (part.turn, part.part, part.total)
        if place != (self.turn, self._next_part, self.total) or self.size > self.total:
            msg = "the parts of a prompt come in order, name one total and never exceed it"
            raise ProtocolError(msg)
        self._next_part += 1
        self._bytes += part.body
        return part.last

    def body(self) -> tuple[PromptBody, bytes]:
        """The prompt and its request hash. Raises ``ProtocolError`` when it isn't one."""
        if self.size != self.total:
            msg = f"the prompt holds {self.size} bytes and announced {self.total}"
            raise ProtocolError(msg)
        raw = bytes(self._bytes)
        return decode_record(PromptBody, raw), request_hash(raw)
