"""Peers that misbehave below any protocol. Each time the node must go on serving an honest client."""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.limits import Limits
from p2pnode.net import yamux as wire
from p2pnode.net.admission import IDLE_S
from p2pnode.net.multiaddrs import to_id
from p2pnode.net.negotiation import answer, propose
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.net.transports import wrap
from p2pnode.net.upgrader import HANDSHAKE_MESSAGE_MAX, Upgrader
from tests.net.memory_world import world
from tests.net.support import ECHO, ask_echo, cable_to, echo, eventually, make, make_client, port_of, running

SMALL = Limits(connections_max=12, inbound_handshakes_max=4, handshake_deadline_s=2.0, streams_per_peer=8)


def victim(**settings: Any) -> Network:
    """A small node that serves echo."""
    network = make("victim", limits=settings.pop("limits", SMALL), **settings)
    network.serve(ECHO, echo)
    return network


async def dial_raw(network: Network) -> trio.SocketStream:
    """A bare socket to it."""
    return await trio.open_tcp_stream("127.0.0.1", port_of(network))


async def attack_secured(network: Network, name: str = "attacker") -> ReadWriteCloser:
    """A connection past Noise and yamux's negotiation, for frames of one's own making."""
    upgrader = Upgrader(name.encode().ljust(32)[:32], Limits())
    muxed: Any = await upgrader.upgrade_outbound(
        RawConnection(wrap(await dial_raw(network)), True), network.peer_id
    )
    return muxed.secured_conn  # type: ignore[no-any-return]


async def read_until_closed(conn: ReadWriteCloser) -> None:
    """The victim must end the connection."""
    with trio.fail_after(10), contextlib.suppress(IOException, RawConnError):
        while await conn.read():
            pass


async def is_served(client: Network, host: Network) -> bool:
    """Whether it finds a place now, and an echo."""
    try:
        await ask_echo(client, host)
    except UnreachableError:
        await trio.sleep(0.05)
        return False
    return True


async def drain(raw: trio.SocketStream, seconds: float) -> bool:
    """Whether the other side closed or reset within ``seconds``."""
    with trio.move_on_after(seconds):
        try:
            while await raw.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        return True
    return False


async def test_300_connections_one_after_another_leave_room_for_an_honest_client() -> None:
    host = victim()
    clients = [make_client(f"passer-by {i % 3}") for i in range(3)]
    async with running(host, *clients):
        for i in range(300):
            client = clients[i % 3]
            await client.connect(host.multiaddrs[0])
            await client.disconnect(host.peer_id)
        await ask_echo(clients[0], host)
        await eventually(lambda: host.statistics().connections == 0)
        assert host.statistics().refused.get("connections", 0) == 0


async def test_idle_connections_up_to_the_cap_give_way_to_a_newcomer() -> None:
    host = victim()
    idlers = [make_client(f"idler {i}") for i in range(SMALL.connections_max)]
    honest = make_client("honest")
    async with running(host, honest, *idlers):
        for idler in idlers:
            await idler.connect(host.multiaddrs[0])
        await eventually(lambda: host.statistics().connections >= SMALL.connections_max - 1)
        before = trio.current_time()
        while not await is_served(honest, host):  # until they have lain idle for long enough
            assert trio.current_time() < before + 10 * IDLE_S
        assert host.statistics().connections <= SMALL.connections_max


async def test_300_streams_at_once_from_one_peer_are_capped_and_reset() -> None:
    held = 0
    most = 0

    async def hold(stream: Stream) -> None:
        nonlocal held, most
        held += 1
        most = max(most, held)
        try:
            await stream.receive_some()
        finally:
            held -= 1

    host, greedy, honest = victim(), make_client("greedy"), make_client("honest")
    host.serve("/p2pnode/hold/1", hold)
    opened: list[Stream] = []
    failed = 0

    async def open_one() -> None:
        nonlocal failed
        try:
            stream = await greedy.open_stream(host.peer_id, "/p2pnode/hold/1")
            opened.append(stream)
            await stream.receive_some()
        except UnreachableError:
            failed += 1

    async with running(host, greedy, honest):
        await greedy.connect(host.multiaddrs[0])
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(open_one)
            await eventually(lambda: failed >= 300 - SMALL.streams_per_peer, 30)
            assert most <= SMALL.streams_per_peer
            await ask_echo(honest, host)
            nursery.cancel_scope.cancel()
        await greedy.disconnect(host.peer_id)
        await eventually(lambda: held == 0)


async def test_a_cap_of_one_protocol_leaves_the_others_alone() -> None:
    host, client = make("host"), make_client("client")
    host.serve(ECHO, echo)
    host.serve("/p2pnode/one/1", echo, streams_per_peer=1)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        first = await client.open_stream(host.peer_id, "/p2pnode/one/1")
        await first.send_all(b"1")
        assert await first.receive_some() == b"1"
        with pytest.raises(UnreachableError, match=r"reset|aborted"):
            await (await client.open_stream(host.peer_id, "/p2pnode/one/1")).receive_some()
        assert host.statistics().protocols_refused == {"/p2pnode/one/1": 1}
        third = await client.open_stream(host.peer_id, ECHO)
        await third.send_all(b"3")
        assert await third.receive_some() == b"3"


async def test_a_plaintext_dialler_is_refused() -> None:
    host, honest = victim(), make_client("honest")
    async with running(host, honest):
        raw = await dial_raw(host)
        await raw.send_all(b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n")
        answer = b""
        with trio.fail_after(5):
            while b"na\n" not in answer:
                answer += await raw.receive_some()
        assert b"plaintext" not in answer
        await ask_echo(honest, host)
        await raw.aclose()


async def test_silent_connections_are_closed_and_never_take_all_places() -> None:
    host, honest = victim(), make_client("honest")
    async with running(host, honest):
        silent = [await dial_raw(host) for _ in range(30)]
        await ask_echo(honest, host)
        for raw in silent:
            assert await drain(raw, SMALL.handshake_deadline_s + 3)
            await raw.aclose()
        await eventually(lambda: host.statistics().handshakes == 0)
        await ask_echo(honest, host)


async def test_a_silent_websocket_dialler_is_closed_too() -> None:
    limits = Limits(handshake_deadline_s=0.3)
    host, honest = victim(limits=limits, listen=("/ip4/127.0.0.1/tcp/0/ws",)), make_client("honest")
    async with running(host, honest):
        raw = await dial_raw(host)
        assert await drain(raw, 3)
        await raw.aclose()
        await ask_echo(honest, host)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 5000,
        b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\x7f",
        None,
    ],
    ids=["zeros", "http", "ones", "huge-length", "random"],
)
async def test_garbage_bytes_end_that_connection_only(garbage: bytes | None) -> None:
    host, honest = victim(), make_client("honest")
    async with running(host, honest):
        sockets = [await dial_raw(host) for _ in range(5)]
        for raw in sockets:
            with contextlib.suppress(trio.BrokenResourceError):
                await raw.send_all(garbage if garbage is not None else os.urandom(4096))
        for raw in sockets:
            assert await drain(raw, SMALL.handshake_deadline_s + 3)
            await raw.aclose()
        await ask_echo(honest, host)


async def test_a_handshake_message_is_refused_by_its_length_before_it_has_come() -> None:
    """One of 60 kB with an RSA key took 5.6 s to parse, in which nothing else ran."""
    host = victim(limits=Limits(handshake_deadline_s=60.0))
    async with running(host):
        conn = RawConnection(wrap(await dial_raw(host)), True)
        await propose(conn, [NOISE])
        await conn.write((32).to_bytes(2, "big") + os.urandom(32))
        length = int.from_bytes(await conn.read(2), "big")
        assert 0 < length <= HANDSHAKE_MESSAGE_MAX
        while length:
            length -= len(await conn.read(length))
        await conn.write((HANDSHAKE_MESSAGE_MAX + 1).to_bytes(2, "big"))
        await read_until_closed(conn)
        await conn.close()
        assert host.statistics().refused["handshake"] == 1


async def test_a_dialler_refuses_a_handshake_message_by_its_length_too() -> None:
    dialler = make_client("dialler")

    async def long_winded(stream: trio.SocketStream) -> None:
        conn = RawConnection(wrap(stream), False)
        await answer(conn, [NOISE])
        await conn.write((HANDSHAKE_MESSAGE_MAX + 1).to_bytes(2, "big"))
        await read_until_closed(conn)
        await conn.close()

    async with running(dialler), trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, long_winded, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with trio.fail_after(5.0), pytest.raises(UnreachableError, match="ProtocolError"):
            await dialler.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{victim().peer_id}")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("bits", [2048, pytest.param(4096, marks=pytest.mark.long)])
async def test_a_peer_with_an_rsa_key_of_usual_size_is_let_in(bits: int) -> None:
    host, key_pair = victim(), create_rsa_key_pair(bits)
    async with running(host):
        conn = RawConnection(wrap(await dial_raw(host)), True)
        await propose(conn, [NOISE])
        noise = NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
        secured = await noise.secure_outbound(conn, to_id(host.peer_id))
        assert await propose(secured, [wire.PROTOCOL]) == wire.PROTOCOL
        await secured.close()


async def test_a_handler_that_raises_does_not_take_the_node_down() -> None:
    async def broken(stream: Stream) -> None:
        raise RuntimeError("a bug of ours")

    host, client = victim(), make_client("client")
    host.serve("/p2pnode/broken/1", broken)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        for _ in range(20):
            with pytest.raises(UnreachableError, match=r"reset|aborted"):
                await (await client.open_stream(host.peer_id, "/p2pnode/broken/1")).receive_some()
        assert host.statistics().protocols_failed == {"/p2pnode/broken/1": 20}
        await client.disconnect(host.peer_id)
        await ask_echo(client, host)


async def test_a_peer_that_resets_mid_handler_is_an_unreachable_error_there() -> None:
    outcome: list[str] = []
    done = trio.Event()

    async def handler(stream: Stream) -> None:
        try:
            while await stream.receive_some():
                pass
            outcome.append("clean end")
        except UnreachableError:
            outcome.append("reset")
        finally:
            done.set()

    host, client = victim(), make_client("client")
    host.serve("/p2pnode/read/1", handler)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        stream = await client.open_stream(host.peer_id, "/p2pnode/read/1")
        await stream.send_all(b"half a mess")
        await stream.reset()
        with trio.fail_after(5):
            await done.wait()
        assert outcome == ["reset"]
        await client.disconnect(host.peer_id)
        await ask_echo(client, host)


async def test_a_socket_that_vanishes_mid_handler_frees_everything() -> None:
    host, client, honest = victim(), make_client("client"), make_client("honest")
    async with running(host, client, honest), cable_to(host) as cable:
        await client.connect(cable.multiaddr)
        stream = await client.open_stream(host.peer_id, ECHO)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        cable.cut()
        await eventually(
            lambda: host.statistics().connections == 0 and host.statistics().streams_inbound == 0
        )
        await ask_echo(honest, host)


async def test_a_slow_reader_holds_up_only_its_own_stream_and_bounded_memory(
    autojump_clock: MockClock,
) -> None:
    written = 0

    async def flood(stream: Stream) -> None:
        nonlocal written
        while True:
            await stream.send_all(b"z" * 65536)
            written += 65536

    async with world(3, extra=lambda _index, config: replace(config, limits=SMALL)) as w:
        host, slow, honest = w.nodes
        host.serve(ECHO, echo)
        host.serve("/p2pnode/flood/1", flood)
        await slow.connect(host.multiaddrs[0])
        stuck = await slow.open_stream(host.peer_id, "/p2pnode/flood/1")
        await trio.sleep(30)
        before = written
        await trio.sleep(30)
        assert written == before <= 4 * SMALL.stream_window_bytes
        other = await slow.open_stream(host.peer_id, ECHO)  # the same connection still works
        await other.send_all(b"hello")
        assert await other.receive_some() == b"hello"
        await ask_echo(honest, host)
        assert await stuck.receive_some()
        await stuck.reset()


async def test_a_slow_writer_costs_one_stream_and_no_more() -> None:
    host, slow, honest = victim(), make_client("slow"), make_client("honest")
    async with running(host, slow, honest):
        await slow.connect(host.multiaddrs[0])
        stream = await slow.open_stream(host.peer_id, ECHO)
        for i in range(5):
            await stream.send_all(bytes([i]))
            assert await stream.receive_some() == bytes([i])
            await trio.sleep(0.05)
        await ask_echo(honest, host)


@pytest.mark.parametrize(
    "frames",
    [
        wire.frame(9, 0, 1, 0),
        b"\x07" + bytes(11),
        wire.frame(wire.WINDOW_UPDATE, wire.SYN, 2, 0),
        wire.frame(wire.WINDOW_UPDATE, wire.SYN, 0, 0),
        wire.frame(wire.DATA, wire.SYN, 1, wire.WINDOW_INITIAL + 1),
        wire.frame(wire.DATA, 0, 7, 0xFFFFFFFF),
        wire.frame(wire.WINDOW_UPDATE, wire.SYN, 1, 0) * 2,
    ],
    ids=["type", "version", "parity", "stream-0", "over-credit", "4-gigabytes", "twice"],
)
async def test_a_breach_of_yamux_ends_that_connection_only(frames: bytes) -> None:
    host, honest = victim(), make_client("honest")
    async with running(host, honest):
        conn = await attack_secured(host)
        await conn.write(frames)
        await read_until_closed(conn)
        await conn.close()
        await ask_echo(honest, host)


async def test_a_peer_that_pings_and_never_reads_is_cut_off() -> None:
    host, honest = victim(), make_client("honest")
    async with running(host, honest):
        conn = await attack_secured(host)
        pings = wire.frame(wire.PING, wire.SYN, 0, 1) * 5000
        with trio.fail_after(30), contextlib.suppress(IOException, RawConnError):
            while True:
                await conn.write(pings)
        await ask_echo(honest, host)
        await conn.close()


async def test_streams_opened_by_hand_beyond_the_cap_are_reset_at_once() -> None:
    host, honest = victim(), make_client("honest")
    async with running(host, honest):
        conn = await attack_secured(host)
        await conn.write(b"".join(wire.frame(wire.WINDOW_UPDATE, wire.SYN, 1 + 2 * i, 0) for i in range(300)))
        resets = 0
        with trio.fail_after(10):
            while resets < 200:
                data = await conn.read()
                resets += data.count(struct.pack("!BBH", 0, wire.WINDOW_UPDATE, wire.RST))
        assert host.statistics().streams_inbound <= SMALL.streams_per_peer + 32
        await ask_echo(honest, host)
        await conn.close()


def test_the_attacker_has_another_identity_than_the_victim() -> None:
    key = create_new_key_pair(b"attacker".ljust(32))
    assert ID.from_pubkey(key.public_key) != to_id(victim().peer_id)
