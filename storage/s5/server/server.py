"""The S5 node's HTTP API: one server over one store, and how a node starts it (``--s5-listen``).

Without a token, for which there is no flag, the API is for programs on this machine, and for the web pages
whose origins are named. With accounts each program or page has one, by an Ed25519 key, and its share of the
store; without accounts all that is stored counts for the one owner in :class:`S5Options`. To other S5 nodes
the server has a key of its own, so that nothing of theirs is ever signed with the peer key. Sockets, and an
end that no client can put off, are the work of :mod:`p2pnode.http_server`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.files import off_the_loop
from p2pnode.http_server import HttpBounds, HttpServer
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import load_or_create_seed
from p2pnode.protocols.s5.messages import FRAME_MAX
from p2pnode.protocols.s5.nodes import NodeId, PeerUri
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.s5.peer import S5Node
from p2pnode.storage.s5.server.accounts import Access, AccountBook
from p2pnode.storage.s5.server.app import make_app
from p2pnode.storage.s5.server.context import Serving, WatchedRegistry
from p2pnode.storage.s5.server.options import S5Options, check_origin, check_s5_listen
from p2pnode.storage.s5.server.uploads import Partials
from p2pnode.storage.store import BlobStore, OwnerKey, Registry
from p2pnode.tasks import background_task

_LISTEN_OPTION: Final = "--s5-listen"

log = structlog.get_logger(__name__)


class S5Server:
    """One server over one store. Whatever else sets entries must do so through its ``registry``."""

    def __init__(
        self,
        blobs: BlobStore,
        registry: Registry,
        options: S5Options,
        *,
        limits: Limits = DEFAULT_LIMITS,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.registry = registry if isinstance(registry, WatchedRegistry) else WatchedRegistry(registry)
        self._blobs, self._options, self._limits, self._wall = blobs, options, limits, wall
        self._http: HttpServer | None = None
        self._stopping, self._ended = trio.Event(), trio.Event()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:5050``; empty until it runs."""
        return self._http.url if self._http is not None else ""

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._http.connections if self._http is not None else 0

    @property
    def node(self) -> S5Node | None:
        """What it is to other S5 nodes, where it has a key; None until it runs."""
        options = self._options
        if options.node is None or options.sign is None or self._http is None:
            return None
        uri = PeerUri(host=options.host, port=self._http.port, tls=False, node=options.node)
        return S5Node(
            id=options.node,
            sign=options.sign,
            uris=(uri.text(),),
            blobs=self._blobs,
            registry=self.registry,
            wall=self._wall,
        )

    def stop(self) -> None:
        """Let requests under way end, then end :meth:`run`."""
        self._stopping.set()  # the websockets say goodbye
        if self._http is not None:
            self._http.stop()

    async def wait_ended(self) -> None:
        """Wait until :meth:`run` is over, and with it the last connection."""
        await self._ended.wait()

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped; starts with the url. Raises ``ConfigError`` for an address it can't take."""
        options, limits = self._options, self._limits
        http = self._http = await HttpServer.bind(
            options.host, options.port, what="the S5 API", option=_LISTEN_OPTION, bounds=_bounds(limits)
        )
        if self._stopping.is_set():
            http.stop()
        book: AccountBook | None = None
        try:
            book = await trio.to_thread.run_sync(self._open_book) if options.accounts else None
            partials = await trio.to_thread.run_sync(self._open_partials)
            serving = Serving(
                blobs=self._blobs,
                registry=self.registry,
                options=options,
                limits=limits,
                access=Access(options, book),
                book=book,
                wall=self._wall,
                stopping=self._stopping,
            )
            log.info("s5.listening", url=http.url, folder=str(options.folder), accounts=book is not None)
            await http.run(make_app(serving, partials, self.node), task_status=task_status)
        finally:
            http.close()
            if book is not None:
                with trio.CancelScope(shield=True):
                    await off_the_loop(book.close)
            self._ended.set()

    def _open_partials(self) -> Partials:
        limits = self._limits
        self._options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partials = Partials(
            self._options.folder / "partial",
            count_max=limits.s5_partials_max,
            age_max_s=limits.s5_partial_age_max_s,
        )
        partials.sweep(self._wall())
        return partials

    def _open_book(self) -> AccountBook:
        limits = self._limits
        self._options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return AccountBook(
            self._options.folder / "accounts.sqlite",
            accounts_max=limits.s5_accounts_max,
            tokens_max=limits.s5_account_tokens_max,
        )


def _bounds(limits: Limits) -> HttpBounds:
    return HttpBounds(
        connections_max=limits.s5_connections_max,
        stall_s=limits.s5_stall_s,
        linger_s=limits.s5_linger_s,
        drain_s=limits.drain_deadline_s,
        websocket_message_max=FRAME_MAX,
    )


@asynccontextmanager
async def serving_s5(
    listen: str,
    data: DataDir,
    store: LocalStore,
    owner: OwnerKey,
    *,
    accounts: bool = False,
    origins: Sequence[str] = (),
    limits: Limits,
    wall: Callable[[], float] = time.time,
) -> AsyncIterator[str]:
    """The API over ``store`` until the block ends, at the url it gives. Raises ``ConfigError``."""
    host, port = check_s5_listen(listen)
    data.s5.mkdir(mode=0o700, exist_ok=True)
    seed = await off_the_loop(partial(load_or_create_seed, data.s5 / "node.key"))
    key = Ed25519PrivateKey.from_private_bytes(seed)
    options = S5Options(
        owner=owner,
        folder=data.s5,
        host=host,
        port=port,
        accounts=accounts,
        origins=frozenset(map(check_origin, origins)),
        node=NodeId(key.public_key().public_bytes_raw()),
        sign=key.sign,
    )
    server = S5Server(store, store, options, limits=limits, wall=wall)
    async with background_task(server.run):
        yield server.url
        server.stop()
        with trio.move_on_after(limits.close_deadline_s):
            await server.wait_ended()
