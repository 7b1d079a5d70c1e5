"""What is said goes to the archive in order, behind the reader's back: no answer waits for a disk.

A disk that takes nothing costs an event and is tried again with the next piece; the answer goes on. It knows
neither hosts nor replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
import trio

from p2pnode.errors import StorageError
from p2pnode.ids import ModelId
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.storage.conversations.records import Piece, SavedSession
from p2pnode.storage.conversations.replication_state import MovedError

if TYPE_CHECKING:
    from p2pnode.storage.conversations.archive import Archive
    from p2pnode.storage.conversations.conversation import Conversation

log = structlog.get_logger()
_TRIES: Final = 8


class ConversationWriter:
    """Of one conversation; ``conversation`` is made with the first piece where there is none yet.

    ``spawn`` starts a task of the client's; ``on_trouble`` hears why something could not be kept, once until
    it can.
    """

    def __init__(
        self,
        archive: Archive,
        conversation: Conversation | None,
        *,
        model: ModelId,
        sampling: SamplingParams,
        spawn: Callable[..., None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._archive, self.conversation = archive, conversation
        self._model, self._sampling = model, sampling
        self._spawn, self._on_trouble = spawn, on_trouble
        self._pieces: list[Piece] = []
        self._sessions: dict[bytes, SavedSession] = {}
        self._lock = trio.Lock()
        self._ours: int | None = None
        """The turn that we spoke in last, once another process spoke after us."""
        self.trouble = ""
        """Why what was said last is not on our disk."""

    @property
    def sid(self) -> bytes | None:
        """16 bytes, once it has a name."""
        return self.conversation.sid if self.conversation is not None else None

    def add(self, *pieces: Piece) -> None:
        """More was said."""
        self._pieces += pieces
        self._spawn(self._drain)

    def paid_with(self, session: SavedSession) -> None:
        """A paid session, or its newer voucher: money is to be recovered with the conversation."""
        self._sessions[session.session] = session
        self._spawn(self._drain)

    async def flushed(self) -> bool:
        """Wait until all of it is on our disk; False when the disk does not take it."""
        await self._drain()
        return not (self._pieces or self._sessions)

    async def _drain(self) -> None:
        async with self._lock:
            try:
                while self._pieces or self._sessions:
                    await self._drain_some()
                self.trouble = ""
            except StorageError as error:
                self._report(str(error))
            except Exception:  # a bug in keeping costs what was to be kept, never the answer
                log.exception("conversation.failed")
                self._report("it can't be written down: run with --log-level debug and report what it says")

    def _report(self, reason: str) -> None:
        """Once, not for every piece of an answer."""
        if not self.trouble:
            log.warning("conversation.not_kept", reason=reason)
            self._on_trouble(reason)
        self.trouble = reason

    async def _drain_some(self) -> None:
        if self._pieces:
            pieces = tuple(self._pieces)
            await self._append(pieces)
            del self._pieces[: len(pieces)]
        for name, session in list(self._sessions.items()):
            await self._archive.save_session(session)
            if self._sessions[name] is session:
                del self._sessions[name]

    async def _append(self, pieces: tuple[Piece, ...]) -> None:
        if self.conversation is None:
            title = next((piece.text for piece in pieces if piece.role == "user"), "")
            self.conversation = await self._archive.new(
                title=title, model=self._model, sampling=self._sampling
            )
        for _ in range(_TRIES):
            try:
                await self.conversation.append(*pieces, goes_on=self._ours)
            except MovedError:  # another process of this machine was quicker: say it after that
                # Its answer may be under way too: the two must not become one.
                self._ours = self.conversation.last_turn if self._ours is None else self._ours
                self.conversation = await self._archive.open(self.conversation.sid, ask=False)
            else:
                self._ours = None
                return
        msg = "other processes of this machine keep writing to this conversation"
        raise MovedError(msg)
