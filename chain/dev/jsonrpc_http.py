"""JSON-RPC over HTTP/1.1 on loopback, for the development chain: an ASGI application, and its server.

A web page must not drive it: only loopback names are taken as ``Host`` (so a name that was rebound to
loopback is refused), no request with an ``Origin``, and only ``application/json``, which a page can't send
without asking first. Sizes and waits are bounded here and in ``HttpServer``. What a request asks is not known
here: ``answer`` turns a body into a body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Never

import trio

from p2pnode.errors import ConfigError
from p2pnode.http_server import (
    AsgiApp,
    HttpBounds,
    HttpServer,
    Message,
    Receive,
    Send,
    names_this_machine,
)
from p2pnode.scopes import is_loopback

BODY_MAX: Final = 1 << 20
REQUEST_DEADLINE_S: Final = 30.0
_BOUNDS: Final = HttpBounds(idle_s=120.0)
_JSON: Final = b"application/json"

Answer = Callable[[bytes], Awaitable[bytes]]


async def serve_http(
    answer: Answer, *, host: str, port: int, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> Never:
    """Serve until cancelled; starts with the port. Raises ``ConfigError`` where it can't listen."""
    if not is_loopback(host):
        msg = f"a development chain listens on loopback only, not on {host}: anybody could move its money"
        raise ConfigError(msg)
    server = await HttpServer.bind(host, port, what="the development chain", option="--port", bounds=_BOUNDS)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, json_rpc_app(answer))
        task_status.started(server.port)
        await trio.sleep_forever()
    raise AssertionError  # the nursery ends with its cancellation only


def json_rpc_app(answer: Answer) -> AsgiApp:
    """An ASGI application that answers each request's body with ``answer``."""
    return partial(_serve, answer)


class _Refused(Exception):  # noqa: N818 - an answer, not a fault
    """An HTTP status instead of an answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def _serve(answer: Answer, scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close"})
        return
    try:
        _check(scope)
        status, body = 200, await answer(await _body(receive))
    except _Refused as refused:
        status, body = refused.status, str(refused).encode()
    kind = _JSON if status == 200 else b"text/plain"  # noqa: PLR2004 - OK
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    with trio.move_on_after(REQUEST_DEADLINE_S):
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if len(body) > BODY_MAX:
                raise _Refused(413, f"a request holds at most {BODY_MAX} bytes")
            if not message["more_body"]:
                return bytes(body)
    raise _Refused(408, f"the whole request must come within {REQUEST_DEADLINE_S:g} seconds")


def _check(scope: Message) -> None:
    headers = dict(scope["headers"])
    if not names_this_machine(headers.get(b"host", b"").decode("ascii", "replace")):
        raise _Refused(403, "only for programs on this machine: the Host must be a loopback address")
    if b"origin" in headers:
        raise _Refused(403, "not for web pages")
    if scope["method"] != "POST":
        raise _Refused(405, "send JSON-RPC with POST")
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _JSON:
        raise _Refused(415, "the content type must be application/json")
