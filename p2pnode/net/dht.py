"""``Dht``: the DHT of one node: Kademlia's machine over the network's streams, to find who provides a key.

It decides nothing about peers and records (``protocols/kademlia``): it puts questions, answers those of
others, keeps time, and says which addresses are dialled on a stranger's word. Answers are hints.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, Protocol, assert_never

import structlog
import trio
from multiaddr import Multiaddr

from p2pnode.errors import ConfigError, ProtocolError, RemoteError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net.conduct import SLOW_S, Verdict
from p2pnode.net.multiaddrs import PeerAddresses, is_peer, parse, with_peer, without_peer
from p2pnode.net.stream import Stream
from p2pnode.protocols.events import (
    CancelTimer,
    Command,
    Emit,
    Event,
    Fault,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.framing.codec import FrameDecoder, OversizedError, pack_frame
from p2pnode.protocols.kademlia.lookup import ANSWER_S
from p2pnode.protocols.kademlia.messages import (
    ANSWER_MAX,
    ANSWER_SENT_MAX,
    QUESTION_MAX,
    Message,
    decode,
    encode,
    record_key,
)
from p2pnode.protocols.kademlia.node import (
    Abandon,
    Answered,
    AskPeer,
    Disconnected,
    Ended,
    FindProviders,
    Identified,
    KademliaCommand,
    KademliaNode,
    Provide,
    Unanswered,
)
from p2pnode.protocols.kademlia.server import IDLE_S, MALFORMED
from p2pnode.shares import FairShares, Origin
from p2pnode.tasks import Guard

log = structlog.get_logger()

STREAMS_PER_PEER: Final = 4
STREAMS_MAX: Final = 64
"""Streams of others on which questions may come, shared out by origin."""
MALFORMED_WEIGHT: Final = 5.0
_TEXTS_CACHED: Final = 8192
_PLAIN: Final = ((b"\x04", 4, "ip4"), (b"\x29", 16, "ip6"))
"""The code of an IP address in a binary multiaddr, its bytes, and its name."""
_TCP, _WS = b"\x06", b"\xdd\x03"


class DhtNetwork(Protocol):
    """What the DHT needs of the network below it."""

    peer_id: PeerId

    @property
    def guard(self) -> Guard: ...
    @property
    def announced(self) -> tuple[str, ...]: ...
    def is_connected(self, peer: PeerId) -> bool: ...
    def speaks(self, peer: PeerId, protocol: str) -> bool | None: ...
    def stated_addresses(self, peer: PeerId) -> tuple[str, ...]: ...
    def was_reached(self, peer: PeerId) -> bool: ...
    def origin_of(self, peer: PeerId) -> Origin: ...
    def origin_at(self, address: str, peer: PeerId) -> Origin: ...
    def dialable(self, addresses: Iterable[str]) -> tuple[str, ...]: ...
    def watch_peers(self, callback: Callable[[PeerId, Any], object]) -> None: ...
    def charge(self, peer: PeerId, fault: str, weight: float) -> Verdict: ...
    def serve(
        self, protocol: str, handler: Callable[[Stream], Any], *, streams_per_peer: int | None = None
    ) -> None: ...
    async def connect_peer(self, peer: PeerId, heard: Sequence[str]) -> None: ...
    async def open_stream(self, peer: PeerId, protocol: str) -> Stream: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider(PeerAddresses):
    """A peer that is said to provide a key, and the origins of those who say so."""

    tellers: frozenset[Origin]


@dataclass(slots=True)
class _Waiting:
    """A caller that waits for a lookup."""

    over: trio.Event = field(default_factory=trio.Event)
    ended: Ended | None = None


class Dht:
    """See the module. It runs between ``start`` and the end of the nursery."""

    def __init__(
        self,
        network: DhtNetwork,
        mode: Literal["server", "client"],
        *,
        protocol: str,
        draw: Callable[[int], int],
    ) -> None:
        self._network, self._protocol = network, protocol
        self._machine = KademliaNode(
            network.peer_id,
            mode,
            draw=draw,
            origin_of=network.origin_of,
            origin_at=self._origin_at,
            dialable=self._dialable,
            reached=network.was_reached,
            own_addresses=lambda: to_binary(network.announced),
        )
        self._nursery: trio.Nursery | None = None
        self._timers: dict[str, float] = {}
        self._timers_changed = trio.Event()
        self._waiting: dict[int, _Waiting] = {}
        self._lookups = 0
        self._places: FairShares[int] = FairShares(STREAMS_MAX)
        self._streams: dict[int, trio.CancelScope] = {}
        self._streams_seen = 0
        network.watch_peers(self._peer_changed)
        if mode == "server":
            network.serve(protocol, self._serve, streams_per_peer=STREAMS_PER_PEER)

    def start(self, nursery: trio.Nursery) -> None:
        """Run in ``nursery``."""
        self._nursery = nursery
        nursery.start_soon(self._network.guard.run, self._run_timers)
        self._perform(self._machine.start(trio.current_time()))

    def stop(self) -> None:
        """Start nothing new."""
        self._nursery = None

    def size(self) -> int:
        """The number of peers in the routing table."""
        return len(self._machine.table)

    async def provide(self, key: bytes) -> bool:
        """Store a record of this node with the closest peers; false when none took it in time."""
        ended = await self._look_up(lambda number: Provide(number, record_key(key)))
        return ended is not None and ended.stored > 0

    async def find_providers(self, key: bytes, limit: int) -> list[Provider]:
        """Up to ``limit`` peers that are said to provide ``key``, those that most origins name first."""
        ended = await self._look_up(lambda number: FindProviders(number, record_key(key), limit))
        named = ended.providers if ended is not None else ()
        return [
            Provider(
                peer=each.peer,
                addrs=tuple(with_peer(address, each.peer) for address in to_text(each.addresses)),
                tellers=each.tellers,
            )
            for each in named
            if is_peer(each.peer)
        ]

    async def _look_up(self, command: Callable[[int], KademliaCommand]) -> Ended | None:
        self._lookups = number = self._lookups + 1
        self._waiting[number] = waiting = _Waiting()
        try:
            self._give(Command(command(number)))
            if self._nursery is not None:
                await waiting.over.wait()
        finally:
            del self._waiting[number]
            if waiting.ended is None:
                self._give(Command(Abandon(number)))
        return waiting.ended

    # ---- the machine

    def _give(self, event: Event) -> None:
        """Hand an event to the machine, and do what it says."""
        try:
            effects = self._machine.handle(event, trio.current_time())
        except Exception as error:  # noqa: BLE001  a defect here must end neither the timers nor a connection
            self._network.guard.note("dht", error)
            return
        self._perform(effects)

    def _perform(self, effects: Iterable[Any]) -> None:
        for effect in effects:
            match effect:
                case SetTimer(key=key, at=at):
                    self._timers[key] = at
                    self._timers_changed.set()
                case CancelTimer(key=key):
                    self._timers.pop(key, None)
                case Emit(value=AskPeer() as asked):
                    if self._nursery is not None:
                        self._nursery.start_soon(self._network.guard.run, self._ask, asked)
                case Emit(value=Ended() as ended):
                    if (waiting := self._waiting.get(ended.id)) is not None:
                        waiting.ended = ended
                        waiting.over.set()
                case _:
                    assert_never(effect)

    async def _run_timers(self) -> None:
        while True:
            self._timers_changed = trio.Event()
            with trio.move_on_at(min(self._timers.values(), default=math.inf)):
                await self._timers_changed.wait()
            now = trio.current_time()
            for key in [key for key, at in self._timers.items() if at <= now]:
                if self._timers.pop(key, math.inf) <= now:  # an earlier one may have set it anew
                    self._give(TimerFired(key))

    def _peer_changed(self, peer: PeerId, change: str) -> None:
        if change == "identified":
            serves = self._network.speaks(peer, self._protocol) is True
            self._give(Command(Identified(peer, to_binary(self._network.stated_addresses(peer)), serves)))
        elif change == "disconnected":
            self._give(Command(Disconnected(peer)))

    # ---- questions of ours

    async def _ask(self, asked: AskPeer) -> None:
        peer, ask = asked.ask.peer, asked.ask
        report: Answered | Unanswered = Unanswered(asked.id, peer)
        try:
            with trio.move_on_after(ANSWER_S):
                if not self._network.is_connected(peer):
                    await self._network.connect_peer(peer, to_text(ask.addresses))
                report = Answered(asked.id, peer, await self._exchange(peer, ask.question))
        except OversizedError as error:
            # Implementations differ in what they keep and send: it is no answer, and no fault.
            log.debug("dht.oversized", peer=peer, error=str(error))
        except ProtocolError as error:
            log.debug("dht.malformed", peer=peer, error=str(error))
            self._network.charge(peer, MALFORMED, MALFORMED_WEIGHT)
        except RemoteError as error:
            log.debug("dht.unanswered", peer=peer, error=str(error))
        self._give(Command(report))

    async def _exchange(self, peer: PeerId, question: Message) -> Message | None:
        """The answer; None to a question that has none. Raises ``RemoteError``."""
        stream = await self._network.open_stream(peer, self._protocol)
        done = False
        try:
            await stream.send_all(pack_frame(encode(question), ANSWER_SENT_MAX))
            if question.kind == "add_provider":
                done = True
                return None
            decoder = FrameDecoder(ANSWER_MAX)
            while not (payloads := decoder.feed(await _some(stream))):
                pass
            answer = decode(payloads[0])
            done = True
            return answer
        finally:
            await (stream.aclose() if done else stream.reset())

    # ---- questions of others

    async def _serve(self, stream: Stream) -> None:
        """Answer questions until the stream is silent, or another origin needs its place."""
        self._streams_seen = ref = self._streams_seen + 1
        entered, victim = self._places.enter(
            ref, self._network.origin_of(stream.peer), lambda held: next(iter(held))
        )
        if victim is not None:
            self._streams[victim].cancel()
        if not entered:
            await stream.reset()
            return
        try:
            with trio.CancelScope() as scope:
                self._streams[ref] = scope
                await self._answer_all(stream, ref)
                return
            await stream.reset()
        finally:
            self._places.leave(ref)
            del self._streams[ref]

    async def _answer_all(self, stream: Stream, ref: int) -> None:
        decoder = FrameDecoder(QUESTION_MAX)
        try:
            while True:
                with trio.move_on_after(IDLE_S) as scope:
                    while not (payloads := decoder.feed(data := await stream.receive_some())):
                        if not data:
                            return
                    for payload in payloads:
                        await self._answer(stream, ref, decode(payload))
                    decoder.check()
                if scope.cancelled_caught:
                    await stream.reset()
                    return
        except ProtocolError:
            self._network.charge(stream.peer, MALFORMED, MALFORMED_WEIGHT)
            raise

    async def _answer(self, stream: Stream, ref: int, question: Message) -> None:
        for effect in self._machine.handle(Received(stream.peer, ref, question), trio.current_time()):
            match effect:
                case Send(message=message):
                    await stream.send_all(pack_frame(encode(message), ANSWER_SENT_MAX))
                case Emit(value=Fault() as fault):
                    if self._network.charge(fault.peer, fault.name, fault.weight) == "slow":
                        await trio.sleep(SLOW_S)
                case _:
                    self._perform([effect])

    # ---- addresses

    def _dialable(self, addresses: Sequence[bytes]) -> tuple[bytes, ...]:
        by_text = {text: each for each in addresses if (text := text_of(each)) is not None}
        return tuple(by_text[text] for text in self._network.dialable(by_text))

    def _origin_at(self, peer: PeerId, addresses: Sequence[bytes]) -> Origin:
        return self._network.origin_at(next(iter(to_text(addresses)), ""), peer)


async def _some(stream: Stream) -> bytes:
    data = await stream.receive_some()
    if not data:
        raise UnreachableError("it ended the stream before it had answered: it may be busy")
    return data


@lru_cache(_TEXTS_CACHED)
def text_of(address: bytes) -> str | None:
    """A binary multiaddr as text, without a peer; None for what is none."""
    # Nearly all have one of these forms, and the library takes ten times as long. Strangers send many.
    for start, size, family in _PLAIN:
        tcp = 1 + size
        if address.startswith(start) and address[tcp : tcp + 1] == _TCP and address[tcp + 3 :] in (b"", _WS):
            if len(address) < tcp + 3:
                return None
            ip = ipaddress.ip_address(address[1:tcp])
            port = int.from_bytes(address[tcp + 1 : tcp + 3], "big")
            return f"/{family}/{ip}/tcp/{port}{'/ws' if address[tcp + 3 :] else ''}"
    try:
        return without_peer(str(parse(str(Multiaddr(address)))))
    except Exception:  # noqa: BLE001  the library raises whatever it likes here
        return None


@lru_cache(_TEXTS_CACHED)
def _bytes_of(address: str) -> bytes | None:
    try:
        return bytes(parse(without_peer(address)).to_bytes())
    except ConfigError:
        return None


def to_text(addresses: Iterable[bytes]) -> tuple[str, ...]:
    """Those of these binary multiaddrs that are some, as text."""
    return tuple(text for each in addresses if (text := text_of(each)) is not None)


def to_binary(addresses: Iterable[str]) -> tuple[bytes, ...]:
    """Multiaddrs without their peers, as bytes."""
    return tuple(found for each in addresses if (found := _bytes_of(each)) is not None)
