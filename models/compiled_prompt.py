"""``CompiledPrompt``: a prompt as an engine takes it, and how it grows by the ids of its answer.

Rendering and compiling are dear, and are done once a turn. When an engine begins again in the middle of an
answer, the prompt grows by what was made: nothing is rendered, and its grammar is followed, not compiled.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from p2pnode.models.grammar import AnyGrammar
from p2pnode.models.prompt import Segment
from p2pnode.models.text import TextAssembler
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import PromptBody

GROWTH_BYTES: Final = 64 << 10
"""By so much a grammar may grow with its answer, uncounted: some hundred values, each inside of another."""
_LETTER_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptParts:
    """What ``compile_prompt`` makes of a prompt. ``grammar``: of what follows the prefix, None where it is
    free."""

    segments: tuple[Segment, ...]
    format: str
    reasons: bool
    thinking: bool
    grammar: AnyGrammar | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPrompt:
    """``ids`` up to and with the prefix, and what reads the answer.

    ``format`` is that of the answer's calls, "" where it has none; ``reasons`` and ``thinking`` are those of
    ``AnswerReader``. ``text`` is that of the prefix but for its last ``text_pending`` ids, whose text may
    still become something else.
    """

    ids: tuple[int, ...]
    format: str = ""
    reasons: bool = False
    thinking: bool = False
    grammar: AnyGrammar | None = None
    """What may follow ``text``; None where all may."""
    text: str = ""
    text_pending: int = 0
    stop: tuple[str, ...] = ()
    """The stop strings."""
    made: int = 0
    """How many of ``ids`` are of the answer, and no part of the prefix."""

    @classmethod
    def of(
        cls, parts: PromptParts, ids: Sequence[int], body: PromptBody, *, text: str, text_pending: int
    ) -> CompiledPrompt:
        """The prompt of ``body``, whose messages are ``parts`` and ``ids``. ``text`` and ``text_pending`` are
        those of its prefix, as ``text_of_prefix`` gives them."""
        return cls(
            ids=(*ids, *body.prefix),
            format=parts.format,
            reasons=parts.reasons,
            thinking=parts.thinking,
            grammar=parts.grammar,
            text=text,
            text_pending=text_pending,
            stop=body.sampling.stop,
        )

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that it holds besides its ids, at most, and that its grammar may come to hold."""
        grammar = 0 if self.grammar is None else self.grammar.held_bytes + GROWTH_BYTES
        return _LETTER_BYTES * len(self.text) + grammar

    def followed_by(self, ids: Sequence[int], vocabulary: Vocabulary) -> tuple[CompiledPrompt, str]:
        """The prompt with more ids of its answer, and the text that they make certain.

        The grammar of the prompt that is returned still has to be followed through that text.
        """
        pending = self.ids[len(self.ids) - self.text_pending :]
        # What is certain ended with a whole character and outside of any stop string, so it is not needed.
        released = TextAssembler(vocabulary.piece, self.stop).feed((*pending, *ids))
        grown = replace(
            self,
            ids=(*self.ids, *ids),
            text=self.text + released.text,
            text_pending=len(pending) + len(ids) - len(released.ids),
            made=self.made + len(ids),
        )
        return grown, released.text
