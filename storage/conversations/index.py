"""The user's index: which conversations there are, and the paid sessions whose money must be recoverable.

It is a log as a conversation is, so that noting a voucher costs the same however long the list is. What two
machines wrote is merged, so it has no branches but manifests that could not be read. Every change is on our
disk before ``note`` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from p2pnode.errors import ProtocolError
from p2pnode.protocols.wire import encode
from p2pnode.storage.conversations.merge import id_of, improvements, live, merged, parse_index
from p2pnode.storage.conversations.reader import ConversationLostError, Loaded
from p2pnode.storage.conversations.records import (
    ArchiveError,
    IndexRecord,
    Link,
    Loss,
    SavedConversation,
    SavedSession,
)
from p2pnode.storage.conversations.replication_state import MovedError
from p2pnode.storage.conversations.sealed_log import LogContext, SealedLog
from p2pnode.storage.keys import INDEX_SID, StorageKeys

log = structlog.get_logger()
_TRIES: Final = 8


class Index:
    """The records by their ids. Call :meth:`read` first."""

    def __init__(self, keys: StorageKeys, context: LogContext) -> None:
        self.log = SealedLog(keys.index, context, self._join)
        self._context = context
        self._records: dict[bytes, IndexRecord] = {}
        self._unread: dict[Link, None] = {}
        self.losses: tuple[Loss, ...] = ()

    def conversations(self) -> tuple[SavedConversation, ...]:
        """The conversations that were not forgotten, the one that changed last first."""
        found = [
            each for each in self._records.values() if isinstance(each, SavedConversation) and not each.gone
        ]
        return tuple(sorted(found, key=lambda each: (-each.updated, each.sid)))

    def sessions(self) -> tuple[SavedSession, ...]:
        """The paid sessions that may still matter, the oldest first."""
        found = [each for each in self._records.values() if isinstance(each, SavedSession)]
        return tuple(sorted(found, key=lambda each: (each.opened_at, each.session)))

    def conversation(self, sid: bytes) -> SavedConversation | None:
        """One conversation, also if it was forgotten."""
        found = self._records.get(sid)
        return found if isinstance(found, SavedConversation) else None

    async def read(self) -> None:
        """Read the index, from our disk where that has it. Does nothing where there is none yet."""
        local = await self._context.state.head(INDEX_SID)
        if local is None or local.head == self.log.at:
            return
        self.log.at = local.head
        try:
            loaded = await self.log.reader.load([local.head, *([local.acked] if local.acked else [])])
        except ConversationLostError as error:
            self.losses = (Loss("manifest", INDEX_SID, local.head.seq, str(error)),)
            log.warning("archive.index_lost", reason=str(error))
            return
        self.log.head = loaded.head
        self._take(loaded)

    async def note(self, records: Iterable[IndexRecord]) -> bool:
        """Record what is better than what is known; whether anything was. Raises as ``SealedLog.commit``."""
        wanted = merged(records)
        async with self.log.lock:
            for _ in range(_TRIES):
                better = improvements(self._records, wanted)
                if not better:
                    return False
                try:
                    await self._commit(better)
                except MovedError:
                    await self.read()
                    continue
                self._records.update({id_of(each): each for each in better})
                return True
        msg = "other processes of this machine keep changing the list of conversations: try again"
        raise ArchiveError(msg)

    async def resolve(self, link: Link) -> bool:
        """Merge what another machine wrote. Returns whether our head covers it now.

        Raises ``StorageError`` when the result can't be committed.
        """
        async with self.log.lock:
            await self.read()
            found = await self.log.reader.compare(self.log.head, link)
            if found.relation == "behind":
                return True
            if found.other is None:
                self._report_loss(Loss("manifest", INDEX_SID, link.seq, f"another index: {found.why}"))
                self._unread[link] = None
                if self.log.wrote_head:
                    # Our head must get a higher revision than theirs, or no replica takes it. Where the head
                    # isn't ours, our next commit does that.
                    await self._commit([])
                return not self._unread
            loaded = await self.log.reader.load([link])
            ours = dict(self._records)
            self._records = {}
            self._take(loaded)
            better = improvements(self._records, ours)
            self._records.update({id_of(each): each for each in better})
            listed = _sids(self._records.values())
            if better:
                await self.log.commit([encode(each) for each in better], onto=loaded.head, listed=listed)
            else:
                await self.log.adopt(loaded.head, listed=listed)
            return True

    async def recover(self, links: Sequence[Link]) -> Loaded | None:
        """Merge the newest of ``links`` that can be read. Returns None where there is no link."""
        if not links:
            return None
        loaded = await self.log.reader.load(links)
        for loss in loaded.losses:
            self._report_loss(loss)
        await self.resolve(loaded.head.link)
        await self._merge_branches()
        return loaded

    async def _merge_branches(self) -> None:
        """Merge indexes that could not be read when they were passed over, where they can be read now."""
        found: list[IndexRecord] = []
        for link in self.log.head.manifest.branches if self.log.head else ():
            try:
                loaded = await self.log.reader.load([link])
                found += [parse_index(record) for record in loaded.records]
            except (ConversationLostError, ProtocolError) as error:
                log.info("archive.index_branch_unread", reason=str(error))
        await self.note(found)

    async def _commit(self, better: Sequence[IndexRecord]) -> None:
        records = [encode(each) for each in better]
        await self.log.commit(records, branches=list(self._unread), listed=_sids(better))
        self._unread.clear()

    def _take(self, loaded: Loaded) -> None:
        for loss in loaded.losses:
            self._report_loss(loss)
        found = []
        for raw in loaded.records:
            try:
                found.append(parse_index(raw))
            except ProtocolError as error:
                self._report_loss(
                    Loss("segment", INDEX_SID, loaded.head.link.seq, f"a record can't be read: {error}")
                )
        self._records = merged([*self._records.values(), *found])

    def _report_loss(self, loss: Loss) -> None:
        if loss not in self.losses:
            self.losses = (*self.losses, loss)

    def _join(self, records: list[bytes]) -> list[bytes]:
        kept = merged(parse_index(record) for record in records).values()
        return [encode(each) for each in live(kept, self._context.wall())]


def _sids(records: Iterable[IndexRecord]) -> list[bytes]:
    return [each.sid for each in records if isinstance(each, SavedConversation)]
