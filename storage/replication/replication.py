"""One pointer and its blobs on several replicas: written in order, read with every answer checked.

A write puts the blobs, then (when a quorum has them, or no more replicas can have them now) the pointer; on
no replica does a pointer come before its blobs. A read asks all at once under a deadline, believes only what
the key signed or what has the hash, and asks the next replica otherwise. A replica that failed is left alone
for a while, unless the quorum needs it; one that says it keeps nothing for us is not counted until it does.
Whatever a replica does, the outcome says so, and nobody waits longer than ``Limits`` allows. What is in the
blobs is not known here, nor which entry is whose: ``is_ours`` decides. What counts as kept is decided in
``quorum``, who is asked in which order in ``choice``.
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
from p2pnode.storage.replication.choice import fit_first, ours_first, worth_a_write
from p2pnode.storage.replication.quorum import QUORUM, Counted, Seen, WriteRound, Written, counted
from p2pnode.storage.sealing import SEALED_MAX
from p2pnode.storage.store import DAY_S, LEASE_S, NoBlobError, OwnerKey, Replica, StaleEntryError
from p2pnode.tasks import gather

T = TypeVar("T")
log = structlog.get_logger()
Others: TypeAlias = Callable[[], Sequence[Replica]]
"""The replicas there are now, besides our own disk."""
Check: TypeAlias = Literal["new", "leases"]
"""What a write checks. ``new``: it puts the blobs that a replica is not known to have. ``leases``: it renews
all leases too, and puts what turns out to be missing."""
OWN_LEASE_S: Final = 100 * 366 * DAY_S
"""On our own disk: nothing may lapse while the user is away. Elsewhere it is ``LEASE_S``, renewed."""
_KNOWN_MAX: Final = 1 << 16
_SLOW: Final = "it did not answer in time"


class BlobLostError(StorageError):
    """No replica that answered has these bytes. The message has what each one said."""


class _WrongAnswerError(StorageError):
    """What a replica answered is not what was asked for."""


class _LateError(StorageError):
    """A replica did not answer in time."""


@dataclass(slots=True, eq=False)
class _Round:
    """One write under way: what was asked, its decisions, and events for the tasks that wait for them."""

    entry: Entry
    blobs: Sequence[BlobHash]
    is_ours: Callable[[Entry], bool]
    check: Check
    state: WriteRound
    may_point: trio.Event = field(default_factory=trio.Event)
    decided: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        """Wake who waits for what is the case now. After each change of ``state``."""
        state = self.state
        for happened, event in (
            (state.may_point, self.may_point), (state.decided, self.decided), (state.over, self.over),
        ):  # fmt: skip
            if happened:
                event.set()


class Replication:
    """Our own disk and others. ``own`` is asked first for bytes, and gets those that came from others."""

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
        self._failing: Backoffs[str] = Backoffs(limits.replica_backoff_s, limits.replica_backoff_max_s)
        self._unwilling: set[str] = set()
        """Replicas that say they keep nothing for us: a host whose session is over, say."""

    def replicas(self) -> list[Replica]:
        """All there are now, our own first."""
        return ours_first(self.own, self._others(), self._limits.replicas_max)

    def counted(self) -> Counted:
        """The replicas by which a write is judged now."""
        willing = [replica for replica in self.replicas() if replica.name not in self._unwilling]
        return counted(willing, self.quorum)

    # ---- writing

    async def put_own(self, objects: Mapping[BlobHash, bytes]) -> None:
        """Put them on our own disk. Raises as ``BlobStore.put``; some of them may be there then."""
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

        ``on_quorum`` is awaited as soon as enough have it, and what it raises is raised. With ``check``
        ``new`` all is written under one deadline, and slow replicas are given ``replica_lag_s`` more; a
        renewal takes as long as it takes, with a deadline for each blob.
        """
        replicas = self.replicas()
        judged = self.counted()
        asked = worth_a_write(replicas, judged, self._failed_lately) if check == "new" else replicas
        state = WriteRound(entry, len(asked), judged)
        state.failures.update({each.name: "it failed lately" for each in replicas if each not in asked})
        this = _Round(entry, blobs, is_ours, check, state)
        async with trio.open_nursery() as nursery:
            for replica in asked:
                nursery.start_soon(self._bring, this, replica)
            await this.decided.wait()
            trouble: StorageError | None = None
            if on_quorum is not None and state.outcome().reached:
                try:
                    await on_quorum(state.outcome())
                except StorageError as error:  # raised below, where no nursery wraps it
                    trouble = error
            with trio.move_on_after(self._limits.replica_lag_s if check == "new" else math.inf):
                await this.over.wait()
            nursery.cancel_scope.cancel()
        for replica in asked:
            if not state.has_acknowledged(replica.name) and replica.name not in state.failures:
                self._failed(this, replica, _SLOW)
        if trouble is not None:
            raise trouble
        return state.outcome()

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
            for replica in worth_a_write(self.replicas(), self.counted(), self._failed_lately):
                nursery.start_soon(drop_from, replica)

    async def _bring(self, this: _Round, replica: Replica) -> None:
        """One replica's part of a round: blobs, wait for a quorum, pointer. Its failures are values."""
        name, state = replica.name, this.state
        has_blobs, reported = False, False
        try:
            limit_s = self._limits.replica_write_s if this.check == "new" else math.inf
            with trio.move_on_after(limit_s) as scope:
                has_blobs = await self._look_and_put(this, replica)
            reported = True
            state.blobs_over(name, there=has_blobs)
            this.tell()
            if has_blobs:
                await this.may_point.wait()
                with trio.move_on_after(self._limits.replica_write_s) as scope:
                    if state.in_conflict:
                        state.failures[name] = "not moved: another writer was there first"
                    else:
                        await self._set(this, replica)
            if scope.cancelled_caught:
                self._failed(this, replica, _SLOW)
            elif state.has_acknowledged(name):
                self._failing.succeeded(name)
                self._unwilling.discard(name)
        except P2PNodeError as error:
            self._failed(this, replica, str(error))
            if isinstance(error, StoreRefusedError) and error.code == "not_admitted":
                self._unwilling.add(name)
                state.counted = self.counted()
        finally:
            if not reported:
                state.blobs_over(name, there=False)
            state.finished()
            this.tell()

    async def _look_and_put(self, this: _Round, replica: Replica) -> bool:
        """Put the blobs and look whether the pointer may move, both at once: blobs alone do no harm.

        A replica that does not even say what it has must not hold up the others' pointers for long.
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
        this.state.conflict(replica.name, current)
        return False

    async def _put_missing(self, this: _Round, replica: Replica) -> None:
        known = self._known.setdefault(replica.name, set())
        if len(known) > _KNOWN_MAX:
            known.clear()
        # Where we know of no blob of this log at a replica, it may have all: asking costs less than putting.
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
        if ask and await self._has(replica, digest):
            known.add(digest)
            return
        known.discard(digest)
        data = await self.fetch(digest, besides=name)
        await replica.blobs.put(data, owner=self.owner, expected=digest, lease_s=self._lease_s(replica))
        known.add(digest)
        if this.check != "new":
            this.state.mended(name)

    def _lease_s(self, replica: Replica) -> float:
        return OWN_LEASE_S if replica is self.own else LEASE_S

    async def _has(self, replica: Replica, digest: BlobHash) -> bool:
        """Whether it has the blob, whose lease is renewed by that."""
        try:
            await replica.blobs.pin(digest, owner=self.owner, lease_s=self._lease_s(replica))
        except NoBlobError:
            return False
        return True

    async def _set(self, this: _Round, replica: Replica) -> None:
        try:
            await replica.registry.set(this.entry, owner=self.owner)
        except StaleEntryError as error:
            current = self._believed(this.entry.key, error.current)
            if (current.revision, current.data) == (this.entry.revision, this.entry.data):
                this.state.acknowledged(replica.name)
            elif this.is_ours(current):
                # Another process of this machine wrote it, and built on ours.
                self._failed(this, replica, "it has a newer pointer of ours")
            else:
                this.state.conflict(replica.name, current)
            return
        this.state.acknowledged(replica.name)
        this.tell()

    def _failed(self, this: _Round, replica: Replica, reason: str) -> None:
        this.state.failures[replica.name] = reason
        self._note_failure(replica)

    # ---- reading

    async def newest(self, key: EntryKey) -> Seen:
        """What the replicas show for ``key``: all are asked at once, and have ``replica_ask_s`` to answer."""
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
                    self._note_failure(replica)
                    return
                del failures[replica.name]
                if entry is None:
                    empty.add(replica.name)
                else:
                    entries.append((replica.name, entry))
            if scope.cancelled_caught:
                self._note_failure(replica)

        async with trio.open_nursery() as nursery:
            for replica in self.replicas():
                nursery.start_soon(ask, replica)
        return Seen(tuple(sorted(entries, key=lambda item: item[0])), frozenset(empty), failures)

    async def fetch(self, digest: BlobHash, *, besides: str = "") -> bytes:
        """The bytes, from the first replica that has them; our own disk gets them where it had them not.

        Raises ``BlobLostError`` with what each replica said.
        """
        reasons: dict[str, str] = {}
        for replica in fit_first(self.replicas(), self._failed_lately):
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
                    self._note_failure(replica)
                    continue
                if hash_of(data) == digest:
                    if replica is not self.own and besides != self.own.name:
                        await self._keep(data, digest)
                    return data
                reasons[replica.name] = "its bytes don't have that hash"
            if scope.cancelled_caught:
                reasons[replica.name] = _SLOW
                self._note_failure(replica)
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

    # ---- who failed lately

    def _note_failure(self, replica: Replica) -> None:
        if replica.place != "own":
            self._failing.failed(replica.name, trio.current_time())

    def _failed_lately(self, name: str) -> bool:
        return self._failing.waits(name, trio.current_time())
