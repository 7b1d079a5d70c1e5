"""``Marks``: a prompt in pieces, in which only the chat template puts special tokens.

The template is rendered with a mark in the place of each text of a user. Marks are random, so that no text
can hold one. Special tokens are then searched in what the template put out, and not in the texts:
``<|im_start|>`` in a question stays eleven letters. Neighbouring text of both kinds stays together, because a
tokeniser joins letters across that border as in training.

Pure. This module knows no engine; its pieces are what llama.cpp's ``/tokenize`` takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from p2pnode.errors import EngineError
from p2pnode.models.vocabulary import Vocabulary

Piece: TypeAlias = str | int
"""Text without any special token, or the id of one."""
_STRIPPED: Final = " \t\n\r"
_PAD: Final = "\t"
"""Around each mark: a template that trims its messages takes it away, and then their text is trimmed too."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_ .,:/$-]{0,64}")
"""A word that a template may compare, such as ``"string"``, and that no special token can hide in."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of the prompt: what the template put out, or, ``of_user``, a text that was put in its place."""

    text: str
    of_user: bool


class Marks:
    """Marks for texts, and the texts for marks. ``nonce``: letters and digits that can't be guessed."""

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._mark = re.compile(f"({_PAD}?){nonce}x([0-9]+)x({_PAD}?)")
        self._texts: list[str] = []
        self._places: dict[int, str] = {}
        """Texts that must be in the prompt, and what they are."""
        self._holds: dict[int, set[int]] = {}
        """Texts that were made of others, and of which."""

    def of(self, text: str, *, what: str = "") -> str:
        """The mark of ``text``; "" for none, since a template may ask whether there is any.

        The prompt must hold it where ``what`` names it.
        """
        if not text:
            return ""
        index = len(self._texts)
        self._texts.append(text)
        if what:
            self._places[index] = what
        return f"{_PAD}{self._nonce}x{index}x{_PAD}"

    def within(self, value: Any) -> Any:
        """JSON values with marks for all texts in them, but for plain words, which templates compare."""
        if isinstance(value, str):
            return value if _PLAIN.fullmatch(value) else self.of(value)
        if isinstance(value, Mapping):
            return {self.within(key): self.within(each) for key, each in value.items()}
        return [self.within(each) for each in value] if isinstance(value, list | tuple) else value

    def of_json(self, value: Any, write: Callable[[Any], str]) -> str:
        """The mark of ``value`` as ``write`` writes it, with the texts in the places of their marks."""
        mark = self.of(write(self.undone(value)))
        self._holds[len(self._texts) - 1] = {int(found[2]) for found in self._mark.finditer(write(value))}
        return mark

    def undone(self, value: Any) -> Any:
        """JSON values with the texts back in the places of their marks."""
        if isinstance(value, str):
            return self._mark.sub(lambda found: self._texts[int(found[2])], value)
        if isinstance(value, Mapping):
            return {self.undone(key): self.undone(each) for key, each in value.items()}
        return [self.undone(each) for each in value] if isinstance(value, list | tuple) else value

    def segments(self, rendered: str) -> list[Segment]:
        """The prompt: what the template rendered, with the texts in the places of the marks.

        Raises ``EngineError`` where the template leaves a text out, since nobody would notice that it is
        missing, or changes one.
        """
        made: list[Segment] = []
        seen: set[int] = set()
        position = 0
        for found in self._mark.finditer(rendered):
            index = int(found[2])
            seen |= {index, *self._holds.get(index, ())}
            made.append(Segment(rendered[position : found.start()], of_user=False))
            text = self._texts[index]
            text = text if found[1] else text.lstrip(_STRIPPED)
            made.append(Segment(text if found[3] else text.rstrip(_STRIPPED), of_user=True))
            position = found.end()
        made.append(Segment(rendered[position:], of_user=False))
        if any(self._nonce in each.text.lower() for each in made if not each.of_user):
            msg = "this model's chat template changes the texts of a conversation, which is not supported"
            raise EngineError(msg, code="bad_request")
        for index, what in self._places.items():
            if index not in seen:
                raise no_place(what)
        return [each for each in made if each.text]


def no_place(what: str) -> EngineError:
    """The template leaves ``what`` out."""
    msg = f"this model's chat template has no place for {what}"
    return EngineError(msg, code="bad_request")


def pieces_of(segments: Iterable[Segment], vocabulary: Vocabulary) -> list[Piece]:
    """The segments with the special tokens of the template as ids."""
    pieces = _Pieces(vocabulary)
    for segment in segments:
        if segment.of_user:
            pieces.add_text(segment.text)
        else:
            pieces.add_template(segment.text)
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
