"""Every protocol that a whole node speaks, attacked by peers: raw below Noise, yamux, and stream by stream.

The nodes run in one memory net and in virtual time, so that no deadline costs a real second.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.network.connection.raw_connection import RawConnection
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.limits import Limits
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net import yamux as wire
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.upgrader import Upgrader
from p2pnode.payments.books import open_journal
from p2pnode.payments.checkpoints import serve_receipts
from p2pnode.protocols.adverts.messages import topic_of
from p2pnode.protocols.inference.messages import CODEC as INFERENCE
from p2pnode.protocols.inference.messages import Open
from tests.fuzz.conftest import Counted
from tests.fuzz.corpus import gossip, identify, kad, messages, prefixed
from tests.fuzz.mutations import Input, Mutate, Tally, by_bytes, inputs, msgpack_values
from tests.host.support import honest_answer
from tests.net.memory_world import ip_of, seed_of
from tests.node.world import Member, World, scripted_host, world
from tests.storage.blob_world import serve_store

PER_PEER = 8
"""A node talks no more to a peer after ten faults: each attacker gets as many tries as count."""
PER_PATIENT_PEER = 50
"""Where faults aren't counted against it."""
PER_LEFT_PEER = 1
"""Where faults weigh so much that one input may hold enough of them to end the connection."""
PATIENCE_S = 0.5
SHARE = [100, pytest.param(10_000, marks=pytest.mark.long)]


def frame(payload: bytes) -> bytes:
    """A frame of ours around any payload, be it too long or empty."""
    length, head = len(payload), bytearray()
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*head, length]) + payload


@contextlib.asynccontextmanager
async def under_attack(folder: Path) -> AsyncIterator[tuple[World, Member]]:
    """A host with all its protocols; afterwards it serves an honest client, and nothing is left over."""
    async with world() as w, open_journal(folder / "journal.sqlite") as journal:
        member = await w.add([scripted_host(tokens_per_s=5000)])
        serve_store(member)
        serve_receipts(member.node, journal)
        async with w.client(member.node.multiaddrs[:1]) as client:
            await honest_answer(client)
        await trio.sleep(60)
        before = trio.lowlevel.current_statistics().tasks_living
        yield w, member
        await trio.sleep(300)  # the longest of its deadlines
        assert member.node.network.connected_peers() == ()
        assert trio.lowlevel.current_statistics().tasks_living <= before
        assert member.node.network.statistics().tasks_failed == {}
        async with w.client(member.node.multiaddrs[:1]) as client:
            await honest_answer(client)


@contextlib.asynccontextmanager
async def attacker(w: World, target: Member, number: int) -> AsyncIterator[Network]:
    """A connected peer that nobody has met before."""
    ip = f"10.{100 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"
    network = Network(
        NetworkConfig(
            key_seed=seed_of(10_000 + number), dht="off", gossip=False, transport=w.net.transport(ip)
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await network.connect(target.node.multiaddrs[0])
        yield network
        await network.aclose()
        nursery.cancel_scope.cancel()


def in_batches(made: Iterator[Input], size: int) -> Iterator[list[Input]]:
    """So many at a time."""
    while batch := list(islice(made, size)):
        yield batch


async def say(network: Network, target: Member, protocol: str, data: bytes) -> str:
    """What comes of these bytes on a stream of their own."""
    try:
        stream = await network.open_stream(target.node.peer_id, protocol)
    except UnreachableError:
        return "no stream"
    outcome = "silence"
    try:
        with trio.move_on_after(PATIENCE_S):
            await stream.send_all(data)
            await stream.send_eof()
            outcome = "ended"
            while await stream.receive_some():
                outcome = "answered"
    except UnreachableError:
        outcome = outcome if outcome == "answered" else "reset"
    await stream.reset()
    return outcome


@dataclass(frozen=True)
class Spoken:
    """A protocol, valid payloads of it, and how they are framed."""

    protocol: str
    corpus: Sequence[bytes]
    mutate: Mutate = by_bytes
    pack: Callable[[bytes], bytes] = frame
    per_peer: int = PER_PATIENT_PEER


def _inference() -> list[bytes]:
    opens = Open(model=scripted_model_id(), salt=bytes(32), holder=bytes(16), valid_before=0)
    return [INFERENCE.encode(opens), *messages("inference")]


TOPIC = topic_of(scripted_model_id())
PROTOCOLS = {
    "adverts": Spoken("/p2pnode/adverts/1", messages("adverts"), msgpack_values),
    "inference": Spoken("/p2pnode/inference/1", _inference(), msgpack_values, per_peer=PER_PEER),
    "checkpoint": Spoken("/p2pnode/checkpoint/1", messages("checkpoint"), msgpack_values, per_peer=PER_PEER),
    "blob": Spoken("/p2pnode/blob/1", messages("blob"), msgpack_values, per_peer=PER_PEER),
    "identify": Spoken("/ipfs/id/1.0.0", identify(), pack=prefixed),
    "identify push": Spoken("/ipfs/id/push/1.0.0", identify(), pack=prefixed, per_peer=PER_LEFT_PEER),
    "ping": Spoken("/ipfs/ping/1.0.0", [bytes(range(32)), bytes(31), bytes(64)], pack=bytes),
    "meshsub": Spoken("/meshsub/1.1.0", gossip(TOPIC), pack=prefixed, per_peer=PER_LEFT_PEER),
    "kad": Spoken("/p2pnode/kad/1.0.0", kad(), pack=prefixed, per_peer=PER_LEFT_PEER),
}


class Attackers:
    """On one node; each is a stranger."""

    def __init__(self, w: World, target: Member) -> None:
        self._w, self._target, self._number = w, target, 0

    async def speak(self, spoken: Spoken, made: Iterator[Input], tally: Tally) -> None:
        """All of these, each on a stream of its own."""
        for batch in in_batches(made, spoken.per_peer):
            self._number += 1
            async with attacker(self._w, self._target, self._number) as network:
                for each in batch:
                    with each.told():
                        outcome = await say(network, self._target, spoken.protocol, each.data)
                    tally.outcomes[outcome] += 1


def _inputs(name: str, count: int) -> Iterator[Input]:
    spoken = PROTOCOLS[name]
    return inputs(f"{name} streams", count, spoken.corpus, spoken.mutate, spoken.pack)


@pytest.mark.long
@pytest.mark.parametrize("name", PROTOCOLS)
async def test_a_protocol_withstands_whatever_is_said_on_its_streams(
    name: str, counted: Counted, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with under_attack(tmp_path) as (w, member):
        with counted(f"{name} streams") as tally:
            await Attackers(w, member).speak(PROTOCOLS[name], _inputs(name, 10_000), tally)
        assert tally.outcomes["no stream"] == 0


async def test_all_protocols_withstand_some_of_what_is_said_on_their_streams(
    counted: Counted, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with under_attack(tmp_path) as (w, member):
        attackers = Attackers(w, member)
        for name, spoken in PROTOCOLS.items():
            with counted(f"{name} streams") as tally:
                await attackers.speak(spoken, _inputs(name, 100), tally)
            assert tally.outcomes["no stream"] == 0


FRAMES = [
    wire.frame(wire.WINDOW_UPDATE, wire.SYN, 1, 0),
    wire.frame(wire.DATA, wire.SYN, 1, 20) + b"\x13/multistream/1.0.0\n",
    wire.frame(wire.DATA, 0, 1, 5) + b"hello",
    wire.frame(wire.DATA, wire.FIN, 1, 0),
    wire.frame(wire.WINDOW_UPDATE, wire.RST, 1, 0),
    wire.frame(wire.PING, wire.SYN, 0, 7),
    wire.frame(wire.GO_AWAY, 0, 0, 0),
]
HANDSHAKE = [
    b"\x13/multistream/1.0.0\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + bytes(range(32)),
    b"\x13/multistream/1.0.0\n\x03ls\n",
    b"\x13/multistream/1.0.0\n\x0a/plaintext\n",
]


async def _read_to_end(conn: Any, tally: Tally) -> None:
    outcome = "kept open"
    with trio.move_on_after(PATIENCE_S):
        try:
            while await conn.read():
                pass
            outcome = "ended"
        except Exception:  # noqa: BLE001  the library's stream has several ways to say that it is over
            outcome = "ended"
    tally.outcomes[outcome] += 1


@pytest.mark.parametrize("count", SHARE)
@pytest.mark.parametrize("layer", ["handshake", "multiplexer"])
async def test_the_layers_below_the_protocols_withstand_whatever_they_are_sent(
    layer: str, count: int, counted: Counted, tmp_path: Path, autojump_clock: MockClock
) -> None:
    corpus = HANDSHAKE if layer == "handshake" else FRAMES
    # A connection takes several frames: what the first of them did is there when the last comes.
    made = inputs(layer, count, [b"".join(corpus[:end]) for end in range(1, len(corpus) + 1)])
    async with under_attack(tmp_path) as (w, member):
        with counted(layer) as tally:
            for each in made:
                where = f"10.{200 + each.number // 62_500}.{each.number // 250 % 250}.{each.number % 250 + 1}"
                raw = await w.net.dial(where, (ip_of(member.index), 4001))
                with each.told():
                    conn: Any = raw
                    if layer == "multiplexer":
                        upgrader = Upgrader(seed_of(20_000 + each.number), Limits())
                        muxed: Any = await upgrader.upgrade_outbound(
                            RawConnection(raw, True), member.node.peer_id
                        )
                        conn = muxed.secured_conn
                    with contextlib.suppress(Exception):  # it may be cut off before all is written
                        await conn.write(each.data)
                    await _read_to_end(conn, tally)
                await conn.close()
