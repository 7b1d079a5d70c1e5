"""Msgpack values one after another, without an array around them: how S5 writes its messages.

Only what S5's messages use is read: whole numbers, booleans, text, bytes and short lists of numbers. A
length is compared with its bound, and with the bytes that are there, before anything is sliced. It knows no
message.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from p2pnode.errors import ProtocolError

# First byte: bytes of the length, or of the number, that follow it.
_BIN: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_STR: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY: Final = {0xDC: 2, 0xDD: 4}
_UINT: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_BOOL: Final = {0xC2: False, 0xC3: True}
_FIXINT_MAX: Final = 0x7F
_FIXSTR: Final = range(0xA0, 0xC0)
_FIXARRAY: Final = range(0x90, 0xA0)


def pack(*values: Any) -> bytes:
    """Each value's shortest msgpack, joined."""
    return b"".join(msgpack.packb(value, use_bin_type=True) for value in values)


class Reader:
    """Takes one value after another. Each ``take`` raises ``ProtocolError`` for anything else."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    @property
    def at_end(self) -> bool:
        """Whether nothing follows."""
        return self._at >= len(self._raw)

    def take_int(self, high: int, name: str) -> int:
        """A whole number from 0 to ``high``."""
        first = self._byte(name)
        if first <= _FIXINT_MAX:
            value = first
        elif first in _UINT:
            value = int.from_bytes(self._slice(_UINT[first], name), "big")
        else:
            msg = f"{name} must be a whole number from 0 to {high}"
            raise ProtocolError(msg)
        if value > high:
            msg = f"{name} must be a whole number from 0 to {high}, not {value}"
            raise ProtocolError(msg)
        return value

    def take_bool(self, name: str) -> bool:
        """True or false."""
        first = self._byte(name)
        if first not in _BOOL:
            msg = f"{name} must be true or false"
            raise ProtocolError(msg)
        return _BOOL[first]

    def take_bytes(self, low: int, high: int, name: str) -> bytes:
        """Bytes, ``low`` to ``high`` of them."""
        first = self._byte(name)
        if first not in _BIN:
            msg = f"{name} must be bytes"
            raise ProtocolError(msg)
        return self._bounded(self._length(_BIN[first], name), low, high, name)

    def take_text(self, high: int, name: str) -> str:
        """Text of at most ``high`` bytes of UTF-8."""
        first = self._byte(name)
        if first in _FIXSTR:
            length = first - _FIXSTR.start
        elif first in _STR:
            length = self._length(_STR[first], name)
        else:
            msg = f"{name} must be text"
            raise ProtocolError(msg)
        try:
            return self._bounded(length, 0, high, name).decode()
        except UnicodeDecodeError as error:
            msg = f"{name} is not UTF-8"
            raise ProtocolError(msg) from error

    def take_ints(self, count_max: int, high: int, name: str) -> tuple[int, ...]:
        """A list of at most ``count_max`` whole numbers from 0 to ``high``."""
        first = self._byte(name)
        if first in _FIXARRAY:
            count = first - _FIXARRAY.start
        elif first in _ARRAY:
            count = self._length(_ARRAY[first], name)
        else:
            msg = f"{name} must be a list"
            raise ProtocolError(msg)
        if count > count_max:
            msg = f"{name} must be a list of at most {count_max}, not {count}"
            raise ProtocolError(msg)
        return tuple([self.take_int(high, name) for _ in range(count)])

    def _bounded(self, length: int, low: int, high: int, name: str) -> bytes:
        if not low <= length <= high:
            msg = f"{name} must have {low} to {high} bytes, not {length}"
            raise ProtocolError(msg)
        return self._slice(length, name)

    def _length(self, width: int, name: str) -> int:
        return int.from_bytes(self._slice(width, name), "big")

    def _byte(self, name: str) -> int:
        return self._slice(1, name)[0]

    def _slice(self, count: int, name: str) -> bytes:
        piece = self._raw[self._at : self._at + count]
        if len(piece) != count:
            msg = f"the message ends before {name} does"
            raise ProtocolError(msg)
        self._at += count
        return piece
