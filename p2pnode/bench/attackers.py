"""Peers that misbehave: for ``bench attacks``, over loopback, and for the tests, in memory and virtual time.

An attacker has a peer id and an address of its own, and speaks Noise and yamux as an honest peer does. What
it says then is the attack's business.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection

from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.transports import wrap
from p2pnode.net.upgrader import Upgrader
from p2pnode.net.yamux import Yamux, YamuxStream

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
        muxed = await self._upgrader.upgrade_outbound(RawConnection(raw, True), self._victim.peer)
        self._nursery.start_soon(muxed.start)
        await muxed.event_started.wait()
        return muxed

    async def open(self, connection: Yamux, protocol: str, then: bytes = b"") -> YamuxStream:
        """A stream on which ``protocol`` is asked for, and ``then`` sent without waiting for the answer."""
        stream = connection.open_stream()
        await stream.write(line(MULTISTREAM[:-1]) + line(protocol.encode()) + then)
        return stream


async def _until_refused(attempt: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(Exception):  # refused, reset or cut off: an attacker goes on elsewhere
        await attempt()


async def hold_silent_streams(
    attackers: list[Attacker], protocol: str, *, connections: int, streams: int
) -> None:
    """Open ``connections`` and ``streams`` in all, evenly, and say nothing on them."""

    async def connection(index: int) -> None:
        attacker = attackers[index % len(attackers)]
        muxed = await attacker.connect()
        for _ in range(streams // connections):
            await attacker.open(muxed, protocol)

    async with trio.open_nursery() as nursery:
        for index in range(connections):
            nursery.start_soon(_until_refused, partial(connection, index))


async def half_open_for_ever(attackers: list[Attacker], *, per_s: float) -> None:
    """Begin ``per_s`` handshakes a second, evenly, and never go on with them. Runs until cancelled."""
    async with trio.open_nursery() as nursery:
        index = 0
        while True:
            nursery.start_soon(_until_refused, attackers[index % len(attackers)].half_open)
            index += 1
            await trio.sleep(1 / per_s)
