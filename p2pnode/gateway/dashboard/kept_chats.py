"""The conversations of the chat page: those of ``p2pnode chat``, sealed in the store of this data dir.

So one that was begun on the page goes on after a reload, after a restart and in ``p2pnode sessions resume``,
and one that was begun in the terminal goes on here. Where this data dir has no storage key nothing is kept:
the page then holds what was said, and sends all of it with each question.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from p2pnode.bounded import BoundedMap
from p2pnode.client.answer import Answer
from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.client import Client
from p2pnode.client.conversation import Conversation
from p2pnode.gateway.faults import FaultError
from p2pnode.gateway.turn import Turn
from p2pnode.models.catalogue import shown_name
from p2pnode.storage.conversations.turns import Turn as StoredTurn
from p2pnode.storage.keys import SID_BYTES

_HELD_MAX: Final = 32
"""Conversations that stay open between two questions."""
_LISTED_MAX: Final = 200


class KeptChats:
    """The conversations that this client keeps, for a page that names each by its id."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._held: BoundedMap[bytes, tuple[str, Conversation]] = BoundedMap(_HELD_MAX)
        """By id: the name of the model that is asked, and the conversation."""
        self._answering: set[bytes] = set()

    @property
    def why_not(self) -> str:
        """Why nothing is kept; "" where it is."""
        if self._client.conversations.are_kept:
            return ""
        if not self._client.runtime.config.save:
            return "This data dir keeps no conversations (`save` in config.toml)."
        return "There is no key here to seal it with: `p2pnode wallet new` makes one from twelve words."

    async def listed(self) -> dict[str, Any]:
        """All of them, the one that changed last first. Raises ``LocalError``."""
        if self.why_not:
            return {"why_not": self.why_not, "conversations": []}
        replicator = await self._client.conversations.replicator()
        found = await replicator.archive.conversations()
        rows = [
            {"id": each.sid.hex(), "title": each.title, "updated": each.updated}
            for each in found[:_LISTED_MAX]
        ]
        return {"why_not": "", "conversations": rows}

    async def shown(self, sid: bytes) -> dict[str, Any]:
        """What was said in one. Raises as ``Archive.open``."""
        stored = await self._client.conversations.open(sid, ask=False)
        return {
            "id": sid.hex(),
            "title": stored.title,
            "model": shown_name(stored.model) if stored.model is not None else "",
            "turns": [_turn_fields(each) for each in stored.turns],
            "losses": [loss.detail for loss in stored.losses],
        }

    async def forget(self, sid: bytes) -> None:
        """Delete it here and on its replicas. Raises as ``Archive.forget``, and ``FaultError``."""
        with self.taken(sid):
            held = self._held.pop(sid)
            if held is not None:
                await self._client.conversations.end(held[1])
            await self._client.conversations.forget(sid)

    # ---- asking

    @contextmanager
    def taken(self, sid: bytes | None) -> Iterator[None]:
        """Nobody else asks in this conversation. Raises ``FaultError`` where somebody does."""
        if sid in self._answering:
            raise FaultError(409, "conversation_in_use", "another page asks in this conversation: wait")
        taken = {sid} if sid is not None else set[bytes]()
        self._answering |= taken
        try:
            yield
        finally:
            self._answering -= taken

    async def begin(
        self, sid: bytes | None, turn: Turn, options: ChatOptions, *, go_on: bool
    ) -> tuple[Conversation, Answer]:
        """The next answer of a conversation, or of a new one, not begun. ``go_on``: the rest of the answer
        that was cut short, and the turn's question doesn't count. Raises ``P2PNodeError``."""
        system = next((each.text for each in turn.messages if each.role == "system"), None)
        if sid is None:
            new = await self._client.new_conversation(replace(options, system=system))
            return new, new.ask(turn.messages[-1].text)
        conversation = await self._conversation(sid, options)
        return conversation, conversation.go_on() if go_on else conversation.ask(turn.messages[-1].text)

    async def written(self, conversation: Conversation, model: str) -> str:
        """Wait until all that was said is on this machine's disk; why it isn't, or "". It stays open for the
        next question."""
        await conversation.wait_written()
        stored = conversation.stored
        if stored is None:
            self._let_go(conversation)
            return conversation.not_written
        before = self._held.get(stored.sid)
        gone = self._held.put(stored.sid, (model, conversation))
        for each in (before, gone[1] if gone is not None else None):
            if each is not None and each[1] is not conversation:
                self._let_go(each[1])
        return conversation.not_written

    async def _conversation(self, sid: bytes, options: ChatOptions) -> Conversation:
        held = self._held.get(sid)
        stored = await self._client.conversations.open(sid, ask=False)
        # Another process may have gone on with it: then what we hold is no longer all that was said.
        if held is not None and held[0] == options.model and held[1].stored is stored:
            held[1].change(options)
            return held[1]
        return await self._client.conversations.resume(sid, options, ask=False)

    def _let_go(self, conversation: Conversation) -> None:
        # In the background, for it is sent to replicas first, and nobody should wait for these.
        self._client.runtime.tasks.start_soon(self._client.conversations.end, conversation)


def read_sid(text: str) -> bytes:
    """The id of a conversation. Raises ``FaultError`` where it is none."""
    try:
        sid = bytes.fromhex(text)
    except ValueError:
        sid = b""
    if len(sid) != SID_BYTES:
        raise FaultError(404, "no_conversation", "there is no conversation of this id")
    return sid


def _turn_fields(turn: StoredTurn) -> dict[str, Any]:
    """A turn for the page: ``parts`` are what each host gave of it."""
    parts: list[dict[str, str]] = []
    for piece in turn.pieces:
        host = str(piece.host or "")
        if parts and (not host or parts[-1]["host"] == host):
            parts[-1]["text"] += piece.text
        else:
            parts.append({"host": host, "text": piece.text})
    return {
        "role": turn.role,
        "parts": parts,
        "whole": turn.whole,
        "finish": turn.finish,
        "tokens_in": sum(each.tokens_in for each in turn.pieces),
        "reused": sum(each.reused for each in turn.pieces),
        "tokens_out": sum(each.tokens_out for each in turn.pieces),
        "cost": turn.cost,
    }
