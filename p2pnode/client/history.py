"""What was said in a conversation, and what of it goes into the next prompt. Pure.

A question that got no answer and was asked again, and an answer that was asked for again, stay in the
history and leave the prompt. It knows neither hosts nor where a conversation is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pnode.client.partial import Held
from p2pnode.protocols.inference.messages import Role
from p2pnode.storage.conversations.turns import Turn


@dataclass(slots=True)
class Line:
    """One turn. ``told`` of an answer's ``ids`` have their text; ``over`` is False while more may come."""

    role: Role
    text: str = field(default="", repr=False)
    ids: list[int] = field(default_factory=list, repr=False)
    told: int = 0
    over: bool = True

    @property
    def held(self) -> Held:
        """What an answer goes on from."""
        return Held(tuple(self.ids), self.text, self.told)


def lines_of(turns: Iterable[Turn]) -> list[Line]:
    """Turns that were kept. A question that got no answer waits for it, as one that was cut short at once."""
    lines = [_line(turn) for turn in turns]
    if lines and lines[-1].role == "user":
        lines.append(Line("assistant", over=False))
    return lines


def _line(turn: Turn) -> Line:
    told = count = 0
    for piece in turn.pieces:
        count += len(piece.ids)
        told = count if piece.text else told
    over = turn.role != "assistant" or turn.finish is not None
    return Line(turn.role, turn.text, list(turn.ids), told, over)


def prompt_of(lines: Sequence[Line]) -> list[dict[str, str]]:
    """Messages for a host: of lines of one role in a row, the last. An answer without text says nothing."""
    said = [line for line in lines if line.text or line.role != "assistant"]
    kept = [
        line
        for at, line in enumerate(said)
        if line.role == "system" or at + 1 == len(said) or said[at + 1].role != line.role
    ]
    return [{"role": line.role, "content": line.text} for line in kept]


def unfinished(lines: Sequence[Line]) -> Line | None:
    """The answer that was cut short, if it is the last thing said."""
    last = lines[-1] if lines else None
    return last if last is not None and last.role == "assistant" and not last.over else None
