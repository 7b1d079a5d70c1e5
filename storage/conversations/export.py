"""A conversation as plain data for a file of the user: all of it, its lost branches, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

from p2pnode.storage.conversations.reader import BRANCHES_FOLLOWED_MAX, ConversationLostError
from p2pnode.storage.conversations.records import Link, Loss, Piece
from p2pnode.storage.conversations.stored_conversation import StoredConversation
from p2pnode.storage.conversations.turns import Turn

FORMAT: Final = "p2pnode-conversation-1"


async def exported(conversation: StoredConversation) -> dict[str, Any]:
    """The conversation for ``json.dumps``: bytes as hex, costs in token units, times in epoch seconds."""
    losses: list[Loss] = list(conversation.losses)
    branches = []
    waiting, seen = list(conversation.branches), set[Link]()
    while waiting and len(seen) < BRANCHES_FOLLOWED_MAX:
        link = waiting.pop(0)
        if link in seen:
            continue
        seen.add(link)
        try:
            turns, missing = await conversation.branch(link)
            waiting += (await conversation.log.reader.manifest(link)).branches
        except ConversationLostError as error:
            losses.append(Loss("branch", conversation.sid, link.seq, str(error)))
            continue
        losses += missing
        branches.append({"revision": link.seq, "turns": _turns(turns)})
    return {
        "format": FORMAT,
        "sid": conversation.sid.hex(),
        "title": conversation.title,
        "model": _hex(conversation.model),
        "sampling": None if conversation.sampling is None else asdict(conversation.sampling),
        "turns": _turns(conversation.turns),
        "missing_turns": list(conversation.missing),
        "branches": branches,
        "losses": [{"kind": loss.kind, "revision": loss.seq, "detail": loss.detail} for loss in losses],
    }


def _turns(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    return [
        {
            "number": turn.number,
            "role": turn.role,
            "text": turn.text,
            "whole": turn.whole,
            "finish": turn.finish,
            "parts": [_part(piece) for piece in turn.pieces],
        }
        for turn in turns
    ]


def _part(piece: Piece) -> dict[str, Any]:
    return {
        "text": piece.text,
        "ids": list(piece.ids),
        "model": _hex(piece.model),
        "host": piece.host,
        "wallet": _hex(piece.wallet),
        "session": _hex(piece.session),
        "receipt": _hex(piece.receipt),
        "tokens_in": piece.tokens_in,
        "reused": piece.reused,
        "tokens_out": piece.tokens_out,
        "cost": piece.cost,
        "at": piece.at,
    }


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
