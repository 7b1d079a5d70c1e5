"""A neighbour on the mesh that asks, offers and names more than an honest one has use for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from p2pnode.net.network import Network
from p2pnode.net.pubsub import MESSAGE_IDS_MAX, TOPIC_MAX_BYTES, bounded
from p2pnode.net.stream import Stream
from tests.net.support import eventually, make

MESHSUB = "/meshsub/1.1.0"
TOPIC = "/p2pnode/hostile-gossip/1"
RPC = rpc_pb2.RPC


@contextlib.asynccontextmanager
async def node_and_neighbour() -> AsyncIterator[tuple[Network, Network, Stream]]:
    """A node on a topic, a neighbour that is connected to it, and that one's stream of RPCs."""
    node, neighbour = make("node", gossip=True), make("neighbour")
    async with trio.open_nursery() as nursery:
        for network in (node, neighbour):
            await nursery.start(network.run)
        await node.subscribe(TOPIC, lambda _author, _data: True)
        await neighbour.connect(node.multiaddrs[0])
        stream = await neighbour.open_stream(node.peer_id, MESHSUB)
        yield node, neighbour, stream
        for network in (node, neighbour):
            await network.aclose()
        nursery.cancel_scope.cancel()


async def send(stream: Stream, rpc: rpc_pb2.RPC) -> None:
    """One RPC."""
    await stream.send_all(encode_varint_prefixed(rpc.SerializeToString()))


def subscriptions(*topics: str) -> rpc_pb2.RPC:
    """To each of these."""
    return RPC(subscriptions=[RPC.SubOpts(subscribe=True, topicid=topic) for topic in topics])


async def test_a_topic_s_name_has_at_most_100_bytes() -> None:
    longest, longer = "é" * (TOPIC_MAX_BYTES // 2), "é" * (TOPIC_MAX_BYTES // 2) + "x"
    async with node_and_neighbour() as (node, neighbour, stream):
        await send(stream, subscriptions(longer, "x" * 200_000, longest))
        await eventually(lambda: node.topic_peers(longest) == (neighbour.peer_id,))
        assert node.topic_peers(longer) == ()
        assert node.topic_peers("x" * 200_000) == ()


async def test_a_peer_that_prunes_us_makes_us_dial_nobody() -> None:
    async with node_and_neighbour() as (node, neighbour, stream):
        heard = trio.Event()

        async def listen(_stream: Stream) -> None:
            heard.set()
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
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
            nursery.cancel_scope.cancel()


async def _trap(heard: trio.Event, *, task_status: trio.TaskStatus[list[int]]) -> None:
    """A listener that tells when somebody knocks."""

    async def knocked(stream: trio.SocketStream) -> None:
        heard.set()
        await stream.aclose()

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started([listener.socket.getsockname()[1]])
    await trio.serve_listeners(knocked, [listener])


def test_of_a_control_message_what_concerns_our_topics_is_kept_each_once() -> None:
    control = rpc_pb2.ControlMessage(
        graft=[rpc_pb2.ControlGraft(topicID=name) for name in (TOPIC, TOPIC, *map(str, range(9000)))],
        prune=[rpc_pb2.ControlPrune(topicID=name, backoff=5) for name in (TOPIC, "other", TOPIC)],
        ihave=[
            rpc_pb2.ControlIHave(topicID=name, messageIDs=[b"1", b"2", b"1"]) for name in (TOPIC, "other")
        ],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"%d" % n for n in range(2000)] * 2)],
    )
    kept = bounded(control, {TOPIC})
    assert [each.topicID for each in kept.graft] == [TOPIC]
    assert [(each.topicID, each.backoff) for each in kept.prune] == [(TOPIC, 5)]
    assert [(each.topicID, list(each.messageIDs)) for each in kept.ihave] == [(TOPIC, [b"1", b"2"])]
    [wanted] = kept.iwant
    assert len(set(wanted.messageIDs)) == len(wanted.messageIDs) == MESSAGE_IDS_MAX


def test_an_honest_control_message_is_kept_as_it_is() -> None:
    control = rpc_pb2.ControlMessage(
        graft=[rpc_pb2.ControlGraft(topicID=TOPIC)],
        prune=[rpc_pb2.ControlPrune(topicID="second", backoff=60)],
        ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"1", b"2"])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"3"])],
        idontwant=[rpc_pb2.ControlIDontWant(messageIDs=[b"4"])],
    )
    assert bounded(control, {TOPIC, "second"}) == control
