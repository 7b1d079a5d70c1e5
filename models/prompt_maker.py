"""``PromptMaker``: a model's prompts as ids, from its tokenizer's blob and its chat template alone.

It makes what an engine with the whole model makes (``Engine.prompt``). The template runs in the process with
limits of ``models/prompt_compiler.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.prompt_compiler import PromptCompiler, text_of_prefix
from p2pnode.models.prompt_files import PromptFiles
from p2pnode.models.renderer import CHATML, ChatTemplate
from p2pnode.models.tokenizer import Tokenizer, load_tokenizer
from p2pnode.models.validation import BYTES_PER_TOKEN_MAX, no_embeddings, validate_sampling
from p2pnode.protocols.inference.messages import PromptBody


class PromptMaker:
    """Of one model. ``n_ctx`` bounds its prompts, in tokens. Made by :func:`prompt_maker`."""

    def __init__(self, tokenizer: Tokenizer, template: str, n_ctx: int) -> None:
        self._tokenizer: Final = tokenizer
        self._compiler = PromptCompiler(ChatTemplate(template or CHATML, tokenizer.bos, tokenizer.eos))
        self._letters_max = n_ctx * BYTES_PER_TOKEN_MAX

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """The prompt of ``body``, with its prefix. Raises ``EngineError``, as an engine does."""
        vocabulary = self._tokenizer.vocabulary
        validate_sampling(body.sampling, len(vocabulary))
        text, pending = await text_of_prefix(vocabulary, body)
        parts = await self._compiler.compile(body, text=text, letters_max=self._letters_max)
        ids = await trio.to_thread.run_sync(self._tokenizer.prompt_ids, parts.segments)
        return CompiledPrompt.of(parts, ids, body, text=text, text_pending=pending)

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        """It makes no embeddings."""
        await trio.lowlevel.checkpoint()
        raise no_embeddings()

    async def aclose(self) -> None:
        """End the process of the template."""
        await self._compiler.aclose()


async def prompt_maker(files: PromptFiles, n_ctx: int) -> PromptMaker:
    """Raises what ``load_tokenizer`` raises."""
    tokenizer = await trio.to_thread.run_sync(partial(load_tokenizer, files.tokenizer))
    return PromptMaker(tokenizer, files.chat_template, n_ctx)
