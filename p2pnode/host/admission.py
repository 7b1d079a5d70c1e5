"""Which sessions a host takes, and which one gives way when all places are taken.

Pure: the time is an argument, and places are whatever has a peer and knows since when it rests, so that a
simulator drives exactly this. It knows neither streams nor money: ``host.py`` acts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Final, Generic, Protocol, TypeVar

from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import Limits
from p2pnode.protocols.inference.messages import Refuse, SessionTerms
from p2pnode.shares import FairShares, Origin

RETRY_S: Final = 5.0
REST_S: Final = 5.0
"""A session that has rested so long gives way when all places are taken."""


class Place(Hashable, Protocol):
    """One stream of a client that has, or asks for, a session."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def origin(self) -> Origin:
        """Where the peer comes from."""
        ...

    @property
    def paid(self) -> bool:
        """Whether the session costs its client anything."""
        ...

    @property
    def rests_since(self) -> float | None:
        """Since when it asks nothing of the engine; None while a turn is served."""
        ...

    @property
    def is_yielding(self) -> bool:
        """Whether it was told to give way: its place counts as free."""
        ...


P = TypeVar("P", bound=Place)


class Admission(Generic[P]):
    """Of one host. ``models`` gives the names of those that it serves now."""

    def __init__(self, limits: Limits, models: Callable[[], Mapping[ModelId, str]]) -> None:
        self._limits, self._models = limits, models
        self._places: dict[PeerId, dict[P, None]] = {}
        self.is_draining = False
        """Whether the host stops: nothing new is taken."""
        self.paused = ""
        """Why nothing new is taken for a while; "" while it is."""

    @property
    def places(self) -> frozenset[P]:
        """Those that are taken now."""
        return frozenset(place for places in self._places.values() for place in places)

    def places_of(self, peer: PeerId) -> Collection[P]:
        """Those of one peer."""
        return self._places.get(peer, {})

    def enter(self, place: P) -> None:
        """A stream came; it takes a place before it has asked for anything."""
        self._places.setdefault(place.peer, {})[place] = None

    def leave(self, place: P) -> None:
        """A stream is over."""
        mine = self._places.get(place.peer, {})
        mine.pop(place, None)
        if not mine:
            self._places.pop(place.peer, None)

    def refuses_model(self, model: ModelId) -> Refuse | None:
        """Why this model can't be asked for; None where it can."""
        models = self._models()
        if model not in models:
            names = ", ".join(models.values())
            return Refuse(code="model_not_available", detail=f"this host serves {names or 'no model'}")
        return self.refuses_all()

    def refuses_all(self) -> Refuse | None:
        """Why nothing new is taken from anybody; None where it is."""
        if self.is_draining:
            return Refuse(code="shutting_down", detail="this host is going away: try another")
        if self.paused:
            return Refuse(code="shutting_down", detail=f"this host is paused ({self.paused}): try another")
        return None

    def decide_open(self, newcomer: P, now: float) -> Refuse | P | None:
        """Whether a new session is taken: a refusal, the place that must give way first, or None.

        A place that is served now gives way at the end of its turn.
        """
        detail = "all sessions of this host are taken: try again later or use another host"
        # More than the limit, not as many: the newcomer has entered, and counts.
        if len(self.places_of(newcomer.peer)) > self._limits.sessions_per_peer:
            return _full(detail)
        return self._decide_room(newcomer, now, detail)

    def decide_resume(self, newcomer: P, now: float) -> Refuse | P | None:
        """Whether there is room for a session to go on, on a new stream; as :meth:`decide_open`."""
        return self._decide_room(newcomer, now, "all sessions are taken")

    def _decide_room(self, newcomer: P, now: float, detail: str) -> Refuse | P | None:
        """A few origins that sit on sessions, or ask without end, must not keep others from answers.

        First an origin with more than its share gives way, even from a turn if it pays nothing. Otherwise one
        place that has rested for a while: of those of the peer that has most, the one that rests longest.
        """
        taken = [each for each in self.places if not each.is_yielding]
        if len(taken) <= self._limits.sessions_max:
            return None
        others = [each for each in taken if each is not newcomer]
        shares: FairShares[P] = FairShares(len(others))
        for each in others:
            shares.enter(each, each.origin, _rests_longest)
        _, victim = shares.enter(newcomer, newcomer.origin, _rests_longest)
        if victim is not None:
            return victim
        resting = [
            (len(self.places_of(each.peer)), now - each.rests_since, each)
            for each in others
            if each.rests_since is not None
            and now - each.rests_since >= REST_S
            and (each.origin == newcomer.origin or shares.holds_more(each.origin, newcomer.origin))
        ]
        return max(resting, key=lambda one: one[:2])[2] if resting else _full(detail)


def _rests_longest(places: Collection[P]) -> P | None:
    """The one that rests longest; where none rests, one that pays nothing is told to end after its turn."""
    resting = [(each.rests_since, each) for each in places if each.rests_since is not None]
    if resting:
        return min(resting, key=lambda one: one[0])[1]
    return next((each for each in places if not each.paid), None)


def _full(detail: str) -> Refuse:
    return Refuse(code="capacity", detail=detail, retry_after_s=RETRY_S)


def origin_of_payer(terms: SessionTerms) -> Origin:
    """Whose share a paid session takes: its payer's, wherever that is."""
    payer = f"payer/{terms.payer.hex()}"
    return Origin(payer, payer)
