"""Stores to test, with a clock that is told what time it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pnode.storage.local.disk import Disk
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.rules import FOLDERS, GcStep, Quotas
from p2pnode.storage.store import OwnerKey
from tests.sqlite_disk import WatchedDisk
from tests.storage.store_conformance import ALICE, BOB, QUOTAS

NOW = 1_800_000_000.0


class Wall:
    """Seconds since 1970, as the test will have it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class UnsyncedDisk(Disk):
    """Quick: for tests in which nothing loses power."""

    synchronous = "OFF"

    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class StoreDisk(WatchedDisk, UnsyncedDisk):
    """Quick, and its index is in view."""


class OneStoreWorld:
    """A store that believes whoever names himself."""

    alice, bob = ALICE, BOB

    def __init__(self, store: MemoryStore | LocalStore, wall: Wall) -> None:
        self.store, self.wall = store, wall

    def blobs(self, _: OwnerKey) -> MemoryStore | LocalStore:
        return self.store

    registry = blobs

    def later(self, seconds: float) -> None:
        self.wall.now += seconds


@contextmanager
def local_store(
    root: Path,
    wall: Wall | None = None,
    *,
    quotas: Quotas = QUOTAS,
    disk: Disk | None = None,
    in_thread: bool = True,
    trusts_clock: bool = True,
) -> Iterator[LocalStore]:
    store = LocalStore.open(
        root,
        wall=wall or Wall(),
        quotas=quotas,
        disk=disk or UnsyncedDisk(),
        in_thread=in_thread,
        trusts_clock=lambda: trusts_clock,
    )
    try:
        yield store
    finally:
        store.close()


async def collect(store: LocalStore, limit: int = 100) -> list[GcStep]:
    """Steps until there is nothing due and a whole round is over."""
    steps: list[GcStep] = []
    while not steps or steps[-1].due or sum(step.folders_seen for step in steps) < FOLDERS:
        steps.append(await store.gc_step(limit))
    return steps


def files_of(root: Path) -> set[str]:
    """Names of the blobs' files, and of uploads."""
    return {path.name for folder in ("blobs", "new") for path in (root / folder).rglob("*") if path.is_file()}
