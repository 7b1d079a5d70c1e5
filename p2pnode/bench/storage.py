"""``storage.*``: what it costs to keep blobs and conversations.

``storage.open`` and ``storage.gc_step`` are measured here, the others (which need two more nodes) in
``replication.py``. Here a store of 10,000 blobs is opened and collected, then one of ten times as many, to
see whether a store gets slower as it grows.

The store is filled without a sync (by disks of its own, through the store's seam) and measured with the real
disk. Blobs that no step will sweep are names of one file; all lie in a tenth of the folders, which are then
as full as those of a store of a million. The figure for a million is extrapolated: whatever the last factor
of ten cost, the next one costs again. All is in the page cache; a cold disk adds the reads of a few pages of
the index.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log10
from pathlib import Path
from statistics import median
from typing import Final

import trio

from p2pnode.bench.figure import Measurement, compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.replication import measure_replication
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.storage.local.disk import Disk
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.rules import FOLDERS, Quotas
from p2pnode.storage.store import GRACE_S, OwnerKey

SIZES: Final = (10_000, 100_000)
SIZES_QUICK: Final = (100, 1_000)
OPENS: Final = 9
STEPS: Final = 9
WRITERS: Final = 256
FOLDERS_MIN: Final = 256
"""To choose blobs for fewer takes longer than it saves."""
MILLION: Final = 1_000_000
LINKS_MAX: Final = 30_000
"""Names of one file; ext4 takes twice as many."""
_BLOB_BYTES: Final = 8
_LEASE_S: Final = 60.0
_OWNER: Final = OwnerKey(hash_of(b"p2pnode/bench"))
_ALL: Final = Quotas(owner_bytes=1 << 50, node_bytes=1 << 50)


async def measure_storage(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    await _measure_store_size(options, take)
    await measure_replication(options, take)


class _UnsyncedDisk(Disk):
    """A disk that syncs nothing: the store that it fills is removed at the end."""

    synchronous = "OFF"

    def sync(self, handle: int) -> None:
        """Sync nothing."""

    def sync_folder(self, path: Path) -> None:
        """Sync nothing."""


class _LinkingDisk(_UnsyncedDisk):
    """One file under the names of all blobs: the folders and the index of a large store, little to write."""

    def __init__(self) -> None:
        self._first: Path | None = None
        self._names = 0

    def create(self, _: Path) -> int:
        """Make nothing yet."""
        return -1

    def write(self, _handle: int, _data: bytes | memoryview) -> None:
        """Write nothing: all blobs have the same length."""

    def close(self, _: int) -> None:
        """Close nothing: nothing is open."""

    def rename(self, _old: Path, new: Path) -> None:
        """Give the one file one more name."""
        if self._first is None or self._names % LINKS_MAX == 0:
            handle = super().create(new)
            super().write(handle, bytes(_BLOB_BYTES))
            super().close(handle)
            self._first = new
        else:
            new.hardlink_to(self._first)
        self._names += 1


@dataclass(slots=True)
class _Clock:
    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timings:
    """Medians: seconds to open, milliseconds of a step through folders, and of one that sweeps."""

    opened_s: float
    folders_ms: float
    sweep_ms: float
    step_max_ms: float


async def _measure_store_size(options: BenchOptions, take: Take) -> None:
    """``storage.open`` and ``storage.gc_step``."""
    small, large = SIZES_QUICK if options.quick else SIZES
    root, clock = options.scratch / "store", _Clock()
    began = time.perf_counter()
    blobs = await trio.to_thread.run_sync(_blobs, large)
    await _fill_with(root, clock, blobs[:small])
    before = await _time(root, clock)
    await _fill_with(root, clock, blobs)
    filled_s = time.perf_counter() - began
    after = await _time(root, clock)
    sizes = {"blobs": large, "baseline_blobs": small, "filled_s": round(filled_s, 1)}
    take("storage.open", _extrapolated(after.opened_s, before.opened_s, **sizes))
    steps = {
        "items": DEFAULT_LIMITS.store_gc_items, "folders_ms": round(after.folders_ms, 2),
        "sweep_ms": round(after.sweep_ms, 2), "max_ms": round(after.step_max_ms, 2),
    }  # fmt: skip
    worst = max(after.folders_ms, after.sweep_ms)
    take(
        "storage.gc_step",
        _extrapolated(worst, max(before.folders_ms, before.sweep_ms), **sizes, **steps),
    )


def _extrapolated(value: float, baseline: float, **details: float) -> Measurement:
    """A factor of ten cost ``value / baseline``; to a million it is paid again, for each factor of ten."""
    at_a_million = value * max(1.0, value / baseline) ** log10(MILLION / details["blobs"])
    note = f"extrapolated to a million blobs: {at_a_million:.3g}; each factor of ten costs what the last did"
    return compared(value, baseline, **details, notes=[note])


def _blobs(count: int) -> list[bytes]:
    """Blobs that lie in few folders, each of which holds as many as in a store of a million."""
    folders = max(FOLDERS * count // MILLION, FOLDERS_MIN)
    found = []
    for number in itertools.count():
        data = number.to_bytes(_BLOB_BYTES, "big")
        if int.from_bytes(hash_of(data)[:2], "big") < folders:
            found.append(data)
            if len(found) == count:
                return found
    raise AssertionError


async def _fill_with(root: Path, clock: _Clock, blobs: Sequence[bytes]) -> None:
    """Fill a store. Blobs that will be swept are files of their own; their leases end first."""
    swept = min(len(blobs) // 2, STEPS * DEFAULT_LIMITS.store_gc_items)
    await _fill(root, clock, blobs[:swept], disk=_UnsyncedDisk(), lease_s=_LEASE_S / 2)
    await _fill(root, clock, blobs[swept:], disk=_LinkingDisk(), lease_s=_LEASE_S)


async def _fill(root: Path, clock: _Clock, blobs: Sequence[bytes], *, disk: Disk, lease_s: float) -> None:
    store = LocalStore.open(root, wall=clock, quotas=_ALL, disk=disk, in_thread=False)
    waiting = iter(blobs)

    async def put() -> None:
        for data in waiting:
            await store.put(data, owner=_OWNER, lease_s=lease_s)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(WRITERS):
                nursery.start_soon(put)
    finally:
        store.close()


async def _time(root: Path, clock: _Clock) -> _Timings:
    opened = [await _time_open(root, clock) for _ in range(OPENS)]
    store = LocalStore.open(root, wall=clock, quotas=_ALL)
    try:
        folders = [await _time_step(store) for _ in range(STEPS)]  # nothing is due
        clock.now += _LEASE_S + GRACE_S
        sweeps = [await _time_step(store) for _ in range(STEPS)]  # everything is
    finally:
        store.close()
    return _Timings(
        opened_s=median(opened),
        folders_ms=median(folders),
        sweep_ms=median(sweeps),
        step_max_ms=max(*folders, *sweeps),
    )


async def _time_open(root: Path, clock: _Clock) -> float:
    began = time.perf_counter()
    store = LocalStore.open(root, wall=clock, quotas=_ALL)
    try:
        await store.size(BlobHash(bytes(32)))
        return time.perf_counter() - began
    finally:
        store.close()


async def _time_step(store: LocalStore) -> float:
    began = time.perf_counter()
    await store.gc_step(DEFAULT_LIMITS.store_gc_items)
    return (time.perf_counter() - began) * 1000
