"""Reading the JSON object of a request: each field by its kind, and an error that names it. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from p2pnode.gateway.faults import FaultError, bad_request

_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}
_SHOWN: Final = 60
_DEPTH_MAX: Final = 200
"""Objects and lists in one another. Python's own bound depends on how deep its caller is: what could be read
might then not be written."""
NAME_MAX: Final = 256
"""Letters of the name of a model, which is logged, remembered and repeated in each event of a stream."""
_TOO_DEEP: Final = f"the body is nested too deeply: {_DEPTH_MAX} levels are taken"
_HALF: Final = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
"""An escape that may be half of a character."""


def read_object(data: bytes) -> Fields:
    """The object that a body holds. Raises ``FaultError``."""
    try:
        value = json.loads(data, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise bad_request(_TOO_DEEP) from error
    except ValueError as error:
        raise bad_request(f"the body is no JSON in UTF-8: {error}") from error
    if _is_deep(value):
        raise bad_request(_TOO_DEEP)
    if _HALF.search(data) and _has_half(value):
        raise bad_request("the body holds half of a character (a lone surrogate): send it as UTF-8")
    if not isinstance(value, dict):
        raise bad_request(f"the body is {_KINDS.get(type(value), 'no object')}: send a JSON object")
    return Fields(value)


def _is_deep(value: Any) -> bool:
    """Whether it is nested deeper than the bound, found level by level."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(_DEPTH_MAX):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _has_half(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    """A number with a point or an exponent. One that no float holds could not be written as JSON again."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:_SHOWN]} is too large for a number")
    return value


class Fields:
    """One object of a request. A field that is null counts as one that is not there."""

    def __init__(self, value: Mapping[str, Any], path: str = "") -> None:
        self.value, self.path = value, path

    def __contains__(self, name: str) -> bool:
        return self.value.get(name) is not None

    def fault(self, name: str, message: str) -> FaultError:
        """An error that blames the field ``name``, which a program may have made up."""
        at = self.at(name)
        param = at if len(at) <= NAME_MAX else at[:NAME_MAX] + "…"
        return bad_request(f"{param}: {message}", param)

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def any(self, name: str) -> Any:
        """Its value as it is; None where it is not there."""
        return self.value.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.value.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, value, str)
        return value

    def model(self) -> str:
        """The name of a model in the field ``model``; "" where none is asked for."""
        name = self.text("model")
        if len(name) > NAME_MAX:
            raise self.fault("model", f"has {len(name)} letters: the name of a model has at most {NAME_MAX}")
        return name

    def needed(self, name: str) -> str:
        """A string that must be there, and have a letter at least."""
        value = self.text(name)
        if not value:
            raise self.fault(name, "is missing")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.value.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, value, bool)
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.value.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, value, int)
        if not low <= value <= high:
            raise self.fault(name, f"is from {low} to {high}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from ``low`` to ``high``."""
        value = self.value.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, value, float)
        if not low <= value <= high:  # also one that is not a number, and an integer too large for a float
            raise self.fault(name, f"is from {low:g} to {high:g}")
        return float(value)

    def record(self, name: str) -> Fields:
        """An object; an empty one where it is not there."""
        value = self.value.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._wrong(name, value, dict)
        return Fields(value, self.at(name))

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of a list."""
        for index, value in enumerate(self.items(name)):
            if not isinstance(value, dict):
                raise self._wrong(f"{name}[{index}]", value, dict)
            yield Fields(value, self.at(f"{name}[{index}]"))

    def items(self, name: str) -> list[Any]:
        """A list; an empty one where it is not there."""
        value = self.value.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(name, value, list)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A string or a list of strings."""
        value = self.value.get(name)
        if isinstance(value, str):
            return (value,)
        found = self.items(name)
        for index, each in enumerate(found):
            if not isinstance(each, str):
                raise self._wrong(f"{name}[{index}]", each, str)
        return tuple(found)

    def refuse(self, name: str, why: str, *, unless: tuple[Any, ...] = ()) -> None:
        """Raise where a field is there that is not known here; values of ``unless`` mean nothing."""
        value = self.value.get(name)
        if value is not None and value not in unless:
            raise self.fault(name, why)

    def _wrong(self, name: str, value: object, wanted: type) -> FaultError:
        shown = json.dumps(value, default=str)[:_SHOWN]
        return self.fault(name, f"is {_KINDS[wanted]}, not {shown}")
