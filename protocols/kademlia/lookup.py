"""One lookup: it asks ever closer peers over disjoint paths until the closest ones have answered.

Whoever lies on one path misleads that path only. On each, the closest peers are chosen so that no origin
comes twice while there are others, and who names peers that don't answer is believed less. So neither ids
that were ground to lie at the key nor made-up peers near it push the others out. A lookup ends by itself, at
its budget of questions, or at its deadline.

Sources: Maymounkov and Mazières, "Kademlia", section 2.3; Baumgart and Mies, "S/Kademlia", section 4.4
(disjoint paths). The choice by origin is ours: see ``SPEC.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, Literal, TypeAlias

from p2pnode.ids import PeerId
from p2pnode.protocols.kademlia.messages import K, KadPeer, Message, fit, point_of, point_of_key
from p2pnode.protocols.kademlia.table import spread
from p2pnode.shares import Draw, Origin, shuffled

PATHS: Final = 3
ALPHA: Final = 3
"""Questions at once on one path that were not yet slow to be answered."""
WIDTH: Final = 24
"""The closest peers that a lookup wants to have asked, and that records are stored with."""
AGREED: Final = WIDTH // 2
"""A lookup of providers ends once so many origins named some, all of them the same ones."""
SLOW_S: Final = 0.5
"""A peer that has not answered for so long leaves the shortlist to others; its answer still counts."""
ANSWER_S: Final = 3.0
"""The shell gives a question this long, with the dial that it may take."""
ASKED_MAX: Final = 128
OUT_MAX: Final = 32
CANDIDATES_MAX: Final = 512
"""Of one path."""
ADDRESSES_HEARD: Final = 4
"""Of a peer that somebody names, the first that are looked at: each costs the time to parse it."""
VERSIONS_MAX: Final = 4
"""Of a peer's addresses, by different tellers: one that lies about them must not be the only one heard."""
PROVIDERS_MAX: Final = 1024
"""Providers that a lookup keeps what it heard of."""
Goal: TypeAlias = Literal["find_node", "get_providers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a node's table and lookups turn on. Simulations compare others with published results."""

    k: int = K
    """Places of a bucket, and closer peers in an answer."""
    paths: int = PATHS
    alpha: int = ALPHA
    width: int = WIDTH


@dataclass(frozen=True, slots=True)
class Ask:
    """Put this question to a peer, dialled at these addresses where it isn't connected."""

    peer: PeerId
    addresses: tuple[bytes, ...]
    question: Message


@dataclass(frozen=True, slots=True)
class FoundProvider:
    """A provider, and the origins of those who named it; addresses that most of them gave come first."""

    peer: PeerId
    addresses: tuple[bytes, ...]
    tellers: frozenset[Origin]


@dataclass(frozen=True, slots=True)
class Result:
    """What a lookup found: the closest peers that answered, and providers, those of most tellers first."""

    closest: tuple[PeerId, ...]
    providers: tuple[FoundProvider, ...]
    asked: int
    answered: int


@dataclass(slots=True)
class Candidate:
    """A peer that may be asked. ``tellers`` is empty for one that this node knows itself."""

    peer: PeerId
    addresses: tuple[bytes, ...]
    origin: Origin
    others: list[tuple[bytes, ...]] = field(default_factory=list)
    """Addresses that later tellers gave."""
    tellers: dict[str, None] = field(default_factory=dict)
    silent: bool = False
    """Whether it failed, or has not answered for ``SLOW_S``."""
    distance: int = 0
    """From the key; set by the path."""

    def merged(self) -> tuple[bytes, ...]:
        """The addresses to dial: the first of each teller's before the second of any."""
        versions = (self.addresses, *self.others)
        return fit(each for turn in zip_longest(*versions) for each in turn if each is not None)


@dataclass(slots=True)
class _Named:
    """What was heard of one provider: who named it, and who named which address."""

    tellers: dict[Origin, None] = field(default_factory=dict)
    addresses: dict[bytes, set[Origin]] = field(default_factory=dict)


class _Path:
    """The candidates of one path by peer, and the shortlist of them."""

    def __init__(self, point: int, width: int) -> None:
        self._point, self._width = point, width
        self.candidates: dict[PeerId, Candidate] = {}
        self._answered: Counter[str] = Counter()
        """By teller: of the peers that it named, how many answered."""
        self._shortlist: list[Candidate] | None = None

    @property
    def has_room(self) -> bool:
        """Whether one more candidate is kept."""
        return len(self.candidates) < CANDIDATES_MAX

    def add(self, candidate: Candidate) -> None:
        """Note a candidate that is not there yet."""
        candidate.distance = point_of(candidate.peer) ^ self._point
        self.candidates[candidate.peer] = candidate
        self._shortlist = None

    def name(self, candidate: Candidate, teller: str) -> None:
        """Note one more who names a candidate."""
        if teller not in candidate.tellers:
            candidate.tellers[teller] = None
            self._shortlist = None

    def heard(self, peer: PeerId, origin: Origin, *, is_new: bool) -> None:
        """A candidate answered: we know it ourselves now, and those who named it are believed more.

        But only for the first of an origin: a liar's other ids must not make its word good for more.
        """
        if (candidate := self.candidates.get(peer)) is not None:
            if is_new:
                self._answered.update(candidate.tellers.keys())
            candidate.origin, candidate.tellers, candidate.silent = origin, {}, False
            self._shortlist = None

    def silenced(self, peer: PeerId) -> None:
        """A candidate does not answer."""
        if (candidate := self.candidates.get(peer)) is not None:
            candidate.silent = True
            self._shortlist = None

    @property
    def shortlist(self) -> list[Candidate]:
        """The closest that may answer, in the order in which they are asked: in rounds, of each origin and by
        each teller's word the closest before the second. So a crowd that one liar names comes last."""
        if self._shortlist is None:
            silent = [each for each in self.candidates.values() if each.silent]
            told = Counter(by for each in silent for by in each.tellers)
            told.subtract(self._answered)
            alive = [each for each in self.candidates.values() if not each.silent]
            alive.sort(key=_distance)
            self._shortlist = spread(
                alive,
                self._width,
                lambda each: each.origin.wide,
                tellers=lambda each: each.tellers,
                charged=told,
                # An origin whose peer is silent has had its place: else its next id would get it at once.
                occupied=Counter(each.origin.wide for each in silent),
            )
        return self._shortlist


def _distance(each: Candidate) -> int:
    return each.distance


class Lookup:
    """See the module. Begin with ``start``.

    ``known`` are the closest that this node knows, the closest first. ``origin`` says where a peer with such
    addresses seems to be, ``dialable`` which of them may be dialled.
    """

    def __init__(
        self,
        goal: Goal,
        key: bytes,
        known: Sequence[Candidate],
        *,
        own: PeerId,
        origin: Callable[[PeerId, Sequence[bytes]], Origin],
        dialable: Callable[[Sequence[bytes]], tuple[bytes, ...]],
        draw: Draw,
        parameters: Parameters | None = None,
    ) -> None:
        self._parameters = parameters or Parameters()
        paths = self._parameters.paths
        self._question = Message(kind=goal, key=key)
        self._own, self._origin, self._dialable, self._draw = own, origin, dialable, draw
        self._point = point_of_key(key)
        self._paths = [_Path(self._point, self._parameters.width) for _ in range(paths)]
        for index, each in enumerate(known):
            self._paths[index % paths].add(each)
        self._asked: dict[PeerId, _Path] = {}
        self._out: dict[PeerId, float] = {}
        """Peers that have not answered yet, and when they were asked."""
        self._slow: set[PeerId] = set()
        self._answered: dict[PeerId, Origin] = {}
        self._named: dict[PeerId, _Named] = {}

    def start(self, now: float) -> list[Ask]:
        """The first questions; none where nobody is known."""
        return self.advance(now)

    @property
    def is_over(self) -> bool:
        """Whether there is nobody left to ask, or to wait for, or all agree."""
        return not self._out or self._agreed()

    def slow_at(self, now: float) -> float | None:
        """When the next question that is out gets slow, so that :meth:`advance` may ask another peer."""
        return min((at + SLOW_S for at in self._out.values() if at + SLOW_S > now), default=None)

    def told(self, providers: Sequence[KadPeer], origin: Origin) -> None:
        """Note providers that somebody of this origin names."""
        for each in providers:
            if each.peer == self._own:
                continue
            if each.peer not in self._named and len(self._named) >= PROVIDERS_MAX:
                continue
            named = self._named.setdefault(each.peer, _Named())
            named.tellers[origin] = None
            for address in each.addresses:
                named.addresses.setdefault(address, set()).add(origin)

    def answered(self, peer: PeerId, answer: Message, origin: Origin, now: float) -> list[Ask]:
        """Take an answer; ``origin`` is where its connection comes from."""
        path = self._asked.get(peer)
        if path is None or self._out.pop(peer, None) is None:
            return []
        is_new = all(each.wide != origin.wide for each in self._answered.values())
        self._answered[peer] = origin
        if answer.kind == self._question.kind:
            self._take(path, answer, origin)
        for each in self._paths:
            each.heard(peer, origin, is_new=is_new)
        return self.advance(now)

    def failed(self, peer: PeerId, now: float) -> list[Ask]:
        """Note that a peer doesn't answer."""
        path = self._asked.get(peer)
        if path is None or self._out.pop(peer, None) is None:
            return []
        for each in self._paths:
            each.silenced(peer)
        return self.advance(now)

    def advance(self, now: float) -> list[Ask]:
        """The questions to put now."""
        for peer, at in self._out.items():
            if at + SLOW_S <= now and peer not in self._slow:
                self._slow.add(peer)
                for path in self._paths:
                    path.silenced(peer)
        asks: list[Ask] = []
        progress = True
        while progress:
            progress = False
            for path in self._paths:
                if len(self._asked) >= ASKED_MAX or len(self._out) >= OUT_MAX:
                    return asks
                quick = sum(self._asked[peer] is path for peer in self._out if peer not in self._slow)
                if quick >= self._parameters.alpha:
                    continue
                # Looked for anew each time: what was asked on one path may stand on the shortlists of others.
                following = next((each for each in path.shortlist if each.peer not in self._asked), None)
                if following is None:
                    continue
                self._asked[following.peer] = path
                self._out[following.peer] = now
                asks.append(Ask(following.peer, following.merged(), self._question))
                progress = True
        return asks

    def result(self, limit: int) -> Result:
        """What was found so far, with up to ``limit`` providers."""
        answered = sorted(self._answered, key=lambda peer: point_of(peer) ^ self._point)
        closest = spread(answered, self._parameters.width, lambda peer: self._answered[peer].wide)
        providers = shuffled(self._named.items(), self._draw)  # of those with as many tellers, in any order
        providers.sort(key=lambda each: -len({by.wide for by in each[1].tellers}))
        return Result(
            closest=tuple(closest),
            providers=tuple(
                FoundProvider(peer, self._addresses_of(named), frozenset(named.tellers))
                for peer, named in providers[:limit]
            ),
            asked=len(self._asked),
            answered=len(self._answered),
        )

    def _agreed(self) -> bool:
        """Whether enough origins named the very same providers: a few liars among them would have to tell the
        truth, and whoever differs has the lookup go on to the end."""
        tellers = {by.wide for named in self._named.values() for by in named.tellers}
        if len(tellers) < AGREED:
            return False
        return all(len({by.wide for by in named.tellers}) == len(tellers) for named in self._named.values())

    def _take(self, path: _Path, answer: Message, origin: Origin) -> None:
        for each in answer.closer[:K]:
            if each.peer != self._own and each.addresses:
                self._add(path, each, origin)
        self.told(answer.providers, origin)

    def _add(self, path: _Path, heard: KadPeer, teller: Origin) -> None:
        known = path.candidates.get(heard.peer)
        said = heard.addresses[:ADDRESSES_HEARD]
        if known is None and path.has_room and (addresses := self._dialable(said)):
            where = self._origin(heard.peer, addresses)
            path.add(Candidate(heard.peer, addresses, where, tellers={teller.wide: None}))
        # One that we know ourselves needs nobody's word. Who names one that is silent already is charged for
        # it, too: liars name the same made-up peers.
        elif known is not None and known.tellers:
            path.name(known, teller.wide)
            is_news = not set(said) <= {*known.addresses, *(each for other in known.others for each in other)}
            if is_news and heard.peer not in self._asked and len(known.others) + 1 < VERSIONS_MAX:
                known.others.append(self._dialable(said))

    def _addresses_of(self, named: _Named) -> tuple[bytes, ...]:
        by_tellers = sorted(named.addresses, key=lambda address: -len(named.addresses[address]))
        return fit(self._dialable(by_tellers))
