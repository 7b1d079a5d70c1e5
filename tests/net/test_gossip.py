"""Topics over the memory net: validators, bounds, and what strangers send."""

from __future__ import annotations

import dataclasses
from typing import Any

import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed
from trio.testing import MockClock

from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.gossip import Gossip
from p2pnode.net.multiaddrs import to_id
from p2pnode.net.network import NetworkConfig
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.crypto import public_key_of
from p2pnode.protocols.framing.codec import FrameDecoder, pack_frame
from p2pnode.protocols.gossipsub.commands import ACCEPT, REJECT, Verdict
from p2pnode.protocols.gossipsub.messages import (
    PROTOCOL_1_1,
    PROTOCOL_1_2,
    Message,
    encode_subscriptions,
    signed_bytes,
)
from p2pnode.shares import Origin
from p2pnode.tasks import Guard
from tests.net.memory_world import world
from tests.net.support import eventually

TOPIC = "t"


def tiny_queue(_: int, config: NetworkConfig) -> NetworkConfig:
    return dataclasses.replace(config, limits=Limits(gossip_queue=4))


def mute_first(index: int, config: NetworkConfig) -> NetworkConfig:
    """The first one speaks no gossip of its own: the test writes what it says."""
    return dataclasses.replace(config, gossip=index > 0)


async def test_the_author_is_told_even_when_another_forwards(autojump_clock: MockClock) -> None:
    async with world(3) as w:
        first, middle, last = w.nodes
        got = [await node.subscribe(TOPIC, lambda _, __: ACCEPT) for node in w.nodes]
        await middle.connect(first.multiaddrs[0])
        await last.connect(middle.multiaddrs[0])
        await trio.sleep(3)
        assert middle.topic_peers(TOPIC) == tuple(sorted([first.peer_id, last.peer_id]))
        await first.publish(TOPIC, b"hello")
        for subscription in got:
            assert await anext(subscription) == (first.peer_id, b"hello")


async def test_what_the_validator_refuses_is_neither_delivered_nor_forwarded(
    autojump_clock: MockClock,
) -> None:
    seen: list[tuple[PeerId, bytes]] = []
    async with world(3) as w:
        first, middle, last = w.nodes
        await first.subscribe(TOPIC, lambda _, __: ACCEPT)
        await middle.subscribe(TOPIC, lambda _, data: REJECT if data == b"bad" else ACCEPT)

        def look(author: PeerId, data: bytes) -> Verdict:
            seen.append((author, data))
            return ACCEPT

        end = await last.subscribe(TOPIC, look)
        await middle.connect(first.multiaddrs[0])
        await last.connect(middle.multiaddrs[0])
        await trio.sleep(3)
        await first.publish(TOPIC, b"bad")
        await first.publish(TOPIC, b"good")
        assert await anext(end) == (first.peer_id, b"good")
        await trio.sleep(5)
        assert seen == [(first.peer_id, b"good")]
        assert middle.statistics().gossip.counts["fault.refused"] == 1


async def test_a_validator_that_raises_ignores_and_the_topic_lives_on(autojump_clock: MockClock) -> None:
    def validator(_: PeerId, data: bytes) -> Verdict:
        if data == b"bomb":
            raise RuntimeError("a bug of ours")
        return ACCEPT

    async with world(2) as w:
        a, b = w.nodes
        await a.subscribe(TOPIC, lambda _, __: ACCEPT)
        got = await b.subscribe(TOPIC, validator)
        await a.connect(b.multiaddrs[0])
        await trio.sleep(2)
        await a.publish(TOPIC, b"bomb")
        await a.publish(TOPIC, b"fine")
        assert await anext(got) == (a.peer_id, b"fine")


async def test_a_reader_that_lags_loses_messages_and_they_are_counted(autojump_clock: MockClock) -> None:
    async with world(2, extra=tiny_queue) as w:
        a, b = w.nodes
        await a.subscribe(TOPIC, lambda _, __: ACCEPT)
        lagging = await b.subscribe(TOPIC, lambda _, __: ACCEPT)
        await a.connect(b.multiaddrs[0])
        await trio.sleep(2)
        for i in range(10):
            await a.publish(TOPIC, b"%d" % i)
        await trio.sleep(2)
        assert lagging.dropped == 6
        assert b.statistics().gossip.counts["unread"] == 6
        assert [(await anext(lagging))[1] for _ in range(4)] == [b"0", b"1", b"2", b"3"]


async def test_a_burst_of_forty_from_one_node_arrives_whole(autojump_clock: MockClock) -> None:
    async with world(3) as w:
        got = [await node.subscribe(TOPIC, lambda _, __: ACCEPT) for node in w.nodes]
        await w.connect_all()
        await trio.sleep(3)
        for i in range(40):
            await w.nodes[2].publish(TOPIC, b"%d" % i)
        for subscription in got:
            assert sorted([(await anext(subscription))[1] for _ in range(40)]) == sorted(
                b"%d" % i for i in range(40)
            )


async def test_a_forged_author_is_dropped_and_its_bearer_charged(autojump_clock: MockClock) -> None:
    seen: list[bytes] = []

    def look(_: PeerId, data: bytes) -> Verdict:
        seen.append(data)
        return ACCEPT

    async with world(3, extra=mute_first) as w:
        liar, target, other = w.nodes
        await target.subscribe(TOPIC, look)
        await other.connect(target.multiaddrs[0])
        await liar.connect(target.multiaddrs[0])
        stream = await liar.open_stream(target.peer_id, PROTOCOL_1_1)
        for signature in (b"", b"x" * 64):
            message = rpc_pb2.Message(
                data=b"forged",
                topicIDs=[TOPIC],
                from_id=to_id(other.peer_id).to_bytes(),
                seqno=b"12345678",
                signature=signature,
            )
            rpc = rpc_pb2.RPC(publish=[message])
            await stream.send_all(encode_varint_prefixed(rpc.SerializeToString()))
        await eventually(lambda: target.statistics().faults.get("gossip.refused") == 2)
        await other.publish(TOPIC, b"honest")
        await eventually(lambda: b"honest" in seen)
        assert seen == [b"honest"]


async def test_leaving_a_topic_ends_the_iterator_and_tells_the_others(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        a, b = w.nodes
        subscription = await a.subscribe(TOPIC, lambda _, __: ACCEPT)
        await a.connect(b.multiaddrs[0])
        await eventually(lambda: b.topic_peers(TOPIC) == (a.peer_id,))
        await subscription.aclose()
        assert [message async for message in subscription] == []
        await eventually(lambda: b.topic_peers(TOPIC) == ())
        again = await a.subscribe(TOPIC, lambda _, __: ACCEPT)
        await a.publish(TOPIC, b"mine")
        assert await anext(again) == (a.peer_id, b"mine")


async def test_a_topic_is_not_joined_by_publishing_to_it(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        a, b = w.nodes
        got = await b.subscribe(TOPIC, lambda _, __: ACCEPT)
        await a.connect(b.multiaddrs[0])
        await eventually(lambda: a.topic_peers(TOPIC) == (b.peer_id,))
        await a.publish(TOPIC, b"from outside")
        assert await anext(got) == (a.peer_id, b"from outside")
        assert b.topic_peers(TOPIC) == ()


class Talk:
    """A stream: what it hears is the test's, and what is sent on it is noted as it was handed over."""

    def __init__(self, peer: PeerId) -> None:
        self.peer, self.protocol = peer, PROTOCOL_1_2
        self.sent: list[bytes] = []
        self.say, self._hear = trio.open_memory_channel[bytes](8)

    def send_now(self, data: bytes) -> bool:
        self.sent.append(data)
        return True

    async def send_all(self, data: bytes) -> None:
        self.sent.append(data)

    async def receive_some(self) -> bytes:
        return await self._hear.receive()

    def take_with(self, _taker: object) -> None: ...

    async def reset(self) -> None: ...


class Neighbours:
    """A network of peers that are connected and speak gossip."""

    def __init__(self, *peers: PeerId) -> None:
        self.told = {peer: Talk(peer) for peer in peers}

    def serve(self, protocol: str, handler: Any, *, streams_per_peer: int | None = None) -> None:
        self.handler = handler

    def watch_peers(self, callback: Any) -> None:
        self.changed = callback

    async def open_stream(self, peer: PeerId, protocol: str) -> Any:
        return self.told[peer]

    def speaks(self, peer: PeerId, protocol: str) -> bool:
        return True

    def is_connected(self, peer: PeerId) -> bool:
        return True

    def is_dialled(self, peer: PeerId) -> bool:
        return False

    def origin_of(self, peer: PeerId) -> Origin:
        return Origin(f"peer/{peer}", f"peer/{peer}")

    def charge(self, peer: PeerId, fault: str, weight: float) -> Any:
        return "ok"


def signed_by(key: PeerKey, number: int) -> bytes:
    """An RPC with one message."""
    author, seqno, data = b"\0\x24\x08\x01\x12\x20" + public_key_of(key.peer_id), bytes([number] * 8), b"data"
    signature = key.sign(signed_bytes(author, data, seqno, TOPIC.encode()))
    message = Message.of(author=author, seqno=seqno, topic=TOPIC.encode(), data=data, signature=signature)
    return message.encode()


async def test_what_goes_to_a_peer_at_one_moment_is_handed_over_as_one(autojump_clock: MockClock) -> None:
    own, author, here, there = (PeerKey(bytes([number]) * 32) for number in range(4))
    peers = Neighbours(here.peer_id, there.peer_id)
    async with trio.open_nursery() as nursery:
        gossip = Gossip(
            peers,
            peer=own.peer_id,
            sign=own.sign,
            draw=lambda: 0.5,  # all wait equally long
            wall_clock=lambda: 1e9,
            limits=DEFAULT_LIMITS,
            guard=Guard(),
            known_topic=lambda _: True,
        )
        gossip.start(nursery)
        await gossip.subscribe(TOPIC, lambda _, __: ACCEPT)
        streams = {peer: Talk(peer) for peer in peers.told}
        for peer, stream in streams.items():
            peers.changed(peer, "identified")
            nursery.start_soon(peers.handler, stream)
            stream.say.send_nowait(pack_frame(encode_subscriptions({TOPIC.encode(): True})))
        await trio.sleep(5)
        before = {peer: len(told.sent) for peer, told in peers.told.items()}
        rpcs = [signed_by(author, number) for number in range(3)]
        streams[here.peer_id].say.send_nowait(b"".join(map(pack_frame, rpcs)))
        await trio.sleep(1)
        assert peers.told[here.peer_id].sent[before[here.peer_id] :] == []
        [handed] = peers.told[there.peer_id].sent[before[there.peer_id] :]
        assert FrameDecoder().feed(handed) == rpcs
        nursery.cancel_scope.cancel()
