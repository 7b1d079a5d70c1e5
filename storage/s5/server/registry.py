"""``/s5/registry``: signed entries are read, set and watched."""

from __future__ import annotations

from typing import Final

import msgpack
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import EntryKey, parse_key
from p2pnode.storage.s5.server.bodies import whole
from p2pnode.storage.s5.server.context import Serving
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.s5.wire import entry_json, entry_of, key_of

_SUBSCRIBE: Final = 2
_QUEUE: Final = 64
_MESSAGE_MAX: Final = 64
_POLICY, _GOING, _BEHIND, _MALFORMED = 1008, 1001, 1013, 1007


class RegistryApi:
    """The routes of the registry."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[BaseRoute]:
        """The routes, for Starlette."""
        return [
            Route("/s5/registry", self._get, methods=["GET"]),
            Route("/s5/registry", self._set, methods=["POST"]),
            WebSocketRoute("/s5/registry/subscription", self._subscription),
        ]

    async def _get(self, request: Request) -> Response:
        await self._serving.access.reader(request)
        entry = await self._serving.registry.get(key_of(request.query_params.get("pk", "")))
        if entry is None:
            raise HttpError(404, "this node knows no entry of that key: ask another node, or set one")
        return JSONResponse(entry_json(entry))

    async def _set(self, request: Request) -> Response:
        owner = await self._serving.access.writer(request)
        entry = entry_of(await whole(request, stall_s=self._serving.limits.s5_stall_s))
        await self._serving.registry.set(entry, owner=owner)
        return Response(status_code=204)

    async def _subscription(self, socket: WebSocket) -> None:
        try:
            await self._serving.access.reader(socket)
        except HttpError:
            await socket.close(_POLICY)
            return
        await socket.accept()
        code = _GOING
        with self._serving.registry.watch(_QUEUE) as entries:
            watched: set[EntryKey] = set()
            async with trio.open_nursery() as nursery:

                async def end(why: int) -> None:
                    nonlocal code
                    code = why
                    nursery.cancel_scope.cancel()

                async def send_entries() -> None:
                    async for entry in entries:
                        if entry.key in watched:
                            await socket.send_bytes(entry.to_bytes())
                    await end(_BEHIND)

                async def end_with_server() -> None:
                    await self._serving.stopping.wait()
                    await end(_GOING)

                nursery.start_soon(send_entries)
                nursery.start_soon(end_with_server)
                await end(await self._asked(socket, watched))
        if code:
            await socket.close(code)

    async def _asked(self, socket: WebSocket, watched: set[EntryKey]) -> int:
        """Take keys to watch. Returns 0 when the client has left, else the code to close with."""
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return 0
            try:
                key = _subscription_key(message.get("bytes") or b"")
            except ProtocolError:
                return _MALFORMED
            if len(watched) >= self._serving.limits.s5_watches_max:
                return _POLICY
            watched.add(key)
            entry = await self._serving.registry.get(key)
            if entry is not None:
                await socket.send_bytes(entry.to_bytes())


def _subscription_key(message: bytes) -> EntryKey:
    """The key in a subscription, which is ``02``, then the key, as msgpack. Raises ``ProtocolError``."""
    unpacker = msgpack.Unpacker(max_buffer_size=_MESSAGE_MAX)
    try:
        unpacker.feed(message)
        kind, key = unpacker.unpack(), unpacker.unpack()
    except (msgpack.UnpackException, ValueError) as error:
        msg = "a subscription is 02 and a key, as msgpack"
        raise ProtocolError(msg) from error
    if kind != _SUBSCRIBE or not isinstance(key, bytes):
        msg = "a subscription is 02 and a key, as msgpack"
        raise ProtocolError(msg)
    return parse_key(key)
