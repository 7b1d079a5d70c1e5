"""A user's machines and the replicas they share, in memory, with faults that a test switches on."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trio
from trio.testing import MockClock

from p2pnode.errors import StorageError, StoreRefusedError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.limits import Limits
from p2pnode.protocols.inference.messages import Role, SessionTerms, Voucher
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.records import Link, Piece, SavedSession
from p2pnode.storage.conversations.replication_state import NewHead, ReplicationState
from p2pnode.storage.conversations.schedule import RENEW_S
from p2pnode.storage.conversations.turns import Turn
from p2pnode.storage.keys import StorageKeys
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.sealing import Kind, SealError, unseal
from p2pnode.storage.store import LEASE_S, Data, DiskFullError, OwnerKey, Place, Replica
from tests.storage.stores import StoreDisk

T = TypeVar("T")
NOW = 1_800_000_000.0
KEYS = StorageKeys.from_entropy(bytes(range(16)))
LIMITS = Limits(replica_ask_s=2.0, replica_write_s=3.0, replica_lag_s=0.5)


class PowerCutError(BaseException):
    """The machine went off. Nothing handles it."""


def only_cuts(group: BaseExceptionGroup[BaseException]) -> None:
    """A nursery ended by the power, and by nothing else."""
    rest = group.split(PowerCutError)[1]
    if rest is not None:
        raise rest


class DownError(StorageError):
    """The replica can't be reached."""


@dataclass(slots=True)
class Power:
    """Goes off at the ``after``-th operation of any disk or replica, before or after it took effect."""

    after: int = -1
    late: bool = False
    operations: int = 0

    def early(self) -> None:
        self.operations += 1
        if self.operations == self.after and not self.late:
            raise PowerCutError

    def done(self) -> None:
        if self.operations == self.after and self.late:
            raise PowerCutError


@dataclass(eq=False)
class FaultyReplica:
    """A store whose faults are switched on: ``down``, ``hangs``, ``lies`` (changes what it gives)."""

    name: str
    store: MemoryStore
    place: Place = "other"
    power: Power = field(default_factory=Power)
    down: bool = False
    hangs: bool = False
    held: trio.Event | None = None
    """No blob is taken before this happens."""
    full: bool = False
    admits: bool = True
    lies: bool = False
    shown: dict[EntryKey, Entry | None] = field(default_factory=dict)
    """What the registry answers instead."""
    written: int = 0
    """Bytes put."""
    puts: int = 0
    reads: int = 0
    order: list[tuple[str, bytes]] = field(default_factory=list)

    def replica(self) -> Replica:
        return Replica(self.name, self, self, self.place)

    async def _fault(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.down:
            msg = "it is down"
            raise DownError(msg)
        self.power.early()

    def _admit(self) -> None:
        if not self.admits:
            raise StoreRefusedError("not_admitted", "this node stores for owners on its list only")

    async def put(
        self, data: Data, *, owner: OwnerKey, expected: BlobHash | None = None, lease_s: float = LEASE_S
    ) -> BlobId:
        assert isinstance(data, bytes)
        if self.held is not None:
            await self.held.wait()
        await self._fault()
        self._admit()
        if self.full:
            msg = "the disk is full"
            raise StorageError(msg)
        found = await self.store.put(data, owner=owner, expected=expected, lease_s=lease_s)
        self.written += len(data)
        self.puts += 1
        self.order.append(("blob", found.hash))
        self.power.done()
        return found

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        await self._fault()
        self.reads += 1
        data = await self.store.read(digest, offset, length)
        self.power.done()
        return bytes([data[0] ^ 1, *data[1:]]) if self.lies else data

    async def size(self, digest: BlobHash) -> int | None:
        await self._fault()
        return await self.store.size(digest)

    async def pin(self, digest: BlobHash, *, owner: OwnerKey, lease_s: float = LEASE_S) -> None:
        await self._fault()
        self._admit()
        await self.store.pin(digest, owner=owner, lease_s=lease_s)
        self.power.done()

    async def unpin(self, digest: BlobHash, *, owner: OwnerKey) -> None:
        await self._fault()
        self._admit()
        await self.store.unpin(digest, owner=owner)
        self.power.done()

    async def get(self, key: EntryKey) -> Entry | None:
        await self._fault()
        return self.shown[key] if key in self.shown else await self.store.get(key)

    async def set(self, entry: Entry, *, owner: OwnerKey) -> None:
        await self._fault()
        self._admit()
        await self.store.set(entry, owner=owner)
        self.order.append(("entry", entry.points_at or b""))
        self.power.done()

    # ---- what a test does to it

    def lose(self, *digests: BlobHash) -> None:
        """The blobs are gone."""
        for digest in digests:
            self.store.blobs.pop(digest, None)

    def tamper(self, digest: BlobHash, data: bytes) -> None:
        """Other bytes stand under that hash."""
        self.store.blobs[digest].data = data

    def blobs(self) -> dict[BlobHash, bytes]:
        return {digest: blob.data for digest, blob in self.store.blobs.items()}

    def entry(self, key: EntryKey) -> Entry | None:
        held = self.store.entries.get(key)
        return held[0] if held else None

    def put_back(self, entry: Entry, owner: OwnerKey) -> None:
        """The registry is restored to this, whatever it held."""
        self.store.entries[entry.key] = (entry, owner)


class RoomyStore(MemoryStore):
    """Adds nothing up: the sums over all blobs cost more than what is tested over thousands of them."""

    def _lease(self, digest: BlobHash, owner: OwnerKey, lease_s: float) -> None:
        blob = self.blobs[digest]
        blob.leases[owner] = max(self._wall() + lease_s, blob.leases.get(owner, 0))

    def _make_room_in_store(self, more: int) -> None:
        pass

    @contextmanager
    def _undone_if_refused(self) -> Iterator[None]:
        yield


class QuickState(ReplicationState):
    """Without syncs: the process ends in these tests, the machine doesn't. Commits are operations."""

    def __init__(self, path: Path, draw: Callable[[int], bytes], power: Power) -> None:
        super().__init__(path, draw, disk=StoreDisk(), in_thread=False)
        self._power = power
        self.full = False

    async def commit(self, new: NewHead) -> None:
        self._power.early()
        self._check()
        await super().commit(new)
        self._power.done()

    async def acked(self, sid: bytes, link: Link) -> None:
        self._check()
        await super().acked(sid, link)

    def _check(self) -> None:
        if self.full:
            msg = "the state's disk is full"
            raise DiskFullError(msg)


class Machine:
    """A data dir of the user: its own disk, its state, and the archive over them while it is on."""

    def __init__(self, world: World, name: str, root: Path) -> None:
        self.world, self.name, self._path = world, name, root / f"{name}.sqlite"
        self.power = Power()
        self.own = FaultyReplica(f"{name}'s disk", RoomyStore(world.wall), "own", self.power)
        self.random = random.Random(name)
        self.state: QuickState | None = None
        """While it is on."""

    @asynccontextmanager
    async def on(self, *, keys: StorageKeys = KEYS) -> AsyncIterator[Archive]:
        """Start; the archive is not running, ``flush`` sends."""
        self.state = state = QuickState(self._path, self.random.randbytes, self.power)
        try:
            yield Archive(
                keys,
                self.own.replica(),
                lambda: [each.replica() for each in self.world.replicas],
                state=state,
                draw=self.random.randbytes,
                wall=self.world.wall,
                limits=LIMITS,
            )
        finally:
            state.close()


async def renewed_after_a_week(world: World, archive: Archive) -> None:
    """A week passes, and the leases are renewed: what a replica has lost is put back."""
    world.now += RENEW_S + 1
    await archive.renew()


class World:
    """Three replicas by default, and as many machines as wanted."""

    def __init__(self, root: Path, replicas: int = 3) -> None:
        self.now = NOW
        self._root = root
        self.replicas = [FaultyReplica(f"replica {at}", RoomyStore(self.wall)) for at in range(replicas)]

    def wall(self) -> float:
        return self.now

    def machine(self, name: str = "laptop") -> Machine:
        return Machine(self, name, self._root)


def run(test: Callable[[], object]) -> None:
    """An async test in virtual time, for use inside a property."""
    trio.run(test, clock=MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def says(role: Role, text: str, **more: object) -> Piece:
    finish = None if role == "assistant" else "stop"
    return Piece(**{"role": role, "text": text, "finish": finish, "at": int(NOW), **more})  # type: ignore[arg-type]


def asked(text: str) -> Piece:
    return says("user", text)


def answered(text: str, **more: object) -> Piece:
    return says("assistant", text, **{"finish": "stop", **more})


def texts(turns: tuple[Turn, ...]) -> list[str]:
    return [turn.text for turn in turns]


def session(
    number: int = 1,
    *,
    amount: int | None = None,
    expiry: int = int(NOW) + 86_400,
    left_until: int | None = None,
    generation: int = 0,
) -> SavedSession:
    terms = SessionTerms(
        payer=bytes(20), host=bytes(20), voucher_key=bytes(20), receipt_key=bytes(20),
        model=ModelId(bytes(32)),
        deposit=1000, price_in=1, price_out=2, session_fee=0, tip=0, expiry=expiry, salt=bytes(32),
    )  # fmt: skip
    voucher = None
    if amount is not None:
        voucher = Voucher(
            seq=amount, tokens_in=1, tokens_out=amount, amount=amount, root=bytes(32), signature=bytes(65)
        )
    return SavedSession(
        session=SessionId(number.to_bytes(32, "big")), terms=terms, voucher_secret=b"\x07" * 32,
        host=PeerId("12D3KooWHost"), addresses=("/ip4/127.0.0.1/tcp/4001",), valid_before=int(NOW) + 600,
        opened_at=int(NOW), voucher=voucher, left_until=left_until, generation=generation,
    )  # fmt: skip


def objects_of(sid: bytes, blobs: Iterable[bytes]) -> int:
    """How many of these are sealed for a conversation (in its first revisions)."""
    keys, found = KEYS.conversation(sid), 0
    kinds: tuple[Kind, ...] = ("S", "M")
    for data in blobs:
        for seq in range(20):
            for kind in kinds:
                with suppress(SealError):
                    unseal(keys, seq, kind, data)
                    found += 1
    return found
