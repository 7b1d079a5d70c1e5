"""The disk beneath a SQLite file, in view: its connections and commits, and faults when a test wants them."""

from __future__ import annotations

import errno
import sqlite3
import time
from pathlib import Path

from p2pnode.durable import SqliteDisk


class WatchedDisk(SqliteDisk):
    """The real disk, until it is told otherwise. The fields may be changed at any time."""

    def __init__(self) -> None:
        self.connections: list[sqlite3.Connection] = []
        """To all files on this disk; the first one of a journal and of a store reads, the second writes."""
        self.commits = 0
        """Transactions that are on the disk."""
        self.full_for = 0
        """So many of the next commits find the disk full."""
        self.dead = False
        """No commit reaches the disk any more, as when the process was killed."""

    def connect(self, path: Path) -> sqlite3.Connection:
        self.connections.append(super().connect(path))
        return self.connections[-1]

    def commit(self, db: sqlite3.Connection) -> None:
        if self.dead:
            raise OSError(errno.EIO, "the process was killed")
        if self.full_for > 0:
            self.full_for -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        super().commit(db)
        self.commits += 1

    def pragma(self, setting: str) -> None:
        """Set ``setting`` for each connection."""
        for db in self.connections:
            db.execute(f"PRAGMA {setting}")


class SlowDisk(WatchedDisk):
    """Each commit takes real time, in the journal's own thread: a mock clock would not wait for it."""

    def __init__(self, commit_s: float) -> None:
        super().__init__()
        self.commit_s = commit_s

    def commit(self, db: sqlite3.Connection) -> None:
        time.sleep(self.commit_s)
        super().commit(db)
