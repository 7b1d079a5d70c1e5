"""What a peer has earned: its score, and how much of our work it may still take.

The score is that of GossipSub 1.1 (section "Peer Scoring"), with every topic weighing the same, so that its
counters are kept for a peer and not for each of its topics. Counters decay by the clock: nothing has to be
done for a peer that is quiet.
"""

from __future__ import annotations

from typing import Final

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.protocols.gossipsub.parameters import Parameters

ZERO: Final = 0.1
"""A counter that has decayed below this is 0 (the specification's ``decay_to_zero``)."""
_MINUTE_S: Final = 60.0


class Decaying:
    """A count that halves in each ``half_life_s``."""

    __slots__ = ("_at", "_half_life_s", "_value")

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._value = self._at = 0.0

    def add(self, amount: float, now: float, *, most: float = 1e6) -> None:
        """Count ``amount``, up to ``most`` in all."""
        self._value = min(most, self.value(now) + amount)
        self._at = now

    def value(self, now: float) -> float:
        """What is left of it."""
        if not self._value:
            return 0.0
        left: float = self._value * 0.5 ** (max(0.0, now - self._at) / self._half_life_s)
        return left if left >= ZERO else 0.0


class Record:
    """What is remembered of a peer when it leaves: else it would come back with a clean name.

    Back-offs stand here, and not in one table of all peers: there, whoever comes under ever new names could
    push out those of others, and whoever forgets a back-off that was asked of it is at fault.
    """

    __slots__ = ("backoffs", "behaviour", "invalid", "is_blameless")

    def __init__(self, parameters: Parameters) -> None:
        half_life_s = parameters.score.half_life_s
        self.invalid, self.behaviour = Decaying(half_life_s), Decaying(half_life_s)
        self.backoffs: BoundedMap[bytes, float] = BoundedMap(parameters.backoffs_max)
        """Until when it isn't grafted, by topic."""
        self.is_blameless = True
        """Whether it never did anything wrong, so that its score is not below 0."""

    def sweep(self, now: float) -> None:
        """Forget the back-offs that are over."""
        for topic in [each for each in self.backoffs if (self.backoffs.get(each) or 0.0) <= now]:
            self.backoffs.pop(topic)


class Standing:
    """One connected peer's score, and its allowance of checks."""

    __slots__ = (
        "_first", "_mesh_since", "_meshes", "_parameters", "_refused", "_refused_since", "_score", "checks",
        "record",
    )  # fmt: skip

    def __init__(self, parameters: Parameters, record: Record | None = None) -> None:
        score = parameters.score
        self._parameters, self._score = parameters, score
        self.record = record or Record(parameters)
        self._first = Decaying(score.half_life_s)
        self._mesh_since: float | None = None
        self._meshes = 0
        self.checks = TokenBucket(parameters.checks_per_s, parameters.checks_burst)
        self._refused, self._refused_since = 0, 0.0

    def score(self, now: float) -> float:
        """Its score: above 0 for who serves us well, below for who misbehaves."""
        score = self._score
        earned = score.first_weight * self._first.value(now)
        earned += score.mesh_weight * min(score.mesh_minutes_max, self._in_mesh_s(now) / _MINUTE_S)
        invalid = self.record.invalid.value(now)
        beyond = max(0.0, self.record.behaviour.value(now) - score.behaviour_tolerance)
        return earned + score.invalid_weight * invalid**2 + score.behaviour_weight * beyond**2

    def grafted(self, now: float) -> None:
        """It entered one of our meshes."""
        self._meshes += 1
        if self._mesh_since is None:
            self._mesh_since = now

    def pruned(self) -> None:
        """It left one. P1 counts the time in any mesh, and starts anew after the last."""
        self._meshes -= 1
        if self._meshes <= 0:
            self._meshes, self._mesh_since = 0, None

    def first(self, now: float) -> None:
        """It was the first to bring an accepted message (P2)."""
        self._first.add(1.0, now, most=self._score.first_max)

    def invalid(self, now: float) -> None:
        """It brought a message that every node refuses (P4)."""
        self.record.is_blameless = False
        self.record.invalid.add(1.0, now)
        if not 0 <= now - self._refused_since < self._parameters.forgery_window_s:
            self._refused, self._refused_since = 0, now
        self._refused += 1

    def misbehaved(self, now: float) -> None:
        """It broke a promise, grafted in its back-off, or flooded (P7)."""
        self.record.is_blameless = False
        self.record.behaviour.add(1.0, now)

    def muted(self, now: float) -> bool:
        """Whether it brought so many refused messages of late that none is looked at."""
        known = self._refused >= self._parameters.forgeries_max
        return known and 0 <= now - self._refused_since < self._parameters.forgery_window_s

    def _in_mesh_s(self, now: float) -> float:
        return 0.0 if self._mesh_since is None else max(0.0, now - self._mesh_since)
