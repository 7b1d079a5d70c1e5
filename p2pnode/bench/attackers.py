"""Peers that misbehave: for ``bench attacks``, over loopback, and for the tests, in memory and virtual time.

An attacker has a peer id and an address of its own, and speaks Noise and yamux as an honest peer does. What
it says then is the attack's business.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection

from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.transports import wrap
from p2pnode.net.upgrader import Upgrader
from p2pnode.net.yamux import Yamux, YamuxStream
from p2pnode.protocols.adverts.messages import topic_of
from p2pnode.protocols.framing.codec import frame_head, pack_frame
from p2pnode.protocols.gossipsub import messages as gossipsub
from p2pnode.protocols.identify import messages as identify
from p2pnode.protocols.kademlia import messages as kademlia

MULTISTREAM: Final = b"/multistream/1.0.0\n"
Dial = Callable[[str], Awaitable[ReadWriteCloser]]
"""A bare connection to the victim, from this IP address."""


@dataclass(frozen=True, slots=True)
class Victim:
    """Whom it is about, and how it is dialled."""

    peer: PeerId
    dial: Dial


def over_loopback(peer: PeerId, port: int) -> Victim:
    """A victim that listens on loopback; an attacker's address is any of 127.0.0.0/8."""

    async def dial(ip: str) -> ReadWriteCloser:
        return wrap(await trio.open_tcp_stream("127.0.0.1", port, local_address=ip))

    return Victim(peer, dial)


def line(text: bytes) -> bytes:
    """One line of multistream-select, with its length before it."""
    return bytes([len(text) + 1]) + text + b"\n"


class Attacker:
    """One peer id at one address. Its connections live in ``nursery``."""

    def __init__(self, nursery: trio.Nursery, victim: Victim, ip: str, name: str) -> None:
        self._nursery, self._victim, self.ip = nursery, victim, ip
        self._upgrader = Upgrader(hashlib.sha256(name.encode()).digest(), Limits())

    async def half_open(self, first: bytes = b"\x13") -> ReadWriteCloser:
        """A connection on which only ``first`` is ever sent."""
        raw = await self._victim.dial(self.ip)
        await raw.write(first)
        return raw

    async def connect(self) -> Yamux:
        """A whole connection. Raises whatever the library raises where the victim refuses."""
        raw = await self._victim.dial(self.ip)
        try:
            muxed = await self._upgrader.upgrade_outbound(RawConnection(raw, True), self._victim.peer)
        except BaseException:
            with trio.CancelScope(shield=True):
                await raw.close()
            raise
        self._nursery.start_soon(muxed.start)
        await muxed.event_started.wait()
        return muxed

    async def open(self, connection: Yamux, protocol: str, then: bytes = b"") -> YamuxStream:
        """A stream on which ``protocol`` is asked for, and ``then`` sent without waiting for the answer."""
        stream = connection.open_stream()
        await stream.write(line(MULTISTREAM[:-1]) + line(protocol.encode()) + then)
        return stream


async def until_refused(attempt: Callable[[], Awaitable[object]]) -> None:
    """Try; refused, reset or cut off, an attacker goes on elsewhere."""
    with contextlib.suppress(Exception):
        await attempt()


async def hold_silent_streams(
    attackers: Sequence[Attacker], protocol: str, *, connections: int, streams: int
) -> None:
    """Open ``connections`` and ``streams`` in all, evenly, and say nothing on them."""

    async def connection(index: int) -> None:
        attacker = attackers[index % len(attackers)]
        muxed = await attacker.connect()
        for _ in range(streams // connections):
            await attacker.open(muxed, protocol)

    async with trio.open_nursery() as nursery:
        for index in range(connections):
            nursery.start_soon(until_refused, partial(connection, index))


async def half_open_for_ever(attackers: Sequence[Attacker], *, per_s: float) -> None:
    """Begin ``per_s`` handshakes a second, evenly, and never go on with them. Runs until cancelled."""
    async with trio.open_nursery() as nursery:
        index = 0
        while True:
            nursery.start_soon(until_refused, attackers[index % len(attackers)].half_open)
            index += 1
            await trio.sleep(1 / per_s)


async def repeat_for_ever(
    attackers: Sequence[Attacker],
    protocol: str,
    message: Callable[[], bytes],
    *,
    per_s: float,
    stream_each: bool = False,
) -> None:
    """Each attacker says a message ``per_s`` times a second, and comes back when it was cut off.

    All go on one stream, or each on a stream of its own. Nothing is ever read. Runs until cancelled.
    """

    async def once(attacker: Attacker) -> None:
        connection = await attacker.connect()
        stream = None
        while connection.is_established:
            if stream is None or stream_each:
                stream = await attacker.open(connection, protocol)
            await stream.write(pack_frame(message(), _FRAME_MAX))
            if stream_each:
                stream.close_write()
            await trio.sleep(1 / per_s)

    async def again(attacker: Attacker) -> None:
        while True:
            await until_refused(partial(once, attacker))
            await trio.sleep(_RETRY_S)

    async with trio.open_nursery() as nursery:
        for attacker in attackers:
            nursery.start_soon(again, attacker)


# ---- what the table of attacks names

MESHSUB: Final = gossipsub.PROTOCOL_1_1
_FRAME_MAX: Final = 1 << 20
_RETRY_S: Final = 0.5
_ADDRESS: Final = bytes.fromhex("04c0000201060fa1")
_TOPIC: Final = topic_of(scripted_model_id()).encode()
_numbers = itertools.count()


def _topics(count: int) -> dict[bytes, None]:
    return {b"/p2pnode/adverts/1/%064x" % next(_numbers): None for _ in range(count)}


def grafts(count: int = 1000) -> bytes:
    """An RPC with GRAFTs of topics that nobody is on."""
    return gossipsub.Control(graft=_topics(count)).encode()


def prunes(count: int = 1000) -> bytes:
    """An RPC with PRUNEs of ever new topics."""
    return gossipsub.Control(prune=dict.fromkeys(_topics(count), 60)).encode()


def iwants(count: int = 5000) -> bytes:
    """An RPC that asks for one message again and again."""
    return gossipsub.Control(iwant=[bytes(46)] * count).encode()


def forged() -> bytes:
    """A message whose signature doesn't hold."""
    number = next(_numbers).to_bytes(8, "big")
    author = b"\x00\x24\x08\x01\x12\x20" + number * 4
    return gossipsub.Message.of(
        author=author, seqno=number, topic=_TOPIC, data=bytes(900), signature=bytes(64)
    ).encode()


def long_subscriptions() -> bytes:
    """Subscriptions to topics with names of 200 kB."""
    return gossipsub.encode_subscriptions({bytes(200_000) + next(_numbers).to_bytes(8, "big"): True})


def provider_record(addresses: int = 30_000) -> bytes:
    """A provider with far too many addresses."""
    entry = b"".join((b"\x12", bytes([len(_ADDRESS)]), _ADDRESS)) * addresses
    peer = b"\x0a\x26" + b"\x00\x24\x08\x01\x12\x20" + bytes(32) + entry
    return b"\x08\x02\x12\x22\x12\x20" + bytes(32) + b"\x4a" + frame_head(len(peer)) + peer


def large_push() -> bytes:
    """News of itself of 10 kB, mostly addresses."""
    data: bytes = identify.IDENTIFY.make(listen_addrs=[_ADDRESS] * 1000).SerializeToString()
    return data


Attack: TypeAlias = Callable[[Sequence[Attacker]], Awaitable[None]]


def _flood(protocol: str, message: Callable[[], bytes], per_s: float, *, stream_each: bool = False) -> Attack:
    return partial(repeat_for_ever, protocol=protocol, message=message, per_s=per_s, stream_each=stream_each)


ATTACKS: Final[Mapping[str, Attack]] = {
    "grafts": _flood(MESHSUB, grafts, 2.0),
    "prunes": _flood(MESHSUB, prunes, 4.0),
    "iwants": _flood(MESHSUB, iwants, 1.0),
    "forged": _flood(MESHSUB, forged, 100.0),
    "subscriptions": _flood(MESHSUB, long_subscriptions, 2.0),
    "streams": partial(hold_silent_streams, protocol=MESHSUB, connections=10, streams=512),
    "connections": partial(hold_silent_streams, protocol=MESHSUB, connections=256, streams=256),
    "handshakes": partial(half_open_for_ever, per_s=112.0),
    "dht streams": partial(hold_silent_streams, protocol=kademlia.PROTOCOL, connections=2, streams=24),
    "dht records": _flood(kademlia.PROTOCOL, provider_record, 2.0),
    "pushes": _flood(identify.PUSH, large_push, 4.0, stream_each=True),
}
"""By what is flooded or held. Each runs until it is cancelled, or returns and holds its streams."""
