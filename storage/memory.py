"""A store in memory: the rules in Python, for tests and the simulator, and to compare other stores with.

Nothing survives the process. ``wall`` is injected: seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import trio

from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.rules import (
    GcStep,
    Quotas,
    charge,
    check_entry,
    check_hash,
    check_keys,
    check_node_bytes,
    check_node_leases,
    check_owner_bytes,
    check_range,
    check_size,
    is_newer,
    lease_end,
    no_blob,
    pieces_of,
)
from p2pnode.storage.store import GRACE_S, LEASE_S, Data, OwnerKey, QuotaError


@dataclass(slots=True)
class StoredBlob:
    """A blob and who leases it: by owner, until when."""

    data: bytes
    free_since: float
    """When the last of the leases that are over ended."""
    leases: dict[OwnerKey, float] = field(default_factory=dict)
    last: OwnerKey | None = None
    """The owner of that lease: while nobody leases the blob, it counts for that owner until it is swept."""


class MemoryStore:
    """A ``BlobStore`` and a ``Registry``. What it holds is public, for simulators and tests."""

    def __init__(self, wall: Callable[[], float], quotas: Quotas | None = None) -> None:
        self._wall, self._quotas = wall, quotas or Quotas()
        self.blobs: dict[BlobHash, StoredBlob] = {}
        self.entries: dict[EntryKey, tuple[Entry, OwnerKey]] = {}
        """With the owner that each counts for."""

    # ---- blobs

    async def put(
        self, data: Data, *, owner: OwnerKey, expected: BlobHash | None = None, lease_s: float = LEASE_S
    ) -> BlobId:
        """See ``BlobStore``."""
        lease_end(0, lease_s)
        whole = await self._collect(data)
        name = BlobId.of(whole)
        check_hash(name.hash, expected)
        with self._undone_if_refused():
            if name.hash not in self.blobs:
                self._make_room_in_store(charge(name.size))
                self.blobs[name.hash] = StoredBlob(whole, self._wall())
            self._lease(name.hash, owner, lease_s)
        return name

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        """See ``BlobStore``."""
        check_range(offset, length)
        await trio.lowlevel.checkpoint()
        data = self._blob(digest).data
        return data[offset:] if length is None else data[offset : offset + length]

    async def size(self, digest: BlobHash) -> int | None:
        """See ``BlobStore``."""
        await trio.lowlevel.checkpoint()
        return len(self.blobs[digest].data) if digest in self.blobs else None

    async def pin(self, digest: BlobHash, *, owner: OwnerKey, lease_s: float = LEASE_S) -> None:
        """See ``BlobStore``."""
        lease_end(0, lease_s)
        await trio.lowlevel.checkpoint()
        self._blob(digest)
        with self._undone_if_refused():
            self._lease(digest, owner, lease_s)

    async def unpin(self, digest: BlobHash, *, owner: OwnerKey) -> None:
        """See ``BlobStore``."""
        await trio.lowlevel.checkpoint()
        blob = self.blobs.get(digest)
        if blob is not None and owner in blob.leases:
            blob.leases[owner] = min(blob.leases[owner], self._wall())
            self._end_over_of(digest)

    # ---- the registry

    async def get(self, key: EntryKey) -> Entry | None:
        """See ``Registry``."""
        await trio.lowlevel.checkpoint()
        held = self.entries.get(key)
        return None if held is None else held[0]

    async def set(self, entry: Entry, *, owner: OwnerKey) -> None:
        """See ``Registry``."""
        check_entry(entry)
        await trio.lowlevel.checkpoint()
        held = self.entries.get(entry.key)
        if not is_newer(entry, None if held is None else held[0]):
            return
        if held is None:
            of_owner = sum(holder == owner for _, holder in self.entries.values())
            check_keys(of_owner, len(self.entries), self._quotas)
        holder = owner if held is None else held[1]
        target = entry.points_at
        if target is not None and target in self.blobs:
            self._end_over_of(target)  # an entry holds a lease that runs, it revives none
        self.entries[entry.key] = (entry, holder)
        left = None if held is None else held[0].points_at
        if left is not None and left != target and left in self.blobs:
            self._let_go(left, self.blobs[left], holder)

    # ---- collection

    def gc_step(self, limit: int) -> GcStep:
        """End at most ``limit`` leases that are over, and sweep at most ``limit`` blobs."""
        now = self._wall()
        over = [
            (blob.leases[owner], digest, owner)
            for digest, blob in self.blobs.items()
            for owner in blob.leases
            if self._is_over(digest, blob, owner)
        ]
        for _, digest, owner in sorted(over)[:limit]:
            self._end(digest, owner)
        free = [
            (blob.free_since, digest)
            for digest, blob in self.blobs.items()
            if not blob.leases and blob.free_since <= now - GRACE_S
        ]
        swept = [self.blobs.pop(digest) for _, digest in sorted(free)[:limit]]
        return GcStep(
            leases_ended=min(len(over), limit),
            blobs_swept=len(swept),
            bytes_freed=sum(len(blob.data) for blob in swept),
            due=len(over) > limit or len(free) > limit,
        )

    # ---- rules

    async def _collect(self, data: Data) -> bytes:
        if isinstance(data, bytes):
            check_size(len(data), self._quotas)
            await trio.lowlevel.checkpoint()
            return data
        whole = bytearray()
        async with pieces_of(data) as pieces:
            async for piece in pieces:
                whole += piece
                check_size(len(whole), self._quotas)
        return bytes(whole)

    def _blob(self, digest: BlobHash) -> StoredBlob:
        if digest not in self.blobs:
            raise no_blob(digest)
        return self.blobs[digest]

    @contextmanager
    def _undone_if_refused(self) -> Iterator[None]:
        """Put back what was swept to make room, where there was not enough room after all."""
        before = {digest: replace(blob, leases=dict(blob.leases)) for digest, blob in self.blobs.items()}
        try:
            yield
        except QuotaError:
            self.blobs = before
            raise

    def _lease(self, digest: BlobHash, owner: OwnerKey, lease_s: float) -> None:
        blob, until = self.blobs[digest], lease_end(self._wall(), lease_s)
        self._end_over_of(digest)
        if owner not in blob.leases:
            blob.last = None
            self._make_room_for_owner(owner, charge(len(blob.data)))
            check_node_leases(sum(len(each.leases) for each in self.blobs.values()), self._quotas)
        blob.leases[owner] = max(until, blob.leases.get(owner, until))
        self._end_over_of(digest)

    def _make_room_for_owner(self, owner: OwnerKey, more: int) -> None:
        self._end_all_over()
        while (used := self.charged(owner)) + more > self._quotas.owner_bytes:
            if not self._sweep_oldest(lambda blob: blob.last == owner):
                check_owner_bytes(used, more, self._quotas)

    def _make_room_in_store(self, more: int) -> None:
        self._end_all_over()
        while (used := sum(charge(len(blob.data)) for blob in self.blobs.values())) + more > (
            self._quotas.node_bytes
        ):
            if not self._sweep_oldest(lambda _blob: True):
                check_node_bytes(used, more, self._quotas)

    def _sweep_oldest(self, may_go: Callable[[StoredBlob], bool]) -> bool:
        free = [
            (blob.free_since, digest)
            for digest, blob in self.blobs.items()
            if not blob.leases and may_go(blob)
        ]
        if free:
            del self.blobs[min(free)[1]]
        return bool(free)

    def charged(self, owner: OwnerKey) -> int:
        """Bytes that count for an owner: what it leases, and what it was the last to lease."""
        held = [blob for blob in self.blobs.values() if owner in blob.leases or blob.last == owner]
        return sum(charge(len(blob.data)) for blob in held)

    def _is_pointed_at(self, digest: BlobHash, owner: OwnerKey) -> bool:
        return any(holder == owner and entry.points_at == digest for entry, holder in self.entries.values())

    def _is_over(self, digest: BlobHash, blob: StoredBlob, owner: OwnerKey) -> bool:
        until = blob.leases.get(owner)
        return until is not None and until <= self._wall() and not self._is_pointed_at(digest, owner)

    def _end(self, digest: BlobHash, owner: OwnerKey) -> None:
        blob = self.blobs[digest]
        blob.free_since = max(blob.free_since, blob.leases.pop(owner))
        if not blob.leases:
            blob.last = owner

    def _end_over_of(self, digest: BlobHash) -> None:
        blob = self.blobs[digest]
        over = [(until, owner) for owner, until in blob.leases.items() if self._is_over(digest, blob, owner)]
        for _, owner in sorted(over):
            self._end(digest, owner)

    def _end_all_over(self) -> None:
        for digest in self.blobs:
            self._end_over_of(digest)

    def _let_go(self, digest: BlobHash, blob: StoredBlob, owner: OwnerKey) -> None:
        """An entry of the owner pointed at the blob until now."""
        if self._is_over(digest, blob, owner):
            blob.leases[owner] = self._wall()
            self._end_over_of(digest)
