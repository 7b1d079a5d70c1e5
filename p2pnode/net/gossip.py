"""``Gossip``: topics by GossipSub, with strict signing, one validator per topic, and bounded
subscriptions.

A message reaches a subscription once, after its author's signature and the topic's validator were checked.
What the validator refuses is neither delivered nor forwarded. This module doesn't know what the bytes mean.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from p2pnode.errors import LocalError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.gossipsub import NodeGossipSub
from p2pnode.net.libp2p_host import NodeHost
from p2pnode.net.multiaddrs import from_id
from p2pnode.net.pubsub import NodePubsub
from p2pnode.net.services import ServiceManager, attach

log = structlog.get_logger()

Validator = Callable[[PeerId, bytes], bool]
"""``(author, data)``: the author is the peer whose signature the message bears, already verified."""

PROTOCOLS: Final = (TProtocol("/meshsub/1.2.0"), TProtocol("/meshsub/1.1.0"))
DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12
FORWARDER_MESSAGES_PER_S: Final = 100.0
"""Per topic, of one neighbour, who forwards for all its neighbours. Above it the library stops forwarding."""


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

    def deliver(self, author: PeerId, data: bytes) -> bool:
        """Queue a message. Returns false when the queue is full."""
        if len(self._queue) >= self._size:
            self.dropped += 1
            return False
        self._queue.append((author, data))
        self._ready.set()
        return True

    def __aiter__(self) -> AsyncIterator[tuple[PeerId, bytes]]:
        return self

    async def __anext__(self) -> tuple[PeerId, bytes]:
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
            await self._close(self)


class Gossip:
    """The topics of one node. Runs between ``start`` and the end of the nursery."""

    def __init__(self, host: NodeHost, limits: Limits, *, fast: bool) -> None:
        self._limits = limits
        self._guard = host.swarm.guard
        self._router = NodeGossipSub(
            fast=fast,
            protocols=list(PROTOCOLS),
            degree=DEGREE,
            degree_low=DEGREE_LOW,
            degree_high=DEGREE_HIGH,
            heartbeat_interval=limits.gossip_heartbeat_s,
            heartbeat_initial_delay=min(0.1, limits.gossip_heartbeat_s),
            max_messages_per_topic_per_second=FORWARDER_MESSAGES_PER_S,
            # Adaptation would change the heartbeat, and IP diversity means nothing on one LAN.
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._pubsub = NodePubsub(host, self._router, deliver=self._deliver, fast=fast)
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._managers: list[ServiceManager] = []
        self.counts: Counter[str] = Counter()

    async def start(self, nursery: trio.Nursery) -> None:
        """Run in ``nursery``; ready on return."""
        self._managers = [
            attach(self._pubsub, "pubsub", nursery, self._guard),
            attach(self._router, "gossipsub", nursery, self._guard),
        ]
        await self._pubsub.wait_until_ready()

    def stop(self) -> None:
        """Start nothing new, and end the subscriptions."""
        for manager in self._managers:
            manager.cancel()
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.end()

    async def publish(self, topic: str, data: bytes) -> None:
        """Sign and send to the topic's mesh; our own validator and subscriptions see it too."""
        self.counts["published"] += 1
        # Guarded, here and below: the library works through data of every neighbour.
        await self._guard.run(self._pubsub.publish, topic, data)

    async def subscribe(self, topic: str, validator: Validator) -> Subscription:
        """Join ``topic``. A topic has one validator: that of its latest subscription."""

        def validate(_forwarder: ID, message: rpc_pb2.Message) -> bool:
            author = from_id(ID(message.from_id))
            try:
                valid = bool(validator(author, message.data))
            except Exception as error:  # noqa: BLE001  a validator's mistake must not stop the topic
                log.warning("gossip.validator_failed", topic=topic, author=author, error=repr(error))
                valid = False
            if not valid:
                self.counts["rejected"] += 1
            return valid

        self._pubsub.set_topic_validator(topic, validate, is_async_validator=False)
        subscription = Subscription(topic, self._limits.gossip_queue, self._leave)
        self._subscriptions.setdefault(topic, []).append(subscription)
        await self._guard.run(self._pubsub.subscribe, topic)
        return subscription

    def topic_peers(self, topic: str) -> tuple[PeerId, ...]:
        """The connected peers that are known to be on ``topic``."""
        return tuple(sorted(from_id(peer) for peer in self._pubsub.peer_topics.get(topic, ())))

    def stats(self) -> dict[str, int]:
        """Counts since the start."""
        dropped = sum(s.dropped for subscriptions in self._subscriptions.values() for s in subscriptions)
        return {**self.counts, "dropped": self.counts["dropped_closed"] + dropped}

    def _deliver(self, topic: str, author: PeerId, data: bytes) -> None:
        for subscription in self._subscriptions.get(topic, ()):
            if subscription.deliver(author, data):
                self.counts["delivered"] += 1

    async def _leave(self, subscription: Subscription) -> None:
        subscriptions = self._subscriptions.get(subscription.topic, [])
        if subscription in subscriptions:
            subscriptions.remove(subscription)
            self.counts["dropped_closed"] += subscription.dropped
        if subscriptions:
            return
        self._subscriptions.pop(subscription.topic, None)
        try:
            self._pubsub.remove_topic_validator(subscription.topic)
            await self._pubsub.unsubscribe(subscription.topic)
        except Exception as error:  # noqa: BLE001  leaving must not fail
            log.debug("gossip.leave_failed", topic=subscription.topic, error=repr(error))


def off() -> LocalError:
    """The error that every gossip call raises on a network made without gossip."""
    return LocalError("this network was made without gossip (NetworkConfig.gossip=False)")
