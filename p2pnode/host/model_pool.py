"""``ModelPool``: the models of a host and their engines. What ``Residency`` decides is done here.

An engine is made when its model is loaded, and closed when it is unloaded. Whoever works with one has a
:class:`Hold` of it, and nobody unloads what is held. A pool with one model is a pool.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import structlog
import trio

from p2pnode.errors import ConfigError, EngineError, EngineLostError, P2PNodeError, UnreachableError
from p2pnode.host.residency import EmbedderOf, Load, Memory, NotNow, Residency, Resident, State
from p2pnode.ids import ModelId
from p2pnode.models.context import gigabytes
from p2pnode.models.engine import (
    EmbedEvent,
    EmbedRequest,
    Engine,
    EngineEvent,
    EngineInfo,
    EngineStatistics,
    GenerateRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2pnode.models.compiled_prompt import CompiledPrompt
    from p2pnode.protocols.inference.messages import PromptBody

log = structlog.get_logger()
_TOO_LARGE: Final = "choose a smaller --n-ctx, fewer --slots or a smaller quantisation, or raise --memory"
_TOO_LARGE_FOR_GPU: Final = (
    "choose a smaller --n-ctx, fewer --slots, a smaller --kv-cache or a smaller quantisation"
)
_GONE: Final = "this host does not serve the model any more"
_REMOTE_S: Final = 3.0
"""Between two looks at an engine that belongs to somebody else, there or not."""
_EMBEDDER_IDLE_S: Final = 300.0
"""What makes vectors of texts is unloaded after so long without work, whatever holds for models."""
_SAME_FAILURE_S: Final = 0.5
"""Requests that fail within this time fail for one reason."""
Report: TypeAlias = Callable[[str, dict[str, object]], None]
"""Called with an event's name and fields, for people and for programs that watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedEmbedder:
    """What makes vectors of texts for a model whose engine makes none. ``memory``: what it takes, loaded."""

    new_engine: Callable[[], Engine]
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedModel:
    """A model that a host offers. Prices are USDC units per million tokens, the fee per session.

    ``new_engine`` makes an engine of it, each time that it is loaded. ``memory``: what it takes then, with
    its contexts. One that is ``pinned`` stays loaded. With an ``embedder`` it embeds texts, too: that is
    loaded when somebody asks for it, and for a few minutes.
    """

    model: ModelId
    name: str
    new_engine: Callable[[], Engine]
    quantisation: str = ""
    n_ctx: int = 0
    price_in: int = 0
    price_out: int = 0
    session_fee: int = 0
    memory: Memory = field(default_factory=Memory)
    pinned: bool = False
    embedder: HostedEmbedder | None = None
    only_embeds: bool = False
    """Whether its engine makes vectors of texts, and writes no answers."""

    @property
    def priced(self) -> bool:
        """Whether it costs anything."""
        return bool(self.price_in or self.price_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """``memory`` is what all models that are loaded may take together. One without work for
    ``idle_s`` seconds is unloaded (0: only when its memory is wanted). Requests wait for a cold model for
    ``wait_s`` at most, and ``waiting_max`` of one model."""

    memory: Memory = field(default_factory=Memory.unbounded)
    idle_s: float = 0.0
    wait_s: float = 60.0
    waiting_max: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """A snapshot: what the engines of the models that are loaded do."""

    engines: Mapping[ModelId, EngineStatistics]


@dataclass(slots=True, eq=False)
class _Waiter:
    decided: trio.Event = field(default_factory=trio.Event)
    engine: WatchedEngine | None = None
    refusal: EngineError | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    resident: Resident
    hosted: HostedModel
    engine: WatchedEngine | None = None
    """The one that is loaded, or that loads."""
    info: EngineInfo | None = None
    """What the engine that was loaded last says of itself; None before the first."""
    failure: str = ""
    """Why it was not loaded the last time."""
    waiters: list[_Waiter] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people."""
        of_texts = isinstance(self.resident, EmbedderOf)
        return f"{self.hosted.name} (embeddings)" if of_texts else self.hosted.name

    def new_engine(self) -> Engine:
        """An engine that is not loaded yet."""
        if isinstance(self.resident, EmbedderOf):
            assert self.hosted.embedder is not None  # noqa: S101 - else there is no such entry
            return self.hosted.embedder.new_engine()
        return self.hosted.new_engine()


class Hold:
    """A claim on a model that is loaded: until :meth:`release` nobody unloads it."""

    def __init__(self, pool: ModelPool, model: Resident, engine: WatchedEngine, *, works: bool) -> None:
        self.engine = engine
        self._pool, self._model, self._works, self._released = pool, model, works, False

    def release(self) -> None:
        """Give it up; again means nothing."""
        if not self._released:
            self._released = True
            self._pool.released(self._model, self.engine, works=self._works)


class HoldModel(Protocol):
    """Holds one model, which may have to be loaded. Raises ``EngineError``."""

    def __call__(self, *, embeds: bool = False) -> Awaitable[Hold]:
        """``embeds``: for vectors of texts."""
        ...


class ModelPool:
    """The models of one host. ``run`` it while the host runs.

    ``on_change`` is called when what may be said of a model has changed.
    """

    def __init__(
        self,
        limits: PoolLimits,
        *,
        start_soon: Callable[..., None],
        on_change: Callable[[], None] = lambda: None,
        report: Report = lambda _name, _fields: None,
    ) -> None:
        self._limits, self._start_soon, self._on_change, self._report = limits, start_soon, on_change, report
        self._residency = Residency(
            limits.memory, idle_s=limits.idle_s, wait_s=limits.wait_s, waiting_max=limits.waiting_max
        )
        self._entries: dict[Resident, _Entry] = {}
        self._changed = trio.Event()
        self._told: dict[Resident, tuple[State, bool]] = {}
        self._suspected = trio.Event()
        """An engine elsewhere failed a request: whether it is there is asked at once."""
        self._prepared = self._closed = False

    # ---- what is offered

    def offer(self, model: HostedModel) -> None:
        """Offer one more. Raises ``ConfigError`` where there is not enough memory, or it is offered."""
        self._enter(model.model, model, model.memory, pinned=model.pinned)
        if model.embedder is not None:
            of_texts = EmbedderOf(model.model)
            try:
                self._enter(of_texts, model, model.embedder.memory, idle_s=_EMBEDDER_IDLE_S)
            except ConfigError as error:
                log.info("model.no_embeddings", model=model.name, reason=str(error))
                self._report("model.no_embeddings", {"name": model.name, "reason": str(error)})
        self._act()

    def _enter(
        self,
        resident: Resident,
        model: HostedModel,
        memory: Memory,
        *,
        pinned: bool = False,
        idle_s: float | None = None,
    ) -> None:
        try:
            self._residency.offer(resident, memory, pinned=pinned, idle_s=idle_s)
        except ValueError as error:
            room = self._residency.room(pinned=pinned)
            name = _Entry(resident, model).name
            if words := _lacking(memory, room):
                raise ConfigError(f"{name} takes {words}") from error
            raise ConfigError(f"{name}: {error}") from error
        entry = self._entries.get(resident)
        if entry is None:
            self._entries[resident] = _Entry(resident, model)
        else:
            entry.hosted = model

    def withdraw(self, model: ModelId) -> None:
        """Offer it no longer. Turns under way end; then it is unloaded."""
        for resident in (model, EmbedderOf(model)):
            if (entry := self._entries.get(resident)) is not None:
                self._residency.withdraw(resident)
                self._refuse(entry, EngineError(_GONE, code="model_not_available"))
        self._act()
        for resident in (model, EmbedderOf(model)):
            self._forget(resident)

    def replace(self, model: HostedModel) -> None:
        """Ask other prices for a model that is offered."""
        self._entries[model.model].hosted = model

    @property
    def models(self) -> tuple[HostedModel, ...]:
        """Those that are offered now, in the order in which they were."""
        return tuple(
            each.hosted
            for resident, each in self._entries.items()
            if not isinstance(resident, EmbedderOf) and self._residency.offers(resident)
        )

    def find(self, model: ModelId) -> HostedModel | None:
        """A model that is offered, or that was and still has work."""
        entry = self._entries.get(model)
        return entry.hosted if entry is not None else None

    def info(self, model: ModelId) -> EngineInfo | None:
        """What its engine says of itself; None while it was never loaded.

        It embeds texts, too, as long as its embedder is offered.
        """
        entry = self._entries.get(model)
        if entry is None or entry.info is None or not self._residency.offers(EmbedderOf(model)):
            return entry.info if entry is not None else None
        return replace(entry.info, features=entry.info.features | {"embeddings"})

    def note_arithmetic(self, model: ModelId, arithmetic: bytes) -> None:
        """How its engine computes was measured."""
        entry = self._entries.get(model)
        if entry is not None and entry.info is not None:
            entry.info = replace(entry.info, arithmetic=arithmetic)

    def state(self, model: ModelId) -> State:
        """Whether it is loaded."""
        return self._residency.state(model)

    def warm_in_s(self, model: ModelId) -> float:
        """In how many seconds it can answer if it is asked now; 0 where it is warm."""
        return self._residency.warm_in_s(model, trio.current_time())

    def found_gpus(self, free: int) -> None:
        """Models may take so many bytes of the GPUs' memory, which was not known before."""
        memory = Memory(self._limits.memory.main, free)
        self._limits = replace(self._limits, memory=memory)
        self._residency.memory = memory

    @property
    def room(self) -> Memory:
        """What one more model may take."""
        return self._residency.room()

    @property
    def free(self) -> Memory:
        """What no model takes now."""
        return self._limits.memory - self._residency.taken

    def statistics(self) -> PoolStatistics:
        """A snapshot."""
        return PoolStatistics(
            engines={
                model: entry.engine.statistics()
                for model, entry in self._entries.items()
                if not isinstance(model, EmbedderOf)
                and entry.engine is not None
                and self._residency.state(model) == "warm"
            }
        )

    # ---- work

    def want(self, model: ModelId) -> NotNow | None:
        """Somebody means to ask: it is loaded where it is cold. Says why that would be in vain, else None."""
        refusal = self._residency.want(model, trio.current_time())
        self._act()
        return refusal

    async def hold(self, model: ModelId, *, embeds: bool = False, patient: bool = False) -> Hold:
        """Hold a model for work; waits until it is loaded, or ``patient``, until it can't be.

        For work that ``embeds`` that is the model's embedder, where it has one.

        Raises ``EngineError``: ``capacity`` with the time to come back where it can't be had within the wait,
        ``model_not_available`` where it isn't offered.
        """
        resident = self._resident_for(model, embeds=embeds)
        entry = self._entries.get(resident)
        if entry is None or not self._residency.offers(resident):
            raise EngineError(_GONE, code="model_not_available")
        answer = self._residency.ask(resident, trio.current_time(), patient=patient)
        if isinstance(answer, NotNow):
            self._act()
            raise EngineError(answer.detail, code="capacity", retry_after_s=answer.retry_after_s)
        if answer == "waits":
            waiter = _Waiter()
            entry.waiters.append(waiter)
            self._act()
            return Hold(self, resident, await self._wait(entry, waiter, patient=patient), works=True)
        assert entry.engine is not None  # noqa: S101 - it is warm
        return Hold(self, resident, entry.engine, works=True)

    def _resident_for(self, model: ModelId, *, embeds: bool) -> Resident:
        of_texts = EmbedderOf(model)
        if not embeds or of_texts not in self._entries:
            return model
        if not self._residency.offers(of_texts) and self._residency.offers(model):
            retry_s = max(1.0, self._residency.warm_in_s(of_texts, trio.current_time()))
            msg = "this host makes no embeddings now: its embedder failed, and is tried again later"
            raise EngineError(msg, code="capacity", retry_after_s=math.ceil(retry_s))
        return of_texts

    async def _wait(self, entry: _Entry, waiter: _Waiter, *, patient: bool) -> WatchedEngine:
        model = entry.resident
        try:
            with trio.move_on_after(math.inf if patient else self._limits.wait_s):
                await waiter.decided.wait()
        except BaseException:
            if waiter.engine is not None:  # it was loaded at the moment at which the request was given up
                self.released(model, waiter.engine)
            raise
        finally:
            if not waiter.decided.is_set():
                entry.waiters.remove(waiter)
                self._residency.leave(model)
        if waiter.engine is not None:
            return waiter.engine
        if waiter.refusal is not None:
            # Why it failed is for the owner, who alone is patient: it may name places of this machine.
            raise EngineError(entry.failure) if patient and entry.failure else waiter.refusal
        retry_s = max(1.0, self._residency.warm_in_s(model, trio.current_time()))
        detail = "the model could not be loaded in time: the memory of this host is in use"
        raise EngineError(detail, code="capacity", retry_after_s=math.ceil(retry_s))

    def hold_idle(self, model: ModelId) -> Hold | None:
        """Hold a model for what is nobody's work; None where it is not warm, or has work."""
        entry = self._entries.get(model)
        if entry is None or entry.engine is None or self._residency.in_use(model):
            return None
        if not self._residency.hold(model):
            return None
        return Hold(self, model, entry.engine, works=False)

    def released(self, model: Resident, engine: WatchedEngine, *, works: bool = True) -> None:
        """What held this engine is over."""
        entry = self._entries.get(model)
        if entry is not None and entry.engine is engine:  # else that one was closed, and its holds with it
            self._residency.release(model, trio.current_time(), worked=works)
            self._act()

    # ---- running

    async def prepare(self) -> None:
        """Load each model once, so that each is known to load, how long that takes, and what it can do.

        Those that don't fit with the others come first: what is there in the end are the pinned ones and then
        those that were named first. One that can't be loaded is not offered. Raises ``EngineError`` where
        that leaves none.
        """
        models, left = self.models, self._limits.memory
        stay = set()
        for each in sorted(models, key=lambda each: not each.pinned):
            if each.memory.fits(left):
                stay.add(each.model)
                left -= each.memory
        failure: EngineError | None = None
        for each in sorted(models, key=lambda each: each.model in stay):
            try:
                (await self.hold(each.model, patient=True)).release()
            except EngineError as error:
                failure = error
                log.warning("model.not_loaded", model=each.name, reason=str(error))
                self._report("model.withdrawn", {"name": each.name, "reason": str(error)})
                self.withdraw(each.model)
        if failure is not None and not self.models:
            raise failure
        self._prepared = True

    async def run(self) -> None:
        """Unload and try again when it is time, and look after engines elsewhere, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_remote)
            await self._keep_time()

    async def _watch_remote(self) -> None:
        """Ask each engine that belongs to somebody else whether it is there, and what it does now."""
        while True:
            with trio.move_on_after(_REMOTE_S):
                await self._suspected.wait()
            self._suspected = trio.Event()
            for entry in list(self._entries.values()):
                if entry.engine is not None and entry.info is not None and entry.info.remote:
                    await self._look_at(entry, entry.engine)

    async def _look_at(self, entry: _Entry, engine: WatchedEngine) -> None:
        try:
            info = await engine.load()
        except P2PNodeError as error:
            if entry.engine is engine and self._residency.state(entry.resident) == "warm":
                self._lost(entry, str(error))
            return
        if entry.engine is engine and _known(info, entry.info) != entry.info:
            entry.info = info  # it does other things now, or as another version
            self._on_change()

    def _lost(self, entry: _Entry, reason: str) -> None:
        """Offer it no longer until it can be loaded again, which is tried every few seconds."""
        if self._residency.offers(entry.resident):
            log.warning("model.withdrawn", model=entry.name, reason=reason)
            self._report("model.withdrawn", {"name": entry.name, "reason": reason})
        self._residency.lost(entry.resident, trio.current_time(), retry_s=_REMOTE_S)
        self._act()

    async def _keep_time(self) -> None:
        while True:
            self._act()
            due, changed = self._residency.due(trio.current_time()), self._changed
            with trio.move_on_at(due):
                await changed.wait()

    async def aclose(self) -> None:
        """Close all engines; requests under way end with ``EngineError``."""
        self._closed = True
        for entry in list(self._entries.values()):  # a model that is being unloaded leaves it meanwhile
            self._refuse(entry, EngineError("this host is going away", code="shutting_down"))
            if entry.engine is not None:
                await entry.engine.aclose()

    # ---- steps

    def _act(self) -> None:
        """Begin what is due, and tell what has changed."""
        if self._closed:
            return
        with suppress(UnreachableError):  # the node ends: nothing is begun any more
            for step in self._residency.steps(trio.current_time()):
                entry = self._entries[step.model]
                self._start_soon(self._load if isinstance(step, Load) else self._unload, entry)
        told: dict[Resident, tuple[State, bool]] = {
            resident: (self._state_told(resident), self._residency.offers(resident))
            for resident in self._entries
        }
        if told != self._told:
            self._told = told
            self._on_change()
        self._changed.set()
        self._changed = trio.Event()

    def _state_told(self, resident: Resident) -> State:
        """Whether an embedder is loaded is nobody's business."""
        return "cold" if isinstance(resident, EmbedderOf) else self._residency.state(resident)

    async def _load(self, entry: _Entry) -> None:
        began = trio.current_time()

        def on_end(failed: bool) -> None:
            self._watched(entry, engine, failed)

        engine = entry.engine = WatchedEngine(entry.new_engine(), on_end)
        try:
            info = await engine.load()
        except Exception as error:
            if not isinstance(error, P2PNodeError):
                log.exception("engine.failed", model=entry.name)
            await self._close(entry)
            self._failed(entry, str(error))
            return
        except BaseException:
            await self._close(entry)
            raise
        entry.info, entry.failure = _known(info, entry.info), ""
        held = self._residency.loaded(entry.resident, trio.current_time())
        if info.gpu_memory:
            self._residency.measured(entry.resident, gpu=info.gpu_memory)
        assert held == len(entry.waiters)  # noqa: S101 - each of them asked, and has not left
        for waiter in entry.waiters:
            waiter.engine = engine
            waiter.decided.set()
        entry.waiters.clear()
        seconds = trio.current_time() - began
        log.info(
            "model.warm", model=entry.name, engine=info.engine, n_ctx=info.n_ctx, slots=info.slots, s=seconds
        )
        if self._prepared:
            self._report("model.warm", {"name": entry.name, "seconds": round(seconds, 3)})
        self._act()

    def _failed(self, entry: _Entry, reason: str) -> None:
        entry.failure = reason
        now = trio.current_time()
        is_over = self._residency.failed(entry.resident, now)
        retry_s = max(1.0, self._residency.warm_in_s(entry.resident, now))
        self._refuse(
            entry, EngineError("the model can't be loaded now", code="capacity", retry_after_s=retry_s)
        )
        remote = entry.info is not None and entry.info.remote
        (log.debug if remote else log.warning)("model.not_loaded", model=entry.name, reason=reason)
        if remote:
            self._residency.lost(entry.resident, now, retry_s=_REMOTE_S)
        elif is_over:
            self._report("model.withdrawn", {"name": entry.name, "reason": reason})
        self._act()
        self._forget(entry.resident)

    async def _unload(self, entry: _Entry) -> None:
        await self._close(entry)
        self._residency.unloaded(entry.resident)
        log.info("model.cold", model=entry.name)
        if self._prepared:
            self._report("model.cold", {"name": entry.name})
        self._act()
        self._forget(entry.resident)

    @staticmethod
    async def _close(entry: _Entry) -> None:
        if entry.engine is not None:
            with trio.CancelScope(shield=True):
                await entry.engine.aclose()
            entry.engine = None

    def _watched(self, entry: _Entry, engine: WatchedEngine, lost: bool) -> None:
        """A request was answered, or the engine died under one."""
        model = entry.resident
        if entry.engine is not engine:
            return
        if not lost:
            self._residency.served(model)
        elif entry.info is not None and entry.info.remote:
            self._suspected.set()
        elif self._residency.crashed(model, trio.current_time()):
            reason = "its engine crashed again and again"
            log.warning("model.withdrawn", model=entry.name, reason=reason)
            self._report("model.withdrawn", {"name": entry.name, "reason": reason})
        self._act()

    @staticmethod
    def _refuse(entry: _Entry, refusal: EngineError) -> None:
        for waiter in entry.waiters:
            waiter.refusal = refusal
            waiter.decided.set()
        entry.waiters.clear()

    def _forget(self, model: Resident) -> None:
        """Drop what is neither offered nor in memory any more."""
        if not self._residency.knows(model):
            self._entries.pop(model, None)
            self._told.pop(model, None)


def _known(info: EngineInfo, before: EngineInfo | None) -> EngineInfo:
    """What was measured of an engine holds for the next one that is made as it was."""
    if before is not None and replace(before, arithmetic=info.arithmetic) == info:
        return before
    return info


def _lacking(memory: Memory, room: Memory) -> str:
    """How much memory is wanted of a device that hasn't as much, in words; "" where all has room."""
    if memory.main > room.main:
        needs, has = gigabytes(memory.main), gigabytes(max(0, room.main))
        return f"{needs} of memory, and {has} can be had for it here: {_TOO_LARGE}"
    if memory.gpu > room.gpu:
        needs, has = gigabytes(memory.gpu), gigabytes(max(0, room.gpu))
        return f"{needs} of GPU memory, and {has} can be had for it here: {_TOO_LARGE_FOR_GPU}"
    return ""


class WatchedEngine:
    """An ``Engine`` that tells how its requests end: ``on_end`` gets whether the engine failed, once for all
    that fail together."""

    def __init__(self, engine: Engine, on_end: Callable[[bool], None]) -> None:
        self._engine, self._on_end = engine, on_end
        self._failed_at = -math.inf

    async def load(self) -> EngineInfo:
        """As the engine does."""
        return await self._engine.load()

    async def aclose(self) -> None:
        """As the engine does."""
        await self._engine.aclose()

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """As the engine does."""
        with self._watched():
            return await self._engine.prompt(body)

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        """As the engine does."""
        with self._watched():
            return await self._engine.extend(prompt, ids)

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """As the engine does."""
        with self._watched():
            return await self._engine.tokenize(text)

    def reusable(self, cache_key: bytes, prompt_ids: tuple[int, ...]) -> int:
        """As the engine does."""
        return self._engine.reusable(cache_key, prompt_ids)

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[EngineEvent]]:
        """As the engine does."""
        with self._watched():
            async with self._engine.generate(request) as events:
                yield events
        self._on_end(False)

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """As the engine does."""
        with self._watched():
            return await self._engine.embed_ids(texts)

    def embed(self, request: EmbedRequest) -> AbstractAsyncContextManager[AsyncIterator[EmbedEvent]]:
        """As the engine does."""
        return self._embed(request)

    @asynccontextmanager
    async def _embed(self, request: EmbedRequest) -> AsyncGenerator[AsyncIterator[EmbedEvent]]:
        with self._watched():
            async with self._engine.embed(request) as events:
                yield events
        self._on_end(False)

    async def arithmetic(self) -> bytes:
        """As the engine does."""
        with self._watched():
            return await self._engine.arithmetic()

    def statistics(self) -> EngineStatistics:
        """As the engine does."""
        return self._engine.statistics()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except EngineError as error:
            now = trio.current_time()
            failed = isinstance(error, EngineLostError) or error.code == "internal"
            if failed and now - self._failed_at > _SAME_FAILURE_S:
                self._failed_at = now
                self._on_end(True)
            raise
