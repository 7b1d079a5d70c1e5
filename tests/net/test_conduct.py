"""What a peer did wrong is added up, fades, and ends in slower reading or in leaving."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net import conduct
from p2pnode.net.conduct import HALF_LIFE_S, LEAVE_AT, ORIGIN_AT, REFUSED_S, SLOW_AT, Conduct
from p2pnode.net.network import PeerChange
from p2pnode.shares import Origin
from tests.net.memory_world import world
from tests.net.support import ECHO, echo, eventually

HERE, ELSEWHERE = Origin("8.8.8.0/24", "8.8.8.0/24"), Origin("9.9.9.0/24", "9.9.9.0/24")
PEER, OTHER = PeerId("one"), PeerId("other")


def test_faults_that_come_fast_slow_a_peer_and_then_end_it() -> None:
    sums = Conduct()
    seen = [sums.charge(PEER, HERE, "flood", 10.0, 0.0) for _ in range(4)]
    assert seen == ["slow", "slow", "slow", "leave"]
    assert sums.refused_for(PEER, 1.0) == "flood"
    assert sums.refused_for(OTHER, 1.0) is None
    assert sums.faults == {"flood": 4}


def test_a_peer_that_is_late_now_and_then_is_never_slowed() -> None:
    sums = Conduct()
    for minute in range(24 * 60):
        for second in range(0, 60, 15):
            assert sums.charge(PEER, HERE, "late", 1.0, minute * 60.0 + second) == "ok"


def test_a_sum_halves_in_its_half_life() -> None:
    sums = Conduct()
    assert sums.charge(PEER, HERE, "x", LEAVE_AT - 1, 0.0) == "slow"
    assert sums.charge(PEER, HERE, "x", LEAVE_AT / 2, HALF_LIFE_S) == "slow"
    assert Conduct().charge(PEER, HERE, "x", LEAVE_AT, 0.0) == "leave"


def test_who_was_left_may_come_back_with_a_clean_sheet() -> None:
    sums = Conduct()
    assert sums.charge(PEER, HERE, "flood", LEAVE_AT, 0.0) == "leave"
    assert sums.refused_for(PEER, REFUSED_S - 1) == "flood"
    assert sums.refused_for(PEER, REFUSED_S) is None
    assert sums.charge(PEER, HERE, "late", 1.0, REFUSED_S) == "ok"


def test_twenty_ids_of_one_prefix_have_less_patience_than_twenty_of_twenty() -> None:
    def spent(origins: list[Origin]) -> float:
        sums, total = Conduct(), 0.0
        for i, origin in enumerate(origins):
            while True:
                total += 1.0
                if sums.charge(PeerId(f"id {i}"), origin, "flood", 1.0, 0.0) == "leave":
                    break
        return total

    many = [Origin(f"{i}", f"{i}") for i in range(20)]
    assert spent(many) == 20 * LEAVE_AT
    assert spent([HERE] * 20) <= ORIGIN_AT + 20 * SLOW_AT


def test_a_neighbour_of_flooders_that_does_nothing_wrong_stays() -> None:
    sums = Conduct()
    for i in range(100):
        sums.charge(PeerId(f"flooder {i}"), HERE, "flood", LEAVE_AT, 0.0)
    assert sums.charge(PEER, HERE, "late", 1.0, 0.0) == "ok"
    assert sums.charge(OTHER, ELSEWHERE, "late", SLOW_AT, 0.0) == "slow"


async def test_a_peer_that_is_left_is_closed_named_and_refused(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        host, client = w.nodes
        host.serve(ECHO, echo)
        await client.connect(host.multiaddrs[0])
        await eventually(lambda: host.is_connected(client.peer_id))
        assert host.charge(client.peer_id, "flood of something", conduct.LEAVE_AT) == "leave"
        await eventually(lambda: not client.is_connected(host.peer_id))
        refused = host.statistics().refused.get("handshake", 0)
        await client.connect(host.multiaddrs[0])  # the client's side of the handshake ends first
        await eventually(lambda: not client.is_connected(host.peer_id))
        assert host.statistics().refused["handshake"] == refused + 1
        with pytest.raises(UnreachableError, match="flood of something"):
            await host.connect(client.multiaddrs[0])
        assert host.statistics().faults == {"flood of something": 1}
        assert host.statistics().refused["left"] == 1
        await trio.sleep(REFUSED_S)
        await client.connect(host.multiaddrs[0])


async def test_a_peer_that_is_slowed_is_read_later_and_loses_nothing(autojump_clock: MockClock) -> None:
    async with world(3) as w:
        host, client, other = w.nodes
        host.serve(ECHO, echo)
        for each in (client, other):
            await each.connect(host.multiaddrs[0])
        await eventually(lambda: len(host.connected_peers()) == 2)
        await trio.sleep(1)
        assert host.charge(client.peer_id, "flood", conduct.SLOW_AT) == "slow"

        async def asks(who: int) -> float:
            began = trio.current_time()
            stream = await w.nodes[who].open_stream(host.peer_id, ECHO)
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            return trio.current_time() - began

        assert await asks(2) < conduct.SLOW_S / 2
        # What came before it was slowed is read at once; the next read waits.
        assert await asks(1) + await asks(1) >= conduct.SLOW_S / 2
        assert await asks(1) < conduct.SLOW_S / 2


async def test_watchers_hear_of_a_peer_from_its_first_connection_to_its_last(
    autojump_clock: MockClock,
) -> None:
    async with world(2) as w:
        host, client = w.nodes
        heard: list[tuple[str, PeerChange]] = []
        host.watch_peers(lambda peer, change: heard.append((peer, change)))
        await client.connect(host.multiaddrs[0])
        await host.connect(client.multiaddrs[0])
        await eventually(lambda: len(heard) == 2)
        await client.disconnect(host.peer_id)
        await eventually(lambda: len(heard) == 3)
        peer = client.peer_id
        assert heard == [(peer, "connected"), (peer, "identified"), (peer, "disconnected")]


async def test_an_idle_stream_of_a_protocol_with_a_deadline_ends(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        host, client = w.nodes
        host.serve("/p2pnode/patient/1", echo)
        host.serve("/p2pnode/hurried/1", echo, idle_s=5.0)
        await client.connect(host.multiaddrs[0])
        patient = await client.open_stream(host.peer_id, "/p2pnode/patient/1")
        hurried = await client.open_stream(host.peer_id, "/p2pnode/hurried/1")
        await trio.sleep(3)
        await hurried.send_all(b"still here")
        assert await hurried.receive_some() == b"still here"
        await trio.sleep(6)
        with pytest.raises(UnreachableError):
            await hurried.receive_some()
        await patient.send_all(b"x")
        assert await patient.receive_some() == b"x"


async def test_a_peer_comes_from_where_it_was_seen_or_reached(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        host, client = w.nodes
        assert host.origin_of(client.peer_id).near == f"peer/{client.peer_id}"
        await client.connect(host.multiaddrs[0])
        assert host.origin_of(client.peer_id).near == f"peer/{client.peer_id}"  # 10.0.0.2 is private
