"""Two networks over real TCP and WebSocket on loopback."""

from __future__ import annotations

import socket
from functools import partial

import pytest
import trio
import trio.testing

from p2pnode.errors import ConfigError, LocalError, ProtocolError, UnreachableError
from p2pnode.limits import Limits
from p2pnode.net.multiaddrs import without_peer
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.stream import Stream
from tests.net.support import ECHO, ask_echo, echo, eventually, make, make_client, port_of, running

BOTH = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")


@pytest.mark.parametrize("which", [0, 1], ids=["tcp", "websocket"])
async def test_bytes_go_there_and_back_and_end_cleanly(which: int) -> None:
    host, client = make("host", listen=BOTH), make_client("client")
    host.serve(ECHO, echo)
    async with running(host, client) as nursery:
        assert await client.connect(host.multiaddrs[which]) == host.peer_id
        stream = await client.open_stream(host.peer_id, ECHO)
        assert (stream.peer, stream.protocol) == (host.peer_id, ECHO)
        sent = b"0123456789abcdef" * 40_000
        nursery.start_soon(stream.send_all, sent)
        got = b""
        while len(got) < len(sent):
            got += await stream.receive_some()
        assert got == sent
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()
        with pytest.raises(UnreachableError, match="our side"):
            await stream.send_all(b"late")


async def test_what_has_room_is_sent_at_once_in_order_and_what_has_none_not_at_all() -> None:
    host, client = make("host"), make_client("client")
    go, got = trio.Event(), bytearray()

    async def late_reader(stream: Stream) -> None:
        await go.wait()
        while data := await stream.receive_some():
            got.extend(data)

    host.serve(ECHO, late_reader)
    async with running(host, client) as nursery:
        await client.connect(host.multiaddrs[0])
        stream = await client.open_stream(host.peer_id, ECHO)
        sent = b""
        for number in range(1000):
            piece = b"%04d" % number * 1024
            if not stream.send_now(piece):
                break
            sent += piece
        assert 16 * 1024 <= len(sent) <= 512 * 1024  # the window, or what may be queued
        nursery.start_soon(stream.send_all, b"waits" * 100_000)
        await trio.testing.wait_all_tasks_blocked()
        assert not stream.send_now(b"past those that wait")
        go.set()
        await eventually(lambda: len(got) == len(sent) + 500_000)
        assert stream.send_now(b"again")
        await stream.send_eof()
        await eventually(lambda: got.endswith(b"again"))
        assert bytes(got) == sent + b"waits" * 100_000 + b"again"
        assert not stream.send_now(b"after the end")
        await stream.aclose()
        assert not stream.send_now(b"after the end")


async def test_the_address_of_both_sides_is_known() -> None:
    seen: list[str | None] = []

    async def look(stream: Stream) -> None:
        seen.append(stream.remote_addr)

    host, client = make("host"), make("client")
    host.serve(ECHO, look)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        stream = await client.open_stream(host.peer_id, ECHO)
        assert await stream.receive_some() == b""
        assert seen[0] is not None
        assert seen[0].startswith("/ip4/127.0.0.1/tcp/")
        assert stream.remote_addr == without_peer(host.multiaddrs[0])
        await eventually(lambda: host.addresses_of(client.peer_id) == client.multiaddrs)
        assert client.addresses_of(host.peer_id) == host.multiaddrs


async def test_connecting_twice_is_one_connection_and_two_at_once_too() -> None:
    host, client = make("host"), make_client("client")
    async with running(host, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connect, host.multiaddrs[0])
            trusted = [without_peer(host.multiaddrs[0])]
            nursery.start_soon(partial(client.connect_peer, host.peer_id, [], trusted=trusted))
        await client.connect(host.multiaddrs[0])
        assert client.statistics().connections == 1
        assert client.connected_peers() == (host.peer_id,)
        await client.disconnect(host.peer_id)
        assert not client.is_connected(host.peer_id)
        await eventually(lambda: not host.connected_peers())


async def test_a_dead_address_beside_a_good_one_does_not_matter() -> None:
    host, client = make("host"), make_client("client")
    async with running(host, client):
        await client.connect_peer(host.peer_id, [], trusted=["/ip4/127.0.0.1/tcp/1", *host.multiaddrs])
        assert client.is_connected(host.peer_id)


async def test_a_peer_id_mismatch_names_both_ids() -> None:
    host, other, client = make("host"), make("other"), make_client("client")
    async with running(host, client):
        wrong = without_peer(host.multiaddrs[0]) + f"/p2p/{other.peer_id}"
        with pytest.raises(UnreachableError, match="peer id mismatch") as caught:
            await client.connect(wrong)
        assert host.peer_id in str(caught.value)
        assert other.peer_id in str(caught.value)
        assert not client.connected_peers()


async def test_nobody_there_says_refused() -> None:
    other, client = make("other"), make_client("client")
    async with running(client):
        with pytest.raises(UnreachableError, match="connection refused"):
            await client.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{other.peer_id}")


async def test_a_listener_that_never_answers_runs_into_the_dial_deadline() -> None:
    client = make_client("client", limits=Limits(dial_deadline_s=0.3))
    other = make("other")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{other.peer_id}"
        async with running(client):
            with pytest.raises(UnreachableError, match=r"no answer .* within 0\.3 s"):
                await client.connect(address)


async def test_a_web_server_is_not_taken_for_a_node() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    client, other = make_client("client"), make("other")
    async with running(client) as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), serve, 0)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(UnreachableError, match="doesn't answer as a libp2p node"):
            await client.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{other.peer_id}")


async def test_a_protocol_the_peer_does_not_speak_says_so_and_a_lost_peer_says_other() -> None:
    host, client = make("host"), make_client("client")
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        with pytest.raises(UnreachableError, match="doesn't speak /p2pnode/nothing/1"):
            await client.open_stream(host.peer_id, "/p2pnode/nothing/1")
        await client.disconnect(host.peer_id)
        with pytest.raises(UnreachableError, match="not connected"):
            await client.open_stream(host.peer_id, ECHO)


async def test_a_taken_port_is_an_error_that_names_it() -> None:
    first = make("first")
    async with running(first):
        port = port_of(first)
        second = make("second", listen=(f"/ip4/127.0.0.1/tcp/{port}",))
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is already taken"):
            await second.run()


async def test_a_foreign_address_to_listen_on_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="no address of this machine"):
        await make("lost", listen=("/ip4/192.0.2.99/tcp/0",)).run()


def test_a_wrong_config_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        NetworkConfig(key_seed=b"short")
    with pytest.raises(ConfigError, match="only TCP and WebSocket"):
        NetworkConfig(key_seed=bytes(32), listen=("/ip4/127.0.0.1/udp/1/quic-v1",))
    assert "seed" not in repr(NetworkConfig(key_seed=bytes(32)))


async def test_the_peer_id_follows_from_the_seed_and_a_network_runs_once() -> None:
    network = make_client("once")
    assert network.peer_id == make_client("once").peer_id
    assert network.peer_id != make_client("other").peer_id
    async with running(network):
        pass
    with pytest.raises(LocalError, match="runs once"):
        await network.run()


async def test_cancelling_run_ends_everything_and_tells_the_peers() -> None:
    host, client = make("host"), make_client("client")
    host.serve(ECHO, echo)
    async with running(client):
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            await client.connect(host.multiaddrs[0])
            stream = await client.open_stream(host.peer_id, ECHO)
            nursery.cancel_scope.cancel()
        with pytest.raises(UnreachableError):
            await stream.receive_some()
        await eventually(lambda: not client.connected_peers())


async def test_closing_a_network_that_serves_a_stuck_handler_is_bounded() -> None:
    async def stuck(stream: Stream) -> None:
        await trio.sleep_forever()

    host, client = make("host", limits=Limits(close_deadline_s=0.5)), make_client("client")
    host.serve(ECHO, stuck)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        await client.open_stream(host.peer_id, ECHO)
        with trio.fail_after(3):
            await host.aclose()


async def test_what_is_switched_off_says_so_or_answers_nothing() -> None:
    network = make_client("bare")
    async with running(network):
        assert await network.find_providers(b"k", limit=1) == []
        assert not await network.provide(b"k")
        assert network.topic_peers("t") == ()
        with pytest.raises(LocalError, match="without gossip"):
            await network.publish("t", b"")


async def test_a_peers_fault_in_a_handler_is_counted_and_ends_that_stream_only() -> None:
    async def strict(stream: Stream) -> None:
        await stream.receive_some()
        raise ProtocolError("you said something odd")

    host, client = make("host"), make_client("client")
    host.serve(ECHO, echo)
    host.serve("/p2pnode/strict/1", strict)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        kept = await client.open_stream(host.peer_id, ECHO)
        stream = await client.open_stream(host.peer_id, "/p2pnode/strict/1")
        await stream.send_all(b"odd")
        with pytest.raises(UnreachableError):
            await stream.receive_some()
        assert host.statistics().protocols_failed == {"/p2pnode/strict/1": 1}
        await kept.send_all(b"still here")
        assert await kept.receive_some() == b"still here"
        await kept.aclose()
        await client.disconnect(host.peer_id)
        await ask_echo(client, host)


async def test_serving_may_begin_while_running() -> None:
    host, client = make("host"), make_client("client")
    async with running(host, client):
        host.serve(ECHO, echo)
        await ask_echo(client, host)


def test_the_module_needs_no_running_loop_to_be_built() -> None:
    assert isinstance(make("plain"), Network)
