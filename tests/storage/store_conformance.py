"""What every store must do, whatever it is made of. Subclass these and give them a ``world`` fixture.

The stores under test have the small quotas of :data:`QUOTAS`. A world shows one store as two owners see it;
where a store knows its caller by other means than the ``owner`` it is told, the world's views see to that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.protocols.s5.entries import Entry, EntryKey, make_entry, pointer_to
from p2pnode.protocols.s5.ids import BlobHash, BlobId, hash_of
from p2pnode.storage.rules import Quotas
from p2pnode.storage.store import (
    DAY_S,
    BadEntryError,
    BlobStore,
    HashMismatchError,
    NoBlobError,
    OwnerKey,
    QuotaError,
    Registry,
    StaleEntryError,
    TooLargeError,
)

BLOCK = 4096
QUOTAS = Quotas(
    owner_bytes=16 * BLOCK, node_bytes=24 * BLOCK, owner_keys=3, node_keys=5, blob_bytes=8 * BLOCK
)
NOWHERE = BlobHash(b"\xee" * 32)
ALICE, BOB = OwnerKey(b"\xa1" * 32), OwnerKey(b"\xb0" * 32)


class StoreWorld(Protocol):
    """One store. ``alice`` and ``bob`` are who its callers are; ``later`` lets time pass for it."""

    alice: OwnerKey
    bob: OwnerKey

    def blobs(self, owner: OwnerKey) -> BlobStore: ...

    def registry(self, owner: OwnerKey) -> Registry: ...

    def later(self, seconds: float) -> None: ...


class Writer:
    """Somebody with a registry key."""

    def __init__(self, number: int = 1) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.key = EntryKey(self._key.public_key().public_bytes_raw())

    def entry(self, revision: int, data: bytes = b"") -> Entry:
        return make_entry(self.key, revision, data, self._key.sign)


def blob(number: int, size: int = BLOCK) -> bytes:
    """Bytes unlike those of any other number."""
    return (number.to_bytes(8, "big") * (size // 8 + 1))[:size]


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        await trio.lowlevel.checkpoint()
        yield data[start : start + size]


class BlobConformance:
    """Bytes by their hash."""

    @pytest.fixture
    def store(self, world: StoreWorld) -> BlobStore:
        return world.blobs(world.alice)

    # ---- put and read

    @pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 5 * BLOCK + 17, QUOTAS.blob_bytes])
    @pytest.mark.parametrize("streamed", [False, True])
    async def test_what_was_put_is_read_and_named_by_its_hash(
        self, world: StoreWorld, store: BlobStore, size: int, streamed: bool
    ) -> None:
        data = blob(1, size)
        name = await store.put(pieces(data) if streamed else data, owner=world.alice)
        assert name == BlobId.of(data)
        assert await store.size(name.hash) == size
        assert await store.read(name.hash) == data

    async def test_what_was_never_put_is_not_there(self, world: StoreWorld, store: BlobStore) -> None:
        assert await store.size(NOWHERE) is None
        with pytest.raises(NoBlobError):
            await store.read(NOWHERE)
        with pytest.raises(NoBlobError):
            await store.read(NOWHERE, 5, 0)
        with pytest.raises(NoBlobError):
            await store.pin(NOWHERE, owner=world.alice)
        await store.unpin(NOWHERE, owner=world.alice)

    @pytest.mark.parametrize(
        ("offset", "length", "found"),
        [
            (0, 10, (0, 10)), (10, None, (10, 6000)), (5000, 5000, (5000, 6000)), (5999, 1, (5999, 6000)),
            (0, 0, (0, 0)), (6000, None, (0, 0)), (6001, 3, (0, 0)), (2**40, None, (0, 0)),
            (0, 2**40, (0, 6000)),
        ],
    )  # fmt: skip
    async def test_a_range_is_cut_at_the_end(
        self, world: StoreWorld, store: BlobStore, offset: int, length: int | None, found: tuple[int, int]
    ) -> None:
        data = blob(2, 6000)
        name = await store.put(data, owner=world.alice)
        assert await store.read(name.hash, offset, length) == data[slice(*found)]

    async def test_putting_it_again_changes_nothing_and_costs_nothing(
        self, world: StoreWorld, store: BlobStore
    ) -> None:
        data = blob(1, 8 * BLOCK)
        for again in (data, pieces(data), data, pieces(data)):
            assert await store.put(again, owner=world.alice) == BlobId.of(data)
        await store.put(blob(2, 8 * BLOCK), owner=world.alice)  # the owner's quota is two of these
        assert await store.read(hash_of(data)) == data

    async def test_many_at_once_are_all_kept(self, world: StoreWorld, store: BlobStore) -> None:
        async with trio.open_nursery() as nursery:
            for number in [*range(12), *range(12)]:
                data = blob(number, 1000 + number)
                nursery.start_soon(lambda each: store.put(each, owner=world.alice), data)
        for number in range(12):
            data = blob(number, 1000 + number)
            assert await store.read(hash_of(data)) == data

    # ---- bad input

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_the_right_hash_is_accepted_and_a_wrong_one_is_not(
        self, world: StoreWorld, store: BlobStore, streamed: bool
    ) -> None:
        data, other = blob(1), blob(2)
        with pytest.raises(HashMismatchError):
            await store.put(pieces(data) if streamed else data, owner=world.alice, expected=hash_of(other))
        assert await store.size(hash_of(data)) is None
        assert await store.size(hash_of(other)) is None
        await store.put(pieces(data) if streamed else data, owner=world.alice, expected=hash_of(data))
        assert await store.read(hash_of(data)) == data

    async def test_wrong_bytes_under_a_known_hash_are_refused_too(
        self, world: StoreWorld, store: BlobStore
    ) -> None:
        good = await store.put(blob(1), owner=world.alice)
        for bad in (blob(2), pieces(blob(2))):
            with pytest.raises(HashMismatchError):
                await store.put(bad, owner=world.alice, expected=good.hash)
        assert await store.read(good.hash) == blob(1)

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_one_byte_too_many_is_refused_and_nothing_is_kept(
        self, world: StoreWorld, store: BlobStore, streamed: bool
    ) -> None:
        data = blob(1, QUOTAS.blob_bytes + 1)
        with pytest.raises(TooLargeError):
            await store.put(pieces(data) if streamed else data, owner=world.alice)
        assert await store.size(hash_of(data)) is None
        await store.put(data[:-1], owner=world.alice)

    async def test_a_stream_that_breaks_off_leaves_nothing(self, world: StoreWorld, store: BlobStore) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield blob(1)
            raise EOFError

        # A store elsewhere may say it in its own words; it must say it.
        with pytest.raises((EOFError, ExceptionGroup)):
            await store.put(broken(), owner=world.alice)
        assert await store.size(hash_of(blob(1))) is None

    # ---- quotas

    async def test_an_owner_gets_its_quota_and_no_byte_more(
        self, world: StoreWorld, store: BlobStore
    ) -> None:
        first = await store.put(blob(1, 8 * BLOCK), owner=world.alice)
        await store.put(blob(2, 8 * BLOCK), owner=world.alice)
        for refused in (blob(3, 1), pieces(blob(3, 1))):
            with pytest.raises(QuotaError):
                await store.put(refused, owner=world.alice)
        assert await store.size(hash_of(blob(3, 1))) is None
        await world.blobs(world.bob).put(blob(3, 1), owner=world.bob)  # another's is its own
        with pytest.raises(QuotaError):
            await store.pin(hash_of(blob(3, 1)), owner=world.alice)
        await store.unpin(first.hash, owner=world.alice)
        await store.pin(hash_of(blob(3, 1)), owner=world.alice)

    async def test_the_smallest_blobs_count_a_block_each(self, world: StoreWorld, store: BlobStore) -> None:
        for number in range(16):
            await store.put(blob(number, 9), owner=world.alice)
        with pytest.raises(QuotaError):
            await store.put(blob(16, 9), owner=world.alice)

    async def test_what_several_lease_counts_for_each_and_once_for_the_store(
        self, world: StoreWorld, store: BlobStore
    ) -> None:
        other = world.blobs(world.bob)
        for number in (1, 2):
            await store.put(blob(number, 8 * BLOCK), owner=world.alice)
            await other.put(blob(number, 8 * BLOCK), owner=world.bob)
        for owner, view in ((world.alice, store), (world.bob, other)):
            with pytest.raises(QuotaError):
                await view.put(blob(3, 8 * BLOCK), owner=owner)
        await other.unpin(hash_of(blob(1, 8 * BLOCK)), owner=world.bob)
        await other.put(blob(3, 8 * BLOCK), owner=world.bob)

    async def test_the_store_takes_no_more_than_its_own_quota(
        self, world: StoreWorld, store: BlobStore
    ) -> None:
        other = world.blobs(world.bob)
        for number in (1, 2):
            await store.put(blob(number, 8 * BLOCK), owner=world.alice)
        await other.put(blob(3, 7 * BLOCK), owner=world.bob)
        with pytest.raises(QuotaError):
            await other.put(blob(4, BLOCK + 1), owner=world.bob)
        await other.put(blob(1, 8 * BLOCK), owner=world.bob)  # it is here already
        assert await other.size(hash_of(blob(4, BLOCK + 1))) is None

    async def test_a_lease_that_is_over_no_longer_counts(self, world: StoreWorld, store: BlobStore) -> None:
        await store.put(blob(1, 8 * BLOCK), owner=world.alice, lease_s=100)
        await store.put(blob(2, 8 * BLOCK), owner=world.alice, lease_s=DAY_S)
        with pytest.raises(QuotaError):
            await store.put(blob(3), owner=world.alice)
        world.later(101)
        assert await store.read(hash_of(blob(1, 8 * BLOCK)))  # it has its day of grace
        await store.put(blob(3), owner=world.alice)
        assert await store.size(hash_of(blob(1, 8 * BLOCK))) is None  # unless its room is needed
        assert await store.read(hash_of(blob(2, 8 * BLOCK))) == blob(2, 8 * BLOCK)

    async def test_an_owner_keeps_no_more_than_its_quota_by_leases_that_are_over_at_once(
        self, world: StoreWorld, store: BlobStore
    ) -> None:
        for number in range(5):
            await store.put(blob(number, 8 * BLOCK), owner=world.alice, lease_s=0)
            await store.unpin(hash_of(blob(number, 8 * BLOCK)), owner=world.alice)  # where 0 s is no lease
            world.later(1)
        kept = [number for number in range(5) if await store.size(hash_of(blob(number, 8 * BLOCK)))]
        assert kept == [3, 4]  # the quota is two of these
        await store.put(blob(5, 8 * BLOCK), owner=world.alice)
        await store.put(blob(6, 8 * BLOCK), owner=world.alice)
        with pytest.raises(QuotaError):
            await store.put(blob(7), owner=world.alice)

    async def test_what_nobody_leases_any_more_keeps_no_newcomer_out(
        self, world: StoreWorld, store: BlobStore
    ) -> None:
        other = world.blobs(world.bob)
        for number in (1, 2):
            await store.put(blob(number, 8 * BLOCK), owner=world.alice)
        await other.put(blob(3, 8 * BLOCK), owner=world.bob)
        with pytest.raises(QuotaError):
            await other.put(blob(4), owner=world.bob)  # the store is full of what is leased
        for number in (2, 1):
            await store.unpin(hash_of(blob(number, 8 * BLOCK)), owner=world.alice)
            world.later(1)
        await other.put(blob(4), owner=world.bob)
        assert await store.size(hash_of(blob(2, 8 * BLOCK))) is None  # free the longest
        assert await store.read(hash_of(blob(1, 8 * BLOCK)))
        await other.put(blob(5, 7 * BLOCK), owner=world.bob)
        with pytest.raises(QuotaError):
            await other.put(blob(6, 2 * BLOCK), owner=world.bob)
        assert await store.read(hash_of(blob(1, 8 * BLOCK)))  # what did not fit after all swept nothing

    async def test_what_is_leased_again_in_its_day_counts_once(
        self, world: StoreWorld, store: BlobStore
    ) -> None:
        for number in (1, 2):
            await store.put(blob(number, 8 * BLOCK), owner=world.alice)
            await store.unpin(hash_of(blob(number, 8 * BLOCK)), owner=world.alice)
        for number in (2, 1):
            await store.pin(hash_of(blob(number, 8 * BLOCK)), owner=world.alice)
        assert [await store.size(hash_of(blob(number, 8 * BLOCK))) for number in (1, 2)] == [8 * BLOCK] * 2
        with pytest.raises(QuotaError):
            await store.put(blob(3), owner=world.alice)

    async def test_a_lease_never_gets_shorter(self, world: StoreWorld, store: BlobStore) -> None:
        await store.put(blob(1, 8 * BLOCK), owner=world.alice, lease_s=1000)
        await store.pin(hash_of(blob(1, 8 * BLOCK)), owner=world.alice, lease_s=10)
        await store.put(blob(1, 8 * BLOCK), owner=world.alice, lease_s=10)
        await store.put(blob(2, 8 * BLOCK), owner=world.alice, lease_s=10)
        await store.pin(hash_of(blob(2, 8 * BLOCK)), owner=world.alice, lease_s=1000)
        world.later(500)
        with pytest.raises(QuotaError):
            await store.put(blob(3), owner=world.alice)
        world.later(501)
        await store.put(blob(3), owner=world.alice)

    async def test_nobody_ends_anothers_lease(self, world: StoreWorld, store: BlobStore) -> None:
        for number in (1, 2):
            await store.put(blob(number, 8 * BLOCK), owner=world.alice)
        await world.blobs(world.bob).unpin(hash_of(blob(1, 8 * BLOCK)), owner=world.bob)
        with pytest.raises(QuotaError):
            await store.put(blob(3), owner=world.alice)


class RegistryConformance:
    """Entries by their key."""

    @pytest.fixture
    def registry(self, world: StoreWorld) -> Registry:
        return world.registry(world.alice)

    async def test_what_was_set_is_got(self, world: StoreWorld, registry: Registry) -> None:
        writer = Writer()
        assert await registry.get(writer.key) is None
        for entry in (
            writer.entry(0),
            writer.entry(1, b"x" * 64),
            writer.entry(2**48, pointer_to(hash_of(b"a blob"))),
        ):
            await registry.set(entry, owner=world.alice)
            assert await registry.get(writer.key) == entry
        assert await registry.get(Writer(2).key) is None

    async def test_the_same_again_is_no_error(self, world: StoreWorld, registry: Registry) -> None:
        entry = Writer().entry(7, b"data")
        for owner in (world.alice, world.alice, world.bob):
            await world.registry(owner).set(entry, owner=owner)
        assert await registry.get(entry.key) == entry

    async def test_an_older_one_is_refused_with_the_one_that_is_kept(
        self, world: StoreWorld, registry: Registry
    ) -> None:
        writer = Writer()
        await registry.set(writer.entry(7, b"seven"), owner=world.alice)
        for revision in (0, 6):
            with pytest.raises(StaleEntryError) as refused:
                await registry.set(writer.entry(revision, b"older"), owner=world.alice)
            assert refused.value.current == writer.entry(7, b"seven")
        assert await registry.get(writer.key) == writer.entry(7, b"seven")
        await registry.set(writer.entry(8, b"newer"), owner=world.alice)

    @pytest.mark.parametrize("smaller_first", [False, True])
    async def test_at_one_revision_the_smaller_hash_wins_whichever_came_first(
        self, world: StoreWorld, registry: Registry, smaller_first: bool
    ) -> None:
        writer = Writer()
        winner, loser = sorted(
            (writer.entry(3, b"one"), writer.entry(3, b"other")), key=lambda each: hash_of(each.data)
        )
        if smaller_first:
            await registry.set(winner, owner=world.alice)
            with pytest.raises(StaleEntryError) as refused:
                await registry.set(loser, owner=world.alice)
            assert refused.value.current == winner
        else:
            await registry.set(loser, owner=world.alice)
            await registry.set(winner, owner=world.alice)
        assert await registry.get(writer.key) == winner

    async def test_a_forged_entry_is_refused_before_anything_is_written(
        self, world: StoreWorld, registry: Registry
    ) -> None:
        writer, good = Writer(), Writer().entry(1, b"mine")
        await registry.set(good, owner=world.alice)
        stranger = Writer(2).entry(9, b"forged")
        for forged in (
            Entry(key=writer.key, revision=9, data=b"forged", signature=stranger.signature),
            Entry(key=writer.key, revision=2, data=good.data, signature=good.signature),
            Entry(key=writer.key, revision=1, data=b"mime", signature=good.signature),
            Entry(key=EntryKey(b"\xff" * 32), revision=1, data=b"", signature=b"\0" * 64),
        ):
            with pytest.raises(BadEntryError):
                await registry.set(forged, owner=world.alice)
        assert await registry.get(writer.key) == good
        assert await registry.get(EntryKey(b"\xff" * 32)) is None

    async def test_an_owner_has_so_many_keys_and_no_more(self, world: StoreWorld, registry: Registry) -> None:
        for number in range(QUOTAS.owner_keys):
            await registry.set(Writer(number).entry(1), owner=world.alice)
        with pytest.raises(QuotaError):
            await registry.set(Writer(9).entry(1), owner=world.alice)
        assert await registry.get(Writer(9).key) is None
        await registry.set(Writer(0).entry(2), owner=world.alice)  # a known key is no new one
        await world.registry(world.bob).set(Writer(9).entry(1), owner=world.bob)

    async def test_of_writers_at_once_the_highest_is_kept(
        self, world: StoreWorld, registry: Registry
    ) -> None:
        writer = Writer()
        stale: list[int] = []

        async def set_one(revision: int) -> None:
            try:
                await registry.set(writer.entry(revision), owner=world.alice)
            except StaleEntryError as error:
                stale.append(error.current.revision - revision)

        async with trio.open_nursery() as nursery:
            for revision in (3, 9, 1, 7, 10, 2, 8):
                nursery.start_soon(set_one, revision)
        assert await registry.get(writer.key) == writer.entry(10)
        assert all(ahead > 0 for ahead in stale)


class StoreConformance(BlobConformance, RegistryConformance):
    """Both."""
