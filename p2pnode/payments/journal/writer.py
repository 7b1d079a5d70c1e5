"""The journal's one writer: everything that waits goes into one transaction, with one sync of the disk.

A caller returns after the commit that holds its operation. An operation that raises undoes itself alone;
a disk that fails undoes the whole group and each of its callers hears of it. Cancelling a caller does not
take its operation back. Knows nothing of what is written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog
import trio

from p2pnode.errors import StorageError
from p2pnode.payments.journal.schema import failing_as_storage, storage_error

log = structlog.get_logger()
QUEUE_MAX: Final = 256
RIDERS_MAX: Final = 64
Operation: TypeAlias = Callable[[sqlite3.Connection], None]
_OF_ONE: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
"""Errors that one operation causes, and that end that one only."""


@dataclass(slots=True, eq=False)
class _Request:
    operation: Operation
    done: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None


class JournalWriter:
    """Owns ``db``, which only its worker thread uses while :meth:`run` runs."""

    def __init__(self, path: Path, db: sqlite3.Connection, *, in_thread: bool = True) -> None:
        self._path, self._db, self._in_thread = path, db, in_thread
        self._limiter = trio.CapacityLimiter(1)  # of our own: a commit never waits for somebody's download
        self._queue: trio.MemorySendChannel[_Request] | None = None
        self._riders: list[_Request] = []
        self.commits = 0
        """Transactions so far."""

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; what waits then is still written."""
        send, receive = trio.open_memory_channel[_Request](QUEUE_MAX)
        self._queue = send
        task_status.started()
        try:
            while True:
                first = await receive.receive()
                await self._write([first, *_waiting(receive)])
        finally:
            self._queue = None
            while group := _waiting(receive):
                await self._write(group)
            if self._riders:
                await self._write([])
            receive.close()

    async def write(self, operation: Operation) -> None:
        """Return when ``operation`` is on disk. Raises what it raised, or ``StorageError``."""
        if self._queue is None:
            msg = f"the journal {self._path} takes no writes now: its writer has not started or was stopped"
            raise StorageError(msg)
        request = _Request(operation)
        await self._queue.send(request)
        await request.done.wait()
        if request.error is not None:
            raise request.error

    def ride(self, operation: Operation) -> None:
        """Let ``operation`` go to disk with the next write, before it. Nobody waits for it.

        One that fails is its caller's no more: it is logged.
        """
        if self._queue is None:
            msg = f"the journal {self._path} takes no writes now: its writer has not started or was stopped"
            raise StorageError(msg)
        self._riders.append(_Request(operation))

    @property
    def crowded(self) -> bool:
        """Do so many ride along that one should be waited for?"""
        return len(self._riders) >= RIDERS_MAX

    async def _write(self, group: list[_Request]) -> None:
        riders, self._riders = self._riders, []
        group = [*riders, *group]
        try:
            with trio.CancelScope(shield=True):  # one commit: the callers wait for its end, whichever it is
                if self._in_thread:
                    await trio.to_thread.run_sync(self._commit, group, limiter=self._limiter)
                else:
                    self._commit(group)
        except BaseException:
            for request in group:
                request.error = StorageError(f"the journal {self._path}: its writer failed; start again")
            raise
        finally:
            for request in group:
                request.done.set()
            for rider in riders:
                if rider.error is not None:
                    log.error("journal.write_failed", reason=str(rider.error))

    def _commit(self, group: list[_Request]) -> None:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            if len(group) == 1:  # alone, it needs no savepoint of its own
                self._apply_alone(group[0])
            else:
                for request in group:
                    self._apply(request)
            if db.in_transaction:
                db.execute("COMMIT")
                self.commits += 1
        except sqlite3.Error as error:
            if db.in_transaction:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            for request in group:
                request.error = storage_error(self._path, error)

    def _apply_alone(self, request: _Request) -> None:
        try:
            self._operate(request)
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001 - it is its caller's, who gets it
            self._db.execute("ROLLBACK")
            request.error = error

    def _apply(self, request: _Request) -> None:
        db = self._db
        db.execute("SAVEPOINT one")
        try:
            self._operate(request)
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001 - it is its caller's, who gets it
            db.execute("ROLLBACK TO one")
            request.error = error
        db.execute("RELEASE one")

    def _operate(self, request: _Request) -> None:
        try:
            request.operation(self._db)
        except _OF_ONE as error:
            raise StorageError(f"the journal {self._path} does not take this: {error}") from error


def transact(path: Path, db: sqlite3.Connection, operation: Operation) -> None:
    """One operation in a transaction of its own, here and now."""
    with failing_as_storage(path):
        db.execute("BEGIN IMMEDIATE")
        try:
            operation(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _waiting(receive: trio.MemoryReceiveChannel[_Request]) -> list[_Request]:
    group: list[_Request] = []
    while len(group) < QUEUE_MAX:
        try:
            group.append(receive.receive_nowait())
        except trio.WouldBlock:
            break
    return group
