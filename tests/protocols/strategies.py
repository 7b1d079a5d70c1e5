"""Hypothesis strategies made from the message classes themselves, bounds included."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from p2pnode.protocols.wire import Range, Size


def messages(cls: type, **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any valid message of a class; ``fixed`` replaces the strategy of a field."""
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(
        cls, **{f.name: fixed[f.name] if f.name in fixed else values(hints[f.name]) for f in fields(cls)}
    )


def values(hint: Any, marks: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Any value a field's type and bounds allow (lengths kept small)."""
    if isinstance(hint, NewType):
        return values(hint.__supertype__, marks)
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return values(inner, (*marks, *more))
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
        return st.none() | values(inner, marks)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        low, high = _lengths(marks)
        return st.lists(values(get_args(hint)[0]), min_size=low, max_size=high).map(tuple)
    if is_dataclass(hint) and isinstance(hint, type):
        return messages(hint)
    if hint is bool:
        return st.booleans()
    if hint in (int, float):
        bound = next(mark for mark in reversed(marks) if isinstance(mark, Range))
        if hint is int:
            return st.integers(int(bound.low), int(bound.high))
        return st.floats(bound.low, bound.high)
    low, high = _lengths(marks)
    if hint is bytes:
        return st.binary(min_size=low, max_size=high)
    return st.text(min_size=low, max_size=max(low, high // 4))


def _lengths(marks: tuple[Any, ...]) -> tuple[int, int]:
    bound = next(mark for mark in reversed(marks) if isinstance(mark, Size))
    return bound.low, min(bound.high, bound.low + 40)


def largest(hint: Any, marks: tuple[Any, ...] = ()) -> Any:
    """The value of a type, or the message of a class, with everything at its upper bound."""
    if isinstance(hint, NewType):
        return largest(hint.__supertype__, marks)
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return largest(inner, (*marks, *more))
    if get_origin(hint) is Literal:
        return max(get_args(hint), key=len)
    if get_origin(hint) in (Union, types.UnionType):
        return largest(next(arg for arg in get_args(hint) if arg is not type(None)), marks)
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        return hint(**{f.name: largest(hints[f.name]) for f in fields(hint)})
    if hint is bool:
        return True
    high: Any = next(mark.high for mark in reversed(marks) if isinstance(mark, Range | Size))
    if get_origin(hint) is tuple:
        return (largest(get_args(hint)[0]),) * high
    sized = {str: "x", bytes: b"x"}
    return sized[hint] * high if hint in sized else hint(high)
