"""multistream-select 1.0, both sides, bounded: which protocol a connection or a stream speaks.

The library's side that answers keeps a line of any length. Here a line has at most ``LINE_MAX`` bytes, and
who proposes one unknown protocol after another is cut off. Deadlines are the caller's. See
``protocols/transport/SPEC.md``.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final, Protocol

from p2pnode.errors import ProtocolError, RemoteError
from p2pnode.protocols.framing.codec import pack_frame

MULTISTREAM: Final = "/multistream/1.0.0"
NOT_SPOKEN: Final = "na"
LINE_MAX: Final = 1024
PROPOSALS_MAX: Final = 16
"""Unknown protocols that may be proposed on one stream: a peer that speaks several versions tries each."""
_LENGTH_BYTES_MAX: Final = 2
"""Of the varint before a line: enough for ``LINE_MAX``."""
_MORE: Final = 0x80
"""The bit of a varint's byte that another one follows."""


class NotSpokenError(RemoteError):
    """The peer answered, and speaks none of the protocols."""


class CutShortError(ProtocolError):
    """The other side ended before a protocol was agreed: it may have changed its mind, or have left."""


class ByteStream(Protocol):
    """A stream or a bare connection."""

    async def read(self, n: int | None = None, /) -> bytes:
        """Between 1 and ``n`` bytes; empty, or an error, at the end."""
        ...

    async def write(self, data: bytes, /) -> None:
        """Send all of it."""
        ...


async def propose(stream: ByteStream, protocols: Sequence[str]) -> str:
    """The first of ``protocols`` that the other side speaks. Header and first proposal go in one write.

    Raises ``NotSpokenError``, ``ProtocolError``, and whatever ``stream`` raises.
    """
    await stream.write(_line(MULTISTREAM) + _line(protocols[0]))
    await _expect_header(stream)
    for index, protocol in enumerate(protocols):
        if index:
            await stream.write(_line(protocol))
        answer = await _read_line(stream)
        if answer == protocol:
            return protocol
        if answer != NOT_SPOKEN:
            msg = f"unexpected answer to {protocol}"
            raise ProtocolError(msg)
    msg = f"the peer speaks none of {', '.join(protocols)}"
    raise NotSpokenError(msg)


async def answer(stream: ByteStream, spoken: Container[str]) -> str:
    """The first protocol that is proposed and among ``spoken``. Raises as :func:`propose` does."""
    await stream.write(_line(MULTISTREAM))
    await _expect_header(stream)
    for _ in range(PROPOSALS_MAX):
        proposed = await _read_line(stream)
        if proposed in spoken:
            await stream.write(_line(proposed))
            return proposed
        await stream.write(_line(NOT_SPOKEN))
    msg = f"{PROPOSALS_MAX} protocols proposed, none of them spoken here"
    raise ProtocolError(msg)


async def _expect_header(stream: ByteStream) -> None:
    if await _read_line(stream) != MULTISTREAM:
        raise ProtocolError("the peer doesn't speak multistream-select")


def _line(text: str) -> bytes:
    return pack_frame(text.encode() + b"\n", LINE_MAX)


async def _read_line(stream: ByteStream) -> str:
    length = 0
    for index in range(_LENGTH_BYTES_MAX):
        byte = (await _read_exactly(stream, 1))[0]
        length |= (byte & ~_MORE) << (7 * index)
        if not byte & _MORE:
            break
    else:
        raise ProtocolError("a line of multistream-select that is too long")
    if not 0 < length <= LINE_MAX:
        msg = f"a line of multistream-select of {length} bytes"
        raise ProtocolError(msg)
    line = await _read_exactly(stream, length)
    return line.removesuffix(b"\n").decode("utf-8", "replace")


async def _read_exactly(stream: ByteStream, count: int) -> bytes:
    data = await stream.read(count)
    while 0 < len(data) < count:
        more = await stream.read(count - len(data))
        if not more:
            break
        data += more
    if len(data) < count:
        raise CutShortError("the end of a stream came before its protocol was agreed")
    return data
