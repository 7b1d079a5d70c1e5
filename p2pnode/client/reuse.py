"""How much of a prompt a host should have in its cache, by what this client sent it before. Pure.

A prompt that begins with an earlier prompt of the same session needs only its rest computed, and a host bills
no more. The earlier answer isn't counted: its text may be cut into other tokens than those that were sampled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from p2pnode.bounded import BoundedMap
from p2pnode.ids import SessionId
from p2pnode.protocols.inference.messages import PromptBody, SamplingParams
from p2pnode.protocols.wire import encode

CACHES_MAX: Final = 256
LEAST: Final = 64
"""Fewer tokens than this tell nothing: an engine may compute its last batch anew."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """An earlier prompt: how many messages it had, their hash, and how many tokens they took."""

    messages: int
    digest: bytes
    tokens: int


class PrefixMemory:
    """The last prompt of each cache of one client, of the newest 256: one for each key of a session."""

    def __init__(self) -> None:
        self._sent: BoundedMap[tuple[SessionId, bytes | None], _Sent] = BoundedMap(CACHES_MAX)

    def quoted(self, session: SessionId, body: PromptBody, *, tokens: int, reused: int) -> float | None:
        """A host counted this prompt, ``tokens`` without its prefix, and says that it had ``reused`` of them.

        Returns the share that it had of what it could have had, from 0 to 1; None where too little, or
        nothing, is the same as before.
        """
        before = self._sent.get((session, body.cache_key))
        count = len(body.messages)
        self._sent.put((session, body.cache_key), _Sent(count, _digest(body, count), tokens))
        if before is None or before.tokens < LEAST or count < before.messages:
            return None
        if _digest(body, before.messages) != before.digest:
            return None
        return min(1.0, reused / min(before.tokens, tokens))


def _digest(body: PromptBody, count: int) -> bytes:
    """The hash of all that a model reads up to the end of the first ``count`` messages.

    A template may tell of tools and of the date at the beginning.
    """
    head = replace(body, messages=body.messages[:count], sampling=SamplingParams(), seed=bytes(16), prefix=())
    return hashlib.blake2b(encode(replace(head, text_bytes=None, logprobs=-1)), digest_size=16).digest()
