"""What is in a store, for people: totals, owners, and blobs and entries a page at a time."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.store import OwnerKey


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerStats:
    """What counts for one owner: bytes charged, leases, registry keys."""

    owner: OwnerKey
    charged: int
    leases: int
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Totals. ``charged`` is what counts against the store's quota: no blob counts less than 4 KiB."""

    blobs: int
    bytes: int
    charged: int
    leases: int
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """``until`` in seconds since 1970; ``pointed``: an entry of the owner holds it beyond that."""

    owner: OwnerKey
    until: float
    pointed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    """A blob, who leases it, and which entries point at it."""

    id: BlobId
    leases: tuple[Lease, ...]
    entries: tuple[EntryKey, ...]


def stats(db: sqlite3.Connection) -> StoreStats:
    """In no time, whatever the store holds."""
    row = db.execute("SELECT blobs, bytes, charged, leases, keys FROM totals").fetchone()
    return StoreStats(blobs=row[0], bytes=row[1], charged=row[2], leases=row[3], keys=row[4])


def owner_stats(db: sqlite3.Connection, limit: int) -> list[OwnerStats]:
    """Owners, those with the most first."""
    rows = db.execute(
        "SELECT owner, charged, leases, keys FROM owners ORDER BY charged DESC, owner LIMIT ?", (limit,)
    )
    return [OwnerStats(owner=OwnerKey(row[0]), charged=row[1], leases=row[2], keys=row[3]) for row in rows]


def blobs(db: sqlite3.Connection, after: BlobHash | None, limit: int) -> list[BlobInfo]:
    """Blobs in the order of their hashes, from the one after ``after``."""
    rows = db.execute(
        "SELECT hash, size FROM blobs WHERE hash > ? ORDER BY hash LIMIT ?", (after or b"", limit)
    ).fetchall()
    return [_info(db, BlobId(BlobHash(row[0]), row[1])) for row in rows]


def entries(db: sqlite3.Connection, after: EntryKey | None, limit: int) -> list[Entry]:
    """Entries in the order of their keys, from the one after ``after``."""
    rows = db.execute(
        "SELECT key, revision, data, signature FROM entries WHERE key > ? ORDER BY key LIMIT ?",
        (after or b"", limit),
    )
    return [Entry(key=EntryKey(row[0]), revision=row[1], data=row[2], signature=row[3]) for row in rows]


def _info(db: sqlite3.Connection, blob: BlobId) -> BlobInfo:
    leases = db.execute(
        "SELECT owner, until, pointed FROM leases WHERE hash = ? ORDER BY owner", (blob.hash,)
    )
    keys = db.execute("SELECT key FROM entries WHERE target = ? ORDER BY key", (blob.hash,))
    return BlobInfo(
        id=blob,
        leases=tuple(Lease(owner=OwnerKey(row[0]), until=row[1], pointed=bool(row[2])) for row in leases),
        entries=tuple(EntryKey(row[0]) for row in keys),
    )
