"""Request bodies as they stream in, raw or inside a form: bounded in bytes, and in time between chunks.

Each is an asynchronous iterator that a store reads while it hashes and writes, so only one chunk is in
memory. Where the client goes away the iterator raises, so that the store keeps nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from p2pnode.storage.s5.server.errors import HttpError

FIELD: Final = b"file"
_FORM_OVERHEAD_MAX: Final = 1 << 16
"""At most so many bytes of a form are not the file: boundaries, headers, small fields."""
_JSON_MAX: Final = 1 << 14


class Body:
    """The raw body. Reading it raises ``HttpError`` 413 or 408, and ``ClientDisconnect``.

    ``shown_max`` is the bound that the error names, where it is another than ``bytes_max``.
    """

    def __init__(
        self, request: Request, *, bytes_max: int, stall_s: float, shown_max: int | None = None
    ) -> None:
        self._request, self._bytes_max, self._stall_s = request, bytes_max, stall_s
        self._bytes, self._ended = 0, False
        self._shown_max = bytes_max if shown_max is None else shown_max
        declared = content_length(request)
        if declared is not None and declared > bytes_max:
            raise too_large(self._shown_max)

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            try:
                with trio.fail_after(self._stall_s):
                    message = await self._request.receive()
            except trio.TooSlowError as error:
                msg = f"nothing came for {self._stall_s:g} s: send it again"
                raise HttpError(408, msg) from error
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            self._ended = not message.get("more_body", False)
            self._bytes += len(chunk)
            if self._bytes > self._bytes_max:
                raise too_large(self._shown_max)
            if chunk:
                return chunk
        raise StopAsyncIteration


class FormFile:
    """The bytes of the part called ``file`` in a ``multipart/form-data`` body; other parts are skipped."""

    def __init__(self, request: Request, boundary: bytes, *, bytes_max: int, stall_s: float) -> None:
        whole_max = bytes_max + _FORM_OVERHEAD_MAX
        self._body = Body(request, bytes_max=whole_max, stall_s=stall_s, shown_max=bytes_max)
        self._bytes, self._bytes_max = 0, bytes_max
        self._ready: deque[bytes] = deque()
        self._name, self._value = b"", b""
        self._inside = self._found = self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _bad_form() from error

    def __aiter__(self) -> FormFile:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            try:
                chunk = await anext(self._body)
            except StopAsyncIteration:
                if not (self._complete and self._found):
                    raise _bad_form() from None
                raise
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _bad_form() from error
        found = self._ready.popleft()
        self._bytes += len(found)
        if self._bytes > self._bytes_max:
            raise too_large(self._bytes_max)
        return found

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._inside = parse_options_header(self._value)[1].get(b"name") == FIELD and not self._found
        self._name = self._value = b""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._ready.append(data[start:end])

    def _on_part_end(self) -> None:
        self._found, self._inside = self._found or self._inside, False

    def _on_end(self) -> None:
        self._complete = True


def upload_of(request: Request, *, bytes_max: int, stall_s: float) -> Body | FormFile:
    """The uploaded bytes: the form's ``file``, or the whole body. Raises ``HttpError``."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.lower() != b"multipart/form-data":
        return Body(request, bytes_max=bytes_max, stall_s=stall_s)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _bad_form()
    return FormFile(request, boundary, bytes_max=bytes_max, stall_s=stall_s)


async def whole(request: Request, *, stall_s: float) -> bytes:
    """The whole of a small body, such as JSON. Raises ``HttpError``."""
    body = Body(request, bytes_max=_JSON_MAX, stall_s=stall_s)
    return b"".join([chunk async for chunk in body])


def content_length(request: Request) -> int | None:
    """The length that the client declared; None where it did not."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def too_large(bytes_max: int) -> HttpError:
    """The error for a body of more bytes than are taken."""
    return HttpError(413, f"at most {bytes_max} bytes are taken at once: send less, in several blobs")


def _bad_form() -> HttpError:
    return HttpError(400, 'not a whole multipart form with a part named "file": send that, or the raw bytes')
