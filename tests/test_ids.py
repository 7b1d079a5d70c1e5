"""Ids as people paste them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import pasted


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"])), st.integers(1, 9))
def test_what_a_window_broke_into_lines_is_whole_again(text: str, width: int) -> None:
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    for between in ("\n", "\r\n  ", " ", "\u00a0", "\u200b"):
        assert pasted(between + between.join(lines) + between) == text


def test_nothing_else_is_taken_away() -> None:
    assert pasted("0xAbC-_/+=") == "0xAbC-_/+="
