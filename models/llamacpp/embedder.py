"""``LlamaCppEmbedder``: vectors of texts by llama.cpp, in a child process of its own.

A child that writes answers computes few rows at once, so that its numbers depend on nothing but its ids; one
that embeds has to read a whole text at once. So they are two processes: an embedding takes no slot of an
answer, and changes none of its numbers. Texts are read one after the other, and a vector depends on its text
alone. How much is read at once bounds a text: :func:`embedder_context`.

The vector is that of the model's own pooling where its file names one. Else it is the mean of the last hidden
states of all tokens, after the last norm, at length 1.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import trio

from p2pnode.errors import ConfigError, EngineError
from p2pnode.models.child.keeper import ChildKeeper
from p2pnode.models.child.process import ChildProcess
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.context import allocated
from p2pnode.models.engine import (
    Embedding,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineInfo,
    EngineStatistics,
    GenerateRequest,
    Prefill,
)
from p2pnode.models.gguf import GgufHeader, read_header
from p2pnode.models.llamacpp.engine import LlamaCppConfig, check_sizes, start_llamacpp
from p2pnode.models.llamacpp.server import Pooling
from p2pnode.models.local_models import LocalModel
from p2pnode.models.slot_wait import wait_assigned
from p2pnode.models.slots import QueuedRequest, SlotQueue
from p2pnode.models.validation import check_embed, check_text
from p2pnode.protocols.inference.messages import PromptBody

_TURNS: Final = 4
"""Requests whose texts are read in turns; more wait."""
_TOKEN_S: Final = 1.0
"""No machine that is of any use takes longer for a token: a child that does hangs."""
_POOLINGS: Final[dict[int, Pooling]] = {1: "mean", 2: "cls", 3: "last"}
"""llama.cpp's ``enum llama_pooling_type``; 4 is that of models that judge a pair of texts."""
_NO_POOLING: Final = 0
_ANY_ID: Final = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderConfig:
    """``n_ctx`` is the longest text, in tokens, cut to what the model was trained for."""

    n_ctx: int = 1024
    threads: int = field(default_factory=lambda: LlamaCppConfig().threads)
    queue_max: int = 32
    runtime_dir: Path | None = None
    load_deadline_s: float = 300.0
    renders_only: bool = False
    """Whether it counts texts only: then it reads no weights."""
    hang_s: float = 60.0
    """A text may take so long, and a second for each of its tokens; then the child hangs."""


def pooling_in(header: GgufHeader) -> Pooling | None:
    """The pooling that the file of an embedding model names; None for a model that writes answers.

    Raises ``ConfigError`` for a model whose vectors are something else.
    """
    kind = header.values.get(f"{header.text('general.architecture')}.pooling_type", _NO_POOLING)
    if kind == _NO_POOLING:
        return None
    found = _POOLINGS.get(kind) if isinstance(kind, int) else None
    if found is None:
        msg = (
            f"{header.path}: it judges pairs of texts (a reranker), which nothing here can ask for: choose a "
            "model that writes answers, or one that embeds"
        )
        raise ConfigError(msg)
    return found


class LlamaCppEmbedder(ChildKeeper):
    """An ``Engine`` (see ``models/engine.py``) that embeds, and does nothing else."""

    def __init__(self, model: LocalModel, config: EmbedderConfig | None = None) -> None:
        self._model = model
        self._config = config = config or EmbedderConfig()
        super().__init__(hang_s=config.hang_s)
        self._n_ctx = min(config.n_ctx, model.manifest.n_ctx)
        self._queue = SlotQueue(_TURNS, config.queue_max)
        self._reading = trio.Lock()
        """Held while the child reads a text: it goes round among the requests."""
        self._pooling: Pooling = "mean"

    async def load(self) -> EngineInfo:
        """Start the child, load the weights and embed a first text."""
        await self._running()
        return EngineInfo(
            engine="llamacpp",
            quantisation=self._model.manifest.quantisation,
            n_ctx=self._n_ctx,
            slots=_TURNS,
            build=version("xllamacpp"),
            kv_types="f16/f16",
            features=frozenset({"embeddings"}),
        )

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ids of each text, with those that the model's tokenizer puts around it."""
        found = []
        for text in texts:
            check_text(text, n_ctx=self._n_ctx)
            body = {"content": [text], "add_special": True, "parse_special": False}
            found.append(tuple((await self._call("/tokenize", body))["tokens"]))
        self._check(tuple(found))
        return tuple(found)

    @asynccontextmanager
    async def embed(self, request: EmbedRequest) -> AsyncIterator[AsyncIterator[EmbedEvent]]:
        """Embed texts, one after the other. Leaving the block takes effect after the text that is read."""
        self._check(request.texts)
        place = self._queue.enter(request.session + b"embed", (), request.origin, request.session)
        try:
            async with aclosing(self._vectors(request, place)) as events:
                yield events
        finally:
            self._queue.leave(place)

    async def _vectors(self, request: EmbedRequest, place: QueuedRequest) -> AsyncGenerator[EmbedEvent, None]:
        await wait_assigned(place)
        processed, total = 0, sum(map(len, request.texts))
        for ids in request.texts:
            async with self._reading:
                deadline_s = self._hang_s + _TOKEN_S * len(ids)
                (answer,) = await self._call("/embedding", {"content": list(ids)}, deadline_s=deadline_s)
            self._backoff.reset()
            processed += len(ids)
            yield Prefill(processed=processed, total=total)
            yield Embedding(tuple(map(float, answer["embedding"][0])))

    def _check(self, texts: tuple[tuple[int, ...], ...]) -> None:
        check_embed(EmbedRequest(texts=texts), n_ctx=self._n_ctx, vocabulary=_ANY_ID)

    def statistics(self) -> EngineStatistics:
        """A snapshot of the load. ``extra`` has ``up``, which is 1 while the child runs."""
        return self._queue.statistics(restarts=self._restarts, extra=self._up)

    async def arithmetic(self) -> bytes:
        """Empty: what it computes is no distribution of tokens."""
        await trio.lowlevel.checkpoint()
        return b""

    # ---- what it doesn't do

    async def prompt(self, body: PromptBody) -> CompiledPrompt:  # noqa: ARG002
        """It makes no prompts."""
        await trio.lowlevel.checkpoint()
        self._only_embeds()

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:  # noqa: ARG002
        """It makes no prompts."""
        await trio.lowlevel.checkpoint()
        self._only_embeds()

    async def tokenize(self, text: str) -> tuple[int, ...]:  # noqa: ARG002
        """It makes no prompts."""
        await trio.lowlevel.checkpoint()
        self._only_embeds()

    def reusable(self, cache_key: bytes, prompt_ids: tuple[int, ...]) -> int:  # noqa: ARG002
        """It has no cache."""
        return 0

    def generate(
        self,
        request: GenerateRequest,  # noqa: ARG002
    ) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """It writes no answers."""
        self._only_embeds()

    def _only_embeds(self) -> NoReturn:
        msg = f"{self._model.name} makes vectors of texts and writes no answers: ask it with `p2pnode embed`"
        raise EngineError(msg, code="bad_request")

    # ---- the child

    async def _prepare(self) -> None:
        await trio.to_thread.run_sync(check_sizes, self._model)
        header = await trio.to_thread.run_sync(read_header, self._model.weights_path)
        self._pooling = pooling_in(header) or "mean"

    async def _start_child(self) -> ChildProcess:
        config = self._config
        n_ctx = allocated(0 if config.renders_only else self._n_ctx)
        return await start_llamacpp(
            model=self._model.weights_path,
            n_ctx=n_ctx,
            slots=1,
            threads=config.threads,
            batch=n_ctx,
            pooling=None if config.renders_only else self._pooling,
            renders_only=config.renders_only,
            runtime_dir=config.runtime_dir,
            deadline_s=config.load_deadline_s,
        )

    def _forget(self) -> None:
        """It holds nothing from one text to the next."""
