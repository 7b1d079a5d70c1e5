"""The HTTP server ends when it is told to and keeps its bounds, whatever its clients do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog
import trio

from p2pnode.errors import ConfigError
from p2pnode.http_server import HttpBounds, HttpServer, Message, Receive, Send, names_this_machine

LARGE = bytes(16_000_000)
"""More than the sockets' buffers hold."""


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """``/echo`` answers with the body, ``/refused`` before it was read, ``/bug`` raises."""
    match scope["path"]:
        case "/large":
            await answer(send, LARGE)
        case "/echo":
            whole, more = b"", True
            while more:
                message = await receive()
                whole += message.get("body", b"")
                more = message.get("more_body", False)
            await answer(send, whole)
        case "/refused":
            await answer(send, b"too much", 413)
        case "/bug":
            raise ZeroDivisionError
        case _:
            await answer(send, b"small")


async def bound(**bounds: Any) -> HttpServer:
    return await HttpServer.bind("127.0.0.1", 0, what="a test", option="--x", bounds=HttpBounds(**bounds))


@contextlib.asynccontextmanager
async def serving(**bounds: Any) -> AsyncIterator[HttpServer]:
    """A server until the block ends; cancelled then, which must not take long."""
    server = await bound(**bounds)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, app)
            yield server
            nursery.cancel_scope.cancel()


async def connect(server: HttpServer) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", server.port)


async def asked(server: HttpServer, path: str = "/", headers: str = "") -> trio.SocketStream:
    """A connection on which something was asked."""
    stream = await connect(server)
    await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n".encode())
    return stream


@contextlib.asynccontextmanager
async def not_reading(server: HttpServer) -> AsyncIterator[trio.SocketStream]:
    """A client that asks for much and takes nothing."""
    async with await asked(server, "/large") as stream:
        await stream.receive_some(1)  # it is being sent
        yield stream


async def wait_none_open(server: HttpServer) -> None:
    while server.connections:  # noqa: ASYNC110 - the server has no event for it
        await trio.sleep(0.01)


async def test_it_starts_with_its_url_and_answers() -> None:
    server = await bound()
    async with trio.open_nursery() as nursery, httpx.AsyncClient(trust_env=False) as http:
        url = await nursery.start(server.run, app)
        assert url == server.url == f"http://127.0.0.1:{server.port}"
        assert (await http.post(f"{url}/echo", content=b"hello")).content == b"hello"
        nursery.cancel_scope.cancel()


async def test_a_taken_address_is_named_with_the_option_for_another() -> None:
    async with serving() as server:
        with pytest.raises(ConfigError, match=rf"^the thing can't listen .* port {server.port} .*--here$"):
            await HttpServer.bind("127.0.0.1", server.port, what="the thing", option="--here")


async def test_an_address_that_was_taken_and_never_served_can_be_freed() -> None:
    server = await bound()
    server.close()
    again = await HttpServer.bind("127.0.0.1", server.port, what="a test", option="--x")
    again.close()


async def test_a_client_that_does_not_read_cannot_put_off_a_cancellation() -> None:
    server = await bound()
    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, app)
            async with not_reading(server):
                nursery.cancel_scope.cancel()
                # the nursery ends here, with the client still connected


async def test_a_client_that_does_not_read_cannot_put_off_a_stop() -> None:
    server = await bound(drain_s=0.2)
    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, app)
            async with not_reading(server):
                server.stop()
                await wait_none_open(server)


async def test_a_client_that_does_not_read_is_cut_after_a_while() -> None:
    async with serving(stall_s=0.2) as server, not_reading(server):
        await wait_none_open(server)


async def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    async with serving(stall_s=0.3) as server, not_reading(server) as stream:
        taken = 1
        while taken < len(LARGE):
            if taken < 8_000_000:
                await trio.sleep(0.02)  # longer in all than one stall may be
            data = await stream.receive_some(400_000)
            assert data, "cut"
            taken += len(data)


async def test_idle_silent_and_half_sent_connections_end_with_the_server() -> None:
    server = await bound(drain_s=0.2)
    with trio.fail_after(4):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, app)
            streams = [await connect(server) for _ in range(3)]
            await streams[1].send_all(b"GET / HTTP/1.1\r\nhost: loc")
            await streams[2].send_all(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nx")
            async with httpx.AsyncClient(trust_env=False) as http:
                await http.get(server.url)  # kept alive
                server.stop()
                await wait_none_open(server)
            for stream in streams:
                await stream.aclose()


async def test_a_stop_lets_an_answer_end() -> None:
    async with (
        serving() as server,
        httpx.AsyncClient(trust_env=False) as http,
        http.stream("GET", f"{server.url}/large") as response,
    ):
        server.stop()
        assert len(await response.aread()) == len(LARGE)


async def test_connections_beyond_the_bound_are_closed_at_once() -> None:
    async with serving(connections_max=2) as server:
        held = [await asked(server) for _ in range(2)]
        for stream in held:
            assert await stream.receive_some()
        async with await connect(server) as third:
            assert await third.receive_some() == b""
        for stream in held:
            await stream.aclose()


async def test_a_connection_that_was_left_frees_its_place_before_its_idle_time_is_over() -> None:
    async with serving(idle_s=60) as server:
        for _ in range(2):
            await (await connect(server)).aclose()
        await wait_none_open(server)


async def test_an_idle_connection_is_closed() -> None:
    async with serving(idle_s=0.1) as server, await connect(server) as stream:
        assert await stream.receive_some() == b""


async def test_a_head_that_goes_on_beyond_the_bound_is_refused() -> None:
    async with serving(head_bytes_max=1000) as server, await connect(server) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 2000)
        answered = bytes(await stream.receive_some())
        assert answered.split()[1] in (b"400", b"431")


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_an_answer_before_the_body_was_read_reaches_the_client(size: int) -> None:
    async with serving() as server, httpx.AsyncClient(trust_env=False) as http:
        response = await http.post(f"{server.url}/refused", content=bytes(size))
        assert (response.status_code, response.content) == (413, b"too much")


async def test_reading_on_after_an_early_answer_ends_after_a_moment() -> None:
    async with serving(linger_s=0.1) as server, await connect(server) as stream:
        await stream.send_all(b"POST /refused HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nx")
        whole = b""
        async for data in stream:
            whole += data
        assert whole.endswith(b"too much")


async def test_what_the_application_raises_ends_its_connection_only() -> None:
    async with serving() as server, httpx.AsyncClient(trust_env=False) as http:
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert (await http.get(f"{server.url}/bug")).status_code == 500
        assert (await http.get(server.url)).content == b"small"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:5050", "127.9.9.9", "box:1", "box"])
def test_a_host_header_that_names_this_machine(host: str) -> None:
    assert names_this_machine(host, {"box"})


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example:80", "8.8.8.8", "box.example"])
def test_a_host_header_that_names_another(host: str) -> None:
    assert not names_this_machine(host, {"box"})


async def whole_answer(server: HttpServer, sent: bytes) -> bytes:
    """All that comes back until the server has closed the connection."""
    async with await connect(server) as stream:
        await stream.send_all(sent)
        got = b""
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in stream:
                got += data
        return got


@pytest.mark.parametrize(
    ("sent", "status", "answers"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"200", 1),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.0\r\n\r\n", b"200", 2),  # one after another
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400", 1),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"400", 1),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", b"501", 1),
        (
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"F" * 99 + b"\r\n",
            b"400",
            1,
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400", 1),
        (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", b"400", 1),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", b"400", 1),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400", 1),  # TLS
    ],
)
async def test_each_framing_has_one_meaning_or_is_refused(sent: bytes, status: bytes, answers: int) -> None:
    async with serving() as server:
        got = await whole_answer(server, sent)
        assert got.split()[1] == status
        assert got.count(b"HTTP/1.1 ") == answers


SETTINGS = b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\n" + SETTINGS,
    ],
)
async def test_who_begins_in_http_2_is_answered_in_http_1(sent: bytes) -> None:
    async with serving() as server:
        got = await whole_answer(server, sent)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert b"101" not in got


async def test_a_head_that_comes_letter_by_letter_is_cut_when_its_time_is_over() -> None:
    async with serving(idle_s=0.2) as server, await connect(server) as stream:
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(5):
            for letter in b"GET / HTTP/1.1\r\nx: " + bytes([97]) * 500:
                await stream.send_all(bytes([letter]))
                with trio.move_on_after(0.02):
                    assert not await stream.receive_some()
                    break
        await wait_none_open(server)


async def test_what_the_application_raises_is_in_the_log() -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving() as server:
            await whole_answer(server, b"GET /bug HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert [each["path"] for each in logs if each["event"] == "http.request_failed"] == ["/bug"]


async def test_what_follows_a_request_with_two_lengths_is_no_request() -> None:
    """A proxy before us may take the other length: what it takes for a body would be another's request."""
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving() as server:
        with structlog.testing.capture_logs() as logs:
            got = await whole_answer(server, head + b"0\r\n\r\nGET /bug HTTP/1.1\r\nHost: a\r\n\r\n")
        assert got.split()[1] == b"400"
        assert got.count(b"HTTP/1.1 ") == 1
        assert not [each for each in logs if each.get("path") == "/bug"]


async def test_the_head_of_an_answer_and_its_first_bytes_come_in_one_packet() -> None:
    async with serving() as server, await asked(server) as stream:
        assert (await stream.receive_some()).endswith(b"\r\n\r\nsmall")
