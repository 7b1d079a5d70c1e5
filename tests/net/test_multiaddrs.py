"""Multiaddrs: taken apart, checked, expanded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.net import multiaddrs
from p2pnode.net.multiaddrs import EXAMPLE, expand, is_loopback, is_private, split_peer

PEER = "12D3KooWMbbPVGsZYh3ChQjue712NHHGNybRRXwnuSpezYjGbCDS"


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/192.0.2.7/tcp/4001",
        "/ip6/2001:db8::1/tcp/1",
        "/dns4/host.test/tcp/4001",
        "/ip4/1.2.3.4/tcp/80/ws",
    ],
)
def test_a_full_multiaddr_is_split_into_address_and_peer(address: str) -> None:
    assert split_peer(f"{address}/p2p/{PEER}") == (address, PEER)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("nonsense", "is no multiaddr"),
        ("", "doesn't say which peer"),
        ("/ip4/300.1.1.1/tcp/1", "is no multiaddr"),
        ("/ip4/1.2.3.4/tcp/4001", "must end in /p2p/"),
        (f"/p2p/{PEER}", "doesn't say where"),
        (f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}", "only TCP and WebSocket"),
        (f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}", "relay"),
        ("/ip4/1.2.3.4/tcp/4001/p2p/12D3KooWbroken", "is no multiaddr"),
    ],
)
def test_a_wrong_multiaddr_says_what_is_wrong(wrong: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split_peer(wrong)


def test_a_message_shows_a_right_one() -> None:
    with pytest.raises(ConfigError, match=EXAMPLE.split("/p2p/", maxsplit=1)[0]):
        split_peer("10.0.0.1:4001")


@given(st.text(max_size=80))
def test_no_text_makes_anything_but_a_config_error(text: str) -> None:
    try:
        split_peer(text)
    except ConfigError:
        return
    assert multiaddrs.is_valid(text)


def test_the_unspecified_address_becomes_the_interfaces_of_its_family() -> None:
    found = expand(["/ip4/0.0.0.0/tcp/4001/ws"], interfaces=["127.0.0.1", "10.1.1.1", "8.8.8.8", "::1"])
    assert found == ("/ip4/8.8.8.8/tcp/4001/ws", "/ip4/10.1.1.1/tcp/4001/ws", "/ip4/127.0.0.1/tcp/4001/ws")


def test_a_stated_address_stays_as_it_is() -> None:
    assert expand(["/ip4/10.1.1.1/tcp/1"], interfaces=["127.0.0.1"]) == ("/ip4/10.1.1.1/tcp/1",)


def test_private_and_loopback_addresses_are_told_from_public_ones() -> None:
    assert is_loopback("/ip4/127.0.0.1/tcp/1")
    assert is_private("/ip4/192.168.1.1/tcp/1")
    assert is_private("/ip6/fe80::1/tcp/1")
    assert not is_private("/ip4/8.8.8.8/tcp/1")
    assert not is_loopback("/dns4/host.test/tcp/1")
