"""Neighbours on loopback; and what strangers announce."""

from __future__ import annotations

import pytest
import trio

from p2pnode.net.mdns import ADDRESSES_MAX, Mdns, read
from p2pnode.net.network import Network
from tests.net.support import make, make_client

PEER = make("announced").peer_id


def test_an_announcement_on_loopback_addresses_stays_on_loopback() -> None:
    mdns = Mdns(PEER, [f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"], announce=True, found=lambda _: None)
    assert mdns.interfaces == ("127.0.0.1",)


def test_a_whole_record_is_read() -> None:
    found = read({b"peer": PEER.encode(), b"a0": b"/ip4/10.0.0.1/tcp/4001"})
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
    assert read(texts) is None


def test_a_record_with_many_addresses_is_cut() -> None:
    texts: dict[bytes, bytes | None] = {b"peer": PEER.encode()}
    texts.update({b"a%d" % i: b"/ip4/10.0.0.1/tcp/%d" % (i + 1) for i in range(50)})
    found = read(texts)
    assert found is not None
    assert len(found.addrs) == ADDRESSES_MAX


async def _run_pair(host: Network, client: Network) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            await nursery.start(client.run)
            async for found in client.discovered():
                if found.peer == host.peer_id:
                    assert found.addrs == host.multiaddrs
                    await client.connect_peer(found.peer, found.addrs)
                    break
            await client.aclose()
            await host.aclose()


async def test_a_client_finds_a_host_on_loopback_and_can_dial_what_it_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2pnode.net.mdns.interface_addresses", lambda: ("127.0.0.1",))
    await _run_pair(make("mdns host", mdns="announce"), make_client("mdns client", mdns="browse"))


async def test_where_there_is_no_multicast_the_network_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(**_: object) -> None:
        raise OSError("no multicast here")

    monkeypatch.setattr("p2pnode.net.mdns.Zeroconf", no_socket)
    network = make("alone", mdns="announce")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            await network.aclose()
