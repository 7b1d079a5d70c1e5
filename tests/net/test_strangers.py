"""Strangers at a whole node's sockets, inbound and outbound: what they send ends their connection only."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from p2pnode.errors import UnreachableError
from p2pnode.net.network import Network
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from tests.net.support import ECHO, ask_echo, echo, eventually, make_client

LISTEN = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")
UPGRADE = {
    b"Host": b"127.0.0.1",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": base64.b64encode(bytes(16)),
    b"Sec-WebSocket-Version": b"13",
}
KEY = PeerKey(hashlib.sha256(b"a whole node").digest())


@contextlib.asynccontextmanager
async def whole_node(bootstrap: tuple[str, ...] = ()) -> AsyncIterator[Node]:
    """A node with both listeners; on leaving it must serve an honest client on each, and end in order."""
    node = Node(NodeSetup(key=KEY, listen=LISTEN, bootstrap=bootstrap))
    node.network.serve(ECHO, echo)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        async with honest_client() as client:
            for transport in ("tcp", "ws"):
                await client.connect(address_of(node.network, transport))
                await ask_echo(client, node.network)
        await node.aclose()


@contextlib.asynccontextmanager
async def honest_client() -> AsyncIterator[Network]:
    """A network of its own, which only dials."""
    client = make_client("honest")
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield client
        await client.aclose()


def address_of(network: Network, transport: str) -> str:
    """Its address for ``tcp`` or ``ws``."""
    [found] = [each for each in network.multiaddrs if ("/ws/" in each) == (transport == "ws")]
    return found


async def say(address: str, data: bytes) -> bytes:
    """Send bytes to a listener, half-close, and read to the end, as a stranger who knows no libp2p."""
    answer = b""
    async with await trio.open_tcp_stream("127.0.0.1", int(address.split("/")[4])) as stream:
        with trio.move_on_after(15), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(data)
            await stream.send_eof()
            async for piece in stream:
                answer += piece
            return answer
    pytest.fail("the node holds on to a connection that says nothing of use")


def request(target: bytes = b"/", method: bytes = b"GET", **headers: bytes) -> bytes:
    """A WebSocket request with some headers changed."""
    all_headers = UPGRADE | {name.replace("_", "-").encode(): value for name, value in headers.items()}
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in all_headers.items())
    return method + b" " + target + b" HTTP/1.1\r\n" + lines + b"\r\n"


@pytest.mark.parametrize(
    "hostile",
    [
        request(Host=b"\xff"),
        *(request(**{name.decode().replace("-", "_"): b"\xff\xfe"}) for name in UPGRADE),
        request(target=b"/\xff"),
        request(method=b"P\xffST"),
        request(Sec_WebSocket_Protocol=b"\xff"),
        request(Sec_WebSocket_Extensions=b"permessage-deflate; client_max_window_bits=\xff"),
        request(Sec_WebSocket_Extensions=b"permessage-deflate; client_max_window_bits=99999"),
        request(Cookie=b"\xff"),
        request(Origin=b"\x80"),
        b"\x00" * 64 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda data: ascii(data[:40]),
)
async def test_a_websocket_request_of_any_bytes_ends_its_own_connection_only(hostile: bytes) -> None:
    async with whole_node() as node:
        await say(address_of(node.network, "ws"), hostile)


async def test_a_failure_that_nobody_expected_is_counted_by_its_name() -> None:
    async with whole_node() as node:
        await say(address_of(node.network, "ws"), request(Host=b"\xff"))
        await eventually(
            lambda: any("UnicodeDecodeError" in kind for kind in node.network.statistics().tasks_failed)
        )


async def test_an_honest_client_leaves_that_count_empty() -> None:
    async with whole_node() as node:
        async with honest_client() as client:
            await client.connect(address_of(node.network, "ws"))
            await ask_echo(client, node.network)
        assert node.network.statistics().tasks_failed == {}


Answer = Callable[[trio.SocketStream], Awaitable[None]]


async def web_page(stream: trio.SocketStream) -> None:
    """What a plain web server says."""
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def libp2p_tcp(stream: trio.SocketStream) -> None:
    """What a plain libp2p TCP listener says."""
    await stream.send_all(b"\x13/multistream/1.0.0\n\x03na\n")


async def undecodable(stream: trio.SocketStream) -> None:
    """A refusal whose headers are no text."""
    await stream.receive_some()
    await stream.send_all(
        b"HTTP/1.1 101 \xff\r\nUpgrade: \xff\r\nConnection: \xff\r\nSec-WebSocket-Accept: \xff\r\n\r\n"
    )


async def accepts_and_leaves(stream: trio.SocketStream) -> None:
    """A right upgrade, then bytes that are no WebSocket frames."""
    head = bytes(await stream.receive_some())
    key = head.partition(b"sec-websocket-key: ")[2] or head.partition(b"Sec-WebSocket-Key: ")[2]
    proof = hashlib.sha1(key.partition(b"\r\n")[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(proof) + b"\r\n\r\n" + b"\xff" * 200
    )


async def silent_end(stream: trio.SocketStream) -> None:
    """The end at once."""


SERVERS = [web_page, libp2p_tcp, undecodable, accepts_and_leaves, silent_end]


@contextlib.asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A listener that is no node of ours; its full WebSocket multiaddr, with some peer's id."""
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def once(stream: trio.SocketStream) -> None:
            async with stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    await answer(stream)

        nursery.start_soon(trio.serve_listeners, once, [listener])
        port = listener.socket.getsockname()[1]
        yield f"/ip4/127.0.0.1/tcp/{port}/ws/p2p/{PeerKey(bytes(32)).peer_id}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", SERVERS)
async def test_a_websocket_address_where_something_else_answers_is_a_dial_that_fails(answer: Answer) -> None:
    async with server(answer) as address, whole_node() as node:
        with trio.fail_after(5), pytest.raises(UnreachableError):  # long before the dial's own deadline
            await node.network.connect(address)


@pytest.mark.parametrize("answer", SERVERS)
async def test_such_an_address_as_the_first_peer_ends_no_node(answer: Answer) -> None:
    async with server(answer) as address, whole_node(bootstrap=(address,)) as node:
        await node.peers.joined.wait()
        assert node.network.statistics().dials.get("failed", 0) >= 1


async def test_a_stranger_s_addresses_that_are_none_are_passed_over_and_the_right_one_is_dialled() -> None:
    async with whole_node() as node, honest_client() as client:
        wrong = ("/ip6zone/lo/ip6/::1/tcp/1", "/unix/tmp/x", "nonsense", "", "/tcp/1", "/ip4/1.2.3.4")
        client.policy.trust(node.network.multiaddrs)  # this network is loopback
        await client.connect_peer(node.peer_id, (*wrong, address_of(node.network, "tcp")))
        assert client.connected_peers() == (node.peer_id,)
        with pytest.raises(UnreachableError):
            await node.network.connect_peer(PeerKey(bytes(32)).peer_id, wrong)
