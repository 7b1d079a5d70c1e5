"""``SavedState``: the file that stores a development chain: py-evm's keys and values, and how the chain
was made.

All of it is read into memory when the file is opened; ``save`` writes what has changed since, in one
transaction. What was saved survives the process, however that ends. A power cut may cost the last seconds,
for nothing of value is stored here. The file is locked while it is open, for one process at a time.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from p2pnode.durable import FileFormat, SqliteDisk, SqliteFile
from p2pnode.errors import ConfigError, StorageError
from p2pnode.files import not_writable
from p2pnode.locks import try_lock, write_pid

_MOVE_AWAY: Final = "move it away to start a new chain"
_FORMAT: Final = FileFormat(
    application=int.from_bytes(b"p2pd", "big"),
    version=1,
    tables="""
CREATE TABLE state (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE made (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
""",
    foreign=f"it is no state of a development chain of this version: {_MOVE_AWAY}",
    remedies={"damaged": f"it can't be read: {_MOVE_AWAY}"},
)


class _RelaxedDisk(SqliteDisk):
    """A power cut may take the last commits: that is quicker, and nothing of value is stored here."""

    synchronous = "NORMAL"


class SavedState(dict[bytes, bytes]):
    """Keys and values as a mapping. :attr:`made` says how the chain was made, written once by
    :meth:`begin`.

    Raises ``ConfigError`` when the file can't be opened, is another program's, or is in use.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._changed: dict[bytes, bytes | None] = {}
        self._lock = self._locked()
        try:
            self._db = self._opened()
        except BaseException:
            os.close(self._lock)
            raise

    def _locked(self) -> int:
        lock = lock_of(self.path)
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise not_writable(lock, error) from error
        if not try_lock(handle):
            os.close(handle)
            msg = f"a development chain runs on {self.path} already: stop it, or name another --profile"
            raise ConfigError(msg)
        write_pid(handle)
        return handle

    def _opened(self) -> sqlite3.Connection:
        file = SqliteFile(self.path, _FORMAT, disk=_RelaxedDisk())
        try:
            if not self.path.exists():
                file.make()
            db = file.connect()
            try:
                with file.failing_as_storage():
                    for key, value in db.execute("SELECT key, value FROM state"):
                        super().__setitem__(key, value)
                    self.made = dict(map(tuple, db.execute("SELECT name, value FROM made")))
            except BaseException:
                db.close()
                raise
        except OSError as error:
            raise not_writable(self.path, error) from error
        except sqlite3.Error as error:
            raise ConfigError(str(file.storage_error(error))) from error
        except StorageError as error:
            raise ConfigError(str(error)) from error
        return db

    def __setitem__(self, key: bytes, value: bytes) -> None:
        super().__setitem__(key, value)
        self._changed[key] = value

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(key)
        self._changed[key] = None

    def begin(self, made: dict[str, str]) -> None:
        """Write how the chain was made, and its first state."""
        self.made = made
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO made VALUES (?, ?)", made.items())
        self._write()

    def save(self) -> None:
        """Write what has changed. Raises ``sqlite3.Error``; the next call writes what was not written."""
        if self._changed:
            self._db.execute("BEGIN")
            self._write()

    def _write(self) -> None:
        try:
            changed = [(key, value) for key, value in self._changed.items() if value is not None]
            gone = [(key,) for key, value in self._changed.items() if value is None]
            self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", changed)
            self._db.executemany("DELETE FROM state WHERE key = ?", gone)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._changed.clear()

    def close(self) -> None:
        """Close the file, so that another process may open it."""
        self._db.close()
        os.close(self._lock)


def lock_of(path: Path) -> Path:
    """The file that is locked while a chain runs on this state. It contains the process's number."""
    return path.with_name(f"{path.name}.lock")


def forget_state(path: Path) -> None:
    """Remove the file of a chain that doesn't run. Raises ``ConfigError`` when it runs."""
    SavedState(path).close()
    for each in ("", "-wal", "-shm"):
        path.with_name(path.name + each).unlink(missing_ok=True)
