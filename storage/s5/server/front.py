"""What every request passes first: is it meant for us, and is it from a program rather than a web page?

A page of any site can make a browser send requests to this machine, directly or through a name that was
rebound to it. So the ``Host`` must be a name of ours, and an ``Origin`` one that was configured. An answer
that is given before all of the body was read is followed by reading on for a moment: a connection closed
with bytes unread is reset, and the client would never see why it was refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import structlog
import trio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pnode.scopes import is_loopback
from p2pnode.storage.s5.server.errors import HttpError, answer

_SAFE_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)

log = structlog.get_logger(__name__)


class Front:
    """An ASGI app around another."""

    def __init__(
        self, app: ASGIApp, *, names: Collection[str], origins: Collection[str], linger_s: float
    ) -> None:
        self._app, self._names, self._origins, self._linger_s = app, names, origins, linger_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope))
        if scope["type"] == "websocket":
            if refusal is not None:
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
                return
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._linger_s)
        if refusal is not None:
            await answer(refusal)(scope, exchange.receive, exchange.send)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            log.debug("s5.client_left")

    def _refusal(self, headers: Headers) -> HttpError | None:
        if not self._is_ours(headers.get("host", "")):
            return HttpError(403, "the Host header names another machine: use the address that is served")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins:
            msg = (
                "web pages of this origin may not use this node: its owner allows them with "
                "`p2pnode join --s5-origin ORIGIN`"
            )
            return HttpError(403, msg)
        return None

    def _is_ours(self, host: str) -> bool:
        name, colon, port = host.rpartition(":")
        bare = name if colon and port.isdigit() else host
        return is_loopback(bare) or bare.strip("[]") in self._names


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, linger_s: float) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send, self._linger_s = receive, send, linger_s
        self._read = "content-length" not in headers and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_SAFE_HEADERS]}
        elif not self._read and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            message = {"type": "http.response.body", "body": b""}
            with trio.move_on_after(self._linger_s):
                while not self._read:
                    await self.receive()
        await self._send(message)
