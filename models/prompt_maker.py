"""``PromptMaker``: a model's prompts, of a chat template, a vocabulary, and what turns text into ids.

Rendering and grammars are ours (``models/prompt_compiler.py``), whatever turns text into ids: an engine, or
the model's tokenizer alone, with which a client makes the prompts that a host makes.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import trio

from p2pnode.models.catalogue import is_shipped_template
from p2pnode.models.compiled_prompt import CompiledPrompt, PromptParts
from p2pnode.models.engine import EngineFeature
from p2pnode.models.prompt import Piece, pieces_of
from p2pnode.models.prompt_compiler import PromptCompiler, compile_prompt, text_of_prefix
from p2pnode.models.prompt_files import PromptFiles
from p2pnode.models.renderer import CHATML, ChatTemplate, Renderer, reasons_of
from p2pnode.models.tokenizer import load_tokenizer
from p2pnode.models.validation import BYTES_PER_TOKEN_MAX, check_text, validate_sampling
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import PromptBody

Encode: TypeAlias = Callable[[Sequence[Piece], bool], Awaitable[tuple[int, ...]]]
"""The ids of pieces in a row; where the second is true, with the token that begins every prompt, if any."""
Around: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""The ids before and after a text."""
_LETTERS_ON_THE_LOOP: Final = 20_000
"""Longer texts are tokenised in a thread, and rendered in the process with limits."""
_MESSAGES_ON_THE_LOOP: Final = 64


class PromptMaker:
    """Makes prompts of at most ``n_ctx`` tokens, or refuses them."""

    def __init__(
        self,
        template: ChatTemplate,
        vocabulary: Vocabulary,
        encode: Encode,
        n_ctx: int,
        *,
        around: Around | None = None,
    ) -> None:
        """``around``: the ids around a text that is embedded; None where ``encode`` puts them there."""
        self.vocabulary: Final = vocabulary
        self._around = around
        self._compiler = PromptCompiler(template)
        # A process with limits takes a hundred times as long, and guards against what isn't there.
        self._renderer = Renderer(template) if is_shipped_template(template.source) else None
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
        """The prompt by the model's chat template. A stranger's template or schema runs in a process with
        limits."""
        validate_sampling(body.sampling, len(self.vocabulary))
        text, pending = await text_of_prefix(self.vocabulary, body)
        parts = await self._parts(body, text, self._n_ctx * BYTES_PER_TOKEN_MAX)
        pieces = pieces_of(parts.segments, self.vocabulary)
        # With the empty text first, a begin token that the model needs comes before everything.
        ids = await self._encode(["", *pieces], True)
        if len(ids) > 1 and ids[0] == ids[1] == self.vocabulary.special.get(self._compiler.template.bos):
            ids = ids[1:]  # the template wrote it, too
        return CompiledPrompt.of(parts, ids, body, text=text, text_pending=pending)

    async def _parts(self, body: PromptBody, text: str, letters_max: int) -> PromptParts:
        if self._renderer is None or not _is_plain(body):
            return await self._compiler.compile(body, text=text, letters_max=letters_max)
        nonce = secrets.token_hex(8)
        return compile_prompt(self._renderer, body, text=text, nonce=nonce, letters_max=letters_max)

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

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ids of each text as it is embedded, with those that the tokenizer puts around it."""
        found = []
        for text in texts:
            check_text(text, n_ctx=self._n_ctx)
            before, after = self._around or ((), ())
            found.append((*before, *await self._encode([text], self._around is None), *after))
        return tuple(found)


def _is_plain(body: PromptBody) -> bool:
    """Whether to render this takes a few milliseconds: no schema, no JSON, and a short conversation."""
    if body.tools or body.response_format.kind != "text" or len(body.messages) > _MESSAGES_ON_THE_LOOP:
        return False
    if any(message.tool_calls for message in body.messages):
        return False
    return sum(len(message.text) for message in body.messages) <= _LETTERS_ON_THE_LOOP


def encodes(encode: Callable[[str], Sequence[int]], begins: Sequence[int]) -> Encode:
    """An ``Encode`` of what turns a text into ids. ``begins``: the ids that stand before every prompt."""

    async def encoded(pieces: Sequence[Piece], with_begins: bool) -> tuple[int, ...]:
        ids = list(begins) if with_begins else []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            elif len(piece) > _LETTERS_ON_THE_LOOP:
                ids += await trio.to_thread.run_sync(encode, piece)
            elif piece:
                ids += encode(piece)
        return tuple(ids)

    return encoded


async def prompt_maker(files: PromptFiles, n_ctx: int) -> PromptMaker:
    """Makes prompts from a tokenizer's blob and a template alone. Raises what ``load_tokenizer`` raises."""
    tokenizer = await trio.to_thread.run_sync(load_tokenizer, files.tokenizer)
    template = ChatTemplate(files.chat_template or CHATML, tokenizer.bos, tokenizer.eos)
    encode = encodes(tokenizer.encode, tokenizer.begins)
    return PromptMaker(template, tokenizer.vocabulary, encode, n_ctx, around=tokenizer.around)
