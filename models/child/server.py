"""``ChildServer``: the HTTP/1.1 side of a child of ours, on its private unix socket: h11 over trio streams.

A request is a POST with a JSON body and the key of this child. It has a connection of its own; closing it
cancels the request. Its answer is JSON, or a stream of frames as server-sent events, like llama.cpp's own
server gives them (``models/child/http.py`` reads both). What is asked for is known to the handlers.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, TypeAlias

import h11
import trio

from p2pnode.sockets import unix_socket

BODY_MAX_BYTES: Final = 64 << 20
_READ_BYTES: Final = 1 << 16
_BACKLOG: Final = 64
_OK: Final = 200
_BAD_REQUEST: Final = 400
_UNAUTHORISED: Final = 401
_NOT_FOUND: Final = 404


class RequestError(Exception):
    """The request can't be answered. ``kind`` is for programs, the message for people."""

    def __init__(
        self, message: str, *, kind: str = "invalid_request_error", status: int = _BAD_REQUEST
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status

    def frame(self) -> dict[str, Any]:
        """The error as it is sent."""
        return {"error": {"code": self.status, "type": self.kind, "message": str(self)}}


Call: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Any]]
Stream: TypeAlias = Callable[[Mapping[str, Any]], AsyncGenerator[list[dict[str, Any]], None]]
"""Frames in lists: those of one list are sent together."""


class ChildServer:
    """Serves ``calls`` and ``streams`` by path, to whoever has ``key``."""

    def __init__(self, key: str, *, calls: Mapping[str, Call], streams: Mapping[str, Stream]) -> None:
        self._key = key
        self._calls = calls
        self._streams = streams

    async def run(self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on the unix socket ``path`` until cancelled. The process's umask must keep others out."""
        listening = trio.socket.from_stdlib_socket(unix_socket())
        await listening.bind(path)
        listening.listen(_BACKLOG)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [trio.SocketListener(listening)])
            task_status.started()

    async def _serve(self, stream: trio.SocketStream) -> None:
        exchange = _Exchange(stream)
        async with stream:
            try:
                path, body = await exchange.request(self._key)
            except RequestError as error:
                await _unless_gone(exchange.send_error(error))
                return
            except (trio.BrokenResourceError, h11.RemoteProtocolError):
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange.wait_closed, nursery.cancel_scope)
                await _unless_gone(self._answer(exchange, path, body))
                nursery.cancel_scope.cancel()

    async def _answer(self, exchange: _Exchange, path: str, body: Mapping[str, Any]) -> None:
        try:
            if (call := self._calls.get(path)) is not None:
                await exchange.send_json(_OK, await call(body))
            elif (frames := self._streams.get(path)) is not None:
                async with aclosing(frames(body)) as bulks:
                    await exchange.send_frames(bulks)
            else:
                await exchange.send_error(RequestError(f"nothing is served at {path}", status=_NOT_FOUND))
        except RequestError as error:
            await exchange.send_error(error)


async def _unless_gone(answering: Awaitable[None]) -> None:
    """Answer, unless whoever asked is gone."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await answering


class _Exchange:
    """One request and its answer."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._connection = h11.Connection(h11.SERVER)
        self._streaming = False

    async def wait_closed(self, scope: trio.CancelScope) -> None:
        """Cancel ``scope`` once the other side closes. It sends nothing more, so any byte ends it, too."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.receive_some(1)
        scope.cancel()

    async def request(self, key: str) -> tuple[str, Mapping[str, Any]]:
        head: h11.Request | None = None
        data = bytearray()
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(await self._stream.receive_some(_READ_BYTES))
            elif isinstance(event, h11.Request):
                head = event
                given = dict(head.headers).get(b"authorization", b"")
                if not hmac.compare_digest(given, f"Bearer {key}".encode()):
                    raise RequestError("the key is wrong", kind="authentication_error", status=_UNAUTHORISED)
            elif isinstance(event, h11.Data):
                data += event.data
                if len(data) > BODY_MAX_BYTES:
                    raise RequestError("the body is too long")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                break
            else:
                raise trio.BrokenResourceError
        try:
            body = json.loads(data or b"{}")
        except (ValueError, RecursionError) as error:
            raise RequestError("the body is no JSON") from error
        if not isinstance(body, dict):
            raise RequestError("the body is no JSON object")
        return head.target.decode(), body

    async def send_json(self, status: int, value: Any) -> None:
        content = json.dumps(value, separators=(",", ":")).encode()
        head = h11.Response(
            status_code=status,
            headers=[
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(content))),
                ("Connection", "close"),
            ],
        )
        await self._send(head, h11.Data(content), h11.EndOfMessage())

    async def send_frames(self, frames: AsyncIterator[list[dict[str, Any]]]) -> None:
        async for bulk in frames:
            if not self._streaming:
                await self._begin_stream()
            await self._send(h11.Data(b"".join(map(_event, bulk))))
        await self._send(h11.EndOfMessage())

    async def _begin_stream(self) -> None:
        # Not before the first frame: a request that is refused at once has a status that says so.
        head = h11.Response(
            status_code=_OK, headers=[("Content-Type", "text/event-stream"), ("Connection", "close")]
        )
        await self._send(head)
        self._streaming = True

    async def send_error(self, error: RequestError) -> None:
        if not self._streaming:
            await self.send_json(error.status, error.frame())
        else:
            await self._send(h11.Data(_event(error.frame())), h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(part for event in events if (part := self._connection.send(event)))
        await self._stream.send_all(data)


def _event(frame: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(frame, separators=(",", ":")).encode() + b"\n\n"
