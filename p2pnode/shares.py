"""Fair shares of something scarce among strangers: places for connections, handshakes, streams, records.

A stranger makes peer ids for free, and addresses of one prefix nearly so. What it can't have cheaply is many
prefixes. So places are shared out by *origin*, and whoever comes from elsewhere finds room. Shares leave no
place unused: nobody is refused while one is free. It imports nothing that acts.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from p2pnode.ids import PeerId
from p2pnode.scopes import ip_of, is_global_ip

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
_NO_PREFIX: Final = ("relay/", "peer/")
_V4_BITS: Final = 24
_V6_BITS: Final = 48
_V6_WIDE_BITS: Final = 32


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where a peer comes from, as far as it can't be had for free.

    ``wide`` is shared out first, ``near`` within it: an IPv6 /32 and its /48. Elsewhere both are the same.
    """

    wide: str
    near: str

    @property
    def is_prefix(self) -> bool:
        """Whether it is a prefix of addresses, which tells something of who is behind it."""
        return not self.near.startswith(_NO_PREFIX)


def origin_of(host: str | None, peer: PeerId, *, relay: PeerId | None = None) -> Origin:
    """The origin of a peer that is seen at ``host``, an IP address, or through ``relay``.

    A public IPv4 /24 or IPv6 /48; a relay's peer id. Any other address, loopback and private ones among
    them, and a name say nothing about who is behind it: then each peer id is an origin of its own.
    """
    if relay is not None:
        return _single(f"relay/{relay}")
    ip = ip_of(host) if host is not None else None
    if host is None or ip is None or not is_global_ip(host):
        return _single(f"peer/{peer}")
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if isinstance(ip, ipaddress.IPv4Address):
        return _single(_prefix(ip, _V4_BITS))
    return Origin(wide=_prefix(ip, _V6_WIDE_BITS), near=_prefix(ip, _V6_BITS))


def _single(name: str) -> Origin:
    return Origin(wide=name, near=name)


def _prefix(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> str:
    return str(ipaddress.ip_network((ip, bits), strict=False))


Draw: TypeAlias = Callable[[int], int]
"""A random whole number, at least 0 and below the one given."""
GiveWay = Callable[[Collection[K]], K | None]
"""Of those that hold a place, the one that leaves for a newcomer; None where none may be sent away."""


class FairShares(Generic[K]):
    """``places`` for holders of many origins.

    While there is room everybody enters. Then a newcomer takes the place of one of the origin that holds
    most, if its own origin holds at least two fewer: otherwise the two would take places in turns.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._held: dict[str, dict[str, dict[K, None]]] = {}
        """Wide origin, then near origin, then its holders, the oldest first."""
        self._origins: dict[K, Origin] = {}

    def __len__(self) -> int:
        return len(self._origins)

    def __iter__(self) -> Iterator[K]:
        """All holders, the oldest first."""
        return iter(self._origins)

    def __contains__(self, holder: object) -> bool:
        return holder in self._origins

    def held_by(self, origin: Origin) -> int:
        """How many places the near origin holds."""
        return len(self._held.get(origin.wide, {}).get(origin.near, ()))

    def holds_more(self, one: Origin, other: Origin) -> bool:
        """Whether ``one`` holds more places than ``other``; of two in the same wide origin, the near ones
        count: a wide origin has any number of near ones."""
        if one.wide == other.wide:
            return self.held_by(one) > self.held_by(other)
        return self._held_within(one.wide) > self._held_within(other.wide)

    def _held_within(self, wide: str) -> int:
        return sum(map(len, self._held.get(wide, {}).values()))

    def holders(self, origin: Origin) -> list[K]:
        """Who holds the places of a near origin, the oldest first."""
        return list(self._held.get(origin.wide, {}).get(origin.near, ()))

    def holders_within(self, wide: str | None = None) -> list[K]:
        """Who holds the places of a wide origin, or all of them."""
        if wide is None:
            return list(self._origins)
        return [holder for near in self._held.get(wide, {}).values() for holder in near]

    def origin(self, holder: K) -> Origin:
        """Where a holder comes from. Raises ``KeyError`` for one without a place."""
        return self._origins[holder]

    def has_room(self) -> bool:
        """Whether the next newcomer enters without anybody leaving."""
        return len(self._origins) < self.places

    def enter(self, holder: K, origin: Origin, give_way: GiveWay[K]) -> tuple[bool, K | None]:
        """Whether the holder has a place now, and who has lost one for it.

        ``give_way`` chooses among the holders of one near origin, the oldest first. Entering again changes
        nothing.
        """
        if holder in self._origins:
            return True, None
        victim: K | None = None
        if not self.has_room():
            victim = self._displaced(origin, give_way)
            if victim is None:
                return False, None
            self.leave(victim)
        self._held.setdefault(origin.wide, {}).setdefault(origin.near, {})[holder] = None
        self._origins[holder] = origin
        return True, victim

    def leave(self, holder: K) -> bool:
        """Give the holder's place back; false where it had none."""
        origin = self._origins.pop(holder, None)
        if origin is None:
            return False
        within = self._held[origin.wide]
        del within[origin.near][holder]
        if not within[origin.near]:
            del within[origin.near]
        if not within:
            del self._held[origin.wide]
        return True

    def largest(self, give_way: GiveWay[K]) -> K | None:
        """One of the origin that holds most and may be sent away: for a newcomer with a reserved place."""
        return self._displaced(None, give_way)

    def _displaced(self, origin: Origin | None, give_way: GiveWay[K]) -> K | None:
        """Look at the largest origins first: of one whose holders may not be sent away, none leaves.

        Without an origin of the newcomer, each of them may lose a place.
        """
        sizes = {wide: sum(map(len, within.values())) for wide, within in self._held.items()}
        own = sizes.get(origin.wide, 0) if origin is not None else -1
        for wide in sorted(sizes, key=lambda each: (-sizes[each], each)):
            within = self._held[wide]
            is_own = origin is not None and wide == origin.wide
            if not is_own and sizes[wide] < own + 2:
                continue
            least = len(within.get(origin.near, ())) + 2 if origin is not None and is_own else 1
            for near in sorted(within, key=lambda each: (-len(within[each]), each)):
                if len(within[near]) < least:
                    break
                if (victim := give_way(within[near].keys())) is not None:
                    return victim
        return None


def one_of_each(groups: Iterable[Sequence[T]], count: int, draw: Draw) -> list[T]:
    """Up to ``count`` of all, at random: one of each group before a second of any.

    The work of choosing follows ``count``: a stranger may ask for a few of thousands again and again.
    """
    left = [list(group) for group in groups if group]
    chosen: list[T] = []
    while left and len(chosen) < count:
        turns = min(count - len(chosen), len(left))
        for first in range(turns):  # as many groups as are needed, in random order, come first
            other = first + draw(len(left) - first)
            left[first], left[other] = left[other], left[first]
        chosen += [_taken(group, draw) for group in left[:turns]]
        left = [group for group in left if group]
    return chosen


def _taken(items: list[T], draw: Draw) -> T:
    index = draw(len(items)) if len(items) > 1 else 0
    items[index], items[-1] = items[-1], items[index]
    return items.pop()


def shuffled(items: Iterable[T], draw: Draw) -> list[T]:
    """The items in random order."""
    left, found = list(items), []
    while left:
        found.append(_taken(left, draw))
    return found
