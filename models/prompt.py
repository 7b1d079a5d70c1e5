"""``MarkedMessages``: a conversation's prompt in pieces, in which only the chat template puts special tokens.

The template is rendered with a mark in the place of each message's text. Marks are random, so that no text
can hold one. Special tokens are then searched in what the template put out, and not in the messages:
``<|im_start|>`` in a question stays eleven letters. Neighbouring text of both kinds stays together, because a
tokeniser joins letters across that border as in training.

Pure. This module knows no engine; its pieces are what llama.cpp's ``/tokenize`` takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from p2pnode.errors import EngineError
from p2pnode.models.vocabulary import Vocabulary

Piece: TypeAlias = str | int
"""Text without any special token, or the id of one."""
_STRIPPED: Final = " \t\n\r"
_PAD: Final = "\t"
"""Around each mark: a template that trims its messages takes it away, and then their text is trimmed too."""


class MarkedMessages:
    """``messages`` with a mark in the place of each text. ``nonce``: letters and digits that can't be
    guessed."""

    def __init__(self, messages: Sequence[Mapping[str, str]], nonce: str) -> None:
        self._texts = [message["content"] for message in messages]
        self._mark = re.compile(f"({_PAD}?){nonce}x([0-9]+)x({_PAD}?)")
        self.messages: Final = [
            {
                "role": message["role"],
                # A template may ask whether there is any text.
                "content": f"{_PAD}{nonce}x{index}x{_PAD}" if message["content"] else "",
            }
            for index, message in enumerate(messages)
        ]

    def pieces(self, rendered: str, vocabulary: Vocabulary) -> list[Piece]:
        """The prompt: what the template rendered, with the texts in the places of the marks.

        Raises ``EngineError`` where the template leaves a message out: nobody would notice that it is
        missing.
        """
        pieces = _Pieces(vocabulary)
        seen: set[int] = set()
        position = 0
        for found in self._mark.finditer(rendered):
            index = int(found[2])
            seen.add(index)
            pieces.add_template(rendered[position : found.start()])
            text = self._texts[index]
            text = text if found[1] else text.lstrip(_STRIPPED)
            pieces.add_text(text if found[3] else text.rstrip(_STRIPPED))
            position = found.end()
        pieces.add_template(rendered[position:])
        for index, text in enumerate(self._texts):
            if text and index not in seen:
                msg = f"this model's chat template has no place for message {index + 1} of the conversation"
                raise EngineError(msg, code="bad_request")
        return pieces.made


class _Pieces:
    """Gathers the pieces, and joins neighbouring texts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._special = vocabulary.special
        # llama.cpp finds these tokens anywhere in a text, unless their name is cut in two.
        self._found_anyway = _any_of(vocabulary.found_in_text)
        self._any_special = _any_of({**vocabulary.special, **vocabulary.found_in_text})
        self.made: list[Piece] = []
        self._open = False
        """Whether the last piece goes on."""

    def add_template(self, text: str) -> None:
        """Add text that the template put out."""
        position = 0
        for found in self._any_special.finditer(text):
            self._add(text[position : found.start()])
            token = self._special.get(found[0])
            if token is None:
                self._add(found[0])
            else:
                self.made.append(token)
                self._open = False
            position = found.end()
        self._add(text[position:])

    def add_text(self, text: str) -> None:
        """Add the text of a message."""
        position = 0
        # The search goes on at the cut: what is left of one name may begin another.
        while found := self._found_anyway.search(text, position):
            self._add(text[position : found.start() + 1])
            self._open = False
            position = found.start() + 1
        self._add(text[position:])

    def _add(self, text: str) -> None:
        last = self.made[-1] if self._open and self.made else None
        if isinstance(last, str):
            self.made[-1] = last + text
        elif text:
            self.made.append(text)
            self._open = True


def _any_of(tokens: Mapping[str, int]) -> re.Pattern[str]:
    # The longest first, as llama.cpp looks for them.
    names = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(re.escape(name) for name in names) if names else "(?!)")
