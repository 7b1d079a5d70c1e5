"""Exact ids from llama.cpp's frames, pure: what is recovered, what is held, what must be made again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.models.child.http import ChildGoneError, ChildRefusedError, FrameParser
from p2pnode.models.llamacpp.run import IdStream
from p2pnode.models.text import incomplete_tail
from p2pnode.models.vocabulary import Vocabulary

YOU = "你".encode()
SMILE = "🙂".encode()
PIECES = [b"", b"a", YOU[:2], YOU[2:], SMILE[:2], SMILE[2:3], SMILE[3:], b"x" + YOU[:1], YOU[1:2]]
VOCABULARY = Vocabulary(PIECES)
# The same, and a token that spells what 4 and 5 spell together cut elsewhere.
AMBIGUOUS = Vocabulary([*PIECES, SMILE[:1], SMILE[1:3]])


def token(content: str, last: int, predicted: int) -> dict[str, Any]:
    return {"content": content, "tokens": [last], "tokens_predicted": predicted, "stop": False}


def end(predicted: int, stop_type: str) -> dict[str, Any]:
    return {"content": "", "tokens": [], "tokens_predicted": predicted, "stop": True, "stop_type": stop_type}


def test_ids_missing_before_a_character_are_recovered() -> None:
    ids = IdStream(VOCABULARY)
    assert ids.take(token("a", 1, 1)) == (1,)
    assert ids.take(token("你", 3, 3)) == (2, 3)
    assert ids.take(token("🙂", 6, 6)) == (4, 5, 6)
    assert ids.take(token("x你", 3, 9)) == (7, 8, 3)
    assert ids.take(end(9, "limit")) == ()
    assert (ids.ended, ids.lost, ids.end_of_turn) == (True, 0, False)


def test_ids_that_could_be_others_are_lost_and_counted() -> None:
    ids = IdStream(AMBIGUOUS)
    assert ids.take(token("🙂", 6, 3)) == ()
    assert ids.lost == 3


@pytest.mark.parametrize(
    ("text", "last", "missing"), [("\ufffd", 3, 1), ("你", 1, 1), ("你", 3, 2), ("你", 0, 1)]
)
def test_what_cannot_be_shown_is_not_guessed(text: str, last: int, missing: int) -> None:
    assert VOCABULARY.recover(text, last, missing) is None


def test_ids_missing_at_the_very_end_are_lost() -> None:
    ids = IdStream(VOCABULARY)
    ids.take(token("a", 1, 1))
    assert ids.take(end(3, "limit")) == ()
    assert (ids.ended, ids.lost) == (True, 2)


def test_the_end_of_turn_is_dropped_and_a_silent_id_within_is_not() -> None:
    ids = IdStream(VOCABULARY)
    assert ids.take(token("", 0, 1)) == ()
    assert ids.take(token("a", 1, 2)) == (0, 1)
    assert ids.take(token("", 0, 3)) == ()
    assert ids.take(end(3, "eos")) == ()
    assert (ids.end_of_turn, ids.lost) == (True, 0)


def test_a_silent_id_that_the_budget_ended_on_is_delivered() -> None:
    ids = IdStream(VOCABULARY)
    ids.take(token("", 0, 1))
    assert ids.take(end(1, "limit")) == (0,)


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]), max_size=12))
def test_recovery_is_right_or_refused_for_any_sequence(sequence: list[int]) -> None:
    """Send frames as llama.cpp does: none while the text ends inside a character."""
    for vocabulary in (VOCABULARY, AMBIGUOUS):
        ids, got, sent, data = IdStream(vocabulary), list[int](), 0, b""
        for count, made in enumerate(sequence, 1):
            data += vocabulary.piece(made)
            if incomplete_tail(data):
                continue
            got += ids.take(token(data[sent:].decode("utf-8", "replace"), made, count))
            sent = len(data)
            if ids.lost:
                break
        assert got == sequence[: len(got)]
        if not ids.lost and not incomplete_tail(data):
            assert got == sequence


@given(st.lists(st.integers(1, 40)))
def test_frames_are_found_however_the_bytes_are_cut(cuts: list[int]) -> None:
    data = b'data: {"a": 1}\n\n: a comment\n\n:\n\ndata: {"a": "\\n"}\n\ndata: [DONE]\n\n'
    parser, frames = FrameParser(), list[dict[str, Any]]()
    while data:
        size = cuts.pop() if cuts else len(data)
        frames += parser.feed(data[:size])
        data = data[size:]
    assert frames == [{"a": 1}, {"a": "\n"}]


@given(
    st.lists(st.integers(1, 60)), st.sampled_from([b'data: {"error": {"code": 400}}', b"data: {", b"data: 7"])
)
def test_frames_before_a_bad_one_are_delivered_however_the_bytes_are_cut(cuts: list[int], bad: bytes) -> None:
    data = b'data: {"a": 1}\n\ndata: {"a": 2}\n\n' + bad + b'\n\ndata: {"a": 3}\n\n'
    parser, frames = FrameParser(), list[dict[str, Any]]()

    def feed_all() -> None:
        rest = data
        while rest:
            size = cuts.pop() if cuts else len(rest)
            frames.extend(parser.feed(rest[:size]))
            rest = rest[size:]
            parser.check()

    with pytest.raises((ChildRefusedError, ChildGoneError)):
        feed_all()
    assert frames == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("error", [b"7", b'"x"', b"[]", b"null", b'{"code": "x"}', b'{"code": [1]}'])
def test_an_error_frame_of_any_shape_is_an_error(error: bytes) -> None:
    with pytest.raises(ChildRefusedError):
        FrameParser().feed(b'data: {"error": ' + error + b"}\n\n")


def test_an_error_frame_is_an_error() -> None:
    with pytest.raises(ChildRefusedError, match="too long") as refused:
        FrameParser().feed(b'data: {"error": {"code": 400, "message": "too long", "type": "t"}}\n\n')
    assert (refused.value.status, refused.value.kind) == (400, "t")
