"""``UpstreamHttp``: requests to an OpenAI-compatible server, h11 over a trio stream, with TLS for https.

Each request has a connection of its own, because closing it is how a request is cancelled, which frees the
server's slot. (httpx leaves its async generators to the garbage collector where an answer is not read to its
end, and then the slot is freed some time later.) This module knows nothing of tokens, prompts or engines.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import h11
import httpx
import trio

from p2pnode.errors import ConfigError
from p2pnode.models.upstream.completion import AnswerParser, Part, refusal_in
from p2pnode.models.upstream.sse import MalformedError

_CONNECT_S: Final = 5.0
_ANSWER_MAX_BYTES: Final = 16 << 20
_READ_BYTES: Final = 1 << 16
_REFUSAL_MAX_BYTES: Final = 1 << 16
_OK: Final = 200
_REFUSED_FROM: Final = 400
_SSE: Final = "text/event-stream"


class GoneError(Exception):
    """The server can't be reached, broke the connection, or sent what is no answer."""


class HungError(Exception):
    """Nothing that counts came for too long."""


def checked_url(url: str) -> str:
    """The address of a server, without the ``/v1`` that its endpoints begin with. Raises ``ConfigError``."""
    try:
        parsed = httpx.URL(url)
        good = parsed.scheme in ("http", "https") and parsed.host and not parsed.query and not parsed.userinfo
    except (httpx.InvalidURL, UnicodeError):
        good = False
    if not good:
        raise ConfigError(f"{url[:80]!r} is no address of a server: write it as http://127.0.0.1:8080")
    return url.rstrip("/").removesuffix("/v1")


class UpstreamHttp:
    """One server. ``key`` is sent as a bearer token where it isn't empty."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url: Final = checked_url(url)
        parsed = httpx.URL(self.url)
        self._host, self._tls = parsed.host, parsed.scheme == "https"
        self._port = parsed.port or (443 if self._tls else 80)
        self._path = parsed.raw_path.decode().rstrip("/")
        self._headers = [
            ("Host", parsed.netloc.decode()),
            ("Accept-Encoding", "identity"),
            ("Content-Type", "application/json"),
            ("Connection", "close"),
            *([("Authorization", f"Bearer {key}")] if key else []),
        ]

    async def call(self, path: str, body: Mapping[str, Any] | None = None, *, deadline_s: float) -> Any:
        """Send a request, a GET without a body, and return its JSON.

        Raises ``RefusedError``, ``MalformedError``, ``GoneError``, and ``HungError`` after ``deadline_s``.
        """
        data = bytearray()
        with trio.move_on_after(deadline_s):
            async with aclosing(self._exchange(path, body)) as pieces:
                async for _, piece in pieces:
                    data += piece
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:
                raise MalformedError(f"{path} answers with what is no JSON") from error
        raise HungError

    async def stream(
        self, path: str, body: Mapping[str, Any], *, stall_s: float
    ) -> AsyncGenerator[list[Part], None]:
        """Send a request and yield what its answer adds, as it arrives; at first an empty list, when the
        server has accepted it.

        It ends with the mark of the end or with the connection. A server that sends its whole answer at once
        as JSON gives one list. Raises ``RefusedError``, ``MalformedError``, ``GoneError``, and ``HungError``
        where for ``stall_s`` nothing came that ``Part.counts``.
        """
        parser: AnswerParser | None = None
        async with aclosing(self._exchange(path, body)) as pieces:
            while parser is None or not parser.over:
                arrived: list[Part] = []
                with trio.move_on_after(stall_s) as stall:
                    while not any(part.counts for part in arrived):
                        try:
                            kind, piece = await anext(pieces)
                        except StopAsyncIteration:
                            arrived += parser.finish() if parser is not None else []
                            break
                        if parser is None:
                            parser = AnswerParser(streams=kind == _SSE)
                            break
                        arrived += parser.feed(piece)
                        if parser.over:
                            break
                if stall.cancelled_caught:
                    raise HungError
                yield arrived
                if parser is not None:
                    parser.check()

    async def _exchange(
        self, path: str, body: Mapping[str, Any] | None
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        """The content type with no bytes when the answer begins, and then its bytes as they arrive."""
        connection = h11.Connection(h11.CLIENT)
        kind, refused, size = "", bytearray(), 0
        response: h11.Response | None = None
        stream = await self._connected()
        try:
            await stream.send_all(self._request(connection, path, body))
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
                elif isinstance(event, h11.InformationalResponse):
                    pass
                elif isinstance(event, h11.Response):
                    response = event
                    kind = _header(event, b"content-type").partition(";")[0].strip().lower()
                    if event.status_code == _OK:
                        yield kind, b""
                elif isinstance(event, h11.Data):
                    size += len(event.data)
                    if size > _ANSWER_MAX_BYTES:
                        raise GoneError("the answer is too long")
                    if response is not None and response.status_code == _OK:
                        yield kind, bytes(event.data)
                    elif size <= _REFUSAL_MAX_BYTES:
                        refused += event.data
                else:
                    break
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise GoneError(str(error) or "the connection broke") from error
        finally:
            await trio.aclose_forcefully(stream)
        if response is None:
            raise GoneError("it closed the connection and said nothing")
        if response.status_code != _OK:
            raise _refusal(response, bytes(refused))

    async def _connected(self) -> trio.abc.Stream:
        try:
            with trio.fail_after(_CONNECT_S):
                if not self._tls:
                    return await trio.open_tcp_stream(self._host, self._port)
                stream = await trio.open_ssl_over_tcp_stream(self._host, self._port, https_compatible=True)
                await stream.do_handshake()
                return stream
        except trio.TooSlowError as error:
            raise GoneError(f"no connection within {_CONNECT_S:g} s") from error
        except (OSError, trio.BrokenResourceError) as error:
            raise GoneError(str(error)) from error

    def _request(self, connection: h11.Connection, path: str, body: Mapping[str, Any] | None) -> bytes:
        content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        head = h11.Request(
            method="GET" if body is None else "POST",
            target=self._path + path,
            headers=[*self._headers, ("Content-Length", str(len(content)))],
        )
        parts = [
            connection.send(head),
            connection.send(h11.Data(content)),
            connection.send(h11.EndOfMessage()),
        ]
        return b"".join(part for part in parts if part)


def _header(response: h11.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key == name), "")


def _refusal(response: h11.Response, data: bytes) -> Exception:
    if response.status_code < _REFUSED_FROM:
        return GoneError(f"it answered with status {response.status_code}, which is no answer")
    try:
        told: Any = json.loads(data)
    except (ValueError, RecursionError):
        told = data.decode("utf-8", "replace")
    retry_after = _header(response, b"retry-after") or None
    return refusal_in(told, response.status_code, retry_after=retry_after, now_s=time.time())
