"""A real server on a loopback port, and clients of it that don't behave."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio_websocket import WebSocketConnection, wrap_client_stream

from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.protocols.s5.entries import Entry, EntryKey, make_entry, tagged
from p2pnode.protocols.s5.ids import base64url, from_base64url
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.rules import Quotas
from p2pnode.storage.s5.server.options import S5Options
from p2pnode.storage.s5.server.server import S5Server
from p2pnode.storage.store import OwnerKey

OWNER = OwnerKey(bytes(range(32)))
HELLO = b"Hello, world!"
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = EntryKey(SIGNER.public_key().public_bytes_raw())


def entry(revision: int, data: bytes = b"\x1e" + bytes(32)) -> Entry:
    """An entry of ``KEY``."""
    return make_entry(KEY, revision, data, SIGNER.sign)


@dataclass
class Running:
    """A server, its store, and a client of it."""

    server: S5Server
    store: MemoryStore
    http: httpx.AsyncClient

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    async def connect(self) -> trio.SocketStream:
        """A bare connection."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    quotas: Quotas | None = None,
    wall: Callable[[], float] = time.time,
    store: MemoryStore | None = None,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    """A server until the block ends; cancelled then, which must not take long."""
    store = store or MemoryStore(wall, quotas)
    made = S5Server(store, store, S5Options(owner=OWNER, folder=folder, **options), limits=limits, wall=wall)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(made.run)
        async with httpx.AsyncClient(base_url=url, trust_env=False, headers=headers, verify=False) as http:
            yield Running(made, store, http)
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Until the end, or the reset."""
    whole = b""
    try:
        async for data in stream:
            whole += data
    except trio.BrokenResourceError:
        pass
    return whole


@asynccontextmanager
async def websocket(
    running: Running, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[WebSocketConnection]:
    """A websocket whose socket is closed whatever happens: trio-websocket leaves it open at times."""
    async with await running.connect() as stream, trio.open_nursery() as nursery:
        extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        try:
            yield await wrap_client_stream(
                nursery, stream, f"127.0.0.1:{running.port}", path, extra_headers=extra
            )
        finally:
            nursery.cancel_scope.cancel()


# ---- accounts


def pk_of(signer: Ed25519PrivateKey) -> str:
    """A key as the API writes it."""
    return base64url(tagged(EntryKey(signer.public_key().public_bytes_raw())))


async def challenge_of(running: Running, purpose: str, pk: str = pk_of(SIGNER)) -> bytes:
    """A challenge of the server."""
    response = await running.http.get(f"/s5/account/{purpose}", params={"pubKey": pk})
    return from_base64url(response.json()["challenge"])


def answered(
    challenge: bytes, purpose: int, host: str, signer: Ed25519PrivateKey = SIGNER, pk: str = pk_of(SIGNER)
) -> dict[str, Any]:
    """The answer to it."""
    response = bytes([purpose]) + challenge + blake3(host.encode()).digest()
    signature = base64url(signer.sign(response))
    return {"pubKey": pk, "response": base64url(response), "signature": signature, "label": "test"}


async def entered(running: Running, purpose: str, signer: Ed25519PrivateKey = SIGNER) -> str:
    """Register or log in: a token."""
    pk = pk_of(signer)
    number = 1 if purpose == "register" else 2
    challenge = await challenge_of(running, purpose, pk)
    body = answered(challenge, number, f"127.0.0.1:{running.port}", signer, pk)
    response = await running.http.post(f"/s5/account/{purpose}", json=body)
    assert response.status_code == 200, response.text
    running.http.cookies.clear()
    token: str = response.json()["authToken"]
    return token
