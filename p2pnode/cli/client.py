"""How conversations are shown to people and to scripts: for ``ask``, ``chat`` and ``p2pnode sessions``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from p2pnode.words import count_of, one_line

if TYPE_CHECKING:
    from p2pnode.node.datadir import DataDir
    from p2pnode.storage.conversations.records import Loss, SavedConversation
    from p2pnode.storage.conversations.turns import Turn

HERE_ONLY: Final = (
    "No other node keeps copies for you yet, so they are lost if this machine is. To have copies, run "
    "`p2pnode join --client-only --store-for OWNER` on another machine (`p2pnode wallet show` here prints "
    "your owner key), and give that node's invite here with --store"
)
"""For who has no replicas: no failure, but something to know once."""
SHORT: Final = 8
"""Digits of an id that people are shown; any beginning that is one conversation's alone is taken."""


def words_of(name: str, fields: Mapping[str, Any]) -> str:
    """What a client tells of keeping a conversation."""
    if name == "conversation.not_kept":
        return f"[not kept: {one_line(str(fields['reason']))}]"
    short = str(fields["conversation"])[:SHORT]
    if name == "conversation.moved":
        text = f"conversation {short} went on elsewhere meanwhile: this goes on from there"
        if fields["branched"]:
            text += f"; what was said here is kept as a branch (`p2pnode sessions show {short} --branch 1`)"
        return f"[{text}]"
    count, waiting, weak = fields["replicas"], fields["waiting"], fields["weak"]
    where = f"here and on {count_of(count, 'other node')}" if count else "on this machine"
    text = f"conversation {short} is {'deleted' if fields['gone'] else 'kept'} {where}"
    if fields["cut"]:
        text = f"what was said last in conversation {short} is not kept; the rest is, {where}"
    if waiting and waiting != weak:
        text += f"; copies go out with a later command: {waiting}"
    elif fields["gone"] and waiting:
        text += "; a later command deletes it on its replicas"
    elif not count:
        text += f". {HERE_ONLY}"
    return f"[{text}]"


class ToldOfKeeping:
    """What this data dir's user was told last of where conversations are kept: the same again is no news."""

    def __init__(self, data: DataDir) -> None:
        self._path = data.told

    def is_news(self, fields: Mapping[str, Any]) -> bool:
        """Whether ``conversation.kept`` is to be told to people; then it is noted as told."""
        from p2pnode.errors import ConfigError
        from p2pnode.files import write_atomic

        if fields["cut"] or fields["gone"]:
            return True
        waits = fields["waiting"] and fields["waiting"] != fields["weak"]
        state = "waiting" if waits else "elsewhere" if fields["replicas"] else "here"
        if state == self._last():
            return False
        with suppress(ConfigError):  # then it is said once more
            write_atomic(self._path, json.dumps({"keeping": state}).encode())
        return True

    @property
    def here_only(self) -> bool:
        """Whether no other node had a copy when that was looked at last."""
        return self._last() == "here"

    def _last(self) -> str:
        try:
            return str(json.loads(self._path.read_bytes())["keeping"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def conversation_fields(saved: SavedConversation) -> dict[str, Any]:
    """One of the list."""
    from p2pnode.models.manifest import model_id_text

    return {
        "conversation": saved.sid.hex(),
        "title": saved.title,
        "created": saved.created,
        "updated": saved.updated,
        "model": model_id_text(saved.model) if saved.model is not None else None,
    }


def conversation_row(saved: SavedConversation) -> list[str]:
    """The same for people."""
    return [saved.sid.hex()[:SHORT], moment(saved.updated), saved.title]


def turn_fields(turn: Turn) -> dict[str, Any]:
    """A turn for scripts; ``hosts`` gave a part of it each."""
    return {
        "role": turn.role,
        "text": turn.text,
        "finish": turn.finish,
        "whole": turn.whole,
        "tokens": len(turn.ids),
        "cost": turn.cost,
        "hosts": list(dict.fromkeys(piece.host for piece in turn.pieces if piece.host is not None)),
    }


def turn_lines(turns: Iterable[Turn]) -> str:
    """Turns for people."""
    shown = []
    for turn in turns:
        cut = "" if turn.role != "assistant" or turn.finish else " (cut short)"
        gap = "" if turn.whole else " (a part of it is missing)"
        shown.append(f"{turn.role}{cut}{gap}:\n{turn.text}")
    return "\n\n".join(shown)


def loss_fields(loss: Loss) -> dict[str, Any]:
    """What is missing, for scripts."""
    return {"kind": loss.kind, "conversation": loss.sid.hex(), "revision": loss.seq, "detail": loss.detail}


def loss_words(loss: Loss) -> str:
    """What is missing, for people."""
    return f"[missing in {loss.sid.hex()[:SHORT]}: {one_line(loss.detail)}]"


def moment(epoch: int) -> str:
    """A time for people, in UTC."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M}"
