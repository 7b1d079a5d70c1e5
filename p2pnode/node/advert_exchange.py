"""What a node makes of adverts: what it answers, believes, hands on and publishes, and when.

Pure: one machine over the streams of all who ask, and methods for what comes otherwise. Time, keys and
randomness are handed in, and with the ``Book`` the parsing and verification of adverts, so that a simulator
drives exactly this. It knows no network: ``adverts.py`` acts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.errors import ClockError
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.book import Verdict as BookVerdict
from p2pnode.protocols.adverts.exchange import (
    TTL_FACTOR,
    Directory,
    Heard,
    Publish,
    Publisher,
    Update,
)
from p2pnode.protocols.adverts.messages import Advert, SignedAdvert
from p2pnode.protocols.adverts.signatures import CLOCK_SKEW_S
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    HalfClosed,
    Received,
    SetTimer,
    StreamRef,
    TimerFired,
)
from p2pnode.protocols.gossipsub.commands import IGNORE, REJECT, Verdict
from p2pnode.protocols.wire import encode
from p2pnode.shares import Origin
from p2pnode.words import span

QUESTIONS_PER_STREAM: Final = 4
QUESTIONS_PER_S: Final = 8.0
QUESTIONS_BURST: Final = 64.0
"""Of one peer. A sample may walk the whole book and be answered with 32 kB."""
ORIGIN_FACTOR: Final = 4
"""So many times as many of one origin: peer ids are free."""
ASKERS_MAX: Final = 1024
SWEEP_S: Final = 5.0
_SWEEP: Final = "sweep"
_USUAL_FROM: Final = 8
"""Live adverts of a topic from which on they say how often hosts publish there."""
_REJECTED: Final[frozenset[BookVerdict]] = frozenset({"malformed", "forged"})


@dataclass(frozen=True, slots=True)
class Answered:
    """Emitted: nothing more is said on this stream."""

    stream: StreamRef


@dataclass(frozen=True, slots=True)
class Expired:
    """Emitted: these hosts' adverts are over."""

    peers: tuple[PeerId, ...]


ExchangeEmission: TypeAlias = Publish | Answered | Expired


class AdvertExchange:
    """Of one node. Messages are questions for adverts, commands ``PublisherCommand``.

    ``wall`` gives epoch seconds, which adverts are dated in. ``starts`` are the instances of this start and
    of the earlier ones that are known: adverts under another are a copy's.
    """

    def __init__(
        self,
        book: Book,
        publisher: Publisher,
        *,
        peer: PeerId,
        starts: Collection[bytes],
        wall: Callable[[], float],
        origin_of: Callable[[PeerId], Origin | None] = lambda _peer: None,
    ) -> None:
        """``origin_of`` says where a peer is connected from; None where that isn't known."""
        self._origin_of = origin_of
        self._book, self._publisher = book, publisher
        self._peer, self._starts, self._wall = peer, frozenset(starts), wall
        self._started_wall = wall()
        self._directory = Directory(book, peer=peer, own=self._own, wall=wall, sheet=publisher.sheet)
        self._asked: dict[StreamRef, int] = {}
        """Questions by stream, of those that are open."""
        self._askers: BoundedMap[PeerId, TokenBucket] = BoundedMap(ASKERS_MAX)
        self._origins: BoundedMap[str, TokenBucket] = BoundedMap(ASKERS_MAX)
        self.topics: set[ModelId] = set()
        """The models whose gossip this node follows."""
        self.heard: Counter[ModelId] = Counter()
        """Adverts of others that gossip brought and the book took, by topic."""
        self._told: Counter[ModelId] = Counter()
        """How many of these the publisher was told of."""
        self.served: Counter[str] = Counter()
        """Questions that were answered, by kind."""
        self.is_copied = False
        """Whether somebody else speaks with this node's identity."""

    def start(self, now: float) -> Sequence[Effect]:
        """Begin to forget what expires."""
        return [SetTimer(_SWEEP, now + SWEEP_S)]

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Raises ``ValueError`` where this host offers more than an advert holds."""
        match event:
            case Received():
                return self._question(event, now)
            case HalfClosed(stream=ref):
                return [self._answered(ref)]
            case Closed(stream=ref):
                self._asked.pop(ref, None)
                return []
            case TimerFired(key=key) if key == _SWEEP:
                gone = self._book.expire(self._wall())
                return [SetTimer(_SWEEP, now + SWEEP_S), *([Emit(Expired(tuple(gone)))] if gone else [])]
            case TimerFired():
                # How far the next refresh is away depends on how much its topic carries.
                self._publisher.handle(Command(self._standing()), now)
                return self._publisher.handle(event, now)
            case Command(value=value):
                if isinstance(value, Update) and not self._publisher.has_published:
                    self._publisher.handle(Command(self._standing()), now)
                return self._publisher.handle(event, now)
            case _:
                assert_never(event)

    def _standing(self) -> Heard:
        """What is known of this host's topics; of several, of the one that is fullest."""
        told, self._told = self._told, Counter(self.heard)
        wall, begins = self._wall(), not self._publisher.has_published
        return Heard(
            counted=max((self._book.population(wall, model) for model in self.topics), default=0),
            adverts=max((self.heard[model] - told[model] for model in self.topics), default=0),
            period_s=max((self._usual_period_s(model) for model in self.topics), default=0.0)
            if begins
            else 0.0,
        )

    def _usual_period_s(self, model: ModelId) -> float:
        """The median of the intervals at which hosts publish, by how long they let their adverts live: a few
        that lie don't move it. 0 where too few are known."""
        live = self._book.live(self._wall(), model)
        lives = sorted(each.advert.expires_at - each.advert.issued_at for each in live)
        return lives[len(lives) // 2] / TTL_FACTOR if len(lives) >= _USUAL_FROM else 0.0

    def topics_of(self, advert: Advert) -> list[ModelId]:
        """On whose topics an advert of this host is published."""
        return [offer.model for offer in advert.offers if offer.model in self.topics]

    # ---- questions of others

    def _question(self, event: Received, now: float) -> Sequence[Effect]:
        """Who asks too much or too fast gets the stream's end for an answer."""
        asked = self._asked.get(event.stream, 0) + 1
        bucket = self._askers.use(event.peer, lambda: TokenBucket(QUESTIONS_PER_S, QUESTIONS_BURST))
        if not bucket.take(now) or not self._of_origin(event.peer).take(now):
            return [self._answered(event.stream)]
        self._asked[event.stream] = asked
        self.served[type(event.message).__name__] += 1
        answer = self._directory.handle(event, now)
        return [*answer, self._answered(event.stream)] if asked >= QUESTIONS_PER_STREAM else answer

    def _of_origin(self, peer: PeerId) -> TokenBucket:
        origin = self._origin_of(peer)
        name = origin.wide if origin is not None else peer
        most = ORIGIN_FACTOR * QUESTIONS_BURST
        return self._origins.use(name, lambda: TokenBucket(ORIGIN_FACTOR * QUESTIONS_PER_S, most))

    def _answered(self, ref: StreamRef) -> Effect:
        self._asked.pop(ref, None)
        return Emit(Answered(ref))

    def _own(self, now: float) -> SignedAdvert | None:
        publish = self._publisher.renew(now)
        return publish.signed if publish is not None else None

    # ---- what others say

    def judge(self, data: bytes, author: PeerId, model: ModelId) -> Verdict:
        """Take what gossip brought on the topic of ``model``, and say what becomes of it.

        Rejected is only what every node judges alike from the bytes: its bearer is charged for it.
        """
        verdict, advert = self._book.offer_gossip(data, author, self._wall())
        if verdict in _REJECTED or (advert is not None and not advert.names(model)):
            return REJECT
        if advert is None:
            return IGNORE
        if verdict == "accepted":
            self.heard[model] += advert.peer != self._peer
            self._notice_copy(advert)
        elif not (verdict == "stale" and self._holds(advert.peer, data)):
            return IGNORE
        # What we learned by asking must still reach those who only listen, once: whoever replays a live
        # advert under fresh ids is heard no more often than its host.
        return Verdict("accept", key=f"{advert.peer}/{advert.seq}".encode())

    def _holds(self, peer: PeerId, data: bytes) -> bool:
        held = self._book.get(peer, self._wall())
        return held is not None and encode(held.signed) == data

    def fetched(self, answer: Iterable[SignedAdvert], source: PeerId, wanted: PeerId) -> Advert | None:
        """The current advert of ``wanted`` in what ``source`` answered; None where it has none that holds.

        Raises ``ClockError`` where a peer's advert of itself shows that its clock and ours differ too much.
        """
        for signed in answer:
            verdict, advert = self._take(signed, source)
            if advert is not None and verdict in ("accepted", "stale") and advert.peer == wanted:
                held = self._book.get(wanted, self._wall())
                return held.advert if held is not None else None
            if wanted == source and verdict in ("expired", "future"):
                self._check_clock(signed, source)
        return None

    def sampled(self, answer: Iterable[SignedAdvert], source: PeerId) -> list[Advert]:
        """Those of other hosts in a sample that hold."""
        taken = [self._take(signed, source) for signed in answer]
        return [
            advert
            for verdict, advert in taken
            if advert is not None and verdict in ("accepted", "stale") and advert.peer != self._peer
        ]

    def _take(self, signed: SignedAdvert, source: PeerId) -> tuple[BookVerdict, Advert | None]:
        verdict, advert = self._book.offer(signed, source, self._wall(), asked=True)
        if advert is not None and verdict == "accepted":
            self._notice_copy(advert)
        return verdict, advert

    def _notice_copy(self, advert: Advert) -> None:
        if advert.peer != self._peer:
            return
        self._book.forget(advert.peer)
        if advert.instance in self._starts:
            # Ours. What we signed while our clock was ahead, somebody may have kept until its date came.
            self._publisher.surpass(advert.seq)
            return
        # An earlier start that is not known any more may have signed what is older than this one.
        if advert.issued_at > self._started_wall + CLOCK_SKEW_S:
            self.is_copied = True

    def _check_clock(self, signed: SignedAdvert, peer: PeerId) -> None:
        """Raise ``ClockError`` if what a peer gives as its current advert is dated by another clock."""
        advert = self._book.checks.parse(signed)
        offset_s = advert.clock_offset_s(self._wall())
        if advert.peer == peer and not advert.withdrawn and abs(offset_s) > CLOCK_SKEW_S:
            way = "ahead of" if offset_s > 0 else "behind"
            msg = (
                f"that host's clock is about {span(abs(offset_s))} {way} this machine's: "
                "one of the two is wrong (`p2pnode doctor` compares this one with others)"
            )
            raise ClockError(msg, offset_s=offset_s)
