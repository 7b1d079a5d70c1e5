"""The local store's writes in groups: whoever has the turn commits for all who wait.

A group is committed by ``durable.py``. A disk that fails undoes the whole group: the files that it placed
are removed, and each of its callers gets the error. All files of a group have their places, and the folders
are synced, before the commit that names them: after a power cut no row names a file that isn't there. Files
are placed and removed while a transaction locks the index, so that no process removes what another has just
placed. What an operation does is not known here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import structlog
import trio

from p2pnode.durable import GroupCommit, Request, SqliteFile
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.local.files import BlobFiles
from p2pnode.storage.local.index import Transaction

log = structlog.get_logger()
T = TypeVar("T")
GROUP_MAX: Final = 256
"""Operations of one commit."""


@dataclass(slots=True, eq=False)
class _Request(Request[Transaction, T]):
    taken: bool = False


class Writer:
    """Owns ``db``, which one thread at a time uses, or none with ``in_thread=False``."""

    def __init__(
        self, file: SqliteFile, files: BlobFiles, db: sqlite3.Connection, *, in_thread: bool
    ) -> None:
        self._file, self._files, self._db, self._in_thread = file, files, db, in_thread
        self._group_commit = GroupCommit[Transaction](file, db)
        self._limiter = trio.CapacityLimiter(1)
        self._turn = trio.Lock()
        self._waiting: list[_Request[Any]] = []

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """Return what ``operation`` returned, once it is on the disk.

        Raises what it raised, and ``StorageError`` when the disk fails. A caller that is cancelled before
        its group has begun withdraws the operation; one that is cancelled later waits for the commit.
        """
        request = _Request(operation)
        self._waiting.append(request)
        try:
            async with self._turn:
                while not request.taken:
                    await self._write_group()
        except trio.Cancelled:
            if not request.taken:
                self._waiting.remove(request)
            else:
                with trio.CancelScope(shield=True):
                    await request.done.wait()
            raise
        if request.error is not None:
            raise request.error
        return cast("T", request.result)

    async def alone(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that makes transactions of its own, when it is its turn."""
        async with self._turn:
            return await self._run(function, self._db)

    async def _write_group(self) -> None:
        group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
        for request in group:
            request.taken = True
        try:
            with trio.CancelScope(shield=True):  # others wait for the same commit
                await self._run(self._commit, group)
        except BaseException:
            for request in group:
                request.error = self._file.storage_error(OSError("the writer ended"))
            raise
        finally:
            for request in group:
                request.done.set()

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._in_thread:
            return await trio.to_thread.run_sync(function, *arguments, limiter=self._limiter)
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    def _commit(self, group: list[_Request[Any]]) -> None:
        tx = Transaction(self._db, self._files)

        def finish() -> None:
            self._files.sync(tx.unsynced)  # before the commit that names the files in these folders
            self._file.disk.commit(self._db)

        done = self._group_commit.commit(group, tx, finish)
        self._remove(tx.swept if done else tx.placed)

    def _remove(self, unnamed: list[BlobHash]) -> None:
        try:
            remove_unnamed(self._db, self._files, unnamed)
        except (sqlite3.Error, OSError) as error:  # the collection finds them
            log.warning("storage.left_behind", files=len(unnamed), reason=str(error))


def remove_unnamed(db: sqlite3.Connection, files: BlobFiles, digests: list[BlobHash]) -> int:
    """Remove the files of those of ``digests`` that the index doesn't name. Returns how many there were.

    The index is locked meanwhile, so that nobody can put one of them at the same time. Raises ``OSError``
    and ``sqlite3.Error``.
    """
    if not digests:
        return 0
    db.execute("BEGIN IMMEDIATE")
    try:
        removed = 0
        for digest in digests:
            if db.execute("SELECT 1 FROM blobs WHERE hash = ?", (digest,)).fetchone() is None:
                removed += files.disk.unlink(files.path_of(digest))
    finally:
        db.execute("ROLLBACK")  # nothing was changed
    return removed
