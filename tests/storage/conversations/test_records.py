"""Records are read as they were written, and bounded; manifests tell descent from a fork."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.wire import decode_record, encode
from p2pnode.storage.conversations.merge import (
    parse_index,
)
from p2pnode.storage.conversations.records import (
    TITLE_MAX,
    Manifest,
    Piece,
    WriterSeq,
    title_of,
)
from tests.storage.conversations.pieces import PIECES


@given(PIECES)
def test_a_piece_is_read_as_it_was_written(pieces: list[Piece]) -> None:
    for piece in pieces:
        assert decode_record(Piece, encode(piece)) == piece


@given(st.binary(max_size=200))
def test_rubbish_is_no_record(data: bytes) -> None:
    for cls in (Piece, Manifest):
        with pytest.raises(ProtocolError):
            decode_record(cls, data)
    with pytest.raises(ProtocolError):
        parse_index(data)


def test_descent_is_told_from_a_fork_by_the_writers() -> None:
    one, two = b"1" * 8, b"2" * 8
    first = Manifest(seq=3, writer=one, writers=(WriterSeq(writer=one, seq=3),))
    onto = Manifest(seq=4, writer=two, writers=(WriterSeq(writer=two, seq=4), WriterSeq(writer=one, seq=3)))
    fork = Manifest(seq=4, writer=one, writers=(WriterSeq(writer=one, seq=4),))
    assert onto.builds_on(first)
    assert onto.builds_on(onto)
    assert not first.builds_on(onto)
    assert not onto.builds_on(fork)
    assert not fork.builds_on(onto)


def test_a_title_is_one_line_cut_at_a_character() -> None:
    assert title_of("  a\n b ") == "a b"
    assert len(title_of("é" * 100).encode()) <= TITLE_MAX
    assert title_of("é" * 100) == "é" * 64


def test_a_model_and_a_session_have_32_bytes() -> None:
    good = Piece(role="user", model=ModelId(bytes(32)), session=SessionId(bytes(32)))
    assert decode_record(Piece, encode(good)) == good
    with pytest.raises(ProtocolError):
        decode_record(Piece, encode(replace(good, model=ModelId(bytes(31)))))
