"""Programs that send badly or leave, in each phase of a request: no slot, task or connection is left."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import structlog
import trio

from p2pnode.limits import DEFAULT_LIMITS
from tests.gateway.support import LIMITS, Stage, stage, until
from tests.gateway.test_app import ASK, PATH, busy, slots_are_free

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("a", "b")
]
CALL = '<tool_call>{{"name": "{}", "arguments": {{"x": "{}"}}}}</tool_call>'
TWO_CALLS = CALL.format("a", "y" * 40) + CALL.format("b", "z" * 400)


def request(body: dict[str, Any]) -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    return f"{HEAD}Content-Length: {len(data)}\r\n\r\n".encode() + data


@asynccontextmanager
async def connected(s: Stage) -> AsyncIterator[trio.SocketStream]:
    """A connection, which the program closes at the end of the block."""
    async with await trio.open_tcp_stream("127.0.0.1", s.server.port) as stream:
        yield stream


async def read_until(stream: trio.SocketStream, mark: bytes, count: int = 1) -> bytes:
    """What came until ``mark`` came so often."""
    got = b""
    with trio.fail_after(10):
        while got.count(mark) < count:
            data = await stream.receive_some()
            assert data, got
            got += data
    return got


async def nothing_is_left(s: Stage) -> None:
    """Half a second after the program left: no slot, no request, no connection."""
    await slots_are_free(s)
    await until(lambda: s.gateway.under_way == 0, 0.5)
    await until(lambda: s.server.connections == 0, 2)


async def test_a_program_may_leave_in_any_phase() -> None:
    with structlog.testing.capture_logs() as logs:
        await leave_in_each_phase()
    assert [each for each in logs if each["log_level"] == "error"] == []


async def leave_in_each_phase() -> None:
    async with stage(1, tokens_per_s=60.0, script=lambda _prompt, _seed: TWO_CALLS) as s:
        streamed = {**ASK, "stream": True}
        with_tools = {**streamed, "tools": TOOLS}
        # In the head, in the body, with all sent, before a host is found
        for sent in (
            HEAD.encode(),
            HEAD.encode() + b"Content-Length: 500\r\n\r\n{",
            HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
            request(streamed),
            request({**streamed, "model": "smollm2-135m-instruct"}),
        ):
            async with connected(s) as stream:
                await stream.send_all(sent)
            await nothing_is_left(s)
        # between two calls of tools
        async with connected(s) as stream:
            await stream.send_all(request(with_tools))
            got = await read_until(stream, b'"name":"b"')
            assert got.count(b'"type":"function"') == 2
            assert busy(s)
        await nothing_is_left(s)
        # after the last token, before the end
        async with connected(s) as stream:
            await stream.send_all(request({**streamed, "max_tokens": 3}))
            await read_until(stream, b'"finish_reason":"length"')
        await nothing_is_left(s)
        # with another request behind the one that is answered
        async with connected(s) as stream:
            await stream.send_all(request(streamed) + request(streamed))
            await read_until(stream, b"data:", 3)
        await nothing_is_left(s)
        answered = [each for each in s.records if each.outcome not in ("left", "ok")]
        assert answered == []


async def test_a_body_that_comes_byte_by_byte_is_not_waited_for() -> None:
    limits = replace(LIMITS, gateway_stall_s=0.3)
    async with stage(1, limits=limits) as s, connected(s) as stream:
        await stream.send_all(f"{HEAD}Content-Length: 500\r\n\r\n".encode())
        answered = b""
        with trio.fail_after(5):
            while not answered:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(b" ")
                with trio.move_on_after(0.05):
                    answered = await stream.receive_some()
        assert b" 408 " in answered


@pytest.mark.long
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_of_more_than_16_mib_is_refused(chunked: bool) -> None:
    size = DEFAULT_LIMITS.gateway_body_bytes_max + 1
    async with stage(1) as s, connected(s) as stream:
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        await stream.send_all(f"{HEAD}{framing}\r\n\r\n".encode())
        if chunked:  # only what comes shows how large it is
            piece = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
            for _ in range(size // (1 << 16) + 1):
                await stream.send_all(piece)
            await stream.send_all(b"0\r\n\r\n")
        with trio.fail_after(10):
            assert b" 413 " in await stream.receive_some()


@pytest.mark.long
async def test_a_crowd_that_sends_nothing_whole_keeps_nobody_out_for_long() -> None:
    async with stage(1) as s:
        async with contextlib.AsyncExitStack() as crowd:
            for _ in range(60):
                stream = await crowd.enter_async_context(connected(s))
                await stream.send_all(HEAD.encode())
            async with s.http() as http:
                assert (await http.post(PATH, json={**ASK, "max_tokens": 3})).status_code == 200
        await nothing_is_left(s)
