"""The book of adverts: what this node believes about hosts, bounded per peer and in all.

One live advert a peer. Cheap checks come before the signature, and a bad signature is charged to
whoever brought it, never to the peer it names: a forger can't silence its victim. An eighth of the
book is kept for privileged peers (staked, or dialled by us), so that Sybils can't crowd them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.errors import ProtocolError
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.messages import Advert, SignedAdvert
from p2pnode.protocols.adverts.signing import authentic, decode_gossip, parse

MIN_INTERVAL_S: Final = 1.0
"""A peer's adverts closer together than this are ignored."""
TTL_MAX_S: Final = 3 * 3600 + 300
CLOCK_SKEW_S: Final = 60
STRANGERS_PER_S: Final = 16.0
STRANGERS_BURST: Final = 256.0
FORGERIES_MAX: Final = 16
"""Bad signatures one source may bring in a minute before its adverts are dropped unread."""
_FORGERY_WINDOW_S: Final = 60.0
_SOURCES_MAX: Final = 1024

Verdict: TypeAlias = Literal[
    "accepted", "malformed", "expired", "future", "stale", "too_often", "rate", "forged", "muted", "full"
]


@dataclass(frozen=True, slots=True)
class Entry:
    """A live advert, as it came and as it reads."""

    signed: SignedAdvert
    advert: Advert
    received_at: float
    kept_until: float
    """Outlives ``expires_at`` where an earlier advert would have lived longer: it must not be replayed."""


class Book:
    """Keeps live adverts. Times are wall-clock seconds, given with each call."""

    def __init__(
        self, *, size_max: int = 4096, privileged: Callable[[PeerId], bool] = lambda _peer: False
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._entries: dict[PeerId, Entry] = {}
        self._size_max = size_max
        self._reserve = size_max // 8
        self._privileged = privileged
        self._tokens = STRANGERS_BURST
        self._tokens_at = 0.0
        self._forgeries: dict[PeerId, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def offer_gossip(self, data: bytes, source: PeerId, now: float) -> tuple[Verdict, Advert | None]:
        """Judge an advert that ``source`` brought by gossip."""
        try:
            signed = decode_gossip(data)
        except ProtocolError:
            self.counts["malformed"] += 1
            return "malformed", None
        return self.offer(signed, source, now)

    def offer(
        self, signed: SignedAdvert, source: PeerId, now: float, *, asked: bool = False
    ) -> tuple[Verdict, Advert | None]:
        """Judge an advert; ``asked`` ones (the answer to our own question) skip the stranger rate."""
        verdict, advert = self._judge(signed, source, now, asked=asked)
        self.counts[verdict] += 1
        if verdict == "accepted" and advert is not None:
            held = self._entries.get(advert.peer)
            until = max(advert.expires_at, held.kept_until if held is not None else 0)
            self._entries[advert.peer] = Entry(signed, advert, now, until)
        return verdict, advert

    def _judge(
        self, signed: SignedAdvert, source: PeerId, now: float, *, asked: bool
    ) -> tuple[Verdict, Advert | None]:
        if self._muted(source, now):
            return "muted", None
        try:
            advert = parse(signed)
        except ProtocolError:
            return "malformed", None
        if advert.expires_at <= now:
            return "expired", None
        if advert.issued_at > now + CLOCK_SKEW_S or advert.expires_at > now + TTL_MAX_S:
            return "future", None
        held = self._entries.get(advert.peer)
        if held is not None:
            if held.signed == signed:
                return ("accepted", advert) if asked else ("stale", advert)
            if (advert.binding.seq, advert.seq) <= (held.advert.binding.seq, held.advert.seq):
                return "stale", advert
            if not asked and now - held.received_at < MIN_INTERVAL_S:
                return "too_often", advert
        privileged = self._privileged(advert.peer)
        if not (privileged or asked or self._take_token(now)):
            return "rate", None
        if not authentic(signed, advert, now):
            self._charge(source, now)
            return "forged", None
        if held is None and not self._make_room(now, privileged=privileged):
            return "full", None
        return "accepted", advert

    def _muted(self, source: PeerId, now: float) -> bool:
        since, count = self._forgeries.get(source, (now, 0))
        return count >= FORGERIES_MAX and now - since < _FORGERY_WINDOW_S

    def _charge(self, source: PeerId, now: float) -> None:
        since, count = self._forgeries.get(source, (now, 0))
        if now - since >= _FORGERY_WINDOW_S:
            since, count = now, 0
        if source not in self._forgeries and len(self._forgeries) >= _SOURCES_MAX:
            del self._forgeries[next(iter(self._forgeries))]
        self._forgeries[source] = (since, count + 1)

    def _take_token(self, now: float) -> bool:
        self._tokens = min(STRANGERS_BURST, self._tokens + (now - self._tokens_at) * STRANGERS_PER_S)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _make_room(self, now: float, *, privileged: bool) -> bool:
        limit = self._size_max if privileged else self._size_max - self._reserve
        if len(self._entries) < limit:
            return True
        self.expire(now)
        return len(self._entries) < limit

    def expire(self, now: float) -> list[PeerId]:
        """Drop what has expired; returns whom."""
        gone = [peer for peer, entry in self._entries.items() if entry.kept_until <= now]
        for peer in gone:
            del self._entries[peer]
        return gone

    def forget(self, peer: PeerId) -> None:
        """Drop one peer's advert (it withdrew, or is banned)."""
        self._entries.pop(peer, None)

    def get(self, peer: PeerId, now: float) -> Entry | None:
        """A peer's live advert."""
        entry = self._entries.get(peer)
        return entry if entry is not None and entry.advert.expires_at > now else None

    def live(self, now: float, model: ModelId | None = None) -> Iterator[Entry]:
        """Live adverts, of one model or of all, in the order they came."""
        for entry in self._entries.values():
            if entry.advert.expires_at > now and (model is None or entry.advert.offer(model) is not None):
                yield entry

    def population(self, now: float, model: ModelId) -> int:
        """Hosts of a model that count for stretching: privileged ones only, so that Sybils don't."""
        return sum(1 for entry in self.live(now, model) if self._privileged(entry.advert.peer))
