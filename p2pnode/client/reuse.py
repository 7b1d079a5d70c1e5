"""How much of a prompt a host should have in its cache, by what this client sent it before. Pure.

A prompt that begins with an earlier prompt of the same session needs only its rest computed, and a host bills
no more. The earlier answer isn't counted: its text may be cut into other tokens than those that were sampled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.bounded import BoundedMap
from p2pnode.ids import SessionId
from p2pnode.protocols.inference.messages import ChatMessage
from p2pnode.protocols.wire import encode

SESSIONS_MAX: Final = 256
LEAST: Final = 64
"""Fewer tokens than this tell nothing: an engine may compute its last batch anew."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """An earlier prompt: how many messages it had, their hash, and how many tokens they took."""

    messages: int
    digest: bytes
    tokens: int


class PrefixMemory:
    """The last prompt of each session of one client, of the newest 256 sessions."""

    def __init__(self) -> None:
        self._sent: BoundedMap[SessionId, _Sent] = BoundedMap(SESSIONS_MAX)

    def quoted(
        self, session: SessionId, messages: Sequence[ChatMessage], *, tokens: int, reused: int
    ) -> float | None:
        """A host counted these messages, ``tokens`` in all, and says that it had ``reused`` of them.

        Returns the share that it had of what it could have had, from 0 to 1; None where too little, or
        nothing, is the same as before.
        """
        before = self._sent.get(session)
        self._sent.put(session, _Sent(len(messages), _digest(messages), tokens))
        if before is None or before.tokens < LEAST or len(messages) < before.messages:
            return None
        if _digest(messages[: before.messages]) != before.digest:
            return None
        return min(1.0, reused / min(before.tokens, tokens))


def _digest(messages: Sequence[ChatMessage]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        digest.update(encode(message))  # msgpack: no two lists of messages have the same bytes
    return digest.digest()
