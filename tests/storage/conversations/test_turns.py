"""Pieces become turns, and pieces are numbered into turns."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.storage.conversations.records import (
    Piece,
)
from p2pnode.storage.conversations.turns import joined, missing_turns, numbered, turns_of
from tests.storage.conversations.pieces import PIECES


def all_numbered(pieces: list[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        found += numbered([piece], last, next_turn=last.turn + 1 if last else 0)
    return found


@given(PIECES)
def test_joining_changes_nothing_of_what_is_shown(pieces: list[Piece]) -> None:
    records = all_numbered(pieces)
    turns = turns_of(records)
    assert turns_of(joined(records)) == turns
    assert turns_of(joined([*joined(records[:7]), *joined(records[7:])])) == turns
    assert "".join(turn.text for turn in turns) == "".join(piece.text for piece in pieces)
    assert [each for turn in turns for each in turn.ids] == [each for piece in pieces for each in piece.ids]
    assert sum(turn.cost for turn in turns) == sum(piece.cost for piece in pieces)
    assert all(turn.whole for turn in turns)
    assert missing_turns(turns, len(turns)) == ()


@given(PIECES, st.data())
def test_a_piece_that_is_missing_between_others_is_never_joined_over(
    pieces: list[Piece], data: st.DataObject
) -> None:
    records = all_numbered([replace(piece, role="assistant", finish=None) for piece in pieces])
    if len(records) < 3:
        return
    lost = data.draw(st.integers(0, len(records) - 2))
    (turn,) = turns_of([*records[:lost], *records[lost + 1 :]])
    assert not turn.whole
    assert missing_turns([turn], 1) == (0,)
