"""Peers tell each other who they are; a flood of news costs its sender, and nobody else."""

from __future__ import annotations

import contextlib

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.envelope import consume_envelope
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.net.network import Network
from p2pnode.protocols.framing.codec import pack_frame
from p2pnode.protocols.identify import messages as m
from p2pnode.protocols.identify.messages import IDENTIFY, PROTOCOL, PUSH, signed_record
from tests.net.memory_world import World, ip_of, world
from tests.net.support import ECHO, echo, eventually

TCP = Multiaddr("/ip4/192.0.2.1/tcp/4001").to_bytes()


async def _pair(w: World) -> tuple[Network, Network]:
    host, client = w.nodes[:2]
    host.serve(ECHO, echo)
    await client.connect(host.multiaddrs[0])
    await eventually(lambda: host.speaks(client.peer_id, PROTOCOL) and client.speaks(host.peer_id, PROTOCOL))
    return host, client


def test_the_signed_record_is_one_that_libp2p_takes() -> None:
    key = create_new_key_pair(bytes(32))
    peer = ID.from_pubkey(key.public_key)
    data = signed_record(
        [TCP],
        peer_id=peer.to_bytes(),
        public_key=key.public_key.serialize(),
        seq=7,
        sign=key.private_key.sign,
    )
    envelope, record = consume_envelope(data, "libp2p-peer-record")
    assert envelope.public_key == key.public_key
    assert (record.peer_id, record.seq, record.addrs) == (peer, 7, [Multiaddr(TCP)])


async def test_both_sides_know_what_the_other_speaks_and_where_it_listens(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        host, client = await _pair(w)
        assert client.speaks(host.peer_id, ECHO)
        assert client.speaks(host.peer_id, "/no/such/protocol") is False
        assert client.speaks(w.nodes[1].peer_id, ECHO) is None
        assert host.stated_addresses(client.peer_id) == (f"/ip4/{ip_of(1)}/tcp/4001",)
        await client.disconnect(host.peer_id)
        await eventually(lambda: client.speaks(host.peer_id, ECHO) is None)


async def test_a_peer_that_pushes_is_known_by_what_it_pushed(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        host, client = await _pair(w)
        stream = await client.open_stream(host.peer_id, PUSH)
        await stream.send_all(pack_frame(IDENTIFY.make(protocols=[b"/new"]).SerializeToString()))
        await stream.aclose()
        await eventually(lambda: host.speaks(client.peer_id, "/new"))
        assert host.speaks(client.peer_id, PROTOCOL) is False


async def _push_until_left(client: Network, host: Network, message: bytes, *, every_s: float) -> int:
    """Push again and again for two minutes at most; how often."""
    sent, began = 0, trio.current_time()
    while client.is_connected(host.peer_id) and trio.current_time() < began + 120:
        with contextlib.suppress(UnreachableError):
            stream = await client.open_stream(host.peer_id, PUSH)
            await stream.send_all(pack_frame(message))
            await stream.aclose()
        sent += 1
        await trio.sleep(every_s)
    return sent


async def test_pushes_of_10_kb_four_times_a_second_end_the_connection_by_name_and_others_are_served(
    autojump_clock: MockClock,
) -> None:
    async with world(3) as w:
        host, client = await _pair(w)
        other = w.nodes[2]
        large = IDENTIFY.make(listen_addrs=[TCP] * 900, protocols=[b"/x"]).SerializeToString()
        assert len(large) > m.MESSAGE_MAX
        assert await _push_until_left(client, host, large, every_s=0.25) < 10
        assert not host.is_connected(client.peer_id)
        assert host.statistics().faults["identify malformed"] in {4, 5}
        await other.connect(host.multiaddrs[0])
        echoes = await other.open_stream(host.peer_id, ECHO)
        await echoes.send_all(b"x")
        assert await echoes.receive_some() == b"x"


async def test_small_pushes_without_end_slow_their_sender_and_then_end_its_connection(
    autojump_clock: MockClock,
) -> None:
    async with world(2) as w:
        host, client = await _pair(w)
        small = IDENTIFY.make(protocols=[b"/x"]).SerializeToString()
        began = trio.current_time()
        assert await _push_until_left(client, host, small, every_s=0.01) < 200
        assert trio.current_time() > began + 10
        assert not host.is_connected(client.peer_id)
        assert host.statistics().faults["identify push rate"] >= 40


async def test_a_peer_that_pushes_now_and_then_stays(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        host, client = await _pair(w)
        small = IDENTIFY.make(protocols=[b"/x"]).SerializeToString()
        assert await _push_until_left(client, host, small, every_s=11) == 11
        assert host.is_connected(client.peer_id)
        assert host.statistics().faults == {}


async def test_a_peer_that_never_answers_is_asked_three_times_and_may_stay(autojump_clock: MockClock) -> None:
    asked = 0

    async with world(2) as w:
        host, client = w.nodes

        async def silent(_stream: object) -> None:
            nonlocal asked
            asked += 1
            await trio.sleep(60)

        client.serve(PROTOCOL, silent)
        await client.connect(host.multiaddrs[0])
        await trio.sleep(200)
        assert asked == 3
        assert host.speaks(client.peer_id, ECHO) is None
        assert host.is_connected(client.peer_id)
