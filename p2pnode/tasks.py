"""Ways to run tasks: guarded from strangers, in the background of a block, several at a time, as listeners.

A guarded task handles a stranger's bytes. Whatever it raises ends that task, is one event with the name of
the fault, and is counted: it never reaches the nursery, which would end the node. Nothing here knows what the
tasks do.
"""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from p2pnode.bounded import Backoff
from p2pnode.errors import P2PNodeError, first_of_kind

log = structlog.get_logger()

BACK_OFF_FIRST_S: Final = 0.1
BACK_OFF_MAX_S: Final = 1.0
TOLD_EVERY_S: Final = 60.0
_DETAIL_MAX: Final = 200
_FRAMES: Final = 4
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Guard:
    """Runs tasks and counts those that failed, by the name of the task and of the fault."""

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()

    async def run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Await ``function(*args)``; of what it raises, only cancellation gets out."""
        try:
            await function(*args)
        except BaseExceptionGroup as group:
            fault, rest = first_of_kind(group, Exception), group.split(Exception)[1]
            if fault is not None:
                self.note(_name(function), fault)
            if rest is not None:
                raise rest from None
        except Exception as error:  # noqa: BLE001  this is what the guard is for
            self.note(_name(function), error)

    def note(self, task: str, error: Exception) -> None:
        """Count one fault. Only the first of a kind is a warning: a stranger may repeat it."""
        fault = type(error).__name__
        kind = f"{task}: {fault}"
        self.failed[kind] += 1
        # ascii(), because a stranger may have chosen the words, and they may be shown on a terminal.
        detail = ascii(str(error))[:_DETAIL_MAX]
        if self.failed[kind] == 1:
            log.warning("task.failed", task=task, fault=fault, detail=detail, where=_where(error))
        else:
            log.debug("task.failed", task=task, fault=fault, detail=detail)


@asynccontextmanager
async def background_task(run: Callable[..., Awaitable[Any]]) -> AsyncIterator[None]:
    """Start ``run`` (it takes ``task_status``), run the block, then cancel ``run``.

    The block's own error is raised as it is: a bare nursery would wrap it in a group, and ``except
    ChainError`` would miss it. An error of ``run`` is raised in a group.
    """
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(run)
            yield
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def gather(works: Sequence[Callable[[], Awaitable[None]]], *, at_once: int) -> None:
    """Await all ``works``, ``at_once`` at a time.

    The first ``P2PNodeError`` cancels the others and is raised as it is, not in a group.
    """
    if len(works) == 1:
        await works[0]()
        return
    failed: list[P2PNodeError] = []
    slots = trio.CapacityLimiter(at_once)
    async with trio.open_nursery() as nursery:

        async def do(work: Callable[[], Awaitable[None]]) -> None:
            async with slots:
                try:
                    await work()
                except P2PNodeError as error:
                    failed.append(error)
                    nursery.cancel_scope.cancel()

        for work in works:
            nursery.start_soon(do, work)
    if failed:
        raise failed[0]


async def serve_sockets(
    handle: Callable[[trio.SocketStream], Awaitable[None]],
    listeners: Iterable[trio.SocketListener],
    *,
    what: str,
    connections: trio.Nursery,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept until cancelled or closed. Each connection is a task of ``connections``, closed at its end.

    ``handle`` must be guarded. Unlike in trio's own loop, no error of ``accept`` ends it: it is logged once a
    minute, and the next attempt comes after a pause. At the limit of open files a connection stays in the
    backlog until a file is free. The listeners are closed at the end.
    """
    with contextlib.ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                stack.callback(listener.socket.close)
                nursery.start_soon(_accept_loop, handle, listener, what, connections)
            task_status.started()


async def _accept_loop(
    handle: Callable[[trio.SocketStream], Awaitable[None]],
    listener: trio.SocketListener,
    what: str,
    connections: trio.Nursery,
) -> None:
    backoff, told_at, missed = Backoff(BACK_OFF_FIRST_S, BACK_OFF_MAX_S), -TOLD_EVERY_S, 0
    while True:
        try:
            stream = await listener.accept()
        except trio.ClosedResourceError:
            return
        except OSError as error:
            missed += 1
            if trio.current_time() >= told_at + TOLD_EVERY_S:
                told_at = trio.current_time()
                log.warning("listener.paused", listener=what, reason=_reason(error), times=missed)
            await trio.sleep(backoff.next_s())
            continue
        backoff.reset()
        connections.start_soon(_serve_one, handle, stream)


async def _serve_one(
    handle: Callable[[trio.SocketStream], Awaitable[None]], stream: trio.SocketStream
) -> None:
    try:
        await handle(stream)
    finally:
        stream.socket.close()


def _where(error: BaseException) -> str:
    """The last lines of code that an error came through, for the report of the defect."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " < ".join(f"{Path(each.filename).name}:{each.lineno}" for each in reversed(frames))


def _reason(error: OSError) -> str:
    if error.errno in _OUT_OF_DESCRIPTORS:
        return "too many open files: raise the limit (ulimit -n), or let fewer connections in"
    return error.strerror or type(error).__name__


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__).replace(
        ".<locals>", ""
    )
