"""CBOR (RFC 8949) as far as S5's directories use it, read without trust.

Whole numbers, bytes, text, lists, maps with distinct keys of text or number, true, false, null, floats.
Refused: tags, lengths to be announced later, a key twice, nesting deeper than ``DEPTH_MAX``, and more than
the bytes at hand can hold, before anything is allocated for it. Written by ``cbor2``. Knows no directory.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import cbor2

from p2pnode.errors import ProtocolError

DEPTH_MAX: Final = 16
_LENGTHS: Final = {24: 1, 25: 2, 26: 4, 27: 8}
_FLOATS: Final = {25: ">e", 26: ">f", 27: ">d"}
_SIMPLE: Final = {20: False, 21: True, 22: None, 23: None}
_UINT, _NEGATIVE, _BYTES, _TEXT, _LIST, _MAP, _TAG, _OTHER = range(8)


def dumps(value: Any) -> bytes:
    """Shortest CBOR; maps in the order given."""
    return cbor2.dumps(value)


def loads(raw: bytes) -> Any:
    """The one value in ``raw``. Raises ``ProtocolError``."""
    reader = _Reader(raw)
    value = reader.take(DEPTH_MAX)
    if reader.left:
        raise _malformed("something follows the value")
    return value


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, depth: int) -> Any:
        if depth == 0:
            raise _malformed(f"nested deeper than {DEPTH_MAX}")
        first = self._slice(1)[0]
        major, info = first >> 5, first & 0x1F
        if major == _OTHER:
            return self._other(info)
        argument = info
        if info in _LENGTHS:
            argument = int.from_bytes(self._slice(_LENGTHS[info]), "big")
        elif info not in range(24):
            raise _malformed("a length that is announced later")
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self._slice(argument)
            case 3:
                return self._text(argument)
            case 4:
                self._fits(argument)
                return [self.take(depth - 1) for _ in range(argument)]
            case 5:
                self._fits(2 * argument)
                return self._map(argument, depth)
            case _:
                raise _malformed("a tag")

    def _map(self, count: int, depth: int) -> dict[int | str, Any]:
        held: dict[int | str, Any] = {}
        for _ in range(count):
            key = self.take(1)
            if type(key) not in (int, str) or key in held:
                raise _malformed("a map's key twice, or neither text nor a number")
            held[key] = self.take(depth - 1)
        return held

    def _other(self, info: int) -> Any:
        if info in _SIMPLE:
            return _SIMPLE[info]
        if info in _FLOATS:
            (number,) = struct.unpack(_FLOATS[info], self._slice(_LENGTHS[info]))
            return number
        raise _malformed("a simple value that is not in use")

    def _text(self, length: int) -> str:
        try:
            return self._slice(length).decode()
        except UnicodeDecodeError as error:
            raise _malformed("text that is not UTF-8") from error

    def _fits(self, items: int) -> None:
        if items > self.left:
            raise _malformed("more items than bytes")

    def _slice(self, count: int) -> bytes:
        if count > self.left:
            raise _malformed("it ends too early")
        self._at += count
        return self._raw[self._at - count : self._at]


def _malformed(what: str) -> ProtocolError:
    return ProtocolError(f"not CBOR that is read here: {what}")
