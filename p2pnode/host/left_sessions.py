"""Which sessions a host keeps for clients that left, and which one is settled to make room. Pure.

A session that is left costs its host a row of the journal, or nothing but an entry here where it is free: no
stream, no slot, no exposure. So that nobody fills a host with them, each payer, each origin and the host as a
whole have a bound; beyond it the one that was left first gives way. Times are epoch seconds, amounts token
units. It asks no journal and settles nothing: ``resumable.py`` acts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from p2pnode.ids import SessionId
from p2pnode.payments.settlement_policy import LEFT_MAX, LEFT_PER_ORIGIN, LEFT_PER_PAYER


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftSession:
    """One session that is left. ``payer`` is its wallet or, of a free one, the address of its resume key."""

    session: SessionId
    payer: bytes
    origin: str
    until: int


class LeftSessions:
    """Those of one host, the one that was left first first."""

    def __init__(self) -> None:
        self._left: dict[SessionId, LeftSession] = {}
        # Lists: most groups have one session, and of an origin there are 64 at most.
        self._payers: dict[bytes, list[SessionId]] = {}
        self._origins: dict[str, list[SessionId]] = {}
        self._ends: list[tuple[int, SessionId]] = []
        """A heap by the time at which they end. What was removed or left anew stays in it until then."""

    def __len__(self) -> int:
        return len(self._left)

    def __iter__(self) -> Iterator[SessionId]:
        return iter(tuple(self._left))

    def __contains__(self, session: SessionId) -> bool:
        return session in self._left

    def add(self, left: LeftSession) -> list[SessionId]:
        """Keep it. Returns those that give way, which are not kept any more."""
        self.remove(left.session)
        self._left[left.session] = left
        if len(self._ends) > 2 * len(self._left):  # of a client that comes and goes all day, one entry stays
            self._ends = [(each.until, each.session) for each in self._left.values()]
            heapq.heapify(self._ends)
        else:
            heapq.heappush(self._ends, (left.until, left.session))
        self._payers.setdefault(left.payer, []).append(left.session)
        self._origins.setdefault(left.origin, []).append(left.session)
        victims: list[SessionId] = []
        for group, most in (
            (self._payers[left.payer], LEFT_PER_PAYER),
            (self._origins[left.origin], LEFT_PER_ORIGIN),
            (self._left, LEFT_MAX),
        ):
            while len(group) > most:
                victims.append(next(iter(group)))
                self.remove(victims[-1])
        return victims

    def remove(self, session: SessionId) -> None:
        """It is resumed, or settled. A second call does nothing."""
        left = self._left.pop(session, None)
        if left is not None:
            _take_out(self._payers, left.payer, session)
            _take_out(self._origins, left.origin, session)

    def is_over(self, session: SessionId, now: float) -> bool:
        """Whether its time is up, or it is not kept."""
        left = self._left.get(session)
        return left is None or left.until <= now

    def take_expired(self, now: float) -> list[SessionId]:
        """Remove those whose time is up, and return them."""
        over = []
        while self._ends and self._ends[0][0] <= now:
            until, session = heapq.heappop(self._ends)
            left = self._left.get(session)
            if left is not None and left.until == until:
                self.remove(session)
                over.append(session)
        return over


K = TypeVar("K")


def _take_out(groups: dict[K, list[SessionId]], key: K, session: SessionId) -> None:
    group = groups[key]
    group.remove(session)
    if not group:
        del groups[key]
