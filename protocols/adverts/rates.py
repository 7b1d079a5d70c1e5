"""How much a node listens: what each source of adverts, and all strangers together, may still bring.

Times are wall-clock seconds and may step back; nobody gains or loses by that. Bounded by
``SOURCES_MAX`` sources, the oldest forgotten first. It knows nothing of adverts.
"""

from __future__ import annotations

from typing import Final

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.ids import PeerId

STRANGERS_PER_S: Final = 16.0
STRANGERS_BURST: Final = 256.0
SOURCE_SHARE: Final = 0.5
"""One source gets at most this part of the strangers' rate: a flooder leaves room for others."""
FORGERIES_MAX: Final = 16
"""Bad signatures one source may bring in a minute before its adverts are dropped unread."""
FORGERY_WINDOW_S: Final = 60.0
SOURCES_MAX: Final = 1024


class _Source:
    __slots__ = ("bucket", "forgeries", "since")

    def __init__(self) -> None:
        self.bucket = TokenBucket(STRANGERS_PER_S * SOURCE_SHARE, STRANGERS_BURST * SOURCE_SHARE)
        self.forgeries = 0
        self.since = 0.0


class Sources:
    """Who brings adverts, and how they behaved."""

    def __init__(self) -> None:
        self._all = TokenBucket(STRANGERS_PER_S, STRANGERS_BURST)
        self._sources: BoundedMap[PeerId, _Source] = BoundedMap(SOURCES_MAX)

    def admit(self, source: PeerId, now: float) -> bool:
        """May this source bring one more advert of a stranger?"""
        return self._of(source).bucket.take(now) and self._all.take(now)

    def muted(self, source: PeerId, now: float) -> bool:
        """Did it bring too many forgeries within the last minute?"""
        known = self._sources.get(source)
        if known is None or known.forgeries < FORGERIES_MAX:
            return False
        return 0 <= now - known.since < FORGERY_WINDOW_S

    def charge(self, source: PeerId, now: float) -> None:
        """It brought a forgery."""
        known = self._of(source)
        if not 0 <= now - known.since < FORGERY_WINDOW_S:
            known.since, known.forgeries = now, 0
        known.forgeries += 1

    def _of(self, source: PeerId) -> _Source:
        known = self._sources.get(source)
        if known is None:
            known = _Source()
            self._sources.put(source, known)
        return known
