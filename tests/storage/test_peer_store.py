"""A peer's store keeps the rules of every store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from p2pnode.net.memory import MemoryNet
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.peer_store import PeerStore
from p2pnode.storage.store import OwnerKey
from tests.storage.blob_world import Stored, serve_store, two_nodes
from tests.storage.store_conformance import QUOTAS, StoreConformance
from tests.storage.stores import Wall


class PeerWorld:
    """Alice and Bob share a node, and with it the stream; the store tells them apart by their claims."""

    def __init__(self, stored: Stored, store: PeerStore, wall: Wall) -> None:
        self._store, self._wall = store, wall
        self.alice, self.bob = stored.owners.all[:2]

    def blobs(self, _: OwnerKey) -> PeerStore:
        return self._store

    registry = blobs

    def later(self, seconds: float) -> None:
        self._wall.now += seconds


class TestPeerStore(StoreConformance):
    @pytest.fixture
    async def world(self) -> AsyncIterator[PeerWorld]:
        wall = Wall()
        async with two_nodes(net=MemoryNet(latency=0)) as stored:  # no clock jumps in a fixture
            serve_store(stored.holder, MemoryStore(wall, QUOTAS))
            yield PeerWorld(stored, stored.peer_store(), wall)
