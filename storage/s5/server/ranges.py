"""The ``Range`` header (RFC 9110, 14): one slice of a blob. Pure.

Several ranges at once, and what isn't understood, are ignored, as the RFC allows: all of it is sent then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(
    r"bytes=[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*", re.ASCII | re.IGNORECASE
)


class UnsatisfiableError(Exception):
    """No byte of it is in the blob."""


@dataclass(frozen=True, slots=True)
class Slice:
    """``length`` bytes, at least one, from ``offset``."""

    offset: int
    length: int

    def content_range(self, size: int) -> str:
        """The value of ``Content-Range`` for a blob of ``size`` bytes."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{size}"


def parse_range(header: str | None, size: int) -> Slice | None:
    """What of ``size`` bytes is asked for; None means all of it. Raises ``UnsatisfiableError``."""
    matched = _RANGE.fullmatch(header or "")
    if matched is None:
        return None
    first, last, suffix = matched.groups()
    if first is None:
        length = min(int(suffix), size)
        offset = size - length
    else:
        offset = int(first)
        if last and int(last) < offset:
            return None
        length = min(int(last) + 1 if last else size, size) - offset
    if length <= 0:
        raise UnsatisfiableError
    return Slice(offset, length)
