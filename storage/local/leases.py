"""What an operation on blobs changes in the index. Each runs inside a transaction of ``writer``'s.

A lease that is over is still a row until somebody needs its room or the collection comes; nothing revives
it: whoever leases or points at its blob again ends it first. The rows of one blob end in the order of their
times, so that whenever they are ended, the same owner is the last.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pnode.errors import StorageError
from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.local.writer import Work
from p2pnode.storage.rules import (
    Quotas,
    charge,
    check_node_bytes,
    check_node_leases,
    check_owner_bytes,
    no_blob,
)
from p2pnode.storage.store import OwnerKey

_AT_ONCE: Final = 64
"""Leases that are over, looked for at a time."""


class FileNeededError(StorageError):
    """The blob that was here a moment ago is gone: its bytes are needed after all. Never leaves the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Of one operation. ``sweeps``: the clock is trusted to say whose leases are over."""

    owner: OwnerKey
    now: float
    until: float
    quotas: Quotas
    sweeps: bool


def keep(work: Work, blob: BlobId, new: Path | None, terms: Terms) -> bool:
    """Lease a blob, and place its file ``new`` if it isn't here; whether it was placed.

    Raises ``QuotaError``, and ``FileNeededError`` when there is none to place.
    """
    here = has(work, blob.hash)
    if here is None:
        _make_room_in_store(work, charge(blob.size), terms)
        work.db.execute(
            "INSERT INTO blobs (hash, size, free_since) VALUES (?, ?, ?)", (blob.hash, blob.size, terms.now)
        )
    _lease(work, blob, terms)
    if here:
        return False
    if new is None:
        msg = "its bytes are needed"
        raise FileNeededError(msg)
    work.place(new, blob.hash)
    return True


def pin(work: Work, digest: BlobHash, terms: Terms) -> None:
    """Lease what is here. Raises ``NoBlobError``, ``QuotaError``."""
    if not has(work, digest):
        raise no_blob(digest)
    _lease(work, BlobId(digest, size_of(work.db, digest) or 0), terms)


def unpin(work: Work, digest: BlobHash, *, owner: OwnerKey, now: float) -> None:
    """End a lease, where there is one; with an entry that points at it, it ends with that."""
    work.db.execute(
        "UPDATE leases SET until = MIN(until, ?) WHERE hash = ? AND owner = ?", (now, digest, owner)
    )
    end_over_of(work.db, digest, now)


def end_over_of(db: sqlite3.Connection, digest: BlobHash, now: float) -> None:
    """Drop those leases on a blob that nothing holds any more."""
    over = db.execute(
        "SELECT hash, owner FROM leases WHERE hash = ? AND pointed = 0 AND until <= ? ORDER BY until, owner",
        (digest, now),
    ).fetchall()
    _end(db, over)


def end_over(db: sqlite3.Connection, now: float, limit: int) -> int:
    """Drop leases that nothing holds any more, at most ``limit``; how many."""
    over = db.execute(
        "SELECT hash, owner FROM leases WHERE pointed = 0 AND until <= ? ORDER BY until, hash, owner LIMIT ?",
        (now, limit),
    ).fetchall()
    _end(db, over)
    return len(over)


def _end(db: sqlite3.Connection, over: list[tuple[bytes, bytes]]) -> None:
    for digest, owner in over:
        db.execute("DELETE FROM leases WHERE hash = ? AND owner = ?", (digest, owner))
        db.execute("UPDATE blobs SET last = ? WHERE hash = ? AND leases = 0", (owner, digest))


def size_of(db: sqlite3.Connection, digest: BlobHash) -> int | None:
    """As the index has it."""
    row = db.execute("SELECT size FROM blobs WHERE hash = ?", (digest,)).fetchone()
    return None if row is None else int(row[0])


def has(work: Work, digest: BlobHash) -> bool | None:
    """Is it here? False for one that the index names and whose file is gone or cut, None for no such blob."""
    size = size_of(work.db, digest)
    return None if size is None else work.files.is_whole(digest, size)


def _lease(work: Work, blob: BlobId, terms: Terms) -> None:
    db, digest, owner = work.db, blob.hash, terms.owner
    end_over_of(db, digest, terms.now)
    renewed = db.execute(
        "UPDATE leases SET until = MAX(until, ?) WHERE hash = ? AND owner = ?", (terms.until, digest, owner)
    ).rowcount
    if renewed:
        return
    db.execute("UPDATE blobs SET last = x'' WHERE hash = ? AND last != x''", (digest,))  # it isn't free now
    _make_room_for_owner(work, charge(blob.size), terms)
    check_node_leases(db.execute("SELECT leases FROM totals").fetchone()[0], terms.quotas)
    db.execute(
        "INSERT INTO leases SELECT ?1, ?2, ?3, COUNT(*) FROM entries WHERE target = ?1 AND owner = ?2",
        (digest, owner, terms.until),
    )
    if terms.until <= terms.now:
        end_over_of(db, digest, terms.now)


def _make_room_for_owner(work: Work, more: int, terms: Terms) -> None:
    """Its leases that are over give way, then its blobs that nobody leases. Raises ``QuotaError``."""
    db, owner = work.db, terms.owner

    def charged() -> int:
        row = db.execute("SELECT charged FROM owners WHERE owner = ?", (owner,)).fetchone()
        return 0 if row is None else int(row[0])

    while charged() + more > terms.quotas.owner_bytes:
        over = db.execute(
            "SELECT hash FROM leases WHERE owner = ? AND pointed = 0 AND until <= ? ORDER BY until LIMIT ?",
            (owner, terms.now, _AT_ONCE),
        ).fetchall()
        for (digest,) in over:
            end_over_of(db, digest, terms.now)
        if over:
            continue
        free = db.execute(
            "SELECT hash FROM blobs WHERE leases = 0 AND last = ? ORDER BY free_since, hash LIMIT 1", (owner,)
        ).fetchone()
        if free is None:
            check_owner_bytes(charged(), more, terms.quotas)
        else:
            _sweep(work, free[0])


def _make_room_in_store(work: Work, more: int, terms: Terms) -> None:
    """Blobs that nobody leases give way, those free the longest first. Raises ``QuotaError``."""
    db = work.db
    while (charged := int(db.execute("SELECT charged FROM totals").fetchone()[0])) + more > (
        terms.quotas.node_bytes
    ):
        free = db.execute(
            "SELECT hash, free_since FROM blobs WHERE leases = 0 ORDER BY free_since, hash LIMIT 1"
        ).fetchone()
        # A blob whose last lease is over, and only not ended yet, may be free for longer than that.
        before = terms.now if free is None else min(terms.now, free[1])
        if terms.sweeps and end_over(db, before, _AT_ONCE):
            continue
        if free is None:
            check_node_bytes(charged, more, terms.quotas)
        else:
            _sweep(work, free[0])


def _sweep(work: Work, digest: BlobHash) -> None:
    work.db.execute("DELETE FROM blobs WHERE hash = ?", (digest,))
    work.swept.append(digest)
