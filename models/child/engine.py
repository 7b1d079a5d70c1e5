"""``ChildEngine``: the parent side of an engine whose model lives in a child process.

Requests wait in a bounded queue for one of ``slots`` slots. When the child crashes, hangs or is killed, its
requests end with ``EngineLostError``, and the next request starts a new child, with back-off. What a request
is to the child, and how tokens are made, is known to the engines that are made of this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final, Protocol

import structlog
import trio

from p2pnode.bounded import Backoff
from p2pnode.errors import EngineError, EngineLostError
from p2pnode.models.arithmetic import arithmetic_hash, fixed_prompt
from p2pnode.models.child.http import LOST, ChildGoneError, ChildHttp, ChildHungError, ChildRefusedError
from p2pnode.models.child.process import ChildProcess
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.engine import (
    ANYBODY,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineFeature,
    EngineStats,
    GenerateRequest,
)
from p2pnode.models.prompt import Piece
from p2pnode.models.prompt_maker import PromptMaker
from p2pnode.models.renderer import ChatTemplate
from p2pnode.models.slot_wait import wait_assigned
from p2pnode.models.slots import Assignment, SlotQueue
from p2pnode.models.validation import (
    no_embeddings,
    tokens_allowed,
)
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import PromptBody

OVERFLOW: Final = "exceed_context_size_error"
"""What llama.cpp calls a prompt that doesn't fit, and so do our own children."""
_DEATH_NOTICE_S: Final = 1.0
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_WAIT_FOR_RESTART_S: Final = 1.0
_RETRY_LEAST_S: Final = 0.5
_BAD_REQUEST: Final = 400
_ARITHMETIC_KEY: Final = b"arithmetic"
"""Of no session: their keys have 16 bytes and more."""

log = structlog.get_logger(__name__)


class ChildRun(Protocol):
    """One request to a child, and what became of it."""

    first_token_at: float | None
    delivered: int
    """Output tokens given to the caller so far."""
    held: tuple[int, ...]
    """What the slot's cache holds for sure."""

    def events(self, http: ChildHttp, assignment: Assignment) -> AsyncGenerator[EngineEvent, None]:
        """Run the request; yield its events. Raises what ``http`` raises."""
        ...


class ChildEngine(ABC):
    """Most of an ``Engine`` (see ``models/engine.py``): all that doesn't depend on what the child is."""

    def __init__(self, *, n_ctx: int, slots: int, queue_max: int, hang_s: float) -> None:
        self._n_ctx = n_ctx
        self._hang_s = hang_s
        self._queue = SlotQueue(slots, queue_max)
        self._prompts: PromptMaker | None = None
        self._child: ChildProcess | None = None
        self._starting = trio.Lock()
        self._closed = False
        self._starts = 0
        self._backoff = Backoff(_BACKOFF_FIRST_S, _BACKOFF_MAX_S)
        self._not_before = 0.0

    # ---- what an engine adds

    @abstractmethod
    async def _read_model(self) -> tuple[ChatTemplate, Vocabulary]:
        """What prompts and answers are made of. Called once, before the first child."""

    @abstractmethod
    async def _start_child(self) -> ChildProcess:
        """Start a child that has loaded the model. Raises ``EngineError``."""

    @abstractmethod
    def _run(self, request: GenerateRequest, allowed: int, vocabulary: Vocabulary) -> ChildRun:
        """``request`` as the child takes it; its answer has at most ``allowed`` tokens."""

    @abstractmethod
    async def _encode(self, pieces: Sequence[Piece], begins: bool) -> tuple[int, ...]:
        """The ids of pieces in a row; ``begins``: with a begin token where the model has one."""

    @abstractmethod
    async def _likeliest(self, prompt: tuple[int, ...], slot: int) -> list[tuple[int, float]]:
        """The likeliest tokens after ``prompt`` with their log-probabilities, computed anew."""

    # ---- the seam

    def _features(self) -> frozenset[EngineFeature]:
        """What any child with the model's template can do."""
        return frozenset() if self._prompts is None else self._prompts.features()

    async def aclose(self) -> None:
        """End the child. Requests under way end with ``EngineError``."""
        self._closed = True
        child, self._child = self._child, None
        if child is not None:
            await child.stop()
        if self._prompts is not None:
            await self._prompts.aclose()
        await trio.lowlevel.checkpoint()

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """The prompt by the model's chat template, which runs in a process with limits."""
        return await (await self._known_prompts()).prompt(body)

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        """As ``followed_by`` says; the process that compiles prompts follows the grammar."""
        return await (await self._known_prompts()).extend(prompt, ids)

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text. What looks like a special token in it stays text."""
        return await (await self._known_prompts()).tokenize(text)

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
        vocabulary = (await self._known_prompts()).vocabulary
        return arithmetic_hash(await self.likeliest(fixed_prompt(len(vocabulary))))

    async def likeliest(self, prompt_ids: tuple[int, ...]) -> list[tuple[int, float]]:
        """The likeliest next tokens with their log-probabilities, computed anew. It takes a slot."""
        place = self._queue.enter(_ARITHMETIC_KEY, prompt_ids, ANYBODY)
        try:
            assignment = await wait_assigned(place)
            return await self._likeliest(prompt_ids, assignment.slot)
        finally:
            self._queue.leave(place, ())

    def stats(self) -> EngineStats:
        """A snapshot of the load. ``extra`` has ``up``, which is 1 while the child runs."""
        up = self._child is not None and self._child.alive
        return self._queue.stats(restarts=max(0, self._starts - 1), extra={"up": float(up)})

    @property
    def child(self) -> ChildProcess | None:
        """The child while it runs, for diagnosis."""
        return self._child

    @property
    def child_pid(self) -> int | None:
        """The child's process id while it runs, for diagnosis."""
        return None if self._child is None else self._child.pid

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Run one request."""
        vocabulary = (await self._known_prompts()).vocabulary
        allowed = tokens_allowed(request, n_ctx=self._n_ctx, vocabulary=len(vocabulary))
        place = self._queue.enter(request.cache_key, request.prompt_ids, request.origin, request.session)
        run = self._run(request, allowed, vocabulary)
        child: ChildProcess | None = None

        async def events() -> AsyncGenerator[EngineEvent, None]:
            nonlocal child
            assignment = await wait_assigned(place)
            child = await self._running()
            try:
                async with aclosing(run.events(child.http, assignment)) as parts:
                    async for event in parts:
                        yield event
            except (ChildGoneError, ChildHungError, ChildRefusedError) as error:
                raise await self._failure(child, error) from error
            self._backoff.reset()

        try:
            async with aclosing(events()) as stream:
                yield stream
        finally:
            if run.first_token_at is not None:
                self._queue.record(run.delivered, trio.current_time() - run.first_token_at)
            # The cache of a child that died is gone.
            alive = child is not None and child is self._child
            self._queue.leave(place, run.held if alive else ())

    async def _known_prompts(self) -> PromptMaker:
        if self._prompts is None:
            await self._running()
        assert self._prompts is not None  # noqa: S101 - _running has made it
        return self._prompts

    async def _call(self, path: str, body: Mapping[str, Any]) -> Any:
        child = await self._running()
        try:
            return await child.http.call(path, body, deadline_s=self._hang_s)
        except (ChildGoneError, ChildHungError, ChildRefusedError) as error:
            raise await self._failure(child, error) from error

    async def _running(self) -> ChildProcess:
        """The child, started when there is none. Callers that come meanwhile wait for the same start."""
        async with self._starting:
            if self._closed:
                raise EngineError("the engine is closed", code="shutting_down")
            if self._child is not None and self._child.alive:
                return self._child
            if self._child is not None:
                await self._lost(self._child)
            await self._back_off()
            if self._prompts is None:
                template, vocabulary = await self._read_model()
                self._prompts = PromptMaker(template, vocabulary, self._encode, self._n_ctx)
            self._child = await self._start()
            return self._child

    async def _start(self) -> ChildProcess:
        try:
            child = await self._start_child()
        except EngineError:
            self._count_failure()
            raise
        if self._closed:  # by ``aclose``, while the child was loading
            await child.stop()
            raise EngineError("the engine is closed", code="shutting_down")
        self._starts += 1
        return child

    async def _back_off(self) -> None:
        wait = self._not_before - trio.current_time()
        if wait > _WAIT_FOR_RESTART_S:
            raise EngineError("the engine crashed and restarts soon; ask again", retry_after_s=round(wait, 1))
        await trio.sleep(max(0.0, wait))

    def _count_failure(self) -> None:
        self._not_before = trio.current_time() + self._backoff.next_s()

    async def _lost(self, child: ChildProcess) -> None:
        """End a child that is dead or hangs. Only the first caller counts the failure."""
        if self._child is child:
            self._child = None
            self._queue.table.forget()
            self._count_failure()
            log.warning("engine.lost", pid=child.pid, failures=self._backoff.failures)
        await child.kill()

    async def _failure(
        self, child: ChildProcess, error: ChildGoneError | ChildHungError | ChildRefusedError
    ) -> EngineError:
        """The error for the caller, after a child that is lost was ended."""
        lost = isinstance(error, ChildRefusedError) and error.kind == LOST
        if isinstance(error, ChildRefusedError) and not lost:
            return _refusal(error)
        if self._closed:
            return EngineError("the engine was closed", code="shutting_down")
        hung = isinstance(error, ChildHungError)
        if not hung and not lost and not await child.wait_dead(_DEATH_NOTICE_S):
            return EngineError(f"the engine dropped the request ({error}); ask again", retry_after_s=1.0)
        await self._lost(child)
        what = f"hung for {self._hang_s:g} s" if hung else f"crashed ({error})" if lost else "crashed"
        retry_after_s = max(_RETRY_LEAST_S, self._not_before - trio.current_time())
        return EngineLostError(
            f"the engine {what} and is being restarted; ask again", retry_after_s=round(retry_after_s, 1)
        )


def _refusal(error: ChildRefusedError) -> EngineError:
    if error.kind == OVERFLOW:
        return EngineError(f"the prompt doesn't fit: {error}; shorten it", code="context_overflow")
    if error.status == _BAD_REQUEST:
        return EngineError(f"the engine refused the request: {error}", code="bad_request")
    return EngineError(f"the engine failed the request: {error}; ask again", retry_after_s=1.0)
