"""Where blobs lie: ``blobs/ab/cd/<hash in hex>``, and ``new/`` for those that are still coming.

A file gets its place by a rename, whole and synced. Folders are made as they are needed and never removed;
that a folder's own name is on the disk is remembered (nothing ever takes it away), and found out again by
each process. Who may place or remove a file, and when, is ``writer``'s matter. Blocks.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from p2pnode.protocols.s5.ids import HASH_BYTES, BlobHash
from p2pnode.storage.local.disk import Disk

_NAME_BYTES: Final = 16
_HEX_PER_LEVEL: Final = 2


class BlobFiles:
    """The files under one root."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root, self.disk = root, disk
        self.blobs, self.new = root / "blobs", root / "new"
        self._anchored: set[Path] = set()
        """Folders whose names are on the disk, all the way up."""

    def make(self) -> None:
        """The two folders, where they are not. Raises ``OSError``."""
        made = [self.disk.make_folder(folder) for folder in (self.blobs, self.new)]
        if any(made):
            self.disk.sync_folder(self.root)

    def new_path(self) -> Path:
        """A name for a file that is still coming."""
        return self.new / secrets.token_hex(_NAME_BYTES)

    def path_of(self, digest: BlobHash) -> Path:
        """Where a blob lies."""
        name = digest.hex()
        return self.blobs / name[:2] / name[2:4] / name

    def folder(self, number: int) -> Path:
        """One of the 65,536: its number is how the hashes in it begin."""
        name = f"{number:04x}"
        return self.blobs / name[:2] / name[2:]

    def is_whole(self, digest: BlobHash, size: int) -> bool:
        """Is its file here, and as long as it must be?"""
        return self.disk.size(self.path_of(digest)) == size

    def place(self, new: Path, digest: BlobHash, unsynced: set[Path]) -> None:
        """Put a synced file in its place; the folders to sync are added to ``unsynced``."""
        path = self.path_of(digest)
        folder = path.parent
        if folder not in self._anchored:
            self.disk.make_folder(folder.parent)
            self.disk.make_folder(folder)
            # Another process may have made them a moment ago, and not have synced them yet.
            unsynced.update((folder.parent, self.blobs))
        self.disk.rename(new, path)
        unsynced.add(folder)

    def sync(self, folders: set[Path]) -> None:
        """The deepest first: on most file systems the others then cost nothing."""
        for folder in sorted(folders, key=lambda each: (-len(each.parts), each)):
            self.disk.sync_folder(folder)
        if self.blobs in folders:
            self._anchored.update(each for each in folders if each.parent.parent == self.blobs)

    def hash_of_name(self, number: int, name: str) -> BlobHash | None:
        """The blob that a name in a folder stands for; None for what is not ours."""
        if len(name) != 2 * HASH_BYTES or not name.startswith(f"{number:04x}") or name != name.lower():
            return None
        try:
            return BlobHash(bytes.fromhex(name))
        except ValueError:
            return None

    def next_folder(self, first: int) -> int | None:
        """The first folder from ``first`` on that is there."""
        for upper in _numbers(self.disk.names(self.blobs), first >> 8):
            least = first & 0xFF if upper == first >> 8 else 0
            lower = _numbers(self.disk.names(self.blobs / f"{upper:02x}"), least)
            if lower:
                return (upper << 8) | lower[0]
        return None


def _numbers(names: list[str], least: int) -> list[int]:
    found = []
    for name in names:
        if len(name) == _HEX_PER_LEVEL:
            try:
                found.append(int(name, 16))
            except ValueError:
                continue
    return sorted(number for number in found if number >= least)
