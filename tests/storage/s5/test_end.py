"""The server ends when it is told to, whatever its clients do: each of these kept it from ending once."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed

from p2pnode.errors import ConfigError
from p2pnode.limits import Limits
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.s5.server.options import S5Options
from p2pnode.storage.s5.server.server import S5Server
from tests.storage.s5.support import OWNER, serving, websocket

LARGE = bytes(16_000_000)
"""More than the sockets' buffers hold."""


@contextlib.asynccontextmanager
async def not_reading(server: S5Server, path: str) -> AsyncIterator[trio.SocketStream]:
    """A client that asks for much and takes nothing."""
    async with await trio.open_tcp_stream("127.0.0.1", int(server.url.rpartition(":")[2])) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        await stream.receive_some(1)  # it is being sent
        yield stream


async def served(folder: Path, limits: Limits) -> tuple[S5Server, str]:
    store = MemoryStore(lambda: 0.0)
    blob = await store.put(LARGE, owner=OWNER)
    return S5Server(store, store, S5Options(owner=OWNER, folder=folder), limits=limits), f"/{blob.text()}"


async def test_a_client_that_does_not_read_cannot_put_off_a_stop(tmp_path: Path) -> None:
    server, path = await served(tmp_path, Limits(drain_deadline_s=0.2))
    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            async with not_reading(server, path):
                server.stop()
                while server.connections:  # noqa: ASYNC110 - the client must be there until the end
                    await trio.sleep(0.01)


async def test_a_client_that_does_not_read_is_cut_after_a_while(tmp_path: Path) -> None:
    server, path = await served(tmp_path, Limits(s5_stall_s=0.2))
    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            async with not_reading(server, path):
                while server.connections:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_idle_silent_and_half_sent_connections_end_with_the_server(tmp_path: Path) -> None:
    limits = Limits(drain_deadline_s=0.2)
    server, _ = await served(tmp_path, limits)
    with trio.fail_after(4):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            port = int(server.url.rpartition(":")[2])
            streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
            await streams[1].send_all(b"GET / HTTP/1.1\r\nhost: loc")
            await streams[2].send_all(
                b"POST /s5/upload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nx"
            )
            async with httpx.AsyncClient(trust_env=False) as http:
                await http.get(f"{server.url}/s5/version")  # kept alive
                server.stop()
                while server.connections:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            for stream in streams:
                await stream.aclose()


async def test_a_stop_lets_a_download_end(tmp_path: Path) -> None:
    server, path = await served(tmp_path, Limits())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            async with (
                httpx.AsyncClient(trust_env=False) as http,
                http.stream("GET", server.url + path) as response,
            ):
                server.stop()
                assert len(await response.aread()) == len(LARGE)


async def test_a_stop_says_goodbye_to_who_watches(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        with trio.fail_after(5):
            async with websocket(running, "/s5/registry/subscription") as socket:
                running.server.stop()
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.get_message()
                assert closed.value.reason is not None
                assert closed.value.reason.code == 1001


async def test_connections_beyond_the_bound_are_closed_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=Limits(s5_connections_max=2)) as running:
        held = [await running.connect() for _ in range(2)]
        for stream in held:
            await stream.send_all(b"GET /s5/version HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert await stream.receive_some()
        async with await running.connect() as third:
            with trio.fail_after(3):
                assert await third.receive_some() == b""
        for stream in held:
            await stream.aclose()


async def test_connections_that_leave_without_a_request_free_their_places_soon(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=Limits(s5_connections_max=2)) as running:
        for _ in range(2):
            await (await running.connect()).aclose()
        with trio.fail_after(5):
            while True:
                async with await running.connect() as stream:
                    await stream.send_all(b"GET /s5/version HTTP/1.1\r\nhost: localhost\r\n\r\n")
                    with contextlib.suppress(trio.BrokenResourceError):
                        if await stream.receive_some():
                            break
                await trio.sleep(0.05)


async def test_a_taken_port_is_named_with_a_remedy(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as running:
        options = S5Options(owner=OWNER, folder=tmp_path / "b", port=running.port)
        with pytest.raises(ConfigError, match=rf"port {running.port} .*--s5-listen"):
            await S5Server(running.store, running.store, options).run()


async def test_only_with_a_token_does_it_listen_beyond_loopback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Listen on"):
        S5Options(owner=OWNER, folder=tmp_path, host="0.0.0.0")
    with pytest.raises(ConfigError, match="16"):
        S5Options(owner=OWNER, folder=tmp_path, token="short")
    assert S5Options(owner=OWNER, folder=tmp_path, host="0.0.0.0", token="x" * 16).port == 0
