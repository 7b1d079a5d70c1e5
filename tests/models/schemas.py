"""Fifty JSON Schemas as programs have them: records, lists, choices, numbers with bounds, trees."""

from __future__ import annotations

from typing import Any


def record(required: list[str] | None = None, /, **properties: Any) -> dict[str, Any]:
    """An object with these properties, all of them required unless some are named."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


TEXT: dict[str, Any] = {"type": "string", "maxLength": 24}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 99}
YES: dict[str, Any] = {"type": "boolean"}


def listed(items: Any, least: int = 0, most: int = 3) -> dict[str, Any]:
    """An array."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


PERSON = record(name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 130})
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "person, all optional": record([], name=TEXT, age=COUNT, married=YES),
    "person, one optional": record(["name"], name=TEXT, nickname=TEXT),
    "optional in the middle": record(["a", "c"], a=COUNT, b=COUNT, c=COUNT, d=COUNT),
    "nested": record(owner=PERSON, pets=listed(record(name=TEXT, legs=COUNT))),
    "deep": record(a=record(b=record(c=record(d=record(e=COUNT))))),
    "weather": record(
        city=TEXT,
        unit={"enum": ["celsius", "fahrenheit"]},
        days={"type": "integer", "minimum": 1, "maximum": 7},
    ),
    "search": record(query=TEXT, limit={"type": "integer", "minimum": 1, "maximum": 100}, safe=YES),
    "sentiment": record(
        label={"enum": ["positive", "neutral", "negative"]},
        score={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "yes or no": YES,
    "null": {"type": "null"},
    "a text": TEXT,
    "a text of a length": {"type": "string", "minLength": 3, "maxLength": 5},
    "a count": COUNT,
    "a digit": {"type": "integer", "minimum": 0, "maximum": 9},
    "below nought": {"type": "integer", "minimum": -250, "maximum": -3},
    "around nought": {"type": "integer", "minimum": -7, "maximum": 12},
    "a year": {"type": "integer", "minimum": 1900, "maximum": 2100},
    "a share": {"type": "number", "minimum": 0, "maximum": 1},
    "degrees": {"type": "number", "minimum": -90, "maximum": 90},
    "above nought": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
    "a date": {"type": "string", "format": "date"},
    "a moment": {"type": "string", "format": "date-time"},
    "a UUID": {"type": "string", "format": "uuid"},
    "an event": record(title=TEXT, start={"type": "string", "format": "date-time"}, guests=listed(TEXT)),
    "a constant": {"const": {"version": 1}},
    "a choice of texts": {"enum": ["red", "green", "blue", "greenish"]},
    "a choice of all kinds": {"enum": [1, "1", None, True, [1, 2], {"a": 1}]},
    "text or null": {"type": ["string", "null"], "maxLength": 10},
    "number or boolean": {"type": ["integer", "boolean"], "minimum": 0, "maximum": 5},
    "any of two": {"anyOf": [COUNT, record(value=COUNT)]},
    "any of two records": {"anyOf": [record(a=COUNT), record(a=COUNT, b=COUNT)]},
    "one of, by a tag": {
        "oneOf": [
            record(kind={"const": "circle"}, radius=COUNT),
            record(kind={"const": "square"}, side=COUNT),
        ]
    },
    "one of, by a property": {"oneOf": [record(email=TEXT), record(phone=TEXT)]},
    "both": {
        "allOf": [
            {"properties": {"a": COUNT}, "required": ["a"]},
            {"properties": {"b": YES}, "required": ["b"]},
        ]
    },
    "both, of one number": {"allOf": [{"type": "integer", "minimum": 3}, {"type": "number", "maximum": 8}]},
    "a reference": {
        "$defs": {"money": record(amount=COUNT, unit={"enum": ["EUR", "USD"]})},
        **record(price={"$ref": "#/$defs/money"}, tip={"$ref": "#/$defs/money"}),
    },
    "draft 7 definitions": {
        "definitions": {"id": {"type": "integer", "minimum": 1, "maximum": 50}},
        **listed({"$ref": "#/definitions/id"}, 1),
    },
    "a chain": {
        "$defs": {"node": record(value=COUNT, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
        "$ref": "#/$defs/node",
    },
    "a tree": {
        "$defs": {"node": record(value=COUNT, children=listed({"$ref": "#/$defs/node"}, 0, 2))},
        "$ref": "#/$defs/node",
    },
    "a list": listed(COUNT, 1, 5),
    "a list of lists": listed(listed(COUNT, 1, 3), 1, 2),
    "a list of records": listed(PERSON, 1, 2),
    "a pair": {"type": "array", "prefixItems": [TEXT, COUNT], "items": False, "minItems": 2},
    "a pair and more": {
        "type": "array",
        "prefixItems": [TEXT, COUNT],
        "items": YES,
        "minItems": 2,
        "maxItems": 4,
    },
    "a draft 7 pair": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [TEXT, COUNT],
        "additionalItems": False,
        "minItems": 2,
    },
    "names and counts": {
        "type": "object",
        "additionalProperties": COUNT,
        "minProperties": 1,
        "maxProperties": 3,
    },
    "an odd name": record(**{'say "hi"\n': COUNT, "é": YES}),
    "a plan": record(steps=listed(record(tool={"enum": ["read", "write", "run"]}, why=TEXT), 1, 3), done=YES),
    "a verdict": record(
        score={"type": "integer", "minimum": 1, "maximum": 5},
        reasons=listed({"type": "string", "minLength": 1, "maxLength": 16}, 1, 2),
    ),
}
"""By what they are."""
