"""The S5 client against the S5 server, as any store: two accounts are its two owners."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.s5.client import S5Client, open_s5
from p2pnode.storage.store import LEASE_S, BlobStore, OwnerKey, QuotaError
from tests.storage.s5.support import entered, serving
from tests.storage.store_conformance import BLOCK, QUOTAS, StoreConformance, StoreWorld, blob
from tests.storage.stores import Wall


class S5World:
    """A server, and a client of it for each of two accounts."""

    def __init__(self, wall: Wall, clients: dict[OwnerKey, S5Client]) -> None:
        self.wall, self._clients = wall, clients
        self.alice, self.bob = clients

    def blobs(self, owner: OwnerKey) -> S5Client:
        return self._clients[owner]

    registry = blobs

    def later(self, seconds: float) -> None:
        self.wall.now += seconds


class TestS5(StoreConformance):
    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[S5World]:
        wall, clients = Wall(), dict[OwnerKey, S5Client]()
        async with (
            serving(tmp_path, accounts=True, allow_delete=True, quotas=QUOTAS, wall=wall) as running,
            AsyncExitStack() as stack,
        ):
            for number in (1, 2):
                signer = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
                token = await entered(running, "register", signer)
                owner = OwnerKey(signer.public_key().public_bytes_raw())
                clients[owner] = await stack.enter_async_context(open_s5(running.server.url, token))
            yield S5World(wall, clients)

    # S5 knows no leases: what the server gives is always its own, whatever was asked for.

    async def test_a_lease_that_is_over_no_longer_counts(self, world: StoreWorld, store: BlobStore) -> None:
        for number in (1, 2):
            await store.put(blob(number, 8 * BLOCK), owner=world.alice, lease_s=100)
        world.later(101)
        with pytest.raises(QuotaError):
            await store.put(blob(3), owner=world.alice)
        world.later(LEASE_S)
        await store.put(blob(3), owner=world.alice)

    async def test_a_lease_never_gets_shorter(self, world: StoreWorld, store: BlobStore) -> None:
        for number in (1, 2):
            await store.put(blob(number, 8 * BLOCK), owner=world.alice)
        world.later(LEASE_S - 1)
        await store.pin(hash_of(blob(1, 8 * BLOCK)), owner=world.alice, lease_s=1)
        await store.pin(hash_of(blob(2, 8 * BLOCK)), owner=world.alice, lease_s=1)
        world.later(LEASE_S - 1)
        with pytest.raises(QuotaError):
            await store.put(blob(3), owner=world.alice)
