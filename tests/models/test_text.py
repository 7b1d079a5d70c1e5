"""TextAssembler: ids and text that always agree, stop strings that never show."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.models.text import TextAssembler, incomplete_tail

ALPHABET = "ab 你🙂é\n"
TEXTS = st.text(ALPHABET, max_size=30)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """``data`` in pieces of the given sizes, over and over; a size of 0 is a silent token."""
    pieces: list[bytes] = []
    at = 0
    for size in itertools.cycle([*sizes, 1]):
        if at >= len(data):
            return pieces
        pieces.append(data[at : at + size])
        at += size
    raise AssertionError


def run(pieces: list[bytes], stop: tuple[str, ...] = (), before: bytes = b"") -> tuple[list[int], str, bool]:
    assembler = TextAssembler(pieces.__getitem__, stop, before=before)
    ids: list[int] = []
    text = ""
    for token in range(len(pieces)):
        released = assembler.feed((token,))
        ids += released.ids
        text += released.text
        # Whoever cancels here holds ids and text that agree, up to characters that began before.
        if not released.stopped:
            assert (before + b"".join(pieces[i] for i in ids)).decode("utf-8", "replace") == text
        if released.stopped:
            return ids, text, True
    released = assembler.finish(complete=True)
    return [*ids, *released.ids], text + released.text, False


@given(TEXTS, st.lists(st.integers(0, 5), max_size=5))
def test_every_id_is_released_once_in_order_with_all_of_the_text(text: str, sizes: list[int]) -> None:
    pieces = cut(text.encode(), sizes)
    assert run(pieces) == (list(range(len(pieces))), text, False)


@given(TEXTS, st.lists(st.integers(0, 5), max_size=5), st.lists(st.text(ALPHABET, min_size=1, max_size=4)))
def test_text_ends_where_the_first_stop_string_begins(text: str, sizes: list[int], stop: list[str]) -> None:
    pieces = cut(text.encode(), sizes)
    ids, shown, stopped = run(pieces, tuple(stop))
    hits = [at for s in stop if (at := text.find(s)) >= 0]
    assert stopped == bool(hits)
    if not hits:
        assert (ids, shown) == (list(range(len(pieces))), text)
        return
    # Another stop may begin earlier and end later than the one that was complete first: shown is then shorter
    # than what was complete, never longer than the first that ended.
    first_to_end = min((text.find(s) + len(s), text.find(s)) for s in stop if s in text)
    assert text.startswith(shown)
    assert not any(s in shown for s in stop)
    assert len(shown) <= first_to_end[1]
    assert ids == list(range(len(ids)))
    assert b"".join(pieces[i] for i in ids).startswith(shown.encode())


@given(
    TEXTS,
    st.lists(st.integers(0, 5), max_size=5),
    st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=2),
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_wherever_an_answer_is_cut_what_is_held_and_what_follows_are_the_whole(
    text: str, sizes: list[int], stop: list[str], bulks: list[int], at_frame: tuple[int, int]
) -> None:
    """A host dies after some frames, the last of which was sent in part: its first ids, without text.

    Not after the frame that a stop string ended: the turn's end comes with it.
    """
    frames, split = at_frame
    pieces = cut(text.encode(), sizes)
    whole = run(pieces, tuple(stop))
    first = TextAssembler(pieces.__getitem__, tuple(stop))
    sent = []
    at = 0
    for bulk in itertools.cycle(bulks):
        if at >= len(pieces) or first.stopped:
            break
        sent.append(first.feed(range(at, min(at + bulk, len(pieces)))))
        at += bulk
    frames = min(frames, len(sent) - first.stopped)
    ids = [token for each in sent[:frames] for token in each.ids]
    shown = "".join(each.text for each in sent[:frames])
    # As a client counts: text tells every id that came with it or before.
    with_text = [index for index, each in enumerate(sent[:frames]) if each.text]
    known = sum(len(each.ids) for each in sent[: with_text[-1] + 1]) if with_text else 0
    if frames < len(sent):
        ids += sent[frames].ids[:split]

    before = incomplete_tail(b"".join(pieces[i] for i in ids[:known]))
    second = TextAssembler(pieces.__getitem__, tuple(stop), before=before)
    more = [second.release_pending(ids[known:])]
    for token in range(len(ids), len(pieces)):
        if second.stopped:
            break
        more.append(second.feed((token,)))
    if not second.stopped:
        more.append(second.finish(complete=True))
    again = [*ids, *(token for each in more for token in each.ids)]
    assert shown + "".join(each.text for each in more) == whole[1]
    assert second.stopped == whole[2]
    assert again == whole[0]


def test_what_may_become_a_stop_string_is_held_back_and_released_when_it_does_not() -> None:
    pieces = [b"one", b" \n", b"\n", b"two"]
    assembler = TextAssembler(pieces.__getitem__, ("\n\n\n",))
    assert assembler.feed((0,)).ids == (0,)
    assert assembler.feed((1,)).ids == ()
    assert assembler.feed((2,)).ids == ()
    released = assembler.feed((3,))
    assert (released.ids, released.text, released.stopped) == ((1, 2, 3), " \n\ntwo", False)


def test_an_id_that_begins_before_the_stop_string_is_released_and_one_inside_it_is_not() -> None:
    assembler = TextAssembler([b"is", b" Par", b"is!"].__getitem__, ("Paris",))
    released = assembler.feed((0, 1, 2))
    assert (released.ids, released.text, released.stopped) == ((0, 1), "is ", True)


def test_a_budget_that_ends_inside_a_character_delivers_the_id_without_text() -> None:
    assembler = TextAssembler(["你".encode()[:2]].__getitem__)
    assert assembler.feed((0,)).ids == ()
    released = assembler.finish(complete=False)
    assert (released.ids, released.text) == ((0,), "")


def test_a_continuation_completes_the_character_its_prompt_ends_in() -> None:
    head, tail = "你".encode()[:2], "你".encode()[2:]
    assert run([tail, b"!"], before=incomplete_tail(b"x" + head))[1] == "你!"


def test_invalid_bytes_show_as_replacement_characters_and_lose_no_id() -> None:
    assert run([b"a", b"\xff", b"\x80", b"b"]) == ([0, 1, 2, 3], "a\ufffd\ufffdb", False)


@given(TEXTS, st.integers(0, 3))
def test_the_incomplete_tail_is_what_a_cut_leaves_of_the_last_character(text: str, back: int) -> None:
    data = (text + "🙂").encode()
    whole = data[: len(data) - back]
    expected = "🙂".encode()[: 4 - back] if back else b""
    assert incomplete_tail(whole) == expected
