"""Tokens that a grammar allows, against the plain way: try the text of each one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.models.grammar import Grammar, GrammarError, Matcher, Rule, letters
from p2pnode.models.json_schema import add_object, add_schema
from p2pnode.models.token_mask import TokenMask, TokenTable

WORDS = [
    "{",
    "}",
    '"',
    '{"',
    '":',
    '": ',
    ",",
    "a",
    "b",
    "sea",
    "land",
    "1",
    "23",
    "-",
    ".",
    "true",
    "\\",
    "\n",
    "é",
    "é🙂",
    "🙂",
]
BYTES = [bytes([byte]) for byte in range(256)]
PIECES = [
    b"",
    *BYTES,
    *(word.encode() for word in WORDS if len(word.encode()) > 1),
    "🙂".encode()[:2],
    b'a"' + "é".encode()[:1],
]
TABLE = TokenTable(PIECES, ends=[0])
SCHEMAS = [
    '{"type":"object","properties":{"n":{"type":"integer"},"kind":{"enum":["sea","land"]}},"required":["n","kind"]}',
    '{"type":"string"}',
    '{"type":"string","minLength":3,"maxLength":5}',
    '{"type":"array","items":{"type":"boolean"}}',
    '{"const":"é🙂"}',
]


def grammar_of(schema: str) -> Grammar:
    grammar = Grammar()
    grammar.set("root", (add_schema(grammar, schema, "a schema"),))
    return grammar


def ids_of(mask: TokenMask) -> set[int]:
    return {token for token, allowed in zip(TABLE.order, mask.allowed(), strict=True) if allowed}


def is_text(data: bytes) -> bool:
    """Whether no character is begun and not ended."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def begins_a_text(grammar: Grammar, data: bytes) -> bool:
    """Whether these bytes begin a text of the grammar: its characters fit, and one can complete the last."""
    matcher = Matcher(grammar)
    try:
        return matcher.feed(data.decode())
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or not matcher.feed(data[: error.start].decode()):
            return False
        partial = data[error.start :]
        state = matcher.state
        assert state is not None
        missing = (
            {0xC0: 1, 0xE0: 2, 0xF0: 3}[0xF0 if partial[0] >= 0xF0 else 0xE0 if partial[0] >= 0xE0 else 0xC0]
            - len(partial)
            + 1
        )
        samples = (
            partial + bytes(rest)
            for rest in (
                [0x80] * missing,
                [0xBF] * missing,
                [0x99] * missing,
                [0xA9] * missing,
                list("🙂".encode()[-missing:]),
            )
        )
        for sample in samples:
            try:
                if matcher.after(state, sample.decode()) is not None:
                    return True
            except UnicodeDecodeError:
                continue
        return False


@settings(max_examples=25)
@given(st.sampled_from(SCHEMAS), st.lists(st.integers(0, 1 << 30), max_size=12))
def test_exactly_the_tokens_that_go_on_with_a_text_are_allowed(schema: str, choices: list[int]) -> None:
    grammar = grammar_of(schema)
    mask, said = TokenMask(TABLE, grammar), b""
    for choice in [*choices, 0]:
        allowed = ids_of(mask)
        assert allowed == {token for token in TABLE.order if begins_a_text(grammar, said + PIECES[token])}
        matcher = Matcher(grammar)
        whole = begins_a_text(grammar, said) and is_text(said) and matcher.feed(said.decode())
        assert mask.may_end == bool(whole and matcher.may_end)
        if not allowed:
            assert mask.may_end
            break
        token = sorted(allowed)[choice % len(allowed)]
        assert mask.feed([token])
        said += PIECES[token]


def test_an_answer_is_led_to_json_of_its_schema() -> None:
    mask, said = TokenMask(TABLE, grammar_of(SCHEMAS[0])), b""
    while not mask.may_end:
        token = max(ids_of(mask), key=lambda each: (len(PIECES[each]), PIECES[each]))
        assert mask.feed([token])
        said += PIECES[token]
        assert len(said) < 100
    assert set(json.loads(said)) == {"n", "kind"}


def test_tokens_that_the_grammar_does_not_take_are_told_and_left_out() -> None:
    mask = TokenMask(TABLE, grammar_of('{"type":"boolean"}'))
    before = ids_of(mask)
    assert not mask.feed([1 + ord("x")])
    assert ids_of(mask) == before
    assert mask.feed([1 + ord("t")])
    assert ids_of(mask) == {1 + ord("r")}


def test_a_place_that_comes_back_is_not_walked_again() -> None:
    mask = TokenMask(TABLE, grammar_of('{"type":"string"}'))
    mask.feed([1 + ord('"'), 1 + ord("a")])
    first = mask.allowed()
    mask.feed([1 + ord("b")])
    assert mask.allowed() is first


def test_an_object_that_may_be_anything_takes_any_json_object() -> None:
    grammar = Grammar()
    grammar.set("root", (add_object(grammar),))
    mask = TokenMask(TABLE, grammar)
    assert mask.feed(1 + byte for byte in b'{"sea": [1, {"a": "\xc3\xa9"}]}')
    assert mask.may_end


def test_letters_within_a_place_that_explodes_are_not_allowed() -> None:
    grammar = Grammar()
    many = [(letters("a"), grammar.many(letters("a")), f"{number}") for number in range(300)]
    grammar.set("root", *[("b", Rule("x"))], ("c",))
    grammar.set("x", *many)
    mask = TokenMask(TABLE, grammar)
    assert 1 + ord("b") not in ids_of(mask)
    assert 1 + ord("c") in ids_of(mask)


def test_a_grammar_that_explodes_at_once_is_refused() -> None:
    grammar = Grammar()
    grammar.set("root", *[(letters("a"), f"{number}") for number in range(300)])
    with pytest.raises(GrammarError, match="places"):
        TokenMask(TABLE, grammar)
