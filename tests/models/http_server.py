"""A loopback HTTP server for downloads, which misbehaves as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import h11
import trio


@dataclass
class Behaviour:
    """What the server does."""

    content: bytes = b""
    files: dict[str, bytes] | None = None
    """Contents by path, with the slash, in the place of one ``content`` everywhere; 404 for any other."""
    etag: str | None = '"one"'
    etag_after: str | None = None
    """The ETag from the second request on."""
    cut_after: int | None = None
    """The first request's connection is dropped after so many bytes of the body."""
    ranges: bool = True
    status: int | None = None
    status_times: int = 1 << 30
    location: str | None = None
    """Where a redirect leads."""
    claim: int | None = None
    """A Content-Length that isn't so."""
    requests: list[dict[str, str]] = field(default_factory=list)
    """Their headers, and ``path``."""


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[str]:
    """Run a server that behaves like this; gives its base address."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, partial(_answer, behaviour), 0, host="127.0.0.1")
        )
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def _answer(behaviour: Behaviour, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive_some())
    if not isinstance(event, h11.Request):
        return
    headers = {name.decode(): value.decode() for name, value in event.headers}
    first, path = not behaviour.requests, event.target.decode()
    behaviour.requests.append(headers | {"path": path})
    etag = behaviour.etag if first or behaviour.etag_after is None else behaviour.etag_after
    status, body, extra = 200, behaviour.content, list[tuple[str, str]]()
    if behaviour.files is not None:
        status, body = (200, behaviour.files[path]) if path in behaviour.files else (404, b"")
    wanted = headers.get("range")
    if behaviour.status is not None and len(behaviour.requests) <= behaviour.status_times:
        status, body = behaviour.status, b""
    elif status == 200 and wanted and behaviour.ranges and headers.get("if-range") == etag:
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            status, body = 416, b""
        else:
            extra.append(("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}"))
            status, body = 206, body[start:]
    if behaviour.location is not None:
        extra.append(("Location", behaviour.location))
    if etag:
        extra.append(("ETag", etag))
    length = behaviour.claim if behaviour.claim is not None else len(body)
    # Written by hand, because h11 would not send what isn't so.
    lines = [f"HTTP/1.1 {status} Fine", f"Content-Length: {length}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in extra]
    cut = behaviour.cut_after if first else None
    try:
        await stream.send_all("\r\n".join([*lines, "", ""]).encode() + body[:cut])
        await stream.send_eof()
    except (trio.BrokenResourceError, OSError):
        pass  # the client hung up: a too long file is refused before it ends
    await stream.aclose()
