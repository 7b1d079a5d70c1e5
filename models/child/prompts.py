"""``PromptMaker``: an engine's prompts, of a chat template, a vocabulary, and what turns text into ids.

Rendering and grammars are ours (``models/prompt_compiler.py``), whatever the engine is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.engine import EngineFeature
from p2pnode.models.prompt import Piece, pieces_of
from p2pnode.models.prompt_compiler import PromptCompiler, text_of_prefix
from p2pnode.models.renderer import ChatTemplate, reasons_of
from p2pnode.models.validation import BYTES_PER_TOKEN_MAX, check_text, validate_sampling
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import PromptBody

Encode: TypeAlias = Callable[[Sequence[Piece], bool], Awaitable[tuple[int, ...]]]
"""The ids of pieces in a row; where the second is true, with the token that begins every prompt, if any."""


class PromptMaker:
    """Makes prompts of at most ``n_ctx`` tokens, or refuses them."""

    def __init__(self, template: ChatTemplate, vocabulary: Vocabulary, encode: Encode, n_ctx: int) -> None:
        self.vocabulary: Final = vocabulary
        self._compiler = PromptCompiler(template)
        self._encode = encode
        self._n_ctx = n_ctx

    def features(self) -> frozenset[EngineFeature]:
        """What any engine with this template can do that samples by our grammars."""
        features: tuple[EngineFeature, ...] = ("tools", "schema", "logprobs")
        return frozenset((*features, "reasoning") if reasons_of(self._compiler.template) else features)

    async def aclose(self) -> None:
        """End the process that compiles."""
        await self._compiler.aclose()

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """The prompt by the model's chat template, which runs in a process with limits."""
        validate_sampling(body.sampling, len(self.vocabulary))
        text, pending = await text_of_prefix(self.vocabulary, body)
        parts = await self._compiler.compile(body, text=text, letters_max=self._n_ctx * BYTES_PER_TOKEN_MAX)
        pieces = pieces_of(parts.segments, self.vocabulary)
        # With the empty text first, a begin token that the model needs comes before everything.
        ids = await self._encode(["", *pieces], True)
        if len(ids) > 1 and ids[0] == ids[1] == self.vocabulary.special.get(self._compiler.template.bos):
            ids = ids[1:]  # the template wrote it, too
        return CompiledPrompt.of(parts, ids, body, text=text, text_pending=pending)

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        """As ``followed_by`` says; the process that compiles prompts follows the grammar."""
        grown, text = prompt.followed_by(ids, self.vocabulary)
        if grown.grammar is None or not text:
            return grown
        return replace(grown, grammar=await self._compiler.follow(grown.grammar, text))

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text. What looks like a special token in it stays text."""
        check_text(text, n_ctx=self._n_ctx)
        return await self._encode([text], False)
