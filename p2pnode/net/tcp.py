"""TCP for the swarm: dial, and listen without SO_REUSEPORT, so that a taken port is an error.

Sockets are bound before anything runs and served inside the swarm's nursery: no background system task.
Knows nothing of encryption, peers or limits.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2pnode.errors import ConfigError, first_error
from p2pnode.net.multiaddrs import endpoint, kind_of
from p2pnode.scopes import scope_of_host
from p2pnode.tasks import serve_sockets

READ_BYTES: Final = 64 * 1024
NEAR_CONNECT_S: Final = 3.0
_REFUSED: Final = "connection refused (nothing listens there)"


class TcpStream(ReadWriteCloser):
    """A socket with a read buffer: the encryption's 2-byte lengths cost no system call of their own."""

    def __init__(self, stream: trio.SocketStream, remote: tuple[str, int] | None) -> None:
        self._stream = stream
        self._remote = remote
        self._buffer = b""

    async def read(self, n: int | None = None) -> bytes:
        """Between 1 and ``n`` bytes; raises ``ConnectionClosedError`` at the end."""
        if n == 0:
            return b""
        data = self._buffer
        if not data:
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError("the connection was lost", transport="tcp") from error
            if not data:
                raise ConnectionClosedError("the other side closed the connection", transport="tcp")
        if n is None or n >= len(data):
            self._buffer = b""
            return data
        self._buffer = data[n:]
        return data[:n]

    async def wait_readable(self) -> None:
        """Until there is something to read, the end included. Takes nothing."""
        await trio.lowlevel.wait_readable(self._stream.socket)

    async def write(self, data: bytes) -> None:
        """All of ``data``."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("the connection was lost", transport="tcp") from error

    async def close(self) -> None:
        """Close the socket."""
        await trio.aclose_forcefully(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port at the other end."""
        return self._remote

    @property
    def socket_stream(self) -> trio.SocketStream:
        """The bare socket, for a protocol that takes it over."""
        return self._stream


def wrap(stream: trio.SocketStream) -> TcpStream:
    """A stream that knows its peer even after the peer has left."""
    try:
        name = stream.socket.getpeername()
    except OSError:
        return TcpStream(stream, None)
    return TcpStream(stream, (str(name[0]), int(name[1])))


class TcpListener(IListener):
    """Bound by ``bind``, served by ``serve`` until cancelled. ``suffix`` is ``/ws`` for WebSocket."""

    def __init__(self, suffix: str = "") -> None:
        self._suffix = suffix
        self._listeners: list[trio.SocketListener] = []
        self._serving = trio.CancelScope()

    @property
    def is_websocket(self) -> bool:
        """Whether accepted connections start with an HTTP upgrade."""
        return self._suffix == "/ws"

    async def bind(self, maddr: Multiaddr) -> None:
        """Take the port, or raise ``ConfigError`` that says what to do."""
        host, port = endpoint(maddr)
        try:
            self._listeners = list(await trio.open_tcp_listeners(port, host=host))
        except OSError as error:
            raise ConfigError(_bind_message(error, maddr, host, port)) from error

    async def serve(self, accept: Callable[[TcpStream], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Hand every connection to ``accept``, which must be guarded, as a task of ``nursery``."""

        async def handle(stream: trio.SocketStream) -> None:
            await accept(wrap(stream))

        with self._serving:
            await serve_sockets(handle, self._listeners, what=str(self), connections=nursery)

    def __str__(self) -> str:
        return ", ".join(str(address) for address in self.get_addrs())

    async def listen(self, maddr: Multiaddr) -> None:
        """The library's way in; ours is ``bind``."""
        await self.bind(maddr)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """What it listens on, ports resolved, interfaces not."""
        found = []
        for listener in self._listeners:
            try:
                name = listener.socket.getsockname()
            except OSError:
                continue
            family = "ip6" if ":" in name[0] else "ip4"
            found.append(Multiaddr(f"/{family}/{name[0]}/tcp/{name[1]}{self._suffix}"))
        return tuple(found)

    async def close(self) -> None:
        """Give the ports back. Connections that were accepted go on."""
        self._serving.cancel()
        for listener in self._listeners:
            listener.socket.close()
        self._listeners = []


class TcpTransport(ITransport):
    """``/ip4|ip6|dns…/…/tcp/…`` and nothing after it."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """One connection; the caller's cancel scope is the deadline."""
        return RawConnection(wrap(await connect(*endpoint(maddr))), True)

    def create_listener(self, handler_function: THandler) -> TcpListener:
        """An unbound listener; the swarm serves it."""
        del handler_function
        return TcpListener()

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Plain TCP only."""
        return kind_of(maddr) == "tcp"

    def can_listen(self, maddr: Multiaddr) -> bool:
        """Plain TCP only."""
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        """For the library's routing."""
        return ["tcp"]


async def connect(host: str, port: int) -> trio.SocketStream:
    """A socket, or ``OpenConnectionError`` in a few words; the caller's cancel scope is the deadline.

    In a private network a machine that is there answers at once: who waits longer is somewhere else.
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
