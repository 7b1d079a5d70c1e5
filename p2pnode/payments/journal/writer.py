"""The journal's one writer: a task that writes everything that waits in one transaction, with one sync.

A caller returns after the commit that holds its operation. Cancelling a caller does not take its operation
back: what was decided about money is written, whoever still waits for it. How a group is committed is
``durable.py``'s; what is written this module does not know.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import structlog
import trio

from p2pnode.durable import GroupCommit, Request, SqliteFile
from p2pnode.errors import StorageError

log = structlog.get_logger()
QUEUE_MAX: Final = 256
RIDERS_MAX: Final = 64
Operation: TypeAlias = Callable[[sqlite3.Connection], None]
_Request: TypeAlias = Request[sqlite3.Connection, None]


class JournalWriter:
    """Owns ``db``, which only its worker thread uses while :meth:`run` runs."""

    def __init__(self, file: SqliteFile, db: sqlite3.Connection, *, in_thread: bool = True) -> None:
        self._file, self._db, self._in_thread = file, db, in_thread
        self._commit = GroupCommit[sqlite3.Connection](file, db)
        self._limiter = trio.CapacityLimiter(1)  # of our own: a commit never waits for somebody's download
        self._queue: trio.MemorySendChannel[_Request] | None = None
        self._riders: list[_Request] = []

    @property
    def commits(self) -> int:
        """Transactions so far."""
        return self._commit.commits

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled; what waits then is still written."""
        send, receive = trio.open_memory_channel[_Request](QUEUE_MAX)
        self._queue = send
        task_status.started()
        try:
            while True:
                first = await receive.receive()
                await self._write([first, *_waiting(receive)])
        finally:
            self._queue = (
                None  # first: a write that begins from now on must raise, for nobody would answer it
            )
            while group := _waiting(receive):
                await self._write(group)
            if self._riders:  # no write may follow for them to go with
                await self._write([])
            receive.close()

    async def write(self, operation: Operation) -> None:
        """Return when ``operation`` is on disk. Raises what it raised, or ``StorageError``."""
        request = Request(operation)
        await self._running().send(request)
        await request.done.wait()
        if request.error is not None:
            raise request.error

    def ride(self, operation: Operation) -> None:
        """Let ``operation`` go to disk with the next write, before it. Nobody waits for it.

        Its caller does not hear of an error: that is logged. Raises ``StorageError`` when nobody writes.
        """
        self._running()
        self._riders.append(Request(operation))

    @property
    def crowded(self) -> bool:
        """Whether so many wait for the next write that the next one should be waited for."""
        return len(self._riders) >= RIDERS_MAX

    def _running(self) -> trio.MemorySendChannel[_Request]:
        if self._queue is None:
            msg = f"{self._file.subject} takes no writes now: its writer has not started or was stopped"
            raise StorageError(msg)
        return self._queue

    async def _write(self, group: list[_Request]) -> None:
        # Taken before the first await: what rides from now on goes with the next group. One transaction has
        # riders and writes, so that a voucher is never on disk without the receipt that it answers.
        riders, self._riders = self._riders, []
        group = [*riders, *group]
        try:
            with trio.CancelScope(shield=True):  # one commit: the callers wait for its end, whichever it is
                if self._in_thread:
                    await trio.to_thread.run_sync(self._commit_now, group, limiter=self._limiter)
                else:
                    self._commit_now(group)
        except BaseException:
            for request in group:
                request.error = StorageError(f"{self._file.subject}: its writer failed; start again")
            raise
        finally:
            for request in group:
                request.done.set()
            for rider in riders:
                if rider.error is not None:
                    log.error("journal.write_failed", reason=str(rider.error))

    def _commit_now(self, group: list[_Request]) -> None:
        self._commit.commit(group, self._db, lambda: self._db.execute("COMMIT"))


def _waiting(receive: trio.MemoryReceiveChannel[_Request]) -> list[_Request]:
    group: list[_Request] = []
    while len(group) < QUEUE_MAX:
        try:
            group.append(receive.receive_nowait())
        except trio.WouldBlock:
            break
    return group
