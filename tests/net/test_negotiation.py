"""multistream-select: both sides agree, and neither waits for ever, keeps much, or believes nonsense."""

from __future__ import annotations

import contextlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.utils.varint import encode_delim
from trio.testing import MockClock

from p2pnode.bench.attackers import Attacker, Victim
from p2pnode.errors import ProtocolError
from p2pnode.net.negotiation import (
    LINE_MAX,
    MULTISTREAM,
    PROPOSALS_MAX,
    NotSpokenError,
    answer,
    propose,
)
from p2pnode.net.network import PING, PINGS_BURST, PINGS_PER_S
from tests.net.memory_world import world
from tests.net.support import eventually

HEADER = encode_delim(MULTISTREAM.encode())


class Wire:
    """One side of a stream; the other side's bytes are there from the start, a byte at a time if ``slow``."""

    def __init__(self, incoming: bytes = b"", *, slow: bool = False) -> None:
        self.incoming, self.sent, self.slow, self.most = incoming, b"", slow, 0

    async def read(self, n: int | None = None, /) -> bytes:
        count = 1 if self.slow else len(self.incoming) if n is None else n
        self.most = max(self.most, count)
        data, self.incoming = self.incoming[:count], self.incoming[count:]
        return data

    async def write(self, data: bytes, /) -> None:
        self.sent += data


class Pipe:
    """One side of a stream to another task."""

    def __init__(
        self, send: trio.MemorySendChannel[bytes], receive: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self._send, self._receive, self._held = send, receive, b""

    async def read(self, n: int | None = None, /) -> bytes:
        if not self._held:
            self._held = await self._receive.receive()
        data, self._held = self._held[:n], self._held[len(self._held) if n is None else n :]
        return data

    async def write(self, data: bytes, /) -> None:
        await self._send.send(data)


def pipes() -> tuple[Pipe, Pipe]:
    to_a, at_a = trio.open_memory_channel[bytes](16)
    to_b, at_b = trio.open_memory_channel[bytes](16)
    return Pipe(to_b, at_a), Pipe(to_a, at_b)


@pytest.mark.parametrize(("proposed", "agreed"), [(["/a"], "/a"), (["/x", "/y", "/b"], "/b")])
async def test_both_sides_agree_on_the_first_protocol_that_both_speak(
    proposed: list[str], agreed: str
) -> None:
    here, there = pipes()
    found: list[str] = []

    async def other_side() -> None:
        found.append(await answer(there, {"/a", "/b"}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other_side)
        found.append(await propose(here, proposed))
    assert found == [agreed, agreed]


async def test_header_and_first_proposal_go_in_one_write() -> None:
    wire = Wire(HEADER + encode_delim(b"/a"))
    assert await propose(wire, ["/a"]) == "/a"
    assert wire.sent == HEADER + encode_delim(b"/a")


async def test_a_peer_that_speaks_none_of_them_is_no_fault() -> None:
    wire = Wire(HEADER + encode_delim(b"na") * 2)
    with pytest.raises(NotSpokenError, match="/a, /b"):
        await propose(wire, ["/a", "/b"])


@pytest.mark.parametrize(
    "said", [b"", HEADER[:-3], encode_delim(b"/multistream/2.0.0"), HEADER + encode_delim(b"/other"), b"\x00"]
)
async def test_another_answer_is_the_peers_fault(said: bytes) -> None:
    with pytest.raises(ProtocolError):
        await propose(Wire(said), ["/a"])


@pytest.mark.parametrize("length", [b"\x81\x08", b"\xff\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x80\x40"])
async def test_a_line_that_is_too_long_is_not_read(length: bytes) -> None:
    for said in (length + bytes(4096), HEADER + length + bytes(4096)):
        wire = Wire(said)
        with pytest.raises(ProtocolError):
            await answer(wire, {"/a"})
        assert wire.most <= LINE_MAX
        assert len(wire.incoming) > 4000


async def test_the_longest_line_that_is_allowed_is_read() -> None:
    name = "/" + "a" * (LINE_MAX - 2)
    assert await answer(Wire(HEADER + encode_delim(name.encode()), slow=True), {name}) == name


async def test_who_proposes_one_unknown_protocol_after_another_is_cut_off() -> None:
    wire = Wire(HEADER + encode_delim(b"/x") * 1000)
    with pytest.raises(ProtocolError, match="protocols proposed"):
        await answer(wire, {"/a"})
    assert wire.sent.count(encode_delim(b"na")) == PROPOSALS_MAX


async def test_who_opens_a_stream_and_leaves_is_no_fault_but_noise_is(autojump_clock: MockClock) -> None:
    async with world(2) as w:
        host, client = w.nodes
        async with trio.open_nursery() as nursery:
            attacker = Attacker(
                nursery,
                Victim(host.peer_id, lambda _: w.net.dial("10.0.0.9", ("10.0.0.1", 4001))),
                "10.0.0.9",
                "noisy",
            )
            connection = await attacker.connect()
            for _ in range(20):
                connection.open_stream().close()
            await trio.sleep(1)
            assert host.statistics().faults == {}
            for _ in range(12):
                with contextlib.suppress(Exception):
                    await connection.open_stream().write(b"\xff" * 100)
                await trio.sleep(0.1)
            await eventually(lambda: len(host.connected_peers()) == 0)
            assert host.statistics().faults["malformed negotiation"] >= 10
            nursery.cancel_scope.cancel()
        await client.connect(host.multiaddrs[0])


async def test_pings_are_answered_one_by_one_and_no_faster_than_a_peer_needs(
    autojump_clock: MockClock,
) -> None:
    async with world(2) as w:
        host, client = w.nodes
        await client.connect(host.multiaddrs[0])
        stream = await client.open_stream(host.peer_id, PING)
        await stream.send_all(bytes(range(32)))
        assert await stream.receive_some() == bytes(range(32))
        await stream.send_all(bytes(32 * 1000))
        answered = 0
        with trio.move_on_after(10):
            while True:
                answered += len(await stream.receive_some())
        assert PINGS_BURST <= answered / 32 <= PINGS_BURST + 11 * PINGS_PER_S


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_end_in_an_agreement_or_the_peers_fault(data: bytes, slow: bool) -> None:
    async def both() -> None:
        for start in (b"", HEADER):
            for negotiate in (propose, answer):
                with pytest.raises(ProtocolError):
                    await negotiate(Wire(start + data, slow=slow), ["/a/protocol/that/is/long/enough"])

    trio.run(both)
