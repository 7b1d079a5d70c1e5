"""``ChildEngine``: the parent side of an engine whose model lives in a child process.

Requests wait in a bounded queue for one of ``slots`` slots. ``keeper.py`` starts children, and again when one
is lost. What a request is to the child, and how tokens are made, is known to the engines that are made of
this.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Final, Protocol

import trio

from p2pnode.models.arithmetic import arithmetic_hash, fixed_prompt
from p2pnode.models.child.http import ChildGoneError, ChildHttp, ChildHungError, ChildRefusedError
from p2pnode.models.child.keeper import ChildKeeper
from p2pnode.models.child.process import ChildProcess
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.engine import (
    ANYBODY,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineFeature,
    EngineStatistics,
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

_ARITHMETIC_KEY: Final = b"arithmetic"
"""Of no session: their keys have 16 bytes and more."""


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


class ChildEngine(ChildKeeper):
    """Most of an ``Engine`` (see ``models/engine.py``): all that doesn't depend on what the child is."""

    def __init__(self, *, n_ctx: int, slots: int, queue_max: int, hang_s: float) -> None:
        super().__init__(hang_s=hang_s)
        self._n_ctx = n_ctx
        self._queue = SlotQueue(slots, queue_max)
        self._prompts: PromptMaker | None = None

    # ---- what an engine adds

    @abstractmethod
    async def _read_model(self) -> tuple[ChatTemplate, Vocabulary]:
        """What prompts and answers are made of. Called once, before the first child."""

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
        await super().aclose()
        if self._prompts is not None:
            await self._prompts.aclose()

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

    def statistics(self) -> EngineStatistics:
        """A snapshot of the load. ``extra`` has ``up``, which is 1 while the child runs."""
        return self._queue.statistics(restarts=self._restarts, extra=self._up)

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

    async def _prepare(self) -> None:
        if self._prompts is None:
            template, vocabulary = await self._read_model()
            self._prompts = PromptMaker(template, vocabulary, self._encode, self._n_ctx)

    def _forget(self) -> None:
        self._queue.table.forget()
