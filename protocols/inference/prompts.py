"""A prompt in parts: the client cuts it, the host puts it together and holds no more bytes than announced.

It knows nothing of sessions. A prompt that was refused is still read to its last part, and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import PROMPT_PART_MAX, Prompt, PromptBody
from p2pnode.protocols.inference.receipts import request_hash
from p2pnode.protocols.wire import decode_record

PROMPT_RATE_MIN: Final = 16 * 1024
"""Bytes a second at which a prompt must arrive, on top of the stall time."""


def prompt_parts(turn: int, raw: bytes) -> Iterator[Prompt]:
    """The messages that carry the msgpack of a ``PromptBody``."""
    for part, start in enumerate(range(0, len(raw), PROMPT_PART_MAX)):
        end = min(start + PROMPT_PART_MAX, len(raw))
        yield Prompt(turn=turn, part=part, last=end == len(raw), total=len(raw), body=raw[start:end])


class PromptReader:
    """Reads one turn's parts."""

    def __init__(self, turn: int, total: int) -> None:
        self.turn = turn
        self.discarding = False
        """Whether the turn has its answer already: then its remaining parts are dropped."""
        self._total = total
        self._bytes = bytearray()
        self._size = 0
        self._next_part = 0

    def discard(self) -> None:
        """Drop what came of this prompt and what still comes."""
        self.discarding = True
        self._bytes.clear()

    def add(self, part: Prompt) -> bool:
        """Take a part; True for the last. Raises ``ProtocolError`` when it is not the one that follows."""
        self._size += len(part.body)
        place = (part.turn, part.part, part.total)
        if place != (self.turn, self._next_part, self._total) or self._size > self._total:
            msg = "the parts of a prompt come in order, name one total and never exceed it"
            raise ProtocolError(msg)
        self._next_part += 1
        if not self.discarding:
            self._bytes += part.body
        return part.last

    def body(self) -> tuple[PromptBody, bytes]:
        """The prompt and its request hash. Raises ``ProtocolError`` when it isn't one."""
        if self._size != self._total:
            msg = f"the prompt holds {self._size} bytes and announced {self._total}"
            raise ProtocolError(msg)
        raw = bytes(self._bytes)
        return decode_record(PromptBody, raw), request_hash(raw)
