"""From a JSON Schema to the grammar of the JSON that fits it, for answers and arguments that a schema forces.

What a grammar cannot say is refused by name, and never left out: an answer that ends by itself fits its
schema. A grammar may allow less than the schema: objects have their known properties only, in the schema's
order, numbers no exponent, and blanks stand after ``:`` and ``,`` only.

Supported: ``type`` (also a list), ``enum``, ``const``, ``$ref`` within the schema, ``anyOf``, ``oneOf`` whose
members exclude one another, ``allOf``, ``properties``, ``required``, ``additionalProperties``, ``items``,
``prefixItems``, ``minItems``, ``maxItems``, ``minLength``, ``maxLength``, plain ``pattern``s, ``minimum``,
``maximum`` and their exclusive forms, and the ``format`` of dates, times and UUIDs. Annotations and unknown
words mean nothing, as in JSON Schema.

Pure. Drafts 7 and 2020-12: https://json-schema.org/draft/2020-12/schema
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

from p2pnode.models.grammar import EndlessError, Grammar, GrammarError, Letters, Rule, Symbol, letters
from p2pnode.models.pattern import BrokenPatternError, pattern_rule

ITEMS_MAX: Final = 1000
"""The highest ``minItems``, ``maxItems``, ``minLength`` and ``maxLength``."""
REPEATS_MAX: Final = 4000
"""The sum of these."""
OPTIONAL_MAX: Final = 64
"""Optional properties of one object. Each is a place at which an answer may stand."""
WIDTH_MAX: Final = 64
"""Alternatives that an answer may follow at once, since they begin alike."""
_DIGITS_MAX: Final = 15
"""Of a number before and after its point: a float holds no more."""
_DEPTH_MAX: Final = 64
_JSON_TYPES: Final = ("string", "number", "integer", "boolean", "null", "object", "array")
_REFUSED: Final = (
    "not", "if", "then", "else", "patternProperties", "propertyNames", "dependencies",
    "dependentRequired", "dependentSchemas", "contains", "minContains", "maxContains", "unevaluatedItems",
    "$dynamicRef", "$recursiveRef",
)  # fmt: skip
_OF_TYPE: Final[Mapping[str, frozenset[str]]] = {
    "object": frozenset({"properties", "required", "additionalProperties", "minProperties", "maxProperties"}),
    "array": frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"minLength", "maxLength", "format", "pattern"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
}
_COMBINED: Final = ("anyOf", "oneOf", "allOf", "$ref")
_INNER_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_INNER: Final = (
    *_INNER_NAMED, "items", "prefixItems", "additionalItems", "additionalProperties", "propertyNames",
    "contains", "anyOf", "oneOf", "allOf", "not", "if", "then", "else",
)  # fmt: skip
"""Words whose values are schemas, or hold some."""
_PLACE_MAX: Final = 80
"""Letters of a place that an error names."""
_HEX: Final = letters("09", "af", "AF")
_DIGIT: Final = letters("09")
_NOT_ZERO: Final = letters("19")
Schema = Mapping[str, Any]


def add_schema(grammar: Grammar, text: str, where: str) -> Rule:
    """Add the rule of the JSON that fits the schema ``text``. ``where`` names it in errors.

    Raises ``GrammarError``.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{where} is no JSON: {error}"
        raise GrammarError(msg) from error
    try:
        compiler = _Compiler(grammar, schema, where)
        rule = compiler.value(schema, "#", 0)
        compiler.require_progress()
    except RecursionError as error:
        msg = f"{where} is too deep, or refers to itself and to nothing else"
        raise GrammarError(msg) from error
    return rule


def check_schema(text: str, where: str) -> None:
    """Check the schema ``text`` of a tool's parameters, which may say more than a grammar can force.

    ``where`` names it in errors. Raises ``GrammarError`` for a type or a pattern that is none.
    """
    compiler = _Compiler(Grammar(), True, where)
    try:
        compiler.check(json.loads(text), "#")
    except (ValueError, RecursionError) as error:
        if isinstance(error, GrammarError):
            raise
        msg = f"{where} is no JSON: {error}"
        raise GrammarError(msg) from error


def add_object(grammar: Grammar) -> Rule:
    """Add the rule of any JSON object."""
    return _Compiler(grammar, True, "").any_object()


class _Compiler:
    """Makes the rules of one schema."""

    def __init__(self, grammar: Grammar, root: Any, where: str) -> None:
        self._grammar, self._root, self._where = grammar, root, where
        self._made: dict[str, Rule] = {}
        """Rules of schemas that were referred to, by their pointers."""
        self._under_way: dict[str, int] = {}
        """Pointers whose rules are being made, and how many alternatives may be followed there."""
        self._pointers: dict[str, str] = {}
        """By the names of rules that were referred to."""
        self._repeats = 0
        self._width = 1
        """How many alternatives an answer may follow at once in what is made now."""

    # ---- any schema

    def value(self, schema: Any, at: str, depth: int) -> Rule:
        """The rule of a schema that stands at ``at``."""
        if schema is True or schema == {}:
            return self.anything()
        if not isinstance(schema, Mapping):
            self._refuse(at, "allows nothing" if schema is False else "is no schema: it must be an object")
        if depth > _DEPTH_MAX:
            self._refuse(at, f"is deeper than {_DEPTH_MAX} schemas")
        for word in _REFUSED:
            if word in schema:
                self._refuse(at, f"uses {word!r}, which no grammar can force here: leave it out")
        if set(schema) & set(_COMBINED):
            return self._combined(schema, at, depth)
        if "const" in schema or "enum" in schema:
            return self._one_of(schema, at)
        kinds = self._types(schema, at)
        rules = [self._of_type(kind, schema, at, depth) for kind in kinds]
        return rules[0] if len(rules) == 1 else self._grammar.rule(*[(rule,) for rule in rules])

    def check(self, schema: Any, at: str) -> None:
        """Refuse what is no schema, and types and patterns that mean nothing, here and in what is inside."""
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            self._refuse(at, "is no schema: it must be an object")
        self._types(schema, at)
        if "pattern" in schema:
            try:
                self._string({"pattern": schema["pattern"]}, at)
            except GrammarError as error:
                if not isinstance(schema["pattern"], str) or isinstance(error.__cause__, BrokenPatternError):
                    raise
        for word in _INNER:
            inner = schema.get(word)
            if word in _INNER_NAMED and isinstance(inner, Mapping):
                for name, each in inner.items():
                    self.check(each, f"{at}/{word}/{name}")
            elif isinstance(inner, list):
                for index, each in enumerate(inner):
                    self.check(each, f"{at}/{word}/{index}")
            elif isinstance(inner, Mapping):
                self.check(inner, f"{at}/{word}")

    def _types(self, schema: Schema, at: str) -> Sequence[str]:
        given = schema.get("type")
        if given is None:
            kinds = [kind for kind, words in _OF_TYPE.items() if words & set(schema)]
            return kinds or [each for each in _JSON_TYPES if each != "integer"]
        kinds = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
        if not kinds or not all(each in _JSON_TYPES for each in kinds):
            self._refuse(at, f"has the type {json.dumps(given)[:40]}: known are {', '.join(_JSON_TYPES)}")
        if "number" in kinds:
            kinds = [each for each in kinds if each != "integer"]
        return list(dict.fromkeys(kinds))

    def _of_type(self, kind: str, schema: Schema, at: str, depth: int) -> Rule:
        match kind:
            case "object":
                return self._object(schema, at, depth)
            case "array":
                return self._array(schema, at, depth)
            case "string":
                return self._string(schema, at)
            case "integer" | "number":
                return self._number(schema, at, whole=kind == "integer")
            case "boolean":
                return self._grammar.rule(("true",), ("false",))
            case _:
                return self._grammar.rule(("null",))

    def _one_of(self, schema: Schema, at: str) -> Rule:
        """``enum`` or ``const``."""
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list) or not values:
            self._refuse(at, "has an enum that is no list of values")
        if "enum" in schema and "const" in schema:
            values = [each for each in values if _same(each, schema["const"])]
        kinds = self._types(schema, at) if "type" in schema else _JSON_TYPES
        fitting = [each for each in values if any(_is_of(each, kind) for kind in kinds)]
        for word in sorted(set().union(*_OF_TYPE.values()) & set(schema)):
            self._refuse(at, f"has {word!r} beside an enum or a const: leave it out")
        if not fitting:
            self._refuse(at, "has no value of its own type")
        return self._texts(sorted({_text_of(each) for each in fitting}))

    def _texts(self, texts: Sequence[str]) -> Rule:
        """One of ``texts``, which are sorted. What several begin with stands once, so they are told apart."""
        ways: list[tuple[Symbol, ...]] = []
        for first in dict.fromkeys(text[:1] for text in texts):
            alike = [text for text in texts if text[:1] == first]
            shared = _shared(alike[0], alike[-1])
            rests = [text[len(shared) :] for text in alike]
            ways.append((shared,) if rests == [""] else (shared, self._texts(rests)))
        return self._grammar.rule(*ways)

    # ---- combinations

    def _combined(self, schema: Schema, at: str, depth: int) -> Rule:
        own = {key: value for key, value in schema.items() if key not in (*_COMBINED, "$defs", "definitions")}
        constrains = any(key in own for words in _OF_TYPE.values() for key in words) or set(own) & {
            "type", "enum", "const",
        }  # fmt: skip
        parts: list[Any] = [own] if constrains else []
        if "$ref" in schema:
            if not parts and len(set(schema) & set(_COMBINED)) == 1:
                return self._reference(schema["$ref"], at, depth)
            parts.append(self._resolve(schema["$ref"], at)[1])
        parts += self._members(schema, "allOf", at)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                if (word == "anyOf" and "oneOf" in schema) or (parts and "$ref" in parts[-1]):
                    self._refuse(at, "combines anyOf, oneOf and references: use one of them")
                members = [
                    self._merged([*parts, each], at, depth) for each in self._members(schema, word, at)
                ]
                return self._either(members, f"{at}/{word}", depth, exclusive=word == "oneOf")
        return self.value(self._merged(parts, at, depth), at, depth + 1)

    def _members(self, schema: Schema, word: str, at: str) -> list[Any]:
        members = schema.get(word, [])
        if not isinstance(members, list) or (word in schema and not members):
            self._refuse(at, f"has an {word} that is no list of schemas")
        return members

    def _either(self, members: list[Any], at: str, depth: int, *, exclusive: bool) -> Rule:
        """Any of these schemas."""
        seen = [self._seen(each, at) for each in members]
        if exclusive:
            for index, one in enumerate(seen):
                for other in seen[index + 1 :]:
                    if not _exclude(one, other):
                        self._refuse(at, "has members of which a value may fit two: use anyOf instead")
        if _tell_apart(seen):
            rules = [self.value(each, f"{at}/{index}", depth + 1) for index, each in enumerate(members)]
        else:
            # All may be followed at once, and so may what is in each.
            self._width *= len(members)
            if self._width > WIDTH_MAX:
                self._refuse(
                    at, f"is one of more than {WIDTH_MAX} ways that begin alike: give each a const first"
                )
            rules = [self.value(each, f"{at}/{index}", depth + 1) for index, each in enumerate(members)]
            self._width //= len(members)
        return self._grammar.rule(*[(rule,) for rule in rules])

    def _seen(self, schema: Any, at: str) -> Any:
        """A schema with its reference followed, if it is no more than one."""
        for _ in range(_DEPTH_MAX):
            if not (isinstance(schema, Mapping) and "$ref" in schema):
                break
            schema = self._resolve(schema["$ref"], at)[1]
        return schema

    def _merged(self, parts: list[Any], at: str, depth: int) -> Any:
        """One schema that is fitted by what fits all of ``parts``."""
        parts = [each for each in parts if each is not True and each != {}]
        if len(parts) <= 1:
            return parts[0] if parts else True
        if depth > _DEPTH_MAX:
            self._refuse(at, f"is deeper than {_DEPTH_MAX} schemas")
        merged: dict[str, Any] = {}
        for each in parts:
            part = self._seen(each, at)
            if not isinstance(part, Mapping) or set(part) & {"anyOf", "oneOf", "allOf"}:
                self._refuse(at, "joins schemas that are combinations themselves: write them out")
            self._join(merged, part, at, depth)
        return merged

    def _join(self, merged: dict[str, Any], part: Schema, at: str, depth: int) -> None:
        """Add what ``part`` demands to ``merged``."""
        closed = [each for each in (merged, part) if each.get("additionalProperties") not in (None, True, {})]
        for each in closed:
            other = part if each is merged else merged
            if set(other.get("properties", ())) - set(each.get("properties", ())):
                self._refuse(at, "joins an object without additional properties with one that has more")
        for word, value in part.items():
            held: Any = merged.get(word)
            if word not in merged or held == value or word in ("title", "description", "default", "examples"):
                merged[word] = value
            elif word == "properties":
                names = dict.fromkeys([*held, *value])
                merged[word] = {
                    name: self._merged([each[name] for each in (held, value) if name in each], at, depth + 1)
                    for name in names
                }
            elif word == "required":
                merged[word] = list(dict.fromkeys([*held, *value]))
            elif word in ("minimum", "exclusiveMinimum", "minItems", "minLength", "minProperties"):
                merged[word] = max(held, value)
            elif word in ("maximum", "exclusiveMaximum", "maxItems", "maxLength", "maxProperties"):
                merged[word] = min(held, value)
            elif word == "enum":
                merged[word] = [each for each in held if any(_same(each, other) for other in value)]
            elif word == "type":
                merged[word] = self._common_types(held, value, at)
            elif word == "additionalProperties":
                merged[word] = value if held in (True, {}) else held
            elif word in _OF_TYPE["array"] | _OF_TYPE["string"] | _OF_TYPE["number"] | {"const"}:
                self._refuse(at, f"joins two schemas with different {word!r}: write it out")

    def _common_types(self, one: Any, other: Any, at: str) -> list[str]:
        left, right = ([each] if isinstance(each, str) else list(each) for each in (one, other))
        common = [each for each in left if each in right or (each == "integer" and "number" in right)]
        common += [each for each in right if each == "integer" and "number" in left and each not in common]
        if not common:
            self._refuse(at, "joins two schemas without a common type")
        return common

    # ---- references

    def _reference(self, pointer: Any, at: str, depth: int) -> Rule:
        name, schema = self._resolve(pointer, at)
        if name in self._under_way:
            if self._under_way[name] != self._width:
                self._refuse(
                    at, "refers to itself in one of several ways that begin alike: give each a const first"
                )
            return Rule(self._made[name].name)
        # A rule that was made where one way is followed costs as much more elsewhere.
        key = f"{name} {self._width}"
        if key not in self._made:
            rule = self._grammar.reserve()
            self._made[key] = self._made[name] = Rule(rule)
            self._under_way[name] = self._width
            self._pointers[rule] = name
            self._grammar.set(rule, (self.value(schema, name, depth + 1),))
            del self._under_way[name]
        return self._made[key]

    def require_progress(self) -> None:
        """Raise ``GrammarError`` where a schema refers to itself before anything else, or in each value."""
        try:
            self._grammar.require_progress()
            self._grammar.require_end()
        except EndlessError as error:
            at = next((self._pointers[each] for each in error.rules if each in self._pointers), None)
            if at is None:
                raise  # no reference leads back, but a pattern
            self._refuse(at, f"{error.why}, so no value would ever fit it")

    def _resolve(self, pointer: Any, at: str) -> tuple[str, Any]:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            self._refuse(
                at, f"refers to {str(pointer)[:60]!r}: only places within the schema (#/…) are known"
            )
        schema = self._root
        for step in pointer.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(schema, list) and name.isdecimal() and int(name) < len(schema):
                schema = schema[int(name)]
            elif isinstance(schema, Mapping) and name in schema:
                schema = schema[name]
            else:
                self._refuse(at, f"refers to {pointer[:60]!r}, which is not there")
        return pointer, schema

    # ---- objects and arrays

    def _object(self, schema: Schema, at: str, depth: int) -> Rule:
        known = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(known, Mapping) or not isinstance(required, list):
            self._refuse(at, "has properties that are no object, or a required that is no list")
        extra = schema.get("additionalProperties", True)
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        properties = {name: each for name, each in known.items() if each is not False}
        for name in required:
            if name not in properties:
                if extra is False or name in known:
                    self._refuse(at, f"requires {str(name)[:40]!r}, which it does not allow")
                properties[str(name)] = extra
        if not properties:
            return self._map(extra, least, most, at, depth)
        if least > len(required) or (most is not None and most < len(properties)):
            self._refuse(at, "has minProperties or maxProperties, which no grammar can force here")
        optional = [name for name in properties if name not in required]
        if len(optional) > OPTIONAL_MAX:
            self._refuse(
                at, f"has {len(optional)} optional properties: require some, at most {OPTIONAL_MAX} can be"
            )
        # Those that have one value come first: they tell objects apart.
        order = sorted(properties, key=lambda name: not _is_constant(properties[name]) or name in optional)
        members = {
            name: (
                f"{_text_of(name)}:",
                self._blank(),
                self.value(properties[name], f"{at}/properties/{name}", depth + 1),
            )
            for name in order
        }
        return self._grammar.rule(("{", self._members_of(order, members, frozenset(required)), "}"))

    def _members_of(
        self, order: Sequence[str], members: Mapping[str, tuple[Symbol, ...]], required: frozenset[str]
    ) -> Symbol:
        """The members of an object, from the last on: what follows each, with and without one before it."""
        grammar = self._grammar
        comma = (",", self._blank())
        after: Symbol = ""
        """What follows where a member came before."""
        firsts: list[tuple[Symbol, ...]] = [()]
        """What may stand where none came before: one alternative for each member that may be the first."""
        choices: list[tuple[Symbol, ...]] = [()]
        """The same where one came before, without the comma."""
        for name in reversed(order):
            member = (*members[name], after)
            if name in required:
                firsts, choices = [member], [member]
            else:
                firsts, choices = [member, *firsts], [member, *choices]
            follows = [each for each in choices if each]
            listed: Symbol = grammar.rule(*follows)
            after = grammar.rule((*comma, listed), *([()] if () in choices else []))
        return grammar.rule(*firsts)

    def _map(self, extra: Any, least: Any, most: Any, at: str, depth: int) -> Rule:
        """An object of any names."""
        grammar = self._grammar
        if extra is False or most == 0:
            if least:
                self._refuse(at, "must have properties and allows none")
            return grammar.rule(("{}",))
        if least not in (0, 1):
            self._refuse(
                at, f"has minProperties {str(least)[:20]}: without named properties it can be 0 or 1"
            )
        value = self.value(extra, f"{at}/additionalProperties", depth + 1)
        member = grammar.rule((self._any_string(), ":", self._blank(), value))
        return self._list("{", member, least, self._count(most, "maxProperties", at), "}")

    def _array(self, schema: Schema, at: str, depth: int) -> Rule:
        items, first = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):  # draft 7
            items, first = schema.get("additionalItems", True), items
        if not isinstance(first, list):
            self._refuse(at, "has prefixItems that are no list")
        least, most = (self._count(schema.get(word), word, at) for word in ("minItems", "maxItems"))
        least = least or 0
        if schema.get("uniqueItems") and most not in (0, 1):
            self._refuse(at, "uses 'uniqueItems', which no grammar can force here: leave it out")
        if items is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and least > most:
            self._refuse(at, f"must have {least} items and may have {most}")
        if most is not None:
            first = first[:most]
        rules = [self.value(each, f"{at}/prefixItems/{index}", depth + 1) for index, each in enumerate(first)]
        if most is not None and most == len(first):
            return self._grammar.rule(("[", *self._joined(rules), "]"))
        item = self.value(items, f"{at}/items", depth + 1)
        if not rules:
            return self._list("[", item, least, most, "]")
        left = None if most is None else most - len(rules)
        further = self._grammar.repeat(
            self._grammar.rule((",", self._blank(), item)), max(0, least - len(rules)), left
        )
        return self._grammar.rule(("[", *self._joined(rules), *further, "]"))

    def _joined(self, rules: Iterable[Rule]) -> list[Symbol]:
        symbols: list[Symbol] = []
        for rule in rules:
            symbols += [",", self._blank(), rule] if symbols else [rule]
        return symbols

    def _list(self, opens: str, item: Symbol, least: int, most: int | None, closes: str) -> Rule:
        grammar = self._grammar
        if most == 0:
            return grammar.rule((f"{opens}{closes}",))
        rest = grammar.repeat(
            grammar.rule((",", self._blank(), item)), max(0, least - 1), None if most is None else most - 1
        )
        full = (opens, item, *rest, closes)
        return grammar.rule(full) if least else grammar.rule((opens, grammar.rule((item, *rest), ()), closes))

    # ---- strings

    def _string(self, schema: Schema, at: str) -> Rule:
        least, most = (self._count(schema.get(word), word, at) for word in ("minLength", "maxLength"))
        least = least or 0
        if most is not None and least > most:
            self._refuse(at, f"must have {least} letters and may have {most}")
        if "pattern" in schema:
            if least or most is not None or schema.get("format") in _FORMATS:
                self._refuse(at, "has a pattern and a length or format: say it all in the pattern")
            if not isinstance(schema["pattern"], str):
                self._refuse(at, "has a pattern that is no text")
            return self._matching(schema["pattern"], at)
        if not least and most is None:
            form = schema.get("format")
            return self._formatted(form) if form in _FORMATS else self._any_string()
        if schema.get("format") in _FORMATS:
            self._refuse(at, "has a format and a length: leave one out")
        return self._grammar.rule(('"', *self._grammar.repeat(self._letter(), least, most), '"'))

    def _matching(self, pattern: str, at: str) -> Rule:
        anything = self._grammar.many(self._letter())
        try:
            return self._grammar.rule(('"', *pattern_rule(self._grammar, pattern, anything), '"'))
        except GrammarError as error:
            msg = f"{self._where} at {at[:_PLACE_MAX]} {error}"
            raise GrammarError(msg) from error

    def _formatted(self, form: str) -> Rule:
        grammar = self._grammar
        day = grammar.rule(("0", _NOT_ZERO), (letters("12"), _DIGIT), ("3", letters("01")))
        if form in ("date", "date-time"):
            # The 29th and later are left out: a grammar knows no calendar.
            day = grammar.rule(("0", _NOT_ZERO), ("1", _DIGIT), ("2", letters("08")))
        month = grammar.rule(("0", _NOT_ZERO), ("1", letters("02")))
        date: tuple[Symbol, ...] = (_DIGIT, _DIGIT, _DIGIT, _DIGIT, "-", month, "-", day)
        hour = grammar.rule((letters("01"), _DIGIT), ("2", letters("03")))
        sixty = grammar.rule((letters("05"), _DIGIT))
        zone = grammar.rule(("Z",), (letters("+", "-"), hour, ":", sixty))
        time: tuple[Symbol, ...] = (hour, ":", sixty, ":", sixty, zone)
        uuid: list[Symbol] = []
        for length in (8, 4, 4, 4, 12):
            uuid += ["-" if uuid else "", *[letters("09", "af")] * length]
        said = {"date": date, "time": time, "date-time": (*date, "T", *time), "uuid": tuple(uuid)}[form]
        return grammar.rule(('"', *said, '"'))

    def _any_string(self) -> Rule:
        return self._grammar.rule(('"', self._grammar.many(self._letter()), '"'))

    def _letter(self) -> Rule:
        """A letter of a JSON string, or an escape of one. Half of a letter (a surrogate) is none."""
        unicode = self._grammar.rule(
            (letters("09", "ac", "ef", "AC", "EF"), _HEX, _HEX, _HEX),
            (letters("d", "D"), letters("07"), _HEX, _HEX),
        )
        escape = self._grammar.rule((letters('"', "\\", "/", "b", "f", "n", "r", "t"),), ("u", unicode))
        return self._grammar.rule((letters('"', "\\", "\x00\x1f", negated=True),), ("\\", escape))

    # ---- numbers

    def _number(self, schema: Schema, at: str, *, whole: bool) -> Rule:
        for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            value = schema.get(word)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                self._refuse(at, f"has a {word!r} that is no number")
        if schema.get("multipleOf", 1) != 1:
            self._refuse(at, "uses 'multipleOf', which no grammar can force here: leave it out")
        whole = whole or "multipleOf" in schema
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        most = 10**_DIGITS_MAX - 1
        if whole:
            least_whole = (
                max(_up(low), _up(above) + (_up(above) == above))
                if low != above or low > -math.inf
                else -most
            )
            most_whole = (
                min(_down(high), _down(below) - (_down(below) == below))
                if high != below or high < math.inf
                else most
            )
            return self._grammar.rule(*self._integers(max(-most, least_whole), min(most, most_whole), at))
        return self._grammar.rule(*self._decimals(low, high, above, below, at))

    def _integers(self, least: int, most: int, at: str) -> list[list[Symbol]]:
        """All integers from ``least`` to ``most``."""
        if least > most:
            self._refuse(at, "allows no number")
        ways: list[list[Symbol]] = []
        if least < 0:
            ways += [["-", *way] for way in _digits(max(1, -most), -least)]
        if most >= 0:
            ways += _digits(max(0, least), most)
        return ways

    def _decimals(self, low: float, high: float, above: float, below: float, at: str) -> list[list[Symbol]]:
        """Numbers in these bounds: integers in them, and integers with a fraction that stays in them."""
        most = 10**_DIGITS_MAX - 1
        floor, ceiling = max(low, above), min(high, below)
        least_whole = max(-most, _up(floor) + (_up(floor) == floor == above) if floor > -math.inf else -most)
        most_whole = min(
            most, _down(ceiling) - (_down(ceiling) == ceiling == below) if ceiling < math.inf else most
        )
        ways = self._integers(least_whole, most_whole, at) if least_whole <= most_whole else []
        # A fraction is never 0, so that both ends of a step between integers are out.
        fraction = (".", *self._grammar.repeat(_DIGIT, 0, _DIGITS_MAX - 1), _NOT_ZERO)
        from_, to = (
            max(-most, _up(floor) if floor > -math.inf else -most),
            min(most, _down(ceiling) if ceiling < math.inf else most),
        )
        if to > max(from_, 0):
            ways += [[*way, *fraction] for way in _digits(max(from_, 0), to - 1)]
        if from_ < min(to, 0):
            ways += [["-", *way, *fraction] for way in _digits(max(-to, 0), -from_ - 1)]
        if not ways:
            self._refuse(at, "has bounds that are closer than two integers: use an enum")
        return ways

    # ---- parts

    def anything(self) -> Rule:
        """Any JSON value."""
        grammar = self._grammar
        if "value" not in grammar.rules:
            grammar.set("value", ())  # the name, for the value is in itself
            item = Rule("value")
            grammar.set(
                "value",
                (self.any_object(),),
                (self._list("[", item, 0, None, "]"),),
                (self._any_string(),),
                (self._number({}, "", whole=False),),
                ("true",),
                ("false",),
                ("null",),
            )
        return Rule("value")

    def any_object(self) -> Rule:
        """Any JSON object."""
        if "value" not in self._grammar.rules:
            self.anything()
        member = self._grammar.rule((self._any_string(), ":", self._blank(), Rule("value")))
        return self._list("{", member, 0, None, "}")

    def _blank(self) -> Rule:
        return self._grammar.optional(" ")

    def _count(self, value: Any, word: str, at: str) -> int | None:
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            self._refuse(at, f"has a {word!r} that is no count")
        self._repeats += value
        if value > ITEMS_MAX or self._repeats > REPEATS_MAX:
            self._refuse(at, f"has a {word!r} of {value}: at most {ITEMS_MAX}, and {REPEATS_MAX} in all")
        return value

    def _refuse(self, at: str, why: str) -> NoReturn:
        msg = f"{self._where} at {at[:_PLACE_MAX]} {why}"
        raise GrammarError(msg)


_FORMATS: Final = ("date", "time", "date-time", "uuid")


def _digits(least: int, most: int) -> list[list[Symbol]]:
    """Numerals without a sign of the integers from ``least`` to ``most``, none for an empty range."""
    ways: list[list[Symbol]] = []
    for length in range(len(str(least)), len(str(most)) + 1):
        low = max(least, 10 ** (length - 1) if length > 1 else 0)
        high = min(most, 10**length - 1)
        if low <= high:
            ways += _same_length(str(low), str(high))
    return ways


def _same_length(low: str, high: str) -> list[list[Symbol]]:
    """Numerals from ``low`` to ``high``, which have as many digits."""
    if not low:
        return [[]]
    zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
    if low[1:] == zeros and high[1:] == nines:
        return [[_span(low[0], high[0]), *[_DIGIT] * len(zeros)]]
    if low[0] == high[0]:
        return [[low[0], *way] for way in _same_length(low[1:], high[1:])]
    ways = [[low[0], *way] for way in _same_length(low[1:], nines)]
    if int(high[0]) - int(low[0]) > 1:
        ways.append([_span(str(int(low[0]) + 1), str(int(high[0]) - 1)), *[_DIGIT] * len(zeros)])
    return ways + [[high[0], *way] for way in _same_length(zeros, high[1:])]


def _span(low: str, high: str) -> Symbol:
    return low if low == high else Letters(((ord(low), ord(high)),))


def _up(value: float) -> int:
    return math.ceil(max(-1e18, min(1e18, value)))


def _down(value: float) -> int:
    return math.floor(max(-1e18, min(1e18, value)))


def _shared(one: str, other: str) -> str:
    """What both begin with."""
    at = 0
    while at < min(len(one), len(other)) and one[at] == other[at]:
        at += 1
    return one[:at]


def _text_of(value: Any) -> str:
    """JSON of a value as an answer has it."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):  # half of a letter is no UTF-8
        text = json.dumps(value)
    return text


def _is_of(value: Any, kind: str) -> bool:
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "integer":
            return not isinstance(value, bool) and isinstance(value, int | float) and value == int(value)
        case "number":
            return not isinstance(value, bool) and isinstance(value, int | float)
        case "array":
            return isinstance(value, list)
        case _:
            return isinstance(value, Mapping)


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_constant(schema: Any) -> bool:
    return isinstance(schema, Mapping) and ("const" in schema or "enum" in schema)


def _kinds(schema: Any) -> frozenset[str]:
    """The types of the values that may fit; all where that is not plain."""
    if isinstance(schema, Mapping):
        if "const" in schema or "enum" in schema:
            values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
            return frozenset(kind for kind in _JSON_TYPES for value in values if _is_of(value, kind)) - {
                "integer"
            }
        given = schema.get("type")
        kinds = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        if not kinds:
            kinds = [kind for kind, words in _OF_TYPE.items() if words & set(schema)]
        if kinds:
            return frozenset(
                "number" if kind == "integer" else kind for kind in kinds if isinstance(kind, str)
            )
    return frozenset(_JSON_TYPES)


def _constants(schema: Any) -> frozenset[str] | None:
    """The JSON of all values that fit; None where they are not listed."""
    if not isinstance(schema, Mapping) or not _is_constant(schema):
        return None
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
    return frozenset(_text_of(value) for value in values)


def _exclude(one: Any, other: Any) -> bool:
    """Whether no JSON that is made for one schema fits the other."""
    if not _kinds(one) & _kinds(other):
        return True
    left, right = _constants(one), _constants(other)
    if left is not None and right is not None:
        return not left & right
    return _tagged(one, other) or (_demands_more(one, other) and _demands_more(other, one))


def _tagged(one: Any, other: Any) -> bool:
    """Whether two objects have a required property with other values in each."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    ours, theirs = one.get("properties", {}), other.get("properties", {})
    for name in set(one.get("required", ())) & set(other.get("required", ())):
        left, right = _constants(ours.get(name)), _constants(theirs.get(name))
        if left is not None and right is not None and not left & right:
            return True
    return False


def _demands_more(one: Any, other: Any) -> bool:
    """Whether ``one`` requires a property that objects made for ``other`` don't have."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping) and other.get("properties")):
        return False
    return bool(set(one.get("required", ())) - set(other["properties"]) - set(other.get("required", ())))


def _tell_apart(schemas: Sequence[Any]) -> bool:
    """Whether first letters, or first properties, tell which of ``schemas`` an answer follows."""
    seen: set[str] = set()
    objects: list[Any] = []
    for schema in schemas:
        kinds = _kinds(schema)
        if seen & kinds and not (
            kinds == {"object"} and all(_first_tag_differs(schema, each) for each in objects)
        ):
            return all(_constants(each) is not None for each in schemas)
        seen |= kinds
        objects += [schema] if kinds == {"object"} else []
    return True


def _first_tag_differs(one: Any, other: Any) -> bool:
    """Whether the property that comes first in both objects has other values in each."""
    tags = []
    for schema in (one, other):
        required = [name for name in schema.get("properties", {}) if name in schema.get("required", ())]
        tags.append(next((name for name in required if _is_constant(schema["properties"][name])), None))
    if tags[0] is None or tags[0] != tags[1]:
        return False
    left, right = (_constants(schema["properties"][tags[0]]) for schema in (one, other))
    return left is not None and right is not None and not left & right
