"""A disk that loses power between any two steps, fills up, or fails to sync.

It keeps beside the real files what of them would survive: the bytes that were synced, and the names that
were in a folder when that was synced. :meth:`FaultyDisk.lose_power` makes the real folder what a machine
finds when it starts again. A commit of SQLite is one step: when it returned it is on the disk, not before.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from p2pnode.storage.local.disk import Disk

NEVER = 10**9


class PowerCutError(BaseException):
    """The machine is off: nothing more happens. No ``Exception``, so that nobody handles it."""


@dataclass(eq=False)
class _File:
    written: bytes = b""
    synced: bytes = b""


@dataclass(eq=False)
class _Folder:
    live: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)


class FaultyDisk(Disk):
    """Count the steps of a run with none of the faults, then have one at each."""

    synchronous = "OFF"

    def __init__(
        self, root: Path, *, cut_at: int = NEVER, full_at: int = NEVER, unsynced_at: int = NEVER
    ) -> None:
        self._root = root
        self._top = _Folder()
        self._open: dict[int, _File] = {}
        self.cut_at, self.full_at, self.unsynced_at = cut_at, full_at, unsynced_at
        self.steps = 0
        """Places where the power can go: before and after each thing done."""
        self.syncs = 0
        self.done: list[str] = []

    def lose_power(self, survives: Callable[[], bool]) -> None:
        """What was not synced is there or not, each for itself, as ``survives`` says."""
        for name in ("blobs", "new"):
            shutil.rmtree(self._root / name, ignore_errors=True)
        _restore(self._top, self._root, survives)

    # ---- the seam

    def make_folder(self, path: Path) -> bool:
        self._before("make_folder", takes_space=True)
        made = super().make_folder(path)
        if made:
            self._folder(path.parent).live[path.name] = _Folder()
        self._after()
        return made

    def create(self, path: Path) -> int:
        self._before("create", takes_space=True)
        handle = super().create(path)
        self._open[handle] = file = _File()
        self._folder(path.parent).live[path.name] = file
        self._after()
        return handle

    def write(self, handle: int, data: bytes | memoryview) -> None:
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            self._before("write", takes_space=True)
            super().write(handle, half)
            self._open[handle].written += half
        self._after()

    def sync(self, handle: int) -> None:
        self._before("sync", takes_space=True)
        self._fail_to_sync()
        self._open[handle].synced = self._open[handle].written
        self._after()

    def close(self, handle: int) -> None:
        super().close(handle)  # a machine that is off has nothing open either
        del self._open[handle]

    def rename(self, old: Path, new: Path) -> None:
        self._before("rename", takes_space=True)
        super().rename(old, new)
        self._folder(new.parent).live[new.name] = self._folder(old.parent).live.pop(old.name)
        self._after()

    def sync_folder(self, path: Path) -> None:
        self._before("sync_folder")
        self._fail_to_sync()
        folder = self._folder(path)
        folder.synced = dict(folder.live)
        self._after()

    def unlink(self, path: Path) -> bool:
        self._before("unlink")
        removed = super().unlink(path)
        if removed:
            del self._folder(path.parent).live[path.name]
        self._after()
        return removed

    def commit(self, db: sqlite3.Connection) -> None:
        try:
            self._before("commit", takes_space=True)
        except OSError as error:
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise full from error
        super().commit(db)
        self._after()

    # ---- faults

    def _before(self, what: str, *, takes_space: bool = False) -> None:
        self.done.append(what)
        self._tick()
        if takes_space and self.steps > self.full_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _after(self) -> None:
        self._tick()

    def _tick(self) -> None:
        self.steps += 1
        if self.steps > self.cut_at:
            raise PowerCutError

    def _fail_to_sync(self) -> None:
        self.syncs += 1
        if self.syncs == self.unsynced_at:
            raise OSError(errno.EIO, "Input/output error")

    def _folder(self, path: Path) -> _Folder:
        folder = self._top
        for part in path.relative_to(self._root).parts:
            below = folder.live[part]
            assert isinstance(below, _Folder)
            folder = below
        return folder


def _restore(folder: _Folder, path: Path, survives: Callable[[], bool]) -> None:
    for name in sorted({*folder.live, *folder.synced}):
        held = (folder.live if survives() else folder.synced).get(name)
        if isinstance(held, _Folder):
            (path / name).mkdir()
            _restore(held, path / name, survives)
        elif held is not None:
            (path / name).write_bytes(held.written if survives() else held.synced)
