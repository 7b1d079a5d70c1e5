"""A JSON-RPC endpoint on loopback, in front of a development chain, that fails as it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

import httpx
import trio

from p2pnode.chain.dev.jsonrpc_http import serve_http

LOOPBACK = "127.0.0.1"
Fault: TypeAlias = Callable[["RpcProxy", bytes], Awaitable[bytes]]
"""What it answers to a request's body, instead of asking the chain."""


class RpcProxy:
    """``fault`` is how it fails now, None while it doesn't. ``down``: nobody listens there until ``up``."""

    def __init__(self, target: str) -> None:
        self._target, self._port = target, 0
        self._listening = trio.CancelScope()
        self._wanted = trio.Event()
        self._http = httpx.AsyncClient(trust_env=False, timeout=None)
        self.fault: Fault | None = None
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen whenever it is wanted, always at the same address."""
        async with self._http:
            self._wanted.set()
            while True:
                await self._wanted.wait()
                async with trio.open_nursery() as nursery:
                    self._listening = nursery.cancel_scope
                    serve = partial(serve_http, self._answer, host=LOOPBACK, port=self._port)
                    self._port = await nursery.start(serve)
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED

    def down(self) -> None:
        """Connections break, and new ones are refused."""
        self._wanted = trio.Event()
        self._listening.cancel()

    def up(self) -> None:
        """Back at the same address, and in order."""
        self.fault = None
        self._wanted.set()

    async def forward(self, body: bytes) -> bytes:
        """What the chain answers."""
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        request = self._http.build_request("POST", self._target, headers=headers)
        request.stream = _Body(body)
        return (await self._http.send(request)).content

    async def _answer(self, body: bytes) -> bytes:
        self.asked.append(json.loads(body)["method"])
        return await (self.forward(body) if self.fault is None else self.fault(self, body))


class _Body(httpx.AsyncByteStream):
    """Not a generator, as httpx's own is: one that was cancelled half-way would be a warning."""

    def __init__(self, body: bytes) -> None:
        self._parts = [body]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._parts:
            raise StopAsyncIteration
        return self._parts.pop()


@asynccontextmanager
async def rpc_proxy(target: str) -> AsyncIterator[RpcProxy]:
    """One that listens, gone at the end of the block."""
    proxy = RpcProxy(target)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()


# ---- faults


async def html(_proxy: RpcProxy, _body: bytes) -> bytes:
    """A gateway's error page with a friendly status."""
    await trio.lowlevel.checkpoint()
    return b"<html>bad gateway</html>"


async def nonsense(_proxy: RpcProxy, body: bytes) -> bytes:
    """Well-formed JSON-RPC that means nothing: not even the chain is the same."""
    await trio.lowlevel.checkpoint()
    return json.dumps({"jsonrpc": "2.0", "id": json.loads(body)["id"], "result": "0x7"}).encode()


async def refusing(_proxy: RpcProxy, body: bytes) -> bytes:
    """A node that takes every question for a mistake."""
    await trio.lowlevel.checkpoint()
    error = {"code": -32601, "message": "the method does not exist/is not available"}
    return json.dumps({"jsonrpc": "2.0", "id": json.loads(body)["id"], "error": error}).encode()


async def slow(proxy: RpcProxy, body: bytes) -> bytes:
    """The truth, long after anybody wants it."""
    await trio.sleep(3)
    return await proxy.forward(body)


async def hiding(proxy: RpcProxy, body: bytes) -> bytes:
    """Transactions are taken and mined, and nobody shows what became of them: blocks are known, their indexes
    are not."""
    request = json.loads(body)
    if request["method"] in {"eth_getTransactionReceipt", "eth_getTransactionByHash", "eth_getLogs"}:
        return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": None}).encode()
    return await proxy.forward(body)


async def swallow_sent(proxy: RpcProxy, body: bytes) -> bytes:
    """Transactions get through, but nobody hears of them; nothing else is answered after the first."""
    if json.loads(body)["method"] == "eth_sendRawTransaction":
        await proxy.forward(body)
        proxy.fault = html
        return b"lost"
    return await proxy.forward(body)
