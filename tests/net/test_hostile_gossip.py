"""Neighbours on the mesh that misbehave on their streams; what they say is in tests/protocols/gossipsub."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.limits import Limits
from p2pnode.net import yamux as wire
from p2pnode.net.negotiation import MULTISTREAM
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.stream import Stream
from p2pnode.net.upgrader import Upgrader
from p2pnode.protocols.gossipsub.commands import ACCEPT
from p2pnode.protocols.gossipsub.messages import PROTOCOL_1_1, PROTOCOL_1_2, RPC_MAX
from tests.net.memory_world import world
from tests.net.support import eventually, make

TOPIC = "/p2pnode/hostile-gossip/1"
RPC = rpc_pb2.RPC


def raw_gossip(index: int, config: NetworkConfig) -> NetworkConfig:
    """All but the first speak no gossip of their own: the test says what they say."""
    return dataclasses.replace(config, gossip=index == 0, limits=Limits(gossip_send_bytes=64 * 1024))


async def sleep_on(stream: Stream) -> None:
    """Take a stream, and never read it."""
    del stream
    await trio.sleep_forever()


@contextlib.asynccontextmanager
async def attacked() -> AsyncIterator[tuple[Network, Network, Stream]]:
    """A node on a topic, a raw peer, and that one's stream to it; it takes the node's and never reads."""
    async with world(2, extra=raw_gossip) as w:
        node, peer = w.nodes
        await node.subscribe(TOPIC, lambda _author, _data: ACCEPT)
        peer.serve(PROTOCOL_1_1, sleep_on)
        await peer.connect(node.multiaddrs[0])
        yield node, peer, await peer.open_stream(node.peer_id, PROTOCOL_1_1)


async def send(stream: Stream, rpc: rpc_pb2.RPC) -> None:
    """One RPC."""
    await stream.send_all(encode_varint_prefixed(rpc.SerializeToString()))


def subscriptions(*topics: str) -> rpc_pb2.RPC:
    """To each of these."""
    return RPC(subscriptions=[RPC.SubOpts(subscribe=True, topicid=topic) for topic in topics])


async def ended(stream: Stream) -> None:
    """Wait until the node has ended this stream."""
    with contextlib.suppress(UnreachableError):
        while await stream.receive_some():
            pass


async def test_a_peer_that_takes_no_stream_of_ours_is_heard_all_the_same(autojump_clock: MockClock) -> None:
    async with world(2, extra=raw_gossip) as w:
        node, peer = w.nodes
        await node.subscribe(TOPIC, lambda _author, _data: ACCEPT)
        await peer.connect(node.multiaddrs[0])
        stream = await peer.open_stream(node.peer_id, PROTOCOL_1_2)
        await send(stream, subscriptions(TOPIC))
        await eventually(lambda: node.topic_peers(TOPIC) == (peer.peer_id,))
        assert node.statistics().gossip.held["mesh"] == 0
        await peer.disconnect(node.peer_id)
        await eventually(lambda: node.topic_peers(TOPIC) == ())


async def test_a_peer_that_does_not_read_loses_what_waits_and_its_place_but_no_connection(
    autojump_clock: MockClock,
) -> None:
    async with attacked() as (node, peer, stream):
        await send(stream, subscriptions(TOPIC))
        await eventually(lambda: node.statistics().gossip.held["mesh"] == 1)
        for _ in range(60):
            await node.publish(TOPIC, bytes(60_000))
            await trio.sleep(0.1)
        stats = node.statistics()
        assert stats.gossip.counts["overflows"] == 1
        assert stats.gossip.held["mesh"] == 0
        assert stats.faults == {}
        assert node.is_connected(peer.peer_id)
        assert node.topic_peers(TOPIC) == (peer.peer_id,)
        await trio.sleep(62)  # it gets a new stream
        await eventually(lambda: node.statistics().gossip.held["mesh"] == 1)


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xff\xff\xff\xff", encode_varint_prefixed(bytes(RPC_MAX + 1)), b"\x05\xff\xff\xff\xff\xff"],
    ids=["an endless length", "too long", "no protocol buffer"],
)
async def test_a_peer_that_sends_no_rpcs_is_charged(raw: bytes, autojump_clock: MockClock) -> None:
    async with attacked() as (node, _, stream):
        with contextlib.suppress(UnreachableError):
            await stream.send_all(raw)
        await eventually(lambda: node.statistics().faults.get("gossip.malformed") == 1)


async def test_a_peer_that_goes_on_sending_nonsense_is_left(autojump_clock: MockClock) -> None:
    async with attacked() as (node, peer, stream):
        with contextlib.suppress(UnreachableError):
            for _ in range(10):
                await stream.send_all(b"\x05\xff\xff\xff\xff\xff")
        await eventually(lambda: not node.is_connected(peer.peer_id), 30)
        assert node.statistics().faults["gossip.malformed"] <= 5


async def test_an_rpc_that_never_ends_ends_its_stream(autojump_clock: MockClock) -> None:
    async with attacked() as (node, _, stream):
        await stream.send_all(encode_varint_prefixed(bytes(1000))[:500])
        with trio.fail_after(20):
            await ended(stream)
        assert node.statistics().faults == {"gossip.stalled": 1}


async def test_a_stream_that_is_agreed_while_its_connection_is_closed_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    async with world(1) as w:
        [node] = w.nodes
        await node.subscribe(TOPIC, lambda _author, _data: ACCEPT)
        bare = await w.net.dial("10.9.9.9", ("10.0.0.1", 4001))
        upgrader = Upgrader(b"leaving".ljust(32), Limits())
        conn = (await upgrader.upgrade_outbound(RawConnection(bare, True), node.peer_id)).secured_conn
        await conn.write(data_frame(MULTISTREAM, wire.SYN))
        await eventually(lambda: node.is_connected(upgrader.peer))
        # The peer doesn't read. So many answers to pings fill the wire and a part of the node's queue: the
        # node can't end the connection at once.
        for _ in range(20):
            await conn.write(wire.frame(wire.PING, wire.SYN, 0, 1) * 5000)
        await trio.sleep(1)
        assert node.charge(upgrader.peer, "test", 100.0) == "leave"
        await eventually(lambda: not node.is_connected(upgrader.peer))
        await conn.write(data_frame(PROTOCOL_1_1))
        await trio.sleep(60)
        assert node.statistics().gossip.held["peers"] == 0


def data_frame(line: str, flags: int = 0) -> bytes:
    """A line of multistream-select on the peer's first stream."""
    body = encode_varint_prefixed(line.encode() + b"\n")
    return wire.frame(wire.DATA, flags, 1, len(body)) + body


async def test_silence_is_no_fault(autojump_clock: MockClock) -> None:
    async with attacked() as (node, peer, stream):
        await send(stream, subscriptions(TOPIC))
        await trio.sleep(1200)
        assert node.topic_peers(TOPIC) == (peer.peer_id,)
        assert node.statistics().faults == {}


async def test_a_second_stream_replaces_the_first_and_a_third_waits_for_nobody(
    autojump_clock: MockClock,
) -> None:
    async with attacked() as (node, peer, first):
        second = await peer.open_stream(node.peer_id, PROTOCOL_1_1)
        with trio.fail_after(20):
            await ended(first)
        await send(second, subscriptions(TOPIC))
        await eventually(lambda: node.topic_peers(TOPIC) == (peer.peer_id,))
        third = await peer.open_stream(node.peer_id, PROTOCOL_1_2)
        with trio.fail_after(20):
            await ended(second)
        await send(third, subscriptions("and-then"))
        await eventually(lambda: node.topic_peers("and-then") == (peer.peer_id,))


async def test_an_empty_rpc_is_none_of_anybody_s_business(autojump_clock: MockClock) -> None:
    """go-libp2p-pubsub says hello so where it is on no topic."""
    async with attacked() as (node, peer, stream):
        await stream.send_all(b"\x00")
        await send(stream, subscriptions(TOPIC))
        await eventually(lambda: node.topic_peers(TOPIC) == (peer.peer_id,))
        assert node.statistics().faults == {}


async def test_of_names_that_are_no_topics_of_ours_none_is_kept(autojump_clock: MockClock) -> None:
    def ours_only(index: int, config: NetworkConfig) -> NetworkConfig:
        return dataclasses.replace(
            config, gossip=index == 0, known_topic=lambda name: name.startswith("/p2pnode/")
        )

    async with world(2, extra=ours_only) as w:
        node, peer = w.nodes
        await peer.connect(node.multiaddrs[0])
        stream = await peer.open_stream(node.peer_id, PROTOCOL_1_1)
        await send(stream, subscriptions("x" * 200_000, "other", "/p2pnode/" + "y" * 100, TOPIC))
        await eventually(lambda: node.topic_peers(TOPIC) == (peer.peer_id,))
        assert node.statistics().gossip.held["names"] == 1


async def test_a_peer_that_prunes_us_makes_us_dial_nobody() -> None:
    node, neighbour = make("node", gossip=True), make("neighbour")
    async with trio.open_nursery() as nursery:
        for network in (node, neighbour):
            await nursery.start(network.run)
        await node.subscribe(TOPIC, lambda _author, _data: ACCEPT)
        await neighbour.connect(node.multiaddrs[0])
        stream = await neighbour.open_stream(node.peer_id, PROTOCOL_1_1)
        heard = trio.Event()
        [trap] = await nursery.start(_trap, heard)
        key = create_new_key_pair(bytes(32))
        peer = ID.from_pubkey(key.public_key)
        record = PeerRecord(peer, [Multiaddr(f"/ip4/127.0.0.1/tcp/{trap}")], 1)
        named = rpc_pb2.PeerInfo(
            peerID=peer.to_bytes(),
            signedPeerRecord=seal_record(record, key.private_key).marshal_envelope(),
        )
        await send(stream, subscriptions(TOPIC))
        prune = rpc_pb2.ControlPrune(topicID=TOPIC, backoff=1, peers=[named])
        await send(stream, RPC(control=rpc_pb2.ControlMessage(prune=[prune])))
        await send(stream, subscriptions("/and-then/1"))
        await eventually(lambda: node.topic_peers("/and-then/1") == (neighbour.peer_id,))
        with trio.move_on_after(1):
            await heard.wait()
        assert not heard.is_set()
        assert node.statistics().dials == {}
        for network in (node, neighbour):
            await network.aclose()
        nursery.cancel_scope.cancel()


async def _trap(heard: trio.Event, *, task_status: trio.TaskStatus[list[int]]) -> None:
    """A listener that tells when somebody knocks."""

    async def knocked(stream: trio.SocketStream) -> None:
        heard.set()
        await stream.aclose()

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started([listener.socket.getsockname()[1]])
    await trio.serve_listeners(knocked, [listener])
