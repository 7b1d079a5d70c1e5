"""The S5 server: sockets, connections, and an end that no client can put off.

::

    stop()        no new connection; what is under way may end, until ``drain_deadline_s``; then all are cut
    cancelled     all connections are cut at once
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from p2pnode.errors import ConfigError
from p2pnode.files import off_the_loop
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.node.beside import beside
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import load_or_create_seed
from p2pnode.protocols.s5.messages import FRAME_MAX
from p2pnode.protocols.s5.nodes import NodeId, PeerUri
from p2pnode.scopes import is_loopback
from p2pnode.storage.s5.peer import S5Node
from p2pnode.storage.s5.server.accounts import Access, AccountBook
from p2pnode.storage.s5.server.app import make_app
from p2pnode.storage.s5.server.context import Serving, WatchedRegistry
from p2pnode.storage.s5.server.options import S5Options, check_origin, parse_listen
from p2pnode.storage.s5.server.uploads import Partials
from p2pnode.storage.store import BlobStore, OwnerKey, Registry
from p2pnode.tasks import Guard, serve_sockets

if TYPE_CHECKING:
    from p2pnode.storage.local.store import LocalStore


_HEADERS_MAX: Final = 16_384
_IDLE_S: Final = 30
_PING_S: Final = 20.0

log = structlog.get_logger(__name__)


class S5Server:
    """One server over one store. ``registry`` tells of what is set: hand it on to who else sets entries."""

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
        self._guard = Guard()
        self._stopping = trio.Event()
        self._context = WorkerContext(None)
        self._open: set[GuardedStream] = set()
        self._none_open, self._ended = trio.Event(), trio.Event()
        self._url, self._port = "", 0

    @property
    def url(self) -> str:
        """``http://127.0.0.1:5050``; known once it runs."""
        return self._url

    @property
    def node(self) -> S5Node | None:
        """Who it is to other S5 nodes, if it is anybody; known once it runs."""
        options = self._options
        if options.node is None or options.sign is None:
            return None
        uri = PeerUri(host=options.host, port=self._port, tls=False, node=options.node)
        return S5Node(
            id=options.node,
            sign=options.sign,
            uris=(uri.text(),),
            blobs=self._blobs,
            registry=self.registry,
            wall=self._wall,
        )

    def stop(self) -> None:
        """Let what is under way end, then end."""
        self._stopping.set()

    async def wait_ended(self) -> None:
        """Until the last connection is over."""
        await self._ended.wait()

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped; starts with the url. Raises ``ConfigError`` for an address it can't take."""
        listeners = await self._listen()
        folder = self._options.folder
        book = await trio.to_thread.run_sync(self._open_book) if self._options.accounts else None
        try:
            partials = await trio.to_thread.run_sync(self._open_partials)
            serving = Serving(
                blobs=self._blobs,
                registry=self.registry,
                options=self._options,
                limits=self._limits,
                access=Access(self._options, book),
                book=book,
                wall=self._wall,
                stopping=self._stopping,
            )
            log.info("s5.listening", url=self._url, folder=str(folder), accounts=book is not None)
            await self._serve(
                ASGIWrapper(cast("Any", make_app(serving, partials, self.node))), listeners, task_status
            )
        finally:
            for listener in listeners:
                listener.socket.close()
            if book is not None:
                with trio.CancelScope(shield=True):
                    await off_the_loop(book.close)
            self._ended.set()

    async def _serve(
        self, app: ASGIWrapper, listeners: list[trio.SocketListener], task_status: trio.TaskStatus[str]
    ) -> None:
        config = _config()
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as accepting:
                    handler = partial(self._guard.run, partial(self._connection, app, config))
                    await accepting.start(
                        partial(serve_sockets, handler, listeners, what=self._url, connections=connections)
                    )
                    task_status.started(self._url)
                    await self._stopping.wait()
                    accepting.cancel_scope.cancel()
                await self._context.terminated.set()  # hypercorn's word for: close what is idle
                with trio.move_on_after(self._limits.drain_deadline_s):
                    while self._open:
                        self._none_open = trio.Event()
                        await self._none_open.wait()
            finally:
                for stream in list(self._open):
                    stream.cut()

    async def _connection(self, app: ASGIWrapper, config: Config, stream: trio.SocketStream) -> None:
        """One connection. Whatever is wrong with it, it alone ends."""
        guarded = GuardedStream(stream, self._limits.s5_stall_s)
        if len(self._open) >= self._limits.s5_connections_max:
            guarded.cut()
            return
        self._open.add(guarded)
        try:
            with guarded.scope:
                state = ConnectionState({})
                await TCPServer(app, config, self._context, state, cast("Any", guarded)).run()
        finally:
            stream.socket.close()
            self._open.discard(guarded)
            if not self._open:
                self._none_open.set()

    async def _listen(self) -> list[trio.SocketListener]:
        host, port = self._options.host, self._options.port
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            msg = (
                f"the S5 API can't listen on {host} port {port} ({error.strerror or error}): "
                "stop what uses it, or choose another with --s5-listen"
            )
            raise ConfigError(msg) from error
        shown = f"[{host}]" if ":" in host else host
        self._port = int(listeners[0].socket.getsockname()[1])
        self._url = f"http://{shown}:{self._port}"
        return listeners

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


def _config() -> Config:
    config = Config()
    config.errorlog = config.accesslog = None  # our own log tells what matters, without addresses and ids
    config.include_server_header = False
    config.h11_max_incomplete_size = _HEADERS_MAX
    config.websocket_max_message_size = FRAME_MAX
    config.websocket_ping_interval = _PING_S
    config.keep_alive_timeout = _IDLE_S
    return config


# A connection that a silent client can't hold open, and that can be cut at once.
#
# Hypercorn's trio worker shields each send from cancellation and gives it no deadline: one client that
# doesn't read keeps the worker from ever ending. Inside the shield a deadline still works, and so does
# closing
# the socket: both are here, and nothing of hypercorn is patched. Whoever cuts a connection cancels what runs
# on it as well: hypercorn would leave its reader waiting for a request that nobody takes any more.


_PIECE: Final = 1 << 16
"""Bytes that have to leave within one deadline: a slow reader is not a silent one."""
_AFTERWARDS_S: Final = 1.0


class GuardedStream:
    """A socket stream as hypercorn uses it. ``scope`` is around everything that serves it."""

    def __init__(self, stream: trio.SocketStream, stall_s: float) -> None:
        self._stream, self._stall_s = stream, stall_s
        self.socket = stream.socket
        self.scope = trio.CancelScope()

    def cut(self) -> None:
        """Close it now, whatever is being sent, and end what serves it."""
        self.scope.cancel()
        self.socket.close()

    async def send_all(self, data: bytes) -> None:
        """Send, or cut the connection when the peer takes nothing for ``stall_s`` or is gone."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), _PIECE):
                with trio.fail_after(self._stall_s):
                    await self._stream.send_all(view[start : start + _PIECE])
        except trio.TooSlowError as error:
            self.cut()
            raise trio.BrokenResourceError("the client does not read") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.cut()
            raise

    async def receive_some(self, bytes_max: int) -> bytes | bytearray:
        """Whatever has come; nothing at the end."""
        data = await self._stream.receive_some(bytes_max)
        if not data:
            self._end_soon()  # hypercorn would keep it until its keep-alive is over
        return data

    async def send_eof(self) -> None:
        """No more from us."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close. What still runs on it has nobody to answer, but may take in what came before the end."""
        self._end_soon()
        await self._stream.aclose()

    def _end_soon(self) -> None:
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + _AFTERWARDS_S)


# S5's HTTP API beside a node: what ``--s5-listen`` starts.
#
# Without a token, which there is no flag for, it is for programs on this machine, and for the web pages
# whose
# origins are named. With accounts each program or page has one, by an Ed25519 key, and its share of the
# store;
# without, all count for the owner called local. To other S5 nodes it has a key of its own, so that nothing
# of
# theirs is ever signed with the peer key.


def check_s5_listen(text: str) -> tuple[str, int]:
    """Host and port to listen on. Raises ``ConfigError``."""
    host, port = parse_listen(text)
    if not is_loopback(host):
        msg = (
            f"{host} is open to others, and the S5 API is for programs on this machine: use 127.0.0.1:{port}"
        )
        raise ConfigError(msg)
    return host, port


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
    from p2pnode.storage.s5.server.server import S5Server

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
    async with beside(server.run):
        yield server.url
        server.stop()
        with trio.move_on_after(limits.close_deadline_s):
            await server.wait_ended()
