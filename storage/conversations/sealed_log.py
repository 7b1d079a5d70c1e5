"""One sealed log of this user on our own disk: a commit seals and puts what is new, then moves the head.

A commit writes the new records and one manifest, sometimes a compacted segment too, and nothing again that
was written before. It has happened when the transaction of ``ReplicationState`` has; until then nothing has.
The user of a log says how records are joined, and holds ``lock`` while it commits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import structlog
import trio

from p2pnode.errors import ProtocolError, StorageError
from p2pnode.limits import Limits
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.protocols.wire import encode
from p2pnode.storage.conversations import compaction
from p2pnode.storage.conversations.reader import Reader
from p2pnode.storage.conversations.records import (
    BRANCHES_MAX,
    RECORDS_MAX,
    SEGMENTS_MAX,
    TOMBSTONE,
    WRITERS_MAX,
    ArchiveError,
    Head,
    Link,
    Manifest,
    Segment,
    SegmentRef,
    WriterSeq,
)
from p2pnode.storage.conversations.replication_state import NewHead, ReplicationState
from p2pnode.storage.keys import LogKeys
from p2pnode.storage.replication.replication import BlobLostError, Replication
from p2pnode.storage.sealing import RECORD_MAX, Draw, SealError, seal

log = structlog.get_logger()
Join: TypeAlias = Callable[[list[bytes]], list[bytes]]
Wall: TypeAlias = Callable[[], float]
"""Epoch seconds."""


class ConversationFullError(ArchiveError):
    """The conversation has as many segments as a manifest can list."""


@dataclass(slots=True)
class _Sealed:
    """The sealed objects of one commit by their hash, and the records in each."""

    objects: dict[BlobHash, bytes] = field(default_factory=dict)
    records: dict[BlobHash, list[bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogContext:
    """What all logs of one archive share."""

    replication: Replication
    state: ReplicationState
    draw: Draw
    wall: Wall
    limits: Limits


class SealedLog:
    """One log. Its ``head`` is None until something was read, committed or adopted."""

    def __init__(self, keys: LogKeys, context: LogContext, join: Join) -> None:
        self.keys, self._context, self._join = keys, context, join
        self.reader = Reader(keys, context.replication, context.limits)
        self.lock = trio.Lock()
        self.head: Head | None = None
        self.at: Link | None = None
        """The state's head. It is not ``head``'s where that one's manifest can't be read any more."""

    @property
    def wrote_head(self) -> bool:
        """Whether this machine wrote the head."""
        return self.head is not None and self.head.manifest.writer == self._context.state.writer

    async def commit(
        self,
        records: Sequence[bytes] = (),
        *,
        onto: Head | None = None,
        branches: Sequence[Head | Link] = (),
        listed: Sequence[bytes] = (),
        **changes: Any,
    ) -> Head:
        """Add ``records``, durable here when it returns. ``changes`` are new fields of the manifest.

        ``onto`` rebases: the new manifest follows that one instead of the head. ``branches`` are kept on
        record; one that can't be read now is a bare link. Raises ``MovedError``, ``ConversationFullError``,
        ``DiskFullError``, ``QuotaError`` and other ``StorageError``s: nothing was committed then.
        """
        base = onto or self.head
        sealed = _Sealed()
        old = base.manifest if base else Manifest(seq=0, writer=self._context.state.writer)
        number, refs = old.next, list(old.segments)
        # Only segments of earlier commits are joined. Replicas keep those until the next compaction: should
        # the joined segment be lost, its parts may still be there.
        compacted = await self._compact(refs, sealed)
        for group in compaction.in_segments(records):
            refs.append(self._seal_segment(sealed, group, number, number, 0))
            number += 1
        if len(refs) > SEGMENTS_MAX:
            msg = f"this conversation is full ({SEGMENTS_MAX} segments): begin a new one"
            raise ConversationFullError(msg)
        links = [each.link if isinstance(each, Head) else each for each in branches]
        seq = 1 + max((each.seq for each in [base and base.link, self.at, *links] if each), default=0)
        forked = [each.manifest for each in branches if isinstance(each, Head)]
        manifest = replace(
            old,
            **changes,
            seq=seq,
            prev=base.link if base else None,
            next=number,
            segments=tuple(refs),
            writer=self._context.state.writer,
            writers=self._writers([old, *forked], seq),
            branches=_with_branches(old, base, links),
        )
        return await self._write(manifest, sealed, base, listed=listed, compacted=compacted)

    async def adopt(self, head: Head, listed: Sequence[bytes] = ()) -> None:
        """Make what another machine wrote our head. Its blobs are on our disk, or come when they can."""
        gone = [] if self.head is None else self.head.blobs
        kept = set(head.blobs)
        await self._context.state.commit(
            NewHead(
                sid=self.keys.sid,
                base=self.at,
                head=head.link,
                updated=int(self._context.wall()),
                superseded=[digest for digest in gone if digest not in kept],
                listed=listed,
            )
        )
        self.head, self.at = head, head.link

    async def bury(self, seq: int) -> None:
        """Replace the log by a tombstone above revision ``seq``. Its blobs go when that is acknowledged."""
        head = self.head
        blobs = (await self.reader.reachable(head.link, head.manifest))[0] if head else []
        link = Link(seq=max(seq, self.at.seq if self.at else 0) + 1, hash=TOMBSTONE)
        await self._context.state.commit(
            NewHead(
                sid=self.keys.sid,
                base=self.at,
                head=link,
                updated=int(self._context.wall()),
                superseded=blobs,
                compacted=True,
                gone=True,
            )
        )
        self.head, self.at = None, link

    async def _write(
        self,
        manifest: Manifest,
        sealed: _Sealed,
        base: Head | None,
        *,
        listed: Sequence[bytes],
        compacted: bool,
    ) -> Head:
        keys, context = self.keys, self._context
        sealed_manifest = seal(keys, manifest.seq, "M", encode(manifest), context.draw)
        head = Head(Link(seq=manifest.seq, hash=hash_of(sealed_manifest)), manifest)
        needed = [sealed.objects[ref.hash] for ref in manifest.segments if ref.hash in sealed.objects]
        objects = {hash_of(data): data for data in [*needed, sealed_manifest]}
        try:
            await context.replication.put_own(objects)
            kept = set(head.blobs)
            before = [*(base.blobs if base else []), *(self.head.blobs if self.head else [])]
            await context.state.commit(
                NewHead(
                    sid=keys.sid,
                    base=self.at,
                    head=head.link,
                    updated=int(context.wall()),
                    superseded=[digest for digest in dict.fromkeys(before) if digest not in kept],
                    compacted=compacted,
                    listed=listed,
                )
            )
        except StorageError:
            await self._take_back(list(objects))
            raise
        self.head, self.at = head, head.link
        return head

    async def _take_back(self, put: Sequence[BlobHash]) -> None:
        try:
            for digest in put:
                await self._context.replication.own.blobs.unpin(digest, owner=self._context.replication.owner)
        except StorageError as error:  # they are swept when their lease ends
            log.debug("log.unpin_failed", reason=str(error))

    def _seal_segment(
        self, sealed: _Sealed, records: list[bytes], first: int, last: int, level: int
    ) -> SegmentRef:
        data = seal(
            self.keys, last, self.reader.kind, encode(Segment(records=tuple(records))), self._context.draw
        )
        digest = hash_of(data)
        sealed.objects[digest], sealed.records[digest] = data, records
        return SegmentRef(first=first, last=last, level=level, hash=digest, length=len(data))

    async def _compact(self, refs: list[SegmentRef], sealed: _Sealed) -> bool:
        """Join what is due, in place. A segment that can't be read now stays as it is, one level up."""
        compacted = False
        while (start := compaction.due(refs)) is not None:
            run, refs[start:] = refs[start:], []
            for group in compaction.groups(run):
                records = await self._records_of(group, sealed) if len(group) > 1 else None
                if records is None:
                    refs += [compaction.raised(ref) for ref in group]
                    continue
                level = compaction.raised(group[0]).level
                refs.append(self._seal_segment(sealed, records, group[0].first, group[-1].last, level))
            compacted = True
        return compacted

    async def _records_of(self, group: Sequence[SegmentRef], sealed: _Sealed) -> list[bytes] | None:
        records: list[bytes] = []
        try:
            for ref in group:
                records += sealed.records.get(ref.hash) or await self.reader.segment(ref)
            records = self._join(records)
        except (BlobLostError, SealError, ProtocolError) as error:
            log.warning("log.not_joined", reason=str(error))
            return None
        if (
            not records
            or len(records) > RECORDS_MAX
            or sum(len(each) + 8 for each in records) > RECORD_MAX - 64
        ):
            return None
        return records

    def _writers(self, manifests: Sequence[Manifest], seq: int) -> tuple[WriterSeq, ...]:
        newest: dict[bytes, int] = {}
        for known in (each for manifest in manifests for each in manifest.writers):
            newest[known.writer] = max(known.seq, newest.get(known.writer, 0))
        newest[self._context.state.writer] = seq  # higher than all others
        ordered = sorted(newest.items(), key=lambda item: (-item[1], item[0]))
        return tuple(WriterSeq(writer=writer, seq=number) for writer, number in ordered[:WRITERS_MAX])


def _with_branches(old: Manifest, base: Head | None, new: Sequence[Link]) -> tuple[Link, ...]:
    """The old branches and ``new``. Where they are too many, the old ones stay reachable through ``base``."""
    found = dict.fromkeys([*old.branches, *new])
    if len(found) > BRANCHES_MAX and base is not None:
        found = dict.fromkeys([base.link, *(link for link in new if link not in old.branches)])
    return tuple(found)[: BRANCHES_MAX + 1]
