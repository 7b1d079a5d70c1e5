"""How blobs, leases and owners are shown to people and to scripts: for ``p2pnode storage``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from p2pnode.protocols.s5.entries import Entry
    from p2pnode.storage.local.index import BlobInfo, Lease, OwnerStats
    from p2pnode.storage.local.store import LocalStore

LOCAL: Final = "local"
"""How the owner of what is put by hand is shown."""
_PAGE: Final = 500
_EVER: Final = 2**53
"""What JavaScript still counts to."""
_STEP: Final = 1024
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


async def all_blobs(store: LocalStore) -> AsyncIterator[BlobInfo]:
    """Page by page."""
    page = await store.blobs(limit=_PAGE)
    while page:
        for each in page:
            yield each
        page = await store.blobs(page[-1].id.hash, limit=_PAGE)


async def all_entries(store: LocalStore) -> AsyncIterator[dict[str, Any]]:
    """Page by page."""
    page = await store.entries(limit=_PAGE)
    while page:
        for each in page:
            yield entry_fields(each)
        page = await store.entries(page[-1].key, limit=_PAGE)


def blob_fields(blob: BlobInfo) -> dict[str, Any]:
    """For scripts."""
    return {
        "id": blob.id.text(),
        "size": blob.id.size,
        "leases": [_lease_fields(each) for each in blob.leases],
        "entries": [key.hex() for key in blob.entries],
    }


def _lease_fields(lease: Lease) -> dict[str, Any]:
    until = int(min(lease.until, _EVER))
    return {"owner": owner_text(lease.owner, in_full=True), "until": until, "pointed": lease.pointed}


def blob_row(blob: BlobInfo) -> tuple[str, str, str, str]:
    """For people."""
    leases = ", ".join(
        f"{owner_text(each.owner)} {'by entry' if each.pointed else 'until ' + date_text(each.until)}"
        for each in blob.leases
    )
    return blob.id.text(), str(blob.id.size), leases or "nobody", str(len(blob.entries))


def entry_fields(entry: Entry) -> dict[str, Any]:
    """For scripts."""
    from p2pnode.protocols.s5.ids import BlobId

    target = entry.points_at
    points_at = None if target is None else BlobId(target).text()
    return {"key": entry.key.hex(), "revision": entry.revision, "points_at": points_at}


def owner_counts(owner: OwnerStats) -> dict[str, int]:
    """For scripts."""
    return {"charged": owner.charged, "leases": owner.leases, "keys": owner.keys}


def owner_text(owner: bytes, *, in_full: bool = False) -> str:
    """An owner, shortened for people."""
    from p2pnode.storage.node_store import LOCAL_OWNER

    if in_full:
        return owner.hex()
    return LOCAL if owner == LOCAL_OWNER else f"{owner.hex()[:8]}…"


def date_text(until: float) -> str:
    """The day a lease ends."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(until, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "ever"


def size_text(count: int) -> str:
    """In binary units, as the settings are thought of."""
    value, unit = float(count), 0
    while value >= _STEP and unit + 1 < len(_UNITS):
        value, unit = value / _STEP, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value.is_integer() else f"{value:.1f} {_UNITS[unit]}"
