"""Real networks on loopback, raw sockets that misbehave, and a check that nothing is left running."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
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


class Wire:
    """A secured connection whose other end is the test: ``say`` and ``sent``."""

    def __init__(self) -> None:
        self.sent = b""
        self._say, self._hear = trio.open_memory_channel[bytes](8)

    async def read(self, n: int | None = None) -> bytes:
        """The next bytes that the test says, and none at the end."""
        del n
        try:
            return await self._hear.receive()
        except trio.EndOfChannel:
            return b""

    async def write(self, data: bytes) -> None:
        """Note what would be sent."""
        self.sent += data

    async def close(self) -> None:
        """End what the test can say."""
        self._say.close()

    def say(self, data: bytes) -> None:
        """Bytes that come from the other end."""
        self._say.send_nowait(data)
