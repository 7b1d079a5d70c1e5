"""``ProviderRecords``: who provides which key, as a DHT server keeps it: bounded, and shared out by origin.

Ids close to a key are free to grind, and so are any number of ids. What decides who stays is therefore where
a provider comes from, whether this node reached it itself, and chance. A key's set and all records together
have so many places; in both, nobody from elsewhere finds them taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from p2pnode.ids import PeerId
from p2pnode.protocols.kademlia.messages import fit
from p2pnode.shares import Draw, FairShares, Origin, one_of_each

LIFETIME_S: Final = 3600.0
PROVIDERS_MAX: Final = 64
"""Records of one key."""
ORIGIN_MAX: Final = PROVIDERS_MAX // 8
"""Of these, records of one origin."""
REACHED_PLACES: Final = PROVIDERS_MAX // 3
"""Of these, places that only providers take which this node dialled with success."""
RECORDS_MAX: Final = 4096
"""In all: at 1 KiB a record, and with what Python needs for one, less than 8 MiB."""
T = TypeVar("T")


@dataclass(slots=True)
class ProviderRecord:
    """That ``provider`` said it provides a key. ``addresses`` are binary multiaddrs as it gave them."""

    provider: PeerId
    addresses: tuple[bytes, ...]
    origin: Origin
    reached: bool
    expires_at: float


class ProviderRecords:
    """Of one server. Times are seconds on any clock that only grows."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._sets: dict[bytes, dict[PeerId, ProviderRecord]] = {}
        self._shares: FairShares[tuple[bytes, PeerId]] = FairShares(RECORDS_MAX)

    def __len__(self) -> int:
        return len(self._shares)

    def keys(self) -> Collection[bytes]:
        """The keys that somebody provides."""
        return self._sets.keys()

    def add(
        self,
        key: bytes,
        provider: PeerId,
        addresses: Iterable[bytes],
        *,
        origin: Origin,
        reached: bool,
        now: float,
    ) -> bool:
        """Keep a record for ``LIFETIME_S``, or renew it. False where there is no place for it.

        ``origin`` is where the provider's own connection comes from, never what its addresses say.
        """
        record = ProviderRecord(provider, fit(addresses), origin, reached, now + LIFETIME_S)
        held = self._sets.get(key, {}).get(provider)
        if held is not None and held.origin == origin:
            self._sets[key][provider] = record
            return True
        if held is not None:
            self._remove(key, provider)
        self._expire(key, now)
        records = self._sets.get(key, {})
        loser = self._loser(records, record)
        if loser == provider:
            return False
        if loser is not None:
            self._remove(key, loser)
        entered, victim = self._shares.enter((key, provider), origin, self._give_way)
        if not entered:
            return False
        if victim is not None:
            self._forget(*victim)
        self._sets.setdefault(key, {})[provider] = record
        return True

    def draw(self, key: bytes, count: int, now: float) -> list[ProviderRecord]:
        """Up to ``count`` records of a key, at random over origins: one of each before a second of any."""
        self._expire(key, now)
        by_origin: dict[str, list[ProviderRecord]] = {}
        for record in self._sets.get(key, {}).values():
            by_origin.setdefault(record.origin.wide, []).append(record)
        return one_of_each(list(by_origin.values()), count, self._draw)

    def expire(self, now: float) -> None:
        """Forget what is older than ``LIFETIME_S``."""
        for key in list(self._sets):
            self._expire(key, now)

    def _expire(self, key: bytes, now: float) -> None:
        for record in list(self._sets.get(key, {}).values()):
            if record.expires_at <= now:
                self._remove(key, record.provider)

    def _loser(self, records: dict[PeerId, ProviderRecord], newcomer: ProviderRecord) -> PeerId | None:
        """Who of one key's records goes for a newcomer: the newcomer itself, another, or nobody."""
        own = [each for each in records.values() if each.origin.wide == newcomer.origin.wide]
        if len(own) >= ORIGIN_MAX:
            return self._one_of(own, newcomer)
        reached = sum(each.reached for each in records.values())
        open_places = PROVIDERS_MAX - (0 if newcomer.reached else max(reached, REACHED_PLACES))
        if len(records) - (0 if newcomer.reached else reached) < open_places:
            return None
        others = [each for each in records.values() if not each.reached or reached > REACHED_PLACES]
        held = Counter(each.origin.wide for each in others)
        largest = max(held.values())
        if largest >= len(own) + 2:  # that origin has more than its share
            return self._any([each.provider for each in others if held[each.origin.wide] == largest])
        return self._one_of(own, newcomer) if own else self._any(others).provider

    def _one_of(self, own: list[ProviderRecord], newcomer: ProviderRecord) -> PeerId:
        """Of one origin's records one at random; one that this node reached only for another such."""
        free = [each.provider for each in own if newcomer.reached or not each.reached]
        return self._any(free) if free else newcomer.provider

    def _any(self, items: Sequence[T]) -> T:
        return items[self._draw(len(items))]

    def _give_way(self, held: Collection[tuple[bytes, PeerId]]) -> tuple[bytes, PeerId]:
        return self._any(list(held))

    def _remove(self, key: bytes, provider: PeerId) -> None:
        self._shares.leave((key, provider))
        self._forget(key, provider)

    def _forget(self, key: bytes, provider: PeerId) -> None:
        records = self._sets[key]
        del records[provider]
        if not records:
            del self._sets[key]
