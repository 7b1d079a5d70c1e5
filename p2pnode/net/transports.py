"""TCP and WebSocket for the swarm: dial, and listen.

Listeners take no SO_REUSEPORT, so that a port which is taken is an error. Sockets are bound before anything
runs and served inside the swarm's nursery, without background system tasks.

WebSocket uses the same listener, and an upgrade after accept. The upgrade runs under the swarm's handshake
deadline, so that a peer that never asks for it is cut off like any silent one. trio-websocket's reader runs
in the swarm's nursery, guarded. Plain ``ws`` only: Noise encrypts inside.

This module knows nothing of encryption, peers or limits.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr
from trio_websocket import (
    ConnectionClosed,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)

from p2pnode.errors import ConfigError, first_error
from p2pnode.net.multiaddrs import endpoint, kind_of, parse
from p2pnode.scopes import scope_of_host
from p2pnode.tasks import serve_sockets
from p2pnode.websockets import StartTask, shake_hands

READ_BYTES: Final = 64 * 1024
NEAR_CONNECT_S: Final = 3.0
_REFUSED: Final = "connection refused (nothing listens there)"


class TcpStream(ReadWriteCloser):
    """A socket with a read buffer, so that a handshake's 2-byte lengths take no system call of their own.

    trio's own stream asks the kernel before each wait, mostly in vain, and passes through the scheduler after
    each call that need not wait. With small packets that costs more than what is in them.
    """

    def __init__(self, sock: socket.socket, remote: tuple[str, int] | None) -> None:
        """``sock`` must not block."""
        self._socket = sock
        self._remote = remote
        self._buffer = b""

    async def read(self, n: int | None = None) -> bytes:
        """Between 1 and ``n`` bytes. Raises ``ConnectionClosedError`` at the end."""
        if n == 0:
            return b""
        data = self._buffer
        while not data:
            try:
                await trio.lowlevel.wait_readable(self._open_socket())
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except trio.ClosedResourceError as error:
                raise _lost() from error
            except OSError as error:
                raise _lost() from error
            if not data:
                raise ConnectionClosedError("the other side closed the connection", transport="tcp")
        if n is None or n >= len(data):
            self._buffer = b""
            return data
        self._buffer = data[n:]
        return data[:n]

    async def wait_readable(self) -> None:
        """Wait until there is something to read, or the end. Reads nothing.

        Raises ``ConnectionClosedError`` where it was closed on this side.
        """
        try:
            await trio.lowlevel.wait_readable(self._open_socket())
        except trio.ClosedResourceError as error:
            raise _lost() from error

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; doesn't yield where the socket takes it at once."""
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_writable(self._open_socket())
                except trio.ClosedResourceError as error:
                    raise _lost() from error
            except OSError as error:
                raise _lost() from error

    def send_now(self, data: bytes) -> int:
        """Send the first bytes of ``data``, as many as the socket takes at once, and say how many.

        Raises ``ConnectionClosedError``.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _lost() from error

    def _open_socket(self) -> socket.socket:
        if self._socket.fileno() < 0:
            raise _lost()
        return self._socket

    async def close(self) -> None:
        """Close the socket."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other side."""
        return self._remote

    def socket_stream(self) -> trio.SocketStream:
        """The bare socket, for a protocol that takes it over before anything was read."""
        return trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))


def _lost() -> ConnectionClosedError:
    return ConnectionClosedError("the connection was lost", transport="tcp")


def wrap(stream: trio.SocketStream) -> TcpStream:
    """A stream in place of trio's, which is over. It knows its peer even after the peer has left."""
    bare = stream.socket
    try:
        name = bare.getpeername()
        remote = (str(name[0]), int(name[1]))
    except OSError:
        remote = None
    # With its family named: to ask a socket that was reset for it raises on some systems.
    sock = socket.socket(bare.family, bare.type, bare.proto, fileno=bare.detach())
    sock.setblocking(False)
    return TcpStream(sock, remote)


class TcpListener(IListener):
    """Bound by ``bind``, served by ``serve`` until cancelled. ``suffix`` is ``/ws`` for WebSocket."""

    def __init__(self, suffix: str = "") -> None:
        self._suffix = suffix
        self._listeners: list[trio.SocketListener] = []
        self._addresses: tuple[Multiaddr, ...] = ()
        self._serving = trio.CancelScope()

    @property
    def is_websocket(self) -> bool:
        """Whether accepted connections start with an HTTP upgrade."""
        return self._suffix == "/ws"

    async def bind(self, maddr: Multiaddr) -> None:
        """Take the port. Raises ``ConfigError`` that says what to do."""
        host, port = endpoint(maddr)
        try:
            self._listeners = list(await trio.open_tcp_listeners(port, host=host))
        except OSError as error:
            raise ConfigError(_bind_message(error, maddr, host, port)) from error
        self._addresses = tuple(self._where(listener) for listener in self._listeners)

    async def serve(self, accept: Callable[[TcpStream], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Pass every connection to ``accept``, which must be guarded, as a task of ``nursery``."""

        async def handle(stream: trio.SocketStream) -> None:
            await accept(wrap(stream))

        with self._serving:
            await serve_sockets(handle, self._listeners, what=str(self), connections=nursery)

    def __str__(self) -> str:
        return ", ".join(str(address) for address in self.get_addrs())

    async def listen(self, maddr: Multiaddr) -> None:
        """The library's method; ours is ``bind``."""
        await self.bind(maddr)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """The addresses it listens on, with real ports; ``0.0.0.0`` and ``::`` stand as they are."""
        return self._addresses

    def _where(self, listener: trio.SocketListener) -> Multiaddr:
        host, port = listener.socket.getsockname()[:2]
        return Multiaddr(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}{self._suffix}")

    async def close(self) -> None:
        """Release the ports. Accepted connections stay open."""
        self._serving.cancel()
        for listener in self._listeners:
            listener.socket.close()
        self._listeners, self._addresses = [], ()


class TcpTransport(ITransport):
    """Dials and listens on ``/ip4|ip6|dns…/…/tcp/…`` without anything after it."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """A connection. The caller's cancel scope is the deadline."""
        return RawConnection(wrap(await connect(*endpoint(maddr))), True)

    def create_listener(self, handler_function: THandler) -> TcpListener:
        """An unbound listener; the swarm serves it."""
        del handler_function
        return TcpListener()

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether it is plain TCP."""
        return kind_of(maddr) == "tcp"

    def can_listen(self, maddr: Multiaddr) -> bool:
        """Whether it is plain TCP."""
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        """For the library's routing."""
        return ["tcp"]


async def connect(host: str, port: int) -> trio.SocketStream:
    """A connected socket. Raises ``OpenConnectionError`` in a few words; the caller's scope is the
    deadline.

    A machine in our own private network answers at once. A private address that doesn't is in another
    network.
    """
    private = scope_of_host(host) in ("private", "shared", "link-local")
    elsewhere = f"; {host} is of a private network: only machines there reach it" if private else ""
    with trio.move_on_after(NEAR_CONNECT_S if private else math.inf):
        try:
            return await trio.open_tcp_stream(host, port)
        except OSError as error:
            reason = dial_message(error)
            raise OpenConnectionError(reason if reason == _REFUSED else reason + elsewhere) from error
    raise OpenConnectionError(f"no answer within {NEAR_CONNECT_S:g} s{elsewhere}")


def dial_message(error: OSError) -> str:
    """Why a dial failed, in a few words. trio hides the reason behind 'all attempts failed'."""
    cause = first_error((error.__cause__ if error.errno is None else error) or error)
    if isinstance(cause, ConnectionRefusedError):
        return _REFUSED
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(error)


def _bind_message(error: OSError, maddr: Multiaddr, host: str, port: int) -> str:
    cause = first_error(error)
    code = cause.errno if isinstance(cause, OSError) else None
    family, every = ("ip6", "::") if ":" in host else ("ip4", "0.0.0.0")  # noqa: S104  in a message
    if code == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is already taken. Stop the program that uses it, listen on another port "
            f"(for instance /{family}/{host}/tcp/{port + 1}), or let the system choose with port 0."
        )
    if code == errno.EAFNOSUPPORT:
        return f"this machine has no {'IPv6' if family == 'ip6' else 'IPv4'}: leave out {maddr}."
    if code == errno.EACCES:
        return f"this user may not listen on port {port}. Choose a port above 1023 for {maddr}."
    if code == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine. Listen on one of its own, or on {every} for all."
    return f"cannot listen on {maddr}: {error}. Choose another address with --listen."


# ---- WebSocket

MESSAGE_MAX_BYTES: Final = 256 * 1024
"""Implementations send one packet of Noise (64 kB) as one message, or join a few."""
QUEUED_MESSAGES: Final = 1
"""Besides the one that comes and the one that is read: so much each of hundreds of connections may hold."""
CLOSE_S: Final = 0.5


class WsStream(ReadWriteCloser):
    """WebSocket messages as a byte stream."""

    def __init__(
        self, connection: WebSocketConnection, socket: trio.SocketStream, remote: tuple[str, int] | None
    ) -> None:
        self._connection = connection
        self._socket = socket
        self._remote = remote
        self._buffer = b""

    async def read(self, n: int | None = None) -> bytes:
        """Between 1 and ``n`` bytes. Raises ``ConnectionClosedError`` at the end."""
        if n == 0:
            return b""
        data = self._buffer
        while not data:
            try:
                message = await self._connection.get_message()
            except ConnectionClosed as error:
                raise ConnectionClosedError("the connection was closed", transport="websocket") from error
            data = message.encode() if isinstance(message, str) else bytes(message)
        if n is None or n >= len(data):
            self._buffer = b""
            return data
        self._buffer = data[n:]
        return data[:n]

    async def write(self, data: bytes) -> None:
        """Send ``data`` as one message."""
        try:
            await self._connection.send_message(data)
        except ConnectionClosed as error:
            raise ConnectionClosedError("the connection was closed", transport="websocket") from error

    def send_now(self, data: bytes) -> int:
        """Nothing: to send takes a lock here."""
        del data
        return 0

    async def close(self) -> None:
        """Close, waiting only briefly for the other side's close frame."""
        with trio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(ConnectionClosed):
            await self._connection.aclose()
        # trio-websocket leaves the socket open when the other side vanished without a close frame.
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._socket)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other side."""
        return self._remote


async def upgrade(stream: TcpStream, start_task: StartTask) -> WsStream:
    """Answer the HTTP upgrade on an accepted socket. Raises ``HandshakeError`` for what is no request."""

    bare = stream.socket_stream()

    async def answer(reader: Any) -> WebSocketConnection:
        request = await wrap_server_stream(
            reader,
            bare,
            message_queue_size=QUEUED_MESSAGES,
            max_message_size=MESSAGE_MAX_BYTES,
        )
        return await request.accept()

    connection = await shake_hands(start_task, bare, answer)
    return WsStream(connection, bare, stream.get_remote_address())


class WsTransport(ITransport):
    """Dials and listens on ``…/tcp/…/ws``."""

    def __init__(self, start_task: StartTask) -> None:
        self._start_task = start_task

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """A connection. Raises ``OpenConnectionError``."""
        host, port = endpoint(maddr)
        socket = await connect(host, port)

        async def ask(reader: Any) -> WebSocketConnection:
            return await wrap_client_stream(
                reader,
                socket,
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                "/",
                message_queue_size=QUEUED_MESSAGES,
                max_message_size=MESSAGE_MAX_BYTES,
            )

        connection: WebSocketConnection | None = None
        try:
            connection = await shake_hands(self._start_task, socket, ask)
        except (HandshakeError, ConnectionClosed) as error:
            raise OpenConnectionError("it doesn't answer as a WebSocket") from error
        finally:
            if connection is None:
                await trio.aclose_forcefully(socket)
        return RawConnection(WsStream(connection, socket, (host, port)), True)

    def create_listener(self, handler_function: THandler) -> TcpListener:
        """An unbound listener; the swarm serves it."""
        del handler_function
        return TcpListener("/ws")

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether it is plain WebSocket."""
        return kind_of(maddr) == "ws"

    def can_listen(self, maddr: Multiaddr) -> bool:
        """Whether it is plain WebSocket."""
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        """For the library's routing."""
        return ["ws"]


# ---- ports


def free_listen(wanted: Sequence[str]) -> tuple[str, ...]:
    """``wanted`` with port 0 (the system chooses) in place of every port that is taken.

    A port that is taken for one IP version is not used for the other either: the same port must not lead to
    two programs. Addresses of an IP version that this machine doesn't have are left out.
    """
    usable = [each for each in wanted if _has_version(each)]
    taken = {endpoint(parse(each))[1] for each in usable if not is_free(each)}
    return tuple(_any_port(each) if endpoint(parse(each))[1] in taken else each for each in usable)


def is_free(address: str) -> bool:
    """Whether we can listen on this multiaddr now."""
    host, port = endpoint(parse(address))
    return _can_bind(host, port)


def _has_version(address: str) -> bool:
    host, _ = endpoint(parse(address))
    return ":" not in host or _can_bind("::", 0)


def _can_bind(host: str, port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in host:  # as the listener does: the same port of IPv4 is another socket
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError:
        return False
    return True


def _any_port(address: str) -> str:
    parts = address.split("/")
    parts[4] = "0"
    return "/".join(parts)
