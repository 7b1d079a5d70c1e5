"""What this machine knows of its logs that no replica can tell it: their heads, and what was acknowledged.

The transaction of :meth:`ReplicationState.commit` is the moment at which a commit to a log has happened. A
log whose head is newer than what was acknowledged has not reached a quorum; after a crash :meth:`lagging`
still has it. Several processes may share the file: a commit names the head that it builds on.

The file is SQLite in WAL mode with full syncs, so that what returned survives a power cut. It holds no text
and no keys, only ids, hashes and revisions: whoever reads the disk learns which conversations there are and
when they grew, no more. Its name, ``outbox.sqlite``, is that of earlier versions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from p2pnode.durable import FileFormat, SqliteDisk, SqliteFile
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.conversations.records import WRITER_BYTES, ArchiveError, Link
from p2pnode.storage.conversations.schedule import LocalHead
from p2pnode.storage.sealing import Draw
from p2pnode.storage.store import DiskFullError

T = TypeVar("T")
_TABLES: Final = """
CREATE TABLE heads (
    sid BLOB PRIMARY KEY,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    updated INTEGER NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0,
    acked INTEGER NOT NULL DEFAULT -1,
    acked_hash BLOB
) WITHOUT ROWID;
CREATE TABLE pending (
    sid BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (sid, seq, hash)
) WITHOUT ROWID;
CREATE TABLE superseded (
    sid BLOB NOT NULL, hash BLOB NOT NULL, fold INTEGER NOT NULL, PRIMARY KEY (sid, hash)
) WITHOUT ROWID;
CREATE TABLE listed (sid BLOB PRIMARY KEY, born INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE renewed (sid BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE writer (id BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_FORMAT: Final = FileFormat(
    application=int.from_bytes(b"p2po", "big"),
    version=1,
    tables=_TABLES,
    foreign="move it away",
    remedies={
        "full": "the disk is full; free space. Nothing acknowledged was lost",
        **dict.fromkeys(
            ("damaged", "disk"),
            "the disk failed, or the file is damaged: check the disk; moved away, all that reached a replica "
            "is recovered from there",
        ),
    },
    full_error=DiskFullError,
)
_WAITING: Final = 0
"""In the column ``fold``: superseded since the last compaction. Else it is that compaction's revision."""


class MovedError(ArchiveError):
    """Another process of this machine committed to the log: it must be opened again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHead:
    """A commit. ``base`` is the head it was made on, ``superseded`` are the blobs that it no longer needs."""

    sid: bytes
    base: Link | None
    head: Link
    updated: int
    superseded: Sequence[BlobHash] = ()
    compacted: bool = False
    gone: bool = False
    listed: Sequence[bytes] = ()
    """The conversations that it names, if it is one of the index."""


class ReplicationState:
    """Open it with a path in the folder of this machine's store; ``close`` it when done."""

    writer: bytes
    """8 bytes that tell this data dir's commits from those of the user's other machines."""

    def __init__(
        self, path: Path, draw: Draw, *, disk: SqliteDisk | None = None, in_thread: bool = True
    ) -> None:
        self._file, self._in_thread = SqliteFile(path, _FORMAT, disk=disk), in_thread
        self._file.make_if_missing()
        self._db = self._file.connect()
        try:
            with self._file.failing_as_storage():
                self.writer = _writer_of(self._db, draw(WRITER_BYTES))
        except BaseException:
            self._db.close()
            raise
        self._limiter = trio.CapacityLimiter(1)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    async def head(self, sid: bytes) -> LocalHead | None:
        """The head of one log; None where this machine does not have the log."""
        rows = await self._read("SELECT * FROM heads WHERE sid = ?", (sid,))
        return _head_of(rows[0]) if rows else None

    async def heads(self) -> list[LocalHead]:
        """The heads of all logs that this machine has, in the order of their sids."""
        return [_head_of(row) for row in await self._read("SELECT * FROM heads ORDER BY sid")]

    async def lagging(self) -> list[LocalHead]:
        """Logs whose head has not reached a quorum; the index, whose sid is the least, first."""
        return [row for row in await self.heads() if row.lags]

    async def ours(self, sid: bytes) -> frozenset[Link]:
        """The heads this machine gave the log since the last that was acknowledged, and that one."""
        rows = await self._read(
            "SELECT seq, hash FROM pending WHERE sid = :sid UNION "
            "SELECT acked, acked_hash FROM heads WHERE sid = :sid AND acked >= 0",
            {"sid": sid},
        )
        return frozenset(_link(row[0], row[1]) for row in rows)

    async def commit(self, new: NewHead) -> None:
        """Move the head, durable when it returns. Raises ``MovedError`` and other ``StorageError``s."""

        def change(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT * FROM heads WHERE sid = ?", (new.sid,)).fetchone()
            if (None if row is None else _head_of(row).head) != new.base:
                msg = "another process of this machine writes to this conversation: open it again"
                raise MovedError(msg)
            db.execute(
                "INSERT INTO heads (sid, seq, hash, updated, gone) VALUES (?, ?, ?, ?, ?) ON CONFLICT (sid)"
                " DO UPDATE SET seq = excluded.seq, hash = excluded.hash, updated = excluded.updated,"
                " gone = excluded.gone",
                (new.sid, new.head.seq, new.head.hash, new.updated, new.gone),
            )
            db.execute("INSERT OR IGNORE INTO renewed VALUES (?, ?)", (new.sid, new.updated))
            mark = (new.sid, new.head.seq, new.head.hash)
            db.execute("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", mark)
            db.executemany(
                "INSERT OR IGNORE INTO superseded VALUES (?, ?, ?)",
                [(new.sid, digest, _WAITING) for digest in new.superseded],
            )
            if new.compacted:
                db.execute(
                    "UPDATE superseded SET fold = ? WHERE sid = ? AND fold = ?",
                    (new.head.seq, new.sid, _WAITING),
                )
            db.executemany(
                "INSERT OR IGNORE INTO listed VALUES (?, ?)", [(sid, new.head.seq) for sid in new.listed]
            )

        await self._write(change)

    async def acked(self, sid: bytes, link: Link) -> None:
        """Note that a quorum has it. One that is older than the one noted changes nothing."""

        def change(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE heads SET acked = ?, acked_hash = ? WHERE sid = ? AND acked <= ?",
                (link.seq, link.hash, sid, link.seq),
            )
            db.execute("DELETE FROM pending WHERE sid = ? AND seq <= ?", (sid, link.seq))

        await self._write(change)

    async def droppable(self, sid: bytes, *, alone: bool = False) -> list[BlobHash]:
        """Blobs that no acknowledged pointer has needed since before the last compaction but one.

        Of a log that was forgotten, all of them. ``alone``: there is nobody else who could acknowledge, so
        the head on our own disk counts instead.
        """
        rows = await self._read(
            "SELECT s.hash FROM superseded s JOIN heads h ON h.sid = s.sid WHERE s.sid = :sid AND ("
            " (h.gone AND (:alone OR h.acked = h.seq)) OR (s.fold > 0 AND s.fold < (SELECT MAX(f.fold) FROM"
            " superseded f WHERE f.sid = :sid AND (:alone OR f.fold <= h.acked))))",
            {"sid": sid, "alone": alone},
        )
        return [BlobHash(row[0]) for row in rows]

    async def dropped(self, sid: bytes, blobs: Sequence[BlobHash]) -> None:
        """Note that our leases on these have ended."""

        def change(db: sqlite3.Connection) -> None:
            db.executemany(
                "DELETE FROM superseded WHERE sid = ? AND hash = ?", [(sid, digest) for digest in blobs]
            )

        await self._write(change)

    async def renewed(self, sid: bytes, at: int) -> None:
        """Note that a quorum renewed its leases on this log at ``at`` (epoch seconds)."""

        def change(db: sqlite3.Connection) -> None:
            db.execute("UPDATE renewed SET at = ? WHERE sid = ?", (at, sid))

        await self._write(change)

    async def renewals(self) -> dict[bytes, float]:
        """When leases on each log were renewed or first taken (epoch seconds); without forgotten logs."""
        rows = await self._read(
            "SELECT r.sid, r.at FROM renewed r JOIN heads h ON h.sid = r.sid WHERE NOT h.gone"
        )
        return {row[0]: row[1] for row in rows}

    async def is_listed_by_quorum(self, sid: bytes) -> bool:
        """Whether a quorum has an index that names this conversation. Nobody could find it otherwise."""
        rows = await self._read(
            "SELECT 1 FROM listed l JOIN heads i ON i.sid = ? WHERE l.sid = ? AND i.acked >= l.born",
            (bytes(len(sid)), sid),
        )
        return bool(rows)

    async def _read(
        self, query: str, marks: Sequence[object] | Mapping[str, object] = ()
    ) -> list[sqlite3.Row]:
        def read() -> list[sqlite3.Row]:
            with self._file.failing_as_storage():
                return list(self._db.execute(query, marks))

        return await self._run(read)

    async def _write(self, change: Callable[[sqlite3.Connection], None]) -> None:
        await self._run(partial(self._file.transact, self._db, change))

    async def _run(self, work: Callable[[], T]) -> T:
        if self._in_thread:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        return work()


def _link(seq: int, digest: bytes) -> Link:
    return Link(seq=seq, hash=BlobHash(digest))


def _head_of(row: sqlite3.Row) -> LocalHead:
    acked = None if row["acked_hash"] is None else _link(row["acked"], row["acked_hash"])
    return LocalHead(row["sid"], _link(row["seq"], row["hash"]), row["updated"], bool(row["gone"]), acked)


def _writer_of(db: sqlite3.Connection, new: bytes) -> bytes:
    """The id that this data dir writes with: ``new`` where it has none yet."""
    db.execute("INSERT INTO writer SELECT ? WHERE NOT EXISTS (SELECT 1 FROM writer)", (new,))
    return bytes(db.execute("SELECT id FROM writer").fetchone()["id"])
