"""A bare Starlette application on hypercorn that answers a chat with its last message, for a baseline.

The frames are those of a chat stream: a role, the text, the end. Its first answer says the ``port``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from p2pnode.bench.chat_stream import CHAT
from p2pnode.bench.processes import Command, answer, run_child

_HEAD: Final = {"id": "chatcmpl-0", "created": 0, "model": "echo", "object": "chat.completion.chunk"}


async def main(commands: AsyncIterator[Command]) -> None:
    """Serve until the commands end."""
    await anext(commands)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    app = Starlette(routes=[Route(CHAT, _echo, methods=["POST"])])
    async with trio.open_nursery() as nursery:
        [url] = await nursery.start(partial(serve, app, config))  # type: ignore[arg-type]
        answer({"port": int(url.rpartition(":")[2])})
        async for _ in commands:
            pass
        nursery.cancel_scope.cancel()


async def _echo(request: Request) -> StreamingResponse:
    asked = await request.json()
    return StreamingResponse(_frames(asked["messages"][-1]["content"]), media_type="text/event-stream")


async def _frames(text: str) -> AsyncIterator[bytes]:
    yield _frame({"role": "assistant", "content": ""}, None) + _frame({"content": text}, None)
    yield _frame({}, "stop") + b"data: [DONE]\n\n"


def _frame(delta: dict[str, Any], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + json.dumps({**_HEAD, "choices": [choice]}).encode() + b"\n\n"


if __name__ == "__main__":
    run_child(main)
