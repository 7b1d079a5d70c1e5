"""Numbers in sentences."""

from __future__ import annotations

import pytest

from p2pnode.words import count_of, ended_words


@pytest.mark.parametrize(("count", "words"), [(0, "0 nodes"), (1, "1 node"), (2, "2 nodes")])
def test_one_is_singular_and_any_other_number_plural(count: int, words: str) -> None:
    assert count_of(count, "node") == words


def test_a_word_may_have_a_plural_of_its_own() -> None:
    assert (count_of(1, "address", "addresses"), count_of(2, "address", "addresses")) == (
        "1 address",
        "2 addresses",
    )


@pytest.mark.parametrize(
    ("reason", "words"),
    [("length", "reached the limit of tokens"), ("stop", "ended by itself"), ("bad_request", "bad request")],
)
def test_how_an_answer_ended_is_told_in_words(reason: str, words: str) -> None:
    assert ended_words(reason) == words
