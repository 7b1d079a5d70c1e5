"""Grammars: what they allow, what is left of them after a part of a text, and that they stay small."""

from __future__ import annotations

import json
from random import Random

import pytest

from p2pnode.models.grammar import PLACES_MAX, Grammar, GrammarError, Matcher, Rule, letters, spell


def word() -> Grammar:
    """``ab``, or ``a`` and digits in brackets."""
    grammar = Grammar()
    grammar.set("root", ("ab",), ("a[", grammar.many(letters("09")), "]"))
    return grammar


@pytest.mark.parametrize(
    ("text", "fits", "may_end"),
    [("", True, False), ("a", True, False), ("ab", True, True), ("a[12", True, False), ("a[12]", True, True),
     ("b", False, False), ("abc", False, False), ("a[x", False, False)],
)  # fmt: skip
def test_a_text_fits_a_grammar_or_does_not(text: str, fits: bool, may_end: bool) -> None:
    matcher = Matcher(word())
    assert matcher.feed(text) == fits
    assert (matcher.fits, matcher.may_end) == (fits, may_end)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_of_a_grammar_allows_exactly_the_rest(seed: int) -> None:
    rng = Random(seed)
    text = "".join(spell(word(), rng.randrange, bytes_max=20))
    for cut in range(len(text) + 1):
        begun = Matcher(word())
        begun.feed(text[:cut])
        rest = Matcher(begun.rest())
        assert rest.may_end == begun.may_end
        for more in ("b", "[", "]", "1", "a", "x"):
            again, left = Matcher(word()), Matcher(begun.rest())
            again.feed(text[:cut])
            assert again.feed(more) == left.feed(more)
        assert rest.feed(text[cut:])
        assert rest.may_end


def test_nothing_is_left_of_a_text_that_does_not_fit() -> None:
    matcher = Matcher(word())
    matcher.feed("x")
    with pytest.raises(GrammarError, match="none of the grammar"):
        matcher.rest()


def test_a_grammar_crosses_to_another_process_unchanged() -> None:
    grammar = word()
    assert Grammar.of_plain(json.loads(json.dumps(grammar.plain()))).rules == grammar.rules


def test_a_packed_grammar_is_the_same_and_counts_what_it_holds() -> None:
    grammar = word()
    packed = grammar.packed()
    assert packed.unpacked().rules == grammar.rules == grammar.unpacked().rules
    assert packed.gbnf() == grammar.gbnf()
    assert packed.held_bytes == len((packed.rules + packed.notation).encode())


def test_the_notation_is_llama_cpps() -> None:
    grammar = Grammar()
    grammar.set("root", ('"\n', letters("az", "-", "]", negated=True), Rule("end")))
    grammar.set("end", ("é",), ())
    assert grammar.gbnf() == 'root ::= "\\"\\x0A" [^a-z\\x2D\\x5D] end\nend ::= "\\xE9" | ""'


def test_repeating_is_counted() -> None:
    grammar = Grammar()
    grammar.set("root", (*grammar.repeat("x", 2, 4), "."))
    told = [Matcher(grammar).feed("x" * count + ".") for count in range(6)]
    assert told == [False, False, True, True, True, False]


def test_a_grammar_that_explodes_is_noticed_where_it_does() -> None:
    many = Grammar()
    many.set("root", *[("a" + "b" * count,) for count in range(PLACES_MAX + 1)])
    with pytest.raises(GrammarError, match=f"more than {PLACES_MAX} places"):
        Matcher(many)
    left = Grammar()
    left.set("root", (Rule("root"), "x"), ("y",))
    with pytest.raises(GrammarError):
        Matcher(left)
