"""A journal on a disk on which each commit really takes its time, in the journal's own thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from p2pnode.payments.books import writing_journal
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.journal.schema import journal_file


class SlowDisk:
    """For a real clock: a mock one won't wait. ``commit_s`` may change meanwhile."""

    def __init__(self, commit_s: float) -> None:
        self.commit_s = commit_s

    @asynccontextmanager
    async def open(self, path: Path) -> AsyncIterator[Journal]:
        """A journal, written until the block ends."""
        file = journal_file(path)
        file.make_if_missing()
        writes = sqlite3.connect(path, factory=_Connection, isolation_level=None, check_same_thread=False)
        writes.row_factory = sqlite3.Row
        writes.disk = self
        journal = Journal(file, file.connect(), writes)
        try:
            async with writing_journal(journal):
                yield journal
        finally:
            journal.close()


class _Connection(sqlite3.Connection):
    """SQLite as it is, but for how long the disk takes to say that a transaction is safe."""

    disk = SlowDisk(0.0)

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            time.sleep(self.disk.commit_s)
        return super().execute(sql, *values)
