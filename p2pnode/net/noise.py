"""``NoiseConn``: a connection that is encrypted with Noise, after the handshake, which is the library's.

The library's own session asks for the two bytes of a packet's length and then for its body, through six
layers. This one takes all bytes that are there and decrypts each packet that is whole. It knows nothing of
handshakes, peers or what is said. See ``protocols/transport/SPEC.md``.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2pnode.errors import ProtocolError

_LENGTH: Final = struct.Struct(">H")
LENGTH_BYTES: Final = _LENGTH.size
PLAINTEXT_MAX: Final = 65519
"""Of one packet: 65,535 bytes with the 16 of its tag."""
_NONCE: Final = struct.Struct("<4xQ")
"""The number of a packet, in 12 bytes."""


class Wire(Protocol):
    """What carries the packets."""

    async def read(self, n: int | None = None, /) -> bytes:
        """At least one byte. Raises at the end."""
        ...

    async def write(self, data: bytes, /) -> None: ...
    def send_now(self, data: bytes, /) -> int:
        """Send the first bytes of ``data``, as many as take no wait, and say how many. Raises at the end."""
        ...

    async def close(self) -> None: ...


class NoiseConn:
    """Reads and writes may run at the same time, each in one task.

    ``sends`` and ``receives`` are the keys of the two directions, of 32 bytes each, which encrypted nothing
    yet. A cancelled write may have sent a part of a packet: close the connection.
    """

    def __init__(self, wire: Wire, *, sends: bytes, receives: bytes) -> None:
        self._wire = wire
        self._sends, self._receives = ChaCha20Poly1305(sends), ChaCha20Poly1305(receives)
        self._sent = self._received = 0
        """Packets. Their numbers are the nonces, so that none can be repeated or left out unnoticed."""
        self.taken = 0
        """Bytes of the wire so far. Small packets cost as many of them as they cost work, or more."""
        self._came = bytearray()
        """The beginning of a packet that is not whole yet."""
        self._plain = b""
        """What was decrypted and not read yet."""
        self._unsent = b""
        """The end of a packet that the wire did not take at once."""

    async def read(self, n: int | None = None) -> bytes:
        """Between 1 and ``n`` bytes, all that is there without ``n``.

        Raises at the end, and ``ProtocolError`` where a packet was forged or has nothing in it.
        """
        while not self._plain:
            came = await self._wire.read()
            self.taken += len(came)
            # Most reads bring one whole packet.
            if not self._came and len(came) > LENGTH_BYTES == len(came) - _LENGTH.unpack_from(came)[0]:
                self._plain = self._open(came[LENGTH_BYTES:])
            else:
                self._came += came
                self._decrypt()
        plain = self._plain
        if n is None or n >= len(plain):
            self._plain = b""
            return plain
        self._plain = plain[n:]
        return plain[:n]

    def _decrypt(self) -> None:
        """Decrypt the packets that have come whole."""
        came, at = self._came, 0
        pieces: list[bytes] = []
        while (begins := at + LENGTH_BYTES) <= len(came):
            ends = begins + _LENGTH.unpack_from(came, at)[0]
            if ends > len(came):
                break
            pieces.append(self._open(came[begins:ends]))
            at = ends
        del came[:at]
        self._plain = pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _open(self, packet: bytes | bytearray) -> bytes:
        """Decrypt the next packet."""
        try:
            plain = self._receives.decrypt(_NONCE.pack(self._received), packet, None)
        except InvalidTag as error:
            raise ProtocolError("a packet of Noise that was forged, repeated or left out") from error
        if not plain:  # nobody sends one, and to decrypt it is work that no byte is counted for
            raise ProtocolError("an empty packet of Noise")
        self._received += 1
        return plain

    async def write(self, data: bytes) -> None:
        """Encrypt and send all of ``data``."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._wire.write(unsent)
        for at in range(0, len(data), PLAINTEXT_MAX):
            await self._wire.write(self._packet(data[at : at + PLAINTEXT_MAX]))

    def write_now(self, data: bytes) -> bool:
        """Encrypt ``data``, at most ``PLAINTEXT_MAX`` bytes, and send what takes no wait, while no
        :meth:`write` runs. False where a rest is left: it goes ahead of the next write."""
        packet = self._packet(data)
        self._unsent = packet[self._wire.send_now(packet) :]
        return not self._unsent

    def _packet(self, data: bytes) -> bytes:
        packet = self._sends.encrypt(_NONCE.pack(self._sent), data, None)
        self._sent += 1
        return _LENGTH.pack(len(packet)) + packet

    async def close(self) -> None:
        """Close what carries the packets."""
        await self._wire.close()
