"""Real networks on loopback, raw sockets that misbehave, and a check that nothing is left running."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.stream import Stream

ECHO = "/p2pnode/echo/1"


async def echo(stream: Stream) -> None:
    """Send back what comes, until the other side has finished."""
    while data := await stream.receive_some():
        await stream.send_all(data)


def make(name: str, *, limits: Limits = DEFAULT_LIMITS, **settings: Any) -> Network:
    """A network with the key of ``name``: listens on loopback unless ``listen`` says otherwise."""
    return Network(
        NetworkConfig(
            key_seed=hashlib.sha256(name.encode()).digest(),
            limits=limits,
            **{"listen": ("/ip4/127.0.0.1/tcp/0",), "gossip": False, "dht": "off", **settings},
        )
    )


def make_client(name: str, **settings: Any) -> Network:
    """A network that only dials."""
    return make(name, listen=(), **settings)


@contextlib.asynccontextmanager
async def running(*networks: Network) -> AsyncIterator[trio.Nursery]:
    """Run these networks. At the end each must end in order within a bounded time, and leave no task
    behind."""
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for network in networks:
                await nursery.start(network.run)
            yield nursery
            for network in networks:
                await network.aclose()
            nursery.cancel_scope.cancel()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def ask_echo(client: Network, host: Network) -> None:
    """One echo from a new connection; fails when the host doesn't serve."""
    with trio.fail_after(20):
        await client.connect(host.multiaddrs[0])
        stream = await client.open_stream(host.peer_id, ECHO)
        await stream.send_all(b"are you there?")
        assert await stream.receive_some() == b"are you there?"
        await stream.aclose()
        await client.disconnect(host.peer_id)


def port_of(network: Network) -> int:
    """The TCP port of a network's first address."""
    return int(network.multiaddrs[0].split("/")[4])


async def eventually(condition: Any, seconds: float = 10) -> None:
    """Wait until ``condition()`` holds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  what is waited for has no event of its own
            await trio.sleep(0.01)


class Cable:
    """Between two networks on loopback; see :func:`cable_to`."""

    def __init__(self, multiaddr: str) -> None:
        self.multiaddr = multiaddr
        """Of the network at its far end, for who dials through it."""
        self._ends: list[trio.SocketStream] = []

    async def carry(self, here: trio.SocketStream, there: trio.SocketStream) -> None:
        """Bring each end what the other one sends, until one of them is gone."""
        self._ends += (here, there)

        async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for piece in source:
                    await sink.send_all(piece)
            nursery.cancel_scope.cancel()

        async with here, there, trio.open_nursery() as nursery:
            nursery.start_soon(copy, here, there)
            nursery.start_soon(copy, there, here)

    def cut(self) -> None:
        """Each end gets an RST, without a word from the other one."""
        for end in self._ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.socket.close()


@contextlib.asynccontextmanager
async def cable_to(network: Network) -> AsyncIterator[Cable]:
    """A way to a network that can be cut."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    cable = Cable(network.multiaddrs[0].replace(f"/tcp/{port_of(network)}", f"/tcp/{port}"))

    async def handle(here: trio.SocketStream) -> None:
        await cable.carry(here, await trio.open_tcp_stream("127.0.0.1", port_of(network)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield cable
        nursery.cancel_scope.cancel()


def sockets_open() -> int:
    """How many sockets this process has."""
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder was open while it was read
            links.append(str(each.readlink()))
    return sum(link.startswith("socket:") for link in links)


class Wire:
    """A secured connection whose other end is the test: ``say`` and ``sent``."""

    def __init__(self) -> None:
        self.sent = b""
        self.taken = 0
        self._say, self._hear = trio.open_memory_channel[bytes](8)

    async def read(self, n: int | None = None) -> bytes:
        """The next bytes that the test says, and none at the end."""
        del n
        try:
            data = await self._hear.receive()
        except trio.EndOfChannel:
            return b""
        self.taken += len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Note what would be sent."""
        self.sent += data

    def write_now(self, data: bytes) -> bool:
        """The same, at once."""
        self.sent += data
        return True

    async def close(self) -> None:
        """End what the test can say."""
        self._say.close()

    def say(self, data: bytes) -> None:
        """Bytes that come from the other end."""
        self._say.send_nowait(data)
