"""A neighbour in the DHT that answers anything: it costs one question, and nothing of our own state."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from p2pnode.net.multiaddrs import to_id
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.protocols.gossipsub.commands import ACCEPT
from tests.net.support import ECHO, ask_echo, echo, eventually, make

KAD = "/p2pnode/kad/1.0.0"
TOPIC = "/p2pnode/hostile-dht/1"
KEY = bytes(range(32))
ADDRESS = Multiaddr("/ip4/127.0.0.1/tcp/9").to_bytes()


def peers(count: int) -> list[Message.Peer]:
    """Made-up peers with an address each."""
    keys = (create_new_key_pair(number.to_bytes(32, "big")) for number in range(count))
    return [Message.Peer(id=ID.from_pubkey(key.public_key).to_bytes(), addrs=[ADDRESS]) for key in keys]


CROWD = peers(1500)
_ODD = [
    Message.Peer(id=b"", addrs=[ADDRESS]),
    Message.Peer(id=b"\xff" * 5000, addrs=[b"\xff" * 300, b"", b"\x2a\x02lo"]),
    Message.Peer(id=to_id(make("node").peer_id).to_bytes(), addrs=[ADDRESS]),
]
KINDS = Message.MessageType
ANSWERS: dict[str, Callable[[], bytes]] = {
    "a crowd": lambda: Message(type=KINDS.FIND_NODE, closerPeers=CROWD).SerializeToString(),
    "a crowd of providers": lambda: Message(
        type=KINDS.GET_PROVIDERS, providerPeers=CROWD[:600], closerPeers=CROWD[600:]
    ).SerializeToString(),
    "odd peers": lambda: Message(type=KINDS.FIND_NODE, closerPeers=_ODD).SerializeToString(),
    "odd providers": lambda: Message(type=KINDS.GET_PROVIDERS, providerPeers=_ODD).SerializeToString(),
    "another kind": lambda: Message(type=KINDS.PING).SerializeToString(),
    "no message": lambda: b"\xff" * 64,
    "nothing": lambda: b"",
}


@contextlib.asynccontextmanager
async def node_beside_a_liar(answer: bytes) -> AsyncIterator[tuple[Network, Network]]:
    """A node with all its services, an honest neighbour, and a DHT server that always says ``answer``."""
    node, honest = (make(name, dht="server", gossip=True) for name in ("node", "honest"))
    liar = make("liar", dht="server")

    async def lie(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(encode_varint_prefixed(answer))

    async with trio.open_nursery() as nursery:
        for network in (node, honest, liar):
            network.serve(ECHO, echo)
            await nursery.start(network.run)
        liar.serve(KAD, lie)
        await node.connect(honest.multiaddrs[0])
        await node.connect(liar.multiaddrs[0])
        await eventually(lambda: node.stats().dht_peers == 2)
        yield node, honest
        for network in (node, honest, liar):
            await network.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_of_a_dht_peer_costs_that_question_only(name: str) -> None:
    async with node_beside_a_liar(ANSWERS[name]()) as (node, honest):
        heard = await honest.subscribe(TOPIC, lambda _author, _data: ACCEPT)
        await node.subscribe(TOPIC, lambda _author, _data: ACCEPT)
        await eventually(lambda: honest.peer_id in node.topic_peers(TOPIC))
        await node.provide(KEY)
        await node.find_providers(bytes(32), limit=3)
        await node.provide(bytes(32))
        await node.publish(TOPIC, b"still there")
        with trio.fail_after(10):
            assert await anext(heard) == (node.peer_id, b"still there")
        await honest.disconnect(node.peer_id)
        await ask_echo(honest, node)
        assert node.stats().tasks_failed == {}
