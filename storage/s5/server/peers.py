"""``/s5/p2p``: the websockets of other S5 nodes. Each is sent every entry set here, except its own."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import structlog
import trio
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from p2pnode.errors import UnreachableError
from p2pnode.protocols.s5.ids import BlobId
from p2pnode.protocols.s5.nodes import P2P_PATH, node_text
from p2pnode.storage.s5.peer import PeerConnection, S5Node
from p2pnode.storage.s5.server.context import Serving
from p2pnode.storage.s5.server.errors import HttpError

_QUEUE = 64
_POLICY, _GOING, _BUSY = 1008, 1001, 1013

log = structlog.get_logger(__name__)


class Peers:
    """The route of S5 peers."""

    def __init__(self, serving: Serving, node: S5Node) -> None:
        self._serving, self._node = serving, node
        self._open = 0

    def routes(self) -> list[WebSocketRoute]:
        """The routes, for Starlette."""
        return [WebSocketRoute(P2P_PATH, self._peer)]

    async def _peer(self, socket: WebSocket) -> None:
        try:
            await self._serving.access.reader(socket)
        except HttpError:
            await socket.close(_POLICY)
            return
        if self._open >= self._serving.limits.s5_peers_max:
            await socket.close(_BUSY)
            return
        self._open += 1
        try:
            await socket.accept()
            await self._run(socket)
        finally:
            self._open -= 1

    async def _run(self, socket: WebSocket) -> None:
        base = f"http://{socket.headers['host']}" if self._serving.options.token is None else ""
        connection = PeerConnection(
            self._node,
            _Frames(socket),
            partial(_urls, base),
            stall_s=self._serving.limits.s5_stall_s,
            dialled=False,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, connection)
            nursery.start_soon(self._end, nursery)
            await connection.run()
            nursery.cancel_scope.cancel()
        if connection.other is not None:
            log.debug("s5.peer_left", node=node_text(connection.other))
        with suppress(RuntimeError):  # Starlette raises it where the other side has closed it
            await socket.close(_GOING)

    async def _tell(self, connection: PeerConnection) -> None:
        await connection.wait_connected()
        with self._serving.registry.watch(_QUEUE) as entries:
            async for entry in entries:
                if entry != connection.heard:
                    await connection.push(entry)

    async def _end(self, nursery: trio.Nursery) -> None:
        await self._serving.stopping.wait()
        nursery.cancel_scope.cancel()


class _Frames:
    """See ``peer.Frames``."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send_bytes(frame)
        except (WebSocketDisconnect, RuntimeError) as error:
            msg = "the S5 peer closed the connection"
            raise UnreachableError(msg) from error

    async def receive(self) -> bytes | None:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        return message.get("bytes") or (message.get("text") or "").encode()


def _urls(base: str, blob: BlobId) -> tuple[str, ...]:
    return (f"{base}/{blob.text()}",) if base else ()
