"""Protocol buffers, for the wire formats of libp2p: one declaration gives the parser and its bounds.

``google.protobuf`` parses and writes; nothing is generated. :meth:`Schema.decode` first walks over the bytes
and counts: a list costs nothing before it is known how long it is. This module knows no protocol.

Strings are declared as ``bytes``: on the wire they are the same, and a peer's bad UTF-8 is then its message's
fault, not an exception of the parser's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from p2pnode.errors import ProtocolError
from p2pnode.protocols.framing.codec import OversizedError

Scalar: TypeAlias = Literal["bytes", "bool", "int32", "uint64"]
_TYPES: Final = {"bytes": 12, "bool": 8, "int32": 5, "uint64": 4}
_MESSAGE: Final = 11
_OPTIONAL, _REPEATED = 1, 3
_VARINT_BYTES_MAX: Final = 10
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: its name here, its number on the wire, and what it holds."""

    name: str
    number: int
    kind: Scalar | Schema
    many: bool = False


class Schema:
    """A message type. ``name`` is for errors: on the wire there are numbers only."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self._nested = {f.number: f.kind for f in fields if isinstance(f.kind, Schema)}
        # Each schema is a file of its own in one pool, under a package name that nobody else uses.
        self._full_name = f"p2pnode.schema{next(_numbers)}.{name}"
        self._class = self._build(fields)

    def make(self, **values: Any) -> Any:
        """A message with these fields set."""
        return self._class(**values)

    def decode(self, data: bytes, *, entries_max: int) -> Any:
        """The message in ``data``, of at most ``entries_max`` fields, those of nested messages included.

        A field of a list counts once for each item. Raises ``ProtocolError``.
        """
        self.count(data, entries_max=entries_max)
        return self.parse(data)

    def count(self, data: bytes, *, entries_max: int) -> int:
        """How many entries ``data`` has, as :meth:`decode` counts them. Raises ``ProtocolError`` at more."""
        return entries_max - self._count(data, 0, len(data), entries_max, entries_max)

    def parse(self, data: bytes) -> Any:
        """The message in ``data``, for whoever has counted its entries. Raises ``ProtocolError``."""
        message = self._class()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise self._malformed() from error
        return message

    def _count(self, data: bytes, at: int, end: int, left: int, most: int) -> int:
        """How many entries are left after the fields from ``at`` to ``end``."""
        while at < end:
            left -= 1
            if left < 0:
                msg = f"a {self.name} message of more than {most} entries"
                raise OversizedError(msg)
            key, at = self._varint(data, at, end)
            wire_type = key & 7
            if wire_type == 0:
                _, at = self._varint(data, at, end)
            elif wire_type == 2:
                length, at = self._varint(data, at, end)
                if length > end - at:
                    raise self._malformed()
                if length and (nested := self._nested.get(key >> 3)) is not None:
                    left = nested._count(data, at, at + length, left, most)  # noqa: SLF001  of this class
                at += length
            elif wire_type in (1, 5):
                at += 8 if wire_type == 1 else 4
                if at > end:
                    raise self._malformed()
            else:  # groups: no format of libp2p has any, and they nest without a bound
                raise self._malformed()
        return left

    def _varint(self, data: bytes, at: int, end: int) -> tuple[int, int]:
        if at < end and data[at] < 0x80:  # most are one byte long, and this is where the time goes
            return data[at], at + 1
        value = shift = 0
        for index in range(at, min(end, at + _VARINT_BYTES_MAX)):
            byte = data[index]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, index + 1
            shift += 7
        raise self._malformed()

    def _malformed(self) -> ProtocolError:
        return ProtocolError(f"not a {self.name} message of protocol buffers")

    def _build(self, fields: tuple[Field, ...]) -> Any:
        package = self._full_name.rpartition(".")[0]
        file = descriptor_pb2.FileDescriptorProto(name=f"{self._full_name}.proto", package=package)
        message = file.message_type.add(name=self.name)
        for each in fields:
            entry = message.field.add(
                name=each.name,
                number=each.number,
                label=_REPEATED if each.many else _OPTIONAL,
            )
            if isinstance(each.kind, Schema):
                entry.type = _MESSAGE  # type: ignore[assignment]
                entry.type_name = f".{each.kind._full_name}"  # noqa: SLF001  of this class
                file.dependency.append(f"{each.kind._full_name}.proto")  # noqa: SLF001  of this class
            else:
                entry.type = _TYPES[each.kind]  # type: ignore[assignment]
        pool = descriptor_pool.Default()
        pool.Add(file)
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(self._full_name))
