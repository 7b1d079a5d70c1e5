"""JSON-RPC over HTTP/1.1 on loopback: h11 on trio, keep-alive, every size and wait bounded.

A web page must not drive it: only loopback names are taken as ``Host`` (so a name that was rebound to
loopback is refused), no request with an ``Origin``, and only ``application/json``, which a page can't send
unasked. What is asked is not known here: ``answer`` turns a body into a body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Never

import h11
import trio

from p2pnode.errors import ConfigError
from p2pnode.scopes import is_loopback
from p2pnode.tasks import Guard, serve_sockets

BODY_MAX: Final = 1 << 20
CONNECTIONS_MAX: Final = 128
IDLE_S: Final = 120.0
REQUEST_DEADLINE_S: Final = 30.0
_RECEIVE: Final = 1 << 16
_JSON: Final = b"application/json"

Answer = Callable[[bytes], Awaitable[bytes]]


async def serve_http(
    answer: Answer, *, host: str, port: int, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> Never:
    """Serve until cancelled; starts with the port. Raises ``ConfigError`` for an address it can't take."""
    if not is_loopback(host):
        msg = f"a development chain listens on loopback only, not on {host}: anybody could move its money"
        raise ConfigError(msg)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        msg = f"can't listen on {host} port {port} ({error.strerror or error}): choose another with --port"
        raise ConfigError(msg) from error
    held = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                held.acquire_nowait()
            except trio.WouldBlock:
                return
            try:
                await _Connection(stream, answer).run()
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                pass  # it went away, or stopped talking
            finally:
                held.release()

    handler = partial(Guard().run, serve)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(serve_sockets, handler, listeners, what=f"{host} port {port}", connections=nursery)
        )
        task_status.started(int(listeners[0].socket.getsockname()[1]))
        await trio.sleep_forever()
    raise AssertionError  # the nursery ends with its cancellation only


class _Refused(Exception):  # noqa: N818 - an answer, not a fault
    """An HTTP status instead of an answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Connection:
    """One keep-alive connection."""

    def __init__(self, stream: trio.SocketStream, answer: Answer) -> None:
        self._stream, self._answer = stream, answer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=16_384)

    async def run(self) -> None:
        while True:
            try:
                with trio.fail_after(IDLE_S):
                    request = await self._next()
                if not isinstance(request, h11.Request):
                    return
                with trio.fail_after(REQUEST_DEADLINE_S):
                    body = await self._body(request)
                status, answer = 200, await self._answer(body)
            except _Refused as refused:
                status, answer = refused.status, str(refused).encode()
            except h11.RemoteProtocolError as error:
                status, answer = error.error_status_hint, b"not HTTP/1.1 as we know it"
            with trio.fail_after(REQUEST_DEADLINE_S):
                await self._send(status, answer)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _next(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await self._stream.send_all(self._http.send(go_on) or b"")
            self._http.receive_data(await self._stream.receive_some(_RECEIVE))
        return event

    async def _body(self, request: h11.Request) -> bytes:
        _check(request)
        body = bytearray()
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            if len(body) > BODY_MAX:
                raise _Refused(413, f"a request holds at most {BODY_MAX} bytes")
        return bytes(body)

    async def _send(self, status: int, body: bytes) -> None:
        """Head and body in one write, so that they leave in one packet."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        kind = _JSON if status == 200 else b"text/plain"  # noqa: PLR2004 - OK
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        if self._http.their_state is not h11.DONE:
            headers.append((b"connection", b"close"))
        parts = (
            h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage(),
        )  # fmt: skip
        await self._stream.send_all(b"".join(self._http.send(part) or b"" for part in parts))


def _check(request: h11.Request) -> None:
    headers = dict(request.headers)
    host, _, port = headers.get(b"host", b"").decode("ascii", "replace").rpartition(":")
    name = host if port.isdigit() else f"{host}:{port}" if host else port
    if not is_loopback(name):
        raise _Refused(403, "only for programs on this machine: the Host must be a loopback address")
    if b"origin" in headers:
        raise _Refused(403, "not for web pages")
    if request.method != b"POST":
        raise _Refused(405, "send JSON-RPC with POST")
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _JSON:
        raise _Refused(415, "the content type must be application/json")
