"""Packets of Noise come out as they went in, however their bytes arrive, and nothing false does."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pnode.errors import ProtocolError
from p2pnode.net.noise import LENGTH_BYTES, PLAINTEXT_MAX, NoiseConn
from tests.net.vectors import noise_side


class Bytes:
    """A wire that gives these pieces, one with each read, and then ends."""

    def __init__(self, pieces: list[bytes] | None = None) -> None:
        self.pieces = pieces or []
        self.sent = b""
        self.room = 1 << 20
        """Bytes that it takes at once."""

    async def read(self, n: int | None = None) -> bytes:
        del n
        await trio.lowlevel.checkpoint()
        if not self.pieces:
            raise EOFError
        return self.pieces.pop(0)

    async def write(self, data: bytes) -> None:
        self.sent += data

    def send_now(self, data: bytes) -> int:
        self.sent += data[: self.room]
        return len(data[: self.room])

    async def close(self) -> None:
        self.pieces = []


KEYS = {"sends": b"\1" * 32, "receives": b"\2" * 32}
SWAPPED = {"sends": KEYS["receives"], "receives": KEYS["sends"]}


async def sent(*messages: bytes) -> bytes:
    wire = Bytes()
    conn = NoiseConn(wire, **KEYS)
    for message in messages:
        await conn.write(message)
    return wire.sent


def reader(*pieces: bytes) -> NoiseConn:
    """The other side, to which these pieces come."""
    return NoiseConn(Bytes(list(pieces)), **SWAPPED)


async def read_whole(conn: NoiseConn, most: int | None = None) -> bytes:
    found = b""
    while True:
        try:
            found += await conn.read(most)
        except EOFError:
            return found


@given(
    st.lists(st.binary(min_size=1, max_size=200), max_size=6),
    st.lists(st.integers(0, 2000), max_size=8),
    st.sampled_from([None, 1, 7, 500]),
)
def test_any_split_of_any_packets_reads_the_same(
    messages: list[bytes], cuts: list[int], most: int | None
) -> None:
    async def check() -> None:
        data = await sent(*messages)
        edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        pieces = [data[start:end] for start, end in pairwise(edges)]
        assert await read_whole(reader(*pieces), most) == b"".join(messages)

    trio.run(check, clock=MockClock(autojump_threshold=0))


async def test_packets_are_those_of_the_library() -> None:
    here, there = noise_side("dialler"), noise_side("listener")
    there.read_message(here.write_message())
    here.read_message(there.write_message())
    there.read_message(here.write_message())
    state, wire = here.noise_protocol, Bytes()
    ours = NoiseConn(wire, sends=state.cipher_state_encrypt.k, receives=state.cipher_state_decrypt.k)
    for message in (b"one", b"two"):
        await ours.write(message)
        packet, wire.sent = wire.sent[LENGTH_BYTES:], b""
        assert there.decrypt(packet) == message
        answer = there.encrypt(message[::-1])
        wire.pieces = [len(answer).to_bytes(LENGTH_BYTES, "big") + answer]
        assert await ours.read() == message[::-1]


async def test_what_came_is_counted_as_it_came() -> None:
    """Of packets with a byte each, 19 bytes come for one that is read."""
    data = await sent(*[b"x"] * 100)
    conn = reader(data[:50], data[50:])
    assert await read_whole(conn) == b"x" * 100
    assert conn.taken == len(data) == 100 * (LENGTH_BYTES + 1 + 16)


async def test_more_than_a_packet_holds_goes_out_in_several() -> None:
    message = bytes(range(256)) * 600
    data = await sent(message)
    assert int.from_bytes(data[:LENGTH_BYTES], "big") == PLAINTEXT_MAX + 16 == 65535
    assert await read_whole(reader(data)) == message


async def test_a_packet_that_was_changed_repeated_or_left_out_is_refused() -> None:
    first, both = await sent(b"one"), await sent(b"one", b"two")
    changed = first[:-1] + bytes([first[-1] ^ 1])
    for pieces in ([changed], [first, first], [both[len(first) :]], [b"\0\1x"], [b"\0\0"]):
        with pytest.raises(ProtocolError, match="forged"):
            await read_whole(reader(*pieces))


async def test_an_empty_packet_ends_the_connection() -> None:
    packet = ChaCha20Poly1305(KEYS["sends"]).encrypt(bytes(12), b"", None)
    with pytest.raises(ProtocolError, match="empty packet"):
        await read_whole(reader(len(packet).to_bytes(LENGTH_BYTES, "big") + packet))


@pytest.mark.parametrize("room", [0, 1, 20, 1 << 20])
async def test_what_the_wire_does_not_take_at_once_goes_ahead_of_the_next_packet(room: int) -> None:
    wire = Bytes()
    conn = NoiseConn(wire, **KEYS)
    await conn.write(b"first")
    wire.room = room
    assert conn.write_now(b"second") == (room == 1 << 20)
    await conn.write(b"third")
    assert await read_whole(reader(wire.sent)) == b"firstsecondthird"
    assert conn.write_now(b"fourth") == (room == 1 << 20)
    await conn.write(b"")  # no packet of its own: only the rest
    assert await read_whole(reader(wire.sent)) == b"firstsecondthirdfourth"
