"""A journal on a disk on which each commit really takes its time, in the journal's own thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from p2pnode.node.beside import beside
from p2pnode.node.journal import Journal
from p2pnode.node.journal_file import connect, make_if_missing

COMMIT_S = 0.02


class _SlowDisk(sqlite3.Connection):
    """SQLite as it is, but for how long the disk takes to say that a transaction is safe."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            time.sleep(COMMIT_S)
        return super().execute(sql, *values)


@asynccontextmanager
async def slow_journal(path: Path) -> AsyncIterator[Journal]:
    """A journal at ``path``, written until the block ends. For a real clock: a mock one won't wait."""
    make_if_missing(path)
    writes = sqlite3.connect(path, factory=_SlowDisk, isolation_level=None, check_same_thread=False)
    writes.row_factory = sqlite3.Row
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
