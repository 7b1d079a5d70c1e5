"""Meshes of many machines in virtual time: what is published arrives everywhere, and churn tears nothing."""

from __future__ import annotations

from itertools import pairwise
from statistics import quantiles

import pytest

from p2pnode.ids import PeerId
from p2pnode.protocols.gossipsub.parameters import Parameters
from tests.protocols.gossipsub.mesh import TOPIC, Mesh, peer_of

long = pytest.mark.long


def made(count: int, *, links: int = 3, seed: int = 1) -> tuple[Mesh, list[PeerId]]:
    """Nodes on one topic, each connected to some others."""
    mesh = Mesh(seed=seed)
    peers = [mesh.add(number) for number in range(count)]
    for peer in peers:
        mesh.connect_at_random(peer, links)
    mesh.world.run_for(5)
    return mesh, peers


def test_twenty_nodes_have_an_advert_within_a_second() -> None:
    mesh, peers = made(20)
    delays = []
    for number, speaker in enumerate(peers * 5):
        data = b"advert %d" % number
        began = mesh.publish(speaker, data)
        mesh.world.run_for(2)
        assert mesh.reached(data) == set(peers)
        delays += [arrived - began for peer, arrived in mesh.arrived[data].items() if peer != speaker]
    assert quantiles(delays, n=100)[98] <= 1.0
    assert mesh.faults == []


def test_a_burst_of_forty_arrives_forty_times_everywhere() -> None:
    mesh, peers = made(20)
    for number in range(40):
        mesh.publish(peers[7], b"%d" % number)
    mesh.world.run_for(5)
    assert [len(mesh.reached(b"%d" % number)) for number in range(40)] == [20] * 40
    assert mesh.faults == []


def test_gossip_repairs_what_the_mesh_lost() -> None:
    mesh = Mesh()
    peers = [mesh.add(number) for number in range(16)]
    for peer in peers:
        mesh.connect_at_random(peer, 8)
    mesh.world.run_for(5)
    receiver = peer_of(5)
    for neighbour in mesh.routers[receiver].mesh(TOPIC):  # what these send takes a minute from now on
        mesh.node(neighbour).links[receiver].latency_s = 60.0
    speaker = next(peer for peer in peers if peer not in {receiver, *mesh.neighbours(receiver)})
    mesh.publish(speaker, b"news")
    mesh.world.run_for(10)
    assert receiver in mesh.reached(b"news")
    assert mesh.routers[receiver].counts["delivered"] == 1


def test_whoever_comes_later_is_in_the_mesh_within_a_heartbeat() -> None:
    mesh, peers = made(10)
    late = mesh.add("late")
    mesh.connect_at_random(late, 3)
    mesh.world.run_for(1.5)
    assert mesh.routers[late].mesh(TOPIC)
    mesh.publish(peers[0], b"hello")
    mesh.world.run_for(1)
    assert late in mesh.reached(b"hello")


def churned(count: int, *, rounds: int, share: float = 0.3) -> None:
    """In each round a share of the nodes crashes, and as many new ones come."""
    mesh, _ = made(count, links=4)
    fresh = iter(range(count, 100 * count))
    for turn in range(rounds):
        for peer in mesh.rng.sample(sorted(mesh.routers), int(share * count)):
            mesh.crash(peer)
        mesh.world.run_for(0.1)  # its neighbours notice
        for peer in sorted(mesh.routers):  # a node replaces the connections that it lost
            mesh.connect_at_random(peer, max(0, 4 - len(mesh.neighbours(peer))))
        for _ in range(count - len(mesh.routers)):
            mesh.connect_at_random(mesh.add(next(fresh)), 4)
        mesh.world.run_for(3)
        assert mesh.is_connected(), turn
        speaker = mesh.rng.choice(sorted(mesh.routers))
        mesh.publish(speaker, b"round %d" % turn)
        mesh.world.run_for(2)
        assert mesh.reached(b"round %d" % turn) == set(mesh.routers), turn
    assert mesh.faults == []


def test_a_hundred_nodes_stay_connected_while_a_third_comes_and_goes() -> None:
    churned(100, rounds=3)


@long
def test_a_thousand_nodes_stay_connected_while_a_third_comes_and_goes() -> None:
    churned(1000, rounds=5)


def on_one_ip(count: int, *, hours: float) -> None:
    """All come from one address prefix, and say one thing in 30 s: nobody is left out for either."""
    mesh = Mesh(with_groups=True)
    peers = [mesh.add(number, ip=f"60.1.1.{number}") for number in range(count)]
    for peer in peers:
        for other in mesh.rng.sample(peers, 9):
            mesh.connect(peer, other)
    mesh.world.run_for(10)
    sizes: set[int] = set()
    for turn in range(int(hours * 120)):
        mesh.publish(mesh.rng.choice(peers), b"%d" % turn)
        mesh.world.run_for(30)
        assert len(mesh.reached(b"%d" % turn)) == count
        mesh.arrived.clear()
        sizes.update(mesh.sizes())
    assert min(sizes) >= 4
    assert mesh.is_connected()
    assert mesh.faults == []
    assert all(router.score(peer, mesh.world.now) >= 0 for router in mesh.routers.values() for peer in peers)


def test_twenty_nodes_on_one_ip_keep_full_meshes_with_an_advert_in_thirty_seconds() -> None:
    on_one_ip(20, hours=0.25)


@long
def test_fifty_nodes_on_one_ip_keep_full_meshes_for_a_day() -> None:
    on_one_ip(50, hours=24)


@pytest.mark.parametrize("topics", [1, 16, 64])
def test_an_idle_node_has_no_timer_however_many_topics_it_is_on(topics: int) -> None:
    mesh, peers = made(6, links=5)
    for peer in peers:
        for number in range(topics - 1):
            mesh.gossip.join(mesh.node(peer), f"topic {number}")
    mesh.world.run_for(20)
    before = mesh.world.loop.done
    mesh.world.run_for(3600)
    assert mesh.world.loop.done == before


def test_two_runs_from_one_seed_do_the_same() -> None:
    def events() -> list[tuple[bytes, list[tuple[PeerId, float]]]]:
        mesh, peers = made(30, seed=5)
        for before, after in pairwise(peers[:10]):
            mesh.publish(before, before.encode())
            mesh.crash(after) if after == peers[4] else None
            mesh.world.run_for(1)
        return [(data, sorted(who.items())) for data, who in mesh.arrived.items()]

    assert events() == events()


@long
def test_the_published_form_reaches_everybody_too() -> None:
    mesh = Mesh(parameters=Parameters.v1_0())
    peers = [mesh.add(number) for number in range(100)]
    for peer in peers:
        mesh.connect_at_random(peer, 6)
    mesh.world.run_for(10)
    for number, peer in enumerate(peers):
        mesh.publish(peer, b"%d" % number)
        mesh.world.run_for(1)
    mesh.world.run_for(10)
    assert [len(mesh.reached(b"%d" % number)) for number in range(100)] == [100] * 100
