"""The HTTP side of a child of ours, asked by the client that the node uses."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnode.models.child.http import ChildGoneError, ChildHttp, ChildRefusedError
from p2pnode.models.child.server import ChildServer, RequestError

KEY = "secret"


@dataclass
class Served:
    """What the handlers did."""

    http: ChildHttp
    path: str
    cancelled: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def serving(key: str = KEY) -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="run-") as name:
        path = str(Path(name) / "s")
        served = Served(ChildHttp(path, key), path)

        async def double(body: Mapping[str, Any]) -> Any:
            if "n" not in body:
                raise RequestError("n is missing")
            return {"twice": 2 * body["n"]}

        async def count(body: Mapping[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
            if body["to"] < 0:
                raise RequestError("below nothing", kind="low")
            for number in range(body["to"]):
                yield [{"n": number}, {"n": number}]
            if body.get("fails"):
                raise RequestError("it broke", kind="engine_lost", status=500)
            if body.get("hangs"):
                try:
                    await trio.sleep_forever()
                finally:
                    served.cancelled.set()

        server = ChildServer(KEY, calls={"/double": double}, streams={"/count": count})
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, path)
            yield served
            nursery.cancel_scope.cancel()


async def counted(served: Served, **body: Any) -> list[int]:
    numbers: list[int] = []
    async with aclosing(served.http.stream("/count", body, stall_s=5)) as bulks:
        async for bulk in bulks:
            numbers += [frame["n"] for frame in bulk]
    return numbers


async def test_a_call_is_answered_with_json_and_a_stream_with_frames() -> None:
    async with serving() as served:
        assert await served.http.call("/double", {"n": 4}, deadline_s=5) == {"twice": 8}
        assert await counted(served, to=3) == [0, 0, 1, 1, 2, 2]


async def test_what_cannot_be_answered_is_refused_by_its_kind() -> None:
    async with serving() as served:
        for path, body, words in (
            ("/double", {}, "n is missing"),
            ("/none", {}, "nothing is served at /none"),
            ("/count", {"to": -1}, "below nothing"),
        ):
            with pytest.raises(ChildRefusedError, match=words):
                await served.http.call(path, body, deadline_s=5)
        with pytest.raises(ChildRefusedError) as refused:
            await counted(served, to=-1)
        assert (refused.value.kind, refused.value.status) == ("low", 400)


async def test_an_error_after_frames_comes_after_them() -> None:
    async with serving() as served:
        numbers: list[int] = []

        async def count() -> None:
            async for bulk in served.http.stream("/count", {"to": 2, "fails": True}, stall_s=5):
                numbers.extend(frame["n"] for frame in bulk)

        with pytest.raises(ChildRefusedError, match="it broke") as refused:
            await count()
        assert numbers == [0, 0, 1, 1]
        assert (refused.value.kind, refused.value.status) == ("engine_lost", 500)


async def test_closing_a_connection_cancels_its_request() -> None:
    async with serving() as served:
        async with aclosing(served.http.stream("/count", {"to": 1, "hangs": True}, stall_s=5)) as bulks:
            assert len(await anext(bulks)) == 2
            assert not served.cancelled.is_set()
        with trio.fail_after(5):
            await served.cancelled.wait()
        assert await counted(served, to=1) == [0, 0]


async def test_a_stranger_without_the_key_is_told_nothing() -> None:
    async with serving(key="wrong") as served:
        with pytest.raises(ChildRefusedError, match="the key is wrong") as refused:
            await counted(served, to=1)
        assert refused.value.status == 401


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n", b"\0" * 100, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n"]
)
async def test_bytes_that_are_no_request_end_their_connection_only(data: bytes) -> None:
    async with serving() as served:
        stream = await trio.open_unix_socket(served.path)
        await stream.send_all(data or b"x")
        await stream.aclose()
        assert await counted(served, to=1) == [0, 0]


async def test_a_server_that_ends_breaks_its_streams() -> None:
    async with serving() as served:
        stream = served.http.stream("/count", {"to": 1, "hangs": True}, stall_s=5)
        assert len(await anext(stream)) == 2
    with pytest.raises(ChildGoneError):
        await anext(stream)
