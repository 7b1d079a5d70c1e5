"""The local store's index: which blobs there are, who leases them, the registry, and what counts for whom.

One SQLite file, shared by all processes on a data dir; one of an earlier format is brought up to date when
it is opened. Triggers do the counting, so that no statement can forget it: each owner's bytes and keys, the
totals, the leases of each blob, and since when a blob without any is free. SQL indexes hold what is due, so
that a collection never looks at what isn't.

Changes to blobs, leases and entries run inside a transaction of the ``Writer``: their first argument is its
:class:`Transaction`. A lease that is over stays a row until somebody needs its room or the collection comes.
Nothing revives it: whoever leases or points at its blob again ends it first. The rows of one blob end in the
order of their times, so that whenever they are ended, the same owner is the last.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from p2pnode.durable import FileFormat, SqliteDisk, SqliteFile, run_script
from p2pnode.errors import StorageError
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.local.files import BlobFiles
from p2pnode.storage.rules import (
    CHARGE_MIN,
    Quotas,
    charge,
    check_keys,
    check_node_bytes,
    check_node_leases,
    check_owner_bytes,
    is_newer,
    no_blob,
)
from p2pnode.storage.store import DiskFullError, OwnerKey

_AT_ONCE: Final = 64
"""So many leases that are over are looked for at a time."""
_BLOBS: Final = f"""
CREATE TABLE blobs (
    hash BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    charge INTEGER AS (MAX(size, {CHARGE_MIN})),
    free_since REAL NOT NULL,
    leases INTEGER NOT NULL DEFAULT 0,
    last BLOB NOT NULL DEFAULT x''
) WITHOUT ROWID;
CREATE INDEX blobs_free ON blobs (free_since) WHERE leases = 0;
"""
# last: the owner whose lease ended last; a blob without a lease counts for that owner until it is swept
_LAST: Final = """
CREATE INDEX blobs_last ON blobs (last, free_since) WHERE leases = 0;
"""
_TABLES: Final = """
-- pointed: entries of the same owner that point at the blob; with any, the lease does not end
CREATE TABLE leases (
    hash BLOB NOT NULL REFERENCES blobs (hash),
    owner BLOB NOT NULL,
    until REAL NOT NULL,
    pointed INTEGER NOT NULL,
    PRIMARY KEY (hash, owner)
) WITHOUT ROWID;
CREATE INDEX leases_ending ON leases (until) WHERE pointed = 0;
CREATE INDEX leases_of_owner ON leases (owner, until) WHERE pointed = 0;

CREATE TABLE entries (
    key BLOB PRIMARY KEY,
    revision INTEGER NOT NULL,
    data BLOB NOT NULL,
    signature BLOB NOT NULL,
    owner BLOB NOT NULL,
    target BLOB
) WITHOUT ROWID;
CREATE INDEX entries_by_target ON entries (target, owner) WHERE target IS NOT NULL;

CREATE TABLE owners (
    owner BLOB PRIMARY KEY,
    charged INTEGER NOT NULL DEFAULT 0,
    leases INTEGER NOT NULL DEFAULT 0,
    keys INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- folder: where the collection's round goes on
CREATE TABLE totals (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    blobs INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    charged INTEGER NOT NULL DEFAULT 0,
    leases INTEGER NOT NULL DEFAULT 0,
    keys INTEGER NOT NULL DEFAULT 0,
    folder INTEGER NOT NULL DEFAULT 0
);
INSERT INTO totals (one) VALUES (1);

"""
_TRIGGERS: Final = """
CREATE TRIGGER blob_came AFTER INSERT ON blobs BEGIN
    UPDATE totals SET blobs = blobs + 1, bytes = bytes + NEW.size, charged = charged + NEW.charge;
END;
CREATE TRIGGER blob_went AFTER DELETE ON blobs BEGIN
    UPDATE totals SET blobs = blobs - 1, bytes = bytes - OLD.size, charged = charged - OLD.charge;
    UPDATE owners SET charged = charged - OLD.charge WHERE owner = OLD.last;
    DELETE FROM owners WHERE owner = OLD.last AND leases = 0 AND keys = 0 AND charged = 0;
END;
CREATE TRIGGER last_changed AFTER UPDATE OF last ON blobs WHEN OLD.last != NEW.last BEGIN
    INSERT INTO owners (owner) SELECT NEW.last WHERE NEW.last != x'' ON CONFLICT DO NOTHING;
    UPDATE owners SET charged = charged + OLD.charge WHERE owner = NEW.last;
    UPDATE owners SET charged = charged - OLD.charge WHERE owner = OLD.last;
    DELETE FROM owners WHERE owner = OLD.last AND leases = 0 AND keys = 0 AND charged = 0;
END;
CREATE TRIGGER lease_began AFTER INSERT ON leases BEGIN
    UPDATE blobs SET leases = leases + 1 WHERE hash = NEW.hash;
    INSERT INTO owners (owner) VALUES (NEW.owner) ON CONFLICT DO NOTHING;
    UPDATE owners SET leases = leases + 1,
        charged = charged + (SELECT charge FROM blobs WHERE hash = NEW.hash) WHERE owner = NEW.owner;
    UPDATE totals SET leases = leases + 1;
END;
CREATE TRIGGER lease_ended AFTER DELETE ON leases BEGIN
    UPDATE blobs SET leases = leases - 1, free_since = MAX(free_since, OLD.until) WHERE hash = OLD.hash;
    UPDATE owners SET leases = leases - 1,
        charged = charged - (SELECT charge FROM blobs WHERE hash = OLD.hash) WHERE owner = OLD.owner;
    DELETE FROM owners WHERE owner = OLD.owner AND leases = 0 AND keys = 0 AND charged = 0;
    UPDATE totals SET leases = leases - 1;
END;
CREATE TRIGGER entry_came AFTER INSERT ON entries BEGIN
    INSERT INTO owners (owner) VALUES (NEW.owner) ON CONFLICT DO NOTHING;
    UPDATE owners SET keys = keys + 1 WHERE owner = NEW.owner;
    UPDATE totals SET keys = keys + 1;
END;
"""


def index_file(root: Path, disk: SqliteDisk) -> SqliteFile:
    """The index of the store in the folder ``root``."""
    return SqliteFile(root / "index.sqlite", _FORMAT, subject=f"the store {root}", disk=disk)


def make_if_missing(file: SqliteFile, blobs: Path) -> None:
    """Make an empty index (mode 0600) where there is none. Raises ``StorageError``.

    Where the folder ``blobs`` exists without an index, none is made: to a new index every blob in it would
    be garbage.
    """
    with file.making():
        if file.path.exists() and file.path.stat().st_size:
            return
        if blobs.exists():
            msg = (
                f"{file.path} is gone or empty, but {blobs} is there: restore the file from your backup, or "
                "move the whole folder away to begin a new store (who leases which blob stands in that file "
                "only)"
            )
            raise StorageError(msg)
        file.make()


def _upgrade(db: sqlite3.Connection, _found: int) -> None:
    """Upgrade from format 1, which had no ``last``: a blob without a lease counts for nobody there."""
    for name in ("blob_came", "blob_went", "lease_began", "lease_ended", "entry_came"):
        db.execute(f"DROP TRIGGER {name}")
    db.execute("ALTER TABLE blobs ADD COLUMN last BLOB NOT NULL DEFAULT x''")
    run_script(db, f"{_LAST}{_TRIGGERS}")


_FORMAT: Final = FileFormat(
    application=int.from_bytes(b"p2ps", "big"),
    version=2,
    tables=f"{_BLOBS}{_LAST}{_TABLES}{_TRIGGERS}",
    foreign="it is no store. Move it away to begin a new one",
    remedies={
        "full": (
            "its disk is full: free some space, then `p2pnode storage gc` may sweep more; nothing new is "
            "kept until then, nothing kept before was lost"
        ),
        "damaged": "its index is damaged: restore the folder from your backup, or move it away to begin anew",
        "disk": "the disk failed: check its health, then start again; nothing acknowledged was lost",
    },
    full_error=DiskFullError,
    upgrade=_upgrade,
)


# ---- one transaction


@dataclass(slots=True, eq=False)
class Transaction:
    """A transaction in progress. Only the operations of its group use it."""

    db: sqlite3.Connection
    files: BlobFiles
    placed: list[BlobHash] = field(default_factory=list)
    unsynced: set[Path] = field(default_factory=set)
    swept: list[BlobHash] = field(default_factory=list)
    """Blobs that no row names any more. Their files go after the commit."""

    def place(self, new: Path, digest: BlobHash) -> None:
        """Give a synced file its place.

        An operation does this last: if a later step of it failed, only the operation's rows would be undone,
        and the file would stay. (When the whole group fails, the ``Writer`` removes what it placed.)
        """
        self.files.place(new, digest, self.unsynced)
        self.placed.append(digest)


# ---- blobs and leases


class FileNeededError(StorageError):
    """The blob that was here a moment ago is gone, so its bytes are needed. Never leaves the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of one operation. ``sweeps``: the clock is trusted to say whose leases are over."""

    owner: OwnerKey
    now: float
    until: float
    quotas: Quotas
    sweeps: bool


def keep(tx: Transaction, blob: BlobId, new: Path | None, terms: Terms) -> bool:
    """Lease a blob, and place its file ``new`` if it isn't here. Returns whether it was placed.

    Raises ``QuotaError``, and ``FileNeededError`` when there is none to place.
    """
    here = has(tx, blob.hash)
    if here is None:
        _make_room_in_store(tx, charge(blob.size), terms)
        tx.db.execute(
            "INSERT INTO blobs (hash, size, free_since) VALUES (?, ?, ?)", (blob.hash, blob.size, terms.now)
        )
    _lease(tx, blob, terms)
    if here:
        return False
    if new is None:
        msg = "its bytes are needed"
        raise FileNeededError(msg)
    tx.place(new, blob.hash)
    return True


def pin(tx: Transaction, digest: BlobHash, terms: Terms) -> None:
    """Lease what is here. Raises ``NoBlobError``, ``QuotaError``."""
    if not has(tx, digest):
        raise no_blob(digest)
    _lease(tx, BlobId(digest, size_of(tx.db, digest) or 0), terms)


def unpin(tx: Transaction, digest: BlobHash, *, owner: OwnerKey, now: float) -> None:
    """End a lease, where there is one. While an entry of the owner points at the blob, it ends with that."""
    tx.db.execute(
        "UPDATE leases SET until = MIN(until, ?) WHERE hash = ? AND owner = ?", (now, digest, owner)
    )
    end_over_of(tx.db, digest, now)


def end_over_of(db: sqlite3.Connection, digest: BlobHash, now: float) -> None:
    """Delete the leases on a blob that are over and that no entry holds."""
    over = db.execute(
        "SELECT hash, owner FROM leases WHERE hash = ? AND pointed = 0 AND until <= ? ORDER BY until, owner",
        (digest, now),
    ).fetchall()
    _end(db, over)


def end_over(db: sqlite3.Connection, now: float, limit: int) -> int:
    """Delete at most ``limit`` leases that are over and that no entry holds. Returns how many."""
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
    """Bytes of a blob by the index; None where it has no such blob."""
    row = db.execute("SELECT size FROM blobs WHERE hash = ?", (digest,)).fetchone()
    return None if row is None else int(row[0])


def has(tx: Transaction, digest: BlobHash) -> bool | None:
    """Whether a blob is here: False where its file is gone or cut, None where the index has no such blob."""
    size = size_of(tx.db, digest)
    return None if size is None else tx.files.is_whole(digest, size)


def _lease(tx: Transaction, blob: BlobId, terms: Terms) -> None:
    db, digest, owner = tx.db, blob.hash, terms.owner
    end_over_of(db, digest, terms.now)
    renewed = db.execute(
        "UPDATE leases SET until = MAX(until, ?) WHERE hash = ? AND owner = ?", (terms.until, digest, owner)
    ).rowcount
    if renewed:
        return
    db.execute("UPDATE blobs SET last = x'' WHERE hash = ? AND last != x''", (digest,))  # it isn't free now
    _make_room_for_owner(tx, charge(blob.size), terms)
    check_node_leases(db.execute("SELECT leases FROM totals").fetchone()[0], terms.quotas)
    db.execute(
        "INSERT INTO leases SELECT ?1, ?2, ?3, COUNT(*) FROM entries WHERE target = ?1 AND owner = ?2",
        (digest, owner, terms.until),
    )
    if terms.until <= terms.now:
        end_over_of(db, digest, terms.now)


def _make_room_for_owner(tx: Transaction, more: int, terms: Terms) -> None:
    """Free the owner's own: first its leases that are over, then its blobs without a lease.

    Raises ``QuotaError`` where that is not enough.
    """
    db, owner = tx.db, terms.owner

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
            _sweep(tx, free[0])


def _make_room_in_store(tx: Transaction, more: int, terms: Terms) -> None:
    """Sweep blobs without a lease, those free the longest first. Raises ``QuotaError``."""
    db = tx.db
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
            _sweep(tx, free[0])


def _sweep(tx: Transaction, digest: BlobHash) -> None:
    tx.db.execute("DELETE FROM blobs WHERE hash = ?", (digest,))
    tx.swept.append(digest)


# ---- the registry


def find_entry(db: sqlite3.Connection, key: EntryKey) -> tuple[Entry, OwnerKey] | None:
    """An entry, and the owner for whom it counts: the one who set the first entry of its key."""
    row = db.execute("SELECT revision, data, signature, owner FROM entries WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    return Entry(key=key, revision=row[0], data=row[1], signature=row[2]), OwnerKey(row[3])


def set_entry(tx: Transaction, entry: Entry, *, owner: OwnerKey, now: float, quotas: Quotas) -> None:
    """Keep a checked entry. Raises ``StaleEntryError``, ``QuotaError``."""
    db, target = tx.db, entry.points_at
    held = find_entry(db, entry.key)
    if not is_newer(entry, None if held is None else held[0]):
        return
    if held is None:
        holder = owner
        check_keys(_keys_of(db, owner), db.execute("SELECT keys FROM totals").fetchone()[0], quotas)
    else:
        holder = held[1]
    left = None if held is None else held[0].points_at
    if target != left:
        _hold(db, target, holder, now)
    db.execute(
        "INSERT INTO entries (key, revision, data, signature, owner, target) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, data = excluded.data, "
        "signature = excluded.signature, target = excluded.target",
        (entry.key, entry.revision, entry.data, entry.signature, holder, target),
    )
    if target != left:
        _stop_holding(db, left, holder, now)


def _hold(db: sqlite3.Connection, target: BlobHash | None, holder: OwnerKey, now: float) -> None:
    if target is not None:
        end_over_of(db, target, now)  # an entry holds a lease that runs, it revives none
        db.execute("UPDATE leases SET pointed = pointed + 1 WHERE hash = ? AND owner = ?", (target, holder))


def _stop_holding(db: sqlite3.Connection, left: BlobHash | None, holder: OwnerKey, now: float) -> None:
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


# ---- what is here, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerStatistics:
    """What one owner has: bytes charged, leases, registry keys."""

    owner: OwnerKey
    charged: int
    leases: int
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """Totals. ``charged`` counts against the store's quota: each blob for at least 4 KiB."""

    blobs: int
    bytes: int
    charged: int
    leases: int
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """``until`` is in seconds since 1970; where ``pointed``, an entry of the owner holds it beyond that."""

    owner: OwnerKey
    until: float
    pointed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    """A blob, who leases it, and which entries point at it."""

    id: BlobId
    leases: tuple[Lease, ...]
    entries: tuple[EntryKey, ...]


def totals(db: sqlite3.Connection) -> StoreStatistics:
    """The totals that the triggers keep: one row is read, whatever the store holds."""
    row = db.execute("SELECT blobs, bytes, charged, leases, keys FROM totals").fetchone()
    return StoreStatistics(blobs=row[0], bytes=row[1], charged=row[2], leases=row[3], keys=row[4])


def list_owners(db: sqlite3.Connection, limit: int) -> list[OwnerStatistics]:
    """Owners, those with the most first."""
    rows = db.execute(
        "SELECT owner, charged, leases, keys FROM owners ORDER BY charged DESC, owner LIMIT ?", (limit,)
    )
    return [
        OwnerStatistics(owner=OwnerKey(row[0]), charged=row[1], leases=row[2], keys=row[3]) for row in rows
    ]


def list_blobs(db: sqlite3.Connection, after: BlobHash | None, limit: int) -> list[BlobInfo]:
    """Blobs in the order of their hashes, from the one after ``after``."""
    rows = db.execute(
        "SELECT hash, size FROM blobs WHERE hash > ? ORDER BY hash LIMIT ?", (after or b"", limit)
    ).fetchall()
    return [_info(db, BlobId(BlobHash(row[0]), row[1])) for row in rows]


def list_entries(db: sqlite3.Connection, after: EntryKey | None, limit: int) -> list[Entry]:
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
