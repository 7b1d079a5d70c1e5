"""One pointer and its blobs on several replicas: written in order, read with every answer checked.

A write goes blobs, then (when a quorum has them, or no more can be had now) the pointer; on no replica does
a pointer come before its blobs. A read asks all at once under a deadline, believes only what is signed by
the key or has the hash, and goes to the next replica otherwise. A replica that failed rests a while, unless
the quorum needs it; one that says it keeps nothing for us is not counted until it does. Whatever a replica
does, the outcome says so and nobody waits longer than ``Limits`` allows. Knows nothing of what is in the
blobs, nor which entry is whose: ``is_ours`` decides.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, TypeAlias, TypeVar

import structlog
import trio

from p2pnode.bounded import Backoffs
from p2pnode.errors import P2PNodeError, StorageError, StoreRefusedError
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.storage.replication.quorum import QUORUM, Counted, Seen, Written, counted
from p2pnode.storage.sealing import SEALED_MAX
from p2pnode.storage.store import DAY_S, LEASE_S, NoBlobError, OwnerKey, Replica, StaleEntryError
from p2pnode.tasks import gather

T = TypeVar("T")
log = structlog.get_logger()
Others: TypeAlias = Callable[[], Sequence[Replica]]
"""The replicas there are now, besides our own disk."""
Check: TypeAlias = Literal["new", "leases", "bytes"]
"""Of a write: put what a replica is not known to have; renew all leases too, and put what turns out to be
missing; read everything back besides."""
OWN_LEASE_S: Final = 100 * 366 * DAY_S
"""On our own disk nothing lapses while its user is away; elsewhere ``LEASE_S``, renewed by a check."""
_KNOWN_MAX: Final = 1 << 16
_SLOW: Final = "it did not answer in time"


class BlobLostError(StorageError):
    """No replica that answered has these bytes; the message says what each one said."""


class _WrongAnswerError(StorageError):
    """What a replica answered is not what was asked for."""


class _LateError(StorageError):
    """A replica did not answer in time."""


@dataclass(slots=True, eq=False)
class _Round:
    """One write under way."""

    entry: Entry
    blobs: Sequence[BlobHash]
    is_ours: Callable[[Entry], bool]
    check: Check
    counted: Counted
    waiting: int
    unfinished: int
    blobs_there: set[str] = field(default_factory=set)
    acks: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    conflicts: list[Entry] = field(default_factory=list)
    mended: dict[str, int] = field(default_factory=dict)
    gate: trio.Event = field(default_factory=trio.Event)
    enough: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)

    def outcome(self) -> Written:
        return Written(
            self.entry, frozenset(self.acks), self.counted, dict(self.failures),
            tuple(self.conflicts), dict(self.mended),
        )  # fmt: skip


class Replication:
    """Own disk and others. ``own`` is asked first for bytes, and gets what others had to give."""

    def __init__(
        self,
        own: Replica,
        others: Others,
        *,
        owner: OwnerKey,
        quorum: int = QUORUM,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.own, self.owner, self.quorum = own, owner, quorum
        self._others, self._limits = others, limits
        self._known: dict[str, set[BlobHash]] = {}
        self._failing: Backoffs[str] = Backoffs(limits.replica_rest_s, limits.replica_rest_max_s)
        self._unwilling: set[str] = set()
        """They keep nothing for us: a host whose session is over, say."""

    def replicas(self) -> list[Replica]:
        """All there are now, our own first."""
        named = {replica.name: replica for replica in [self.own, *self._others()]}
        return list(named.values())[: self._limits.replicas_max]

    def counted(self) -> Counted:
        """By which of them a write is judged now."""
        willing = [replica for replica in self.replicas() if replica.name not in self._unwilling]
        return counted(willing, self.quorum)

    # ---- writing

    async def put_own(self, objects: Mapping[BlobHash, bytes]) -> None:
        """Keep them on our own disk. Raises as ``BlobStore.put``; some of them may be there then."""
        known = self._known.setdefault(self.own.name, set())

        async def put(digest: BlobHash, data: bytes) -> None:
            await self.own.blobs.put(data, owner=self.owner, expected=digest, lease_s=OWN_LEASE_S)
            known.add(digest)

        works = [partial(put, digest, data) for digest, data in objects.items()]
        await gather(works, at_once=self._limits.archive_pushes_at_once)

    async def write(
        self,
        entry: Entry,
        blobs: Sequence[BlobHash],
        *,
        is_ours: Callable[[Entry], bool],
        check: Check = "new",
        on_quorum: Callable[[Written], Awaitable[None]] | None = None,
    ) -> Written:
        """Bring every replica to ``entry``, whose blobs our own disk has.

        ``on_quorum`` is awaited as soon as enough have it, and what it raises is raised. What is new is
        written under one deadline, and stragglers are given ``replica_lag_s`` more; other ``care`` takes as
        long as it takes, with a deadline for each blob.
        """
        replicas = self.replicas()
        judged = self.counted()
        asked = self._awake(replicas, judged) if check == "new" else replicas
        this = _Round(entry, blobs, is_ours, check, judged, len(asked), len(asked))
        this.failures.update({each.name: "it failed lately" for each in replicas if each not in asked})
        async with trio.open_nursery() as nursery:
            for replica in asked:
                nursery.start_soon(self._bring, this, replica)
            await this.enough.wait()
            trouble: StorageError | None = None
            if on_quorum is not None and this.outcome().reached:
                try:
                    await on_quorum(this.outcome())
                except StorageError as error:  # raised below, where no nursery wraps it
                    trouble = error
            with trio.move_on_after(self._limits.replica_lag_s if check == "new" else math.inf):
                await this.done.wait()
            nursery.cancel_scope.cancel()
        for replica in asked:
            if replica.name not in this.acks and replica.name not in this.failures:
                self._failed(this, replica, _SLOW)
        if trouble is not None:
            raise trouble
        return this.outcome()

    async def drop(self, blobs: Sequence[BlobHash]) -> None:
        """End our leases wherever that can be done now; elsewhere they run out by themselves."""

        async def drop_from(replica: Replica) -> None:
            with trio.move_on_after(self._limits.replica_write_s):
                try:
                    for digest in blobs:
                        self._known.get(replica.name, set()).discard(digest)
                        await replica.blobs.unpin(digest, owner=self.owner)
                except P2PNodeError as error:
                    log.debug("replica.unpin_failed", replica=replica.name, reason=str(error))

        async with trio.open_nursery() as nursery:
            for replica in self._awake(self.replicas(), self.counted()):
                nursery.start_soon(drop_from, replica)

    async def _bring(self, this: _Round, replica: Replica) -> None:
        """One replica's part of a round: blobs, the gate, the pointer. Its failures are values."""
        name, past_gate = replica.name, False
        try:
            limit_s = self._limits.replica_write_s if this.check == "new" else math.inf
            with trio.move_on_after(limit_s) as scope:
                if await self._look_and_put(this, replica):
                    this.blobs_there.add(name)
            past_gate = True
            self._arrive(this)
            if name in this.blobs_there:
                await this.gate.wait()
                with trio.move_on_after(self._limits.replica_write_s) as scope:
                    if this.conflicts:
                        this.failures[name] = "not moved: another writer was there first"
                    else:
                        await self._set(this, replica)
            if scope.cancelled_caught:
                self._failed(this, replica, _SLOW)
            elif name in this.acks:
                self._failing.succeeded(name)
                self._unwilling.discard(name)
        except P2PNodeError as error:
            self._failed(this, replica, str(error))
            if isinstance(error, StoreRefusedError) and error.code == "not_admitted":
                self._unwilling.add(name)
                this.counted = self.counted()
        finally:
            if not past_gate:
                self._arrive(this)
            this.unfinished -= 1
            if this.counted.reached(frozenset(this.acks)) or not this.unfinished:
                this.enough.set()
            if not this.unfinished:
                this.done.set()

    def _arrive(self, this: _Round) -> None:
        this.waiting -= 1
        if not this.waiting or this.counted.reached(frozenset(this.blobs_there)):
            this.gate.set()

    async def _look_and_put(self, this: _Round, replica: Replica) -> bool:
        """Both at once: blobs do no harm where the pointer may not move then.

        One that does not even say what it has must not hold up the others' pointers for long.
        """
        may_move = False

        async def look() -> None:
            nonlocal may_move
            may_move = await self._in_time(self._pointer_may_move(this, replica), self._limits.replica_ask_s)

        await gather([look, partial(self._put_missing, this, replica)], at_once=2)
        return may_move

    async def _pointer_may_move(self, this: _Round, replica: Replica) -> bool:
        """Look before writing: another writer's entry there is a conflict, not to be overwritten."""
        current = await self._entry_of(replica, this.entry.key)
        if current is None or this.is_ours(current):
            return True
        self._conflict(this, replica, current)
        return False

    async def _put_missing(self, this: _Round, replica: Replica) -> None:
        known = self._known.setdefault(replica.name, set())
        if len(known) > _KNOWN_MAX:
            known.clear()
        # Of a log that we know nothing of there, it may have all: asking is cheaper than putting.
        ask = this.check != "new" or replica is self.own or not known.intersection(this.blobs)

        async def put(digest: BlobHash) -> None:
            put_if_missing = self._put_if_missing(this, replica, digest, ask=ask)
            await self._in_time(put_if_missing, self._limits.replica_write_s)

        missing = [digest for digest in this.blobs if digest not in known or this.check != "new"]
        works = [partial(put, digest) for digest in missing]
        await gather(works, at_once=self._limits.archive_pushes_at_once)

    @staticmethod
    async def _in_time(work: Awaitable[T], limit_s: float) -> T:
        with trio.move_on_after(limit_s):
            return await work
        raise _LateError(_SLOW)

    async def _put_if_missing(self, this: _Round, replica: Replica, digest: BlobHash, *, ask: bool) -> None:
        name, known = replica.name, self._known.setdefault(replica.name, set())
        if ask and await self._has(replica, digest, read=this.check == "bytes"):
            known.add(digest)
            return
        known.discard(digest)
        data = await self.fetch(digest, besides=name)
        await replica.blobs.put(data, owner=self.owner, expected=digest, lease_s=self._lease_s(replica))
        known.add(digest)
        if this.check == "bytes" and not await self._has(replica, digest, read=True):
            msg = "it took a blob and does not give it back"
            raise _WrongAnswerError(msg)
        if this.check != "new":
            this.mended[name] = this.mended.get(name, 0) + 1

    def _lease_s(self, replica: Replica) -> float:
        return OWN_LEASE_S if replica is self.own else LEASE_S

    async def _has(self, replica: Replica, digest: BlobHash, *, read: bool) -> bool:
        try:
            await replica.blobs.pin(digest, owner=self.owner, lease_s=self._lease_s(replica))
            return not read or hash_of(await replica.blobs.read(digest, 0, SEALED_MAX + 1)) == digest
        except NoBlobError:
            return False

    async def _set(self, this: _Round, replica: Replica) -> None:
        try:
            await replica.registry.set(this.entry, owner=self.owner)
        except StaleEntryError as error:
            current = self._believed(this.entry.key, error.current)
            if (current.revision, current.data) == (this.entry.revision, this.entry.data):
                this.acks.add(replica.name)
            elif this.is_ours(current):
                # A later one of ours (another process of this machine wrote it): ours is in its history.
                self._failed(this, replica, "it has a newer pointer of ours")
            else:
                self._conflict(this, replica, current)
            return
        this.acks.add(replica.name)
        if this.counted.reached(frozenset(this.acks)):
            this.enough.set()

    def _conflict(self, this: _Round, replica: Replica, current: Entry) -> None:
        this.failures[replica.name] = f"another writer's revision {current.revision} stands there"
        this.conflicts.append(current)

    def _failed(self, this: _Round, replica: Replica, reason: str) -> None:
        this.failures[replica.name] = reason
        self._rest(replica)

    # ---- reading

    async def newest(self, key: EntryKey) -> Seen:
        """What every replica shows for ``key``, asked at once, waited for ``replica_ask_s`` at most."""
        entries: list[tuple[str, Entry]] = []
        empty: set[str] = set()
        failures: dict[str, str] = {}

        async def ask(replica: Replica) -> None:
            failures[replica.name] = _SLOW
            with trio.move_on_after(self._limits.replica_ask_s) as scope:
                try:
                    entry = await self._entry_of(replica, key)
                except P2PNodeError as error:
                    failures[replica.name] = str(error)
                    self._rest(replica)
                    return
                del failures[replica.name]
                if entry is None:
                    empty.add(replica.name)
                else:
                    entries.append((replica.name, entry))
            if scope.cancelled_caught:
                self._rest(replica)

        async with trio.open_nursery() as nursery:
            for replica in self.replicas():
                nursery.start_soon(ask, replica)
        return Seen(tuple(sorted(entries, key=lambda item: item[0])), frozenset(empty), failures)

    async def fetch(self, digest: BlobHash, *, besides: str = "") -> bytes:
        """The bytes, from whoever has them; our own disk gets them where it had not.

        Raises ``BlobLostError`` with what each replica said.
        """
        reasons: dict[str, str] = {}
        for replica in self._rested_last(self.replicas()):
            if replica.name == besides:
                continue
            with trio.move_on_after(self._limits.replica_ask_s) as scope:
                try:
                    data = await replica.blobs.read(digest, 0, SEALED_MAX + 1)
                except NoBlobError:
                    reasons[replica.name] = "does not have it"
                    continue
                except P2PNodeError as error:
                    reasons[replica.name] = str(error)
                    self._rest(replica)
                    continue
                if hash_of(data) == digest:
                    if replica is not self.own and besides != self.own.name:
                        await self._keep(data, digest)
                    return data
                reasons[replica.name] = "its bytes don't have that hash"
            if scope.cancelled_caught:
                reasons[replica.name] = _SLOW
                self._rest(replica)
        said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "there is no replica"
        msg = (
            f"blob {digest.hex()[:16]}… can't be had now ({said}): try again when more replicas are reachable"
        )
        raise BlobLostError(msg)

    async def _keep(self, data: bytes, digest: BlobHash) -> None:
        try:
            await self.put_own({digest: data})
        except StorageError as error:
            log.warning("replica.own_not_mended", reason=str(error))

    async def _entry_of(self, replica: Replica, key: EntryKey) -> Entry | None:
        entry = await replica.registry.get(key)
        return None if entry is None else self._believed(key, entry)

    def _believed(self, key: EntryKey, entry: Entry) -> Entry:
        if entry.key != key or not entry.holds():
            msg = "its registry answers with an entry that its key did not sign"
            raise _WrongAnswerError(msg)
        return entry

    # ---- who rests

    def _rest(self, replica: Replica) -> None:
        if replica.place != "own":
            self._failing.failed(replica.name, trio.current_time())

    def _awake(self, replicas: Sequence[Replica], judged: Counted) -> list[Replica]:
        """Without those that rest, if enough are left to reach the quorum."""
        now = trio.current_time()
        awake = [replica for replica in replicas if not self._failing.waits(replica.name, now)]
        return awake if judged.reached(frozenset(each.name for each in awake)) else list(replicas)

    def _rested_last(self, replicas: Sequence[Replica]) -> list[Replica]:
        now = trio.current_time()
        return sorted(replicas, key=lambda replica: self._failing.waits(replica.name, now))
