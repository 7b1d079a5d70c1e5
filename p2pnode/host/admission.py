"""Which sessions a host takes, and which one gives way when all places are taken.

Pure: the time is an argument, and places are whatever has a peer and knows since when it rests, so that a
simulator drives exactly this. It knows neither streams nor money: ``host.py`` acts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Generic, Protocol, TypeVar

from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import Limits
from p2pnode.protocols.inference.messages import Refuse

RETRY_S: Final = 5.0
REST_S: Final = 5.0
"""A session that has rested so long gives way when all places are taken."""


class Place(Protocol):
    """One stream of a client that has, or asks for, a session."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
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
    """Of one host, which serves ``models``, by their names."""

    def __init__(self, limits: Limits, models: Mapping[ModelId, str]) -> None:
        self._limits, self._models = limits, dict(models)
        self._places: set[P] = set()
        self._by_peer: Counter[PeerId] = Counter()
        self.warm: set[ModelId] = set()
        """The models whose engine is loaded."""
        self.is_draining = False
        """Whether the host stops: nothing new is taken."""

    @property
    def places(self) -> frozenset[P]:
        """Those that are taken now."""
        return frozenset(self._places)

    def enter(self, place: P) -> None:
        """A stream came; it takes a place before it has asked for anything."""
        self._places.add(place)
        self._by_peer[place.peer] += 1

    def leave(self, place: P) -> None:
        """A stream is over."""
        self._places.discard(place)
        self._by_peer[place.peer] -= 1
        if not self._by_peer[place.peer]:
            del self._by_peer[place.peer]

    def refuses_model(self, model: ModelId) -> Refuse | None:
        """Why this model can't be asked now; None where it can."""
        if model not in self._models:
            names = ", ".join(self._models.values())
            return Refuse(code="model_not_available", detail=f"this host serves {names or 'no model'}")
        if refusal := self.refuses_all():
            return refusal
        if model not in self.warm:
            detail = "the model is still loading here"
            return Refuse(code="model_not_available", detail=detail, retry_after_s=RETRY_S)
        return None

    def refuses_all(self) -> Refuse | None:
        """Why nothing new is taken from anybody; None where it is."""
        if not self.is_draining:
            return None
        return Refuse(code="shutting_down", detail="this host is going away: try another")

    def decide_open(self, newcomer: P, now: float) -> Refuse | P | None:
        """Whether a new session is taken: a refusal, the place that must give way first, or None."""
        detail = "all sessions of this host are taken: try again later or use another host"
        # More than the limit, not as many: the newcomer has entered, and counts.
        if self._by_peer[newcomer.peer] > self._limits.sessions_per_peer:
            return _full(detail)
        return self._decide_room(newcomer, now, detail)

    def decide_resume(self, newcomer: P, now: float) -> Refuse | P | None:
        """Whether there is room for a session to go on, on a new stream; as :meth:`decide_open`."""
        return self._decide_room(newcomer, now, "all sessions are taken")

    def _decide_room(self, newcomer: P, now: float, detail: str) -> Refuse | P | None:
        """A few peers that only sit on sessions must not keep others from answers.

        Of those that rest, one of the peer that has the most gives way; among its own, the one that rests
        longest.
        """
        taken = [each for each in self._places if not each.is_yielding]
        if len(taken) <= self._limits.sessions_max:
            return None
        resting = [
            (self._by_peer[each.peer], now - each.rests_since, each)
            for each in taken
            if each is not newcomer and each.rests_since is not None and now - each.rests_since >= REST_S
        ]
        return max(resting, key=lambda one: one[:2])[2] if resting else _full(detail)


def _full(detail: str) -> Refuse:
    return Refuse(code="capacity", detail=detail, retry_after_s=RETRY_S)
