"""``Conduct``: what peers did wrong, as sums that decay, and what follows: nothing, slower reading, leaving.

Pure: the time is an argument. Sums are kept by peer and by origin. An origin's sum alone never harms a peer
that did nothing wrong itself: neighbours of a flooder stay. It lowers the bound of those of its peers that
are at fault, so that twenty peer ids of one prefix don't get twenty times the patience. This module knows
neither connections nor protocols: ``network.py`` acts. Whom the roles use at all is another question, with a
longer memory: ``FaultLedger`` in ``node/node.py``.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal, TypeAlias

from p2pnode.bounded import BoundedMap
from p2pnode.ids import PeerId
from p2pnode.shares import Origin

Verdict: TypeAlias = Literal["ok", "slow", "leave"]

HALF_LIFE_S: Final = 60.0
SLOW_AT: Final = 10.0
"""Weight 1 is what an honest peer may do now and then: overload, a late answer, a message of an old version.
Weight 10 is what no honest implementation sends."""
LEAVE_AT: Final = 40.0
ORIGIN_AT: Final = 120.0
"""Above this sum of an origin, its peers are left as soon as they are slowed."""
SLOW_S: Final = 1.0
"""So long nothing is read from a peer that is slowed; each further fault while it is slow begins it anew."""
REFUSED_S: Final = 300.0
_KEPT_MAX: Final = 4096


class Conduct:
    """The sums of one node, of the 4,096 peers and origins with the latest faults."""

    def __init__(self) -> None:
        self._peers: BoundedMap[PeerId, _Sum] = BoundedMap(_KEPT_MAX)
        self._origins: BoundedMap[Origin, _Sum] = BoundedMap(_KEPT_MAX)
        self._left: BoundedMap[PeerId, tuple[float, str]] = BoundedMap(_KEPT_MAX)
        self.faults: Counter[str] = Counter()
        """Since the start, by the name of the fault. Names come from our code, so there are few."""

    def charge(self, peer: PeerId, origin: Origin, fault: str, weight: float, now: float) -> Verdict:
        """Add ``weight`` to the sums of a peer and of its origin; what follows for this peer."""
        self.faults[fault] += 1
        own = self._peers.use(peer, _Sum)
        shared = self._origins.use(origin, _Sum)
        own.add(weight, now)
        shared.add(weight, now)
        if own.value >= (SLOW_AT if shared.value >= ORIGIN_AT else LEAVE_AT):
            self._peers.pop(peer)
            self._left.put(peer, (now + REFUSED_S, fault))
            return "leave"
        return "slow" if own.value >= SLOW_AT else "ok"

    def refused_for(self, peer: PeerId, now: float) -> str | None:
        """The fault for which this peer was left lately; None where it may come."""
        until, fault = self._left.get(peer) or (0.0, "")
        return fault if until > now else None


class _Sum:
    """Halves every ``HALF_LIFE_S``."""

    __slots__ = ("_at", "value")

    def __init__(self) -> None:
        self.value, self._at = 0.0, 0.0

    def add(self, weight: float, now: float) -> None:
        self.value = self.value * 0.5 ** (max(0.0, now - self._at) / HALF_LIFE_S) + weight
        self._at = now
