"""Frames: an unsigned-varint length, then that many bytes of msgpack. See ``SPEC.md``.

Pure and incremental: bytes in, payloads out. It knows nothing of messages. Everything is bounded
before it is allocated: the frame by ``frame_max`` bytes, the payload by :func:`check_shape`.
"""

from __future__ import annotations

from typing import Final

from p2pnode.errors import ProtocolError

FRAME_MAX: Final = 64 * 1024
"""Largest payload of a frame in bytes (blobs have their own, 1 MiB)."""
DEPTH_MAX: Final = 8
ITEMS_MAX: Final = 16 * 1024
_VARINT_BYTES_MAX: Final = 4


class OversizedError(ProtocolError):
    """More than this side takes. Where a protocol is others', too, its sender may mean well."""


def pack_frame(payload: bytes, frame_max: int = FRAME_MAX) -> bytes:
    """One frame. Raises ``ValueError`` for a payload that no peer would accept."""
    length = len(payload)
    if not 0 < length <= frame_max:
        msg = f"a frame holds 1 to {frame_max} bytes, not {length}"
        raise ValueError(msg)
    return frame_head(length) + payload


def frame_head(length: int) -> bytes:
    """What stands before a payload of ``length`` bytes, for a writer that joins many frames."""
    if length < 0x4000:
        return bytes((length,) if length < 0x80 else (length & 0x7F | 0x80, length >> 7))
    prefix = bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)


def only_payload(data: bytes | bytearray, frame_max: int) -> bytes | None:
    """The payload of ``data`` where that is one whole frame of at most ``frame_max`` bytes; else None."""
    length = 0
    for index, byte in enumerate(data[:_VARINT_BYTES_MAX]):
        length |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            begins = index + 1
            is_whole = length == len(data) - begins <= frame_max and not (index and not byte)
            return bytes(data[begins:]) if is_whole else None
    return None


class FrameDecoder:
    """Cuts a byte stream into payloads. After an error it is dead: the stream can't be trusted.

    However the bytes are split, the same payloads come out before the error: those that ``data``
    completed ahead of a malformed length are returned, and the next call raises. Whoever has used them
    calls :meth:`check` before waiting for more bytes, which may never come.
    """

    def __init__(self, frame_max: int = FRAME_MAX, *, frame_min: int = 1) -> None:
        # A payload of no bytes is no msgpack; of protocol buffers it is an empty message.
        self._frame_min, self._frame_max = frame_min, frame_max
        self._buffer = bytearray()
        self._error: ProtocolError | None = None

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame: not 0 at the end of a stream means it was truncated."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by ``data``. Raises ``ProtocolError`` at an oversized or malformed length."""
        self.check()
        self._buffer += data
        payloads: list[bytes] = []
        start = 0
        while (head := self._next_length(start)) is not None:
            length, body = head
            if len(self._buffer) - body < length:
                break
            payloads.append(bytes(self._buffer[body : body + length]))
            start = body + length
        if start:
            del self._buffer[:start]
        if not payloads:
            self.check()
        return payloads

    def check(self) -> None:
        """Raise ``ProtocolError`` once a malformed length was reached."""
        if self._error is not None:
            raise self._error

    def _next_length(self, start: int) -> tuple[int, int] | None:
        try:
            return self._length_at(start)
        except ProtocolError as error:
            self._error = error
            return None

    def _length_at(self, start: int) -> tuple[int, int] | None:
        length = shift = 0
        for index in range(start, min(start + _VARINT_BYTES_MAX, len(self._buffer))):
            byte = self._buffer[index]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and index > start:
                    msg = "the length of a frame must be written in as few bytes as it takes"
                    raise ProtocolError(msg)
                if not self._frame_min <= length <= self._frame_max:
                    msg = f"a frame of {length} bytes; {self._frame_min} to {self._frame_max} are allowed"
                    raise OversizedError(msg)
                return length, index + 1
            shift += 7
        if len(self._buffer) - start >= _VARINT_BYTES_MAX:
            msg = "the length of a frame must be a varint of at most 4 bytes"
            raise ProtocolError(msg)
        return None


def check_shape(payload: bytes) -> None:
    """Refuse a payload that nests deeper than ``DEPTH_MAX`` or claims more than it holds.

    Walks the msgpack headers without building anything, so that nothing is allocated for a lie.
    """
    remaining: list[int] = []  # items still to read at each open level
    position, end, items = 0, len(payload), 0
    while True:
        if position >= end:
            raise _malformed()
        position, children = _skip_header(payload, position)
        items += 1
        if position > end or items > ITEMS_MAX or children > end - position:
            raise _malformed()
        if children:
            remaining.append(children)
            if len(remaining) > DEPTH_MAX:
                msg = f"nested deeper than {DEPTH_MAX}"
                raise ProtocolError(msg)
            continue
        while remaining:
            remaining[-1] -= 1
            if remaining[-1]:
                break
            remaining.pop()
        if not remaining:
            break
    if position != end:
        raise _malformed()


def _malformed() -> ProtocolError:
    return ProtocolError(f"not one msgpack value of at most {ITEMS_MAX} items")


# First bytes from 0xc0: (bytes of the length field, fixed bytes after it). Extension types are not ours.
_FIXED: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY: Final = {0xDC: 2, 0xDD: 4}
_MAP: Final = {0xDE: 2, 0xDF: 4}


def _skip_header(payload: bytes, position: int) -> tuple[int, int]:
    """Position after this value (or after its header, for a container) and how many items follow."""
    first = payload[position]
    position += 1
    if first < 0x80 or first >= 0xE0:
        return position, 0
    if first < 0x90:
        return position, 2 * (first & 0x0F)
    if first < 0xA0:
        return position, first & 0x0F
    if first < 0xC0:
        return position + (first & 0x1F), 0
    if first in _FIXED:
        return position + _FIXED[first], 0
    for table in (_SIZED, _ARRAY, _MAP):
        if first in table:
            width = table[first]
            value = int.from_bytes(payload[position : position + width], "big")
            position += width
            if table is _SIZED:
                return position + value, 0
            return position, value * (2 if table is _MAP else 1)
    raise _malformed()
