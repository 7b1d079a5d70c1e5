"""The store's files: blobs at ``blobs/ab/cd/<hash in hex>``, and in ``new/`` those that are being written.

A file gets its place by a rename, when it is whole and synced. Folders are made as they are needed and never
removed, so each process remembers which folders' names it has synced. When a file may be placed or removed
is the ``Writer``'s matter. Every call blocks.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from blake3 import blake3

from p2pnode.protocols.s5.ids import HASH_BYTES, BlobHash, BlobId
from p2pnode.storage.local.disk import Disk
from p2pnode.storage.rules import Quotas, check_hash, check_size

_NAME_BYTES: Final = 16
_HEX_PER_LEVEL: Final = 2


class BlobFiles:
    """The files under one root."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root, self.disk = root, disk
        self.blobs, self.new = root / "blobs", root / "new"
        self._anchored: set[Path] = set()
        """Folders whose names were synced, and those of the folders above them."""

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
        """One of the 65,536 folders; its number is the first two bytes of the hashes in it."""
        name = f"{number:04x}"
        return self.blobs / name[:2] / name[2:]

    def is_whole(self, digest: BlobHash, size: int) -> bool:
        """Whether its file is here and has this size."""
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
        """Sync folders, the deepest first: on most file systems the others then cost nothing."""
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


log = structlog.get_logger()


class Upload:
    """A blob that is being written to a file of its own: hashed, and bounded in size, as it comes.

    ``write``, ``seal``, then place the file at ``path`` and ``close``; or ``discard``. Every call blocks.
    """

    def __init__(self, files: BlobFiles, quotas: Quotas) -> None:
        self._files, self._quotas = files, quotas
        self._hasher = blake3()
        self._size = 0
        self._handle: int | None = None
        self.path: Path | None = None

    def write(self, data: bytes | memoryview) -> None:
        """More of it. Raises ``TooLargeError``, ``OSError``."""
        check_size(self._size + len(data), self._quotas)
        self._size += len(data)
        self._hasher.update(data)
        self._files.disk.write(self._open(), data)

    def seal(self, expected: BlobHash | None) -> BlobId:
        """End it: its id, once its bytes are on the disk. Raises ``HashMismatchError``, ``OSError``."""
        blob = BlobId(BlobHash(self._hasher.digest()), self._size)
        check_hash(blob.hash, expected)
        self._files.disk.sync(self._open())
        return blob

    def close(self) -> None:
        """Close the file. Until then no collection takes it for one that a crash left."""
        if self._handle is not None:
            with suppress(OSError):  # it was synced, or nobody needs it any more
                self._files.disk.close(self._handle)
            self._handle = None

    def discard(self) -> None:
        """Remove the file, if it wasn't placed. The collection finds it where it can't be removed now."""
        self.close()
        if self.path is not None:
            try:
                self._files.disk.unlink(self.path)
            except OSError as error:
                log.warning("storage.left_behind", files=1, reason=str(error))

    def _open(self) -> int:
        if self._handle is None:
            self.path = self._files.new_path()
            self._handle = self._files.disk.create(self.path)
        return self._handle
