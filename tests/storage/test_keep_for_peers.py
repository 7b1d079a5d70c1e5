"""A node that joins stores for peers on its disk, over real sockets: for its set owners, across a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.config import NodeConfig
from p2pnode.errors import StoreRefusedError
from p2pnode.host.join import Join, JoinOptions
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.s5.entries import EntryKey, pointer_to
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.blob_service import BlobService
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.node_store import StoreFor
from p2pnode.storage.replication.replicas import ReplicaFinder
from p2pnode.storage.store import NoBlobError
from tests.client.support import ask
from tests.node.world import scripted_host, world
from tests.storage.blob_world import Owners

OWNERS = Owners()
ALICE, BOB = OWNERS.all[:2]
BLOB = bytes(range(256)) * 2000


@asynccontextmanager
async def _joined(root: Path, store_for: Sequence[str], **config: object) -> AsyncIterator[str]:
    """A node on loopback TCP until the block ends; gives its multiaddr."""
    ready = trio.Event()

    def report(name: str, _fields: dict[str, object]) -> None:
        if name == "ready":
            ready.set()

    made = NodeConfig(
        data_dir=root, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, store_for=tuple(store_for),
        client_only=True, **config,  # type: ignore[arg-type]
    )  # fmt: skip
    join = Join(made, JoinOptions(), report)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join.run)
        await ready.wait()
        node = DataDir(root).running_node()
        assert node is not None
        yield node.multiaddrs[0]
        join.stop()


@asynccontextmanager
async def _asker() -> AsyncIterator[Node]:
    node = Node(NodeSetup(key=PeerKey.generate(), dht="client", gossip=False, keep_connected=False))
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        await node.aclose()


async def test_what_a_joined_node_keeps_is_there_after_a_restart(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with _asker() as node:
            async with _joined(tmp_path, ["anyone"]) as address:
                finder = ReplicaFinder(node, stores=[address], sign=OWNERS.sign)
                (replica,) = (await finder.candidates(EntryKey(ALICE), owner=ALICE)).found
                name = await replica.blobs.put(BLOB, owner=ALICE)
                entry = OWNERS.entry(0, 1, pointer_to(name.hash))
                await replica.registry.set(entry, owner=ALICE)
            async with _joined(tmp_path, []) as address:
                finder = ReplicaFinder(node, stores=[address], sign=OWNERS.sign)
                (replica,) = (await finder.find(EntryKey(ALICE))).found
                assert await replica.registry.get(EntryKey(ALICE)) == entry
                assert await replica.blobs.read(name.hash) == BLOB
                with pytest.raises(StoreRefusedError):
                    await replica.blobs.put(b"more", owner=ALICE)


async def test_a_joined_node_keeps_for_the_owners_on_its_list_alone(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with _asker() as node, _joined(tmp_path, [ALICE.hex()]) as address:
            finder = ReplicaFinder(node, stores=[address], sign=OWNERS.sign)
            store = (await finder.find(EntryKey(ALICE))).found[0].blobs
            name = await store.put(b"mine", owner=ALICE)
            with pytest.raises(StoreRefusedError):
                await store.put(b"his", owner=BOB)
            assert await store.read(name.hash) == b"mine"
            with pytest.raises(NoBlobError):
                await store.read(hash_of(b"his"))


async def test_a_client_with_an_open_session_may_write_and_without_one_may_not(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        member = await w.add([scripted_host()])
        assert member.host is not None
        policy, kept = StoreFor(("sessions",)), MemoryStore(wall_clock)
        policy.has_session = member.host.has_session
        BlobService(member.node, kept, kept, admits=policy.admits).start()
        async with w.client(member.node.multiaddrs[:1]) as client:
            me = client.node.peer_id
            await client.node.network.connect(member.node.multiaddrs[0])
            finder = ReplicaFinder(client.node, sign=OWNERS.sign)
            serving = member.node.peer_id
            key = EntryKey(ALICE)
            assert (await finder.candidates(key, owner=ALICE, serving=serving)).found == []
            answer = ask(client)
            async for _ in answer:
                found = (await finder.candidates(key, owner=ALICE, serving=serving)).found
                assert [each.place for each in found] == ["serving"]
                await found[0].blobs.put(b"a turn", owner=ALICE)
                break
            async for _ in answer:
                pass
            assert member.host.has_session(me)
        await trio.sleep(1)
        assert not member.host.has_session(me)
