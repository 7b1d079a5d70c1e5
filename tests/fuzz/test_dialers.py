"""Everything that dials, against servers that answer with bytes of any kind: it fails as a dial does.

The servers are real sockets on loopback; each connection is answered with the next input, and then ended.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
import trio

from p2pnode.chain.evm.rpc import RpcEndpoints, RpcLimits
from p2pnode.chain.evm.rpc_answers import shape_of
from p2pnode.errors import ChainError, P2PNodeError, RemoteError, UnreachableError
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.protocols.s5.nodes import PeerUri
from p2pnode.storage.s5.client import S5Client, S5Link
from p2pnode.storage.s5.wire import entry_json
from tests.fuzz.conftest import Counted
from tests.fuzz.mutations import Input, Tally, head_and_body, inputs, json_values
from tests.fuzz.test_listeners import HELLO, S5_FRAMES, a_network, nothing_left
from tests.storage.s5.dialler import dial_s5
from tests.storage.s5.support import HELLO as BLOB
from tests.storage.s5.support import KEY, OWNER, entry
from tests.storage.s5.test_peers import FIRST, WE_ID, another

SHARE = [60, pytest.param(10_000, marks=pytest.mark.long)]
STRANGER = PeerKey(bytes(32)).peer_id
AT_ONCE = 4
DEADLINE_S = 5.0
_KEY = re.compile(rb"sec-websocket-key: ([^\r]*)", re.IGNORECASE)


class Server:
    """Answers each connection with the present input; ``{accept}`` in it stands for WebSocket's proof."""

    def __init__(self) -> None:
        self.data = b""
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._answer, [listener])
            task_status.started()

    async def _answer(self, stream: trio.SocketStream) -> None:
        with trio.move_on_after(DEADLINE_S), contextlib.suppress(trio.BrokenResourceError):
            data = self.data
            if data.startswith(b"HTTP"):
                found = _KEY.search(await stream.receive_some())
                data = data.replace(b"{accept}", _proof(found[1] if found is not None else b""))
            await stream.send_all(data)
            await stream.send_eof()
            async for _ in stream:
                pass


def _proof(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


async def dial_all(made: Iterator[Input], tally: Tally, dial: Callable[[int], Awaitable[str]]) -> None:
    """``dial(port)`` once for each input; no answer takes it longer than the server waits."""

    async def dialler() -> None:
        server = Server()
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            for each in made:
                server.data = each.data
                with each.told(), trio.fail_after(3 * DEADLINE_S):
                    tally.outcomes[await dial(server.port)] += 1
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(dialler)


UPGRADE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: {accept}\r\n\r\n"
)


def frame(payload: bytes, opcode: int = 2) -> bytes:
    """One frame of a server."""
    if len(payload) < 126:
        return bytes([0x80 | opcode, len(payload)]) + payload
    return bytes([0x80 | opcode, 126]) + (len(payload) & 0xFFFF).to_bytes(2, "big") + payload


@pytest.mark.parametrize("count", SHARE)
@pytest.mark.parametrize("transport", ["tcp", "ws"])
async def test_a_dial_of_a_node_survives_any_answer(transport: str, count: int, counted: Counted) -> None:
    target = f"{transport} dial"
    if transport == "tcp":
        made = inputs(target, count, HELLO)
    else:
        corpus = [UPGRADE + frame(each) for each in HELLO] + [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        ]
        made = inputs(target, count, [*corpus, UPGRADE + frame(b"", 8)], head_and_body)
    async with a_network() as network:

        async def dial(port: int) -> str:
            suffix = "/ws" if transport == "ws" else ""
            try:
                # Each is another peer, so that no dial waits for one before.
                peer = PeerKey(hashlib.sha256(b"%d %d" % (port, next(numbers))).digest()).peer_id
                await network.connect(f"/ip4/127.0.0.1/tcp/{port}{suffix}/p2p/{peer}")
            except UnreachableError:
                return "unreachable"
            return "connected"

        numbers = iter(range(10**9))
        with counted(target) as tally:
            await dial_all(made, tally, dial)
        assert set(tally.outcomes) == {"unreachable"}


@pytest.mark.parametrize("count", SHARE)
async def test_a_dial_of_an_s5_node_survives_any_answer(count: int, counted: Counted) -> None:
    corpus = [UPGRADE + frame(FIRST) + frame(each) for each in S5_FRAMES]
    node = another()

    async def dial(port: int) -> str:
        uri = PeerUri(host="127.0.0.1", port=port, tls=False, node=WE_ID).text()
        try:
            async with dial_s5(uri, node, stall_s=1):
                return "connected"
        except RemoteError as error:
            return type(error).__name__

    before = trio.lowlevel.current_statistics().tasks_living
    with counted("S5 dial") as tally:
        await dial_all(inputs("S5 dial", count, corpus, head_and_body), tally, dial)
    await nothing_left(before)
    assert "connected" not in tally.outcomes


def _answer(body: bytes, status: bytes = b"200 OK", *lines: bytes) -> bytes:
    head = [b"HTTP/1.1 " + status, b"Connection: close", b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


S5_ANSWERS = [
    _answer(BLOB),
    _answer(BLOB[:5], b"206 Partial Content", b"Content-Range: bytes 0-4/13"),
    _answer(json.dumps(entry_json(entry(1))).encode()),
    _answer(b'{"error": "no such blob"}', b"404 Not Found"),
    _answer(b"", b"302 Found", b"Location: http://127.0.0.1:9/x"),
    _answer(b'{"error": "slow down"}', b"429 Too Many", b"Retry-After: 5"),
    _answer(b'{"cid": "uJh"}', b"200 OK", b"Content-Type: application/json"),
    _answer(b"Revision number too low", b"500 Internal"),
]


@contextlib.asynccontextmanager
async def s5_client(port: int) -> AsyncIterator[S5Client]:
    """A client of the server at a port; without TLS it needs no certificates, which take long to load."""
    transport = httpx.AsyncHTTPTransport(verify=False, trust_env=False)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
        yield S5Client(S5Link(http, f"http://127.0.0.1:{port}"))


# httpx leaves the generator of a request's body to the collector when the answer comes before it was read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("count", SHARE)
async def test_a_client_of_an_s5_node_survives_any_answer(count: int, counted: Counted) -> None:
    digest = hash_of(BLOB)
    turn = 0

    async def dial(port: int) -> str:
        nonlocal turn
        turn += 1
        async with s5_client(port) as client:
            asked: list[Callable[[], Awaitable[Any]]] = [
                lambda: client.read(digest),
                lambda: client.read(digest, 0, 5),
                lambda: client.size(digest),
                lambda: client.get(KEY),
                lambda: client.put(BLOB, owner=OWNER, expected=digest),
                lambda: client.set(entry(1), owner=OWNER),
            ]
            try:
                await asked[turn % len(asked)]()
            except P2PNodeError as error:
                return type(error).__name__
            return "taken"

    before = trio.lowlevel.current_statistics().tasks_living
    with counted("S5 answers") as tally:
        await dial_all(inputs("S5 answers", count, S5_ANSWERS, head_and_body), tally, dial)
    await nothing_left(before)


RPC_ANSWERS = [
    json.dumps({"jsonrpc": "2.0", "id": 1, **each}).encode()
    for each in (
        {"result": None},
        {"result": "0x1"},
        {"result": {"number": "0x1", "timestamp": "0x1", "hash": "0x" + "11" * 32, "baseFeePerGas": "0x1"}},
        {"error": {"code": -32000, "message": "header not found"}},
        {"error": {"code": 3, "message": "execution reverted", "data": "0x"}},
    )
]


@pytest.mark.parametrize("count", SHARE)
@pytest.mark.parametrize("part", ["RPC answers", "RPC answers' HTTP"])
async def test_the_ledger_s_rpc_survives_any_answer(part: str, count: int, counted: Counted) -> None:
    if part == "RPC answers":
        made = inputs(part, count, RPC_ANSWERS, json_values, _answer)
    else:
        made = inputs(part, count, [_answer(each) for each in RPC_ANSWERS], head_and_body)
    method = "eth_getBlockByNumber"
    # One try each: an endpoint that failed rests for longer than the whole request may take.
    limits = RpcLimits(request_deadline_s=2.0, deadline_s=2.0, rest_first_s=100.0, rest_max_s=100.0)

    async def dial(port: int) -> str:
        rpc = RpcEndpoints(
            [f"http://127.0.0.1:{port}"],
            chain_id=None,
            jitter=lambda: 1.0,
            limits=limits,
            transport=httpx.AsyncHTTPTransport(verify=False, trust_env=False),
        )
        try:
            await rpc.request(method, ["latest", False], shape_of(method))
        except ChainError as error:
            return type(error).__name__
        finally:
            await rpc.aclose()
        return "taken"

    before = trio.lowlevel.current_statistics().tasks_living
    with counted(part) as tally:
        await dial_all(made, tally, dial)
    await nothing_left(before)
