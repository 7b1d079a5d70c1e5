"""Whose word is enough to dial an address, and which of our own addresses strangers learn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.errors import ConfigError
from p2pnode.net.address_policy import (
    AddressPolicy,
    check_announced,
    expand,
    interface_addresses,
    mixed,
    nearest_first,
    on_link,
    own_addresses,
    scope_of,
    to_announce,
)
from p2pnode.net.dht import text_of
from p2pnode.net.multiaddrs import check_address, host_of, parse, without_peer
from p2pnode.scopes import scope_of_host
from tests.protocols.kademlia.dht_world import peer_number

PEER = peer_number(1)

GLOBAL, LAN, HOME = "/ip4/8.8.8.8/tcp/4001", "/ip4/192.168.1.5/tcp/4001", "/ip4/127.0.0.1/tcp/4001"
CARRIER, NAME = "/ip4/100.64.0.2/tcp/4001", "/dns4/host.example.org/tcp/4001"
STRANGE = (GLOBAL, LAN, HOME, CARRIER, NAME, "/ip4/169.254.169.254/tcp/80", "/ip4/0.0.0.0/tcp/1", "/unix/x")


def test_a_strangers_word_is_enough_for_global_addresses_and_names_only() -> None:
    assert AddressPolicy().dialable(STRANGE) == (GLOBAL, NAME)
    assert AddressPolicy(["/ip4/8.8.4.4/tcp/1"]).dialable(STRANGE) == (GLOBAL, NAME)


def test_a_node_that_lives_in_a_private_network_takes_the_addresses_near_it() -> None:
    policy = AddressPolicy(["/ip4/192.168.1.9/tcp/4001"])
    assert policy.dialable(STRANGE) == (GLOBAL, LAN, NAME)
    assert policy.dialable(["/ip4/10.0.0.1/tcp/1"]) == ()
    assert AddressPolicy(["/ip4/127.0.0.1/tcp/1"]).dialable(STRANGE) == (GLOBAL, HOME, NAME)
    assert AddressPolicy(["/ip4/100.64.9.9/tcp/1"]).dialable(STRANGE) == (GLOBAL, CARRIER, NAME)


def test_one_global_address_among_those_its_user_named_ends_that() -> None:
    for wide in ("/ip4/8.8.4.4/tcp/1", NAME, "/ip6/2606:4700::1/tcp/1/ws"):
        assert AddressPolicy(["/ip4/192.168.1.9/tcp/4001", wide]).dialable(STRANGE) == (GLOBAL, NAME)


def test_one_peer_elsewhere_ends_it_too_for_as_long_as_it_is_connected() -> None:
    remotes: list[str] = []
    policy = AddressPolicy(["/ip4/192.168.1.9/tcp/4001"], remotes=lambda: remotes)
    assert LAN in policy.dialable(STRANGE)
    remotes.append("/ip4/8.8.4.4/tcp/9")
    assert LAN not in policy.dialable(STRANGE)
    assert policy.networks == ()
    remotes.clear()
    assert LAN in policy.dialable(STRANGE)


def test_whoever_connects_from_a_private_network_opens_it_to_nobody() -> None:
    policy = AddressPolicy(remotes=lambda: ["/ip4/192.168.1.77/tcp/9", "/ip4/127.0.0.1/tcp/9"])
    assert policy.dialable(STRANGE) == (GLOBAL, NAME)


def test_a_program_beside_a_node_lives_where_the_node_does() -> None:
    other = AddressPolicy()
    other.trust((), AddressPolicy(["/ip4/192.168.1.9/tcp/4001"]).networks)
    assert other.dialable(STRANGE) == (GLOBAL, LAN, NAME)


def test_the_unspecified_address_becomes_the_interfaces_of_its_family() -> None:
    interfaces = ["127.0.0.1/8", "10.1.1.1/24", "8.8.8.8/24", "::1/128"]
    found = expand(["/ip4/0.0.0.0/tcp/4001/ws"], interfaces)
    assert found == ("/ip4/8.8.8.8/tcp/4001/ws", "/ip4/10.1.1.1/tcp/4001/ws", "/ip4/127.0.0.1/tcp/4001/ws")
    assert expand(["/ip6/::/tcp/1"], interfaces) == ("/ip6/::1/tcp/1",)
    assert expand(["/ip4/10.1.1.1/tcp/1"], interfaces) == ("/ip4/10.1.1.1/tcp/1",)


def test_strangers_learn_global_and_private_addresses_and_what_the_user_announces_first() -> None:
    own = (GLOBAL, LAN, CARRIER, HOME)
    assert to_announce(own) == (GLOBAL, LAN)
    assert to_announce(own, (NAME,)) == (NAME, GLOBAL, LAN)
    assert to_announce(own, (CARRIER,)) == (CARRIER, GLOBAL, LAN)
    assert to_announce((LAN, HOME)) == (LAN,)
    assert to_announce((HOME,)) == (HOME,)  # a machine that is its own network
    assert to_announce((CARRIER, HOME)) == (HOME,)


def test_an_address_that_the_user_listens_on_by_name_counts_as_stated() -> None:
    found = own_addresses([CARRIER], [], lambda: ["100.64.0.2/10"])
    assert found.announced == (CARRIER,)
    found = own_addresses(["/ip4/0.0.0.0/tcp/4001"], [], lambda: ["100.64.0.2/10", "127.0.0.1/8"])
    assert CARRIER not in found.announced
    assert CARRIER in found.every


@pytest.mark.parametrize("right", [GLOBAL, NAME, CARRIER, LAN, "/ip6/2606:4700::1/tcp/4002/ws"])
def test_what_others_could_dial_may_be_announced(right: str) -> None:
    check_announced(right)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("8.8.8.8:4001", "is no multiaddr"),
        ("/ip4/8.8.8.8/udp/4001/quic-v1", "only TCP and WebSocket"),
        ("/ip4/8.8.8.8/tcp/0", "no port"),
        ("/ip4/0.0.0.0/tcp/4001", "nobody else can reach"),
        ("/ip6/::/tcp/4001", "nobody else can reach"),
        (HOME, "nobody else can reach 127.0.0.1"),
        ("/dns4/localhost/tcp/4001", "nobody else can reach localhost"),
        ("/ip4/169.254.1.1/tcp/1", "nobody else can reach"),
        ("/ip4/224.0.0.1/tcp/1", "nobody else can reach"),
    ],
)
def test_what_nobody_could_dial_may_not(wrong: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_announced(wrong)


def test_a_few_of_many_addresses_are_of_every_kind() -> None:
    v4, v6 = [f"/ip4/8.8.8.{n}/tcp/4001" for n in range(5)], "/ip6/2606:4700::1/tcp/4001"
    ws, ws6 = "/ip4/8.8.8.1/tcp/4002/ws", "/ip6/2606:4700::1/tcp/4002/ws"
    assert set(mixed([*v4, v6, ws, ws6], 4)) == {v4[0], v6, ws, ws6}
    assert mixed([*v4, ws], 3) == (v4[0], v4[1], ws)
    assert mixed(v4, 2) == (v4[0], v4[1])
    assert mixed([], 4) == ()


def test_the_nearest_is_dialled_first_and_plain_tcp_before_websocket() -> None:
    ws = "/ip4/127.0.0.1/tcp/4002/ws"
    assert nearest_first([ws, GLOBAL, LAN, HOME]) == (HOME, LAN, GLOBAL, ws)


def test_an_address_is_on_link_in_a_network_of_ours() -> None:
    interfaces = ["127.0.0.1/8", "192.168.1.5/24", "2606:4700::5/64"]
    assert on_link("/ip4/192.168.1.77/tcp/1", interfaces)
    assert on_link("/ip6/2606:4700::77/tcp/1", interfaces)
    assert not on_link("/ip4/192.168.2.77/tcp/1", interfaces)
    assert not on_link(GLOBAL, interfaces)
    assert not on_link(NAME, interfaces)
    assert not on_link(HOME, interfaces)
    assert on_link(HOME, ["127.0.0.1/8"])  # a machine without a network is its own


def test_this_machine_has_an_address() -> None:
    assert all("/" in each for each in interface_addresses())
    assert interface_addresses()


# ---- the quick ways, beside the library's


def _scope_by_the_library(address: str) -> str | None:
    try:
        check_address(without_peer(address))
    except ConfigError:
        return None
    return scope_of_host(host_of(address))


def _text_by_the_library(address: bytes) -> str | None:
    try:
        return without_peer(str(parse(str(Multiaddr(address)))))
    except Exception:  # noqa: BLE001  the library raises whatever it likes here
        return None


HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(["01.2.3.4", "1.2.3", "::ffff:1.2.3.4", "fe80::1%eth0", "1.2.3.4.5", "::", ":::", "abc"]),
)


@given(
    st.sampled_from(["ip4", "ip6", "dns"]),
    HOSTS,
    st.sampled_from(["tcp", "udp"]),
    st.one_of(st.integers(0, 70_000).map(str), st.sampled_from(["007", "", "x"])),
    st.sampled_from(["", "/ws", "/tls", f"/p2p/{PEER}", f"/ws/p2p/{PEER}", "/p2p/x", "/"]),
)
def test_the_scope_of_an_address_is_that_by_the_library(
    family: str, host: str, transport: str, port: str, tail: str
) -> None:
    address = f"/{family}/{host}/{transport}/{port}{tail}"
    assert scope_of(address) == _scope_by_the_library(address)


@given(
    st.sampled_from([b"\x04", b"\x29", b"\x35"]),
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16), st.binary(max_size=20)),
    st.sampled_from([b"\x06", b"\x91\x02", b""]),
    st.binary(max_size=4),
    st.sampled_from([b"", b"\xdd\x03", b"\xdd", b"\xdd\x03\x00"]),
)
def test_a_binary_address_reads_as_by_the_library(
    family: bytes, host: bytes, transport: bytes, port: bytes, tail: bytes
) -> None:
    address = family + host + transport + port + tail
    assert text_of(address) == _text_by_the_library(address)
