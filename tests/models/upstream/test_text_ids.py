"""The ids of a text don't depend on how a server cuts it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import EngineError
from p2pnode.models.upstream.text_ids import Speller, TextIds
from p2pnode.models.vocabulary import Vocabulary

WORDS = [b" the", b" light", b"house", b" lighthouse", b"The", b" sea", b" ", b"e"]
VOCABULARY = Vocabulary(
    [*WORDS, *(bytes([byte]) for byte in range(256)), b""], special={"<|end|>": len(WORDS) + 256}
)
LONGEST = Speller(lambda _text: (), VOCABULARY)
"""Of a tokenizer that spells no text as it is: the longest pieces are taken."""


def spelled(ids: tuple[int, ...]) -> str:
    return b"".join(map(VOCABULARY.piece, ids)).decode()


def test_a_word_is_told_when_the_next_one_begins() -> None:
    ids = TextIds(LONGEST)
    assert ids.feed("The") == ()
    assert ids.feed(" light") == (4,)
    assert ids.feed("house ") == ()
    assert ids.feed("e") == (3,)
    assert spelled(ids.finish()) == " e"
    assert ids.finish() == ()


@given(st.text(alphabet="ab 1\n.é🙂", max_size=40), st.lists(st.integers(1, 5), max_size=40))
def test_however_a_text_is_cut_its_ids_are_the_same(text: str, sizes: list[int]) -> None:
    whole, parts = TextIds(LONGEST), TextIds(LONGEST)
    expected = whole.feed(text) + whole.finish()
    found: tuple[int, ...] = ()
    rest = text
    for size in sizes:
        found += parts.feed(rest[:size])
        rest = rest[size:]
    found += parts.feed(rest) + parts.finish()
    assert found == expected
    assert spelled(found) == text


def test_a_text_without_blanks_is_not_held_for_ever() -> None:
    ids = TextIds(LONGEST)
    told = sum(len(ids.feed("\u6d77")) for _ in range(200))
    assert told >= 300


def test_what_a_tokenizer_adds_is_not_billed() -> None:
    # As tokenizers do that put a blank before every text.
    adds = Speller(lambda text: (6, *range(len(WORDS), len(WORDS) + len(text))), VOCABULARY)
    assert spelled(adds.ids("The sea")) == "The sea"
    assert adds.ids("The sea") == (4, 5)


def test_a_text_that_the_vocabulary_can_not_spell_is_an_error() -> None:
    small = Speller(lambda _text: (), Vocabulary([b"a", b"b"]))
    assert small.ids("ab") == (0, 1)
    with pytest.raises(EngineError, match="can't spell"):
        small.ids("abc")
    assert (small.id_of(b"b"), small.id_of(b"c")) == (1, None)
