"""The seam between the local store and the disk: every file that it touches, and every commit.

Tests put a disk here that loses power, fills up, or fails to sync. Nothing here knows what a blob is. What
was written is durable after ``sync`` of the file, its name after ``sync_folder`` of the folder. Each method
may raise ``OSError``.
"""

from __future__ import annotations

import os
from pathlib import Path

from p2pnode.durable import SqliteDisk
from p2pnode.locks import lock, try_lock
from p2pnode.platforms import BINARY, sync_folder


class Disk(SqliteDisk):
    """The real one. Files are 0600, folders 0700."""

    def make_folder(self, path: Path) -> bool:
        """Make it; False where it existed."""
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            return False
        return True

    def create(self, path: Path) -> int:
        """Make a file, open for writing and locked until it is closed. Returns its handle."""
        while True:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
            try:
                lock(handle)
                if os.fstat(handle).st_nlink:
                    return handle
            except OSError:
                os.close(handle)
                raise
            os.close(handle)  # a collection removed it before it was locked

    def unlink_if_left(self, path: Path) -> bool:
        """Remove a file that nobody has locked. Returns whether it did."""
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return try_lock(handle) and self.unlink(path)
        finally:
            os.close(handle)

    def write(self, handle: int, data: bytes | memoryview) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]

    def sync(self, handle: int) -> None:
        """Return when the file's bytes are on the disk."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """Close the file and release its lock."""
        os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Rename atomically, over what was there."""
        old.rename(new)

    def sync_folder(self, path: Path) -> None:
        """Return when the folder's names are on the disk."""
        sync_folder(path)

    def unlink(self, path: Path) -> bool:
        """Remove it; False where it did not exist."""
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """At most ``length`` bytes; fewer only at the end. Raises ``FileNotFoundError``."""
        pieces = []
        handle = os.open(path, os.O_RDONLY | BINARY)
        try:
            os.lseek(handle, offset, os.SEEK_SET)
            while length and (piece := os.read(handle, length)):
                pieces.append(piece)
                length -= len(piece)
        finally:
            os.close(handle)
        return b"".join(pieces)

    def size(self, path: Path) -> int | None:
        """In bytes; None where there is none."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def sizes(self, path: Path) -> dict[str, int]:
        """The names in a folder, with their sizes in bytes; none where there is no folder."""
        try:
            with os.scandir(path) as found:
                return {each.name: each.stat(follow_symlinks=False).st_size for each in found}
        except FileNotFoundError:
            return {}

    def names(self, path: Path) -> list[str]:
        """The names in a folder without their sizes, which is quicker."""
        try:
            with os.scandir(path) as found:
                return [each.name for each in found]
        except FileNotFoundError:
            return []

    def modified_at(self, path: Path) -> float | None:
        """Seconds since 1970; None where there is none."""
        try:
            return path.stat().st_mtime
        except FileNotFoundError:
            return None
