"""Two nodes of a memory net, one of which stores; and owners with keys."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.errors import ConfigError
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.memory import MemoryNet
from p2pnode.net.virtual_time import wall_clock
from p2pnode.protocols.s5.entries import Entry, EntryKey, make_entry
from p2pnode.storage.blob_service import BlobService
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.node_store import StoreFor
from p2pnode.storage.peer_store import PeerStore
from p2pnode.storage.rules import Quotas
from p2pnode.storage.store import OwnerKey
from tests.node.world import Member, World, world


class Owners:
    """Keys by number; they sign claims and entries."""

    def __init__(self, count: int = 4) -> None:
        keys = [Ed25519PrivateKey.from_private_bytes(bytes([0x77, n]) * 16) for n in range(count)]
        self._keys = {OwnerKey(key.public_key().public_bytes_raw()): key for key in keys}
        self.all = list(self._keys)

    def sign(self, owner: OwnerKey, digest: bytes) -> bytes:
        if owner not in self._keys:
            raise ConfigError("not an owner whose key is here")
        return self._keys[owner].sign(digest)

    def entry(self, number: int, revision: int, data: bytes = b"") -> Entry:
        key = EntryKey(self.all[number])
        return make_entry(key, revision, data, self._keys[self.all[number]].sign)


class Stored:
    """A node that stores, another that asks."""

    def __init__(self, made: World, holder: Member, asker: Member, owners: Owners) -> None:
        self.world, self.holder, self.asker, self.owners = made, holder, asker, owners

    @property
    def alice(self) -> OwnerKey:
        return self.owners.all[0]

    def peer_store(self, holder: Member | None = None) -> PeerStore:
        kept = (holder or self.holder).node
        return PeerStore(self.asker.node, kept.peer_id, kept.multiaddrs, sign=self.owners.sign)

    def faults(self, of: Member, at: Member, now: float) -> int:
        return at.node.faults.count(of.node.peer_id, now)


def serve_store(
    member: Member,
    store: MemoryStore | None = None,
    *,
    rules: Sequence[str] = ("anyone",),
    quotas: Quotas | None = None,
    wall: Callable[[], float] = wall_clock,
) -> MemoryStore:
    """A store on a node, as ``join`` has it."""
    store = store or MemoryStore(wall, quotas)
    BlobService(member.node, store, store, admits=StoreFor(rules).admits).start()
    return store


@contextlib.asynccontextmanager
async def two_nodes(
    *, limits: Limits = DEFAULT_LIMITS, net: MemoryNet | None = None
) -> AsyncIterator[Stored]:
    """Neither serves yet."""
    async with world(limits=limits, net=net) as made:
        holder = await made.add()
        asker = await made.add()
        yield Stored(made, holder, asker, Owners())
