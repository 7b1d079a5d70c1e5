"""Two machines for adverts: ``Publisher`` announces a host, ``Directory`` answers questions for adverts and
for this host's own sheet.

Gossip costs a node about the same at 100 hosts and at 100,000: a publisher aims at a period at which all
hosts of its topic together publish ``TOPIC_RATE`` adverts a second. It hears how many come, and stretches or
shortens its period by that, slowly and within bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, assert_never

from p2pnode.bounded import BoundedMap
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.messages import (
    Address,
    Advert,
    Adverts,
    Binding,
    GetAdvert,
    GetSheet,
    Load,
    Offer,
    SampleAdverts,
    Sheet,
    SheetAnswer,
    SignedAdvert,
)
from p2pnode.protocols.adverts.signatures import encode_sheet, seal, sheet_hash
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    HalfClosed,
    Received,
    Send,
    SetTimer,
    TimerFired,
)

REFRESH_S: Final = 30.0
REFRESH_MAX_S: Final = 3600.0
TOPIC_RATE: Final = 2.0
"""Adverts a second on one topic that its hosts aim at, whatever their number."""
PERIOD_MAX_S: Final = 20_000.0
"""No topic stretches the mean time between two adverts of a host beyond this."""
ADJUST_S: Final = 10.0
"""What was heard for a shorter time says little about a rate."""
STEP: Final = 2.0
"""A period is at most so many times as long, or as short, after one adjustment."""
CHANGE_INTERVAL_S: Final = 1.5
"""An urgent change waits until this long after the last advert, so that all hear of it within 2 s."""
TTL_FACTOR: Final = 3
OFFERS_MAX: Final = 8
SHEETS_KEPT: Final = 4
"""A host's newest sheets, which it answers: who asks may have an advert that is a few changes old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a host says of itself now."""

    binding: Binding
    addresses: tuple[Address, ...]
    offers: tuple[Offer, ...]
    load: Load
    draining: bool = False
    sheet: Sheet | None = None
    release_min: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """Command: the announcement changed. What matters to a client's choice goes out at once."""

    announcement: Announcement


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Command: what is known of this host's topic."""

    counted: int = 0
    """Hosts that share it and that count in any case: they are staked, or this node dialled them."""
    adverts: int = 0
    """Those of others that gossip brought and the book took since the last of these commands."""
    period_s: float = 0.0
    """At which others publish, in seconds; 0 where that isn't known. A host begins with it."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Command: the host leaves. An advert that has expired when it is made replaces its last one."""


PublisherCommand: TypeAlias = Update | Heard | Withdraw


@dataclass(frozen=True, slots=True)
class Publish:
    """Emitted: give this to gossip, on the topic of each offered model."""

    signed: SignedAdvert
    advert: Advert


def refresh_interval(period_s: float) -> float:
    """Seconds between two refreshes of a host that aims at this mean time between its adverts."""
    return min(REFRESH_MAX_S, period_s)


def publish_probability(period_s: float) -> float:
    """Beyond the longest interval a refresh is published only this often, to keep the period."""
    return min(1.0, REFRESH_MAX_S / period_s)


class Publisher:
    """Decides when this host's advert goes out. ``now`` is monotonic; ``wall`` gives epoch seconds.

    ``seal`` signs an advert; it raises ``ValueError`` for one that is too large.
    """

    def __init__(
        self,
        *,
        peer: PeerId,
        instance: bytes,
        sign: Signer,
        wall: Callable[[], float],
        draw: Callable[[], float],
        seal: Callable[[Advert, Signer], SignedAdvert] = seal,
    ) -> None:
        self._peer, self._instance, self._seal_advert = peer, instance, seal
        self._sign, self._wall, self._draw = sign, wall, draw
        self._announcement: Announcement | None = None
        self.period_s = REFRESH_S
        """The mean time between two of this host's adverts that it aims at."""
        self._heard = 0
        self._heard_since: float | None = None
        """Adverts on the topic, and since when; None before the first advert of our own."""
        self._withdrawn: dict[ModelId, float] = {}
        """Models that are not offered any more, and until when, by the wall clock, this is said of them: as
        long as an advert may live that offered them."""
        self._stale = False
        self._published_at: float | None = None
        self._urgent = False
        self._seq = 0
        self._sheets: BoundedMap[bytes, bytes] = BoundedMap(SHEETS_KEPT)
        """Bodies by their hashes."""
        self.current: Publish | None = None
        """The last advert sealed; None before the first and after ``Withdraw``."""

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Commands are ``PublisherCommand``; the timer is ``refresh``."""
        match event:
            case Command(value=value):
                return self._command(value, now)
            case TimerFired():
                if self._announcement is None:
                    return []
                due = self._urgent or self._draw() < publish_probability(self.period_s)
                return self._publish(self._announcement, now) if due else [self._timer(now)]
            case Received() | HalfClosed() | Closed():
                return []
            case _:
                assert_never(event)

    def surpass(self, seq: int) -> None:
        """Number what is signed from now on above ``seq``, which an advert of ours has that others hold."""
        if seq > self._seq:
            self._seq, self._stale = seq, True

    def _command(self, command: PublisherCommand, now: float) -> Sequence[Effect]:
        match command:
            case Update(announcement=announcement):
                before, self._announcement = self._announcement, announcement
                self._note_withdrawn(before, announcement)
                self._stale = self._stale or before != announcement
                if before is not None and not _matters(before, announcement):
                    return []
                if self._published_at is None or now - self._published_at >= CHANGE_INTERVAL_S:
                    return self._publish(announcement, now)
                self._urgent = True
                return [SetTimer("refresh", self._published_at + CHANGE_INTERVAL_S)]
            case Heard():
                self._adjust(command, now)
                return []
            case Withdraw():
                return self._withdraw()
            case _:
                assert_never(command)

    def _note_withdrawn(self, before: Announcement | None, after: Announcement) -> None:
        for offer in after.offers:
            self._withdrawn.pop(offer.model, None)
        offered = {offer.model for offer in after.offers}
        for offer in before.offers if before is not None else ():
            if offer.model not in offered:
                self._withdrawn[offer.model] = self._wall() + self._ttl_s

    def _no_longer_offered(self, offers: int) -> tuple[Offer, ...]:
        """What says that a model is served no more, beside so many offers."""
        wall = self._wall()
        self._withdrawn = {model: until for model, until in self._withdrawn.items() if until > wall}
        return tuple(Offer(model=model, n_ctx=0) for model in self._withdrawn)[: max(0, OFFERS_MAX - offers)]

    @property
    def has_published(self) -> bool:
        """Whether an advert went out since the start."""
        return self._published_at is not None

    def _adjust(self, heard: Heard, now: float) -> None:
        """Come nearer to the period at which all together publish at the topic's rate."""
        if self._heard_since is None:
            self.period_s = max(self.period_s, heard.period_s)
        else:
            self._heard += heard.adverts
            elapsed_s = now - self._heard_since
            if elapsed_s >= ADJUST_S:
                factor = self._heard / elapsed_s / TOPIC_RATE
                self.period_s *= min(STEP, max(1 / STEP, factor))
                self._heard, self._heard_since = 0, now
        least = max(REFRESH_S, heard.counted / TOPIC_RATE)
        self.period_s = min(PERIOD_MAX_S, max(least, self.period_s))

    def renew(self, now: float) -> Publish | None:
        """The advert for someone who asks, signed anew when more than half its life is over."""
        del now
        wall = self._wall()
        if self.current is not None and not self._stale:
            advert = self.current.advert
            if wall - advert.issued_at < (advert.expires_at - advert.issued_at) / 2:
                return self.current
        if self._announcement is None:
            return None
        self.current = self._seal(self._announcement, self._ttl_s)
        return self.current

    def sheet(self, wanted: bytes) -> bytes | None:
        """The body of a sheet of this host by its hash; None where it has no such one, or not any more."""
        return self._sheets.get(wanted)

    @property
    def _ttl_s(self) -> float:
        return TTL_FACTOR * refresh_interval(self.period_s)

    def _publish(self, announcement: Announcement, now: float) -> Sequence[Effect]:
        self._published_at, self._urgent = now, False
        if self._heard_since is None:
            self._heard_since = now
        self.current = self._seal(announcement, self._ttl_s)
        return [Emit(self.current), self._timer(now)]

    def _withdraw(self) -> Sequence[Effect]:
        """Say that the host is gone: no refresh follows, and no question gets an earlier advert."""
        if self._announcement is None:
            return []
        announcement, self._announcement, self.current = self._announcement, None, None
        self._urgent = False
        return [Emit(self._seal(replace(announcement, draining=True), 0)), CancelTimer("refresh")]

    def _seal(self, announcement: Announcement, ttl_s: float) -> Publish:
        wall = self._wall()
        self._stale = False
        # Milliseconds as the sequence number: it grows across restarts without being stored.
        self._seq = seq = max(int(wall * 1000), self._seq + 1)
        advert = Advert(
            peer=self._peer,
            instance=self._instance,
            seq=seq,
            issued_at=int(wall),
            expires_at=int(wall + ttl_s),
            binding=announcement.binding,
            addresses=announcement.addresses,
            offers=(*announcement.offers, *self._no_longer_offered(len(announcement.offers))),
            load=announcement.load,
            draining=announcement.draining,
            sheet=self._keep_sheet(announcement.sheet),
            release_min=announcement.release_min,
        )
        while True:
            try:
                return Publish(self._seal_advert(advert, self._sign), advert)
            except ValueError:
                if len(advert.addresses) > 1:
                    advert = replace(advert, addresses=advert.addresses[:-1])
                elif len(advert.offers) > len(announcement.offers):
                    advert = replace(advert, offers=advert.offers[:-1])
                else:
                    raise

    def _keep_sheet(self, sheet: Sheet | None) -> bytes | None:
        if sheet is None:
            return None
        body = encode_sheet(sheet)
        wanted = sheet_hash(body)
        self._sheets.put(wanted, body)
        return wanted

    def _timer(self, now: float) -> SetTimer:
        # Up to a tenth later, never earlier: hosts that started together don't speak together, and the
        # topic's rate holds.
        return SetTimer("refresh", now + refresh_interval(self.period_s) * (1 + 0.1 * self._draw()))


def _matters(before: Announcement, after: Announcement) -> bool:
    # Of an announcement only the load may change and wait.
    return replace(before, load=after.load) != after


class Directory:
    """Answers ``GetAdvert`` and ``SampleAdverts`` from the book and the publisher, and ``GetSheet``."""

    def __init__(
        self,
        book: Book,
        *,
        peer: PeerId,
        own: Callable[[float], SignedAdvert | None],
        wall: Callable[[], float],
        sheet: Callable[[bytes], bytes | None] = lambda _hash: None,
    ) -> None:
        self._book, self._peer, self._own, self._wall = book, peer, own, wall
        self._sheet = sheet

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
            case GetSheet(hash=wanted):
                return [Send(event.peer, event.stream, SheetAnswer(body=self._sheet(wanted) or b""))]
            case _:
                return []
        return [Send(event.peer, event.stream, Adverts(adverts=answer))]

    def _held(self, peer: PeerId) -> SignedAdvert | None:
        entry = self._book.get(peer, self._wall())
        return entry.signed if entry is not None else None

    def _sample(self, question: SampleAdverts, now: float) -> tuple[SignedAdvert, ...]:
        """Our own first, if it offers the model, then others as the book draws them."""
        own = self._own(now)
        answer = [own] if own is not None and self._offers(own, question) else []
        drawn = self._book.sample(question.count, self._wall(), question.model, caps=question.caps)
        answer += [entry.signed for entry in drawn if entry.advert.peer != self._peer]
        return tuple(answer[: question.count])

    def _offers(self, signed: SignedAdvert, question: SampleAdverts) -> bool:
        model = question.model
        return model is None or self._book.checks.parse(signed).serves(model, question.caps)
