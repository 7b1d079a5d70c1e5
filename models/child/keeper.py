"""``ChildKeeper``: starts a child process when there is none, and makes errors of its ends.

When the child crashes, hangs or is killed, its requests end with ``EngineLostError``, and the next request
starts a new one, later after each failure. What a request is to the child is known to what is made of this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import structlog
import trio

from p2pnode.bounded import Backoff
from p2pnode.errors import EngineError, EngineLostError
from p2pnode.models.child.http import LOST, ChildGoneError, ChildHungError, ChildRefusedError
from p2pnode.models.child.process import ChildProcess

OVERFLOW: Final = "exceed_context_size_error"
"""What llama.cpp calls a prompt that doesn't fit, and so do our own children."""
_DEATH_NOTICE_S: Final = 1.0
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_WAIT_FOR_RESTART_S: Final = 1.0
_RETRY_LEAST_S: Final = 0.5
_BAD_REQUEST: Final = 400

log = structlog.get_logger(__name__)


class ChildKeeper(ABC):
    """Keeps one child. A request that shows no progress for ``hang_s`` means that the child hangs."""

    def __init__(self, *, hang_s: float) -> None:
        self._hang_s = hang_s
        self._child: ChildProcess | None = None
        self._starting = trio.Lock()
        self._closed = False
        self._starts = 0
        self._backoff = Backoff(_BACKOFF_FIRST_S, _BACKOFF_MAX_S)
        self._not_before = 0.0

    # ---- what an engine adds

    @abstractmethod
    async def _start_child(self) -> ChildProcess:
        """Start a child that has loaded the model. Raises ``EngineError``."""

    @abstractmethod
    async def _prepare(self) -> None:
        """What comes before each child; most of it before the first one only."""

    @abstractmethod
    def _forget(self) -> None:
        """A child was lost, and all that it held."""

    # ---- the child

    async def aclose(self) -> None:
        """End the child. Requests under way end with ``EngineError``."""
        self._closed = True
        child, self._child = self._child, None
        if child is not None:
            await child.stop()
        await trio.lowlevel.checkpoint()

    @property
    def child(self) -> ChildProcess | None:
        """The child while it runs, for diagnosis."""
        return self._child

    @property
    def child_pid(self) -> int | None:
        """The child's process id while it runs, for diagnosis."""
        return None if self._child is None else self._child.pid

    @property
    def _restarts(self) -> int:
        return max(0, self._starts - 1)

    @property
    def _up(self) -> Mapping[str, float]:
        """``up`` is 1 while the child runs."""
        return {"up": float(self._child is not None and self._child.alive)}

    async def _call(self, path: str, body: Mapping[str, Any], *, deadline_s: float | None = None) -> Any:
        child = await self._running()
        try:
            return await child.http.call(path, body, deadline_s=deadline_s or self._hang_s)
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
            await self._prepare()
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
            self._forget()
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
        what = "hung" if hung else f"crashed ({error})" if lost else "crashed"
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
