"""Turns of a conversation made of its pieces, and pieces numbered into turns. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from p2pnode.protocols.inference.messages import Role
from p2pnode.storage.conversations.records import PIECE_IDS_MAX, PIECE_TEXT_MAX, Finish, Piece


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: a question, or an answer with a piece for each host that gave a part of it.

    ``whole`` is False where a piece is missing: what is there must not be taken for all of it.
    """

    number: int
    role: Role
    pieces: tuple[Piece, ...] = field(repr=False)
    whole: bool = True

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(each for piece in self.pieces for each in piece.ids)

    @property
    def aside(self) -> int:
        """Bytes that it said beside its text."""
        return sum(piece.aside for piece in self.pieces)

    @property
    def finish(self) -> Finish | None:
        """How it ended; None while it has not."""
        return self.pieces[-1].finish

    @property
    def cost(self) -> int:
        """The sum of its pieces' costs, in token units."""
        return sum(piece.cost for piece in self.pieces)


def turns_of(pieces: Iterable[Piece]) -> tuple[Turn, ...]:
    """The turns, oldest first. A missing turn leaves a gap in ``number``."""
    by_turn: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_turn.setdefault(piece.turn, []).append(piece)
    return tuple(_turn(number, by_turn[number]) for number in sorted(by_turn))


def missing_turns(turns: Sequence[Turn], count: int) -> tuple[int, ...]:
    """Of ``count`` turns, the numbers of those that are not there, or not whole."""
    whole = {turn.number for turn in turns if turn.whole}
    return tuple(number for number in range(count) if number not in whole)


def numbered(new: Iterable[Piece], last: Piece | None, *, next_turn: int) -> list[Piece]:
    """The ``new`` pieces as they are recorded after ``last``.

    An assistant's piece continues its turn until one has ``finish``; any other piece is a turn of its own.
    Text and ids that are too long for one piece become several.
    """
    found: list[Piece] = []
    for piece in new:
        if last is not None and last.role == piece.role == "assistant" and last.finish is None:
            turn, part = last.turn, last.part + last.parts
        else:
            turn, part, next_turn = next_turn, 0, next_turn + 1
        for cut in _cut(piece):
            last = replace(cut, turn=turn, part=part, parts=1)
            found.append(last)
            part += 1
    return found


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces, with adjacent ones of one turn and one host joined into one."""
    found: list[Piece] = []
    for piece in pieces:
        if found and _continues(found[-1], piece):
            found[-1] = _join(found[-1], piece)
        else:
            found.append(piece)
    return found


def _turn(number: int, pieces: list[Piece]) -> Turn:
    expected, whole = 0, True
    for piece in pieces:
        whole = whole and piece.part == expected
        expected = piece.part + piece.parts
    return Turn(number, pieces[0].role, tuple(joined(pieces)), whole)


def _cut(piece: Piece) -> Iterator[Piece]:
    texts = list(_texts(piece.text)) or [""]
    ids = [piece.ids[at : at + PIECE_IDS_MAX] for at in range(0, len(piece.ids), PIECE_IDS_MAX)] or [()]
    count = max(len(texts), len(ids))
    if count == 1:
        yield replace(piece, text=texts[0])
        return
    for at in range(count):
        text = texts[at] if at < len(texts) else ""
        some = ids[at] if at < len(ids) else ()
        if at < count - 1:  # only the last piece has the counts and the end
            yield Piece(
                role=piece.role, text=text, ids=some, model=piece.model, host=piece.host,
                session=piece.session, at=piece.at,
            )  # fmt: skip
        else:
            yield replace(piece, text=text, ids=some)


def _texts(text: str) -> Iterator[str]:
    raw = text.encode(errors="replace")  # a lone surrogate has no UTF-8 form
    while raw:
        cut = raw[:PIECE_TEXT_MAX].decode(errors="ignore")
        yield cut
        raw = raw[len(cut.encode()) :]


def _continues(first: Piece, then: Piece) -> bool:
    if (first.ids and not first.text) or (then.ids and not then.text):
        return False  # ids without text stay apart: who continues the answer must know them
    return (
        (first.turn, first.role, first.part + first.parts) == (then.turn, then.role, then.part)
        and (first.host, first.model, first.session) == (then.host, then.model, then.session)
        and len(first.ids) + len(then.ids) <= PIECE_IDS_MAX
        and len(first.text.encode(errors="replace")) + len(then.text.encode(errors="replace"))
        <= PIECE_TEXT_MAX
    )


def _join(first: Piece, then: Piece) -> Piece:
    return replace(
        first,
        text=first.text + then.text,
        ids=first.ids + then.ids,
        finish=then.finish,
        wallet=then.wallet or first.wallet,
        receipt=then.receipt or first.receipt,
        tokens_in=first.tokens_in + then.tokens_in,
        reused=first.reused + then.reused,
        tokens_out=first.tokens_out + then.tokens_out,
        aside=first.aside + then.aside,
        cost=first.cost + then.cost,
        at=max(first.at, then.at),
        parts=first.parts + then.parts,
    )
