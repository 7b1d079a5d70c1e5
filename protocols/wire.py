"""Messages on the wire: frozen dataclasses to msgpack maps and back, bounds checked on the way in.

A message class is registered under its type name::

    @message("ping")
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Ping:
        nonce: Annotated[int, Range(0, 2**32 - 1)]

Its wire form is ``{"t": "ping", "nonce": 7}``. Unknown keys are ignored, missing keys without a
default and values outside their bounds are a ``ProtocolError`` that names the field. ``None`` is
not sent. Nested dataclasses are maps without ``t``. Where room is short a field's ``Key`` stands for
its name. This module knows no protocol.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Final, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from p2pnode.errors import ProtocolError
from p2pnode.protocols.framing.codec import check_shape

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """An integer or a finite number from ``low`` to ``high``, both included."""

    # Not `float` alone: compiled code would make 2^63 - 1 of it 2^63, and take that for a value.
    low: int | float
    high: int | float


@dataclass(frozen=True, slots=True)
class Size:
    """Length from ``low`` to ``high``: of bytes, of a string's UTF-8, or of a tuple."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Key:
    """The key of a field on the wire, where its name would take too much room."""

    name: str


def exactly(length: int) -> Size:
    """A fixed length."""
    return Size(length, length)


U32 = Annotated[int, Range(0, 2**32 - 1)]
U63 = Annotated[int, Range(0, 2**63 - 1)]
"""Counts, epoch seconds and amounts in token units: never negative, fits SQLite and JSON readers."""
Bytes16 = Annotated[bytes, exactly(16)]
Bytes20 = Annotated[bytes, exactly(20)]
Bytes32 = Annotated[bytes, exactly(32)]
Bytes64 = Annotated[bytes, exactly(64)]

Decoder = Callable[[Any, str], Any]
_TYPE_KEY: Final = "t"


@dataclass(frozen=True, slots=True)
class _Schema:
    name: str
    cls: type
    fields: tuple[tuple[str, str, Decoder, bool], ...]
    """Name, key on the wire, decoder, whether it must be there."""


_SCHEMAS: dict[type, _Schema] = {}


def message(name: str) -> Callable[[type[T]], type[T]]:
    """Register a message class under its wire name (unique within its protocol's union)."""

    def register(cls: type[T]) -> type[T]:
        cls.__wire_name__ = name  # type: ignore[attr-defined]
        return cls

    return register


def wire_name(cls: type) -> str:
    """The ``t`` of a message class; a nested record has none."""
    return str(getattr(cls, "__wire_name__", ""))


class Codec:
    """Encodes and decodes one protocol: the union of its message classes."""

    def __init__(self, *classes: type) -> None:
        self._by_name = {wire_name(cls): cls for cls in classes}
        if "" in self._by_name or len(self._by_name) != len(classes):
            msg = "every message of a protocol needs a wire name of its own"
            raise TypeError(msg)

    @property
    def classes(self) -> tuple[type, ...]:
        """The messages of this protocol."""
        return tuple(self._by_name.values())

    def encode(self, value: Any) -> bytes:
        """Msgpack bytes of a message (without frame)."""
        return encode(value)

    def decode(self, payload: bytes) -> Any:
        """The message in ``payload``. Raises ``ProtocolError``."""
        raw = unpack(payload)
        if not isinstance(raw, dict):
            msg = "a message must be a map"
            raise ProtocolError(msg)
        name = raw.get(_TYPE_KEY)
        cls = self._by_name.get(name) if isinstance(name, str) else None
        if cls is None:
            msg = f"unknown message type {str(name)[:32]!r}"
            raise ProtocolError(msg)
        return _build(cls, raw)


def encode(value: Any) -> bytes:
    """Canonical msgpack bytes of a message or record: fields in the order of the class.

    Lone surrogates, which have no UTF-8 form, become question marks: text of a user or an engine must
    not make a machine raise.
    """
    packed: bytes = msgpack.packb(_plain(value, top=True), use_bin_type=True, unicode_errors="replace")
    return packed


def decode_record(cls: type[T], payload: bytes) -> T:
    """Decode bytes that must hold one record or message of ``cls``."""
    raw = unpack(payload)
    if not isinstance(raw, dict):
        msg = f"{cls.__name__} must be a map"
        raise ProtocolError(msg)
    if wire_name(cls) and raw.get(_TYPE_KEY) != wire_name(cls):
        msg = f"expected a {wire_name(cls)!r} message"
        raise ProtocolError(msg)
    built: T = _build(cls, raw)
    return built


def unpack(payload: bytes) -> Any:
    """Msgpack to plain objects, depth and lengths checked before anything is allocated."""
    check_shape(payload)
    try:
        return msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        msg = f"not a msgpack map with string keys: {type(error).__name__}"
        raise ProtocolError(msg) from error


def _plain(value: Any, *, top: bool = False) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        name = wire_name(type(value))
        if top and name:
            out[_TYPE_KEY] = name
        for field, key, _, _ in _schema_of(type(value)).fields:
            held = getattr(value, field)
            if held is not None:
                out[key] = _plain(held)
        return out
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _build(cls: type, raw: Mapping[Any, Any]) -> Any:
    schema = _schema_of(cls)
    values: dict[str, Any] = {}
    for name, key, decoder, required in schema.fields:
        if key in raw:
            values[name] = decoder(raw[key], name)
        elif required:
            msg = f"{schema.name}.{name} is missing"
            raise ProtocolError(msg)
    return cls(**values)


def wire_keys(cls: type) -> dict[str, str]:
    """Of a message or record: field name to key on the wire."""
    return {name: key for name, key, _, _ in _schema_of(cls).fields}


def _schema_of(cls: type) -> _Schema:
    return _SCHEMAS.get(cls) or _compile(cls)


def _compile(cls: type) -> _Schema:
    hints = get_type_hints(cls, include_extras=True)
    compiled = tuple(
        (
            item.name,
            _key(hints[item.name], item.name),
            _decoder(hints[item.name], ()),
            item.default is MISSING and item.default_factory is MISSING,
        )
        for item in fields(cls)
    )
    keys = [_TYPE_KEY, *(key for _, key, _, _ in compiled)]
    if len(set(keys)) != len(keys):
        msg = f"two fields of {cls.__name__} share a key on the wire (or one takes {_TYPE_KEY!r})"
        raise TypeError(msg)
    schema = _SCHEMAS[cls] = _Schema(wire_name(cls) or cls.__name__, cls, compiled)
    return schema


def _key(hint: Any, name: str) -> str:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark.name for mark in marks if isinstance(mark, Key)), name)


def _decoder(hint: Any, bounds: tuple[Any, ...]) -> Decoder:
    if isinstance(hint, NewType):
        return _decoder(hint.__supertype__, bounds)
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *marks = get_args(hint)
        return _decoder(inner, (*bounds, *marks))
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
        decode_inner = _decoder(inner, bounds)
        return lambda value, name: None if value is None else decode_inner(value, name)
    if origin is tuple:
        return _tuple_decoder(_decoder(get_args(hint)[0], ()), _size(bounds))
    if is_dataclass(hint) and isinstance(hint, type):
        return _record_decoder(hint)
    if hint is bool:
        return _bool_decoder
    if hint in (int, float):
        return _number_decoder(hint, _range(bounds))
    if hint in (str, bytes):
        return _sized_decoder(hint, _size(bounds))
    if get_origin(hint) is not None and get_args(hint) and all(isinstance(a, str) for a in get_args(hint)):
        return _choice_decoder(frozenset(get_args(hint)))
    msg = f"no wire form for {hint!r}"
    raise TypeError(msg)


def _size(bounds: tuple[Any, ...]) -> Size:
    found = [mark for mark in bounds if isinstance(mark, Size)]
    if not found:
        msg = "strings, bytes and tuples on the wire need a Size"
        raise TypeError(msg)
    return found[-1]


def _range(bounds: tuple[Any, ...]) -> Range:
    found = [mark for mark in bounds if isinstance(mark, Range)]
    if not found:
        msg = "numbers on the wire need a Range"
        raise TypeError(msg)
    return found[-1]


def _bool_decoder(value: Any, name: str) -> bool:
    if value is True or value is False:
        return bool(value)
    msg = f"{name} must be true or false"
    raise ProtocolError(msg)


def _number_decoder(kind: type, bound: Range) -> Decoder:
    low, high = bound.low, bound.high
    accepted = (int,) if kind is int else (int, float)

    def decode_number(value: Any, name: str) -> Any:
        if type(value) in accepted and low <= value <= high:
            return kind(value)
        msg = f"{name} must be a number from {low} to {high}"
        raise ProtocolError(msg)

    return decode_number


def _sized_decoder(kind: type, size: Size) -> Decoder:
    low, high = size.low, size.high

    def decode_sized(value: Any, name: str) -> Any:
        if type(value) is kind and isinstance(value, str | bytes):
            length = len(value.encode()) if isinstance(value, str) else len(value)
            if low <= length <= high:
                return value
        msg = f"{name} must be {kind.__name__} of {low} to {high} bytes"
        raise ProtocolError(msg)

    return decode_sized


def _choice_decoder(choices: frozenset[str]) -> Decoder:
    def decode_choice(value: Any, name: str) -> Any:
        if type(value) is str and value in choices:
            return value
        msg = f"{name} must be one of {', '.join(sorted(choices))}"
        raise ProtocolError(msg)

    return decode_choice


def _tuple_decoder(item: Decoder, size: Size) -> Decoder:
    low, high = size.low, size.high

    def decode_tuple(value: Any, name: str) -> Any:
        if type(value) is list and low <= len(value) <= high:
            return tuple([item(each, name) for each in value])
        msg = f"{name} must be a list of {low} to {high} items"
        raise ProtocolError(msg)

    return decode_tuple


def _record_decoder(cls: type) -> Decoder:
    def decode_nested(value: Any, name: str) -> Any:
        if type(value) is dict:
            return _build(cls, value)
        msg = f"{name} must be a map"
        raise ProtocolError(msg)

    return decode_nested
