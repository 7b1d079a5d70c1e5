"""Hostile peers of the DHT: as answerers, they cost one question; as askers, they are slowed, then left.

Each field of a question is flooded, by one peer and by many of one prefix. An honest peer of another prefix
is served meanwhile, and what the node keeps stays within its bounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net.multiaddrs import to_id
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.stream import Stream
from p2pnode.protocols.framing.codec import FrameDecoder
from p2pnode.protocols.gossipsub.commands import ACCEPT
from p2pnode.protocols.kademlia.messages import record_key
from p2pnode.protocols.kademlia.server import IDLE_S
from p2pnode.shares import Origin
from tests.net.memory_world import World, as_client, ip_of, world
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
        await eventually(lambda: node.statistics().dht_peers == 2)
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
        assert node.statistics().tasks_failed == {}


@pytest.mark.parametrize(
    ("answer", "faults"),
    [
        (Message(type=KINDS.GET_PROVIDERS, record={"key": b"k", "value": bytes(300_000)}), set()),
        (Message(type=KINDS.GET_PROVIDERS, closerPeers=[Message.Peer(id=b"x")] * 3000), set()),
        (None, {"kad_malformed"}),
    ],
    ids=["300 kB", "6,000 fields", "no message"],
)
async def test_an_answer_that_is_too_large_is_none_and_no_fault(
    answer: Message | None, faults: set[str]
) -> None:
    data = answer.SerializeToString() if answer is not None else b"\xff" * 64
    async with node_beside_a_liar(data) as (node, _honest):
        await node.find_providers(bytes(32), limit=3)
        assert set(node.statistics().faults) == faults


# ---- those who ask

ATTACKED, HOST, CLIENT, FIRST_ATTACKER = range(4)


def one_prefix(host: str | None, peer: PeerId) -> Origin:
    """All attackers come from one prefix, everybody else from one of its own."""
    attackers = host is not None and host not in {ip_of(each) for each in range(FIRST_ATTACKER)}
    return Origin("attackers", "attackers") if attackers else Origin(peer, peer)


@contextlib.asynccontextmanager
async def attacked_by(count: int) -> AsyncIterator[tuple[World, list[Network]]]:
    """A DHT server, an honest host that provides ``KEY``, an honest client, and attackers connected to the
    server."""

    def extra(index: int, config: NetworkConfig) -> NetworkConfig:
        config = dataclasses.replace(config, gossip=False, origin_rule=one_prefix)
        return as_client(index, config) if index >= CLIENT else config

    async with world(FIRST_ATTACKER + count, extra=extra) as w:
        server, attackers = w.nodes[ATTACKED], w.nodes[FIRST_ATTACKER:]
        for node in (w.nodes[HOST], w.nodes[CLIENT], *attackers):
            await node.connect(server.multiaddrs[0])
        await trio.sleep(1)
        assert await w.nodes[HOST].provide(KEY)
        yield w, attackers
        found = await w.nodes[CLIENT].find_providers(KEY, limit=8)
        assert w.nodes[HOST].peer_id in {each.peer for each in found}
        assert server.statistics().tasks_failed == {}


async def say(attacker: Network, server: Network, *payloads: bytes) -> None:
    """These frames, one after the other, on one stream whose answers are read."""
    stream = await attacker.open_stream(server.peer_id, KAD)

    async def read() -> None:
        with contextlib.suppress(UnreachableError):
            while await stream.receive_some():
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with contextlib.suppress(UnreachableError):
            for each in payloads:
                await stream.send_all(encode_varint_prefixed(each))
        nursery.cancel_scope.deadline = trio.current_time() + 60
    await stream.reset()


async def flood(attacker: Network, server: Network, payload: bytes, count: int) -> None:
    """The same frame so often, on four streams at once, until the attacker is left."""

    async def one() -> None:
        with contextlib.suppress(UnreachableError):
            await say(attacker, server, *[payload] * (count // 4))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)


async def left(attacker: Network, server: Network) -> bool:
    """Whether the server has closed its connections with the attacker and takes no more of them."""
    await trio.sleep(1)
    if attacker.is_connected(server.peer_id):
        return False
    with contextlib.suppress(UnreachableError):
        await attacker.connect(server.multiaddrs[0])
    await trio.sleep(1)
    return not attacker.is_connected(server.peer_id)


def question(kind: Any, **fields: Any) -> bytes:
    return Message(type=kind, **{"key": record_key(KEY), **fields}).SerializeToString()


SOMEBODY = CROWD[0].id
MALFORMED = {
    "an unknown kind": b"\x08\x63",
    "a key of 15 kB": question(KINDS.FIND_NODE, key=bytes(15_000)),
    "a frame of 20 kB": question(KINDS.FIND_NODE, record={"value": bytes(20_000)}),
    "30,000 addresses": question(
        KINDS.ADD_PROVIDER, providerPeers=[Message.Peer(id=SOMEBODY, addrs=[ADDRESS] * 30_000)]
    ),
    "8,000 empty peers": question(KINDS.FIND_NODE) + b"\x42\x00" * 8000,
    "8,000 unknown fields": question(KINDS.FIND_NODE) + b"\x78\x01" * 8000,
    "no message": b"\xff" * 64,
}
WELL_FORMED = {
    "pings": question(KINDS.PING),
    "a crowd of closer peers": question(KINDS.FIND_NODE, closerPeers=CROWD[:300]),
    "a crowd of providers": question(KINDS.GET_PROVIDERS, providerPeers=CROWD[:300]),
    "records of others": question(KINDS.ADD_PROVIDER, providerPeers=CROWD[:300]),
    "1,500 addresses": question(
        KINDS.ADD_PROVIDER, providerPeers=[Message.Peer(id=SOMEBODY, addrs=[ADDRESS] * 1500)]
    ),
    "an address of 15 kB": question(
        KINDS.FIND_NODE, closerPeers=[Message.Peer(id=SOMEBODY, addrs=[bytes(15_000)])]
    ),
    "a value of 15 kB": question(KINDS.PUT_VALUE, record={"key": b"k", "value": bytes(15_000)}),
    "values that nobody has": question(KINDS.GET_VALUE),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_who_sends_what_is_no_question_is_left(name: str, autojump_clock: MockClock) -> None:
    async with attacked_by(1) as (w, [attacker]):
        for _ in range(10):  # each ends its stream
            await flood(attacker, w.nodes[ATTACKED], MALFORMED[name], 4)
        assert await left(attacker, w.nodes[ATTACKED])
        assert set(w.nodes[ATTACKED].statistics().faults) == {"kad_malformed"}


@pytest.mark.parametrize("name", WELL_FORMED)
async def test_who_asks_without_end_is_slowed_and_then_left(name: str, autojump_clock: MockClock) -> None:
    async with attacked_by(1) as (w, [attacker]):
        await flood(attacker, w.nodes[ATTACKED], WELL_FORMED[name], 800)
        assert await left(attacker, w.nodes[ATTACKED])
        assert set(w.nodes[ATTACKED].statistics().faults) <= {"kad_flood", "kad_foreign_record"}


@pytest.mark.long
@pytest.mark.parametrize("name", [*MALFORMED, *WELL_FORMED])
@pytest.mark.parametrize("attackers", [2, 20])
async def test_many_of_one_prefix_at_once_keep_nobody_else_from_an_answer(
    attackers: int, name: str, autojump_clock: MockClock
) -> None:
    payload = {**MALFORMED, **WELL_FORMED}[name]
    async with attacked_by(attackers) as (w, each_attacker):
        server, client = w.nodes[ATTACKED], w.nodes[CLIENT]
        async with trio.open_nursery() as nursery:
            for attacker in each_attacker:
                nursery.start_soon(flood, attacker, server, payload, 400)
            for _ in range(5):
                started = trio.current_time()
                found = await client.find_providers(KEY, limit=8)
                assert w.nodes[HOST].peer_id in {each.peer for each in found}
                assert trio.current_time() - started < 4
                await trio.sleep(2)
            nursery.cancel_scope.cancel()
        assert client.is_connected(server.peer_id)


async def test_a_peer_that_asks_often_is_served_and_stays(autojump_clock: MockClock) -> None:
    async with attacked_by(0) as (w, _):
        for _ in range(60):
            found = await w.nodes[CLIENT].find_providers(KEY, limit=4)
            assert [each.peer for each in found] == [w.nodes[HOST].peer_id]
            await trio.sleep(1)
        assert w.nodes[ATTACKED].statistics().faults == {}


@pytest.mark.parametrize("attackers", [1, 2, 20])
async def test_silent_streams_of_one_prefix_keep_nobody_from_asking(
    attackers: int, autojump_clock: MockClock
) -> None:
    async with attacked_by(attackers) as (w, each_attacker):
        server, streams = w.nodes[ATTACKED], []
        for attacker in each_attacker:
            for _ in range(12):
                with contextlib.suppress(UnreachableError):  # beyond what one peer may open
                    stream = await attacker.open_stream(server.peer_id, KAD)
                    await stream.send_all(b"\x20")  # a frame that never ends
                    streams.append(stream)
        held = server.statistics().streams_inbound
        assert held <= 64
        found = await w.nodes[CLIENT].find_providers(KEY, limit=8)
        assert w.nodes[HOST].peer_id in {each.peer for each in found}
        await trio.sleep(IDLE_S + 2)
        assert server.statistics().streams_inbound == 0


@pytest.mark.parametrize("ids", [12, pytest.param(60, marks=pytest.mark.long)])
async def test_many_providers_of_one_prefix_do_not_hide_one_of_another(
    ids: int, autojump_clock: MockClock
) -> None:
    async with attacked_by(ids) as (w, attackers):
        for attacker in attackers:
            await attacker.provide(KEY)
        answer = await asked(w.nodes[CLIENT], w.nodes[ATTACKED])
        named = {ID(each.id).to_base58() for each in answer.providerPeers}
        assert w.nodes[HOST].peer_id in named
        assert len(named - {w.nodes[HOST].peer_id}) == 8


async def asked(client: Network, server: Network) -> Message:
    """What the server itself answers to a question for providers of ``KEY``."""
    stream = await client.open_stream(server.peer_id, KAD)
    await stream.send_all(encode_varint_prefixed(question(KINDS.GET_PROVIDERS)))
    (payload,) = FrameDecoder().feed(await stream.receive_some())
    await stream.reset()
    return Message.FromString(payload)


async def test_a_record_of_eight_addresses_is_what_is_kept_of_many(autojump_clock: MockClock) -> None:
    async with attacked_by(1) as (w, [attacker]):
        server = w.nodes[ATTACKED]
        addresses = [Multiaddr(f"/ip4/10.9.0.{number}/tcp/9").to_bytes() for number in range(1, 200)]
        own = Message.Peer(id=to_id(attacker.peer_id).to_bytes(), addrs=addresses)
        await say(attacker, server, question(KINDS.ADD_PROVIDER, providerPeers=[own]))
        answer = await asked(w.nodes[CLIENT], server)
        [kept] = [each for each in answer.providerPeers if each.id == own.id]
        assert list(kept.addrs) == addresses[:8]
