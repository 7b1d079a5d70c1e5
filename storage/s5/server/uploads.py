"""Uploads, pins and deletions: what changes which blobs are kept. Uploads in one request, and resumable ones.

Resumable uploads are TUS 1.0.0 (creation, termination) as S5 uses it. The client says beforehand how many
bytes come and which hash they have (``hash`` in ``Upload-Metadata``, the base64url of a multihash). What it
then sends is kept as a :class:`Partial` until it is whole. It becomes a blob if its hash is the promised one;
otherwise all of it is removed, and the client must begin anew.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pnode.errors import ConfigError, StorageError
from p2pnode.files import write_atomic
from p2pnode.protocols.s5.ids import BlobHash, BlobId, parse_multihash_text
from p2pnode.storage.s5.server.bodies import Body, too_large, upload_of
from p2pnode.storage.s5.server.context import Serving, id_of, positive, stored
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.store import BLOB_MAX, DiskFullError, OwnerKey

PATH: Final = "/s5/upload/tus"
_VERSION: Final = {"Tus-Resumable": "1.0.0"}
_ABILITIES: Final = {
    **_VERSION,
    "Tus-Version": "1.0.0",
    "Tus-Extension": "creation,termination",
    "Tus-Max-Size": str(BLOB_MAX),
}
_PIECE: Final = 1 << 18
_KIND: Final = "application/offset+octet-stream"


class Tus:
    """The routes of resumable uploads."""

    def __init__(self, serving: Serving, partials: Partials) -> None:
        self._serving, self._partials = serving, partials
        self._busy: set[str] = set()

    def routes(self) -> list[Route]:
        """The routes, for Starlette."""
        return [
            Route(PATH, self._abilities, methods=["OPTIONS"]),
            Route(PATH, self._create, methods=["POST"]),
            Route(PATH + "/{id}", self._offset, methods=["HEAD"]),
            Route(PATH + "/{id}", self._append, methods=["PATCH"]),
            Route(PATH + "/{id}", self._terminate, methods=["DELETE"]),
        ]

    async def _abilities(self, _request: Request) -> Response:
        return Response(status_code=204, headers=_ABILITIES)

    async def _create(self, request: Request) -> Response:
        owner = await self._serving.access.writer(request)
        length = positive(request.headers.get("upload-length"), "Upload-Length")
        if length > BLOB_MAX:
            raise too_large(BLOB_MAX)
        expected = _promised(request.headers.get("upload-metadata", ""))
        size = await self._serving.blobs.size(expected)
        if size is not None:
            # Whoever would have uploaded it wants it kept.
            await self._serving.blobs.pin(expected, owner=owner)
            await self._serving.access.note_pin(owner, expected, size)
            msg = f"this blob is here already and is kept for you: {BlobId(expected, size).legacy_text()}"
            raise HttpError(409, msg, _VERSION)
        name = secrets.token_hex(16)
        try:
            now, busy = self._serving.wall(), frozenset(self._busy)
            begun = Partial(id=name, length=length, expected=expected, owner=owner)
            await trio.to_thread.run_sync(self._partials.make, begun, now, busy)
        except TooManyPartialsError as error:
            raise HttpError(429, str(error), {**_VERSION, "Retry-After": "60"}) from error
        if length == 0:
            await self._complete(await self._find(request, name))
        return Response(status_code=201, headers={**_VERSION, "Location": f"{PATH}/{name}"})

    async def _offset(self, request: Request) -> Response:
        partial = await self._find(request, request.path_params["id"])
        if partial.offset == partial.length:  # whole, but the server ended before it became a blob
            with self._alone(partial.id):
                await self._complete(partial)
        progress = {"Upload-Offset": str(partial.offset), "Upload-Length": str(partial.length)}
        return Response(status_code=200, headers={**_VERSION, **progress, "Cache-Control": "no-store"})

    async def _append(self, request: Request) -> Response:
        name = request.path_params["id"]
        if request.headers.get("content-type", "") != _KIND:
            raise HttpError(415, f"send the bytes as {_KIND}", _VERSION)
        with self._alone(name):
            partial = await self._find(request, name)
            if positive(request.headers.get("upload-offset"), "Upload-Offset") != partial.offset:
                msg = f"the upload is at byte {partial.offset}: ask with HEAD, go on from there"
                raise HttpError(409, msg, _VERSION)
            left = partial.length - partial.offset
            body = Body(request, bytes_max=left, stall_s=self._serving.limits.s5_stall_s)
            offset = partial.offset
            async for chunk in body:
                await trio.to_thread.run_sync(self._partials.append, name, chunk)
                offset += len(chunk)
            await trio.to_thread.run_sync(self._partials.sync, name)
            if offset == partial.length:
                await self._complete(partial)
        return Response(status_code=204, headers={**_VERSION, "Upload-Offset": str(offset)})

    async def _terminate(self, request: Request) -> Response:
        name = request.path_params["id"]
        with self._alone(name):
            await self._find(request, name)
            await trio.to_thread.run_sync(self._partials.remove, name)
        return Response(status_code=204, headers=_VERSION)

    async def _find(self, request: Request, name: str) -> Partial:
        owner = await self._serving.access.writer(request)
        partial = await trio.to_thread.run_sync(self._partials.find, name)
        if partial is None or partial.owner != owner:
            raise HttpError(404, "there is no such upload, or it is over: begin another", _VERSION)
        return partial

    async def _complete(self, partial: Partial) -> None:
        """Make it a blob. The upload is over, whether it becomes one or not."""
        blobs, access = self._serving.blobs, self._serving.access
        try:
            data = _Stored(self._partials, partial)
            blob = await blobs.put(data, owner=partial.owner, expected=partial.expected)
            await access.note_pin(partial.owner, blob.hash, blob.size)
        except StorageError:
            await trio.to_thread.run_sync(self._partials.remove, partial.id)
            raise
        await trio.to_thread.run_sync(self._partials.remove, partial.id)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        if name in self._busy:
            raise HttpError(423, "another request is sending this upload: wait for it to end", _VERSION)
        self._busy.add(name)
        try:
            yield
        finally:
            self._busy.discard(name)


class _Stored:
    """The bytes of a whole upload, for a store to take."""

    def __init__(self, partials: Partials, partial: Partial) -> None:
        self._partials, self._partial, self._at = partials, partial, 0

    def __aiter__(self) -> _Stored:
        return self

    async def __anext__(self) -> bytes:
        data = await trio.to_thread.run_sync(self._partials.read, self._partial.id, self._at, _PIECE)
        if not data:
            raise StopAsyncIteration
        self._at += len(data)
        return data


def _promised(metadata: str) -> BlobHash:
    """The ``hash`` in ``Upload-Metadata``. Raises ``HttpError`` 400, ``ProtocolError``."""
    pairs = dict(pair.strip().partition(" ")[::2] for pair in metadata.split(","))
    if "hash" not in pairs:
        msg = 'Upload-Metadata must hold "hash" and the base64 of the base64url of the multihash (1e, BLAKE3)'
        raise HttpError(400, msg, _VERSION)
    try:
        text = base64.b64decode(pairs["hash"], validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise HttpError(400, 'the "hash" in Upload-Metadata is not base64', _VERSION) from error
    return parse_multihash_text(text)


_ID: Final = re.compile(r"[0-9a-f]{32}")
_IDLE_S: Final = 600.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class TooManyPartialsError(StorageError):
    """As many uploads are under way as the server allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """An upload under way; ``offset`` bytes of ``length`` are here."""

    id: str
    length: int
    expected: BlobHash
    owner: OwnerKey
    offset: int = 0


class Partials:
    """The uploads under way, in one folder that is made where there is none. They survive a restart.

    ``<id>.json`` has the length of the blob, its hash and its owner, ``<id>.part`` the bytes so far. They are
    bounded in number, and what nobody touched for a day is removed. Every call blocks, and may come from any
    thread.
    """

    def __init__(self, folder: Path, *, count_max: int, age_max_s: float) -> None:
        self._folder, self._count_max, self._age_max_s = folder, count_max, age_max_s
        self._making = threading.Lock()
        """Held while one is made: a sweep removes single files, as a crash leaves them."""
        folder.mkdir(mode=0o700, exist_ok=True)

    def make(self, begun: Partial, now: float, busy: Collection[str] = ()) -> None:
        """Begin one, with 32 random hex digits as its id. ``busy`` are the ids that are being sent to.

        Where all places are taken, one that was left alone for ten minutes is removed, or one of an owner who
        has more than the newcomer would have. Raises ``TooManyPartialsError``.
        """
        with self._making:
            self._make_room(begun.owner, now, busy)
            self._make(begun)

    def _make_room(self, newcomer: OwnerKey, now: float, busy: Collection[str]) -> None:
        self.sweep(now)
        held = [found for path in self._folder.glob("*.part") if (found := self.find(path.stem)) is not None]
        if len(held) >= self._count_max:
            owners = Counter(each.owner for each in held)
            idle_s = {each.id: now - self._part(each.id).stat().st_mtime for each in held}
            may_go = [
                each.id
                for each in held
                if each.id not in busy
                and (idle_s[each.id] >= _IDLE_S or owners[each.owner] > owners[newcomer] + 1)
            ]
            if not may_go:
                msg = f"{self._count_max} uploads are under way: finish or delete one of them first"
                raise TooManyPartialsError(msg)
            self.remove(max(may_go, key=idle_s.__getitem__))

    def _make(self, begun: Partial) -> None:
        name = begun.id
        note = {"length": begun.length, "expected": begun.expected.hex(), "owner": begun.owner.hex()}
        try:
            self._part(name).touch(mode=0o600)
            write_atomic(self._note(name), json.dumps(note).encode(), mode=0o600)
        except (OSError, ConfigError) as error:
            self.remove(name)
            raise _explained(error) from error

    def find(self, name: str) -> Partial | None:
        """The upload of this id, if it is one."""
        if _ID.fullmatch(name) is None:
            return None
        try:
            note = json.loads(self._note(name).read_text(encoding="utf-8"))
            return Partial(
                id=name,
                length=int(note["length"]),
                expected=BlobHash(bytes.fromhex(note["expected"])),
                owner=OwnerKey(bytes.fromhex(note["owner"])),
                offset=self._part(name).stat().st_size,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def append(self, name: str, data: bytes) -> None:
        """Add to its end. Raises ``DiskFullError`` once it has added as much as there was room for."""
        try:
            with self._part(name).open("ab", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
        except OSError as error:
            raise _explained(error) from error

    def sync(self, name: str) -> None:
        """Make what was added durable."""
        handle = os.open(self._part(name), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of what has come so far."""
        with self._part(name).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def remove(self, name: str) -> None:
        """Remove its two files."""
        self._note(name).unlink(missing_ok=True)
        self._part(name).unlink(missing_ok=True)

    def sweep(self, now: float) -> None:
        """Remove what was left alone for too long, and single files that a crash left."""
        for path in [*self._folder.glob("*.part"), *self._folder.glob("*.json")]:
            name = path.stem
            whole = self._part(name).exists() and self._note(name).exists()
            if not whole or now - self._part(name).stat().st_mtime > self._age_max_s:
                self.remove(name)

    def _part(self, name: str) -> Path:
        return self._folder / f"{name}.part"

    def _note(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _explained(error: OSError | ConfigError) -> StorageError:
    cause = error.__cause__ if isinstance(error, ConfigError) else error
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return DiskFullError("the disk of this node is full: free space on it, then go on with the upload")
    return StorageError(f"this node can't write a partial upload ({error}): look at its disk")


class Uploads:
    """The routes of uploads in one request, pins and deletions."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """The routes, for Starlette."""
        return [
            Route("/s5/upload", self._may_upload, methods=["HEAD"]),
            Route("/s5/upload", self._upload, methods=["POST"]),
            Route("/s5/pin/{cid}", self._pin, methods=["POST"]),
            Route("/s5/delete/{cid}", self._delete, methods=["DELETE"]),
        ]

    async def _may_upload(self, request: Request) -> Response:
        await self._serving.access.writer(request)
        return Response()

    async def _upload(self, request: Request) -> Response:
        access, limits = self._serving.access, self._serving.limits
        owner = await access.writer(request)
        data = upload_of(request, bytes_max=BLOB_MAX, stall_s=limits.s5_stall_s)
        blob = await self._serving.blobs.put(data, owner=owner)
        await access.note_pin(owner, blob.hash, blob.size)
        return JSONResponse({"cid": blob.legacy_text()})

    async def _pin(self, request: Request) -> Response:
        owner = await self._serving.access.writer(request)
        blob: BlobId = await stored(self._serving, id_of(request))
        await self._serving.blobs.pin(blob.hash, owner=owner)
        await self._serving.access.note_pin(owner, blob.hash, blob.size)
        return Response(status_code=204)

    async def _delete(self, request: Request) -> Response:
        owner = await self._serving.access.writer(request)
        if not self._serving.options.allow_delete:
            raise HttpError(403, "deleting is off at this node: let the lease run out, or ask its owner")
        blob = await stored(self._serving, id_of(request))
        await self._serving.blobs.unpin(blob.hash, owner=owner)
        await self._serving.access.note_unpin(owner, blob.hash)
        return Response(status_code=204)
