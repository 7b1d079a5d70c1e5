"""WebSocket for the swarm, on trio-websocket: the same listener as TCP, and an upgrade after accept.

The upgrade runs under the swarm's handshake deadline, so that a dialler that never asks for it is cut
off like any silent one. The library's reader runs in the swarm's nursery, guarded.
Plain ``ws`` only: Noise encrypts inside. Knows nothing of peers.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import trio
from libp2p.abc import IRawConnection, ITransport
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

from p2pnode.net.multiaddrs import endpoint, kind_of
from p2pnode.net.tcp import TcpListener, TcpStream, connect
from p2pnode.websockets import StartTask, shake_hands

MESSAGE_MAX_BYTES: Final = 1 << 20
QUEUED_MESSAGES: Final = 4
CLOSE_S: Final = 0.5


class WsStream(ReadWriteCloser):
    """Messages as a byte stream."""

    def __init__(
        self, connection: WebSocketConnection, socket: trio.SocketStream, remote: tuple[str, int] | None
    ) -> None:
        self._connection = connection
        self._socket = socket
        self._remote = remote
        self._buffer = b""

    async def read(self, n: int | None = None) -> bytes:
        """Between 1 and ``n`` bytes; raises ``ConnectionClosedError`` at the end."""
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
        """One message."""
        try:
            await self._connection.send_message(data)
        except ConnectionClosed as error:
            raise ConnectionClosedError("the connection was closed", transport="websocket") from error

    async def close(self) -> None:
        """Close, waiting only briefly for the other side's close frame."""
        with trio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(ConnectionClosed):
            await self._connection.aclose()
        # trio-websocket leaves the socket open when the other side vanished without a close frame.
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._socket)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port at the other end."""
        return self._remote


async def upgrade(stream: TcpStream, start_task: StartTask) -> WsStream:
    """Answer the HTTP upgrade on an accepted socket. Raises ``HandshakeError`` for what is no request."""

    async def answer(reader: Any) -> WebSocketConnection:
        request = await wrap_server_stream(
            reader,
            stream.socket_stream,
            message_queue_size=QUEUED_MESSAGES,
            max_message_size=MESSAGE_MAX_BYTES,
        )
        return await request.accept()

    connection = await shake_hands(start_task, stream.socket_stream, answer)
    return WsStream(connection, stream.socket_stream, stream.get_remote_address())


class WsTransport(ITransport):
    """``…/tcp/…/ws``."""

    def __init__(self, start_task: StartTask) -> None:
        self._start_task = start_task

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """One connection. Raises ``OpenConnectionError``."""
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
        """Plain WebSocket only."""
        return kind_of(maddr) == "ws"

    def can_listen(self, maddr: Multiaddr) -> bool:
        """Plain WebSocket only."""
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        """For the library's routing."""
        return ["ws"]
