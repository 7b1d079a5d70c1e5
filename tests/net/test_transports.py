"""What WebSocket adds to TCP, and the ports of a node that was given none."""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import ConnectionClosedError

from p2pnode.errors import ConfigError
from p2pnode.net.transports import TcpStream, free_listen, is_free, wrap
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
            await eventually(lambda: host.statistics().connections == 1)
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
        await eventually(lambda: host.statistics().connections == 1)
        assert sockets_open() == before + 2
        await client.disconnect(host.peer_id)
        await eventually(lambda: sockets_open() == before)


async def pair() -> tuple[TcpStream, TcpStream]:
    """Both ends of a TCP connection."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        here = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return wrap(here), wrap(await listener.accept())


async def test_all_bytes_arrive_in_order_while_the_reader_is_slow_and_both_ends_know_each_other() -> None:
    here, there = await pair()
    data, got = bytes(range(256)) * 40_000, b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.write, data)  # more than the kernel takes at once
        while len(got) < len(data):
            got += await there.read(100_000)
    assert got == data
    assert await there.read(0) == b""
    remote = here.get_remote_address()
    assert remote is not None
    assert remote[0] == "127.0.0.1"
    await here.close()
    await there.close()


async def test_what_a_socket_takes_at_once_is_sent_without_a_wait() -> None:
    here, there = await pair()
    assert here.send_now(b"at once") == 7
    assert await there.read() == b"at once"
    data, taken = bytes(1 << 20), 0
    while count := here.send_now(data):  # nobody reads
        taken += count
    assert taken > 0
    got = 0
    while got < taken:
        got += len(await there.read())
    await there.close()
    await here.close()
    with pytest.raises(ConnectionClosedError, match="lost"):
        here.send_now(b"x")


async def test_what_was_read_beyond_what_was_asked_for_comes_next() -> None:
    here, there = await pair()
    await here.write(b"abcdef")
    assert [await there.read(2), await there.read(2), await there.read()] == [b"ab", b"cd", b"ef"]
    await here.close()
    with pytest.raises(ConnectionClosedError, match="the other side closed"):
        await there.read()
    await there.close()


async def test_a_stream_that_is_closed_on_this_side_wakes_its_reader_and_its_writer() -> None:
    here, there = await pair()
    ended: list[str] = []

    async def expect(work: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(ConnectionClosedError, match="lost"):
            await work()
        ended.append("")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, here.read)
        nursery.start_soon(expect, partial(here.write, bytes(64 << 20)))
        await trio.testing.wait_all_tasks_blocked()
        await here.close()
    assert len(ended) == 2
    for work in (here.read, here.wait_readable, partial(here.write, b"x")):
        await expect(work)
    await here.close()
    await there.close()


async def test_a_connection_that_was_reset_before_it_was_accepted_is_over_and_raises_nothing_else() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        here = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        here.socket.close()
        stream = wrap(await listener.accept())
        with pytest.raises(ConnectionClosedError):
            await stream.read()
        await stream.close()


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
