"""Reads a log: the newest manifest that can be read, its segments, and a list of what is missing.

A manifest that no replica has any more is passed over for an older one that some replica still points at. It
stays on record as a branch, in case its blob comes back. For a segment that no replica has, older manifests
are read: they may name the smaller segments that it was joined from. What stays missing is a ``Loss``. There
is an exception only where nothing can be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pnode.errors import ProtocolError
from p2pnode.limits import Limits
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.wire import decode_record
from p2pnode.storage.conversations.merge import Relation, relation
from p2pnode.storage.conversations.records import (
    ArchiveError,
    Head,
    Link,
    Loss,
    LossKind,
    Manifest,
    Segment,
    SegmentRef,
)
from p2pnode.storage.keys import INDEX_SID, LogKeys
from p2pnode.storage.replication.replication import BlobLostError, Replication
from p2pnode.storage.sealing import Kind, SealError, unseal

BACK_MAX: Final = 64
"""So many older manifests are read in the search for a missing segment."""
BRANCHES_FOLLOWED_MAX: Final = 256
"""So many branches, and branches of branches, are read."""
_UNREADABLE: Final = (BlobLostError, SealError, ProtocolError)


class ConversationLostError(ArchiveError):
    """Nothing of the conversation can be read now."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A log as it could be read. ``unreadable`` are newer manifests that could not be."""

    head: Head
    records: tuple[bytes, ...] = field(repr=False)
    losses: tuple[Loss, ...] = ()
    unreadable: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """How another writer's manifest relates to our head; ``why`` it can't be read."""

    relation: Relation
    other: Head | None = None
    why: str = ""


class Reader:
    """Reads one log from wherever its bytes are."""

    def __init__(self, keys: LogKeys, replication: Replication, limits: Limits) -> None:
        self._keys, self._replication, self._limits = keys, replication, limits
        self.kind: Kind = "I" if keys.sid == INDEX_SID else "S"

    async def manifest(self, link: Link) -> Manifest:
        """Read a manifest. Raises ``BlobLostError``, ``SealError``, ``ProtocolError``."""
        sealed = await self._replication.fetch(link.hash)
        return decode_record(Manifest, unseal(self._keys, link.seq, "M", sealed))

    async def segment(self, ref: SegmentRef) -> tuple[bytes, ...]:
        """Read the records of a segment. Raises as :meth:`manifest`."""
        sealed = await self._replication.fetch(ref.hash)
        if len(sealed) != ref.length:
            msg = f"a segment has {len(sealed)} bytes where its manifest says {ref.length}"
            raise SealError(msg)
        return decode_record(Segment, unseal(self._keys, ref.last, self.kind, sealed)).records

    async def compare(self, ours: Head | None, link: Link) -> Comparison:
        """Read another writer's manifest, and compare it with our head."""
        if ours is not None and ours.link == link:
            return Comparison("behind", ours)
        try:
            other = Head(link, await self.manifest(link))
        except _UNREADABLE as error:
            return Comparison("unreadable", why=str(error))
        return Comparison(relation(ours, other), other)

    async def load(self, links: Sequence[Link]) -> Loaded:
        """Read the first of ``links`` (newest first) that can be read. Raises ``ConversationLostError``."""
        losses: list[Loss] = []
        unreadable: list[Link] = []
        for link in links:
            try:
                head = Head(link, await self.manifest(link))
            except _UNREADABLE as error:
                losses.append(self._loss("manifest", link.seq, f"revision {link.seq} can't be read: {error}"))
                unreadable.append(link)
                continue
            records, missing = await self._segments(head.manifest)
            return Loaded(head, records, (*losses, *missing), tuple(unreadable))
        said = "; ".join(loss.detail for loss in losses) or "no replica that answered points at it"
        msg = (
            f"the conversation can't be read now ({said}): try again when more replicas are reachable, or "
            "name a node that may have it (--store, --bootstrap)"
        )
        raise ConversationLostError(msg)

    async def reachable(self, link: Link, manifest: Manifest) -> tuple[list[BlobHash], list[Loss]]:
        """All blobs that the log needs, in the order to write them: branches, segments, the manifest."""
        found: dict[BlobHash, None] = {}
        losses: list[Loss] = []
        waiting, seen = list(manifest.branches), {link.hash}
        while waiting and len(seen) <= BRANCHES_FOLLOWED_MAX:
            branch = waiting.pop()
            if branch.hash in seen:
                continue
            seen.add(branch.hash)
            try:
                theirs = await self.manifest(branch)
            except _UNREADABLE as error:
                losses.append(self._loss("branch", branch.seq, f"a branch can't be read: {error}"))
                continue
            found.update(dict.fromkeys([*(ref.hash for ref in theirs.segments), branch.hash]))
            waiting.extend(theirs.branches)
        found.update(dict.fromkeys(ref.hash for ref in manifest.segments))
        found[link.hash] = None
        return list(found), losses

    async def _segments(self, manifest: Manifest) -> tuple[tuple[bytes, ...], list[Loss]]:
        read, errors = await self._read_all(manifest.segments)
        records: list[bytes] = []
        losses: list[Loss] = []
        older = await self._older(manifest) if errors else []
        for ref in manifest.segments:
            if ref.hash in read:
                records += read[ref.hash]
                continue
            parts, complete = await self._from_parts(ref, older)
            records += parts
            if not complete:
                losses.append(
                    self._loss(
                        "segment", manifest.seq, f"segments {ref.first} to {ref.last}: {errors[ref.hash]}"
                    )
                )
        return tuple(records), losses

    async def _read_all(
        self, refs: Sequence[SegmentRef]
    ) -> tuple[dict[BlobHash, tuple[bytes, ...]], dict[BlobHash, str]]:
        read: dict[BlobHash, tuple[bytes, ...]] = {}
        errors: dict[BlobHash, str] = {}
        slots = trio.CapacityLimiter(self._limits.fetches_at_once)

        async def read_one(ref: SegmentRef) -> None:
            async with slots:
                try:
                    read[ref.hash] = await self.segment(ref)
                except _UNREADABLE as error:
                    errors[ref.hash] = str(error)

        async with trio.open_nursery() as nursery:
            for ref in refs:
                nursery.start_soon(read_one, ref)
        return read, errors

    async def _older(self, manifest: Manifest) -> list[SegmentRef]:
        """The segments that older manifests name, as far back as they can be read."""
        found: dict[BlobHash, SegmentRef] = {}
        link = manifest.prev
        for _ in range(BACK_MAX):
            if link is None:
                break
            try:
                manifest = await self.manifest(link)
            except _UNREADABLE:
                break
            found.update({ref.hash: ref for ref in manifest.segments})
            link = manifest.prev
        return list(found.values())

    async def _from_parts(self, ref: SegmentRef, older: Sequence[SegmentRef]) -> tuple[list[bytes], bool]:
        """Read a missing segment from those that it was joined from. Returns also whether it is whole."""
        parts = [part for part in older if ref.first <= part.first and part.last <= ref.last]
        parts = sorted(
            (part for part in parts if part.hash != ref.hash), key=lambda part: (part.first, -part.last)
        )
        read, _ = await self._read_all(parts)
        records: list[bytes] = []
        upto, complete = ref.first, True
        for part in parts:
            if part.hash not in read or part.first < upto:
                continue
            complete = complete and part.first == upto
            records += read[part.hash]
            upto = part.last + 1
        return records, complete and upto == ref.last + 1

    def _loss(self, kind: LossKind, seq: int, detail: str) -> Loss:
        return Loss(kind, self._keys.sid, seq, detail)
