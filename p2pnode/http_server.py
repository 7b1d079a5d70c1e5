"""An HTTP/1.1 server for one ASGI application: sockets, bounds, and an end that no client can put off.

::

    server = await HttpServer.bind("127.0.0.1", 5050, what="the S5 API", option="--s5-listen")
    url = await nursery.start(server.run, app)

    server.stop()     no new connection; requests under way may end, until ``drain_s``; then all are cut
    cancelled         all connections are cut at once

Hypercorn parses and writes HTTP and WebSockets. Its trio worker shields each send from cancellation and
gives it no deadline, so one client that doesn't read would keep the worker from ever ending. Inside the
shield a deadline still works, and so does closing the socket: :class:`_ClientStream` does both, and nothing
of hypercorn is patched. HTTP/2, which it offers to everybody who asks, is left out (:class:`_Connection`).
What the application does with a request, and who may send one, is not known here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self, TypeAlias, cast

import h11
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import suppress_body

from p2pnode.errors import ConfigError
from p2pnode.scopes import is_loopback
from p2pnode.tasks import Guard, serve_sockets

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

log = structlog.get_logger()
_PIECE: Final = 1 << 16
"""Bytes that must leave within one deadline: a client that reads slowly is not one that doesn't read."""
_PORT_MAX: Final = 65_535
_LAST_WORK_S: Final = 1.0
"""How long what serves a connection may go on once the client has closed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpBounds:
    """What one server takes from its clients."""

    connections_max: int = 128
    """A connection beyond that is closed at once."""
    head_bytes_max: int = 16_384
    """Of a request's first line and headers, as long as their end has not come."""
    idle_s: float = 30.0
    """A connection without a request under way is closed after that."""
    stall_s: float = 30.0
    """A client that takes nothing for so long is cut."""
    linger_s: float = 5.0
    """How long the rest of a body is read after an answer that was given before all of it was read."""
    drain_s: float = 10.0
    """How long requests under way may go on after :meth:`HttpServer.stop`."""
    websocket_message_max: int = 1 << 20
    websocket_ping_s: float = 20.0


class HttpServer:
    """Made by :meth:`bind`, which takes the address; :meth:`run` serves."""

    def __init__(self, listeners: list[trio.SocketListener], host: str, bounds: HttpBounds) -> None:
        self._listeners, self._bounds = listeners, bounds
        self.port: int = int(listeners[0].socket.getsockname()[1])
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        """Without a path: ``http://127.0.0.1:5050``."""
        self._guard = Guard()
        self._stopping = trio.Event()
        self._context = WorkerContext(None)
        self._open: set[_ClientStream] = set()
        self._none_open = trio.Event()

    @classmethod
    async def bind(
        cls, host: str, port: int, *, what: str, option: str, bounds: HttpBounds | None = None
    ) -> Self:
        """Listen on this address; port 0 takes any that is free.

        Raises ``ConfigError`` where that is not possible: it names ``what`` wanted to listen, and the
        command line's ``option`` for another address.
        """
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            msg = (
                f"{what} can't listen on {host} port {port} ({error.strerror or error}): "
                f"stop what uses it, or choose another with {option}"
            )
            raise ConfigError(msg) from error
        return cls(listeners, host, bounds or HttpBounds())

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def stop(self) -> None:
        """Let requests under way end, then end :meth:`run`."""
        self._stopping.set()

    def close(self) -> None:
        """Free the address. :meth:`run` does so when it ends; this is for a server that never ran."""
        for listener in self._listeners:
            listener.socket.close()

    async def run(
        self, app: AsgiApp, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until stopped; starts with the url. What ``app`` raises ends its connection only."""
        handler = partial(self._guard.run, partial(self._serve, app, _config(self._bounds)))
        try:
            async with trio.open_nursery() as connections:
                try:
                    async with trio.open_nursery() as accepting:
                        serve = partial(
                            serve_sockets, handler, self._listeners, what=self.url, connections=connections
                        )
                        await accepting.start(serve)
                        task_status.started(self.url)
                        await self._stopping.wait()
                        accepting.cancel_scope.cancel()
                    await self._context.terminated.set()  # has hypercorn close what is idle
                    with trio.move_on_after(self._bounds.drain_s):
                        while self._open:
                            self._none_open = trio.Event()
                            await self._none_open.wait()
                finally:
                    # Also when cancelled: a send that hypercorn has shielded ends only with its socket.
                    for stream in list(self._open):
                        stream.cut()
        finally:
            self.close()

    async def _serve(self, app: AsgiApp, config: Config, stream: trio.SocketStream) -> None:
        """One connection. Whatever is wrong with it, it alone ends."""
        client = _ClientStream(stream, self._bounds.stall_s)
        if len(self._open) >= self._bounds.connections_max:
            client.cut()
            return
        self._open.add(client)
        try:
            with client.scope:
                wrapper = ASGIWrapper(cast("Any", _Exchanges(app, client, self._bounds.linger_s)))
                state = ConnectionState({})
                await _Connection(wrapper, config, self._context, state, cast("Any", client)).run()
        finally:
            stream.socket.close()
            self._open.discard(client)
            if not self._open:
                self._none_open.set()


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:5050``, ``localhost:0`` or ``[::1]:5050``. Raises ``ConfigError``."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _PORT_MAX:
        msg = f"{text!r} is no HOST:PORT, as 127.0.0.1:5050 (port 0 takes any that is free)"
        raise ConfigError(msg)
    if bare == "localhost":
        return "127.0.0.1", int(port)
    try:
        address = ipaddress.ip_address(bare)
    except ValueError as error:
        msg = f"{text!r}: {bare!r} is no address of this machine, as 127.0.0.1 or [::1]"
        raise ConfigError(msg) from error
    if address.version == 6 and bare == host:  # noqa: PLR2004 - IPv6
        msg = f"{text!r}: write an IPv6 address in brackets, as [::1]:5050"
        raise ConfigError(msg)
    return bare, int(port)


def names_this_machine(host: str, others: Collection[str] = ()) -> bool:
    """Whether a ``Host`` header names a loopback address, or one of the ``others``.

    A web page reaches a server on loopback through a name that its owner has resolve to 127.0.0.1: the
    ``Host`` is that name then, so a server for this machine's programs refuses every other name.
    """
    name, colon, port = host.rpartition(":")
    bare = name if colon and port.isdigit() else host
    return is_loopback(bare) or bare.strip("[]") in others


Refuse: TypeAlias = Callable[[str], AsgiApp]
"""Makes the answer, with status 403, that says why a request is not taken."""
_SAFE_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)


class Front:
    """Passes on what is meant for us, and no request of a web page whose origin is not configured.

    A page of any site can make a browser send requests to this machine, directly or through a name whose
    address it changes to loopback. So the ``Host`` must be a name of ours, and an ``Origin`` one of those
    that were configured. An answer that has no headers of its own against a browser's guesses gets them.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        names: Collection[str],
        origins: Collection[str],
        allow: str,
        refuse: Refuse,
        any_name: bool = False,
    ) -> None:
        """``allow`` is the command that lets an origin in. ``any_name``: the machine has names that nobody
        told us, and something else than the name keeps others out."""
        self._app, self._names, self._origins = app, names, origins
        self._allow, self._refuse, self._any_name = allow, refuse, any_name

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["headers"])
        if scope["type"] == "websocket":
            if refusal:
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
                return
            await self._app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                names = {name.lower() for name, _ in given}
                given += [each for each in _SAFE_HEADERS if each[0] not in names]
                message = {**message, "headers": given}
            await send(message)

        await (self._refuse(refusal) if refusal else self._app)(scope, receive, send_safe)

    def _refusal(self, headers: Collection[tuple[bytes, bytes]]) -> str:
        """Why it is not taken; "" where it is."""
        found = {name.lower(): value.decode("latin-1") for name, value in headers}
        if not self._any_name and not names_this_machine(found.get(b"host", ""), self._names):
            return "the Host header names another machine: use the address that is served"
        origin = found.get(b"origin")
        if origin is not None and origin not in self._origins:
            how = f"its owner allows them with `{self._allow}`"
            return f"web pages of this origin may not use this node: {how}"
        return ""


def _config(bounds: HttpBounds) -> Config:
    config = Config()
    config.errorlog = config.accesslog = None  # our own log has what matters, without addresses and ids
    config.include_server_header = False
    config.h11_max_incomplete_size = bounds.head_bytes_max
    config.websocket_max_message_size = bounds.websocket_message_max
    config.websocket_ping_interval = bounds.websocket_ping_s
    config.keep_alive_timeout = bounds.idle_s
    return config


class _Http1(H11Protocol):
    """Hypercorn's HTTP/1.1, which answers in HTTP/1.1 whoever asks for another protocol."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay. Hypercorn would go on in HTTP/2 here, where a client begins so or sends ``Upgrade: h2c``."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Refuse a request with two lengths. A proxy before us may take the other one than we do: what one
        client sends as a body would be the next request of another."""
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            await self._send_error_response(400)
            await self.send(Closed())
            return
        await super()._create_stream(request)


class _Connection(TCPServer):
    """Hypercorn's connection without HTTP/2: there the bounds on heads, on bodies and on requests at a time
    would be others, and a client on this machine gains nothing by it."""

    async def _read_data(self) -> None:
        """Read until the client has closed it."""
        over = self.protocol
        over.protocol = _Http1(
            self.app, self.config, self.context, over.task_group, over.state, over.ssl, over.client,
            over.server, self.protocol_send,
        )  # fmt: skip
        await super()._read_data()


class _ClientStream:
    """A socket stream as hypercorn uses it, which a silent client can't hold open.

    ``scope`` is around everything that serves it: hypercorn would leave its reader waiting for a request
    that nobody takes any more.
    """

    def __init__(self, stream: trio.SocketStream, stall_s: float) -> None:
        self._stream, self._stall_s = stream, stall_s
        self.socket = stream.socket
        self.scope = trio.CancelScope()
        self.joins_next = False
        """Whether what is sent next leaves together with what follows it at once."""
        self._joined = b""

    def cut(self) -> None:
        """Close it now, whatever is being sent, and end what serves it."""
        self.scope.cancel()
        self.socket.close()

    async def send_all(self, data: bytes) -> None:
        """Send, or cut the connection when the client takes nothing for ``stall_s`` or is gone."""
        if self.joins_next:
            self.joins_next, self._joined = False, data
            return
        view, self._joined = memoryview(self._joined + data), b""
        try:
            for start in range(0, len(view), _PIECE):
                with trio.fail_after(self._stall_s):
                    await self._stream.send_all(view[start : start + _PIECE])
        except trio.TooSlowError as error:
            self.cut()
            raise trio.BrokenResourceError("the client does not read") from error
        except trio.BusyResourceError as error:  # hypercorn's reader is closing it: the client has left
            self.cut()
            raise trio.BrokenResourceError("the client has left") from error
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
        """Say that nothing more comes from us."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close. What still runs on it has nobody to answer, but may take in what came before the end."""
        self._end_soon()
        await self._stream.aclose()

    def _end_soon(self) -> None:
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + _LAST_WORK_S)


class _Exchanges:
    """An ASGI application around another, for one connection, which logs what is raised."""

    def __init__(self, app: AsgiApp, client: _ClientStream, linger_s: float) -> None:
        self._app, self._client, self._linger_s = app, client, linger_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._client, self._linger_s)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            log.exception("http.request_failed", path=scope["path"], exc_info=error)  # hypercorn has no log
            raise


class _Exchange:
    """One request and its response, whose head leaves in one packet with what is first said of its body.

    After an early answer it reads on: a connection closed with bytes unread is reset, and the client would
    never see why it was refused.
    """

    def __init__(
        self, scope: Message, receive: Receive, send: Send, client: _ClientStream, linger_s: float
    ) -> None:
        names = {name for name, _ in scope["headers"]}
        self._receive, self._send, self._client, self._linger_s = receive, send, client, linger_s
        self._method: str = scope["method"]
        self._start: Message | None = None
        self._read = names.isdisjoint({b"content-length", b"transfer-encoding"})

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message  # as ASGI wants it: nothing is sent before the first part of the body
            return
        if self._start is not None:
            start, self._start = self._start, None
            has_body = not suppress_body(self._method, int(start["status"])) and message.get("body")
            self._client.joins_next = bool(has_body)
            await self._send(start)
        if message["type"] == "http.response.body" and not self._read and not message.get("more_body", False):
            # The answer leaves first; its end, after which hypercorn may close, only when the body is read.
            await self._send({**message, "more_body": True})
            message = {"type": "http.response.body", "body": b""}
            with trio.move_on_after(self._linger_s):
                while not self._read:
                    await self.receive()
        await self._send(message)
