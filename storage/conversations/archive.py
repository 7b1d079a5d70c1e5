"""One user's conversations: on this machine's disk at once, on replicas as soon as these can be reached.

::

    archive = Archive(keys, own, others, state=state, draw=secrets.token_bytes, wall=time.time)
    async with trio.open_nursery() as nursery:
        await nursery.start(archive.run)                # sends in the background
        conversation = await archive.new(model=model, title="Ships")
        await conversation.append(Piece(role="user", text="…"))
        await archive.wait_kept(conversation.sid)       # until a quorum has it

``append`` and ``save_session`` return when our disk has it, and never wait for a replica. ``others`` returns
the replicas that are known at the moment; how they are found is not known here, nor what a model or a wallet
is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog
import trio

from p2pnode.errors import StorageError
from p2pnode.ids import ModelId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.storage.conversations.index import Index
from p2pnode.storage.conversations.log_sender import LogSender, Renewal, Sent
from p2pnode.storage.conversations.merge import link_of
from p2pnode.storage.conversations.reader import ConversationLostError
from p2pnode.storage.conversations.records import (
    TOMBSTONE,
    Link,
    Loss,
    SavedConversation,
    SavedSession,
    title_of,
)
from p2pnode.storage.conversations.replication_state import ReplicationState
from p2pnode.storage.conversations.schedule import LocalHead, floor_of, unknown_to
from p2pnode.storage.conversations.sealed_log import LogContext, Wall
from p2pnode.storage.conversations.stored_conversation import ForgottenError, StoredConversation
from p2pnode.storage.keys import INDEX_SID, SID_BYTES, StorageKeys
from p2pnode.storage.replication.quorum import QUORUM, Counted, Seen
from p2pnode.storage.replication.replication import Others, Replication
from p2pnode.storage.sealing import Draw
from p2pnode.storage.store import Replica

log = structlog.get_logger()
UPDATED_EVERY_S: Final = 3600
"""How exact ``updated`` is in the list: if it were exact, each turn would write the index too."""
_ROUNDS: Final = 4
"""How often :meth:`Archive.flush` sends, where conflicts with other writers were resolved in between."""


@dataclass(frozen=True, slots=True)
class Status:
    """What is kept. ``lagging``: logs that no quorum has yet. ``last``: the last outcome, by log."""

    lagging: tuple[LocalHead, ...]
    last: Mapping[bytes, Sent] = field(repr=False)
    counted: Counted
    losses: tuple[Loss, ...]

    @property
    def kept(self) -> bool:
        """Whether a quorum has everything."""
        return not self.lagging


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the replicas had: the newest that any of them shows, since a fresh disk can't know of more."""

    conversations: tuple[SavedConversation, ...]
    sessions: tuple[SavedSession, ...]
    losses: tuple[Loss, ...]
    answered: frozenset[str]
    failures: Mapping[str, str]
    revision: int | None
    """The index's revision; None where no replica that answered has an index."""


class Archive:
    """The archive over ``own``, which is this machine's store, and ``state``, which lies on the same disk."""

    def __init__(
        self,
        keys: StorageKeys,
        own: Replica,
        others: Others,
        *,
        state: ReplicationState,
        draw: Draw,
        wall: Wall,
        quorum: int = QUORUM,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._keys = keys
        self._replication = Replication(own, others, owner=keys.owner, quorum=quorum, limits=limits)
        self._context = LogContext(self._replication, state, draw, wall, limits)
        self._index = Index(keys, self._context)
        self._sender = LogSender(keys, self._context, resolve=self._resolve, floor=self._floor)
        self._renewal = Renewal(self._context, self._sender, fetch=self._fetch)
        self._open: dict[bytes, StoredConversation] = {}
        self._opening = trio.Lock()
        self._floors: dict[bytes, int] = {}
        self._losses: dict[Loss, None] = {}

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Send to the replicas until cancelled. What was not sent by then is sent after the next start."""
        task_status.started()
        self._sender.wake()
        await self._sender.run()

    # ---- conversations

    async def conversations(self) -> tuple[SavedConversation, ...]:
        """The conversations that this machine knows, the one that changed last first."""
        await self._ready()
        return self._index.conversations()

    async def new(
        self, *, title: str = "", model: ModelId | None = None, sampling: SamplingParams | None = None
    ) -> StoredConversation:
        """Begin a conversation, durable here when it returns. Raises as ``StoredConversation.append``."""
        await self._ready()
        sid = self._context.draw(SID_BYTES)
        conversation = self._conversation(sid)
        # The log before the list: what a crash in between leaves unlisted, the next start lists.
        async with conversation.log.lock:
            await conversation.log.commit(title=title_of(title), model=model, sampling=sampling)
        self._open[sid] = conversation
        await self._list(conversation)
        self._sender.wake()
        return conversation

    async def open(self, sid: bytes, *, ask: bool = True) -> StoredConversation:
        """A conversation as our disk has it or, with ``ask``, as the replica that has the newest of it.

        What is missing of it is in its ``losses``. Raises ``ConversationLostError``, ``ForgottenError``.
        """
        self._renewal.give_way()
        await self._ready()
        async with self._opening:
            conversation = self._open.get(sid)
            local = await self._context.state.head(sid)
            if conversation is None or conversation.log.at != (local.head if local else None):
                conversation = await self._load(sid, local, ask=ask)
                self._open[sid] = conversation
            elif ask:
                await self._look(conversation, local)
        if conversation.gone:
            raise self._forgotten(sid)
        return conversation

    async def forget(self, sid: bytes) -> None:
        """Replace it by a tombstone: here now, on the replicas when they can be reached."""
        await self._ready()
        seen = await self._replication.newest(self._keys.conversation(sid).entry_key)
        revision = max([entry.revision for _, entry in seen.entries], default=0)
        conversation = self._open.get(sid) or self._conversation(sid)
        if conversation.log.at is None and (local := await self._context.state.head(sid)):
            conversation = await self._load(sid, local, ask=False)
        async with conversation.log.lock:
            await conversation.log.bury(revision)
            conversation.gone = True
        self._open.pop(sid, None)
        known = self._index.conversation(sid)
        now = int(self._context.wall())
        base = known or SavedConversation(sid=sid, created=now, updated=now)
        await self._index.note([replace(base, title="", updated=now, gone=True)])
        self._sender.wake()

    # ---- money

    async def save_session(self, saved: SavedSession) -> None:
        """Note a paid session, or its newer voucher. Raises ``StorageError`` when our disk fails."""
        await self._ready()
        if await self._index.note([saved]):
            self._sender.wake()

    async def sessions(self) -> tuple[SavedSession, ...]:
        """The paid sessions that this machine knows, the oldest first."""
        await self._ready()
        return self._index.sessions()

    # ---- replicas

    async def recover(self) -> Recovery:
        """Ask all replicas for the index, and merge it with ours. Conversations come when they are opened."""
        await self._ready()
        seen = await self._replication.newest(self._keys.index.entry_key)
        local = await self._context.state.head(INDEX_SID)
        self._notice_rollback(INDEX_SID, local, seen)
        entries = seen.newest_first()
        try:
            loaded = await self._index.recover([link_of(entry) for entry in entries])
        except ConversationLostError as error:
            self._losses[Loss("manifest", INDEX_SID, entries[0].revision, str(error))] = None
            loaded = None
        if loaded is not None:
            self._floors[INDEX_SID] = max(loaded.head.link.seq, self._floors.get(INDEX_SID, 0))
            self._sender.wake()
        answered = frozenset(name for name, _ in seen.entries) | seen.empty
        return Recovery(
            self._index.conversations(),
            self._index.sessions(),
            self._all_losses(),
            answered,
            seen.failures,
            loaded.head.link.seq if loaded else None,
        )

    async def flush(self) -> Status:
        """Try now to bring everything to a quorum. What could not be done is in the status.

        Raises ``StorageError`` when our own disk fails, never because of a replica.
        """
        await self._ready()
        for _ in range(_ROUNDS):
            sent = await self._sender.send()
            in_conflict = any(each.written and each.written.conflicts for each in sent)
            if not in_conflict and all(each.kept for each in sent):
                break
            if not in_conflict and not any(each.kept for each in sent):
                break
        return await self.status()

    async def wait_kept(self, sid: bytes = INDEX_SID) -> None:
        """Wait until a quorum has what is committed to a log now: by default to the index.

        :meth:`run` must be running.
        """
        local = await self._context.state.head(sid)
        while local is not None:
            event = self._sender.progress.event
            now = await self._context.state.head(sid)
            if now is None or now.covers(local.head):
                return
            await event.wait()

    async def renew(self) -> None:
        """Renew the leases that were not renewed for a week: see ``Renewal``. Raises ``StorageError``."""
        await self._ready()
        if len(self._replication.replicas()) > 1:
            await self._renewal.run([saved.sid for saved in self._index.conversations()])

    async def status(self) -> Status:
        """What is kept, and what is not."""
        lagging = tuple(await self._context.state.lagging())
        return Status(lagging, dict(self._sender.last), self._replication.counted(), self._all_losses())

    # ---- inside

    async def _fetch(self, sid: bytes) -> None:
        """Bring a conversation from the replicas to our disk, not into memory."""
        async with self._opening:
            if await self._context.state.head(sid) is None:
                await self._load(sid, None, ask=True)

    async def _ready(self) -> None:
        """Read the index, and list the conversations that a crash left unlisted."""
        async with self._index.log.lock:
            await self._index.read()
        for local in await self._context.state.heads():
            if local.sid != INDEX_SID and not local.gone and self._index.conversation(local.sid) is None:
                conversation = await self._load(local.sid, local, ask=False)
                await self._list(conversation)

    async def _list(self, conversation: StoredConversation) -> None:
        now = int(self._context.wall())
        known = self._index.conversation(conversation.sid)
        same = known and (known.title, known.model) == (conversation.title, conversation.model)
        if known and same and now - known.updated < UPDATED_EVERY_S:
            return
        created = known.created if known else now
        await self._index.note(
            [
                SavedConversation(
                    sid=conversation.sid,
                    title=conversation.title,
                    created=created,
                    updated=max(now, known.updated + 1 if known else now),
                    model=conversation.model,
                )
            ]
        )

    def _conversation(self, sid: bytes) -> StoredConversation:
        return StoredConversation(self._keys.conversation(sid), self._context, self._committed)

    async def _committed(self, conversation: StoredConversation) -> None:
        try:
            await self._list(conversation)
        except StorageError as error:  # the commit stands; the next one updates the list
            log.warning("archive.list_not_updated", reason=str(error))
        self._sender.wake()

    async def _load(self, sid: bytes, local: LocalHead | None, *, ask: bool) -> StoredConversation:
        if local is not None and local.gone:
            raise self._forgotten(sid)
        conversation = self._conversation(sid)
        seen = Seen(())
        if ask or local is None:
            seen = await self._replication.newest(conversation.log.keys.entry_key)
            self._notice_rollback(sid, local, seen)
        shown = [link_of(entry) for entry in seen.newest_first()]
        if shown and shown[0].hash == TOMBSTONE:
            await self._mark_gone(conversation, shown[0], local)
            raise self._forgotten(sid)
        known = [local.head, *([local.acked] if local.acked else [])] if local else []
        loaded = await conversation.log.reader.load([*known, *(link for link in shown if link not in known)])
        conversation.take(loaded)
        conversation.log.at = local.head if local else None
        if local is not None and loaded.head.link == local.head:
            conversation.log.head = loaded.head
        else:
            await conversation.log.adopt(loaded.head)
            self._floors[sid] = loaded.head.link.seq
            self._sender.wake()
        await self._resolve_shown(conversation, local, shown)
        self._losses.update(dict.fromkeys(conversation.losses))
        return conversation

    async def _look(self, conversation: StoredConversation, local: LocalHead | None) -> None:
        """Ask the replicas for something newer than what is open, and merge it."""
        seen = await self._replication.newest(conversation.log.keys.entry_key)
        self._notice_rollback(conversation.sid, local, seen)
        await self._resolve_shown(conversation, local, [link_of(entry) for entry in seen.newest_first()])
        self._losses.update(dict.fromkeys(conversation.losses))

    async def _resolve_shown(
        self, conversation: StoredConversation, local: LocalHead | None, shown: Sequence[Link]
    ) -> None:
        floor = floor_of(local, self._floor(conversation.sid))
        ours = await self._context.state.ours(conversation.sid)
        for link in unknown_to(ours, shown, floor):
            try:
                await conversation.resolve(link)
            except StorageError as error:  # a full disk, say. What is here can still be read
                log.warning("archive.fork_not_resolved", reason=str(error), sid=conversation.sid.hex())
        if shown:
            self._sender.wake()

    async def _mark_gone(self, conversation: StoredConversation, link: Link, local: LocalHead | None) -> None:
        conversation.log.at = local.head if local else None
        await conversation.resolve(link)
        self._sender.wake()

    async def _resolve(self, sid: bytes, link: Link) -> bool:
        if sid == INDEX_SID:
            return await self._index.resolve(link)
        conversation = self._open.get(sid)
        local = await self._context.state.head(sid)
        if local is not None and local.gone:
            gone = self._conversation(sid)
            gone.log.at, gone.gone = local.head, True
            return await gone.resolve(link)
        if conversation is None or conversation.log.at != (local.head if local else None):
            conversation = self._open[sid] = await self._load(sid, local, ask=False)
        covered = await conversation.resolve(link)
        self._losses.update(dict.fromkeys(conversation.losses))
        return covered

    def _floor(self, sid: bytes) -> int:
        return self._floors.get(sid, 0)

    def _notice_rollback(self, sid: bytes, local: LocalHead | None, seen: Seen) -> None:
        counted = self._replication.counted()
        if local is None or local.acked is None or not seen.rolled_back(local.acked.seq, counted):
            return
        highest = seen.highest(counted)
        detail = f"replicas show revision {highest}; {local.acked.seq} was acknowledged: they lost it, or lie"
        self._losses[Loss("rollback", sid, local.acked.seq, detail)] = None

    def _all_losses(self) -> tuple[Loss, ...]:
        return tuple(dict.fromkeys([*self._losses, *self._index.losses]))

    def _forgotten(self, sid: bytes) -> ForgottenError:
        msg = f"conversation {sid.hex()[:8]} was forgotten: begin a new one"
        return ForgottenError(msg)
