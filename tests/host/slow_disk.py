"""A journal on a disk on which each commit really takes its time, in the journal's own thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from p2pnode.node.beside import beside
from p2pnode.node.journal import Journal
from p2pnode.node.journal_file import connect, make_if_missing


class _SlowDisk(sqlite3.Connection):
    """SQLite as it is, but for how long the disk takes to say that a transaction is safe."""

    commit_s = 0.0

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            time.sleep(self.commit_s)
        return super().execute(sql, *values)


def slow_journal(commit_s: float) -> Callable[[Path], AbstractAsyncContextManager[Journal]]:
    """Opens a journal, written until the block ends. For a real clock: a mock one won't wait."""

    @asynccontextmanager
    async def opened(path: Path) -> AsyncIterator[Journal]:
        make_if_missing(path)
        writes = sqlite3.connect(path, factory=_SlowDisk, isolation_level=None, check_same_thread=False)
        writes.row_factory = sqlite3.Row
        writes.commit_s = commit_s
        journal = Journal(path, connect(path), writes)
        writing = trio.CancelScope(shield=True)

        async def write(*, task_status: trio.TaskStatus[None]) -> None:
            with writing:
                await journal.run(task_status=task_status)

        try:
            async with beside(write):
                try:
                    yield journal
                finally:
                    writing.cancel()
        finally:
            journal.close()

    return opened
