"""A store on a disk, shared by all processes of a data dir: ``BlobStore`` and ``Registry``.

Whatever is awaited here is durable when it returns: a power cut at any instant loses nothing that was
acknowledged, and leaves no half of a blob. Opening reads only the head of the index, whatever the store
holds. No process relies on what it remembers of the store, since others change it at the same time. ``wall``
is injected: seconds since 1970.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import trio

from p2pnode.durable import SqliteFile
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId, hash_of
from p2pnode.storage.local import index
from p2pnode.storage.local.disk import Disk
from p2pnode.storage.local.files import BlobFiles, Upload
from p2pnode.storage.local.index import BlobInfo, OwnerStatistics, StoreStatistics
from p2pnode.storage.local.sweep import sweep_step
from p2pnode.storage.local.writer import Writer
from p2pnode.storage.rules import (
    GcStep,
    Quotas,
    check_entry,
    check_hash,
    check_range,
    check_size,
    lease_end,
    no_blob,
    pieces_of,
)
from p2pnode.storage.store import LEASE_S, Data, OwnerKey

T = TypeVar("T")
THREADS: Final = 4
"""Threads for files, besides the one that commits."""
PIECE_BYTES: Final = 1 << 18
"""Pieces of a stream are gathered to this many bytes before they are written."""
PAGE_MAX: Final = 1000


class LocalStore:
    """Made by :meth:`open`. Every method raises ``StorageError`` when the disk fails."""

    def __init__(
        self,
        file: SqliteFile,
        files: BlobFiles,
        reads: sqlite3.Connection,
        writes: sqlite3.Connection,
        *,
        wall: Callable[[], float],
        quotas: Quotas,
        in_thread: bool,
        trusts_clock: Callable[[], bool],
    ) -> None:
        self.root, self.quotas = files.root, quotas
        self._file, self._files, self._wall, self._in_thread = file, files, wall, in_thread
        self._trusts_clock = trusts_clock
        self._reads, self._writes = reads, writes
        self._reading = threading.Lock()
        self._limiter = trio.CapacityLimiter(THREADS)
        self._writer = Writer(file, files, writes, in_thread=in_thread)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        wall: Callable[[], float] = time.time,
        quotas: Quotas | None = None,
        disk: Disk | None = None,
        in_thread: bool = True,
        trusts_clock: Callable[[], bool] = lambda: False,
    ) -> Self:
        """Open the store in the folder ``root``, making it where there is none. Blocks for some milliseconds.

        ``trusts_clock`` is asked before others' leases are ended by the clock to make room: a clock that is
        set wrong must not end them. What their owners gave up makes room in any case. With
        ``in_thread=False`` disk work blocks the event loop: for simulations, whose clock doesn't wait for a
        thread.
        """
        disk = disk or Disk()
        file, files = index.index_file(root, disk), BlobFiles(root, disk)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            index.make_if_missing(file, files.blobs)
            files.make()
        except OSError as error:
            raise file.storage_error(error) from error
        reads = file.connect()
        try:
            writes = file.connect()
            return cls(
                file,
                files,
                reads,
                writes,
                wall=wall,
                quotas=quotas or Quotas(),
                in_thread=in_thread,
                trusts_clock=trusts_clock,
            )
        except BaseException:
            reads.close()
            raise

    def close(self) -> None:
        """Close the files. Nothing may be awaited on the store then."""
        self._reads.close()
        self._writes.close()

    # ---- blobs

    async def put(
        self, data: Data, *, owner: OwnerKey, expected: BlobHash | None = None, lease_s: float = LEASE_S
    ) -> BlobId:
        """See ``BlobStore``."""
        lease_end(0, lease_s)
        if not isinstance(data, bytes):
            return await self._put_stream(data, owner=owner, expected=expected, lease_s=lease_s)
        check_size(len(data), self.quotas)
        blob = await self._in_a_thread(partial(self._known, data, expected))
        if blob is not None:
            try:
                await self._keep(blob, None, owner, lease_s)
            except index.FileNeededError:
                pass  # it was swept in between
            else:
                return blob
        upload = Upload(self._files, self.quotas)
        return await self._finish(upload, data, owner=owner, expected=expected, lease_s=lease_s)

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        """See ``BlobStore``."""
        check_range(offset, length)
        return await self._in_a_thread(partial(self._read, digest, offset, length))

    async def size(self, digest: BlobHash) -> int | None:
        """See ``BlobStore``."""
        return await self._in_a_thread(partial(self._size, digest))

    async def pin(self, digest: BlobHash, *, owner: OwnerKey, lease_s: float = LEASE_S) -> None:
        """See ``BlobStore``."""
        lease_end(0, lease_s)

        terms = self._terms(owner, lease_s)
        await self._writer.write(lambda tx: index.pin(tx, digest, terms()))

    async def unpin(self, digest: BlobHash, *, owner: OwnerKey) -> None:
        """See ``BlobStore``."""
        await self._writer.write(lambda tx: index.unpin(tx, digest, owner=owner, now=self._wall()))

    # ---- the registry

    async def get(self, key: EntryKey) -> Entry | None:
        """See ``Registry``."""
        held = await self._ask(lambda db: index.find_entry(db, key))
        return None if held is None else held[0]

    async def set(self, entry: Entry, *, owner: OwnerKey) -> None:
        """See ``Registry``."""
        check_entry(entry)
        await self._writer.write(
            lambda tx: index.set_entry(tx, entry, owner=owner, now=self._wall(), quotas=self.quotas)
        )

    # ---- upkeep

    def trust_clock_while(self, trusts_clock: Callable[[], bool]) -> None:
        """See :meth:`open`; asked in a task, not in a thread."""
        self._trusts_clock = trusts_clock

    async def gc_step(self, limit: int) -> GcStep:
        """End leases that are over, sweep free blobs, check some folders: about ``limit`` in all."""

        def step(db: sqlite3.Connection) -> GcStep:
            try:
                return sweep_step(db, self._files, self._wall(), limit)
            except (sqlite3.Error, OSError) as error:
                raise self._file.storage_error(error) from error

        return await self._writer.alone(step)

    async def statistics(self) -> StoreStatistics:
        """Totals."""
        return await self._ask(index.totals)

    async def owners(self, limit: int = PAGE_MAX) -> list[OwnerStatistics]:
        """The owners that have something here, those with the most first."""
        return await self._ask(lambda db: index.list_owners(db, limit))

    async def blobs(self, after: BlobHash | None = None, limit: int = PAGE_MAX) -> list[BlobInfo]:
        """A page of blobs in the order of their hashes."""
        return await self._ask(lambda db: index.list_blobs(db, after, limit))

    async def entries(self, after: EntryKey | None = None, limit: int = PAGE_MAX) -> list[Entry]:
        """A page of registry entries in the order of their keys."""
        return await self._ask(lambda db: index.list_entries(db, after, limit))

    # ---- how

    async def _put_stream(
        self, data: Any, *, owner: OwnerKey, expected: BlobHash | None, lease_s: float
    ) -> BlobId:
        upload, held = Upload(self._files, self.quotas), bytearray()
        try:
            async with pieces_of(data) as pieces:
                async for piece in pieces:
                    held += piece
                    if len(held) >= PIECE_BYTES:
                        await self._in_a_thread(partial(upload.write, bytes(held)))
                        held.clear()
        except BaseException:
            await self._discard(upload)
            raise
        return await self._finish(upload, bytes(held), owner=owner, expected=expected, lease_s=lease_s)

    async def _finish(
        self, upload: Upload, rest: bytes, *, owner: OwnerKey, expected: BlobHash | None, lease_s: float
    ) -> BlobId:
        def seal() -> BlobId:
            upload.write(rest)
            return upload.seal(expected)

        placed = False
        try:
            blob = await self._in_a_thread(seal)
            placed = await self._keep(blob, upload.path, owner, lease_s)
        finally:
            if placed:
                upload.close()
            else:
                await self._discard(upload)
        return blob

    async def _keep(self, blob: BlobId, new: Path | None, owner: OwnerKey, lease_s: float) -> bool:
        terms = self._terms(owner, lease_s)
        return await self._writer.write(lambda tx: index.keep(tx, blob, new, terms()))

    def _terms(self, owner: OwnerKey, lease_s: float) -> Callable[[], index.Terms]:
        """Makes the terms when the operation's turn comes: the time is that of the commit."""
        sweeps = self._trusts_clock()

        def made() -> index.Terms:
            now = self._wall()
            until = lease_end(now, lease_s)
            return index.Terms(owner=owner, now=now, until=until, quotas=self.quotas, sweeps=sweeps)

        return made

    async def _discard(self, upload: Upload) -> None:
        with trio.CancelScope(shield=True):
            await self._in_a_thread(upload.discard)

    def _known(self, data: bytes, expected: BlobHash | None) -> BlobId | None:
        blob = BlobId(hash_of(data), len(data))
        check_hash(blob.hash, expected)
        return None if self._size(blob.hash) is None else blob

    def _size(self, digest: BlobHash) -> int | None:
        size = self._query(lambda db: index.size_of(db, digest))
        return size if size is not None and self._files.is_whole(digest, size) else None

    def _read(self, digest: BlobHash, offset: int, length: int | None) -> bytes:
        size = self._size(digest)
        if size is None:
            raise no_blob(digest)
        wanted = max(0, size - offset) if length is None else max(0, min(length, size - offset))
        try:
            found = self._files.disk.read(self._files.path_of(digest), offset, wanted)
        except FileNotFoundError as error:  # it was swept in between
            raise no_blob(digest) from error
        if len(found) != wanted:
            raise no_blob(digest)
        return found

    async def _ask(self, query: Callable[[sqlite3.Connection], T]) -> T:
        return await self._in_a_thread(partial(self._query, query))

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with self._reading:
            return query(self._reads)

    async def _in_a_thread(self, function: Callable[[], T]) -> T:
        try:
            if self._in_thread:
                return await trio.to_thread.run_sync(function, limiter=self._limiter)
            await trio.lowlevel.checkpoint()
            return function()
        except (sqlite3.Error, OSError) as error:
            raise self._file.storage_error(error) from error
