"""What the JSON-RPC application takes and refuses by itself, without a socket."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from p2pnode.chain.dev.jsonrpc_http import REQUEST_DEADLINE_S, json_rpc_app

HEADERS = [(b"host", b"127.0.0.1:8545"), (b"content-type", b"application/json")]


async def asked(scope: dict[str, Any], *parts: dict[str, Any]) -> list[Any]:
    """What the application sends when these parts come, and then nothing more."""
    left, sent = list(parts), []

    async def receive() -> Any:
        if not left:
            await trio.sleep_forever()
        return left.pop(0)

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    async def echo(body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return body

    await json_rpc_app(echo)({"type": "http", "method": "POST", "headers": HEADERS, **scope}, receive, send)
    return sent


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_parts_is_answered_as_one() -> None:
    head, body = await asked({}, part(b"ab", more=True), part(b"cd", more=False))
    assert (head["status"], body["body"]) == (200, b"abcd")
    assert (b"content-length", b"4") in head["headers"]


async def test_a_body_that_does_not_come_whole_is_refused_at_the_deadline(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    head, _ = await asked({}, part(b"ab", more=True))
    assert head["status"] == 408
    assert trio.current_time() - began == REQUEST_DEADLINE_S


async def test_a_websocket_is_refused() -> None:
    assert await asked({"type": "websocket"}) == [{"type": "websocket.close"}]
