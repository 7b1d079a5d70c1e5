"""What WebSocket adds to TCP: a library between us and the socket, which must not keep it."""

from __future__ import annotations

import socket
import struct
from typing import Any

from p2pnode.net.network import Network
from p2pnode.net.transports import WsStream
from tests.net.support import ECHO, ask_echo, echo, eventually, make, make_client, running

LISTEN = ("/ip4/127.0.0.1/tcp/0/ws",)


def only_stream(network: Network) -> WsStream:
    """The WebSocket under its one connection."""
    [connection] = network._swarm.all_live()
    muxed: Any = connection.muxed_conn
    stream = muxed.secured_conn.conn.read_writer.read_write_closer.stream
    assert isinstance(stream, WsStream)
    return stream


async def test_a_peer_that_vanishes_without_a_close_frame_leaves_no_socket_open() -> None:
    host, client = make("host", listen=LISTEN), make_client("client")
    host.serve(ECHO, echo)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        await eventually(lambda: host.stats().connections == 1)
        ours, theirs = only_stream(client)._socket, only_stream(host)._socket
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.socket.close()  # RST, without a word from WebSocket
        await eventually(lambda: ours.socket.fileno() == -1)
        await eventually(lambda: not client.connected_peers())
        await ask_echo(client, host)


async def test_a_connection_that_ends_in_order_leaves_no_socket_open_either() -> None:
    host, client = make("host", listen=LISTEN), make_client("client")
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        await eventually(lambda: host.stats().connections == 1)
        sockets = only_stream(client)._socket, only_stream(host)._socket
        await client.disconnect(host.peer_id)
        await eventually(lambda: [each.socket.fileno() for each in sockets] == [-1, -1])
