"""What is remembered of messages: those that we offer, which were seen, and which were promised to us.

All of it is bounded in number and time, and what holds messages in bytes as well. Times are seconds on the
machine's clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Final, Generic, TypeVar

from p2pnode.ids import PeerId
from p2pnode.protocols.gossipsub.messages import Message
from p2pnode.protocols.gossipsub.parameters import Parameters

K = TypeVar("K", bound=Hashable)
OVERHEAD: Final = 256
"""Bytes that a message counts besides its data."""
NEVER: Final = 1e18
"""A moment that no clock reaches."""
ASKED_PEERS_MAX: Final = 16
"""Peers that are remembered of one message that was asked for, those that were asked last."""


class SeenIds(Generic[K]):
    """Keys that were seen within ``seconds``, at most ``most`` of them: the oldest is forgotten first."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._until: dict[K, float] = {}
        self._first_ends_at = 0.0
        """No key is over before."""

    def __len__(self) -> int:
        return len(self._until)

    def add(self, key: K, now: float) -> bool:
        """Note a key from ``now`` on; false where it was seen already, which doesn't lengthen its time."""
        if now >= self._first_ends_at:
            self.sweep(now)
        if key in self._until:
            return False
        if not self._until:
            self._first_ends_at = now + self._seconds
        self._until[key] = now + self._seconds
        if len(self._until) > self._most:
            del self._until[next(iter(self._until))]
        return True

    def has(self, key: K, now: float) -> bool:
        """Whether it was seen within the time."""
        until = self._until.get(key)
        return until is not None and until > now

    def missing(self, keys: Iterable[K], now: float) -> list[K]:
        """Those that were not seen within the time."""
        until = self._until.get
        return [key for key in keys if until(key, now) <= now]

    def sweep(self, now: float) -> None:
        """Forget what is over. All keys live equally long: the oldest are in front."""
        if now < self._first_ends_at:
            return
        while self._until:
            key = next(iter(self._until))
            self._first_ends_at = self._until[key]
            if self._first_ends_at > now:
                return
            del self._until[key]


class Kept:
    """A message and what is known of it. Peers are bits, those of the machine that keeps it."""

    __slots__ = (
        "forward_at",
        "have",
        "id",
        "message",
        "offered_until",
        "seen_until",
        "served",
        "size",
        "until",
    )

    def __init__(self, message: Message, size: int, offered_until: float, until: float) -> None:
        self.message, self.id, self.size = message, message.id, size
        self.offered_until, self.until = offered_until, until
        self.seen_until = 0.0
        """Until then copies of it are known by their bytes."""
        self.have = self.served = 0
        """Who has it, as far as we know, and whom it was sent because it asked."""
        self.forward_at = NEVER
        """When it is forwarded, while it waits for that."""


class MessageCache:
    """Messages that we offer for some heartbeats, and serve for some more (v1.0, "Message Cache").

    A message that finds no room is forwarded like any other, and is not offered: what was offered stays.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._offer_s = parameters.gossip_window * parameters.heartbeat_s
        self._keep_s = self._offer_s + parameters.promise_heartbeats * parameters.heartbeat_s
        self._kept: dict[bytes, Kept] = {}
        self._first_ends_at = 0.0
        """Nothing is over before."""
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, message: Message, now: float) -> Kept:
        """Keep a message. Where there is no room it is neither offered nor served: ``until`` is ``now``."""
        if now >= self._first_ends_at:
            self.sweep(now)
        size = message.size + OVERHEAD
        limits = self._parameters
        if self.bytes + size > limits.cache_bytes_max or len(self._kept) >= limits.cache_messages_max:
            return Kept(message, size, now, now)
        until = now + self._keep_s
        if not self._kept:
            self._first_ends_at = until
        kept = self._kept[message.id] = Kept(message, size, now + self._offer_s, until)
        self.bytes += size
        return kept

    def get(self, message_id: bytes) -> Kept | None:
        """What is known of a message that is kept."""
        return self._kept.get(message_id)

    def note_offers(self, message_ids: Iterable[bytes], bit: int) -> list[bytes]:
        """A peer says that it has these messages, and need not be offered them. Those that we don't keep."""
        kept_of, others = self._kept.get, []
        for message_id in message_ids:
            kept = kept_of(message_id)
            if kept is None:
                others.append(message_id)
            else:
                kept.have |= bit
        return others

    def forget(self, bit: int) -> None:
        """The peer with this bit is gone: another one may get it."""
        for kept in self._kept.values():
            kept.have &= ~bit
            kept.served &= ~bit

    def offered(self, now: float) -> dict[bytes, list[Kept]]:
        """By topic, what is offered now; the newest last."""
        found: dict[bytes, list[Kept]] = {}
        for kept in reversed(self._kept.values()):  # all are offered equally long: the newest are behind
            if kept.offered_until < now:
                break
            found.setdefault(kept.message.topic, []).append(kept)
        for each in found.values():
            each.reverse()
        return found

    def newest_offered(self, now: float) -> Iterator[Kept]:
        """What is offered now, the newest first."""
        for kept in reversed(self._kept.values()):
            if kept.offered_until < now:
                return
            yield kept

    def serve(self, message_id: bytes, bit: int, now: float) -> Message | None:
        """A message for a peer that asked for it; None where we have it no more, or the peer had it."""
        kept = self._kept.get(message_id)
        if kept is None or kept.until <= now or kept.served & bit:
            return None
        kept.served |= bit
        kept.have |= bit
        return kept.message

    def sweep(self, now: float) -> None:
        """Forget what is no longer served."""
        if now < self._first_ends_at:
            return
        while self._kept:
            message_id = next(iter(self._kept))
            kept = self._kept[message_id]
            self._first_ends_at = kept.until
            if kept.until > now:
                return
            self.bytes -= kept.size
            del self._kept[message_id]

    def ends_at(self) -> float | None:
        """When the last of them is no longer served; None while there is none."""
        newest = next(reversed(self._kept.values()), None)
        return newest.until if newest is not None else None


class Promises:
    """Messages that peers offered and we asked for: whom, how often, and who did not keep its word.

    v1.1, section "Spam Protection Measures". Of the ids in one question one is watched. A promise is broken
    where nobody brought the message in time: then the offer was empty.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._watched: dict[bytes, dict[PeerId, float]] = {}
        self._asked: dict[bytes, dict[PeerId, float]] = {}
        """When each was asked, the first one first."""

    def __len__(self) -> int:
        return sum(map(len, self._watched.values()))

    @property
    def asked(self) -> int:
        """Messages that were asked for and have not come."""
        return len(self._asked)

    def may_ask(self, message_id: bytes, peer: PeerId, now: float) -> bool:
        """Whether this peer is asked for it: each once, and only some of those that offer it at one time.

        Who was asked and has not brought it in time counts no more: a few liars that offer an id first must
        not keep it from being asked of others.
        """
        asked = self._asked.get(message_id)
        if asked is None:
            return True
        open_asks = sum(at + self._parameters.promise_s > now for at in asked.values())
        return peer not in asked and open_asks < self._parameters.asks_per_message

    def ask(self, message_id: bytes, peer: PeerId, now: float) -> None:
        """It is asked now."""
        asked = self._asked.setdefault(message_id, {})
        asked[peer] = now
        if len(asked) > ASKED_PEERS_MAX:
            del asked[next(iter(asked))]
        if len(self._asked) > self._parameters.asked_max:
            del self._asked[next(iter(self._asked))]

    def watch(self, message_id: bytes, peer: PeerId, now: float) -> None:
        """The peer is held to this one of its offers."""
        if len(self) < self._parameters.promises_max:
            self._watched.setdefault(message_id, {}).setdefault(peer, now + self._parameters.promise_s)

    def kept(self, message_id: bytes) -> None:
        """The message came, whoever brought it."""
        self._watched.pop(message_id, None)
        self._asked.pop(message_id, None)

    def broken(self, now: float) -> list[PeerId]:
        """The peers whose promises are over, each as often as it broke one."""
        found = []
        for message_id in list(self._watched):
            watched = self._watched[message_id]
            for peer in [each for each, until in watched.items() if until <= now]:
                del watched[peer]
                found.append(peer)
            if not watched:
                del self._watched[message_id]
        return found

    def forget(self, peer: PeerId) -> None:
        """The peer is gone, and can keep none."""
        for message_id in list(self._watched):
            self._watched[message_id].pop(peer, None)
            if not self._watched[message_id]:
                del self._watched[message_id]

    def next_at(self) -> float | None:
        """When the first promise is over."""
        return min((until for each in self._watched.values() for until in each.values()), default=None)
