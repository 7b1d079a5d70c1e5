"""Collection in bounded steps: what the index says is due, then some folders of a round over all of them.

What is due is found by SQL indexes, so that a step costs as much as it frees. The round compares each folder
with the index and finds what a crash or a bad disk left: files that no row names, rows whose file is gone or
cut, uploads that never ended. It goes on where the last step stopped, in whichever process that was. A blob's
row goes first, in a commit; its file follows while the index is locked, and only if no row has come back.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

import structlog

from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.local.files import BlobFiles
from p2pnode.storage.local.index import end_over
from p2pnode.storage.local.writer import remove_unnamed
from p2pnode.storage.rules import FOLDERS, GcStep
from p2pnode.storage.store import GRACE_S

log = structlog.get_logger()
_LAST: Final = b"\xff" * 33
"""Above every hash."""


def sweep_step(db: sqlite3.Connection, files: BlobFiles, now: float, limit: int) -> GcStep:
    """One step: about ``limit`` leases, blobs and files. Raises ``OSError``, ``sqlite3.Error``."""
    ended, swept, freed = _free_what_is_due(db, files, now, limit)
    scrub = _Scrub(db, files, max(0, limit - ended - len(swept)))
    if scrub.position == 0 and scrub.budget:
        scrub.remove_stale_uploads(now)
    scrub.look()
    removed, lost = scrub.settle()
    return GcStep(
        leases_ended=ended,
        blobs_swept=len(swept),
        bytes_freed=freed,
        files_removed=removed + scrub.uploads_removed,
        blobs_lost=lost,
        folders_seen=scrub.position - scrub.first,
        folders_left=FOLDERS - scrub.position,
        due=ended == limit or len(swept) == limit,
    )


def _free_what_is_due(
    db: sqlite3.Connection, files: BlobFiles, now: float, limit: int
) -> tuple[int, list[BlobHash], int]:
    db.execute("BEGIN IMMEDIATE")
    try:
        ended = end_over(db, now, limit)
        free = db.execute(
            "SELECT hash, size FROM blobs WHERE leases = 0 AND free_since <= ? ORDER BY free_since LIMIT ?",
            (now - GRACE_S, limit),
        ).fetchall()
        db.executemany("DELETE FROM blobs WHERE hash = ?", [(row[0],) for row in free])
        if ended or free:
            files.disk.commit(db)
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
    swept = [BlobHash(row[0]) for row in free]
    remove_unnamed(db, files, swept)
    return ended, swept, sum(row[1] for row in free)


@dataclass(slots=True)
class _Suspects:
    files: list[BlobHash]
    rows: list[BlobHash]


class _Scrub:
    """Some folders of the round, compared with the index."""

    def __init__(self, db: sqlite3.Connection, files: BlobFiles, budget: int) -> None:
        self._db, self._files, self.budget = db, files, budget
        self.first = self.position = int(db.execute("SELECT folder FROM totals").fetchone()[0]) % FOLDERS
        self.uploads_removed = 0
        self._suspects = _Suspects([], [])

    def remove_stale_uploads(self, now: float) -> None:
        """Remove uploads that nobody wrote to for a day, and that nobody has open."""
        for name in self._files.disk.names(self._files.new)[: self.budget]:
            path = self._files.new / name
            modified_at = self._files.disk.modified_at(path)
            if modified_at is not None and modified_at <= now - GRACE_S:
                self.uploads_removed += self._files.disk.unlink_if_left(path)
            self.budget -= 1

    def look(self) -> None:
        """Note what seems wrong, without a lock: :meth:`settle` looks again under one."""
        while self.budget > 0 and self.position < FOLDERS:
            number = self._next()
            if number is None:
                self.position = FOLDERS
                return
            self.budget -= 1 + self._compare(number)
            self.position = number + 1

    def settle(self) -> tuple[int, int]:
        """Remove what is still wrong, and note how far the round is: files removed, blobs lost."""
        lost = 0
        if self.position != self.first or self._suspects.rows:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                lost = sum(self._drop_if_lost(digest) for digest in self._suspects.rows)
                self._db.execute("UPDATE totals SET folder = ?", (self.position % FOLDERS,))
                self._files.disk.commit(self._db)
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        return remove_unnamed(self._db, self._files, self._suspects.files), lost

    def _next(self) -> int | None:
        """The next folder that exists on the disk, or that should by the index."""
        there = self._files.next_folder(self.position)
        begins = self.position.to_bytes(2, "big")
        row = self._db.execute(
            "SELECT hash FROM blobs WHERE hash >= ? ORDER BY hash LIMIT 1", (begins,)
        ).fetchone()
        named = None if row is None else int.from_bytes(row[0][:2], "big")
        return min((number for number in (there, named) if number is not None), default=None)

    def _compare(self, number: int) -> int:
        names = self._files.disk.sizes(self._files.folder(number))
        first = number.to_bytes(2, "big")
        last = (number + 1).to_bytes(2, "big") if number + 1 < FOLDERS else _LAST
        rows = {
            BlobHash(row[0]): int(row[1])
            for row in self._db.execute(
                "SELECT hash, size FROM blobs WHERE hash >= ? AND hash < ?", (first, last)
            )
        }
        for name in names:
            digest = self._files.hash_of_name(number, name)
            if digest is not None and digest not in rows:
                self._suspects.files.append(digest)
        self._suspects.rows += [digest for digest, size in rows.items() if names.get(digest.hex()) != size]
        return max(len(names), len(rows))

    def _drop_if_lost(self, digest: BlobHash) -> bool:
        row = self._db.execute("SELECT size, leases FROM blobs WHERE hash = ?", (digest,)).fetchone()
        if row is None or self._files.is_whole(digest, row[0]):
            return False
        self._db.execute("DELETE FROM leases WHERE hash = ?", (digest,))
        self._db.execute("DELETE FROM blobs WHERE hash = ?", (digest,))
        log.error("storage.blob_lost", blob=BlobId(digest, row[0]).text(), leases=row[1])
        self._suspects.files.append(digest)  # a cut one is of no use either
        return True
