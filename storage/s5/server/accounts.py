"""Accounts on disk: whose key is registered, which tokens speak for it, what it has pinned through this API.

SQLite, called from one thread at a time; every call is short and blocks. Of a token only its hash is kept:
whoever reads the file can't speak for anybody. Tables are bounded: an account has so many tokens, the
oldest goes; there are so many accounts, then no more.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from p2pnode.errors import StorageError
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.store import OwnerKey

_UNUSED_S: Final = 3600
_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS accounts (
    key BLOB PRIMARY KEY, label TEXT NOT NULL, email TEXT, created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
    hash BLOB PRIMARY KEY, key BLOB NOT NULL REFERENCES accounts (key), label TEXT NOT NULL,
    made INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tokens_of ON tokens (key, made);
CREATE TABLE IF NOT EXISTS pins (
    key BLOB NOT NULL REFERENCES accounts (key), hash BLOB NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (key, hash)
) WITHOUT ROWID;
"""


class AccountsFullError(StorageError):
    """No more accounts are taken here."""


@dataclass(frozen=True, slots=True)
class Account:
    """``key`` is its Ed25519 key, and the owner its blobs are counted by."""

    key: OwnerKey
    label: str
    email: str | None
    created_at: int


class AccountBook:
    """The accounts in one file; made where it isn't. ``close`` it."""

    def __init__(self, path: Path, *, accounts_max: int, tokens_max: int) -> None:
        self._accounts_max, self._tokens_max = accounts_max, tokens_max
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._db.close()

    def register(self, account: Account) -> bool:
        """Make the account; False where the key has one.

        Where all are taken, the oldest that keeps nothing gives way, if it is an hour old: who is gone for
        good must not keep others out. Raises ``AccountsFullError``.
        """
        with self._lock, self._db:
            [(count,)] = self._db.execute("SELECT count(*) FROM accounts")
            if self.has(account.key):
                return False
            if count >= self._accounts_max and not self._drop_unused(account.created_at - _UNUSED_S):
                msg = f"this node has its {self._accounts_max} accounts: use another one"
                raise AccountsFullError(msg)
            row = (account.key, account.label, account.email, account.created_at)
            self._db.execute("INSERT INTO accounts VALUES (?, ?, ?, ?)", row)
        return True

    def _drop_unused(self, made_until: int) -> bool:
        rows = self._db.execute(
            "SELECT key FROM accounts WHERE created_at <= ? AND key NOT IN (SELECT key FROM pins) "
            "ORDER BY created_at, key LIMIT 1",
            (made_until,),
        ).fetchall()
        for row in rows:
            self._db.execute("DELETE FROM tokens WHERE key = ?", row)
            self._db.execute("DELETE FROM accounts WHERE key = ?", row)
        return bool(rows)

    def has(self, key: OwnerKey) -> bool:
        """Is there an account of this key?"""
        return bool(self._db.execute("SELECT 1 FROM accounts WHERE key = ?", (key,)).fetchall())

    def add_token(self, key: OwnerKey, token: str, label: str) -> None:
        """Let ``token`` speak for the account; the oldest beyond the bound no longer does."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            [(made,)] = self._db.execute("SELECT coalesce(max(made), 0) + 1 FROM tokens")
            self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", (_hash(token), key, label, made))
            self._db.execute(
                "DELETE FROM tokens WHERE key = ?1 AND hash NOT IN "
                "(SELECT hash FROM tokens WHERE key = ?1 ORDER BY made DESC LIMIT ?2)",
                (key, self._tokens_max),
            )

    def of_token(self, token: str) -> Account | None:
        """Whom it speaks for."""
        with self._lock:
            rows = self._db.execute(
                "SELECT accounts.* FROM accounts JOIN tokens USING (key) WHERE tokens.hash = ?",
                (_hash(token),),
            ).fetchall()
        return Account(*rows[0]) if rows else None

    def pin(self, key: OwnerKey, digest: BlobHash, size: int) -> None:
        """Note what the account keeps; once, however often it is told."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO pins VALUES (?, ?, ?)", (key, digest, size))

    def unpin(self, key: OwnerKey, digest: BlobHash) -> None:
        """Forget it."""
        with self._lock:
            self._db.execute("DELETE FROM pins WHERE key = ? AND hash = ?", (key, digest))

    def pins(self, key: OwnerKey) -> list[BlobHash]:
        """What the account keeps, by hash."""
        with self._lock:
            rows = self._db.execute("SELECT hash FROM pins WHERE key = ? ORDER BY hash", (key,)).fetchall()
        return [BlobHash(digest) for (digest,) in rows]

    def used_bytes(self, key: OwnerKey) -> int:
        """The sum of their sizes."""
        with self._lock:
            [(total,)] = self._db.execute("SELECT coalesce(sum(size), 0) FROM pins WHERE key = ?", (key,))
        return int(total)


def _hash(token: str) -> bytes:
    return blake3(token.encode()).digest()
