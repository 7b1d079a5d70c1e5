"""Sends what is on our disk to the replicas: the newest pointer of each log that lags, with all its blobs.

Several commits that wait become one pointer. A conversation counts as acknowledged only when an index that
names it is, since nobody could find it without its name. Another writer's pointer that is met is handed to
the log's owner in memory. Our leases on blobs that no acknowledged pointer needs end one compaction later, so
that a replica that still shows an older pointer has the blobs for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import structlog
import trio

from p2pnode.bounded import Backoff
from p2pnode.errors import P2PNodeError
from p2pnode.protocols.s5.entries import Entry, pointer_to
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.conversations.merge import link_of
from p2pnode.storage.conversations.reader import Reader
from p2pnode.storage.conversations.records import TOMBSTONE, Link, Loss
from p2pnode.storage.conversations.schedule import LocalHead, floor_of, to_fetch, to_renew, to_send
from p2pnode.storage.conversations.sealed_log import LogContext
from p2pnode.storage.keys import INDEX_SID, LogKeys, StorageKeys
from p2pnode.storage.replication.quorum import Written
from p2pnode.storage.replication.replication import Check

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of sending one log. ``kept``: a quorum has its pointer, and an index that names it."""

    sid: bytes
    link: Link
    kept: bool
    written: Written | None = None
    losses: tuple[Loss, ...] = ()
    trouble: str = ""
    """Why it could not even be tried; else empty."""


@dataclass(slots=True)
class _Progress:
    """Wakes who waits for an acknowledgement. ``event`` is a new one after each."""

    event: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        self.event.set()
        self.event = trio.Event()


class LogSender:
    """``resolve`` gets another writer's manifest, and returns whether our head covers it now.

    ``floor`` returns the revision below which everything is known.
    """

    def __init__(
        self,
        keys: StorageKeys,
        context: LogContext,
        *,
        resolve: Callable[[bytes, Link], Awaitable[bool]],
        floor: Callable[[bytes], int],
    ) -> None:
        self._keys, self._context, self._resolve, self._floor = keys, context, resolve, floor
        self._turn = trio.Lock()
        self._wake = trio.Event()
        self._resolved: dict[bytes, set[Link]] = {}
        """By log, other writers' manifests that our head builds on or has as branches."""
        self._renewing: trio.CancelScope | None = None
        """The renewal that is under way: it is cancelled when there is something to send."""
        self.progress = _Progress()
        self.last: dict[bytes, Sent] = {}
        """By log, the outcome of the last attempt."""

    def wake(self) -> None:
        """Have :meth:`run` send now: something was committed."""
        self._wake.set()

    async def run(self) -> None:
        """Send what lags when woken, and what could not be sent again after a while, until cancelled."""
        limits = self._context.limits
        backoff = Backoff(limits.archive_retry_s, limits.archive_retry_max_s)
        while True:
            with trio.move_on_after(backoff.next_s()):
                await self._wake.wait()
            # A new event before anything is sent: what is committed meanwhile wakes the next round.
            woken, self._wake = self._wake.is_set(), trio.Event()
            try:
                sent = await self.send(behind=not woken)
            except P2PNodeError as error:  # our own disk failed: the next round tries again
                log.warning("archive.not_sent", reason=str(error))
                sent = []
            if woken or any(each.kept for each in sent):
                backoff.reset()

    async def send(self, *, behind: bool = False) -> list[Sent]:
        """Send once each log that lags, or that was kept by fewer than what counts now.

        ``behind``: also those that a quorum has, but some replica did not get. Raises ``StorageError``.
        """
        if self._renewing is not None and not behind:
            self._renewing.cancel()  # it has the turn that is waited for below, and may take minutes
        async with self._turn:
            heads = await self._context.state.heads()
            lacking = {
                local.sid
                for local in heads
                if self._is_outgrown(local.sid) or (behind and self._some_lack(local.sid))
            }
            first, then = to_send(heads, lacking=lacking)
            sent = [await self._send(local, check="new") for local in first]
            slots = trio.CapacityLimiter(self._context.limits.archive_pushes_at_once)

            async def send_one(local: LocalHead) -> None:
                async with slots:
                    sent.append(await self._send(local, check="new"))

            async with trio.open_nursery() as nursery:
                for local in then:
                    nursery.start_soon(send_one, local)
            return sent

    async def renew(self, sid: bytes) -> Sent | None:
        """Renew the leases of one log that is here, and put what turns out to be missing.

        When there is something to send it is broken off, and begins again after that. Returns None for a log
        that isn't here. Raises ``StorageError``.
        """
        while True:
            with trio.CancelScope() as self._renewing:
                async with self._turn:
                    local = await self._context.state.head(sid)
                    return None if local is None else await self._send(local, check="leases")

    def _some_lack(self, sid: bytes) -> bool:
        last = self.last.get(sid)
        return last is not None and last.written is not None and bool(last.written.failures)

    def _is_outgrown(self, sid: bytes) -> bool:
        """Whether the replicas that have it were enough only while no others were known.

        The serving host, say, counts until there are enough others, and who comes later has nothing then.
        """
        last = self.last.get(sid)
        if last is None or last.written is None or not last.written.reached:
            return False
        return not self._context.replication.counted().reached(last.written.acks)

    async def _send(self, local: LocalHead, *, check: Check) -> Sent:
        keys = keys_of(self._keys, local.sid)
        try:
            sent = await self._write(keys, local, check=check)
            for link in {link_of(entry) for entry in sent.written.conflicts} if sent.written else ():
                if await self._resolve(local.sid, link):
                    self._resolved.setdefault(local.sid, set()).add(link)
        except P2PNodeError as error:
            sent = Sent(local.sid, local.head, kept=False, trouble=str(error))
        if not sent.kept:
            failures = dict(sent.written.failures) if sent.written else {}
            log.info("archive.queued", revision=local.head.seq, failures=failures, trouble=sent.trouble)
        self.last[local.sid] = sent
        return sent

    async def _write(self, keys: LogKeys, local: LocalHead, *, check: Check) -> Sent:
        state, replication = self._context.state, self._context.replication
        reader = Reader(keys, replication, self._context.limits)
        blobs: list[BlobHash] = []
        losses: list[Loss] = []
        if local.head.hash != TOMBSTONE:
            blobs, losses = await reader.reachable(local.head, await reader.manifest(local.head))
        ours = await state.ours(local.sid) | self._resolved.get(local.sid, set())
        floor = floor_of(local, self._floor(local.sid))

        def is_ours(entry: Entry) -> bool:
            return entry.revision < floor or link_of(entry) in ours

        async def on_quorum(_written: Written) -> None:
            await self._acked(local)

        entry = keys.entry(local.head.seq, pointer_to(local.head.hash))
        written = await replication.write(entry, blobs, is_ours=is_ours, check=check, on_quorum=on_quorum)
        kept = written.reached and await self._is_named(local.sid)
        alone = len(replication.replicas()) == 1
        if kept or alone:
            await self._let_go(local.sid, keep=blobs, alone=alone)
        return Sent(local.sid, local.head, kept, written, tuple(losses))

    async def _is_named(self, sid: bytes) -> bool:
        return sid == INDEX_SID or await self._context.state.is_listed_by_quorum(sid)

    async def _acked(self, local: LocalHead) -> None:
        if await self._is_named(local.sid):
            await self._context.state.acked(local.sid, local.head)
            self._resolved.pop(local.sid, None)  # everything below what was acknowledged is known
            self.progress.tell()

    async def _let_go(self, sid: bytes, *, keep: list[BlobHash], alone: bool) -> None:
        due = await self._context.state.droppable(sid, alone=alone)
        if due:
            needed = set(keep)
            await self._context.replication.drop([digest for digest in due if digest not in needed])
            await self._context.state.dropped(sid, due)


def keys_of(keys: StorageKeys, sid: bytes) -> LogKeys:
    """The keys of a log by its name."""
    return keys.index if sid == INDEX_SID else keys.conversation(sid)


class Renewal:
    """Renews the leases on other nodes before they lapse: weekly, a log at a time, behind everything else.

    When a log's leases were renewed is on our disk, so that clients that live for seconds get through all
    logs, run by run. What is listed and not on our disk is fetched: nobody would renew it once the machine
    that has it is lost. ``fetch`` brings such a log to our disk.
    """

    def __init__(
        self, context: LogContext, sender: LogSender, *, fetch: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._context, self._sender, self._fetch = context, sender, fetch
        self._fetching: trio.CancelScope | None = None

    def give_way(self) -> None:
        """Break off a fetch, since somebody waits for a conversation: it is fetched the next time."""
        if self._fetching is not None:
            self._fetching.cancel()

    async def run(self, listed: Iterable[bytes]) -> None:
        """Fetch what is ``listed`` and not here, then renew what is due, the longest ago first.

        What can't be done now stays due. Raises ``StorageError`` when our own disk fails.
        """
        state = self._context.state
        for sid in to_fetch(listed, await state.heads()):
            await self._try_to_fetch(sid)
        for sid in to_renew(await state.renewals(), self._context.wall()):
            sent = await self._sender.renew(sid)
            if sent is not None and sent.kept:
                await state.renewed(sid, int(self._context.wall()))

    async def _try_to_fetch(self, sid: bytes) -> None:
        with trio.CancelScope() as self._fetching:
            try:
                await self._fetch(sid)
            except P2PNodeError as error:
                log.info("archive.not_fetched", sid=sid.hex(), reason=str(error))
