"""Every listener of a node, and of what runs beside it, on real sockets: bytes of any kind, then the end."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from p2pnode.chain.dev.jsonrpc import JsonRpc
from p2pnode.chain.dev.jsonrpc_http import serve_http
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.protocols.s5.entries import tagged
from p2pnode.storage.s5.server.errors import STALE_TEXT
from p2pnode.storage.s5.wire import entry_json
from tests.fuzz.conftest import Counted
from tests.fuzz.corpus import vectors
from tests.fuzz.mutations import Input, Mutate, Tally, by_bytes, head_and_body, inputs
from tests.net.support import ask_echo, echo, make, make_client
from tests.net.test_strangers import LISTEN, address_of, request
from tests.storage.s5.support import KEY, entry, serving
from tests.storage.s5.test_peers import FIRST, WE, WE_ID

SHARE = [100, pytest.param(10_000, marks=pytest.mark.long)]
AT_ONCE = 32
PATIENCE_S = 0.2
"""A target that waits for more gets no more: it is left, as many strangers leave."""

HELLO = [
    b"\x13/multistream/1.0.0\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + bytes(range(32)),
    b"\x13/multistream/1.0.0\n\x03ls\n",
]


def ws_frame(payload: bytes, opcode: int = 2) -> bytes:
    """One masked frame of a client; the mask is all zero."""
    length = len(payload)
    head = bytes([0x80 | opcode])
    if length < 126:
        return head + bytes([0x80 | length]) + bytes(4) + payload
    return head + bytes([0x80 | 126]) + (length & 0xFFFF).to_bytes(2, "big") + bytes(4) + payload


UPGRADED = [request() + ws_frame(each) for each in HELLO] + [
    request() + ws_frame(b"", opcode) for opcode in (8, 9)
]


async def visit(port: int, data: bytes) -> tuple[str, bytes]:
    """One connection: how it ended, and what was answered."""
    answer = b""
    with contextlib.suppress(OSError):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.move_on_after(PATIENCE_S):
                try:
                    head, end, rest = data.partition(b"\r\n\r\n")
                    if end and b"pgrade" in head and rest:
                        # What follows an upgrade is sent once it was answered, or it is a request's body.
                        await stream.send_all(head + end)
                        answer = bytes(await stream.receive_some())
                        data = rest
                    await stream.send_all(data)
                    await stream.send_eof()
                    async for piece in stream:
                        answer += piece[: 4096 - len(answer)]
                except trio.BrokenResourceError:
                    return "reset", answer
                return "ended", answer
    return "left", answer


async def visit_all(port: int, made: Iterator[Input], tally: Tally) -> None:
    """A few at a time. What is answered over HTTP must never be that the server failed."""

    async def visitor() -> None:
        for each in made:
            with each.told():
                outcome, answer = await visit(port, each.data)
                status = answer[9:12].decode("ascii", "replace") if answer.startswith(b"HTTP/1.1 ") else ""
                assert status != "500" or STALE_TEXT.encode() in answer, answer
                tally.outcomes[f"HTTP {status}" if status else "answered" if answer else outcome] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(visitor)


async def nothing_left(before: int) -> None:
    """As many tasks as before."""
    with trio.fail_after(20):
        while trio.lowlevel.current_statistics().tasks_living > before:  # noqa: ASYNC110  there is no event
            await trio.sleep(0.05)


@contextlib.asynccontextmanager
async def a_network() -> AsyncIterator[Network]:
    """All services of a node over both transports; afterwards both serve, and nothing is left over."""
    network = make("fuzzed", listen=LISTEN, gossip=True, dht="server")
    network.serve("/p2pnode/echo/1", echo)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        yield network
        await nothing_left(before)
        client = make_client("honest")
        await nursery.start(client.run)
        for transport in ("tcp", "ws"):
            await client.connect(address_of(network, transport))
            await ask_echo(client, network)
        await client.aclose()
        # The WebSocket library's reader raises what its parsers raise, which is what its guard is for.
        failed = network.statistics().tasks_failed
        assert not [kind for kind in failed if not kind.startswith("_Reader._run")], failed
        await network.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", SHARE)
@pytest.mark.parametrize("transport", ["tcp", "ws"])
async def test_a_listener_of_a_node_withstands_any_bytes(
    transport: str, count: int, counted: Counted
) -> None:
    corpus, mutate = (HELLO, by_bytes) if transport == "tcp" else (UPGRADED, head_and_body)
    async with a_network() as network:
        port = int(address_of(network, transport).split("/")[4])
        with counted(f"{transport} listener") as tally:
            await visit_all(port, inputs(f"{transport} listener", count, corpus, mutate), tally)


def _http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body or method in ("POST", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _s5_requests() -> list[bytes]:
    pk = base64.urlsafe_b64encode(tagged(KEY)).decode().rstrip("=")
    signed = entry(1)
    written = json.dumps(entry_json(signed)).encode()
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n--b--\r\n'
    return [
        _http("GET", "/s5/version"),
        _http("GET", f"/s5/registry?pk={pk}"),
        _http("POST", "/s5/registry", written, Content_Type="application/json"),
        _http("POST", "/s5/upload", form, Content_Type="multipart/form-data; boundary=b"),
        _http(
            "POST", "/s5/upload/tus", Tus_Resumable="1.0.0", Upload_Length="5", Upload_Metadata="hash AAAA"
        ),
        _http("HEAD", "/s5/upload/tus/abc", Tus_Resumable="1.0.0"),
        _http("PATCH", "/s5/upload/tus/abc", b"hello", Tus_Resumable="1.0.0", Upload_Offset="0"),
        _http("GET", "/" + vectors("s5")["refused_ids"][0]["text"], Range="bytes=0-4"),
        _http("GET", "/s5/blob/uJh", Range="bytes=5-"),
        _http("GET", f"/s5/account/register?pubKey={pk}"),
        _http(
            "POST", "/s5/account/register", b'{"pubKey":"%s","response":"AA","signature":"AA"}' % pk.encode()
        ),
        _http("DELETE", "/s5/delete/uJh"),
        _http("GET", "/s5/p2p/nodes"),
        request(b"/s5/p2p") + ws_frame(FIRST),
        request(b"/s5/registry/subscription") + ws_frame(b"\x02\xc4\x21" + tagged(KEY)),
    ]


S5_FRAMES = [bytes.fromhex(each["hex"]) for each in vectors("s5")["messages"] if each.get("hex")]


def _on_websocket(path: bytes) -> Callable[[bytes], bytes]:
    return lambda payload: request(path) + ws_frame(FIRST) + ws_frame(payload[:60_000])


@pytest.mark.parametrize("count", SHARE)
@pytest.mark.parametrize("part", ["S5 HTTP", "S5 websocket"])
async def test_the_s5_server_withstands_any_request(
    part: str, count: int, counted: Counted, tmp_path: Path
) -> None:
    if part == "S5 HTTP":
        made = inputs(part, count, _s5_requests(), head_and_body)
    else:
        made = inputs(part, count, S5_FRAMES, by_bytes, _on_websocket(b"/s5/p2p"))
    # Connections that have left are served for a second more: the cap must not be what answers.
    limits = Limits(s5_connections_max=100_000, s5_peers_max=100_000)
    async with serving(tmp_path, node=WE_ID, sign=WE.sign, accounts=True, limits=limits) as running:
        assert (await running.http.get("/s5/version")).status_code == 200
        await running.http.aclose()
        before = trio.lowlevel.current_statistics().tasks_living
        with counted(part) as tally:
            await visit_all(running.port, made, tally)
        await nothing_left(before)
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{running.server.url}/s5/version")).status_code == 200


def _rpc_methods() -> dict[str, Callable[..., Any]]:
    return {"eth_call": lambda call, tag: [call, tag], "eth_chainId": lambda: "0x1"}


@pytest.mark.parametrize("count", SHARE)
async def test_the_rpc_of_a_development_chain_withstands_any_request(count: int, counted: Counted) -> None:
    rpc = JsonRpc(_rpc_methods())

    async def answer(body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return rpc.answer(body)

    async def run(*, task_status: trio.TaskStatus[int]) -> None:
        await serve_http(answer, host="127.0.0.1", port=0, task_status=task_status)

    call = b'{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{},"latest"]}'
    corpus = [
        _http("POST", "/", call, Content_Type="application/json"),
        _http("POST", "/", b"[" + call + b"]", Content_Type="application/json"),
        _http(
            "POST",
            "/",
            b"5\r\nhello\r\n0\r\n\r\n",
            Content_Type="application/json",
            Transfer_Encoding="chunked",
        ),
    ]
    mutate: Mutate = head_and_body
    async with trio.open_nursery() as nursery:
        port = await nursery.start(run)
        before = trio.lowlevel.current_statistics().tasks_living
        with counted("JSON-RPC listener") as tally:
            await visit_all(port, inputs("JSON-RPC listener", count, corpus, mutate), tally)
        await nothing_left(before)
        async with httpx.AsyncClient(trust_env=False) as http:
            honest = await http.post(f"http://127.0.0.1:{port}", json={"id": 1, "method": "eth_chainId"})
        assert honest.json()["result"] == "0x1"
        nursery.cancel_scope.cancel()
