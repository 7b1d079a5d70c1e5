"""Staying connected among liars: adverts that lead nowhere, peers that never answer, a disk that is full."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from p2pnode.host.model_pool import HostedModel
from p2pnode.ids import ModelId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import scripted_model_id
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.net.address_policy import interface_addresses
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.saved_peers import SavedPeers
from p2pnode.net.stream import Stream
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.finder import FoundHost
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.adverts.messages import PROTOCOL, Address, Advert, Load, Offer, SignedAdvert
from p2pnode.protocols.adverts.signatures import seal
from p2pnode.protocols.lookup.messages import provider_key
from tests.net.memory_world import ip_of, seed_of
from tests.node.world import Member, World, identity_of, scripted_host, world

RARE = ModelId(b"a model that one host serves".ljust(32))
GARBAGE = ("not a multiaddr", "/ip4/999.1.1.1/tcp/1", "/ip4/8.8.8.9", "/unix/x", "/ip4/8.8.8.9/udp/1")


def advert_of(index: int, *addresses: str) -> SignedAdvert:
    """What anybody can make: a well signed advert of a host that names any address."""
    now = wall_clock()
    identity = identity_of(index, now)
    offer = Offer(model=scripted_model_id(), n_ctx=2048)
    advert = Advert(
        peer=identity.key.peer_id,
        instance=bytes(8),
        seq=int(now * 1000),
        issued_at=int(now),
        expires_at=int(now) + 3600,
        binding=identity.binding,
        addresses=tuple(Address(multiaddr=each) for each in addresses),
        offers=(offer,),
        load=Load(slots=1),
    )
    return seal(advert, identity.key.sign)


def tell(member: Member, *adverts: SignedAdvert) -> None:
    """As if gossip had brought them, each by another peer."""
    for number, signed in enumerate(adverts):
        source = PeerKey(seed_of(3000 + number)).peer_id
        verdict, _ = member.node.adverts.book.offer(signed, source, wall_clock(), asked=True)
        assert verdict == "accepted"


@pytest.mark.parametrize("address", GARBAGE)
async def test_an_advert_with_a_useless_address_stops_neither_a_node_nor_a_client(
    address: str, autojump_clock: MockClock
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        tell(host, advert_of(900, address))
        await trio.sleep(60)
        async with w.client(host.node.multiaddrs[:1]) as client:
            for _ in range(2):  # the second time from its own book
                ranking = await client.hosts("scripted")
                assert [each.advert.peer for each in ranking.chosen] == [host.node.peer_id]


async def test_private_addresses_of_a_stranger_are_not_dialled_where_we_have_no_peer(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        tell(host, advert_of(900, "/ip4/192.168.1.1/tcp/80"), advert_of(901, "/ip4/127.0.0.1/tcp/8545"))
        await trio.sleep(60)
        assert sum(host.node.network.statistics().dials.values()) == 0
        tell(host, advert_of(902, "/ip4/8.8.8.9/tcp/4001"))
        await trio.sleep(60)
        assert sum(host.node.network.statistics().dials.values()) > 0


async def test_a_book_of_dead_ends_does_not_hide_an_honest_host(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        other = await w.add([scripted_host()])
        tell(host, *(advert_of(900 + n, f"/ip4/8.8.8.{n + 1}/tcp/4001") for n in range(60)))
        signed = other.node.adverts.publisher.current
        assert signed is not None
        # A LAN is where both are: a peer there makes private addresses count.
        third = await w.add(bootstrap=host.node.multiaddrs[:1])
        tell(host, signed.signed)
        await trio.sleep(300)
        assert third.node.network.is_connected(host.node.peer_id)
        assert host.node.network.is_connected(other.node.peer_id)


async def _mute(w: World, target: Member, number: int) -> Network:
    network = Network(
        NetworkConfig(
            key_seed=seed_of(700 + number),
            dht="off",
            gossip=False,
            transport=w.net.transport(f"10.0.6.{number + 1}"),
        )
    )

    async def never(_stream: Stream) -> None:
        await trio.sleep_forever()

    network.serve(PROTOCOL, never)
    await w.nursery.start(network.run)
    await network.connect(target.node.multiaddrs[0])
    return network


async def test_a_peer_that_never_answers_does_not_keep_the_dht_from_being_asked(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=replace(DEFAULT_LIMITS, peers_wanted=1)) as w:
        first = await w.add([scripted_host()])
        rare = await w.add(
            [HostedModel(model=RARE, name="rare", new_engine=ScriptedEngine, n_ctx=2048)],
            bootstrap=first.node.multiaddrs[:1],
        )
        await trio.sleep(20)
        searcher = await w.add(bootstrap=first.node.multiaddrs[:1])
        await _mute(w, searcher, 1)
        await trio.sleep(1)
        for member in (first, searcher):  # nobody that is asked for adverts has this one: the DHT does
            member.node.adverts.book.forget(rare.node.peer_id)
        await searcher.node.network.disconnect(rare.node.peer_id)
        found: list[FoundHost] = []
        with trio.move_on_after(5):
            await searcher.node.finder.find(RARE, seeds=first.node.multiaddrs[:1], on_found=found.append)
        assert [each.advert.peer for each in found] == [rare.node.peer_id]


async def test_peers_that_never_answer_do_not_keep_a_node_from_finding_others(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=replace(DEFAULT_LIMITS, peers_wanted=40)) as w:
        host = await w.add([scripted_host()])
        other = await w.add([scripted_host()])
        for number in range(30):
            await _mute(w, host, number)
        await trio.sleep(30)  # it is among them now
        signed = other.node.adverts.publisher.current
        assert signed is not None
        tell(host, signed.signed)
        await trio.sleep(60)
        assert host.node.network.is_connected(other.node.peer_id)


async def test_a_silent_neighbour_does_not_keep_a_search_from_asking_the_dht(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        asker, host = await w.add(), await w.add([scripted_host()])
        server = Network(
            NetworkConfig(
                key_seed=seed_of(690),
                listen=("/ip4/10.0.6.90/tcp/4001",),
                gossip=False,
                transport=w.net.transport("10.0.6.90"),
            )
        )
        await w.nursery.start(server.run)
        for member in (asker, host):
            await member.node.network.connect(server.multiaddrs[0])
        await _mute(w, asker, 0)
        await trio.sleep(2)
        assert await host.node.network.provide(provider_key(scripted_model_id()))
        started, found = trio.current_time(), list[float]()
        await asker.node.finder.find(
            scripted_model_id(),
            seeds=(),
            on_found=lambda _host: found.append(trio.current_time() - started),
            sources=frozenset({"bootstrap", "exchange", "dht"}),
        )
        assert found
        assert found[0] < 2 * DEFAULT_LIMITS.dht_wait_s


async def test_those_who_came_by_themselves_rank_behind_those_that_were_reached(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        friend = await w.add([scripted_host()])
        node = _node(w, tmp_path / "peers.json", friend.node.multiaddrs[:1])
        await w.nursery.start(node.run)
        for _ in range(3):
            await w.add(bootstrap=node.multiaddrs[:1])
        await trio.sleep(30)
        await node.aclose()
        store = SavedPeers(tmp_path / "peers.json", in_thread=False)
        await store.load()
        saved = store.best(8)
        assert len(saved) > 1
        reached = {friend.node.peer_id, *node.peers.selection.reached}
        assert saved[0].peer in reached
        assert all(each.last_seen == 0 for each in saved if each.peer not in reached)


async def test_a_disk_that_takes_no_peers_stops_nothing_and_the_node_still_ends(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        friend = await w.add([scripted_host()])
        (tmp_path / "file").write_text("no directory")
        node = _node(w, tmp_path / "file" / "peers.json", friend.node.multiaddrs[:1])
        await w.nursery.start(node.run)
        await trio.sleep(60)
        assert node.network.is_connected(friend.node.peer_id)
        with trio.fail_after(20):
            await node.aclose()


def _write_saved(path: Path, *members: Member, dead: int) -> None:
    """Peers of an earlier session: these, and so many that are gone."""
    gone = [(PeerKey(seed_of(600 + n)).peer_id, f"/ip4/10.0.7.{n + 1}/tcp/4001") for n in range(dead)]
    there = [(member.node.peer_id, member.node.multiaddrs[0].partition("/p2p/")[0]) for member in members]
    entries = [
        {"peer": peer, "addrs": [f"{where}/p2p/{peer}"], "last_seen": 1e9, "failures": 0}
        for peer, where in (*gone, *there)
    ]
    path.write_text(json.dumps({"format": 2, "peers": entries}))


async def test_while_nobody_answers_no_saved_peer_is_dropped_or_blamed_and_words_say_why(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        _write_saved(tmp_path / "peers.json", dead=5)
        friend = PeerKey(seed_of(650)).peer_id
        node = _node(w, tmp_path / "peers.json", (f"/ip4/10.0.7.50/tcp/4001/p2p/{friend}",))
        with capture_logs() as logs:
            await w.nursery.start(node.run)
            await trio.sleep(3600)
            await node.aclose()
        (told,) = [each for each in logs if each["event"] == "peers.alone"]
        assert "5 of the last session (5 x refused)" in told["detail"]
        assert "1 of your --bootstrap, configuration or invites" in told["detail"]
        assert "ask a friend for an invite" in told["detail"]
        store = SavedPeers(tmp_path / "peers.json", in_thread=False)
        assert [each.failures for each in await store.load()] == [0] * 5


async def test_a_node_that_was_long_alone_finds_a_peer_within_a_minute_of_its_return(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        friend = await w.add([scripted_host()])
        _write_saved(tmp_path / "peers.json", friend, dead=5)
        w.net.partition(["10.0.5.1"], [ip_of(friend.index)])
        node = _node(w, tmp_path / "peers.json", ())
        await w.nursery.start(node.run)
        await trio.sleep(3600)
        assert node.network.connected_peers() == ()
        w.net.heal()
        await trio.sleep(60 + DEFAULT_LIMITS.dial_deadline_s)
        assert node.network.is_connected(friend.node.peer_id)
        await node.aclose()


async def test_a_change_of_the_network_is_followed_by_dials_at_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        friend = await w.add([scripted_host()])
        _write_saved(tmp_path / "peers.json", friend, dead=0)
        w.net.partition(["10.0.5.1"], [ip_of(friend.index)])
        interfaces = ["10.0.5.1/8"]
        node = _node(w, tmp_path / "peers.json", (), interfaces=lambda: tuple(interfaces), listen="0.0.0.0")
        await w.nursery.start(node.run)
        await trio.sleep(3600)
        w.net.heal()
        interfaces.append("192.168.1.5/24")
        await trio.sleep(DEFAULT_LIMITS.address_interval_s + 2)
        assert node.network.is_connected(friend.node.peer_id)
        await node.aclose()


def _node(
    w: World,
    peers: Path,
    bootstrap: tuple[str, ...],
    *,
    interfaces: Callable[[], Sequence[str]] = interface_addresses,
    listen: str = "10.0.5.1",
) -> Node:
    rng = random.Random("saved")
    return Node(
        NodeSetup(
            key=PeerKey(seed_of(800)),
            listen=(f"/ip4/{listen}/tcp/4001",),
            interfaces=interfaces,
            bootstrap=bootstrap,
            saved_peers=peers,
            limits=w.limits,
            transport=w.net.transport("10.0.5.1"),
            wall=wall_clock,
            draw=rng.randbytes,
            rng=rng,
            in_thread=False,
        )
    )
