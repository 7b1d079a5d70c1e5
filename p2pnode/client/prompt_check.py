"""``PromptRenderers``: a prompt as ids, made on this machine, so that a quote for another one is seen.

A host could quote more than a prompt takes, or read another prompt than the one it was sent. A client that
pays renders the prompt itself, with the model's tokenizer and chat template, and takes that quote only. They
come from the model's files, where these are here, and else from the host, by the hashes in the manifest, and
are kept. Where there are none, it holds the quote against a bound that follows from bytes alone
(``KnownModel.input_max``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.errors import ConfigError, EngineError
from p2pnode.extras import MissingExtraError
from p2pnode.ids import ModelId, PeerId
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.gguf import read_header
from p2pnode.models.local_models import LocalModel, installed
from p2pnode.models.manifest import Manifest, scripted_model_id
from p2pnode.models.prompt_files import KeptPromptFiles, PromptFiles, read_prompt_files
from p2pnode.models.prompt_maker import prompt_maker
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.embeddings import texts_hash
from p2pnode.protocols.inference.messages import N_CTX_MAX, PromptBody
from p2pnode.protocols.inference.receipts import ids_hash

log = structlog.get_logger()
KEPT: Final = "prompts"
"""The folder in the models directory for tokenizers and templates that were fetched."""
_THREADS: Final = 1
_ASKED_MAX: Final = 256
_FETCH_S: Final = 15.0
"""For a tokenizer of some MiB; without it the quote is held against its bytes."""


class Renders(Protocol):
    """What makes prompts of a model: an engine, or a ``PromptMaker``."""

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """See ``Engine``."""
        ...

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """See ``Engine``."""
        ...

    async def aclose(self) -> None:
        """See ``Engine``."""
        ...


Fetch = Callable[[PeerId, ModelId, Manifest | None, KeptPromptFiles], Awaitable[PromptFiles | None]]
"""Gets from a host what prompts of its model are made of; None where it gives nothing right."""


class PromptRenderers:
    """What renders, one a model, each made when a prompt of its model is asked first.

    ``fetch`` asks a host for what is not here.
    """

    def __init__(self, models_dir: Path, fetch: Fetch | None = None) -> None:
        self._models_dir, self._fetch = models_dir, fetch
        self._engines: dict[ModelId, Renders | None] = {}
        self._installed: Mapping[ModelId, LocalModel] | None = None
        self._kept = KeptPromptFiles(models_dir / KEPT)
        self._asked: BoundedMap[tuple[ModelId, PeerId], bool] = BoundedMap(_ASKED_MAX)
        """Hosts that were asked for what they have not."""

    def use(self, model: ModelId, engine: Renders) -> None:
        """Render prompts of this model with ``engine``, which the caller closes."""
        self._engines[model] = engine

    async def with_own_count(self, model: ModelId, ask: Ask, host: PeerId) -> Ask:
        """``ask``, with the count and hash that its quote must have, where they can be made here."""
        tokens, digest = await self.rendered(model, ask.body, host) or (None, None)
        return replace(ask, prompt_tokens=tokens, prompt_hash=digest)

    async def rendered(
        self, model: ModelId, body: PromptBody, host: PeerId | None = None
    ) -> tuple[int, bytes] | None:
        """How many ids the prompt has, and the hash that its quote must name; None where they can't be made.

        A prompt that this engine refuses is left to hosts, which say in words what is wrong with it.
        """
        if model not in self._engines:
            self._engines[model] = await self._made(model)
        if self._engines[model] is None and host is not None:
            self._engines[model] = await self._fetched(model, host)
        engine = self._engines[model]
        if engine is None:
            return None
        try:
            if body.embed:
                texts = await engine.embed_ids(body.embed)
                return sum(map(len, texts)), texts_hash(texts)
            # Without the ids that hosts sent: one that no grammar or vocabulary has must not end this check.
            ids = (*(await engine.prompt(replace(body, prefix=(), text_bytes=None))).ids, *body.prefix)
        except EngineError as error:
            log.debug("prompt.not_rendered", reason=str(error))
            return None
        return len(ids), ids_hash(ids)

    async def aclose(self) -> None:
        """End the children."""
        engines, self._engines = self._engines, {}
        for engine in engines.values():
            if engine is not None:
                await engine.aclose()

    async def _made(self, model: ModelId) -> Renders | None:
        if model == scripted_model_id():
            from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine

            return ScriptedEngine(ScriptedConfig(n_ctx=N_CTX_MAX))
        if self._installed is None:
            models = installed(self._models_dir) if self._models_dir.is_dir() else []
            self._installed = {each.model_id: each for each in models}
        local = self._installed.get(model)
        if local is None:
            manifest = await trio.to_thread.run_sync(self._manifest, model)
            if manifest is None:
                return None
            kept = await trio.to_thread.run_sync(self._kept.get, manifest)
            return None if kept is None else await _maker(kept, manifest.n_ctx)
        made = await _maker(await trio.to_thread.run_sync(read_prompt_files, local), local.manifest.n_ctx)
        if made is not None or local.manifest.format != "gguf":
            return made
        from p2pnode.models.llamacpp.embedder import EmbedderConfig, LlamaCppEmbedder, pooling_in
        from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine

        if pooling_in(await trio.to_thread.run_sync(read_header, local.weights_path)) is not None:
            config = EmbedderConfig(n_ctx=local.manifest.n_ctx, threads=_THREADS, renders_only=True)
            return LlamaCppEmbedder(local, config)
        # A child that maps the weights and computes nothing with them: llama.cpp itself counts.
        return LlamaCppEngine(local, LlamaCppConfig(slots=1, threads=_THREADS, renders_only=True))

    async def _fetched(self, model: ModelId, host: PeerId) -> Renders | None:
        if self._fetch is None or self._asked.get((model, host)):
            return None
        self._asked.put((model, host), True)
        manifest = await trio.to_thread.run_sync(self._manifest, model)
        files = None
        with trio.move_on_after(_FETCH_S):
            files = await self._fetch(host, model, manifest, self._kept)
        manifest = await trio.to_thread.run_sync(self._manifest, model)
        return await _maker(files, manifest.n_ctx) if manifest and files else None

    def _manifest(self, model: ModelId) -> Manifest | None:
        """That of the catalogue, or one that was fetched. Blocks on the disk."""
        known = (entry.manifest for entry in Catalogue.load() if entry.model_id == model)
        return next(known, None) or self._kept.manifest(model)


async def _maker(files: PromptFiles, n_ctx: int) -> Renders | None:
    """None where its ids would not be certain."""
    try:
        return await prompt_maker(files, n_ctx)
    except (ConfigError, MissingExtraError) as error:
        log.info("prompt.not_counted_exactly", reason=str(error))
        return None
