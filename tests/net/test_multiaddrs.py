"""Multiaddrs: taken apart, checked, expanded."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multiaddr.protocols import PROTOCOLS

from p2pnode.errors import ConfigError
from p2pnode.net import multiaddrs
from p2pnode.net.address_policy import scope_of
from p2pnode.net.multiaddrs import (
    EXAMPLE,
    MULTIADDR_MAX,
    check_address,
    check_peer,
    parse,
    split_peer,
    without_peer,
)

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


def test_a_circuit_never_becomes_the_address_of_its_relay() -> None:
    circuit = f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit"
    assert without_peer(f"{circuit}/p2p/{PEER}") == without_peer(circuit) == circuit
    assert scope_of(circuit) is None
    assert without_peer(f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}") == "/ip4/1.2.3.4/tcp/1"


NAMES = [protocol.name for protocol in PROTOCOLS]
VALUES = (
    "", "x", "lo", "::1", "1.2.3.4", "80", "-1", "99999999999", "\x00", "\xe9", "\ud800", "Qm", "..", "%2f",
    "=", "a" * 300, PEER,
)  # fmt: skip


def _parts(draw_name: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    part = st.tuples(draw_name, st.sampled_from(VALUES) | st.text(max_size=12)).map("/".join)
    return st.lists(part, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


def _is_refused_in_one_way(text: str) -> None:
    try:
        parsed = parse(text)
    except ConfigError:
        return
    assert str(parse(str(parsed))) == str(parsed)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_wrong_with_a_protocol_of_the_library_is_one_kind_of_error(name: str) -> None:
    for value in VALUES:
        for text in (
            f"/{name}",
            f"/{name}/{value}",
            f"/{name}/{value}/ip6/::1/tcp/1",
            f"/ip4/1.2.3.4/tcp/1/{name}/{value}/p2p/{PEER}",
        ):
            _is_refused_in_one_way(text)
            _is_refused_in_one_way(f"/{name}/{text}")


@given(_parts(st.sampled_from(NAMES)))
@example("/unix/x/ip4/%2f/ip4/")
def test_no_mix_of_protocols_makes_anything_but_that_error(text: str) -> None:
    _is_refused_in_one_way(text)


def test_a_path_that_its_text_does_not_keep_is_refused_and_another_is_not() -> None:
    with pytest.raises(ConfigError, match=r"'/unix/x/ip4/%2f/ip4/' has a path that is another one"):
        parse("/unix/x/ip4/%2f/ip4/")
    assert str(parse("/unix/x/y%20z")) == "/unix/x/y%20z"


@pytest.mark.parametrize(
    "text", ["/ip6zone/lo/ip6/::1/tcp/1", "/unix/tmp/x", "/udp/1", "/memory/1", "/ip4/1.2.3.4"]
)
def test_an_address_of_a_kind_that_cannot_be_dialled_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError):
        check_address(text)


def test_who_names_where_to_listen_is_shown_an_address_without_a_peer() -> None:
    with pytest.raises(ConfigError, match=r"a right one looks like /ip4/0\.0\.0\.0/tcp/4001$"):
        check_address("127.0.0.1:4001")


def test_a_multiaddr_of_any_length_is_refused_before_it_is_read() -> None:
    with pytest.raises(ConfigError, match=str(MULTIADDR_MAX)):
        split_peer("/ip4/1.2.3.4/tcp/1/p2p/" + "1" * 10_000_000)


@pytest.mark.parametrize("peer", ["", "0", "\xe9", "\ud800", "1" * 10_000_000])
def test_what_is_no_peer_id_is_refused_in_the_same_way(peer: str) -> None:
    with pytest.raises(ConfigError, match="no peer id"):
        check_peer(peer)
