"""``TextIds``: the ids of a text that a server sends in parts, by the model's own tokenizer. Pure.

Most servers tell text and no ids. A tokenizer joins letters across the parts of a text, but not across a
blank that begins a word, so the text is cut there and nowhere else. Its ids are then a function of the text:
what a host bills doesn't depend on how its server happens to cut it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final

from p2pnode.errors import EngineError
from p2pnode.models.vocabulary import Vocabulary

_HELD_MAX: Final = 96
"""Letters: a text without blanks is cut after so many."""


class Speller:
    """The ids that spell a text exactly. ``encode`` is the tokenizer, without special tokens."""

    def __init__(self, encode: Callable[[str], Sequence[int]], vocabulary: Vocabulary) -> None:
        self._encode, self._vocabulary = encode, vocabulary

    def ids(self, text: str) -> tuple[int, ...]:
        """Raises ``EngineError`` where the vocabulary can't spell it."""
        ids, wanted = tuple(self._encode(text)), text.encode()
        if b"".join(map(self._vocabulary.piece, ids)) == wanted:
            return ids
        # Some tokenizers put a blank before every text: then the longest pieces that fit are taken.
        return self._longest(wanted)

    def id_of(self, spelled: bytes) -> int | None:
        """The token of these bytes; None where there is none."""
        return self._by_bytes.get(spelled)

    def _longest(self, wanted: bytes) -> tuple[int, ...]:
        ids: list[int] = []
        at = 0
        while at < len(wanted):
            size = next(
                (
                    size
                    for size in range(min(self._piece_max, len(wanted) - at), 0, -1)
                    if wanted[at : at + size] in self._by_bytes
                ),
                0,
            )
            if not size:
                raise EngineError("the server behind this host wrote what its model's tokenizer can't spell")
            ids.append(self._by_bytes[wanted[at : at + size]])
            at += size
        return tuple(ids)

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        special = {*self._vocabulary.special.values(), *self._vocabulary.silent}
        found: dict[bytes, int] = {}
        for token, piece in enumerate(self._vocabulary.pieces):
            if piece and token not in special:
                found.setdefault(piece, token)
        return found

    @cached_property
    def _piece_max(self) -> int:
        return max(map(len, self._by_bytes), default=0)


class TextIds:
    """The ids of one answer."""

    def __init__(self, speller: Speller) -> None:
        self._speller = speller
        self._held = ""

    def feed(self, text: str) -> tuple[int, ...]:
        """The ids that are certain after ``text``: those of whole words."""
        self._held += text
        cut = _last_word(self._held)
        if not cut and len(self._held) > _HELD_MAX:
            cut = len(self._held)
        if not cut:
            return ()
        ready, self._held = self._held[:cut], self._held[cut:]
        return self._speller.ids(ready)

    def finish(self) -> tuple[int, ...]:
        """The ids of what is held back."""
        held, self._held = self._held, ""
        return self._speller.ids(held) if held else ()


def _last_word(text: str) -> int:
    """Where the last word begins whose blank has no blank before it and a letter after it; 0: nowhere."""
    at = len(text) - 1
    while (at := text.rfind(" ", 1, at)) > 0:
        if not text[at - 1].isspace() and text[at + 1].isalpha():
            return at
    return 0
