"""S5 nodes on each other's websockets: dialled and dialling, over loopback."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio_websocket import ConnectionClosed, ConnectionRejected

from p2pnode.errors import UnreachableError
from p2pnode.limits import Limits
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.protocols.s5.messages import HandshakeOpen, decode, encode
from p2pnode.protocols.s5.nodes import NodeId, PeerUri, node_text
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.rules import Quotas
from p2pnode.storage.s5.peer import S5Node
from p2pnode.storage.s5.server.context import WatchedRegistry
from p2pnode.storage.s5.wire import entry_json
from p2pnode.storage.store import OwnerKey
from tests.storage.s5.dialler import dial_s5
from tests.storage.s5.support import HELLO, KEY, OWNER, entry, serving, websocket

WE, THEY = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (8, 9))
WE_ID, THEY_ID = (NodeId(each.public_key().public_bytes_raw()) for each in (WE, THEY))
P2P = "/s5/p2p"
FIRST = encode(HandshakeOpen(challenge=bytes(32)))
"""Who dials speaks first."""


def another(store: MemoryStore | None = None) -> S5Node:
    """The node that dials."""
    store = store or MemoryStore(lambda: 0.0)
    return S5Node(id=THEY_ID, sign=THEY.sign, blobs=store, registry=WatchedRegistry(store), wall=lambda: 0.0)


async def test_a_blob_is_found_and_fetched_where_it_is_said_to_be(tmp_path: Path) -> None:
    async with serving(tmp_path, node=WE_ID, sign=WE.sign, wall=lambda: 1000.0) as running:
        await running.store.put(HELLO, owner=OWNER)
        [uri] = (await running.http.get("/s5/p2p/nodes")).json()["nodes"][0]["uris"]
        with trio.fail_after(5):
            async with dial_s5(uri, another(), stall_s=5) as peer:
                assert peer.other == WE_ID
                location = await peer.find(hash_of(HELLO))
                assert location.holds()
                assert (location.node, location.expires_at) == (WE_ID, 4600)
                async with httpx.AsyncClient(trust_env=False) as http:
                    assert (await http.get(location.parts[0])).content == HELLO


async def test_entries_travel_both_ways_and_newer_ones_are_handed_on(tmp_path: Path) -> None:
    theirs = MemoryStore(lambda: 0.0)
    node = another(theirs)
    assert isinstance(node.registry, WatchedRegistry)
    async with serving(tmp_path, node=WE_ID, sign=WE.sign) as running:
        assert running.server.node is not None
        with (
            trio.fail_after(5),
            node.registry.watch(9) as told_them,
            running.server.registry.watch(9) as told_us,
        ):
            async with dial_s5(running.server.node.uris[0], node, stall_s=5) as peer:
                await running.store.set(entry(1), owner=OWNER)
                assert await peer.ask(KEY) == entry(1)
                await running.http.post("/s5/registry", json=entry_json(entry(2)))
                assert await told_them.receive() == entry(2)
                assert await told_us.receive() == entry(2)
                await peer.push(entry(3))
                assert await told_us.receive() == entry(3)
                assert await running.store.get(KEY) == entry(3)


async def test_what_a_peer_brings_counts_for_that_peer(tmp_path: Path) -> None:
    quotas = Quotas(owner_keys=1)
    async with serving(tmp_path, node=WE_ID, sign=WE.sign, quotas=quotas) as running:
        assert running.server.node is not None
        with trio.fail_after(5), running.server.registry.watch(9) as told:
            async with dial_s5(running.server.node.uris[0], another(), stall_s=5) as peer:
                await peer.push(entry(1))
                await told.receive()
        assert running.store.entries[KEY][1] == OwnerKey(THEY_ID)


async def test_who_answers_in_anothers_place_is_not_connected_to(tmp_path: Path) -> None:
    async with serving(tmp_path, node=WE_ID, sign=WE.sign) as running:
        wrong = PeerUri(host="127.0.0.1", port=running.port, tls=False, node=THEY_ID).text()
        ourselves = S5Node(
            id=WE_ID, sign=WE.sign, blobs=running.store, registry=running.store, wall=lambda: 0.0
        )
        assert running.server.node is not None
        for uri, node in ((wrong, another()), (running.server.node.uris[0], ourselves)):
            with (
                trio.fail_after(5),
                pytest.raises(UnreachableError),
            ):
                async with dial_s5(uri, node, stall_s=5):
                    pass


async def test_where_nobody_is_is_said_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:  # no node: no such route
        uri = PeerUri(host="127.0.0.1", port=running.port, tls=False).text()
        with (
            trio.fail_after(5),
            pytest.raises(UnreachableError),
        ):
            async with dial_s5(uri, another(), stall_s=5):
                pass
    with pytest.raises(UnreachableError):
        async with dial_s5(uri, another(), stall_s=5):
            pass


@pytest.mark.parametrize("frame", [b"\xff", b"\x01", b"\x05" + bytes(9), b""])
async def test_a_peer_that_talks_nonsense_is_left(tmp_path: Path, frame: bytes) -> None:
    async with serving(tmp_path, node=WE_ID, sign=WE.sign) as running, websocket(running, P2P) as socket:
        with trio.fail_after(5):
            await socket.send_message(FIRST)
            first = await socket.get_message()
            assert isinstance(first, bytes)
            assert isinstance(decode(first), HandshakeOpen)
            assert await socket.get_message()
            await socket.send_message(frame)
            with pytest.raises(ConnectionClosed):
                await socket.get_message()


async def test_peers_are_bounded(tmp_path: Path) -> None:
    limits = Limits(s5_peers_max=1)
    async with (
        serving(tmp_path, node=WE_ID, sign=WE.sign, limits=limits) as running,
        websocket(running, P2P) as socket,
    ):
        await socket.send_message(FIRST)
        await socket.get_message()
        with pytest.RaisesGroup(ConnectionRejected, flatten_subgroups=True, allow_unwrapped=True):
            async with websocket(running, P2P):
                pass


async def test_with_a_token_a_peer_needs_it_and_is_told_no_url_that_it_could_not_open(tmp_path: Path) -> None:
    token = "a token of the owner"
    async with serving(tmp_path, node=WE_ID, sign=WE.sign, token=token) as running:
        with pytest.RaisesGroup(ConnectionRejected, flatten_subgroups=True, allow_unwrapped=True):
            async with websocket(running, P2P):
                pass
        async with websocket(running, f"{P2P}?auth_token=a%20token%20of%20the%20owner") as socket:
            await socket.send_message(FIRST)
            assert await socket.get_message()


async def test_the_node_says_who_it_is_and_where(tmp_path: Path) -> None:
    async with serving(tmp_path, node=WE_ID, sign=WE.sign) as running:
        [told] = (await running.http.get("/s5/p2p/nodes")).json()["nodes"]
        assert told["id"] == node_text(WE_ID)
        assert told["uris"] == [f"ws://{node_text(WE_ID)}@127.0.0.1:{running.port}/s5/p2p"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 101 \xff\r\nUpgrade: \xff\r\n\r\n",
        b"HTTP/1.1 101 A\r\n\r\nHTTP/1.1 101 B\r\n\r\n",
        b"HTTP/1.1 ",
        b"\x13/multistream/1.0.0\n",
        b"",
    ],
)
async def test_what_is_no_websocket_where_a_node_should_be_can_t_be_reached_and_is_not_waited_for(
    answer: bytes,
) -> None:
    async def once(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)
            await stream.send_eof()
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, once, 0, host="127.0.0.1"))
        uri = PeerUri(host="127.0.0.1", port=listener.socket.getsockname()[1], tls=False, node=WE_ID).text()
        with trio.fail_after(5):
            with pytest.raises(UnreachableError, match="can't be reached"):
                async with dial_s5(uri, another(), stall_s=5):
                    pass
        nursery.cancel_scope.cancel()


async def test_a_name_that_no_resolver_takes_can_t_be_reached() -> None:
    uri = PeerUri(host="127..1", port=1, tls=False, node=WE_ID).text()
    with trio.fail_after(5), pytest.raises(UnreachableError, match="can't be reached"):
        async with dial_s5(uri, another(), stall_s=5):
            pass
