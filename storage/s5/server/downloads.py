"""Downloads of blobs by their ids: whole, or one range. Read in pieces, sent as fast as the client reads."""

from __future__ import annotations

import mimetypes
import re
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from p2pnode.protocols.s5.ids import BlobId, multihash_text
from p2pnode.storage.s5.server.context import Serving, id_of, stored
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.store import BlobStore, NoBlobError

_PIECE: Final = 1 << 18
_FOR_EVER: Final = "private, max-age=31536000, immutable"


class Downloads:
    """The routes of downloads."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """The last one matches any single segment, so it must come after all other routes."""
        paths = ("/s5/download/{cid}", "/s5/blob/{cid}", "/{cid}")
        return [Route(path, self._get, methods=["GET", "HEAD"]) for path in paths]

    async def _get(self, request: Request) -> Response:
        await self._serving.access.reader(request)
        blob = await stored(self._serving, id_of(request))
        etag = f'"{multihash_text(blob.hash)}"'
        headers = {"ETag": etag, "Cache-Control": _FOR_EVER, "Accept-Ranges": "bytes"}
        if _matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        wanted = request.headers.get("range") if request.method == "GET" else None
        if request.headers.get("if-range", etag) != etag:
            wanted = None
        try:
            part = parse_range(wanted, blob.size)
        except UnsatisfiableError as error:
            msg = f"the blob has {blob.size} bytes: ask for a range within it"
            raise HttpError(416, msg, {"Content-Range": f"bytes */{blob.size}"}) from error
        headers["Content-Type"] = _kind(str(request.path_params["cid"]))
        return _BlobResponse(self._serving.blobs, blob, part, headers)


class _BlobResponse(Response):
    """A response whose body is never in memory as a whole."""

    def __init__(self, blobs: BlobStore, blob: BlobId, part: Slice | None, headers: dict[str, str]) -> None:
        self._blobs, self._blob = blobs, blob
        self._part = part or Slice(0, blob.size)
        headers["Content-Length"] = str(self._part.length)
        if part is not None:
            headers["Content-Range"] = part.content_range(blob.size)
        super().__init__(None, 200 if part is None else 206, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        offset, end = self._part.offset, self._part.offset + self._part.length
        while scope["method"] != "HEAD" and offset < end:
            data = await self._blobs.read(self._blob.hash, offset, min(_PIECE, end - offset))
            if not data:
                msg = "the blob went while it was sent"
                raise NoBlobError(msg)
            offset += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _matches(header: str | None, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in tags or "*" in tags


def _kind(name: str) -> str:
    """The media type by the extension. A page is no danger: every answer has a header that sandboxes it."""
    dot = name.find(".")
    guessed = mimetypes.guess_type(f"blob{name[dot:]}", strict=True)[0] if dot >= 0 else None
    return guessed or "application/octet-stream"


_RANGE: Final = re.compile(
    r"bytes=[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*", re.ASCII | re.IGNORECASE
)


class UnsatisfiableError(Exception):
    """No byte of the range is in the blob."""


@dataclass(frozen=True, slots=True)
class Slice:
    """``length`` bytes, at least one, from ``offset``."""

    offset: int
    length: int

    def content_range(self, size: int) -> str:
        """The value of ``Content-Range`` for a blob of ``size`` bytes."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{size}"


def parse_range(header: str | None, size: int) -> Slice | None:
    """The slice of ``size`` bytes that a ``Range`` header asks for (RFC 9110, 14); None means all of them.

    Several ranges at once and unknown units are ignored, as the RFC allows: all is sent then. Raises
    ``UnsatisfiableError``.
    """
    matched = _RANGE.fullmatch(header or "")
    if matched is None:
        return None
    first, last, suffix = matched.groups()
    if first is None:
        length = min(int(suffix), size)
        offset = size - length
    else:
        offset = int(first)
        if last and int(last) < offset:
            return None
        length = min(int(last) + 1 if last else size, size) - offset
    if length <= 0:
        raise UnsatisfiableError
    return Slice(offset, length)
