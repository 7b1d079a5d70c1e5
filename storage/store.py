"""The seams of storage: blobs by their hash, and the registry's signed entries.

Whoever stores is identified by an *owner*, an Ed25519 key: quotas and leases are counted by it. A blob stays
while somebody's lease on it runs, or an entry of an owner who leased it points at it, and a day longer.
Implementations: ``memory`` (the rules in Python), ``local`` (a disk), ``s5.client`` (an S5 node over HTTP)
and ``peer_store`` (a peer over ``/p2pnode/blob/1``). One conformance suite tests all of them.

Whoever reads from a store that it doesn't trust checks hash or signature itself, as ``Replication`` does.
Besides the errors named here, a store elsewhere raises ``RemoteError`` when it can't be reached or refuses.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Final, Literal, NewType, Protocol, TypeAlias

from p2pnode.errors import StorageError
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId

OwnerKey = NewType("OwnerKey", bytes)
"""32 bytes: the Ed25519 public key that somebody's blobs are counted by."""
Data: TypeAlias = bytes | AsyncIterable[bytes]

DAY_S: Final = 86_400.0
LEASE_S: Final = 31 * DAY_S
"""The usual length of a lease, which is renewed weekly: the numbers of Tahoe-LAFS."""
GRACE_S: Final = DAY_S
"""What nobody keeps any more is swept after this."""
BLOB_MAX: Final = 34_000_000
"""Bytes of one upload: the bound that S5's nodes in Dart have."""


class NoBlobError(StorageError):
    """This store does not have it."""


class HashMismatchError(StorageError):
    """The bytes are not those that their hash, or their size, promised. Nothing was kept."""


class TooLargeError(StorageError):
    """More bytes than one blob may have. Nothing was kept."""


class QuotaError(StorageError):
    """The owner's quota, or the store's, is used up. Nothing was kept."""


class DiskFullError(StorageError):
    """The disk takes no more. What was acknowledged before is safe."""


class BadEntryError(StorageError):
    """The entry's signature is not its key's."""


class StaleEntryError(StorageError):
    """The registry holds ``current``, which is newer, equal, or wins at the same revision."""

    def __init__(self, message: str, current: Entry) -> None:
        super().__init__(message)
        self.current = current


class BlobStore(Protocol):
    """Bytes by their BLAKE3 hash."""

    async def put(
        self, data: Data, *, owner: OwnerKey, expected: BlobHash | None = None, lease_s: float = LEASE_S
    ) -> BlobId:
        """Keep the bytes with a lease, durable when it returns. What is there already is only leased.

        Raises ``TooLargeError``, ``HashMismatchError`` (not ``expected``), ``QuotaError``, ``DiskFullError``.
        """
        ...

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes from ``offset``: ``length`` of them, or fewer at the end. Raises ``NoBlobError``."""
        ...

    async def size(self, digest: BlobHash) -> int | None:
        """The size in bytes; None where the blob isn't here."""
        ...

    async def pin(self, digest: BlobHash, *, owner: OwnerKey, lease_s: float = LEASE_S) -> None:
        """Lease it, or renew the lease, which never gets shorter. Raises ``NoBlobError``, ``QuotaError``."""
        ...

    async def unpin(self, digest: BlobHash, *, owner: OwnerKey) -> None:
        """End the owner's lease. Changes nothing where there is none."""
        ...


class Registry(Protocol):
    """Entries by their keys. An older one never replaces a newer one."""

    async def get(self, key: EntryKey) -> Entry | None:
        """The newest entry that this store has; None where it has none."""
        ...

    async def set(self, entry: Entry, *, owner: OwnerKey) -> None:
        """Keep it, durable when it returns. The same entry again changes nothing and is no error.

        Raises ``BadEntryError``, ``StaleEntryError`` (with the one that is kept), ``QuotaError``.
        """
        ...


Place: TypeAlias = Literal["own", "serving", "other"]
"""Where it is: on the client's own disk, on the host that serves the conversation, or anywhere else."""


class Placed(Protocol):
    """What a replica is chosen and counted by. ``name`` is for people and logs, and unique."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> Place: ...


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """One place where blobs and entries are kept. ``name`` is for people and logs, and unique."""

    name: str
    blobs: BlobStore
    registry: Registry
    place: Place = "other"
