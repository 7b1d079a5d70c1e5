"""Two nodes of ours, js-libp2p 2.x and 3.x, the library as it comes, and the peer that was written from our
SPECs: one mesh, and one DHT.

::

    js 2.x ─ ours, first ┬ js 3.x ┬ ours, second ─ from the SPECs
                         └ stock ─┘

The two nodes of ours are not connected: what one says reaches the other through other implementations.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
import trio

from p2pnode.ids import PeerId
from p2pnode.net.network import Network
from p2pnode.protocols.gossipsub.commands import ACCEPT
from p2pnode.protocols.kademlia.messages import record_key
from tests.net import foreign as foreign_module
from tests.net import interop_cases as cases
from tests.net.foreign import Foreign, Ours, foreign
from tests.net.support import eventually, running

pytestmark = pytest.mark.interop

STOCK: Final = Path(foreign_module.__file__).parent
DEADLINE_S: Final = 90


class Member(Protocol):
    """One node of the network, whoever wrote it."""

    name: str
    peer: PeerId

    async def subscribe(self) -> None: ...
    async def say(self, text: str) -> None: ...
    async def wait_heard(self, wanted: set[tuple[str, str]]) -> None: ...
    async def provide(self, key: bytes) -> None: ...
    async def wait_found(self, key: bytes, provider: PeerId) -> None: ...


class OurMember:
    """A node of ours."""

    def __init__(self, name: str, network: Network, nursery: trio.Nursery) -> None:
        self.name, self.network, self.peer = name, network, network.peer_id
        self._nursery = nursery
        self._heard: set[tuple[str, str]] = set()

    async def subscribe(self) -> None:
        subscription = await self.network.subscribe(cases.TOPIC, lambda _author, _data: ACCEPT)

        async def listen() -> None:
            async for author, data in subscription:
                self._heard.add((author, data.decode()))

        self._nursery.start_soon(listen)

    async def say(self, text: str) -> None:
        await self.network.publish(cases.TOPIC, text.encode())

    async def wait_heard(self, wanted: set[tuple[str, str]]) -> None:
        await eventually(lambda: wanted <= self._heard)

    async def provide(self, key: bytes) -> None:
        assert await self.network.provide(key)

    async def wait_found(self, key: bytes, provider: PeerId) -> None:
        while not (found := await self.network.find_providers(key, limit=1)):  # noqa: ASYNC110  no event
            await trio.sleep(0.2)
        assert [entry.peer for entry in found] == [provider]
        assert any("/tcp/" in address for address in found[0].addrs)


class ForeignMember:
    """A process of another implementation."""

    def __init__(self, name: str, other: Foreign, near: PeerId) -> None:
        self.name, self.other, self.peer, self._near = name, other, other.peer_id, near

    async def subscribe(self) -> None:
        await self.other.call("subscribe", topic=cases.TOPIC)

    async def say(self, text: str) -> None:
        await self.other.call("publish", topic=cases.TOPIC, data=text)

    async def wait_heard(self, wanted: set[tuple[str, str]]) -> None:
        await self.other.until("messages", lambda heard: wanted <= {(author, text) for author, text in heard})

    async def provide(self, key: bytes) -> None:
        await self.other.call("provide", 40, peer=self._near, key=record_key(key).hex())

    async def wait_found(self, key: bytes, provider: PeerId) -> None:
        def whole(found: list[dict[str, Any]]) -> bool:
            return any(each["peer"] == provider and each["addrs"] for each in found)

        await self.other.until("find", whole, peer=self._near, key=record_key(key).hex())


@contextlib.asynccontextmanager
async def network_of_all(
    js_peers: tuple[Path, ...], second_peer: Path, tmp_path: Path, dialler: str
) -> AsyncIterator[list[Member]]:
    """All six, connected as above: ours dial the others, or the others ours."""
    first, second = Ours("first"), Ours("second")
    js = ["node", "peer.mjs", cases.DHT_PROTOCOL]
    stock = [sys.executable, "-W", "ignore", "stock_peer.py"]
    async with (
        running(first.network, second.network) as nursery,
        foreign(js, js_peers[0], log=tmp_path / "js2.log", seed="js 2.x") as js2,
        foreign(js, js_peers[1], log=tmp_path / "js3.log", seed="js 3.x") as js3,
        foreign(stock, STOCK, log=tmp_path / "stock.log", seed="stock") as library,
        foreign(js, second_peer, log=tmp_path / "specs.log", seed="specs", listen=()) as specs,
    ):
        for ours, others in ((first, (js2, js3, library)), (second, (js3, library, specs))):
            for other in others:
                await cases.connect(ours, other, "tcp", dialler)
        near = first.network.peer_id
        yield [
            OurMember("ours, first", first.network, nursery),
            OurMember("ours, second", second.network, nursery),
            ForeignMember("js 2.x", js2, near),
            ForeignMember("js 3.x", js3, near),
            ForeignMember("stock", library, near),
            ForeignMember("from the SPECs", specs, second.network.peer_id),
        ]


@pytest.mark.parametrize("dialler", ["ours", "theirs"])
async def test_what_anyone_says_reaches_all_others(
    js_peers: tuple[Path, ...], second: Path, tmp_path: Path, dialler: str
) -> None:
    async with network_of_all(js_peers, second, tmp_path, dialler) as members:
        with trio.fail_after(DEADLINE_S):
            for member in members:
                await member.subscribe()
            await wait_meshed(members)
            for member in members:
                await member.say(f"hello from {member.name}")
            said = {(member.peer, f"hello from {member.name}") for member in members}
            for member in members:
                await member.wait_heard({each for each in said if each[0] != member.peer})


@pytest.mark.parametrize("dialler", ["ours", "theirs"])
async def test_what_anyone_provides_all_others_find(
    js_peers: tuple[Path, ...], second: Path, tmp_path: Path, dialler: str
) -> None:
    async with network_of_all(js_peers, second, tmp_path, dialler) as members:
        with trio.fail_after(DEADLINE_S):
            for member in members:
                if isinstance(member, OurMember):
                    await eventually(lambda network=member.network: network.statistics().dht_peers >= 2)
            keys = {member.peer: bytes([place]) * 32 for place, member in enumerate(members, 1)}
            for member in members:
                await member.provide(keys[member.peer])
            for member in members:
                for provider, key in keys.items():
                    if provider != member.peer:
                        await member.wait_found(key, provider)


async def wait_meshed(members: list[Member]) -> None:
    """Each process of others has each of ours that it is connected with in its mesh."""
    [first, second, js2, js3, library, specs] = members
    both = {first.peer, second.peer}
    for member, ours in ((js2, {first.peer}), (js3, both), (library, both), (specs, {second.peer})):
        assert isinstance(member, ForeignMember)
        await member.other.until("mesh", lambda mesh, ours=ours: ours <= set(mesh), topic=cases.TOPIC)
