"""The S5 API as one ASGI application: its routes, and what every request passes first."""

from __future__ import annotations

from importlib.metadata import version

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from p2pnode.errors import P2PNodeError
from p2pnode.http_server import Front
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
    return Front(
        _Left(app),
        names=options.names | {options.host},
        origins=options.origins,
        allow="p2pnode join --s5-origin ORIGIN",
        refuse=_refused,
    )


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


log = structlog.get_logger(__name__)


class _Left:
    """The API, with an end for requests whose client has left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            log.debug("s5.client_left")


def _refused(why: str) -> ASGIApp:
    return answer(HttpError(403, why))
