"""The store's SQLite file: which blobs there are, who leases them, the registry, and what counts for whom.

Shared by all processes on a data dir; one of an earlier format is brought up to date when it is opened.
Triggers do the counting, so that no statement can forget it: each owner's bytes and keys, the totals, the
leases of each blob, and since when one without any is free. Indexes hold what is due, so that a collection
never looks at what isn't. Knows no files but its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from p2pnode import sqlite_files
from p2pnode.errors import StorageError
from p2pnode.sqlite_files import BUSY_S
from p2pnode.storage.rules import CHARGE_MIN
from p2pnode.storage.store import DiskFullError

VERSION: Final = 2
_APPLICATION: Final = int.from_bytes(b"p2ps", "big")
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
# last: for whom one without a lease counts until it is swept, which is whose lease ended last
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


def make_if_missing(path: Path, blobs: Path) -> None:
    """Make an empty index (0600) where there is none. Raises ``StorageError``; see :func:`connect`.

    Where ``blobs`` is there without one, nothing is made: to a new index all of them would be garbage.
    """
    with _failing(path), sqlite_files.locked(path.parent):
        if path.exists() and path.stat().st_size:
            return
        if blobs.exists():
            msg = (
                f"{path} is gone or empty, but {blobs} is there: restore the file from your backup, or move "
                "the whole folder away to begin a new store (who leases which blob stands in that file only)"
            )
            raise StorageError(msg)
        script = f"{_BLOBS}{_LAST}{_TABLES}{_TRIGGERS}"
        sqlite_files.make(path, script, application=_APPLICATION, version=VERSION)


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """A connection in autocommit, to be used by one thread at a time. Raises ``StorageError``."""
    with _failing(path):
        db = sqlite_files.connect(path, synchronous=synchronous)
        try:
            _check_kind(path, db)
        except BaseException:
            db.close()
            raise
    return db


def storage_error(root: Path, error: Exception) -> StorageError:
    """What an error of SQLite or of a file means for the user. What was acknowledged is safe in each case."""
    if isinstance(error, StorageError):
        return error
    match sqlite_files.trouble_of(error):
        case "full":
            return DiskFullError(
                f"the disk of the store {root} is full: free some space, then `p2pnode storage gc` may sweep "
                "more; nothing new is kept until then, nothing kept before was lost"
            )
        case "denied":
            remedy = "it can't be read or written: fix the owner and permissions of the folder"
        case "busy":
            remedy = f"another process held it for {BUSY_S:.0f} s: end that process, or try again"
        case "damaged":
            remedy = (
                "its index is damaged: restore the folder from your backup, or move it away to begin anew"
            )
        case _:
            remedy = "the disk failed: check its health, then start again; nothing acknowledged was lost"
    return StorageError(f"the store {root}: {remedy} ({error})")


def _check_kind(path: Path, db: sqlite3.Connection) -> None:
    application, version = sqlite_files.kind_of(db)
    if application != _APPLICATION or version < 1:
        msg = f"{path} is another program's: it is no store. Move it away to begin a new one"
        raise StorageError(msg)
    if version > VERSION:
        msg = f"{path} was written by a newer p2pnode (format {version}, this one knows {VERSION}): upgrade"
        raise StorageError(msg)
    if version < VERSION:
        _upgrade(path, db)


def _upgrade(path: Path, db: sqlite3.Connection) -> None:
    """From format 1, which did not know for whom a blob without a lease counts: its ones count for nobody."""
    olds = ("blob_came", "blob_went", "lease_began", "lease_ended", "entry_came")
    drop = "".join(f"DROP TRIGGER {name};" for name in olds)
    column = "ALTER TABLE blobs ADD COLUMN last BLOB NOT NULL DEFAULT x'';"
    with sqlite_files.locked(path.parent):
        if sqlite_files.kind_of(db)[1] < VERSION:  # another process may have been quicker
            version = f"PRAGMA user_version = {VERSION};"
            db.executescript(f"BEGIN IMMEDIATE;{drop}{column}{_LAST}{_TRIGGERS}{version}COMMIT;")


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise storage_error(path.parent, error) from error
