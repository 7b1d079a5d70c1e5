"""``LlamaCppEngine``, the default engine: llama.cpp (through xllamacpp) in a child process, driven over a
unix socket.

Requests wait in a bounded queue for one of ``slots`` slots, which llama.cpp decodes together (continuous
batching). We choose the slot and say whether its cache may be reused, so that no key ever uses another key's
cache. When the child crashes, hangs or is killed, its requests end with ``EngineError("internal")``, and the
next request starts a new child.

Weights are loaded from a ``LocalModel`` only, whose hash ``models/pull/pull.py`` has checked.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from p2pnode.bounded import Backoff
from p2pnode.errors import ConfigError, EngineError, EngineLostError
from p2pnode.models.arithmetic import LIKELIEST, arithmetic_hash, fixed_prompt
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.context import allocated
from p2pnode.models.engine import (
    ANYBODY,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineFeature,
    EngineInfo,
    EngineStats,
    GenerateRequest,
)
from p2pnode.models.gguf import unusable
from p2pnode.models.llamacpp.http import LlamaCppGoneError, LlamaCppHungError, LlamaCppRefusedError
from p2pnode.models.llamacpp.process import LlamaCppProcess
from p2pnode.models.llamacpp.run import SAMPLERS, LlamaCppRun
from p2pnode.models.llamacpp.server import BATCH
from p2pnode.models.local_models import LocalModel
from p2pnode.models.prompt import Piece, pieces_of
from p2pnode.models.prompt_compiler import PromptCompiler, text_of_prefix
from p2pnode.models.renderer import ChatTemplate, load_template, reasons_of
from p2pnode.models.slot_wait import wait_assigned
from p2pnode.models.slots import SlotQueue
from p2pnode.models.validation import (
    BYTES_PER_TOKEN_MAX,
    check_text,
    no_embeddings,
    tokens_allowed,
    validate_sampling,
)
from p2pnode.models.vocabulary import Vocabulary, load_vocabulary
from p2pnode.protocols.inference.messages import PromptBody

_DEATH_NOTICE_S: Final = 1.0
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_WAIT_FOR_RESTART_S: Final = 1.0
_RETRY_LEAST_S: Final = 0.5
_BAD_REQUEST: Final = 400
_RENDERS_CTX: Final = 64
_ARITHMETIC_KEY: Final = b"arithmetic"
"""Of no session: their keys have 16 bytes and more."""

log = structlog.get_logger(__name__)


def _threads_default() -> int:
    # One core stays free: on a machine without a free core, llama.cpp's threads wait for one another.
    return max(1, len(os.sched_getaffinity(0)) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppConfig:
    """``n_ctx`` is the context of one request, in tokens, cut to what the model was trained for."""

    n_ctx: int = 2048
    slots: int = 4
    threads: int = field(default_factory=_threads_default)
    queue_max: int = 32
    runtime_dir: Path | None = None
    """Where the private directory of the socket is made; by default the system's temporary directory."""
    load_deadline_s: float = 300.0
    renders_only: bool = False
    """Whether it makes prompts and ids only, for any context of the model: then it takes little memory."""
    hang_s: float = 60.0
    """An active request that shows no progress for this long means that the child hangs."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("n_ctx", 64, 1 << 20), ("slots", 1, 64), ("threads", 1, 512), ("queue_max", 0, 4096),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"engine {name} is {getattr(self, name)}; it must be from {least} to {most}"
                )


class LlamaCppEngine:
    """An ``Engine`` (see ``models/engine.py``)."""

    def __init__(self, model: LocalModel, config: LlamaCppConfig | None = None) -> None:
        self._model = model
        self._config = config or LlamaCppConfig()
        trained = model.manifest.n_ctx
        self._n_ctx = trained if self._config.renders_only else min(self._config.n_ctx, trained)
        self._queue = SlotQueue(self._config.slots, self._config.queue_max)
        self._vocabulary: Vocabulary | None = None
        self._template: ChatTemplate | None = None
        self._compiler_made: PromptCompiler | None = None
        self._server: LlamaCppProcess | None = None
        self._starting = trio.Lock()
        self._closed = False
        self._starts = 0
        self._backoff = Backoff(_BACKOFF_FIRST_S, _BACKOFF_MAX_S)
        self._not_before = 0.0

    async def load(self) -> EngineInfo:
        """Start the child, load the weights and make a first token."""
        await self._running()
        return EngineInfo(
            engine="llamacpp",
            quantisation=self._model.manifest.quantisation,
            n_ctx=self._n_ctx,
            slots=self._config.slots,
            build=version("xllamacpp"),
            batch=BATCH,
            kv_types="f16/f16",
            samplers=SAMPLERS,
            features=self._features(),
        )

    def _features(self) -> frozenset[EngineFeature]:
        reasons = self._template is not None and reasons_of(self._template)
        features: tuple[EngineFeature, ...] = ("tools", "schema", "logprobs")
        return frozenset((*features, "reasoning") if reasons else features)

    async def aclose(self) -> None:
        """End the child. Requests under way end with ``EngineError``."""
        self._closed = True
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
        if self._compiler_made is not None:
            await self._compiler_made.aclose()
        await trio.lowlevel.checkpoint()

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """The prompt by the model's chat template, which runs in a process with limits."""
        vocabulary = await self._known_vocabulary()
        validate_sampling(body.sampling, len(vocabulary))
        text, pending = await text_of_prefix(vocabulary, body)
        letters_max = self._n_ctx * BYTES_PER_TOKEN_MAX
        parts = await self._compiler.compile(body, text=text, letters_max=letters_max)
        pieces = pieces_of(parts.segments, vocabulary)
        # With the empty text first, a begin token that the model needs comes before everything.
        ids = await self._tokenize(["", *pieces], begins=True)
        if len(ids) > 1 and ids[0] == ids[1] == vocabulary.special.get(self._compiler.template.bos):
            ids = ids[1:]  # the template wrote it, too
        return CompiledPrompt.of(parts, ids, body, text=text, text_pending=pending)

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        """As ``followed_by`` says; the process that compiles prompts follows the grammar."""
        vocabulary = await self._known_vocabulary()
        grown, text = prompt.followed_by(ids, vocabulary)
        if grown.grammar is None or not text:
            return grown
        return replace(grown, grammar=await self._compiler.follow(grown.grammar, text))

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text. What looks like a special token in it stays text."""
        check_text(text, n_ctx=self._n_ctx)
        return await self._tokenize([text], begins=False)

    def reusable(self, cache_key: bytes, prompt_ids: tuple[int, ...]) -> int:
        """As the slot table says."""
        return self._queue.table.reusable(cache_key, prompt_ids)

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        """It makes no embeddings."""
        await trio.lowlevel.checkpoint()
        raise no_embeddings()

    def embed(
        self,
        request: EmbedRequest,  # noqa: ARG002
    ) -> AbstractAsyncContextManager[AsyncIterator[EmbedEvent]]:
        """It makes no embeddings."""
        raise no_embeddings()

    async def arithmetic(self) -> bytes:
        """The hash for the fixed prompt, computed anew."""
        prompt = fixed_prompt(len(await self._known_vocabulary()))
        place = self._queue.enter(_ARITHMETIC_KEY, prompt, ANYBODY)
        try:
            assignment = await wait_assigned(place)
            answer = await self._call(
                "/completion",
                {
                    "prompt": prompt,
                    "n_predict": 1,
                    "n_probs": LIKELIEST,
                    "temperature": 0.0,
                    "samplers": ["temperature"],
                    "cache_prompt": False,
                    "id_slot": assignment.slot,
                },
            )
            likeliest = answer["completion_probabilities"][0]["top_logprobs"]
            return arithmetic_hash((each["id"], each["logprob"]) for each in likeliest)
        finally:
            self._queue.leave(place, ())

    def stats(self) -> EngineStats:
        """A snapshot of the load. ``extra`` has ``up``, which is 1 while the child runs."""
        up = self._server is not None and self._server.alive
        return self._queue.stats(restarts=max(0, self._starts - 1), extra={"up": float(up)})

    @property
    def child_pid(self) -> int | None:
        """The child's process id while it runs, for diagnosis."""
        return None if self._server is None else self._server.pid

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Run one request."""
        vocabulary = await self._known_vocabulary()
        allowed = tokens_allowed(request, n_ctx=self._n_ctx, vocabulary=len(vocabulary))
        place = self._queue.enter(request.cache_key, request.prompt_ids, request.origin, request.session)
        run = LlamaCppRun(request, allowed, vocabulary, hang_s=self._config.hang_s)
        server: LlamaCppProcess | None = None

        async def events() -> AsyncGenerator[EngineEvent, None]:
            nonlocal server
            assignment = await wait_assigned(place)
            server = await self._running()
            try:
                async with aclosing(run.events(server.http, assignment)) as parts:
                    async for event in parts:
                        yield event
            except (LlamaCppGoneError, LlamaCppHungError, LlamaCppRefusedError) as error:
                raise await self._failure(server, error) from error
            self._backoff.reset()

        try:
            async with aclosing(events()) as stream:
                yield stream
        finally:
            if run.first_token_at is not None:
                self._queue.record(run.delivered, trio.current_time() - run.first_token_at)
            # The cache of a child that died is gone.
            alive = server is not None and server is self._server
            self._queue.leave(place, run.held if alive else ())

    @property
    def _compiler(self) -> PromptCompiler:
        if self._compiler_made is None:
            assert self._template is not None  # noqa: S101 - read with the vocabulary
            self._compiler_made = PromptCompiler(self._template)
        return self._compiler_made

    async def _known_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            await self._running()
        assert self._vocabulary is not None  # noqa: S101 - _running has loaded it
        return self._vocabulary

    async def _tokenize(self, pieces: Sequence[Piece], *, begins: bool) -> tuple[int, ...]:
        body = {"content": list(pieces), "add_special": begins, "parse_special": False}
        return tuple((await self._call("/tokenize", body))["tokens"])

    async def _call(self, path: str, body: Mapping[str, Any]) -> Any:
        server = await self._running()
        try:
            return await server.http.call(path, body, deadline_s=self._config.hang_s)
        except (LlamaCppGoneError, LlamaCppHungError, LlamaCppRefusedError) as error:
            raise await self._failure(server, error) from error

    async def _running(self) -> LlamaCppProcess:
        """The child, started when there is none. Callers that come meanwhile wait for the same start."""
        async with self._starting:
            if self._closed:
                raise EngineError("the engine is closed", code="shutting_down")
            if self._server is not None and self._server.alive:
                return self._server
            if self._server is not None:
                await self._lost(self._server)
            await self._back_off()
            if self._vocabulary is None:
                self._template = await trio.to_thread.run_sync(_checked_template, self._model)
                self._vocabulary = await trio.to_thread.run_sync(load_vocabulary, self._model.path)
            self._server = await self._start()
            return self._server

    async def _start(self) -> LlamaCppProcess:
        config = self._config
        try:
            server = await LlamaCppProcess.start(
                model=self._model.path,
                n_ctx=allocated(_RENDERS_CTX if config.renders_only else self._n_ctx),
                renders_only=config.renders_only,
                slots=config.slots,
                threads=config.threads,
                runtime_dir=config.runtime_dir,
                deadline_s=config.load_deadline_s,
            )
        except EngineError:
            self._count_failure()
            raise
        if self._closed:  # by ``aclose``, while the child was loading
            await server.stop()
            raise EngineError("the engine is closed", code="shutting_down")
        self._starts += 1
        return server

    async def _back_off(self) -> None:
        wait = self._not_before - trio.current_time()
        if wait > _WAIT_FOR_RESTART_S:
            raise EngineError("the engine crashed and restarts soon; ask again", retry_after_s=round(wait, 1))
        await trio.sleep(max(0.0, wait))

    def _count_failure(self) -> None:
        self._not_before = trio.current_time() + self._backoff.next_s()

    async def _lost(self, server: LlamaCppProcess) -> None:
        """End a child that is dead or hangs. Only the first caller counts the failure."""
        if self._server is server:
            self._server = None
            self._queue.table.forget()
            self._count_failure()
            log.warning("engine.lost", pid=server.pid, failures=self._backoff.failures)
        await server.kill()

    async def _failure(
        self, server: LlamaCppProcess, error: LlamaCppGoneError | LlamaCppHungError | LlamaCppRefusedError
    ) -> EngineError:
        """The error for the caller, after a child that is lost was ended."""
        if isinstance(error, LlamaCppRefusedError):
            return _refusal(error)
        if self._closed:
            return EngineError("the engine was closed", code="shutting_down")
        hung = isinstance(error, LlamaCppHungError)
        if not hung and not await server.wait_dead(_DEATH_NOTICE_S):
            return EngineError(f"the engine dropped the request ({error}); ask again", retry_after_s=1.0)
        await self._lost(server)
        what = f"hung for {self._config.hang_s:g} s" if hung else "crashed"
        retry_after_s = max(_RETRY_LEAST_S, self._not_before - trio.current_time())
        return EngineLostError(
            f"the engine {what} and is being restarted; ask again", retry_after_s=round(retry_after_s, 1)
        )


def _refusal(error: LlamaCppRefusedError) -> EngineError:
    if error.kind == "exceed_context_size_error":
        return EngineError(f"the prompt doesn't fit: {error}; shorten it", code="context_overflow")
    if error.status == _BAD_REQUEST:
        return EngineError(f"the engine refused the request: {error}", code="bad_request")
    return EngineError(f"the engine failed the request: {error}; ask again", retry_after_s=1.0)


def _checked_template(model: LocalModel) -> ChatTemplate:
    """The chat template, if the file still has the size it had when it was hashed. Blocks on the disk."""
    try:
        size = model.path.stat().st_size
    except OSError as error:
        raise ConfigError(
            f"{model.path}: the weights of {model.name!r} are gone; run `p2pnode models pull {model.name}`"
        ) from error
    if size != model.manifest.size_bytes:
        raise unusable(model.path, f"it has {size} bytes instead of {model.manifest.size_bytes}")
    return load_template(model.path)
