"""Who may do what at the S5 API: accounts on disk, the proof of an account's key, and the rule of access.

An account is an Ed25519 key that registered here. Its tokens speak for it, and it has a list of what it has
pinned through this API. Every call is short and blocks. Of a token only its hash is kept:
whoever reads the file can't speak for anybody. The tables are bounded in accounts, and in tokens an account.
"""

from __future__ import annotations

import hmac
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import trio
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.requests import HTTPConnection

from p2pnode.bounded import BoundedMap
from p2pnode.durable import FileFormat, SqliteFile
from p2pnode.errors import ProtocolError, StorageError
from p2pnode.protocols.s5.accounts import CHALLENGE_BYTES, RESPONSE_BYTES, Purpose, challenge_response
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.s5.server.options import S5Options
from p2pnode.storage.store import DiskFullError, OwnerKey

T = TypeVar("T")
_UNUSED_S: Final = 3600
_FORMAT: Final = FileFormat(
    application=int.from_bytes(b"p2pa", "big"),
    version=1,
    tables="""
CREATE TABLE accounts (
    key BLOB PRIMARY KEY, label TEXT NOT NULL, email TEXT, created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE tokens (
    hash BLOB PRIMARY KEY, key BLOB NOT NULL REFERENCES accounts (key), label TEXT NOT NULL,
    made INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tokens_of ON tokens (key, made);
CREATE TABLE pins (
    key BLOB NOT NULL REFERENCES accounts (key), hash BLOB NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (key, hash)
) WITHOUT ROWID;
""",
    foreign="it holds no accounts. Move it away to begin without any",
    remedies={
        "damaged": "it is damaged: restore it from your backup, or move it away to begin without accounts"
    },
    secret=True,
    full_error=DiskFullError,
    unmarked="accounts",
)


class AccountsFullError(StorageError):
    """This node takes no more accounts."""


@dataclass(frozen=True, slots=True)
class Account:
    """``key`` is its Ed25519 key, which is also the owner that its blobs are counted by."""

    key: OwnerKey
    label: str
    email: str | None
    created_at: int


class AccountBook:
    """The accounts in one file, which is made where there is none. ``close`` it when done.

    Threads may share it. What it wrote is on the disk. Every method raises ``StorageError``.
    """

    def __init__(self, path: Path, *, accounts_max: int, tokens_max: int) -> None:
        self._accounts_max, self._tokens_max = accounts_max, tokens_max
        self._file = SqliteFile(path, _FORMAT)
        self._file.make_if_missing()
        self._lock = threading.Lock()
        self._db = self._file.connect()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def register(self, account: Account) -> bool:
        """Make the account. False where the key has one.

        Where all places are taken, the oldest account that keeps nothing goes, if it is an hour old: one that
        nobody uses must not keep others out. Raises ``AccountsFullError``.
        """

        def step(db: sqlite3.Connection) -> bool:
            if db.execute("SELECT 1 FROM accounts WHERE key = ?", (account.key,)).fetchone():
                return False
            [(count,)] = db.execute("SELECT count(*) FROM accounts")
            if count >= self._accounts_max and not _drop_unused(db, account.created_at - _UNUSED_S):
                msg = f"this node has its {self._accounts_max} accounts: use another one"
                raise AccountsFullError(msg)
            row = (account.key, account.label, account.email, account.created_at)
            db.execute("INSERT INTO accounts VALUES (?, ?, ?, ?)", row)
            return True

        return self._write(step)

    def has(self, key: OwnerKey) -> bool:
        """Whether this key has an account."""
        return bool(self._read("SELECT 1 FROM accounts WHERE key = ?", key))

    def add_token(self, key: OwnerKey, token: str, label: str) -> None:
        """Let ``token`` speak for the account. Beyond the bound its oldest token no longer does."""

        def step(db: sqlite3.Connection) -> None:
            [(made,)] = db.execute("SELECT coalesce(max(made), 0) + 1 FROM tokens")
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", (_hash(token), key, label, made))
            db.execute(
                "DELETE FROM tokens WHERE key = ?1 AND hash NOT IN "
                "(SELECT hash FROM tokens WHERE key = ?1 ORDER BY made DESC LIMIT ?2)",
                (key, self._tokens_max),
            )

        self._write(step)

    def of_token(self, token: str) -> Account | None:
        """The account that it speaks for; None for no account."""
        query = "SELECT accounts.* FROM accounts JOIN tokens USING (key) WHERE tokens.hash = ?"
        rows = self._read(query, _hash(token))
        return Account(*rows[0]) if rows else None

    def pin(self, key: OwnerKey, digest: BlobHash, size: int) -> None:
        """Put a blob on the account's list, once however often it is called."""
        self._write(
            lambda db: db.execute("INSERT OR REPLACE INTO pins VALUES (?, ?, ?)", (key, digest, size))
        )

    def unpin(self, key: OwnerKey, digest: BlobHash) -> None:
        """Take a blob off the account's list."""
        self._write(lambda db: db.execute("DELETE FROM pins WHERE key = ? AND hash = ?", (key, digest)))

    def pins(self, key: OwnerKey) -> list[BlobHash]:
        """The account's list, in the order of the hashes."""
        rows = self._read("SELECT hash FROM pins WHERE key = ? ORDER BY hash", key)
        return [BlobHash(digest) for (digest,) in rows]

    def used_bytes(self, key: OwnerKey) -> int:
        """The sum of the sizes of the blobs on the account's list."""
        [(total,)] = self._read("SELECT coalesce(sum(size), 0) FROM pins WHERE key = ?", key)
        return int(total)

    def _write(self, step: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            return self._file.transact(self._db, step)

    def _read(self, query: str, value: bytes) -> list[sqlite3.Row]:
        with self._lock, self._file.failing_as_storage():
            return self._db.execute(query, (value,)).fetchall()


def _drop_unused(db: sqlite3.Connection, made_until: int) -> bool:
    """Whether there was an account of that time that keeps nothing, which is gone now."""
    row = db.execute(
        "SELECT key FROM accounts WHERE created_at <= ? AND key NOT IN (SELECT key FROM pins) "
        "ORDER BY created_at, key LIMIT 1",
        (made_until,),
    ).fetchone()
    if row is None:
        return False
    db.execute("DELETE FROM tokens WHERE key = ?", (row["key"],))  # before what they refer to
    db.execute("DELETE FROM accounts WHERE key = ?", (row["key"],))
    return True


def _hash(token: str) -> bytes:
    return blake3(token.encode()).digest()


class ChallengeError(ProtocolError):
    """The response proves no key."""


@dataclass(frozen=True, slots=True)
class _Open:
    key: EntryKey
    purpose: Purpose
    until: float


class Challenges:
    """The open challenges: each is good once, for one key, one purpose and ``life_s`` seconds.

    Beyond ``open_max`` the oldest is dropped. The host in a response keeps a response that was given to one
    node from being used at another. Pure: time and randomness are arguments.
    """

    def __init__(self, *, open_max: int, life_s: float) -> None:
        self._life_s = life_s
        self._open: BoundedMap[bytes, _Open] = BoundedMap(open_max)

    def give(self, challenge: bytes, key: EntryKey, purpose: Purpose, now: float) -> None:
        """Open a challenge of 32 random bytes."""
        self._open.put(challenge, _Open(key, purpose, now + self._life_s))

    def check(
        self, response: bytes, signature: bytes, *, key: EntryKey, purpose: Purpose, host: str, now: float
    ) -> None:
        """Check the response to a challenge, which is used up by it. Raises ``ChallengeError``."""
        challenge = response[1 : 1 + CHALLENGE_BYTES]
        if len(response) != RESPONSE_BYTES or response[0] != purpose:
            msg = f"the response is {RESPONSE_BYTES} bytes: {purpose:02x}, the challenge, the host's hash"
            raise ChallengeError(msg)
        given = self._open.pop(challenge)
        if given is None or given.key != key or given.purpose != purpose or now >= given.until:
            msg = "this challenge was not given for that, was answered before, or is too old: ask for another"
            raise ChallengeError(msg)
        if response != challenge_response(purpose, challenge, host):
            msg = f"the response is for another host than {host}: sign the one that is asked"
            raise ChallengeError(msg)
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, response)
        except (InvalidSignature, ValueError) as error:
            msg = "the response is not signed by the account's key"
            raise ChallengeError(msg) from error


COOKIE = "s5-auth-token"


class Access:
    """Who may read and write at one server: by the node's own token, or by an account's.

    Without a token and without accounts the API is open, since only this machine reaches it. With accounts,
    what is public anyway (blobs by their ids, entries by their keys) can still be read by everybody.
    """

    def __init__(self, options: S5Options, book: AccountBook | None) -> None:
        self._options, self._book = options, book

    async def reader(self, connection: HTTPConnection) -> None:
        """Raise ``HttpError`` 401 for one who may not read."""
        if self._options.token is not None:
            await self.writer(connection)

    async def writer(self, connection: HTTPConnection) -> OwnerKey:
        """The owner that what they store counts for. Raises ``HttpError`` 401."""
        if self._options.token is None and self._book is None:
            return self._options.owner
        token = token_of(connection)
        if token and self._options.token is not None and _same(token, self._options.token):
            return self._options.owner
        return (await self.account(connection)).key

    async def account(self, connection: HTTPConnection) -> Account:
        """The account whose token they hold. Raises ``HttpError`` 401."""
        token = token_of(connection)
        if token and self._book is not None:
            found = await trio.to_thread.run_sync(self._book.of_token, token)
            if found is not None:
                return found
        how = "register or log in for one" if self._book is not None else "ask the node's owner for it"
        msg = f"this needs a token that is known here ({how}): Authorization: Bearer TOKEN"
        raise HttpError(401, msg, {"WWW-Authenticate": "Bearer"})

    async def note_pin(self, owner: OwnerKey, digest: BlobHash, size: int) -> None:
        """Put a blob on the list of what an account pinned. The node's owner has no such list."""
        if self._book is not None and owner != self._options.owner:
            await trio.to_thread.run_sync(self._book.pin, owner, digest, size)

    async def note_unpin(self, owner: OwnerKey, digest: BlobHash) -> None:
        """Take a blob off that list."""
        if self._book is not None and owner != self._options.owner:
            await trio.to_thread.run_sync(self._book.unpin, owner, digest)


def token_of(connection: HTTPConnection) -> str:
    """``Authorization: Bearer``, the cookie, or ``?auth_token``; empty where there is none."""
    scheme, _, given = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    return connection.cookies.get(COOKIE) or connection.query_params.get("auth_token", "")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
