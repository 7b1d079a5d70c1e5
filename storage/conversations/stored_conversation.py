"""One open conversation: its turns in memory, each new piece on our disk before ``append`` returns.

When another machine of the user went on with it at the same time, there are two branches. One wins, the other
is kept on record. This fork is resolved between turns, never in the middle of one: a question and the answer
that is being given to it stay together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from p2pnode.errors import P2PNodeError, ProtocolError
from p2pnode.ids import ModelId
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.protocols.wire import decode_record, encode
from p2pnode.storage.conversations.merge import next_step
from p2pnode.storage.conversations.reader import Loaded
from p2pnode.storage.conversations.records import (
    TOMBSTONE,
    ArchiveError,
    Head,
    Link,
    Loss,
    Manifest,
    Piece,
    title_of,
)
from p2pnode.storage.conversations.sealed_log import LogContext, SealedLog
from p2pnode.storage.conversations.turns import Turn, joined, missing_turns, numbered, turns_of
from p2pnode.storage.keys import LogKeys

log = structlog.get_logger()


class ForgottenError(ArchiveError):
    """The user has forgotten the conversation, here or on another machine."""


class StoredConversation:
    """One open conversation. ``Archive.new`` and ``Archive.open`` make it."""

    def __init__(
        self, keys: LogKeys, context: LogContext, on_commit: Callable[[StoredConversation], Awaitable[None]]
    ) -> None:
        self.log = SealedLog(keys, context, _join)
        self._on_commit = on_commit
        self._pieces: list[Piece] = []
        self._waiting: Link | None = None
        self._in_turn = False
        self._unread: dict[Link, None] = {}
        self.losses: tuple[Loss, ...] = ()
        """What should be there, and could not be read."""
        self.moved = False
        """Since it was opened, another machine's branch took the place of ours: see ``branches``."""
        self.gone = False

    @property
    def sid(self) -> bytes:
        """Its name: 16 bytes."""
        return self.log.keys.sid

    @property
    def title(self) -> str:
        return self._manifest.title

    @property
    def model(self) -> ModelId | None:
        return self._manifest.model

    @property
    def sampling(self) -> SamplingParams | None:
        return self._manifest.sampling

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns, oldest first. One that could not be read leaves a gap, or isn't ``whole``."""
        return turns_of(self._pieces)

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the turns that once were there and are missing, or are not whole."""
        return missing_turns(self.turns, self._manifest.turns)

    @property
    def branches(self) -> tuple[Link, ...]:
        """The branches that lost; :meth:`branch` reads one."""
        return self._manifest.branches

    @property
    def head(self) -> Link | None:
        """The newest commit."""
        return self.log.head.link if self.log.head else None

    @property
    def last_turn(self) -> int | None:
        """The number of the turn that the newest piece belongs to."""
        return self._pieces[-1].turn if self._pieces else None

    async def append(self, *pieces: Piece, goes_on: int | None = None) -> Link:
        """Record new text, durable on our disk when it returns; replicas get it in the background.

        A piece of an answer continues the unfinished turn; where ``goes_on`` is given, only the turn of that
        number. Raises ``ForgottenError``, ``MovedError``, ``ConversationFullError``, ``DiskFullError``,
        ``QuotaError`` and other ``StorageError``s: nothing was recorded then, and it may be tried again.
        """
        if not pieces:
            msg = "append takes at least one piece"
            raise ValueError(msg)
        async with self.log.lock:
            if self._waiting and pieces[0].role != "assistant":
                await self._resolve_waiting()
            if self.gone:
                msg = "this conversation was forgotten: begin a new one"
                raise ForgottenError(msg)
            turns = self._manifest.turns
            last = self._pieces[-1] if self._pieces and self._pieces[-1].turn == turns - 1 else None
            if last is not None and goes_on not in (None, last.turn):
                last = None
            new = numbered(pieces, last, next_turn=turns)
            head = await self._commit([encode(piece) for piece in new], turns=max(turns, new[-1].turn + 1))
            self._pieces += new
            self._in_turn = new[-1].role != "assistant" or new[-1].finish is None
            if self._waiting and not self._in_turn:
                await self._resolve_waiting()
        await self._on_commit(self)
        return head.link

    async def change(
        self,
        *,
        title: str | None = None,
        model: ModelId | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        """Change its title, model or sampling. Raises as :meth:`append`."""
        wanted: dict[str, Any] = {
            "title": None if title is None else title_of(title),
            "model": model,
            "sampling": sampling,
        }
        async with self.log.lock:
            await self._commit(**{key: value for key, value in wanted.items() if value is not None})
        await self._on_commit(self)

    async def branch(self, link: Link) -> tuple[tuple[Turn, ...], tuple[Loss, ...]]:
        """The turns of a branch that lost, and what is missing of it. Raises ``ConversationLostError``."""
        loaded = await self.log.reader.load([link])
        pieces, losses = self._parse(loaded)
        return turns_of(pieces), (*loaded.losses, *losses)

    # ---- for the archive

    def take(self, loaded: Loaded) -> None:
        """Replace the turns in memory by what was read."""
        self._pieces, losses = self._parse(loaded)
        for loss in (*loaded.losses, *losses):
            self.report_loss(loss)

    def report_loss(self, loss: Loss) -> None:
        """Add a loss to ``losses`` and log it, once."""
        if loss not in self.losses:
            self.losses = (*self.losses, loss)
            log.warning("archive.loss", kind=loss.kind, revision=loss.seq, sid=self.sid.hex())

    async def resolve(self, link: Link) -> bool:
        """Resolve the fork with another machine's ``link``. Returns whether our head covers it now.

        In the middle of a turn it does not yet. Raises ``StorageError`` when the outcome can't be committed.
        """
        async with self.log.lock:
            return await self._resolve(link)

    async def _resolve(self, link: Link) -> bool:
        if self.gone or link.hash == TOMBSTONE:
            if not (self.gone and link.hash == TOMBSTONE):
                await self.log.bury(link.seq)
                self.gone, self._pieces = True, []
            return True
        ours = self.log.head
        found = await self.log.reader.compare(ours, link)
        match next_step(found.relation, ours.link if ours else None, link, in_turn=self._in_turn):
            case "nothing":
                pass
            case "note it unread":
                self.report_loss(
                    Loss("manifest", self.sid, link.seq, f"another branch can't be read: {found.why}")
                )
                self._unread[link] = None
                if self.log.wrote_head:
                    # Our head must get a higher revision than theirs, or no replica takes it. Where the head
                    # isn't ours, our next commit does that.
                    await self._commit()
                return not self._unread
            case "keep ours":
                await self.log.commit(branches=[found.other] if found.other else [])
            case "wait":
                self._waiting = link
                return False
            case "follow":
                await self._go_over(link, None)
            case "rebase":
                await self._go_over(link, ours)
        return True

    async def _commit(self, records: Sequence[bytes] = (), **changes: Any) -> Head:
        head = await self.log.commit(records, branches=list(self._unread), **changes)
        self._unread.clear()
        return head

    async def _go_over(self, link: Link, lost: Head | None) -> None:
        loaded = await self.log.reader.load([link])
        if lost is None:
            await self.log.adopt(loaded.head)
        else:
            await self.log.commit(onto=loaded.head, branches=[lost])
        self.take(loaded)
        self.moved = True

    async def _resolve_waiting(self) -> None:
        link, self._waiting, self._in_turn = self._waiting, None, False
        if link is None:
            return
        try:
            await self._resolve(link)
        except P2PNodeError as error:  # the next write of the pointer meets it again
            log.warning("archive.fork_not_resolved", reason=str(error), sid=self.sid.hex())

    def _parse(self, loaded: Loaded) -> tuple[list[Piece], list[Loss]]:
        pieces: list[Piece] = []
        losses: list[Loss] = []
        for raw in loaded.records:
            try:
                pieces.append(decode_record(Piece, raw))
            except ProtocolError as error:
                losses.append(Loss("segment", self.sid, loaded.head.link.seq, f"a record: {error}"))
        return pieces, losses

    @property
    def _manifest(self) -> Manifest:
        return self.log.head.manifest if self.log.head else Manifest(seq=0, writer=bytes(8))


def _join(records: list[bytes]) -> list[bytes]:
    pieces: Sequence[Piece] = [decode_record(Piece, record) for record in records]
    return [encode(piece) for piece in joined(pieces)]
