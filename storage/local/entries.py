"""What the registry changes in the index: the comparison and the write, in one transaction of ``writer``'s.

An entry that moves from one blob to another moves the hold of its owner's lease with it.
"""

from __future__ import annotations

import sqlite3

from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.local.leases import end_over_of
from p2pnode.storage.local.writer import Work
from p2pnode.storage.rules import Quotas, check_keys, is_news
from p2pnode.storage.store import OwnerKey


def find(db: sqlite3.Connection, key: EntryKey) -> tuple[Entry, OwnerKey] | None:
    """An entry and for whom it counts: whoever set the first of its key."""
    row = db.execute("SELECT revision, data, signature, owner FROM entries WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    return Entry(key=key, revision=row[0], data=row[1], signature=row[2]), OwnerKey(row[3])


def set_entry(work: Work, entry: Entry, *, owner: OwnerKey, now: float, quotas: Quotas) -> None:
    """Keep a checked entry. Raises ``StaleEntryError``, ``QuotaError``."""
    db, target = work.db, entry.points_at
    held = find(db, entry.key)
    if not is_news(entry, None if held is None else held[0]):
        return
    if held is None:
        holder = owner
        check_keys(_keys_of(db, owner), db.execute("SELECT keys FROM totals").fetchone()[0], quotas)
    else:
        holder = held[1]
    left = None if held is None else held[0].points_at
    if target != left:
        _begin(db, target, holder, now)
    db.execute(
        "INSERT INTO entries (key, revision, data, signature, owner, target) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, data = excluded.data, "
        "signature = excluded.signature, target = excluded.target",
        (entry.key, entry.revision, entry.data, entry.signature, holder, target),
    )
    if target != left:
        _end(db, left, holder, now)


def _begin(db: sqlite3.Connection, target: BlobHash | None, holder: OwnerKey, now: float) -> None:
    if target is not None:
        end_over_of(db, target, now)  # an entry keeps, it doesn't revive
        db.execute("UPDATE leases SET pointed = pointed + 1 WHERE hash = ? AND owner = ?", (target, holder))


def _end(db: sqlite3.Connection, left: BlobHash | None, holder: OwnerKey, now: float) -> None:
    if left is not None:
        # A lease that only the entry held ends now, and the day of grace begins.
        db.execute(
            "UPDATE leases SET pointed = pointed - 1, until = CASE WHEN pointed = 1 THEN MAX(until, ?) "
            "ELSE until END WHERE hash = ? AND owner = ?",
            (now, left, holder),
        )
        end_over_of(db, left, now)


def _keys_of(db: sqlite3.Connection, owner: OwnerKey) -> int:
    row = db.execute("SELECT keys FROM owners WHERE owner = ?", (owner,)).fetchone()
    return 0 if row is None else int(row[0])
