"""The rules that every store here keeps: what may be kept, for whom it counts, until when.

A lease is one owner's hold on a blob. It ends when its time is over or its owner gives it up, but never
while an entry *of the same owner* points at the blob: so an entry keeps what it names, and that is counted
for whom it keeps it. (If any entry kept any blob, an owner could keep 256 of the largest without a lease.)
A blob that nobody holds is swept ``GRACE_S`` after its last lease ended, and counts until then for the owner
of that lease. Where room is short it goes at once, those free the longest first: for its owner's share the
owner's own, for the store's share anybody's. So no owner ever keeps more than its share, by leases that are
over or not, and what is over keeps nobody out. This module keeps nothing itself.
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
"""Bytes that the smallest blob counts: what it takes on a disk. Sealed objects have no fewer."""
FOLDERS: Final = 65_536
"""Folders of a full round of a disk's collection; other stores have none to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What a store takes: bytes an owner and in all, registry keys, leases, and bytes of one blob."""

    owner_bytes: int = 256 << 20
    node_bytes: int = 10 << 30
    owner_keys: int = 256
    node_keys: int = 1 << 18
    node_leases: int = 1 << 22
    blob_bytes: int = BLOB_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class GcStep:
    """What one step of a collection did, and what it left. ``due``: more can be freed at once."""

    leases_ended: int = 0
    blobs_swept: int = 0
    bytes_freed: int = 0
    files_removed: int = 0
    """Left behind by a crash: uploads that never ended, blobs that were never acknowledged."""
    blobs_lost: int = 0
    """Blobs whose file is gone or cut; their leases ended with them."""
    folders_seen: int = 0
    folders_left: int = 0
    """Until this round is over; the next begins after it."""
    due: bool = False


def charge(size: int) -> int:
    """Bytes that a blob counts for each owner that leases it, and once for the store."""
    return max(size, CHARGE_MIN)


def lease_end(now: float, lease_s: float) -> float:
    """When a lease taken now is over. Raises ``ValueError`` for a length below zero."""
    if not lease_s >= 0:  # NaN is none either
        msg = f"a lease of {lease_s} s"
        raise ValueError(msg)
    return now + lease_s


def check_range(offset: int, length: int | None) -> None:
    """Raise ``ValueError`` for a range that begins before the blob, or is shorter than nothing."""
    if offset < 0 or (length is not None and length < 0):
        msg = f"no bytes {length} from {offset}"
        raise ValueError(msg)


def check_size(size: int, quotas: Quotas) -> None:
    """Raise ``TooLargeError``."""
    if size > quotas.blob_bytes:
        msg = f"more than {quotas.blob_bytes} bytes: that is the most one blob may have; split it"
        raise TooLargeError(msg)


def check_hash(found: BlobHash, expected: BlobHash | None) -> None:
    """Raise ``HashMismatchError``."""
    if expected is not None and found != expected:
        msg = (
            f"the bytes hash to {found.hex()[:16]}…, not to {expected.hex()[:16]}…: "
            "they were changed on their way; send them again"
        )
        raise HashMismatchError(msg)


def check_owner_bytes(used: int, more: int, quotas: Quotas) -> None:
    """Raise ``QuotaError``."""
    if used + more > quotas.owner_bytes:
        msg = (
            f"this owner has leased {used} of {quotas.owner_bytes} bytes, and {more} more do not fit: "
            "give up leases it does not need, or raise store_owner_bytes_max"
        )
        raise QuotaError(msg)


def check_node_bytes(used: int, more: int, quotas: Quotas) -> None:
    """Raise ``QuotaError``."""
    if used + more > quotas.node_bytes:
        msg = (
            f"this store holds {used} of {quotas.node_bytes} bytes, and {more} more do not fit: "
            "sweep it (`p2pnode storage gc`), raise store_bytes_max, or use another store"
        )
        raise QuotaError(msg)


def check_node_leases(held: int, quotas: Quotas) -> None:
    """Raise ``QuotaError``."""
    if held >= quotas.node_leases:
        msg = f"this store holds {held} leases and takes no more: use another store, or try again later"
        raise QuotaError(msg)


def check_keys(of_owner: int, of_node: int, quotas: Quotas) -> None:
    """Raise ``QuotaError``."""
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
    """Is it to be written? False for the same again. Raises ``StaleEntryError``."""
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
    """A stream that is closed at the end, also when it isn't read to its own."""
    try:
        yield data
    finally:
        if isinstance(data, AsyncGenerator):
            await data.aclose()


def no_blob(digest: BlobHash) -> NoBlobError:
    """The error for a blob that isn't here."""
    return NoBlobError(f"no blob {digest.hex()[:16]}… in this store: ask another, or put it again")
