"""What WebSocket adds to TCP, and the ports of a node that was given none."""

from __future__ import annotations

import socket

import pytest

from p2pnode.errors import ConfigError
from p2pnode.net.transports import free_listen, is_free
from tests.net.support import (
    ECHO,
    ask_echo,
    cable_to,
    echo,
    eventually,
    make,
    make_client,
    port_of,
    running,
    sockets_open,
)

LISTEN = ("/ip4/127.0.0.1/tcp/0/ws",)


async def test_a_peer_that_vanishes_without_a_close_frame_leaves_no_socket_open() -> None:
    host, client = make("host", listen=LISTEN), make_client("client")
    host.serve(ECHO, echo)
    async with running(host, client):
        async with cable_to(host) as cable:
            before = sockets_open()
            await client.connect(cable.multiaddr)
            await eventually(lambda: host.stats().connections == 1)
            assert sockets_open() == before + 4
            cable.cut()
            await eventually(lambda: sockets_open() == before)
            await eventually(lambda: not client.connected_peers())
        await ask_echo(client, host)


async def test_a_connection_that_ends_in_order_leaves_no_socket_open_either() -> None:
    host, client = make("host", listen=LISTEN), make_client("client")
    async with running(host, client):
        before = sockets_open()
        await client.connect(host.multiaddrs[0])
        await eventually(lambda: host.stats().connections == 1)
        assert sockets_open() == before + 2
        await client.disconnect(host.peer_id)
        await eventually(lambda: sockets_open() == before)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


def test_the_wanted_ports_are_taken_while_they_are_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    wanted = (f"/ip4/127.0.0.1/tcp/{port}", f"/ip4/127.0.0.1/tcp/{port}/ws")
    assert free_listen(wanted[:1]) == wanted[:1]
    assert is_free(wanted[1])


@needs_ipv6
def test_a_port_that_is_taken_in_one_ip_version_is_left_in_both() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wanted = (f"/ip4/127.0.0.1/tcp/{port}", f"/ip6/::1/tcp/{port}", "/ip4/127.0.0.1/tcp/0/ws")
        assert free_listen(wanted) == ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")
        assert is_free(wanted[1])


def test_a_machine_without_ipv6_is_asked_for_no_port_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoIpv6(socket.socket):
        def __init__(self, family: int = -1, *rest: int, **more: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *rest, **more)

    monkeypatch.setattr("socket.socket", NoIpv6)
    assert free_listen(("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0")) == ("/ip4/127.0.0.1/tcp/0",)


@needs_ipv6
async def test_one_port_serves_both_ip_versions_and_peers_come_by_either() -> None:
    first = make("host of both")
    async with running(first):
        port = port_of(first)
    host = make("host of both", listen=(f"/ip4/127.0.0.1/tcp/{port}", f"/ip6/::1/tcp/{port}"))
    host.serve(ECHO, echo)
    clients = {version: make_client(f"client of {version}") for version in ("/ip4/", "/ip6/")}
    async with running(host, *clients.values()):
        for version, client in clients.items():
            (address,) = [each for each in host.multiaddrs if each.startswith(version)]
            await client.connect(address)
            (remote,) = client.remote_addresses()
            assert remote.startswith(version)
            stream = await client.open_stream(host.peer_id, ECHO)
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.aclose()


@needs_ipv6
async def test_a_taken_ipv6_port_is_an_error_that_shows_a_right_address() -> None:
    host = make("host of six", listen=("/ip6/::1/tcp/0",))
    async with running(host):
        port = port_of(host)
        with pytest.raises(ConfigError, match=rf"for instance /ip6/::1/tcp/{port + 1}"):
            await make("second of six", listen=(f"/ip6/::1/tcp/{port}",)).run()
