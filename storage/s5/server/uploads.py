"""Uploads that can be resumed: TUS 1.0.0 (creation, termination) as S5 uses it.

The client says beforehand how many bytes come and which hash they have (``hash`` in ``Upload-Metadata``, the
base64url of a multihash). What it then sends is kept in :mod:`partials` until it is whole, and becomes a blob
if its hash is the promised one; otherwise all of it is gone and the client must begin anew.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2pnode.errors import StorageError
from p2pnode.protocols.s5.ids import BlobHash, BlobId, parse_multihash_text
from p2pnode.storage.s5.server.bodies import Body, too_large
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.s5.server.partials import Partial, Partials, TooManyPartialsError
from p2pnode.storage.s5.server.serving import Serving, positive
from p2pnode.storage.store import BLOB_MAX

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
    """The routes."""

    def __init__(self, serving: Serving, partials: Partials) -> None:
        self._serving, self._partials = serving, partials
        self._busy: set[str] = set()

    def routes(self) -> list[Route]:
        """For Starlette."""
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
            # whoever would have uploaded it wants it kept
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
        if partial.offset == partial.length:  # whole, but we ended before it was a blob
            with self._alone(partial.id):
                await self._complete(partial)
        told = {"Upload-Offset": str(partial.offset), "Upload-Length": str(partial.length)}
        return Response(status_code=200, headers={**_VERSION, **told, "Cache-Control": "no-store"})

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
        """Make it a blob. Whether it becomes one or not, the upload is over."""
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
    """``hash`` in ``Upload-Metadata``. Raises ``HttpError`` 400, ``ProtocolError``."""
    pairs = dict(pair.strip().partition(" ")[::2] for pair in metadata.split(","))
    if "hash" not in pairs:
        msg = 'Upload-Metadata must hold "hash" and the base64 of the base64url of the multihash (1e, BLAKE3)'
        raise HttpError(400, msg, _VERSION)
    try:
        text = base64.b64decode(pairs["hash"], validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise HttpError(400, 'the "hash" in Upload-Metadata is not base64', _VERSION) from error
    return parse_multihash_text(text)
