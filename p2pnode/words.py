"""Pieces of sentences for people: counts, spans of time, and text that strangers wrote."""

from __future__ import annotations

import re
from typing import Final

_LINE_MAX: Final = 300
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_TURNS: Final = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Marks that turn the direction of what follows them. Letters of right-to-left scripts need none."""
_CONTROLS: Final = {
    code: _REPLACEMENT for code in (*range(32), *range(127, 160), *_TURNS) if chr(code) not in "\n\t"
}
_BREAKS: Final = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")


_ENDS: Final = {
    "stop": "ended by itself",
    "length": "reached the limit of tokens",
    "tool_calls": "called tools",
    "cancelled": "stopped by the client",
}

KEY_SECRET: Final = re.compile("p2p-[0-9a-f]{48}")
"""The secret of a key with a budget."""


def without_secrets(text: str) -> str:
    """The text without secrets of keys, which somebody may have put where they don't belong."""
    return KEY_SECRET.sub("p2p-…", text) if "p2p-" in text else text


def count_of(count: int, one: str, many: str | None = None) -> str:
    """``1 node``, ``2 nodes``, ``0 nodes``; ``many`` is the plural where adding an s does not make it."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def ended_words(reason: str) -> str:
    """How an answer or an attempt ended, for people; ``reason`` is as in bills, metrics and on the wire."""
    return _ENDS.get(reason, reason.replace("_", " "))


def span(seconds: float) -> str:
    """About how long this is, in one unit: 90 seconds, 2 hours, 1 day."""
    for name, unit in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 0.95 * unit * (2 if name == "minute" else 1):
            return count_of(max(1, round(seconds / unit)), name)
    return count_of(round(seconds), "second")


def one_line(text: str, longest: int = _LINE_MAX) -> str:
    """A stranger's text on one line of at most ``longest`` characters, so that it can't look like our own
    words.

    Each invisible character (a control character, a mark that changes the direction of writing) becomes
    U+FFFD.
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(
        letter if letter.isprintable() else " " if letter in _BREAKS else _REPLACEMENT for letter in cut
    )


def printable(text: str) -> str:
    """A stranger's text on several lines, without characters that move the cursor, command the terminal or
    turn the direction of writing."""
    return text.translate(_CONTROLS)


def quoted(text: str, longest: int = _LINE_MAX) -> str:
    """The text of :func:`one_line` in quotes, to stand inside a sentence of ours."""
    return '"' + one_line(text, longest).replace('"', "'") + '"'
