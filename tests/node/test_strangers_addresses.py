"""A stranger's private addresses are dialled by no path: ours are its victims, or its own mean nothing here.

The node under test was told a first peer at a global address, and has a neighbour in its own network.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.memory import MemoryNet, MemoryStream
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.swarm import NAMES_AT_ONCE, NAMES_WAITING
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.lookup.messages import provider_key
from p2pnode.storage.peer_store import PeerStore
from tests.net.memory_world import seed_of
from tests.node.test_peers import advert_of
from tests.node.world import Member, World, scripted_host, world
from tests.storage.blob_world import Owners

OUR_LAN, OUR_PORT = "/ip4/192.168.1.1/tcp/22", "/ip4/127.0.0.1/tcp/8545"
CARRIER, METADATA = "/ip4/100.64.0.9/tcp/22", "/ip4/169.254.169.254/tcp/80"
VICTIMS = (OUR_LAN, OUR_PORT, CARRIER, METADATA)
STRANGER = PeerKey(seed_of(900)).peer_id


@dataclass
class WatchedNet(MemoryNet):
    """Notes whom each machine dials."""

    dialled: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        MemoryNet.__init__(self, latency=0.02, seed=1)

    async def dial(self, source: str, target: tuple[str, int]) -> MemoryStream:
        self.dialled.setdefault(source, []).append(target[0])
        return await super().dial(source, target)


@dataclass
class Scene:
    """``node`` is at home in 192.168.1.0/24, and knows ``hub``, which is on the internet."""

    world: World
    net: WatchedNet
    node: Node
    hub: Node

    @property
    def dialled(self) -> list[str]:
        """Where the node, and what runs beside it, dialled."""
        return self.net.dialled.get("192.168.1.5", [])

    def assert_no_victim(self) -> None:
        assert not {each.split("/")[2] for each in VICTIMS} & set(self.dialled)


def _node(net: MemoryNet, index: int, ip: str, bootstrap: Sequence[str], peers: Path | None = None) -> Node:
    return Node(
        NodeSetup(
            key=PeerKey(seed_of(index)),
            listen=(f"/ip4/{ip}/tcp/4001",),
            bootstrap=tuple(bootstrap),
            saved_peers=peers,
            transport=net.transport(ip),
            wall=wall_clock,
        )
    )


@asynccontextmanager
async def scene(peers: Path | None = None) -> AsyncIterator[Scene]:
    net = WatchedNet()
    async with world(net=net) as w:
        hub = _node(net, 500, "8.8.8.8", ())
        await w.nursery.start(hub.run)
        node = _node(net, 501, "192.168.1.5", hub.multiaddrs[:1], peers)
        await w.nursery.start(node.run)
        await node.peers.joined.wait()
        neighbour = Network(NetworkConfig(key_seed=seed_of(502), transport=net.transport("192.168.1.77")))
        await w.nursery.start(neighbour.run)
        await neighbour.connect(node.multiaddrs[0])
        assert node.network.is_connected(neighbour.peer_id)
        yield Scene(w, net, node, hub)
        for each in (node, hub):
            await each.aclose()


def _tell(node: Node, *addresses: str) -> None:
    verdict, _ = node.adverts.book.offer(
        advert_of(900, *addresses), PeerKey(seed_of(3000)).peer_id, wall_clock(), asked=True
    )
    assert verdict == "accepted"


async def test_not_from_an_advert(autojump_clock: MockClock) -> None:
    async with scene() as s:
        _tell(s.node, *VICTIMS)
        await trio.sleep(120)
        s.assert_no_victim()


async def test_not_from_an_advert_that_names_a_global_address_too(autojump_clock: MockClock) -> None:
    async with scene() as s:
        _tell(s.node, *VICTIMS, "/ip4/8.8.8.9/tcp/4001")
        await trio.sleep(120)
        s.assert_no_victim()
        assert "8.8.8.9" in s.dialled


async def test_not_when_a_client_asks_beside_a_node_that_knows_such_a_peer(autojump_clock: MockClock) -> None:
    async with scene() as s:
        _tell(s.node, *VICTIMS)
        async with s.world.client(s.node.multiaddrs[:1], ip="192.168.1.6") as client:
            client.node.network.policy.trust(s.hub.multiaddrs[:1])  # its config names what the node's does
            await client.hosts("scripted")
        assert "192.168.1.5" in s.net.dialled["192.168.1.6"]
        assert not {each.split("/")[2] for each in VICTIMS} & set(s.net.dialled["192.168.1.6"])


async def test_not_from_what_a_peer_says_of_itself_by_identify(autojump_clock: MockClock) -> None:
    async with scene() as s:
        liar = Network(
            NetworkConfig(
                key_seed=seed_of(900),
                listen=("/ip4/100.64.0.9/tcp/22",),
                transport=s.net.transport("100.64.0.9"),
            )
        )
        await s.world.nursery.start(liar.run)
        await liar.connect(s.node.multiaddrs[0])
        await trio.sleep(1)
        assert s.node.network.addresses_of(liar.peer_id) == ()
        await liar.disconnect(s.node.peer_id)
        await trio.sleep(1)
        with pytest.raises(UnreachableError, match="no address of"):
            await s.node.network.connect_peer(liar.peer_id, ())
        s.assert_no_victim()


async def test_not_from_a_record_of_the_dht(autojump_clock: MockClock) -> None:
    async with scene() as s:
        liar = Network(
            NetworkConfig(
                key_seed=seed_of(900),
                listen=("/ip4/192.168.1.1/tcp/22",),
                transport=s.net.transport("192.168.1.1"),
            )
        )
        await s.world.nursery.start(liar.run)
        await liar.connect(s.hub.multiaddrs[0])
        await trio.sleep(5)
        assert await liar.provide(provider_key(scripted_model_id()))
        found = await s.node.network.find_providers(provider_key(scripted_model_id()), limit=8)
        assert [each.addrs for each in found if each.peer == liar.peer_id] in ([], [()])
        s.assert_no_victim()


async def test_not_from_saved_peers_of_an_earlier_version(tmp_path: Path, autojump_clock: MockClock) -> None:
    path = tmp_path / "peers.json"
    entry = {
        "peer": STRANGER,
        "addrs": [f"{each}/p2p/{STRANGER}" for each in (*VICTIMS, "/ip4/8.8.8.9/tcp/4001")],
        "last_seen": 1.0,
        "failures": 0,
    }
    path.write_text(json.dumps({"format": 1, "peers": [entry]}))
    async with scene(path) as s:
        await trio.sleep(60)
        s.assert_no_victim()
        assert "8.8.8.9" in s.dialled


async def test_not_by_whoever_asks_a_peer_for_blobs(autojump_clock: MockClock) -> None:
    async with scene() as s:
        store = PeerStore(s.node, STRANGER, sign=Owners().sign)
        store.also_at(VICTIMS)
        with pytest.raises(UnreachableError, match="behind a router that lets nobody in"):
            await store.open()
        s.assert_no_victim()


class _Names(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host: object, *_: object, **__: object) -> list[object]:  # type: ignore[override]
        assert host == b"host.example.org"
        ips = ("192.168.1.1", "127.0.0.1", "8.8.8.9")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ips]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise OSError


async def test_not_through_a_name_that_leads_into_our_network(autojump_clock: MockClock) -> None:
    trio.socket.set_custom_hostname_resolver(_Names())
    async with scene() as s:
        _tell(s.node, "/dns4/host.example.org/tcp/4001")
        await trio.sleep(60)
        s.assert_no_victim()
        assert "8.8.8.9" in s.dialled


class _Silent(trio.abc.HostnameResolver):
    """Of names that nobody answers for; it counts who waits."""

    def __init__(self) -> None:
        self.waiting = 0

    async def getaddrinfo(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
        self.waiting += 1
        await trio.sleep(30)
        self.waiting -= 1
        raise socket.gaierror

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise OSError


async def test_names_that_nobody_answers_for_do_not_take_all_threads(autojump_clock: MockClock) -> None:
    names = _Silent()
    trio.socket.set_custom_hostname_resolver(names)
    async with scene() as s:
        refused: list[str] = []

        async def dial(number: int) -> None:
            peer = PeerKey(seed_of(1000 + number)).peer_id
            with trio.move_on_after(1.0):  # as who dials gives up
                with pytest.raises(UnreachableError):
                    await s.node.network.connect_peer(peer, [f"/dns4/x{number}.example.org/tcp/4001"])
                refused.append(peer)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(dial, number)
        assert names.waiting == NAMES_AT_ONCE
        assert len(refused) == 100 - NAMES_AT_ONCE - NAMES_WAITING
        await trio.sleep(200)
        assert names.waiting == 0


async def test_what_the_user_names_is_dialled_wherever_it_is(autojump_clock: MockClock) -> None:
    async with scene() as s:
        other: Member = await s.world.add([scripted_host()])  # at 10.0.0.1
        advert = await s.node.finder.contact(other.node.peer_id, (), told=["/ip4/10.0.0.1/tcp/4001"])
        assert advert is not None
        assert "10.0.0.1" in s.dialled
        await s.node.network.disconnect(other.node.peer_id)
        await s.node.network.connect_peer(other.node.peer_id, ())  # where we reached it ourselves
        assert s.node.network.is_connected(other.node.peer_id)
