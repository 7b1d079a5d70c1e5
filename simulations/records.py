"""Trees of parameter records, read from tables of TOML and written as such.

A record is a frozen dataclass whose fields are int, float, str, bool, a ``Literal``, a tuple, another record,
or one of these or None. A field is named by its path: ``links.jitter_share``, ``faults.0.share``. What is
wrong raises ``ConfigError`` with that path: for an unknown name with the nearest known one, for a value that
can't be with the record's own words.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from p2pnode.errors import ConfigError

Record = TypeVar("Record")
_NONE: Final = "none"
"""What stands for None where text is typed."""
_KINDS: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a list",
}


def read_record(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """A record of this kind; a field that is not in ``values`` has its default. Raises ``ConfigError``."""
    return _read_record(kind, values, "")


def as_mapping(record: Any) -> dict[str, Any]:
    """A record as :func:`read_record` takes it, with all its fields but those that are None."""
    found: dict[str, Any] = {}
    for each in fields(record):
        value = _plain(getattr(record, each.name))
        if value is not None:
            found[each.name] = value
    return found


def with_values(record: Record, values: Mapping[str, Any]) -> Record:
    """A record with other values, by path. Raises ``ConfigError``.

    A text is read as the field wants it: ``"0.5"`` for a number, ``"none"`` for None. All values change at
    once, because some are right only together.
    """
    kind = type(record)
    tree = as_mapping(record)
    for path, value in values.items():
        _put(kind, tree, path, value)
    return read_record(kind, tree)


def changes(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What makes ``other`` of ``one``, by path. Both are as :func:`as_mapping` gives them."""
    found: dict[str, Any] = {}
    for name in {**one, **other}:
        before, after = one.get(name), other.get(name)
        if isinstance(after, dict):
            found.update(changes(before or {}, after, f"{prefix}{name}."))
        elif before != after:
            found[prefix + name] = after
    return found


def typed(value: Any) -> str:
    """A value as :func:`with_values` reads it from a text, on one line."""
    return _NONE if value is None else value if isinstance(value, str) else _inline(value)


def _inline(value: Any) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{name} = {_inline(each)}" for name, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_inline, value)) + "]"
        case str() | bool():
            return json.dumps(value)
        case _:
            return repr(value)


def value_at(record: Any, path: str) -> Any:
    """The value at a path that :func:`with_values` took: a list for a tuple, a table for a record."""
    found = record
    for name in path.split("."):
        found = found[int(name)] if isinstance(found, tuple) else getattr(found, name)
    return _plain(found)


def paths_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """The path of every field that is a value. A list of records has 0 for a place."""
    for name, wanted in _hints(kind).items():
        inner = _record_in(wanted)
        if inner is None:
            yield prefix + name
        elif _unwrapped(wanted) is not inner:
            yield from paths_of(inner, f"{prefix}{name}.0.")
        else:
            yield from paths_of(inner, f"{prefix}{name}.")


# ---- reading


def _read_record(kind: type[Record], values: Any, path: str) -> Record:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'it'} must be a table of parameters, not {values!r}")
    hints = _hints(kind)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown(_joined(path, name), [_joined(path, each) for each in hints])
        given[name] = _read(hints[name], value, _joined(path, name))
    lacking = [each.name for each in fields(kind) if _is_needed(each) and each.name not in given]  # type: ignore[arg-type]
    if lacking:
        raise ConfigError(f"{_joined(path, lacking[0])} is missing: it has no default")
    try:
        return kind(**given)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _is_needed(each: Any) -> bool:
    from dataclasses import MISSING

    return each.default is MISSING and each.default_factory is MISSING


def _read(wanted: Any, value: Any, path: str) -> Any:
    """A value as a field of this type wants it."""
    choices = _choices(wanted)
    if choices is not None and value is None:
        return None
    kind = _unwrapped(wanted)
    origin = get_origin(kind)
    if is_dataclass(kind):
        return _read_record(kind, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        return _one_of(get_args(kind), value, path)
    if origin is tuple:
        return _read_list(get_args(kind), value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{path} must be {_KINDS.get(kind, kind)}, not {value!r}")
    return value


def _read_list(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path} must be a list, not {value!r}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{path} must be a list of {len(kinds)} values, not of {len(value)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_read(kind, each, f"{path}.{place}") for place, (kind, each) in pairs)


def _one_of(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    if value in choices and not isinstance(value, bool):
        return value
    near = difflib.get_close_matches(str(value), [str(each) for each in choices], n=1)
    hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(map(str, choices))}"
    raise ConfigError(f"{path} can't be {value!r}: {hint}")


def unknown(path: str, known: list[str]) -> ConfigError:
    """The error for a name that nothing has, with the nearest that something has."""
    name = path.rpartition(".")[2]
    near = [each for each in known if each.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    return ConfigError(f"{path} is no parameter: {hint}")


# ---- by path


def _put(kind: Any, tree: Any, path: str, value: Any) -> None:
    """Put a value into a tree of plain values."""
    names = path.split(".")
    for place, name in enumerate(names[:-1]):
        so_far = ".".join(names[: place + 1])
        kind, tree = _step(kind, tree, name, so_far, path)
    wanted = _wanted(kind, tree, names[-1], path)
    found = _typed(wanted, value, path) if isinstance(value, str) else value
    if isinstance(tree, list):
        tree[int(names[-1])] = found
    else:
        tree[names[-1]] = found


def _step(kind: Any, tree: Any, name: str, so_far: str, path: str) -> tuple[Any, Any]:
    """The type and the values one name further down; a record that was None begins with its defaults."""
    wanted = _wanted(kind, tree, name, path)
    inner = _unwrapped(wanted)
    if not is_dataclass(inner) and get_origin(inner) is not tuple:
        raise ConfigError(f"{so_far} is a value and has no parameters: {path} can't be set")
    key: Any = int(name) if isinstance(tree, list) else name
    if isinstance(tree, dict) and tree.get(name) is None:
        tree[name] = {} if is_dataclass(inner) else []
    return inner, tree[key]


def _wanted(kind: Any, tree: Any, name: str, path: str) -> Any:
    if isinstance(tree, list):
        if not name.isdecimal() or int(name) >= len(tree):
            held = f"0 to {len(tree) - 1}" if tree else "none"
            raise ConfigError(f"{path}: {name} is no place in that list; it has {held}")
        kinds = get_args(kind)
        return kinds[0] if kinds[1:] == (Ellipsis,) else kinds[int(name)]
    hints = _hints(kind)
    if name not in hints:
        before = path.split(".")[: path.split(".").index(name)]
        raise unknown(path, [_joined(".".join(before), each) for each in _below(kind)])
    return hints[name]


def _below(kind: Any) -> list[str]:
    return [*_hints(kind), *paths_of(kind)]


def _typed(wanted: Any, text: str, path: str) -> Any:
    """A text that was typed, as a value for a field of this type."""
    choices = _choices(wanted)
    if choices is not None and text.strip().lower() == _NONE:
        return None
    kind = _unwrapped(wanted)
    if kind is str or (get_origin(kind) is Literal and text in get_args(kind)):
        return text
    if get_origin(kind) is Literal and all(isinstance(each, str) for each in get_args(kind)):
        return text
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        found = {}
    if list(found) != ["value"]:
        name = _KINDS.get(get_origin(kind) or kind, "a table of parameters")
        raise ConfigError(f"{path} must be {name}, not {text!r}")
    return found["value"]


# ---- types


def _hints(kind: Any) -> dict[str, Any]:
    named = get_type_hints(kind)
    return {each.name: named[each.name] for each in fields(kind)}


def _choices(wanted: Any) -> tuple[Any, ...] | None:
    """The types of a union with None; None for a type that is no such union."""
    if get_origin(wanted) in (Union, types.UnionType) and type(None) in get_args(wanted):
        return get_args(wanted)
    return None


def _unwrapped(wanted: Any) -> Any:
    """X for ``X | None``, else the type itself."""
    choices = _choices(wanted)
    return next(each for each in choices if each is not type(None)) if choices else wanted


def _record_in(wanted: Any) -> Any:
    """The kind of record that a field is, or is a list of; None for a value."""
    kind = _unwrapped(wanted)
    if is_dataclass(kind):
        return kind
    inner = get_args(kind)[0] if get_origin(kind) is tuple and get_args(kind) else None
    return inner if is_dataclass(inner) else None


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_mapping(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
