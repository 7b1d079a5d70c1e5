"""A machine that knows nothing but the twelve words, with a network of its own on loopback."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.errors import UnreachableError
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import scripted_model_id
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.blob_service import BlobService
from p2pnode.storage.conversations.records import Piece
from p2pnode.storage.conversations.replicator import OWN
from p2pnode.storage.key_file import save_storage_key
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.node_store import StoreFor
from p2pnode.storage.peer_store import PeerStore
from tests.client.machines import ENTROPY

LIMITS = replace(DEFAULT_LIMITS, keep_deadline_s=0.3, renew_at_end_s=0.3, replica_grace_s=0.2)


class FallsSilent(MemoryStore):
    """Once told to, it answers no question for a blob any more, and doesn't say so."""

    def __init__(self) -> None:
        super().__init__(time.time)
        self.silent = False
        self.asked_in_vain = False

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        if self.silent:
            self.asked_in_vain = True
            await trio.sleep_forever()
        return await super().read(digest, offset, length)


@dataclass
class Storing:
    """A node on loopback that stores for whoever has a session, or for anyone."""

    node: Node
    store: FallsSilent
    has_session: bool = True
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self, rule: str, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.node.run)
                policy = StoreFor([rule], lambda _peer: self.has_session)
                BlobService(self.node, self.store, self.store, admits=policy.admits).start()
                task_status.started()

    async def fall_silent(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        """From now on its port takes connections, as the kernel does, and nothing is said there."""
        port = int(self.node.multiaddrs[0].split("/")[4])
        await self.node.aclose()
        self.scope = trio.CancelScope()
        with self.scope:
            await trio.serve_tcp(_say_nothing, port, host="127.0.0.1", task_status=task_status)


async def _say_nothing(_stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def storing(count: int = 1, rule: str = "anyone") -> AsyncIterator[list[Storing]]:
    """Nodes that store for as long as the block lasts."""
    made = []
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            each = Storing(
                Node(NodeSetup(key=PeerKey.generate(), listen=("/ip4/127.0.0.1/tcp/0",))), FallsSilent()
            )
            await nursery.start(each.run, rule)
            made.append(each)
        yield made
        for each in made:
            each.scope.cancel()


def machine(folder: Path, *reached: Storing) -> Client:
    """A client of the one user in a new data dir, with a node of its own; it knows the words and these."""
    data = DataDir(folder)
    data.prepare()
    save_storage_key(data, ENTROPY)
    config = NodeConfig(data_dir=folder, mdns=False)
    return Client(config, bootstrap=[each.node.multiaddrs[0] for each in reached], limits=LIMITS)


async def keep(folder: Path, nodes: list[Storing]) -> None:
    """A conversation, on all of them."""
    async with machine(folder, *nodes) as client:
        replicator = await client.conversations.replicator()
        await client.conversations.look_for_replicas()
        conversation = await replicator.archive.new(title="ships")
        await conversation.append(Piece(role="user", text="which ships?"))
        assert (await replicator.archive.flush()).kept
    for each in nodes:
        each.has_session = False


async def recovered(folder: Path, *reached: Storing) -> tuple[list[str], int, int]:
    """By a machine that never saw them: titles, how many other nodes answered, how many did not."""
    async with machine(folder, *reached) as client:
        recovery = await client.conversations.recover()
    answered = len(recovery.answered - {OWN})
    return [each.title for each in recovery.conversations], answered, len(recovery.failures)


async def test_one_host_that_stores_for_sessions_only_is_enough(tmp_path: Path) -> None:
    async with storing(rule="sessions") as nodes:
        await keep(tmp_path / "first", nodes)
        assert await recovered(tmp_path / "new", *nodes) == (["ships"], 1, 0)


async def test_one_storing_node_is_enough(tmp_path: Path) -> None:
    async with storing() as nodes:
        await keep(tmp_path / "first", nodes)
        assert await recovered(tmp_path / "new", *nodes) == (["ships"], 1, 0)


async def test_of_three_nodes_one_may_be_silent_and_holds_nobody_up(tmp_path: Path) -> None:
    async with storing(3) as nodes, trio.open_nursery() as nursery:
        await keep(tmp_path / "first", nodes)
        await nursery.start(nodes[1].fall_silent)
        started = trio.current_time()
        assert await recovered(tmp_path / "new", *nodes) == (["ships"], 2, 1)
        assert trio.current_time() - started < LIMITS.dial_deadline_s
        nodes[1].scope.cancel()


async def test_with_nobody_there_nothing_is_lost_and_the_next_run_recovers(tmp_path: Path) -> None:
    async with storing() as nodes:
        await keep(tmp_path / "first", nodes)
        assert await recovered(tmp_path / "new") == ([], 0, 0)
        assert await recovered(tmp_path / "new", *nodes) == (["ships"], 1, 0)


async def test_a_machine_leaves_in_order_while_a_store_is_silent(tmp_path: Path) -> None:
    async with storing(rule="sessions") as nodes:
        await keep(tmp_path / "first", nodes)
        async with machine(tmp_path / "new", *nodes) as client:
            assert len((await client.conversations.recover()).conversations) == 1
            nodes[0].store.silent = True
        assert nodes[0].store.asked_in_vain  # what else there is was being fetched as the client left


async def test_what_uses_a_clients_node_has_ended_before_the_node_does(tmp_path: Path) -> None:
    reachable = []

    async def uses_the_node(client: Client, other: Node) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            reachable.append(client.node.network.is_connected(other.peer_id))

    async with storing() as nodes:
        async with machine(tmp_path / "d") as client:
            await client.node.network.connect(nodes[0].node.multiaddrs[0])
            client.runtime.tasks.start_soon(uses_the_node, client, nodes[0].node)
        assert reachable == [True]


async def test_a_node_that_has_ended_reaches_nobody_and_says_so() -> None:
    async with storing() as nodes, trio.open_nursery() as nursery:
        asker = Node(NodeSetup(key=PeerKey.generate(), dht="off", gossip=False, keep_connected=False))
        there = nodes[0].node
        store = PeerStore(asker, there.peer_id, there.multiaddrs, sign=lambda _owner, _digest: bytes(64))
        with pytest.raises(UnreachableError, match="has not started"):
            await store.open()
        await nursery.start(asker.run)
        await store.open()
        await asker.aclose()
        with pytest.raises(UnreachableError, match="shutting down"):
            await store.open()
        with pytest.raises(UnreachableError, match="shutting down"):
            asker.start_soon(trio.sleep_forever)
        with pytest.raises(UnreachableError, match="shutting down"):
            await asker.follow([scripted_model_id()])
