"""The S5 API as one ASGI application: its routes, and what every request passes first."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pnode.errors import P2PNodeError
from p2pnode.http_server import names_this_machine
from p2pnode.protocols.s5.nodes import node_text
from p2pnode.storage.s5.peer import S5Node
from p2pnode.storage.s5.server.account_api import AccountApi
from p2pnode.storage.s5.server.context import Serving
from p2pnode.storage.s5.server.downloads import Downloads
from p2pnode.storage.s5.server.errors import HttpError, answer, on_error
from p2pnode.storage.s5.server.peers import Peers
from p2pnode.storage.s5.server.registry import RegistryApi
from p2pnode.storage.s5.server.uploads import Partials, Tus, Uploads

_HEADERS_SHOWN = ("Location", "Upload-Offset", "Upload-Length", "Tus-Resumable", "ETag", "Content-Range")


async def _no_accounts(_request: Request) -> Response:
    msg = "this node has no accounts: its owner turns them on with `p2pnode join --s5-accounts`"
    raise HttpError(404, msg)


_NO_ACCOUNTS = tuple(
    Route(path, _no_accounts, methods=["GET", "POST"]) for path in ("/s5/account", "/s5/account/{rest:path}")
)


def make_app(serving: Serving, partials: Partials, node: S5Node | None) -> ASGIApp:
    """The whole API. To other S5 nodes it is ``node``, if it is anything."""
    routes: list[BaseRoute] = [
        *Uploads(serving).routes(),
        *Tus(serving, partials).routes(),
        *RegistryApi(serving).routes(),
        *(AccountApi(serving, serving.book).routes() if serving.book is not None else _NO_ACCOUNTS),
        *(Peers(serving, node).routes() if node is not None else ()),
        *_NodeApi(serving, node).routes(),
        *Downloads(serving).routes(),
    ]
    origins = sorted(serving.options.origins)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=_HEADERS_SHOWN,
        allow_credentials=True,
        allow_private_network=True,  # Chromium asks before a page of the web reaches this machine
    )
    app = Starlette(
        routes=routes,
        middleware=[cors] if origins else [],
        exception_handlers=dict.fromkeys((HttpError, P2PNodeError, HTTPException, Exception), on_error),
    )
    app.router.redirect_slashes = False
    options = serving.options
    return Front(app, names=options.names | {options.host}, origins=options.origins)


class _NodeApi:
    """The routes on which the node describes itself."""

    def __init__(self, serving: Serving, node: S5Node | None) -> None:
        self._serving, self._node = serving, node
        # Read from the disk once: a request must open no file, since a node may be short of descriptors.
        self._version_json = {"node": f"p2pnode {version('p2pnode')}"}

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/s5/version", self._version, methods=["GET"]),
            Route("/s5/p2p/nodes", self._nodes, methods=["GET"]),
        ]

    async def _version(self, _request: Request) -> Response:
        return JSONResponse(self._version_json)

    async def _nodes(self, request: Request) -> Response:
        await self._serving.access.reader(request)
        node = self._node
        nodes = [] if node is None else [{"id": node_text(node.id), "uris": list(node.uris)}]
        return JSONResponse({"nodes": nodes})


_SAFE_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)

log = structlog.get_logger(__name__)


class Front:
    """Passes on what is meant for us, and no request of a web page whose origin is not configured.

    A page of any site can make a browser send requests to this machine, directly or through a name whose
    address it changes to loopback. So the ``Host`` must be a name of ours, and an ``Origin`` one of those
    that were configured.
    """

    def __init__(self, app: ASGIApp, *, names: Collection[str], origins: Collection[str]) -> None:
        self._app, self._names, self._origins = app, names, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope))
        if scope["type"] == "websocket":
            if refusal is not None:
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
                return
            await self._app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_SAFE_HEADERS]}
            await send(message)

        if refusal is not None:
            await answer(refusal)(scope, receive, send_safe)
            return
        try:
            await self._app(scope, receive, send_safe)
        except ClientDisconnect:
            log.debug("s5.client_left")

    def _refusal(self, headers: Headers) -> HttpError | None:
        if not names_this_machine(headers.get("host", ""), self._names):
            return HttpError(403, "the Host header names another machine: use the address that is served")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins:
            msg = (
                "web pages of this origin may not use this node: its owner allows them with "
                "`p2pnode join --s5-origin ORIGIN`"
            )
            return HttpError(403, msg)
        return None
