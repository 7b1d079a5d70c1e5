"""The two sides of adverts as machines: ``Publisher`` speaks for a host, ``Directory`` answers questions.

Gossip costs a node the same at 100 hosts and at 100,000: a publisher stretches its interval with the
population so that a topic carries at most ``TOPIC_RATE_MAX`` adverts a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeAlias, assert_never

from p2pnode.ids import PeerId
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.messages import (
    Address,
    Advert,
    Adverts,
    Binding,
    GetAdvert,
    Load,
    Offer,
    SampleAdverts,
    SignedAdvert,
)
from p2pnode.protocols.adverts.signing import seal
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    Received,
    Send,
    SetTimer,
    TimerFired,
)

REFRESH_S: Final = 30.0
REFRESH_MAX_S: Final = 3600.0
TOPIC_RATE_MAX: Final = 2.0
"""Adverts a second on one topic, whatever the population."""
CHANGE_INTERVAL_S: Final = 2.0
"""An urgent change waits until this long after the last advert."""
TTL_FACTOR: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a host has to say now."""

    binding: Binding
    addresses: tuple[Address, ...]
    offers: tuple[Offer, ...]
    load: Load
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """Command: the standing changed. What matters to a client's choice goes out at once."""

    standing: Standing


@dataclass(frozen=True, slots=True)
class Population:
    """Command: so many counted hosts share our topic."""

    count: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Command: the last word. An advert that expires at once replaces ours in every book."""


PublisherCommand: TypeAlias = Update | Population | Withdraw


@dataclass(frozen=True, slots=True)
class Publish:
    """Emitted: give this to gossip, on the topic of each offered model."""

    signed: SignedAdvert
    advert: Advert


def refresh_interval(population: int) -> float:
    """Seconds between two adverts of one host among ``population`` on a topic."""
    return min(REFRESH_MAX_S, max(REFRESH_S, population / TOPIC_RATE_MAX))


def publish_probability(population: int) -> float:
    """Beyond the longest interval a refresh is published only this often, to keep the rate."""
    return min(1.0, REFRESH_MAX_S * TOPIC_RATE_MAX / max(1, population))


class Publisher:
    """Decides when this host's advert goes out. ``now`` is monotonic; ``wall`` gives epoch seconds."""

    def __init__(
        self,
        *,
        peer: PeerId,
        instance: bytes,
        sign: Signer,
        wall: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._peer, self._instance = peer, instance
        self._sign, self._wall, self._draw = sign, wall, draw
        self._standing: Standing | None = None
        self._population = 1
        self._published_at: float | None = None
        self.current: Publish | None = None
        """The advert to answer with, always fresh enough to be accepted."""

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Commands are ``PublisherCommand``; the timer is ``refresh``."""
        match event:
            case Command(value=value):
                return self._command(value, now)
            case TimerFired():
                lucky = self._draw() < publish_probability(self._population)
                return self._publish(now) if lucky else [self._timer(now)]
            case Received() | Closed():
                return []
            case _:
                assert_never(event)

    def _command(self, command: PublisherCommand, now: float) -> Sequence[Effect]:
        match command:
            case Update(standing=standing):
                before, self._standing = self._standing, standing
                if before is not None and not _matters(before, standing):
                    return []
                if self._published_at is None or now - self._published_at >= CHANGE_INTERVAL_S:
                    return self._publish(now)
                return [SetTimer("refresh", self._published_at + CHANGE_INTERVAL_S)]
            case Population(count=count):
                self._population = max(1, count)
                return []
            case Withdraw():
                return self._publish(now, ttl_s=1) if self._standing is not None else []
            case _:
                assert_never(command)

    def renew(self, now: float) -> Publish | None:
        """The current advert for someone who asks, signed anew when more than half its life is over."""
        wall = self._wall()
        if self.current is not None:
            advert = self.current.advert
            if wall - advert.issued_at < (advert.expires_at - advert.issued_at) / 2:
                return self.current
        if self._standing is None:
            return None
        self._seal(self._standing, TTL_FACTOR * refresh_interval(self._population))
        del now
        return self.current

    def _publish(self, now: float, *, ttl_s: float | None = None) -> Sequence[Effect]:
        if self._standing is None:
            return []
        ttl = TTL_FACTOR * refresh_interval(self._population) if ttl_s is None else ttl_s
        publish = self._seal(self._standing, ttl)
        self._published_at = now
        return [Emit(publish), self._timer(now)]

    def _seal(self, standing: Standing, ttl_s: float) -> Publish:
        wall = self._wall()
        # Milliseconds as the sequence number: it grows across restarts without being stored.
        seq = max(int(wall * 1000), self.current.advert.seq + 1 if self.current else 0)
        advert = Advert(
            peer=self._peer,
            instance=self._instance,
            seq=seq,
            issued_at=int(wall),
            expires_at=int(wall + ttl_s),
            binding=standing.binding,
            addresses=standing.addresses,
            offers=standing.offers,
            load=standing.load,
            draining=standing.draining,
        )
        while True:
            try:
                self.current = Publish(seal(advert, self._sign), advert)
            except ValueError:
                if len(advert.addresses) <= 1:
                    raise
                advert = replace(advert, addresses=advert.addresses[:-1])
            else:
                return self.current

    def _timer(self, now: float) -> SetTimer:
        # A tenth of jitter keeps hosts that started together from speaking together.
        return SetTimer("refresh", now + refresh_interval(self._population) * (0.9 + 0.1 * self._draw()))


def _matters(before: Standing, after: Standing) -> bool:
    return (before.binding, before.addresses, before.offers, before.draining) != (
        after.binding,
        after.addresses,
        after.offers,
        after.draining,
    )


class Directory:
    """Answers ``GetAdvert`` and ``SampleAdverts`` from the book and the publisher."""

    def __init__(
        self,
        book: Book,
        *,
        peer: PeerId,
        own: Callable[[float], SignedAdvert | None],
        wall: Callable[[], float],
    ) -> None:
        self._book, self._peer, self._own, self._wall = book, peer, own, wall

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """One answer for one question; anything else a peer sends is ignored."""
        if not isinstance(event, Received):
            return []
        match event.message:
            case GetAdvert(peer=peer):
                found = self._own(now) if peer == self._peer else self._held(peer)
                answer: tuple[SignedAdvert, ...] = (found,) if found is not None else ()
            case SampleAdverts() as question:
                answer = self._sample(question, now)
            case _:
                return []
        return [Send(event.peer, event.stream, Adverts(adverts=answer))]

    def _held(self, peer: PeerId) -> SignedAdvert | None:
        entry = self._book.get(peer, self._wall())
        return entry.signed if entry is not None else None

    def _sample(self, question: SampleAdverts, now: float) -> tuple[SignedAdvert, ...]:
        own = self._own(now)
        entries = list(
            islice((e.signed for e in self._book.live(self._wall(), question.model)), question.count)
        )
        if own is not None:
            entries.insert(0, own)
        return tuple(entries[: question.count])
