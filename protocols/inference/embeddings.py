"""The vectors of an embeddings turn: what they must be, and how they and the texts are written as bytes.

Pure. Both sides check the same: a host what its engine makes, a client what its host sends.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import EMBED_TOKENS_AROUND, VECTOR_MAX

FLOAT_BYTES: Final = 4


def vector_bytes(numbers: Iterable[float]) -> bytes:
    """The numbers as float32, little-endian."""
    made = tuple(numbers)
    return struct.pack(f"<{len(made)}f", *made)


def vector_numbers(data: bytes) -> array[float]:
    """The inverse of :func:`vector_bytes`, for bytes that ``VectorCheck`` took. It takes no more memory."""
    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def texts_hash(inputs: Sequence[Sequence[int]]) -> bytes:
    """What a quote names as the prompt's hash: of each text the number of its ids, then these, four bytes
    each, big-endian."""
    parts = (struct.pack(f">{len(ids) + 1}I", len(ids), *ids) for ids in inputs)
    return keccak256(b"".join(parts))


def embed_tokens_max(texts: Iterable[str]) -> int:
    """The most input tokens that a host can honestly bill for texts to embed, whatever the model."""
    return sum(len(text.encode(errors="replace")) + EMBED_TOKENS_AROUND for text in texts)


class VectorCheck:
    """The vectors of one turn so far. There is one for each of its ``inputs`` texts, in their order; all have
    one size, and every number is finite."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.count = 0
        """How many came."""
        self.bytes = 0
        """Bytes of these."""
        self._size = 0

    @property
    def is_whole(self) -> bool:
        """Whether there is one for each text."""
        return self.count == self.inputs

    def take(self, index: int, data: bytes) -> None:
        """The vector of text ``index`` came. Raises ``ProtocolError`` that names what is wrong with it."""
        fault = self._fault_of(index, data)
        if fault:
            raise ProtocolError(fault)
        self._size = len(data)
        self.count += 1
        self.bytes += len(data)

    def _fault_of(self, index: int, data: bytes) -> str:
        if index >= self.inputs:
            return f"a vector of text {index}; the turn has {self.inputs}"
        if index < self.count:
            return f"a second vector of text {index}"
        if index > self.count:
            return f"a vector of text {index}; that of {self.count} was next"
        if not data or len(data) % FLOAT_BYTES:
            return f"a vector of {len(data)} bytes, which are no whole float32 numbers"
        if len(data) > VECTOR_MAX:
            size, most = len(data) // FLOAT_BYTES, VECTOR_MAX // FLOAT_BYTES
            return f"a vector of {size} numbers; at most {most} are taken"
        if self._size and len(data) != self._size:
            size, usual = len(data) // FLOAT_BYTES, self._size // FLOAT_BYTES
            return f"a vector of {size} numbers after one of {usual}"
        if not all(map(math.isfinite, vector_numbers(data))):
            return "a vector with a number that is infinite or none (NaN)"
        return ""
