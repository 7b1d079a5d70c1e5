"""The routes put together: one ASGI application. Sockets and shutdown are not known here."""

from __future__ import annotations

from importlib.metadata import version

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from p2pnode.errors import P2PNodeError
from p2pnode.protocols.s5.nodes import node_text
from p2pnode.storage.s5.peer import S5Node
from p2pnode.storage.s5.server.account_api import AccountApi
from p2pnode.storage.s5.server.downloads import Downloads
from p2pnode.storage.s5.server.errors import HttpError, on_error
from p2pnode.storage.s5.server.front import Front
from p2pnode.storage.s5.server.partials import Partials
from p2pnode.storage.s5.server.peers import Peers
from p2pnode.storage.s5.server.posts import Uploads
from p2pnode.storage.s5.server.registry import RegistryApi
from p2pnode.storage.s5.server.serving import Serving
from p2pnode.storage.s5.server.uploads import Tus

_HEADERS_SHOWN = ("Location", "Upload-Offset", "Upload-Length", "Tus-Resumable", "ETag", "Content-Range")


async def _no_accounts(_request: Request) -> Response:
    msg = "this node has no accounts: its owner turns them on with `p2pnode join --s5-accounts`"
    raise HttpError(404, msg)


_NO_ACCOUNTS = tuple(
    Route(path, _no_accounts, methods=["GET", "POST"]) for path in ("/s5/account", "/s5/account/{rest:path}")
)


def make_app(serving: Serving, partials: Partials, node: S5Node | None) -> ASGIApp:
    """The whole API; to other S5 nodes it is ``node``."""
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
        app,
        names=options.names | {options.host},
        origins=options.origins,
        linger_s=serving.limits.s5_linger_s,
    )


class _NodeApi:
    """What the node says of itself."""

    def __init__(self, serving: Serving, node: S5Node | None) -> None:
        self._serving, self._node = serving, node
        # Read from the disk once: a request opens no file, which a node short of descriptors couldn't.
        self._told = {"node": f"p2pnode {version('p2pnode')}"}

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/s5/version", self._version, methods=["GET"]),
            Route("/s5/p2p/nodes", self._nodes, methods=["GET"]),
        ]

    async def _version(self, _request: Request) -> Response:
        return JSONResponse(self._told)

    async def _nodes(self, request: Request) -> Response:
        await self._serving.access.reader(request)
        node = self._node
        nodes = [] if node is None else [{"id": node_text(node.id), "uris": list(node.uris)}]
        return JSONResponse({"nodes": nodes})
