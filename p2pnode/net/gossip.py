"""``Gossip``: the topics of one node: streams, queues and a timer around the machine of GossipSub.

Each peer that speaks GossipSub gets one stream of ours, and may have one to us. What waits for a peer is
bounded in bytes: one that doesn't read loses it, and its place in the meshes, and gets a new stream after a
while; its connection stays. This module decides nothing about messages, and doesn't know what they mean.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, Protocol

import structlog
import trio

from p2pnode.bounded import backoff_s
from p2pnode.errors import LocalError, ProtocolError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.conduct import SLOW_S
from p2pnode.net.conduct import Verdict as ConductVerdict
from p2pnode.net.router import Handler
from p2pnode.net.stream import Stream
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.events import (
    CancelTimer,
    Command,
    Effect,
    Emit,
    Event,
    Fault,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.framing.codec import FrameDecoder, frame_head, only_payload
from p2pnode.protocols.gossipsub.commands import (
    FAULT_WEIGHTS,
    IGNORE,
    Delivered,
    GossipCommand,
    GossipEmission,
    Join,
    Leave,
    PeerDown,
    PeerPaused,
    PeerUp,
    Publish,
    Validator,
    Verdict,
)
from p2pnode.protocols.gossipsub.messages import PROTOCOL_1_2, PROTOCOLS, RPC_MAX
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.protocols.gossipsub.router import GossipRouter
from p2pnode.shares import Origin
from p2pnode.tasks import Guard

log = structlog.get_logger()

PAYLOADS_AT_ONCE: Final = 32
"""After so many RPCs of one peer the others have a turn."""
RETRY_FIRST_S: Final = 1.0
INBOUND_PER_PEER: Final = 2
"""The second one replaces the first: a peer that lost its connection need not wait until we notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipStatistics:
    """A snapshot: ``counts`` since the start, and how much the machine keeps now, both by name."""

    counts: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)


class GossipNetwork(Protocol):
    """What gossip needs of the network below it."""

    def serve(self, protocol: str, handler: Handler, *, streams_per_peer: int | None = None) -> None: ...
    async def open_stream(self, peer: PeerId, protocol: str) -> Stream: ...
    def watch_peers(self, callback: Callable[[PeerId, Any], object]) -> None: ...
    def speaks(self, peer: PeerId, protocol: str) -> bool | None: ...
    def is_connected(self, peer: PeerId) -> bool: ...
    def origin_of(self, peer: PeerId) -> Origin: ...
    def is_dialled(self, peer: PeerId) -> bool: ...
    def charge(self, peer: PeerId, fault: str, weight: float) -> ConductVerdict: ...


class Subscription:
    """An async iterator of ``(author, data)``. When the reader lags, the newest message is dropped."""

    def __init__(self, topic: str, size: int, close: Callable[[Subscription], Any]) -> None:
        self.topic = topic
        self.dropped = 0
        self._queue: deque[tuple[PeerId, bytes]] = deque()
        self._size = size
        self._close = close
        self._ready = trio.Event()
        self._closed = False

    def deliver(self, author: PeerId, data: bytes) -> None:
        """Queue a message, or count it as dropped when the queue is full."""
        if len(self._queue) >= self._size:
            self.dropped += 1
            return
        self._queue.append((author, data))
        self._ready.set()

    def __aiter__(self) -> AsyncIterator[tuple[PeerId, bytes]]:
        return self

    async def __anext__(self) -> tuple[PeerId, bytes]:
        if self._queue:
            await trio.lowlevel.checkpoint()
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._ready = trio.Event()
            await self._ready.wait()
        return self._queue.popleft()

    def end(self) -> None:
        """Note that no more messages come: the reader's loop ends after those that are queued."""
        self._closed = True
        self._ready.set()

    async def aclose(self) -> None:
        """Unsubscribe. Never raises."""
        if not self._closed:
            self.end()
            self._close(self)
        await trio.lowlevel.checkpoint()


class _Link:
    """One peer: what waits to be sent to it, and the scopes of its two streams."""

    def __init__(self, peer: PeerId, protocol: str) -> None:
        self.peer, self.protocol = peer, protocol
        self.life = trio.CancelScope()
        self.sending: trio.CancelScope | None = None
        self.stream: Stream | None = None
        self.reading: trio.CancelScope | None = None
        self.is_known = False
        """Whether the machine was told of it."""
        self.overflown = False
        self.conduct: Literal["ok", "slow", "leave"] = "ok"
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._wake = trio.Event()

    def put(self, payloads: Sequence[bytes], most: int) -> bool:
        """Send RPCs, or queue them behind others; false where too much waits already."""
        frames = b"".join([frame_head(len(each)) + each for each in payloads])
        # Most streams have room: a task that waits to send each RPC would cost more than the RPC.
        if self.stream is not None and not self._waiting and self.stream.send_now(frames):
            return True
        if self._bytes + len(frames) > most:
            return False
        self._waiting.append(frames)
        self._bytes += len(frames)
        self._wake.set()
        return True

    async def take(self) -> bytes:
        """All that waits, as soon as something does."""
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        return b"".join(waiting)

    def clear(self) -> None:
        self._waiting, self._bytes = [], 0


class Gossip:
    """The topics of one node. Runs between ``start`` and the end of the nursery."""

    def __init__(
        self,
        network: GossipNetwork,
        *,
        peer: PeerId,
        sign: Signer,
        draw: Callable[[], float],
        wall_clock: Callable[[], float],
        limits: Limits,
        guard: Guard,
        known_topic: Callable[[str], bool],
    ) -> None:
        self._network, self._limits, self._guard = network, limits, guard
        self._router = GossipRouter(
            peer=peer,
            sign=sign,
            draw=draw,
            seqno=int(wall_clock() * 2**32),
            parameters=Parameters(heartbeat_s=limits.gossip_heartbeat_s),
            known_topic=lambda name: known_topic(name.decode(errors="replace")),
        )
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._links: dict[PeerId, _Link] = {}
        self._nursery: trio.Nursery | None = None
        self._timers: dict[str, float] = {}
        self._alarm: trio.CancelScope | None = None
        """While we wait for the next timer: its deadline is that timer's."""
        self._counts: Counter[str] = Counter()
        for protocol in PROTOCOLS:
            network.serve(protocol, self._serve, streams_per_peer=INBOUND_PER_PEER)
        network.watch_peers(self._changed)

    # ---- what a node uses

    def start(self, nursery: trio.Nursery) -> None:
        """Run in ``nursery``."""
        self._nursery = nursery
        nursery.start_soon(self._guard.run, self._watch_timers)

    def stop(self) -> None:
        """Start nothing new, and end the subscriptions."""
        self._nursery = None
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.end()

    async def publish(self, topic: str, data: bytes) -> None:
        """Sign and send to the peers on the topic; our own validator and subscriptions see it too."""
        self._command(Publish(topic, data))
        await trio.lowlevel.checkpoint()

    async def subscribe(self, topic: str, validator: Validator) -> Subscription:
        """Join ``topic``. A topic has one validator: that of its latest subscription.

        Raises ``ValueError`` for a name that has other than 1 to 100 bytes.
        """

        def validate(author: PeerId, data: bytes) -> Verdict:
            try:
                return validator(author, data)
            except Exception as error:  # noqa: BLE001  a validator's mistake must not stop the topic
                log.warning("gossip.validator_failed", topic=topic, author=author, error=repr(error))
                return IGNORE

        self._command(Join(topic, validate))
        subscription = Subscription(topic, self._limits.gossip_queue, self._leave)
        self._subscriptions.setdefault(topic, []).append(subscription)
        await trio.lowlevel.checkpoint()
        return subscription

    def topic_peers(self, topic: str) -> tuple[PeerId, ...]:
        """The connected peers that are known to be on ``topic``."""
        return self._router.topic_peers(topic)

    def statistics(self) -> GossipStatistics:
        """A snapshot."""
        unread = sum(each.dropped for listed in self._subscriptions.values() for each in listed)
        counts = {**self._router.counts, **self._counts, "unread": self._counts["unread"] + unread}
        return GossipStatistics(counts=counts, held=dict(self._router.held()))

    # ---- the machine

    def _command(self, command: GossipCommand) -> None:
        self._give(Command(command))

    def _give(self, event: Event) -> None:
        # Nothing here waits: what one event decides is queued before the next one comes.
        self._perform(self._router.handle(event, trio.current_time()))

    def _received(self, peer: PeerId, payload: bytes) -> None:
        effects = self._router.received(peer, payload, trio.current_time())
        if effects:  # of most copies none come
            self._perform(effects)

    def _perform(self, effects: Sequence[Effect]) -> None:
        sends: dict[PeerId, list[bytes]] = {}
        for effect in effects:  # by type, not by patterns: this runs for each message
            if type(effect) is Send:
                sends.setdefault(effect.peer, []).append(effect.message)
            elif type(effect) is SetTimer:
                self._timers[effect.key] = effect.at
                self._set_alarm()
            elif type(effect) is Emit:
                self._emitted(effect.value)
            elif type(effect) is CancelTimer:
                self._timers.pop(effect.key, None)
                self._set_alarm()
        for peer, payloads in sends.items():  # those of one moment share a packet
            self._send(peer, payloads)

    def _emitted(self, value: GossipEmission) -> None:
        if type(value) is Delivered:
            for subscription in self._subscriptions.get(value.topic, ()):
                subscription.deliver(value.author, value.data)
        elif type(value) is Fault:
            self._charge(value.peer, value.name, value.weight)

    def _set_alarm(self) -> None:
        """To set a deadline costs trio more than to look at it."""
        if self._alarm is not None:
            at = min(self._timers.values(), default=math.inf)
            if at != self._alarm.deadline:
                self._alarm.deadline = at

    def _send(self, peer: PeerId, payloads: Sequence[bytes]) -> None:
        link = self._links.get(peer)
        if link is None or link.sending is None or link.overflown:
            return
        if not link.put(payloads, self._limits.gossip_send_bytes):
            link.overflown = True
            link.clear()
            link.sending.cancel()
            self._counts["overflows"] += 1
            log.debug("gossip.peer_does_not_read", peer=peer)

    def _charge(self, peer: PeerId, fault: str, weight: float) -> None:
        verdict = self._network.charge(peer, f"gossip.{fault}", weight)
        if (link := self._links.get(peer)) is not None and verdict != "ok":
            link.conduct = verdict

    async def _watch_timers(self) -> None:
        while True:
            with trio.CancelScope(deadline=min(self._timers.values(), default=math.inf)) as self._alarm:
                await trio.sleep_forever()
            self._alarm = None
            now = trio.current_time()
            for key in [each for each, at in self._timers.items() if at <= now]:
                del self._timers[key]
                try:
                    self._give(TimerFired(key))
                except Exception as error:  # noqa: BLE001  without its timers a node falls out of every mesh
                    self._guard.note("gossip.timer", error)

    # ---- peers

    def _changed(self, peer: PeerId, change: str) -> None:
        if change == "disconnected":
            if (link := self._links.pop(peer, None)) is not None:
                link.life.cancel()
                self._command(PeerDown(peer))
        elif change == "identified":
            spoken = next((each for each in PROTOCOLS if self._network.speaks(peer, each)), None)
            if spoken is not None:
                self._link(peer, spoken)

    def _link(self, peer: PeerId, protocol: str) -> _Link | None:
        link = self._links.get(peer)
        if link is None and self._nursery is not None:
            link = self._links[peer] = _Link(peer, protocol)
            self._nursery.start_soon(self._guard.run, self._keep, link)
        return link

    async def _keep(self, link: _Link) -> None:
        """Have one stream to the peer as long as it is connected; a lost one is replaced after a wait."""
        failures = 0
        with link.life:
            while True:
                try:
                    stream = await self._network.open_stream(link.peer, link.protocol)
                except UnreachableError as error:
                    log.debug("gossip.no_stream", peer=link.peer, reason=str(error))
                    failures += 1
                else:
                    began = trio.current_time()
                    await self._write(link, stream)
                    # A peer that takes each stream and drops it is asked less and less often.
                    failures = (
                        0 if trio.current_time() >= began + self._limits.gossip_retry_s else failures + 1
                    )
                wait_s = self._limits.gossip_retry_s
                if not link.overflown:
                    wait_s = backoff_s(max(0, failures - 1), first_s=RETRY_FIRST_S, max_s=wait_s)
                await trio.sleep(wait_s)

    async def _write(self, link: _Link, stream: Stream) -> None:
        try:
            with trio.CancelScope() as link.sending:
                link.overflown, link.stream = False, stream
                self._tell(link, takes=True)
                while True:
                    await stream.send_all(await link.take())
        except UnreachableError as error:
            log.debug("gossip.stream_lost", peer=link.peer, reason=str(error))
        finally:
            link.sending = link.stream = None
            link.clear()
            if self._links.get(link.peer) is link:
                self._command(PeerPaused(link.peer))
            await stream.reset()

    def _tell(self, link: _Link, *, takes: bool) -> None:
        origin = self._network.origin_of(link.peer)
        link.is_known = True
        self._command(
            PeerUp(
                link.peer,
                idontwant=link.protocol == PROTOCOL_1_2,
                dialled=self._network.is_dialled(link.peer),
                group=origin.near if origin.is_prefix else None,
                takes=takes,
            )
        )

    async def _serve(self, stream: Stream) -> None:
        """Read what the peer says until it ends; a later stream of the same peer replaces this one."""
        if not self._network.is_connected(stream.peer):
            # Its connection is being closed, which may take a while; of its end we have heard already.
            await stream.reset()
            return
        link = self._link(stream.peer, stream.protocol)
        if link is None:
            return
        if link.reading is not None:
            link.reading.cancel()
        if not link.is_known:  # it may say what it is on before our own stream to it is open
            self._tell(link, takes=False)
        with trio.CancelScope() as reading, contextlib.suppress(UnreachableError):
            link.reading = reading
            await self._read(link, stream)
        if link.reading is reading:
            link.reading = None

    async def _read(self, link: _Link, stream: Stream) -> None:
        decoder, since = FrameDecoder(RPC_MAX, frame_min=0), math.inf
        stream.take_with(partial(self._take, link, decoder))
        while self._links.get(link.peer) is link:
            if not decoder.pending:  # between RPCs silence is honest, and a scope costs more than a read
                data = await stream.receive_some()
            else:
                with trio.move_on_at(since + self._limits.first_frame_deadline_s) as patience:
                    data = await stream.receive_some()
                if patience.cancelled_caught:
                    self._charge(link.peer, "stalled", 1.0)
                    return
            if not data:
                return
            try:
                payloads = decoder.feed(data)
            except ProtocolError:
                self._charge(link.peer, "malformed", FAULT_WEIGHTS["malformed"])
                return
            for number, payload in enumerate(payloads):
                self._received(link.peer, payload)
                if link.conduct == "leave":
                    return
                if link.conduct == "slow":
                    link.conduct = "ok"
                    await trio.sleep(SLOW_S)
                elif number % PAYLOADS_AT_ONCE == PAYLOADS_AT_ONCE - 1:
                    await trio.lowlevel.checkpoint()
            if not decoder.pending:
                since = math.inf
            elif payloads or since == math.inf:
                since = trio.current_time()

    def _take(self, link: _Link, decoder: FrameDecoder, data: bytes | bytearray) -> bool:
        """Handle what came where it is one whole RPC; what is less or more is left to the reader."""
        if decoder.pending or link.conduct != "ok":
            return False
        payload = only_payload(data, RPC_MAX)
        if payload is None:
            return False
        try:
            self._received(link.peer, payload)
        except Exception as error:  # noqa: BLE001  in the task of the connection, which must go on
            self._guard.note("gossip.received", error)
        return True

    def _leave(self, subscription: Subscription) -> None:
        subscriptions = self._subscriptions.get(subscription.topic, [])
        if subscription in subscriptions:
            subscriptions.remove(subscription)
            self._counts["unread"] += subscription.dropped
        if not subscriptions and self._subscriptions.pop(subscription.topic, None) is not None:
            self._command(Leave(subscription.topic))


def off() -> LocalError:
    """The error that every gossip call raises on a network made without gossip."""
    return LocalError("this network was made without gossip (NetworkConfig.gossip=False)")
