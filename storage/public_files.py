"""``PublicFiles``: what a host makes public of its models, by SHA-256, beside the store that it serves.

Manifests, tokenizers and chat templates are small, and every host gives them. The files of a model are given
only where their owner shares them, chunk by chunk, and no faster than the owner allows. A chunk is checked
before it is given: a host whose disk is damaged says that it has no such chunk, and is called no liar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.errors import StoreRefusedError
from p2pnode.files import off_the_loop
from p2pnode.models.manifest import CHUNK_BYTES
from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.store import LEASE_S, BlobStore, Data, NoBlobError, OwnerKey

_READ_MAX: Final = 8
"""Chunks that were read and checked, and whose other pieces will be asked for."""
_BURST_S: Final = 2.0
_PATIENCE_S: Final = 5.0
"""Who would wait longer for its bytes is told to come back."""
_WHY_BUSY: Final = "others take this model's files too: ask again, or elsewhere"

log = structlog.get_logger()


class PublicFiles:
    """``bytes_per_s``: how fast files are given to all peers together, and how fast they are read and hashed
    for that; small blobs don't count."""

    def __init__(self, bytes_per_s: float, *, in_thread: bool = True) -> None:
        self._in_thread = in_thread
        self._blobs: dict[bytes, bytes] = {}
        self._chunks: dict[bytes, tuple[Path, int, int]] = {}
        """By hash: the file, from where, and how many bytes."""
        self._read: BoundedMap[bytes, bytes] = BoundedMap(_READ_MAX)
        burst = max(bytes_per_s * _BURST_S, float(CHUNK_BYTES))
        self._given = TokenBucket(bytes_per_s, burst)
        self._hashed = TokenBucket(bytes_per_s, burst)
        """A peer that asks for a byte of each chunk is given little, and has all of them read."""

    def add_blob(self, data: bytes) -> None:
        """Give ``data`` by its hash."""
        self._blobs[hashlib.sha256(data).digest()] = data

    def add_file(self, path: Path, size_bytes: int, chunk_list: bytes) -> None:
        """Give a file, whose chunk list this is, by the hashes of the list and of each chunk."""
        self.add_blob(chunk_list)
        for number, digest in enumerate(hashes_in(chunk_list)):
            start = number * CHUNK_BYTES
            self._chunks[digest] = (path, start, min(CHUNK_BYTES, size_bytes - start))

    def size(self, digest: bytes) -> int | None:
        """Bytes of what has this hash; None where nothing has."""
        if (blob := self._blobs.get(digest)) is not None:
            return len(blob)
        place = self._chunks.get(digest)
        return None if place is None else place[2]

    async def read(self, digest: bytes, offset: int, length: int | None) -> bytes:
        """Bytes of what has this hash.

        Raises ``NoBlobError``, and ``StoreRefusedError`` where its turn would come too late.
        """
        whole = self._blobs.get(digest)
        if whole is None:
            whole = await self._chunk(digest)
            part = whole[offset : None if length is None else offset + length]
            await self._wait_turn(self._given, len(part))
            return part
        return whole[offset : None if length is None else offset + length]

    @staticmethod
    async def _wait_turn(rate: TokenBucket, count: int) -> None:
        wait_s = rate.wait_s(trio.current_time())
        if wait_s > _PATIENCE_S:
            raise StoreRefusedError("rate_limited", _WHY_BUSY, retry_after_s=round(wait_s, 1))
        rate.spend(count)
        await trio.sleep(wait_s)

    async def _chunk(self, digest: bytes) -> bytes:
        if (known := self._read.get(digest)) is not None:
            return known
        place = self._chunks.get(digest)
        if place is None:
            raise NoBlobError("nothing public has this hash")
        await self._wait_turn(self._hashed, place[2])  # before any work is done for it
        data = await off_the_loop(partial(_read_at, *place), in_thread=self._in_thread)
        if hashlib.sha256(data).digest() != digest:
            log.warning("model.chunk_changed", path=str(place[0]), remedy="p2pnode models verify")
            raise NoBlobError("the file has changed")
        self._read.put(digest, data)
        return data


def hashes_in(chunk_list: bytes) -> Iterable[bytes]:
    """The hashes of a chunk list."""
    return (chunk_list[at : at + 32] for at in range(0, len(chunk_list), 32))


def _read_at(path: Path, start: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError as error:
        raise NoBlobError(f"the file can't be read ({error.strerror})") from error


class StoreWithPublicFiles:
    """A ``BlobStore`` that gives what is public, too. It is written to as before."""

    def __init__(self, store: BlobStore, public: PublicFiles) -> None:
        self._store, self._public = store, public

    async def put(
        self, data: Data, *, owner: OwnerKey, expected: BlobHash | None = None, lease_s: float = LEASE_S
    ) -> BlobId:
        """See ``BlobStore``."""
        return await self._store.put(data, owner=owner, expected=expected, lease_s=lease_s)

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        """See ``BlobStore``."""
        if self._public.size(digest) is not None:
            return await self._public.read(digest, offset, length)
        return await self._store.read(digest, offset, length)

    async def size(self, digest: BlobHash) -> int | None:
        """See ``BlobStore``."""
        size = self._public.size(digest)
        return size if size is not None else await self._store.size(digest)

    async def pin(self, digest: BlobHash, *, owner: OwnerKey, lease_s: float = LEASE_S) -> None:
        """See ``BlobStore``."""
        await self._store.pin(digest, owner=owner, lease_s=lease_s)

    async def unpin(self, digest: BlobHash, *, owner: OwnerKey) -> None:
        """See ``BlobStore``."""
        await self._store.unpin(digest, owner=owner)
