"""The rules that every store here follows: what may be kept, for whom it counts, until when. Pure.

A lease is one owner's hold on a blob. It ends when its time is over or its owner gives it up, but never
while an entry *of the same owner* points at the blob: so an entry keeps what it names, and the blob counts
for the owner for whom it is kept. (If any entry kept any blob, an owner could keep 256 of the largest blobs
without a lease.) A blob without a lease is swept ``GRACE_S`` after its last lease ended, and counts until
then for the owner of that lease. Where room is short such blobs go at once, those free the longest first: to
make room for an owner that owner's own, to make room in the store anybody's. So no owner ever has more than
its quota, counting leases that are over, and what is over keeps nobody out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import Entry, checked
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.store import (
    BLOB_MAX,
    BadEntryError,
    HashMismatchError,
    NoBlobError,
    QuotaError,
    StaleEntryError,
    TooLargeError,
)

CHARGE_MIN: Final = 4096
"""The smallest blob counts for so many bytes: what it takes on a disk. Sealed objects have no fewer."""
FOLDERS: Final = 65_536
"""Folders in a full round of a disk's collection. Other stores have no folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What a store takes: bytes and registry keys of one owner and in all, leases, bytes of one blob."""

    owner_bytes: int = 256 << 20
    node_bytes: int = 10 << 30
    owner_keys: int = 256
    node_keys: int = 1 << 18
    node_leases: int = 1 << 22
    blob_bytes: int = BLOB_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class GcStep:
    """What one step of a collection did and what it left. ``due``: more can be freed at once."""

    leases_ended: int = 0
    blobs_swept: int = 0
    bytes_freed: int = 0
    files_removed: int = 0
    """Files that a crash left: uploads that never ended, blobs that were never acknowledged."""
    blobs_lost: int = 0
    """Blobs whose file is gone or cut; their leases ended with them."""
    folders_seen: int = 0
    folders_left: int = 0
    """Folders until this round is over. The next round begins after it."""
    due: bool = False


def charge(size: int) -> int:
    """The bytes for which a blob counts: for each owner that leases it, and once for the store."""
    return max(size, CHARGE_MIN)


def lease_end(now: float, lease_s: float) -> float:
    """When a lease that is taken now is over. Raises ``ValueError`` for a length below zero."""
    if not lease_s >= 0:  # also true for NaN
        msg = f"a lease of {lease_s} s"
        raise ValueError(msg)
    return now + lease_s


def check_range(offset: int, length: int | None) -> None:
    """Raise ``ValueError`` for a range that begins before the blob, or has a length below zero."""
    if offset < 0 or (length is not None and length < 0):
        msg = f"no bytes {length} from {offset}"
        raise ValueError(msg)


def check_size(size: int, quotas: Quotas) -> None:
    """Raise ``TooLargeError`` for more bytes than one blob may have."""
    if size > quotas.blob_bytes:
        msg = f"more than {quotas.blob_bytes} bytes: that is the most one blob may have; split it"
        raise TooLargeError(msg)


def check_hash(found: BlobHash, expected: BlobHash | None) -> None:
    """Raise ``HashMismatchError`` for another hash than was expected."""
    if expected is not None and found != expected:
        msg = (
            f"the bytes hash to {found.hex()[:16]}…, not to {expected.hex()[:16]}…: "
            "they were changed on their way; send them again"
        )
        raise HashMismatchError(msg)


def check_owner_bytes(used: int, more: int, quotas: Quotas) -> None:
    """Raise ``QuotaError`` where an owner may not have ``more`` bytes."""
    if used + more > quotas.owner_bytes:
        msg = (
            f"this owner has leased {used} of {quotas.owner_bytes} bytes, and {more} more do not fit: "
            "give up leases it does not need, or raise store_owner_bytes_max"
        )
        raise QuotaError(msg)


def check_node_bytes(used: int, more: int, quotas: Quotas) -> None:
    """Raise ``QuotaError`` where the store may not have ``more`` bytes."""
    if used + more > quotas.node_bytes:
        msg = (
            f"this store holds {used} of {quotas.node_bytes} bytes, and {more} more do not fit: "
            "sweep it (`p2pnode storage gc`), raise store_bytes_max, or use another store"
        )
        raise QuotaError(msg)


def check_node_leases(held: int, quotas: Quotas) -> None:
    """Raise ``QuotaError`` where the store may have no more leases."""
    if held >= quotas.node_leases:
        msg = f"this store holds {held} leases and takes no more: use another store, or try again later"
        raise QuotaError(msg)


def check_keys(of_owner: int, of_node: int, quotas: Quotas) -> None:
    """Raise ``QuotaError`` where the owner or the store may have no more keys."""
    if of_owner >= quotas.owner_keys:
        msg = (
            f"this owner has {of_owner} registry keys, the most it may have here: "
            "reuse a key, or use another store"
        )
        raise QuotaError(msg)
    if of_node >= quotas.node_keys:
        msg = f"this store holds {of_node} registry entries and takes no more keys: use another store"
        raise QuotaError(msg)


def check_entry(entry: Entry) -> None:
    """Raise ``BadEntryError`` for one that is out of bounds or that its key didn't sign."""
    try:
        checked(key=entry.key, revision=entry.revision, data=entry.data, signature=entry.signature)
    except ProtocolError as error:
        raise BadEntryError(str(error)) from error
    if not entry.holds():
        msg = f"the entry of {entry.key.hex()[:16]}… is not signed by its key: it was forged or damaged"
        raise BadEntryError(msg)


def is_newer(entry: Entry, current: Entry | None) -> bool:
    """Whether it is to be written. False for the same entry again. Raises ``StaleEntryError``."""
    if entry.replaces(current) or current is None:
        return True
    if (entry.revision, entry.data) == (current.revision, current.data):
        return False
    msg = (
        f"the registry holds revision {current.revision} of {entry.key.hex()[:16]}…, which revision "
        f"{entry.revision} does not replace: build upon that one"
    )
    raise StaleEntryError(msg, current)


@asynccontextmanager
async def pieces_of(data: AsyncIterable[bytes]) -> AsyncIterator[AsyncIterable[bytes]]:
    """A stream that is closed when the block ends, also where it was not read to its end."""
    try:
        yield data
    finally:
        if isinstance(data, AsyncGenerator):
            await data.aclose()


def no_blob(digest: BlobHash) -> NoBlobError:
    """The error for a blob that this store does not have."""
    return NoBlobError(f"no blob {digest.hex()[:16]}… in this store: ask another, or put it again")
