"""``POST /s5/upload``, pins and deletions: what changes which blobs are kept."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pnode.protocols.s5.ids import BlobId
from p2pnode.storage.s5.server.bodies import upload_of
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.s5.server.serving import Serving, id_of, stored
from p2pnode.storage.store import BLOB_MAX


class Uploads:
    """The routes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """For Starlette."""
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
