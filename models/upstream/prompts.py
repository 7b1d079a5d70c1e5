"""``Prompts``: from a turn to token ids and back to text, for a server that can't be asked for them.

The chat template and the tokenizer are the model's, and ours to run: the server gets ids, or the text that
these ids spell, and adds nothing to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import trio

from p2pnode.errors import EngineError
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.prompt import pieces_of
from p2pnode.models.prompt_compiler import PromptCompiler, text_of_prefix
from p2pnode.models.renderer import ChatTemplate, reasons_of
from p2pnode.models.upstream.text_ids import Speller
from p2pnode.models.validation import BYTES_PER_TOKEN_MAX, check_text, validate_sampling
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import PromptBody

_LETTERS_ON_THE_LOOP: Final = 20_000
"""Longer texts are tokenised in a thread."""


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """What is known of a model without its weights. ``encode``: text to ids, without special tokens;
    ``begins``: the ids that stand before every prompt."""

    template: ChatTemplate
    vocabulary: Vocabulary
    encode: Callable[[str], Sequence[int]]
    begins: tuple[int, ...] = ()

    @cached_property
    def speller(self) -> Speller:
        """The exact ids of any text of an answer."""
        return Speller(self.encode, self.vocabulary)

    @cached_property
    def names(self) -> dict[int, str]:
        """The special tokens by their ids."""
        special = {**self.vocabulary.found_in_text, **self.vocabulary.special}
        return {token: name for name, token in special.items()}

    @property
    def reasons(self) -> bool:
        """Whether its answers begin with thoughts."""
        return reasons_of(self.template)

    def text_of(self, ids: Sequence[int], *, adds_begin: bool) -> str:
        """The text that makes these ids at a server that reads special tokens in it.

        Raises ``EngineError`` where there is none: where a message holds the name of a special token, which
        such a server would take for the token itself.
        """
        if adds_begin and self.begins and tuple(ids[: len(self.begins)]) == self.begins:
            ids = ids[len(self.begins) :]
        parts: list[bytes] = []
        specials = 0
        for token in ids:
            name = self.names.get(token)
            specials += name is not None
            parts.append(self.vocabulary.piece(token) if name is None else name.encode())
        try:
            text = b"".join(parts).decode()
        except UnicodeDecodeError as error:
            msg = "the partial answer ends inside of a character, which this host's server can't go on from"
            raise EngineError(msg, code="bad_request") from error
        found = sum(text.count(name) for name in self.names.values())
        if found > specials:
            held = next(name for name in self.names.values() if name in text)
            msg = (
                f"a text of the conversation holds the name of a special token (such as {held!r}), which the "
                "server behind this host would take for the token: leave it out, or use another host"
            )
            raise EngineError(msg, code="bad_request")
        return text


class Prompts:
    """The prompts of one model."""

    def __init__(self, model: TextModel) -> None:
        self.model: Final = model
        self._compiler = PromptCompiler(model.template)

    async def aclose(self) -> None:
        """End the process that compiles prompts."""
        await self._compiler.aclose()

    async def prompt(self, body: PromptBody, *, n_ctx: int) -> CompiledPrompt:
        """As ``Engine.prompt``."""
        model = self.model
        validate_sampling(body.sampling, len(model.vocabulary))
        text, pending = await text_of_prefix(model.vocabulary, body)
        parts = await self._compiler.compile(body, text=text, letters_max=n_ctx * BYTES_PER_TOKEN_MAX)
        ids = list(model.begins)
        for piece in pieces_of(parts.segments, model.vocabulary):
            ids += await self._encode(piece) if isinstance(piece, str) else [piece]
        bos = model.vocabulary.special.get(model.template.bos)
        if len(ids) > 1 and ids[0] == ids[1] == bos:
            ids = ids[1:]  # the template wrote it, too
        return CompiledPrompt.of(parts, ids, body, text=text, text_pending=pending)

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        """As ``Engine.extend``."""
        grown, text = prompt.followed_by(ids, self.model.vocabulary)
        if grown.grammar is None or not text:
            return grown
        return replace(grown, grammar=await self._compiler.follow(grown.grammar, text))

    async def tokenize(self, text: str, *, n_ctx: int) -> tuple[int, ...]:
        """As ``Engine.tokenize``."""
        check_text(text, n_ctx=n_ctx)
        return await self._encode(text)

    async def _encode(self, text: str) -> tuple[int, ...]:
        if len(text) > _LETTERS_ON_THE_LOOP:
            return tuple(await trio.to_thread.run_sync(self.model.encode, text))
        return tuple(self.model.encode(text))
