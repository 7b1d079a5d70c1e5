"""Writes what is said in a conversation to the archive, in order and in the background.

No answer waits for a disk. A disk that fails is reported once, and tried again with the next piece, while the
answer goes on. Hosts and replicas are not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from p2pnode.errors import StorageError
from p2pnode.ids import ModelId
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.records import Piece, SavedSession
from p2pnode.storage.conversations.replication_state import MovedError
from p2pnode.storage.conversations.stored_conversation import StoredConversation

log = structlog.get_logger()
_TRIES: Final = 8


class ConversationWriter:
    """Writes one conversation; where ``conversation`` is None, it is made with the first piece.

    ``spawn`` starts a task of the client. ``on_trouble`` is called with the reason when something can't be
    written, and not again until it could be.
    """

    def __init__(
        self,
        archive: Archive,
        conversation: StoredConversation | None,
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
        """The number of our last turn, once another process has appended to the conversation after it."""
        self.trouble = ""
        """Why what was said last is not on our disk; empty where it is."""

    @property
    def sid(self) -> bytes | None:
        """The conversation's name: 16 bytes, once it has one."""
        return self.conversation.sid if self.conversation is not None else None

    def add(self, *pieces: Piece) -> None:
        """Write more of the conversation, in the background."""
        self._pieces += pieces
        self._spawn(self._drain)

    def paid_with(self, session: SavedSession) -> None:
        """Write a paid session, or its newer voucher: with the conversation, money is recovered too."""
        self._sessions[session.session] = session
        self._spawn(self._drain)

    async def flushed(self) -> bool:
        """Wait until all of it is on our disk. False when the disk does not take it."""
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
            except Exception:  # a bug here may lose what was to be written, but never the answer
                log.exception("conversation.failed")
                self._report("it can't be written down: run with --log-level debug and report what it says")

    def _report(self, reason: str) -> None:
        """Report trouble once, not for every piece of an answer."""
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
            except MovedError:
                # Another process of this machine was quicker: our piece comes after its pieces. An answer may
                # be under way there too, so ours must go on in our own turn only, or the two became one.
                self._ours = self.conversation.last_turn if self._ours is None else self._ours
                self.conversation = await self._archive.open(self.conversation.sid, ask=False)
            else:
                self._ours = None
                return
        msg = "other processes of this machine keep writing to this conversation"
        raise MovedError(msg)
