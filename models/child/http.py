"""``ChildHttp``: a small HTTP client for an engine's server on this machine, h11 over a trio stream.

Each request has a connection of its own, because closing it is how a request is cancelled. A stream is read
in bulk: all frames that have arrived are returned together, which keeps the cost of a token small. This
module knows nothing of tokens or slots.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import h11
import trio

LOST: Final = "engine_lost"
"""The kind of error with which a child of ours says that it ends."""
_READ_BYTES: Final = 1 << 16
_ANSWER_MAX_BYTES: Final = 16 << 20
_OK: Final = 200
_FAILED: Final = 500


class ChildGoneError(Exception):
    """The connection broke or ended early: the server is gone, or gave up this request."""


class ChildHungError(Exception):
    """The server sent no frame for too long."""


class ChildRefusedError(Exception):
    """The server answered with an error. ``kind`` is the server's own name for it."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "no reason given")))
        self.status = status
        self.kind = str(error.get("type", ""))


class ChildHttp:
    """Requests to one server. ``address`` is the path of a unix socket, or a port of 127.0.0.1."""

    def __init__(self, address: str | int, key: str) -> None:
        self.address, self.key = address, key

    async def call(self, path: str, body: Mapping[str, Any] | None, *, deadline_s: float) -> Any:
        """Send one request; return its JSON answer. It is a GET without a body and a POST with one."""
        data = bytearray()
        try:
            with trio.fail_after(deadline_s):
                async with aclosing(self._exchange(path, body)) as parts:
                    async for part in parts:
                        data += part
                        if len(data) > _ANSWER_MAX_BYTES:
                            raise ChildGoneError("the answer is too long")
        except trio.TooSlowError as error:
            raise ChildHungError from error
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ChildGoneError("the answer is no JSON") from error

    async def stream(
        self, path: str, body: Mapping[str, Any], *, stall_s: float
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Send a request; yield the frames of its answer, those that arrived together as one list.

        Raises ``ChildHungError`` when no frame comes for ``stall_s``. Comments don't count as frames: the
        server sends them from another thread to keep a connection open, also while it hangs.
        """
        frames = FrameParser()
        async with aclosing(self._exchange(path, body)) as parts:
            ended = False
            while not ended:
                arrived: list[dict[str, Any]] = []
                frames.check()
                with trio.move_on_after(stall_s) as stall:
                    while not arrived and not ended:
                        try:
                            arrived = frames.feed(await anext(parts))
                        except StopAsyncIteration:
                            ended = True
                if stall.cancelled_caught:
                    raise ChildHungError
                if arrived:
                    yield arrived
            frames.check()

    async def _exchange(self, path: str, body: Mapping[str, Any] | None) -> AsyncGenerator[bytes, None]:
        """The body of the answer in bulk. Raises ``ChildRefusedError`` for any status but 200."""
        connection = h11.Connection(h11.CLIENT)
        try:
            stream = await self._connect()
        except OSError as error:
            raise ChildGoneError(str(error)) from error
        refused: int | None = None
        data = bytearray()
        try:
            await stream.send_all(self._request(connection, path, body))
            while True:
                try:
                    event = connection.next_event()
                except h11.RemoteProtocolError:
                    if data and refused is None:
                        yield bytes(data)  # it is good: it came before the malformed bytes
                    raise
                if event is h11.NEED_DATA:
                    if data and refused is None:
                        yield bytes(data)
                        data.clear()
                    connection.receive_data(await stream.receive_some(_READ_BYTES))
                elif isinstance(event, h11.Response):
                    refused = None if event.status_code == _OK else event.status_code
                elif isinstance(event, h11.Data):
                    data += event.data
                    if len(data) > _ANSWER_MAX_BYTES:
                        raise ChildGoneError("the answer is too long")
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    raise ChildGoneError("the connection was closed")
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise ChildGoneError(str(error)) from error
        finally:
            await trio.aclose_forcefully(stream)
        if refused is not None:
            raise ChildRefusedError(refused, _error_in(bytes(data)))
        if data:
            yield bytes(data)

    async def _connect(self) -> trio.SocketStream:
        if isinstance(self.address, int):
            return await trio.open_tcp_stream("127.0.0.1", self.address)
        return await trio.open_unix_socket(self.address)

    def _request(self, connection: h11.Connection, path: str, body: Mapping[str, Any] | None) -> bytes:
        content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        head = h11.Request(
            method="GET" if body is None else "POST",
            target=path,
            headers=[
                ("Host", "localhost"),
                ("Authorization", f"Bearer {self.key}"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(content))),
                ("Connection", "close"),
            ],
        )
        parts = [
            connection.send(head),
            connection.send(h11.Data(content)),
            connection.send(h11.EndOfMessage()),
        ]
        return b"".join(part for part in parts if part)


class FrameParser:
    """Server-sent events whose data is JSON: bytes in, decoded frames out."""

    def __init__(self) -> None:
        self._rest = b""
        self._error: Exception | None = None

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The frames that ``data`` completes. Those before an error frame are returned first; the next call
        raises it."""
        self.check()
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        frames: list[dict[str, Any]] = []
        try:
            for event in whole:
                frame = _frame_in(event)
                if frame is not None:
                    frames.append(frame)
        except (ChildGoneError, ChildRefusedError) as error:
            self._error = error
        if len(self._rest) > _ANSWER_MAX_BYTES:
            self._error = self._error or ChildGoneError("a frame is too long")
        if not frames:
            self.check()
        return frames

    def check(self) -> None:
        """Raise the error that came after the last frames, if there was one."""
        if self._error is not None:
            raise self._error


def _frame_in(event: bytes) -> dict[str, Any] | None:
    """The frame of one event; None for a comment and for the end of the stream."""
    name, _, value = event.partition(b": ")
    if name not in (b"data", b"error") or value == b"[DONE]":
        return None
    try:
        frame = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ChildGoneError("a frame is no JSON") from error
    if not isinstance(frame, dict):
        raise ChildGoneError("a frame is no JSON object")
    if name == b"error" or "error" in frame:
        found = frame.get("error", frame)
        raise ChildRefusedError(_status_in(found), found if isinstance(found, dict) else {})
    return frame


def _status_in(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else _FAILED


def _error_in(data: bytes) -> Mapping[str, Any]:
    try:
        error = json.loads(data)["error"]
        return error if isinstance(error, dict) else {"message": str(error)}
    except (ValueError, KeyError, TypeError):
        return {}
