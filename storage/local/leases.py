"""What an operation on blobs changes in the index. Each runs inside a transaction of ``writer``'s.

A lease that is over is still a row until somebody needs its room or the collection comes; nothing revives
it: whoever leases or points at its blob again ends it first.
"""

from __future__ import annotations

import sqlite3
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
"""Leases ended between two looks whether there is room now."""


class FileNeededError(StorageError):
    """The blob that was here a moment ago is gone: its bytes are needed after all. Never leaves the store."""


def keep(
    work: Work, blob: BlobId, new: Path | None, *, owner: OwnerKey, now: float, until: float, quotas: Quotas
) -> bool:
    """Lease a blob, and place its file ``new`` if it isn't here; whether it was placed.

    Raises ``QuotaError``, and ``FileNeededError`` when there is none to place.
    """
    here = has(work, blob.hash)
    if here is None:
        charged = work.db.execute("SELECT charged FROM totals").fetchone()[0]
        check_node_bytes(charged, charge(blob.size), quotas)
        work.db.execute(
            "INSERT INTO blobs (hash, size, free_since) VALUES (?, ?, ?)", (blob.hash, blob.size, now)
        )
    _lease(work.db, blob, owner=owner, now=now, until=until, quotas=quotas)
    if here:
        return False
    if new is None:
        msg = "its bytes are needed"
        raise FileNeededError(msg)
    work.place(new, blob.hash)
    return True


def pin(work: Work, digest: BlobHash, *, owner: OwnerKey, now: float, until: float, quotas: Quotas) -> None:
    """Lease what is here. Raises ``NoBlobError``, ``QuotaError``."""
    if not has(work, digest):
        raise no_blob(digest)
    size = size_of(work.db, digest) or 0
    _lease(work.db, BlobId(digest, size), owner=owner, now=now, until=until, quotas=quotas)


def unpin(work: Work, digest: BlobHash, *, owner: OwnerKey, now: float) -> None:
    """End a lease, where there is one; with an entry that points at it, it ends with that."""
    work.db.execute(
        "UPDATE leases SET until = MIN(until, ?) WHERE hash = ? AND owner = ?", (now, digest, owner)
    )
    end_if_over(work.db, digest, owner, now)


def end_if_over(db: sqlite3.Connection, digest: BlobHash, owner: OwnerKey, now: float) -> None:
    """Drop one lease if nothing holds it any more."""
    db.execute(
        "DELETE FROM leases WHERE hash = ? AND owner = ? AND until <= ? AND pointed = 0",
        (digest, owner, now),
    )


def end_over(db: sqlite3.Connection, now: float, limit: int) -> int:
    """Drop leases that nothing holds any more, at most ``limit``; how many."""
    return db.execute(
        "DELETE FROM leases WHERE (hash, owner) IN (SELECT hash, owner FROM leases "
        "WHERE pointed = 0 AND until <= ? ORDER BY until LIMIT ?)",
        (now, limit),
    ).rowcount


def size_of(db: sqlite3.Connection, digest: BlobHash) -> int | None:
    """As the index has it."""
    row = db.execute("SELECT size FROM blobs WHERE hash = ?", (digest,)).fetchone()
    return None if row is None else int(row[0])


def has(work: Work, digest: BlobHash) -> bool | None:
    """Is it here? False for one that the index names and whose file is gone or cut, None for no such blob."""
    size = size_of(work.db, digest)
    return None if size is None else work.files.is_whole(digest, size)


def _lease(
    db: sqlite3.Connection, blob: BlobId, *, owner: OwnerKey, now: float, until: float, quotas: Quotas
) -> None:
    end_if_over(db, blob.hash, owner, now)
    renewed = db.execute(
        "UPDATE leases SET until = MAX(until, ?) WHERE hash = ? AND owner = ?", (until, blob.hash, owner)
    ).rowcount
    if renewed:
        return
    _make_room(db, owner, charge(blob.size), now, quotas)
    check_node_leases(db.execute("SELECT leases FROM totals").fetchone()[0], quotas)
    db.execute(
        "INSERT INTO leases SELECT ?1, ?2, ?3, COUNT(*) FROM entries WHERE target = ?1 AND owner = ?2",
        (blob.hash, owner, until),
    )


def _make_room(db: sqlite3.Connection, owner: OwnerKey, more: int, now: float, quotas: Quotas) -> None:
    while True:
        row = db.execute("SELECT charged FROM owners WHERE owner = ?", (owner,)).fetchone()
        used = 0 if row is None else int(row[0])
        if used + more <= quotas.owner_bytes:
            return
        ended = db.execute(
            "DELETE FROM leases WHERE owner = ?1 AND hash IN (SELECT hash FROM leases "
            "WHERE owner = ?1 AND pointed = 0 AND until <= ?2 ORDER BY until LIMIT ?3)",
            (owner, now, _AT_ONCE),
        ).rowcount
        if not ended:
            check_owner_bytes(used, more, quotas)
