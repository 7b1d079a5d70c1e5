"""Neighbours on loopback; and what strangers announce."""

from __future__ import annotations

import pytest
import trio

from p2pnode.ids import PeerId
from p2pnode.net.mdns import (
    ADDRESSES_MAX,
    ADDRESSES_PER_HOST,
    RECORDS_PER_HOST_AND_MINUTE,
    RECORDS_PER_MINUTE,
    Mdns,
    RecordRate,
    read,
)
from p2pnode.net.multiaddrs import PeerAddresses
from p2pnode.net.network import Network
from tests.net.support import make, make_client

PEER = make("announced").peer_id
LAN = ("127.0.0.1/8", "10.0.0.9/24")


def test_an_announcement_on_loopback_addresses_stays_on_loopback() -> None:
    mdns = Mdns(
        PEER,
        addresses=lambda: ["/ip4/127.0.0.1/tcp/1"],
        interfaces=lambda: ["127.0.0.1/8", "10.0.0.9/24"],
        announce=True,
        found=lambda _: None,
    )
    assert mdns.in_use == ("127.0.0.1",)


def test_a_whole_record_is_read() -> None:
    found = read({b"peer": PEER.encode(), b"a0": b"/ip4/10.0.0.1/tcp/4001"}, LAN)
    assert found is not None
    assert (found.peer, found.addrs) == (PEER, (f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER}",))


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {b"peer": b"me"},
        {b"peer": PEER.encode()},
        {b"peer": PEER.encode(), b"a0": b"\xff\xfe"},
        {b"peer": b"\xff", b"a0": b"/ip4/10.0.0.1/tcp/4001"},
        {b"peer": PEER.encode(), b"a0": b"/ip4/10.0.0.1/udp/1/quic-v1"},
        {b"peer": PEER.encode(), b"a0": b"/dns4/" + b"x" * 250 + b"/tcp/1"},
        {b"peer": None, b"a0": None},
    ],
)
def test_a_record_without_sense_is_none(texts: dict[bytes, bytes | None]) -> None:
    assert read(texts, LAN) is None


def test_a_record_with_many_addresses_is_cut() -> None:
    texts: dict[bytes, bytes | None] = {b"peer": PEER.encode()}
    texts.update({b"a%d" % i: b"/ip4/10.0.0.1/tcp/%d" % (i + 1) for i in range(50)})
    found = read(texts, LAN)
    assert found is not None
    assert len(found.addrs) == ADDRESSES_MAX


@pytest.mark.parametrize(
    "elsewhere",
    ["/ip4/8.8.8.8/tcp/53", "/ip4/10.0.1.1/tcp/22", "/ip4/127.0.0.1/tcp/22", "/dns4/x.test/tcp/1"],
)
def test_a_record_counts_only_for_the_network_that_it_came_from(elsewhere: str) -> None:
    texts: dict[bytes, bytes | None] = {b"peer": PEER.encode(), b"a0": elsewhere.encode()}
    assert read(texts, LAN) is None
    found = read({**texts, b"a1": b"/ip4/10.0.0.1/tcp/4001"}, LAN)
    assert found is not None
    assert found.addrs == (f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER}",)


async def _run_pair(host: Network, client: Network) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            await nursery.start(client.run)
            async for found in client.discovered():
                if found.peer == host.peer_id:
                    assert found.addrs == host.multiaddrs
                    await client.connect_peer(found.peer, (), trusted=found.addrs)
                    break
            await client.aclose()
            await host.aclose()


async def test_a_client_finds_a_host_on_loopback_and_can_dial_what_it_found() -> None:
    host = make("mdns host", mdns="announce", interfaces=lambda: ("127.0.0.1/8",))
    await _run_pair(host, make_client("mdns client", mdns="browse", interfaces=lambda: ("127.0.0.1/8",)))


async def test_where_there_is_no_multicast_the_network_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(**_: object) -> None:
        raise OSError("no multicast here")

    monkeypatch.setattr("p2pnode.net.mdns.Zeroconf", no_socket)
    network = make("alone", mdns="announce")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            await network.aclose()


def _announced(number: int, host: str, count: int = 6) -> PeerAddresses:
    peer = PeerId(f"peer {number}")
    return PeerAddresses(
        peer=peer, addrs=tuple(f"/ip4/{host}/tcp/{4000 + n}/p2p/{peer}" for n in range(count))
    )


def test_sixty_announcements_that_name_one_host_lead_to_few_dials_to_it() -> None:
    rate, dials = RecordRate(), 0
    for number in range(60):
        found = rate.allowed(_announced(number, "192.168.1.9"), number / 10)
        dials += len(found.addrs) if found is not None else 0
    assert dials == RECORDS_PER_HOST_AND_MINUTE * ADDRESSES_PER_HOST


def test_made_up_hosts_do_not_get_around_the_rate_for_all() -> None:
    rate = RecordRate()
    passed = sum(rate.allowed(_announced(n, f"192.168.1.{n}"), n / 10) is not None for n in range(200))
    assert RECORDS_PER_MINUTE <= passed <= RECORDS_PER_MINUTE * 20 / 60 + RECORDS_PER_MINUTE


def test_nodes_that_come_one_by_one_are_all_passed_on() -> None:
    rate = RecordRate()
    for number in range(100):
        assert rate.allowed(_announced(number, f"192.168.1.{number}", 2), number * 10.0) == _announced(
            number, f"192.168.1.{number}", 2
        )
