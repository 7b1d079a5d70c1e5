"""How a host's numbers are told apart: a fixed prompt, and the hash of what a model says after it. Pure.

A profile names an engine and its settings, and a name can't prove how numbers are rounded. Two hosts whose
hashes are equal computed the same logits, to the last bit, for this prompt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from p2pnode.protocols.crypto import keccak256

LENGTH: Final = 32
"""Tokens of the prompt: no more than are computed together."""
LIKELIEST: Final = 1024
"""So many of the likeliest next tokens are hashed."""
_TAG: Final = b"p2pnode/arithmetic/1\0"
_STEP: Final = 7919
_ENTRY: Final = struct.Struct(">If")


def fixed_prompt(vocabulary: int) -> tuple[int, ...]:
    """The token ids of the prompt, for a model with so many tokens."""
    return tuple((_STEP * place + 1) % vocabulary for place in range(LENGTH))


def arithmetic_hash(likeliest: Iterable[tuple[int, float]]) -> bytes:
    """The 32-byte hash of the likeliest next tokens and their log-probabilities, which are 32-bit floats."""
    entries = sorted(dict(likeliest).items())
    return keccak256(_TAG + b"".join(_ENTRY.pack(token, logprob) for token, logprob in entries))
