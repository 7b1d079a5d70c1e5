"""One SQLite file that must not be lost: made whole or not at all, opened one way, written in groups.

Every process opens it in WAL mode with full syncs, so that a commit that returned survives a power cut. The
file is made beside its place and renamed into it under a lock of the folder: an empty file of this name is
therefore always a damaged one. A file of an earlier format is brought up to date when it is opened, in one
transaction. Errors of SQLite and of the disk become ``StorageError``s that say what the user can do. What a
file holds, and what its words are, its owner says with a :class:`FileFormat`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import structlog
import trio

from p2pnode.errors import StorageError
from p2pnode.files import locked

T = TypeVar("T")
ContextT = TypeVar("ContextT")
log = structlog.get_logger()
QUEUE_MAX: Final = 256
RIDERS_MAX: Final = 64
BUSY_S: Final = 5.0
"""How long another process may hold a file before that is an error."""
Trouble: TypeAlias = Literal["full", "denied", "busy", "damaged", "disk"]
_PRIMARY: Final = 0xFF
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
)
_OF_ONE: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
"""Errors that one operation causes, and that end that one only."""
_REMEDIES: Final[Mapping[Trouble, str]] = {
    "full": "the disk is full: free space, then start again; nothing acknowledged was lost",
    "denied": "it can't be read or written: fix the owner and permissions of it and of its folder",
    "busy": f"another process held it for {BUSY_S:.0f} s: end that process, or try again",
    "damaged": "it is damaged: restore it from your backup",
    "disk": (
        "the disk failed or takes no more: check its space, its quota and its health, then start again; "
        "nothing acknowledged was lost"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    """What a kind of file is: the mark of its owner, its tables, and what its errors tell the user."""

    application: int
    """SQLite's ``application_id``: a file with another one is another program's, and is left alone."""
    version: int
    tables: str
    """The script that makes an empty file."""
    foreign: str
    """What the user does about a file that is another program's, or empty."""
    remedies: Mapping[Trouble, str] = field(default_factory=dict)
    """Words for troubles, where the usual ones are not right for this file."""
    secret: bool = False
    """It holds keys: one that others could read is closed to them when it is opened."""
    full_error: type[StorageError] = StorageError
    """Raised where the disk is full."""
    upgrade: Callable[[sqlite3.Connection, int], None] | None = None
    """Brings a file of the given earlier version to ``version``. It runs inside a transaction."""
    unmarked: str = ""
    """A table that tells such a file where it was made before files had a mark: it gets one, and is of format
    1. Without a name here no file is without a mark."""


class SqliteDisk:
    """The seam between a SQLite file and the disk: each connection to the file, and each commit.

    Tests put a disk here that fills up, fails or takes its time. Both methods may raise ``sqlite3.Error``
    and ``OSError``.
    """

    synchronous = "FULL"
    """How SQLite syncs: a commit that returned survives a power cut."""

    def connect(self, path: Path) -> sqlite3.Connection:
        """A connection in autocommit to the file at ``path``, to be used by one thread at a time.

        It looks at no format: :meth:`SqliteFile.connect` does.
        """
        db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute(f"PRAGMA synchronous = {self.synchronous}")
            db.execute("PRAGMA fullfsync = ON")  # a plain fsync on macOS does not reach the disk
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            db.close()
            raise
        return db

    def commit(self, db: sqlite3.Connection) -> None:
        """Return when the transaction is on the disk."""
        db.execute("COMMIT")


class SqliteFile:
    """The file of ``format`` at ``path`` on ``disk``: the real one, if none is given.

    ``subject`` is what messages call it: usually its path.
    """

    def __init__(
        self, path: Path, format_: FileFormat, *, subject: str = "", disk: SqliteDisk | None = None
    ) -> None:
        self.path, self.format = path, format_
        self.subject = subject or str(path)
        self.disk = disk or SqliteDisk()

    def make_if_missing(self) -> None:
        """Make an empty file (mode 0600) where there is none. Raises ``StorageError``."""
        with self.making():
            if not self.path.exists():
                self.make()
            elif self.format.secret and self.path.is_file() and self.path.stat().st_mode & 0o077:
                self.path.chmod(0o600)

    @contextmanager
    def making(self) -> Iterator[None]:
        """One process at a time looks whether the file is there, and makes it. Raises ``StorageError``."""
        try:
            with locked(self.path.parent):
                yield
        except sqlite3.Error as error:
            raise self.storage_error(error) from error
        except OSError as error:
            if trouble_of(error) == "full":
                raise self.storage_error(error) from error
            msg = (
                f"{self.subject} can't be made or read ({error.strerror}): fix the folder's owner and "
                "permissions, free space, or choose another with --data-dir"
            )
            raise StorageError(msg) from error

    def make(self) -> None:
        """Make the file anew, whole or not at all, inside :meth:`making`.

        Raises ``sqlite3.Error`` and ``OSError``.
        """
        made = self.format
        make(self.path, made.tables, application=made.application, version=made.version)

    def connect(self) -> sqlite3.Connection:
        """A connection in autocommit, its rows by name, to be used by one thread at a time.

        What it commits survives a power cut. Raises ``StorageError``.
        """
        with self.failing_as_storage():
            db = self.disk.connect(self.path)
            try:
                db.row_factory = sqlite3.Row
                self._check(db)
            except BaseException:
                db.close()
                raise
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        if self.format.unmarked and kind_of(db) == (0, 0):
            self.transact(db, self._mark)
        application, version = kind_of(db)
        ours, upgrade = self.format, self.format.upgrade
        if application != ours.application or version < (1 if upgrade is not None else ours.version):
            msg = f"{self.path} is empty, or another program's: {ours.foreign}"
            raise StorageError(msg)
        if version > ours.version:
            msg = (
                f"{self.path} was written by a newer p2pnode "
                f"(format {version}, this one knows {ours.version}): upgrade"
            )
            raise StorageError(msg)
        if version < ours.version and upgrade is not None:
            self._upgrade(db, upgrade)

    def _mark(self, db: sqlite3.Connection) -> None:
        table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        if kind_of(db) == (0, 0) and db.execute(table, (self.format.unmarked,)).fetchone():
            db.execute(f"PRAGMA application_id = {self.format.application}")
            db.execute("PRAGMA user_version = 1")

    def _upgrade(self, db: sqlite3.Connection, upgrade: Callable[[sqlite3.Connection, int], None]) -> None:
        """All steps in one transaction: a crash, or a file that is damaged, leaves it as it was."""

        def step(db: sqlite3.Connection) -> None:
            # Asked again inside the lock: a process that opened it at the same time may have been quicker.
            _, found = kind_of(db)
            if found < self.format.version:
                upgrade(db, found)
                db.execute(f"PRAGMA user_version = {self.format.version}")

        self.transact(db, step)

    def transact(self, db: sqlite3.Connection, operation: Callable[[sqlite3.Connection], T]) -> T:
        """What ``operation`` returns, on disk: a transaction of its own. Raises what it raises."""
        with self.failing_as_storage():
            db.execute("BEGIN IMMEDIATE")
            try:
                result = operation(db)
                self.disk.commit(db)
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        return result

    @contextmanager
    def failing_as_storage(self) -> Iterator[None]:
        """Errors of SQLite and of the disk in here become ``StorageError``s that name file and remedy."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self.storage_error(error) from error

    def storage_error(self, error: Exception) -> StorageError:
        """What an error means for the user. What was acknowledged before it is safe in each case."""
        if isinstance(error, StorageError):
            return error
        trouble = trouble_of(error)
        remedy = self.format.remedies.get(trouble, _REMEDIES[trouble])
        kind = self.format.full_error if trouble == "full" else StorageError
        return kind(f"{self.subject}: {remedy} ({error})")


@dataclass(slots=True, eq=False)
class Request(Generic[ContextT, T]):
    """An operation that waits for its commit. ``done`` is set when ``result`` or ``error`` is known."""

    operation: Callable[[ContextT], T]
    done: trio.Event = field(default_factory=trio.Event)
    result: T | None = None
    error: Exception | None = None


class GroupCommit(Generic[ContextT]):
    """Writes what waits together: one transaction, and so one sync of the disk, for a whole group.

    An operation that raises undoes itself alone. A disk that fails undoes the whole group, and each request
    of it has the error. Who waits, and in which thread this blocks, its user decides.
    """

    def __init__(self, file: SqliteFile, db: sqlite3.Connection) -> None:
        self._file, self._db = file, db

    def commit(
        self, group: Sequence[Request[ContextT, T]], context: ContextT, finish: Callable[[], object]
    ) -> bool:
        """Carry out ``group``; True when all of it that did not fail by itself is on disk.

        Operations get ``context``. ``finish`` ends the transaction: it commits, after whatever the commit
        needs to be on disk before it.
        """
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            if len(group) == 1:  # alone, it needs no savepoint of its own
                if not self._carried_out(group[0], context):
                    db.execute("ROLLBACK")
                    return True
            else:
                for request in group:
                    db.execute("SAVEPOINT one")
                    if not self._carried_out(request, context):
                        db.execute("ROLLBACK TO one")
                    db.execute("RELEASE one")
            finish()
        except (sqlite3.Error, OSError) as error:
            if db.in_transaction:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            for request in group:
                request.error = self._file.storage_error(error)
            return False
        return True

    def _carried_out(self, request: Request[ContextT, T], context: ContextT) -> bool:
        """Whether it did not fail by itself. Raises ``sqlite3.Error`` for what ends the whole group."""
        try:
            request.result = request.operation(context)
        except _OF_ONE as error:
            request.error = StorageError(f"{self._file.subject} does not take this: {error}")
        except sqlite3.Error:
            raise
        except OSError as error:
            request.error = self._file.storage_error(error)
        except Exception as error:  # noqa: BLE001 - it is its caller's, who gets it
            request.error = error
        return request.error is None


Operation: TypeAlias = Callable[[sqlite3.Connection], None]
_Write: TypeAlias = Request[sqlite3.Connection, None]


class WriteQueue:
    """A task that writes, with a :class:`GroupCommit`, everything that waits at the same time.

    A caller returns after the commit that holds its operation. Cancelling a caller does not take its
    operation back: what was decided is written, whoever still waits for it. While :meth:`run` runs, only its
    worker thread uses ``db``.
    """

    def __init__(self, file: SqliteFile, db: sqlite3.Connection, *, in_thread: bool = True) -> None:
        self._file, self._db, self._in_thread = file, db, in_thread
        self._commit = GroupCommit[sqlite3.Connection](file, db)
        self._limiter = trio.CapacityLimiter(1)  # of our own: a commit never waits for somebody's download
        self._queue: trio.MemorySendChannel[_Write] | None = None
        self._riders: list[_Write] = []

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled; what waits then is still written."""
        send, receive = trio.open_memory_channel[_Write](QUEUE_MAX)
        self._queue = send
        task_status.started()
        try:
            while True:
                first = await receive.receive()
                await self._write([first, *_waiting(receive)])
        finally:
            # First: a write that begins from now on must raise, for nobody would answer it.
            self._queue = None
            while group := _waiting(receive):
                await self._write(group)
            if self._riders:  # no write may follow for them to go with
                await self._write([])
            receive.close()

    async def write(self, operation: Operation) -> None:
        """Return when ``operation`` is on disk. Raises what it raised, or ``StorageError``."""
        request = Request(operation)
        await self._running().send(request)
        await request.done.wait()
        if request.error is not None:
            raise request.error

    def ride(self, operation: Operation) -> None:
        """Let ``operation`` go to disk with the next write, before it. Nobody waits for it.

        Its caller does not hear of an error: that is logged. Raises ``StorageError`` when nobody writes.
        """
        self._running()
        self._riders.append(Request(operation))

    @property
    def crowded(self) -> bool:
        """Whether so many wait for the next write that the next one should be waited for."""
        return len(self._riders) >= RIDERS_MAX

    def _running(self) -> trio.MemorySendChannel[_Write]:
        if self._queue is None:
            msg = f"{self._file.subject} takes no writes now: its writer has not started or was stopped"
            raise StorageError(msg)
        return self._queue

    async def _write(self, group: list[_Write]) -> None:
        # Taken before the first await: what rides from now on goes with the next group. One transaction has
        # riders and writes, so that a write is never on disk without what rode ahead of it.
        riders, self._riders = self._riders, []
        group = [*riders, *group]
        try:
            with trio.CancelScope(shield=True):  # one commit: the callers wait for its end, whichever it is
                if self._in_thread:
                    await trio.to_thread.run_sync(self._commit_now, group, limiter=self._limiter)
                else:
                    self._commit_now(group)
        except BaseException:
            for request in group:
                request.error = StorageError(f"{self._file.subject}: its writer failed; start again")
            raise
        finally:
            for request in group:
                request.done.set()
            for rider in riders:
                if rider.error is not None:
                    log.error("file.write_failed", file=self._file.subject, reason=str(rider.error))

    def _commit_now(self, group: list[_Write]) -> None:
        self._commit.commit(group, self._db, lambda: self._file.disk.commit(self._db))


def _waiting(receive: trio.MemoryReceiveChannel[_Write]) -> list[_Write]:
    group: list[_Write] = []
    while len(group) < QUEUE_MAX:
        try:
            group.append(receive.receive_nowait())
        except trio.WouldBlock:
            break
    return group


def kind_of(db: sqlite3.Connection) -> tuple[int, int]:
    """The application id and the format that a file says it is of."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    return int(application), int(db.execute("PRAGMA user_version").fetchone()[0])


def make(path: Path, script: str, *, application: int, version: int) -> None:
    """Make a file with the tables of ``script`` and mode 0600; whole, or not there. Hold :func:`locked`.

    Raises ``sqlite3.Error``, ``OSError``.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    os.close(handle)
    try:
        db = sqlite3.connect(name, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            kind = f"PRAGMA application_id = {application}; PRAGMA user_version = {version};"
            db.executescript(f"BEGIN;{script}{kind}COMMIT;")
        finally:
            db.close()  # the last one out moves the log into the file
        Path(name).replace(path)
    except BaseException:
        for leftover in (name, f"{name}-wal", f"{name}-shm"):
            Path(leftover).unlink(missing_ok=True)
        raise


def run_script(db: sqlite3.Connection, script: str) -> None:
    """Execute statements one by one, inside the caller's transaction: ``executescript`` would end it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):  # a trigger holds semicolons of its own
            db.execute(statement)
            statement = ""
    if statement.strip():
        msg = f"a statement of a script has no end: {statement.strip()[:80]}"
        raise ValueError(msg)


def trouble_of(error: Exception) -> Trouble:
    """What kind of trouble an ``sqlite3.Error`` or ``OSError`` stands for."""
    if isinstance(error, OSError):
        if error.errno in _NO_SPACE:
            return "full"
        return "denied" if isinstance(error, PermissionError) else "disk"
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    code = extended & _PRIMARY
    if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:  # no room for the log's index
        return "full"
    if code in _DENIED:
        return "denied"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "busy"
    return "disk" if code == sqlite3.SQLITE_IOERR else "damaged"
