"""Schemas as grammars: what a grammar spells fits its schema, and what it can't say is refused by name."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

import jsonschema
import pytest

from p2pnode.models.grammar import Grammar, GrammarError, Matcher, spell
from p2pnode.models.json_schema import add_schema, check_schema
from tests.models.schemas import SCHEMAS


def grammar_of(schema: Any) -> Grammar:
    grammar = Grammar()
    grammar.set("root", (add_schema(grammar, json.dumps(schema), "the schema"),))
    return grammar


@pytest.mark.parametrize("name", SCHEMAS)
def test_all_that_a_schemas_grammar_spells_fits_the_schema(name: str) -> None:
    schema = SCHEMAS[name]
    grammar, whole = grammar_of(schema), 0
    for seed in range(8):
        text = "".join(spell(grammar, Random(seed).randrange, bytes_max=300))
        matcher = Matcher(grammar)
        assert matcher.feed(text)
        if matcher.may_end:
            jsonschema.validate(json.loads(text), schema)
            whole += 1
    assert whole >= 3


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        ({"type": "integer", "minimum": -12, "maximum": 105}, "-12", True),
        ({"type": "integer", "minimum": -12, "maximum": 105}, "-13", False),
        ({"type": "integer", "minimum": -12, "maximum": 105}, "106", False),
        ({"type": "integer", "minimum": -12, "maximum": 105}, "0", True),
        ({"type": "integer", "exclusiveMaximum": 100}, "100", False),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "0.999", True),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "1", False),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "-0.5", False),
        ({"type": "number", "exclusiveMinimum": 2}, "2.5", True),
        ({"type": "number", "exclusiveMinimum": 2}, "2", False),
        ({"type": "string"}, '"\\ud800"', False),
        ({"type": "string"}, '"\\u00e9 é"', True),
        ({"type": "object"}, '{"a": {"b": [1, null]}}', True),
        ({"enum": ["a", "ab", 3]}, '"ab"', True),
        ({"enum": ["a", "ab", 3]}, '"abc"', False),
        ({"type": "string", "enum": ["a", 3]}, "3", False),
    ],
)
def test_values_fit_or_do_not(schema: Any, text: str, fits: bool) -> None:
    matcher = Matcher(grammar_of(schema))
    matcher.feed(text)
    assert matcher.may_end == fits


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string", "pattern": "a(?=b)"}, "looks around"),
        ({"type": "string", "pattern": "(a)\\1"}, "the escape"),
        ({"type": "string", "pattern": "^a|b$"}, "put the alternatives in brackets"),
        ({"type": "string", "pattern": "(a{100}){100}"}, "more than 200 letters"),
        ({"type": "string", "pattern": "(a*)*"}, "never end"),
        ({"type": "string", "pattern": "(a"}, "not closed"),
        ({"type": "string", "pattern": "a", "minLength": 2}, "say it all in the pattern"),
        ({"properties": {"a": {"not": {}}}}, "at #/properties/a uses 'not'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "integer", "multipleOf": 3}, "'multipleOf'"),
        ({"$ref": "http://example.com/x"}, "only places within"),
        ({"$ref": "#/nowhere"}, "not there"),
        ({"$ref": "#"}, "at # refers to itself"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "at # requires itself in each of its values",
        ),
        (
            {
                "anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}],
                "$defs": {
                    "a": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 1},
                    "b": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
                },
            },
            "at #/.defs/b requires itself in each of its values",
        ),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "at #/properties/a refers to itself"),
        ({"type": "colour"}, "known are string"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "allows no number"),
        ({"type": "string", "maxLength": 100_000}, "at most 1000"),
        ({"properties": {f"p{n}": {} for n in range(65)}}, "65 optional"),
        ({"required": ["a"], "additionalProperties": False}, "does not allow"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "use anyOf"),
        (False, "allows nothing"),
    ],
)
def test_what_no_grammar_says_is_refused_by_name(schema: Any, why: str) -> None:
    with pytest.raises(GrammarError, match=why):
        grammar_of(schema)


@pytest.mark.parametrize(
    "pattern",
    [
        "^[A-Z]{2,3}-[0-9]{4}$", "^(red|green|blue)$", "^\\d+(\\.\\d{1,2})?$", "^[^@ ]+@[a-z]+\\.(com|org)$",
        "ab+c?", "^[|)]$",
        "^a.c$", "^\\w{3,}$", "^[\\w.-]*$", "^(?:[a-f0-9]{2}:){5}[a-f0-9]{2}$", '^"q"$', "^\\u00e9[à-ü]*$",
        "^\\$\\(x\\)$",
        "^[!-~]{5}$", "^(a|b*)c$", "^\\S\\D\\W$", "x$", "^x", "",
    ],
)  # fmt: skip
def test_what_a_pattern_spells_it_matches(pattern: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    grammar, whole = grammar_of(schema), 0
    for seed in range(30):
        matcher, text = Matcher(grammar), "".join(spell(grammar, Random(seed).randrange, bytes_max=200))
        assert matcher.feed(text)
        if matcher.may_end:
            jsonschema.validate(json.loads(text), schema)
            whole += 1
    assert whole >= 10


def test_ways_that_begin_alike_do_not_multiply_without_end() -> None:
    schema: Any = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    for _ in range(6):
        inner = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
        schema = {"anyOf": [inner, {**inner, "properties": {"x": schema, "y": {}}}]}
    assert grammar_of(schema).rules
    inner = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    with pytest.raises(GrammarError, match="begin alike"):
        grammar_of({"anyOf": [inner, {**inner, "properties": {"x": schema, "y": {}}}]})


def test_a_schema_of_schemas_that_a_tag_tells_apart_may_refer_to_itself() -> None:
    kinds = [
        {
            "type": "object",
            "properties": {"op": {"const": name}, "of": {"$ref": "#"}},
            "required": ["op", "of"],
        }
        for name in ("neg", "abs", "inv")
    ]
    leaf = {
        "type": "object",
        "properties": {"op": {"const": "n"}, "n": {"type": "integer"}},
        "required": ["op", "n"],
    }
    grammar = grammar_of({"anyOf": [*kinds, leaf]})
    matcher = Matcher(grammar)
    assert matcher.feed('{"op": "neg","of": {"op": "abs","of": {"op": "n","n": 3}}}')
    assert matcher.may_end


def test_an_enum_of_many_texts_stands_at_few_places() -> None:
    grammar = grammar_of({"enum": [f"value {number:04}" for number in range(3000)]})
    matcher = Matcher(grammar)
    for letter in '"value 1234"':
        assert matcher.feed(letter)
        assert matcher.places <= 10
    assert matcher.may_end


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}, "patternProperties": {"^x": {"type": "integer"}}},
        {"type": "object", "properties": {"type": {"type": ["string", "null"]}, "pattern": True}},
        {"items": [{"pattern": r"^(?<year>\d+)\b"}, False], "dependentRequired": {"a": ["b"]}},
        *SCHEMAS.values(),
    ],
)
def test_a_tool_may_say_more_than_a_grammar_can(schema: Any) -> None:
    check_schema(json.dumps(schema), "the parameters")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"properties": {"a": {"items": {"type": "strng"}}}}, "at #/properties/a/items has the type"),
        ({"anyOf": [{}, {"not": {"pattern": "a**)"}}]}, "at #/anyOf/1/not has a pattern with"),
        ({"$defs": {"x": {"additionalProperties": {"pattern": 3}}}}, "no text"),
        ({"properties": {"a": "text"}}, "at #/properties/a is no schema"),
        ({"pattern": "[z-a]"}, "a range that is none: mend it"),
    ],
)
def test_what_is_no_schema_at_all_is_refused_of_a_tool_too(schema: Any, why: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(why)):
        check_schema(json.dumps(schema), "the parameters")
