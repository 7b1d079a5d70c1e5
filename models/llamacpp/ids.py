"""From llama.cpp's stream frames to token ids, each exactly once.

A frame carries the one id it was sent for. Inside a UTF-8 character llama.cpp sends nothing, so the ids of
the tokens that began the character never come; ``tokens_predicted`` jumps and tells how many. They are
recovered where text and vocabulary leave one possibility. Where they don't, ``lost`` says how many ids must
be made again: whoever drives the engine asks for them from the last certain id on, without streaming, which
does give every id.

Pure. This module knows nothing of text or of stop strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pnode.models.vocabulary import Vocabulary


class IdStream:
    """The ids of one streamed completion."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._predicted = 0
        self._silent: list[int] = []
        """Ids without text, held until it shows that they are not the end of the turn."""
        self.lost = 0
        """How many ids after the certain ones exist and can't be told. Nothing is taken after this."""
        self.ended = False
        """The last frame came."""
        self.end_of_turn = False
        """The model ended its turn (meaningful once ``ended``, and nothing is ``lost``)."""

    def take(self, frame: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids that ``frame`` makes certain."""
        predicted = int(frame["tokens_predicted"])
        made = predicted - self._predicted
        self._predicted = predicted
        if frame.get("stop"):
            return self._end(made, frame.get("stop_type") == "eos")
        *_, last = frame["tokens"]
        before: tuple[int, ...] | None = ()
        if made > 1:
            before = self._vocabulary.recover(str(frame["content"]), last, made - 1)
        certain = tuple(self._silent)
        self._silent.clear()
        if before is None:
            self.lost = made
            return certain
        certain += before
        if last in self._vocabulary.silent:
            self._silent.append(last)
            return certain
        return (*certain, last)

    def _end(self, made: int, end_of_turn: bool) -> tuple[int, ...]:
        self.ended = True
        # With ids missing at the very end, the end of turn is among them, or isn't: they are made again.
        self.lost = made
        self.end_of_turn = end_of_turn and not made
        if self.end_of_turn and self._silent:
            self._silent.pop()
        return tuple(self._silent)
