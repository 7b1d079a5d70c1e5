"""A blob that is coming: hashed and capped while it is written to a file of its own, synced at its end.

Blocks.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import structlog
from blake3 import blake3

from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.local.files import BlobFiles
from p2pnode.storage.rules import Quotas, check_hash, check_size

log = structlog.get_logger()


class Upload:
    """Write, seal, then place the file at ``path`` and close, or discard it."""

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
        """That was all: its id, when its bytes are on the disk. Raises ``HashMismatchError``, ``OSError``."""
        blob = BlobId(BlobHash(self._hasher.digest()), self._size)
        check_hash(blob.hash, expected)
        self._files.disk.sync(self._open())
        return blob

    def close(self) -> None:
        """Let go of the file. Until then no collection takes it for a left one."""
        if self._handle is not None:
            with suppress(OSError):  # it was synced, or nobody needs it any more
                self._files.disk.close(self._handle)
            self._handle = None

    def discard(self) -> None:
        """Leave nothing, if it wasn't placed. What can't be removed now, the collection finds."""
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
