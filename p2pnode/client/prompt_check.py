"""``PromptRenderers``: a prompt as ids, made on this machine, so that a quote for another one is seen.

A host could quote more than a prompt takes, or read another prompt than the one it was sent. Where the files
of a model lie here, a client that pays renders the prompt itself and takes that quote only. Where they don't,
it holds the quote against a bound that follows from bytes alone (``KnownModel.input_max``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from p2pnode.errors import EngineError
from p2pnode.ids import ModelId
from p2pnode.models.engine import Engine
from p2pnode.models.local_models import LocalModel, installed
from p2pnode.models.manifest import scripted_model_id
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.embeddings import texts_hash
from p2pnode.protocols.inference.messages import N_CTX_MAX, PromptBody
from p2pnode.protocols.inference.receipts import ids_hash

log = structlog.get_logger()
_THREADS = 1


class PromptRenderers:
    """The engines that render, one a model, each made when a prompt of its model is asked first.

    That of llama.cpp is a child which maps the weights and computes nothing with them.
    """

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._engines: dict[ModelId, Engine | None] = {}
        self._installed: Mapping[ModelId, LocalModel] | None = None

    def use(self, model: ModelId, engine: Engine) -> None:
        """Render prompts of this model with ``engine``, which the caller closes."""
        self._engines[model] = engine

    async def with_own_count(self, model: ModelId, ask: Ask) -> Ask:
        """``ask``, with the count and hash that its quote must have, where they can be made here."""
        tokens, digest = await self.rendered(model, ask.body) or (None, None)
        return replace(ask, prompt_tokens=tokens, prompt_hash=digest)

    async def rendered(self, model: ModelId, body: PromptBody) -> tuple[int, bytes] | None:
        """How many ids the prompt has, and the hash that its quote must name; None where they can't be made.

        A prompt that this engine refuses is left to hosts, which say in words what is wrong with it.
        """
        if model not in self._engines:
            self._engines[model] = self._made(model)
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

    def _made(self, model: ModelId) -> Engine | None:
        if model == scripted_model_id():
            from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine

            return ScriptedEngine(ScriptedConfig(n_ctx=N_CTX_MAX))
        if self._installed is None:
            models = installed(self._models_dir) if self._models_dir.is_dir() else []
            self._installed = {each.model_id: each for each in models if each.manifest.format == "gguf"}
        local = self._installed.get(model)
        if local is None:
            return None
        from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine

        return LlamaCppEngine(local, LlamaCppConfig(slots=1, threads=_THREADS, renders_only=True))
