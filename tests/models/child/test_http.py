"""The engine's HTTP client against a server that cuts its bytes anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pnode.models.child.http import ChildGoneError, ChildHttp

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP's chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


GOOD = chunk(b'data: {"a": 1}\n\n') + chunk(b'data: {"a": 2}\n\n')


@contextlib.asynccontextmanager
async def server(path: Path, pieces: Sequence[bytes]) -> AsyncIterator[ChildHttp]:
    """Answers a request with these pieces, each after the one before was read."""
    listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listening.bind(str(path / "s"))
    listening.listen()

    async def answer() -> None:
        connection, _ = await listening.accept()
        stream = trio.SocketStream(connection)
        with contextlib.suppress(trio.BrokenResourceError):
            while not (await stream.receive_some()).endswith(b"}"):
                pass
            for piece in pieces:
                await stream.send_all(piece)
                await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.aclose()

    with listening:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            yield ChildHttp(str(path / "s"), "key")


async def frames_of(http: ChildHttp) -> tuple[list[Any], bool]:
    """What a stream yields, and whether it then fails."""
    got: list[Any] = []
    try:
        async for bulk in http.stream("/completion", {}, stall_s=10):
            got += bulk
    except ChildGoneError:
        return got, True
    return got, False


@pytest.mark.parametrize("bad", [b"zz\r\n", chunk(b"data: {\n\n"), chunk(b"data: 7\n\n")])
async def test_frames_before_malformed_bytes_are_delivered_in_one_read_or_in_two(
    bad: bytes, tmp_path: Path
) -> None:
    for number, pieces in enumerate(([HEAD + GOOD + bad], [HEAD, GOOD, bad])):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with server(folder, pieces) as http:
            assert await frames_of(http) == ([{"a": 1}, {"a": 2}], True)


async def test_a_whole_stream_is_delivered_and_ends(tmp_path: Path) -> None:
    async with server(tmp_path, [HEAD + GOOD + b"0\r\n\r\n"]) as http:
        assert await frames_of(http) == ([{"a": 1}, {"a": 2}], False)


async def test_an_answer_that_is_no_json_is_a_server_that_gave_up(tmp_path: Path) -> None:
    async with server(tmp_path, [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{"]) as http:
        with pytest.raises(ChildGoneError):
            await http.call("/tokenize", {}, deadline_s=10)
