"""Fair shares of what is scarce among strangers: places for connections, handshakes, streams; memory.

A stranger makes peer ids for free, and addresses of one prefix nearly so. What it can't have cheaply is many
prefixes. So places are shared out by *origin*, and whoever comes from elsewhere finds room. Shares leave no
place unused: nobody is refused while one is free. It imports nothing that acts.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
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
        return self.held_within(one.wide) > self.held_within(other.wide)

    def held_within(self, wide: str) -> int:
        """How many places a wide origin holds."""
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


Rank: TypeAlias = Callable[[K], "int | None"]
"""In which order holders of one origin give way, the lowest first; None: this one may not be sent away."""


class SizedShares(Generic[K]):
    """``room``, in bytes or whatever is counted, for holders of many sizes and origins.

    While there is room everybody is given what it asks for. Then a newcomer takes from the origin that holds
    most, as long as that one holds more than the newcomer's own will.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.used = 0
        self._sizes: dict[K, int] = {}
        self._origins: dict[K, Origin] = {}
        self._wide: Counter[str] = Counter()
        self._near: Counter[Origin] = Counter()

    def size_of(self, holder: K) -> int:
        """How much a holder has."""
        return self._sizes.get(holder, 0)

    def held_by(self, origin: Origin) -> int:
        """How much the holders of a near origin have together."""
        return self._near[origin]

    def resize(self, holder: K, origin: Origin, size: int, rank: Rank[K]) -> dict[K, int] | None:
        """Let the holder have ``size``. Returns who has lost all for it, and how much that was; None, and
        nothing changes, where too few may be sent away."""
        more = size - self.size_of(holder)
        victims: list[K] | None = []
        if more > 0 and self.used + more > self.room:
            victims = self._victims(holder, origin, more, rank)
        if victims is None:
            return None
        lost = {victim: self._sizes[victim] for victim in victims}
        for victim in victims:
            self.leave(victim)
        self._origins[holder] = origin
        self._add(holder, more)
        return lost

    def enter_again(self, holder: K, origin: Origin, size: int) -> None:
        """Let a holder that has nothing have ``size``, also where that is more than there is room for."""
        self._origins[holder] = origin
        self._add(holder, size)

    def leave(self, holder: K) -> None:
        """Give back all that the holder has; for one that has nothing, nothing changes."""
        if holder in self._origins:
            self._add(holder, -self.size_of(holder))
            del self._sizes[holder], self._origins[holder]

    def _add(self, holder: K, more: int) -> None:
        origin = self._origins[holder]
        self.used += more
        self._sizes[holder] = self.size_of(holder) + more
        self._wide[origin.wide] += more
        self._near[origin] += more
        if not self._wide[origin.wide]:
            del self._wide[origin.wide]
        if not self._near[origin]:
            del self._near[origin]

    def _victims(self, holder: K, origin: Origin, more: int, rank: Rank[K]) -> list[K] | None:
        """Who gives way so that there is room for ``more``; None where too few may."""
        waiting: dict[Origin, list[tuple[int, int, K]]] = {}
        for age, each in enumerate(self._sizes):
            if each != holder and (order := rank(each)) is not None:
                waiting.setdefault(self._origins[each], []).append((-order, age, each))
        for group in waiting.values():
            group.sort(key=lambda one: one[:2])  # the last one is the first to go: of two equals the newer
        wide, near = Counter(self._wide), Counter(self._near)
        own_wide, own_near = wide[origin.wide] + more, near[origin] + more
        missing, victims = self.used + more - self.room, []
        while missing > 0:
            over = [
                other
                for other in waiting
                if (near[other] > own_near if other.wide == origin.wide else wide[other.wide] > own_wide)
            ]
            if not over:
                return None
            largest = max(over, key=lambda other: (wide[other.wide], near[other]))
            _, _, victim = waiting[largest].pop()
            if not waiting[largest]:
                del waiting[largest]
            victims.append(victim)
            size = self._sizes[victim]
            missing -= size
            wide[largest.wide] -= size
            near[largest] -= size
        return victims


def one_of_each(groups: Iterable[Sequence[T]], count: int, draw: Draw) -> list[T]:
    """Up to ``count`` of all, at random: one of each group before a second of any. No group is empty.

    The work of choosing follows ``count``: a stranger may ask for a few of thousands again and again.
    """
    # Where not each group comes to its turn, one round is enough: the others are not looked at.
    chosen, left = [], []
    for group in _drawn(list(groups), count, draw):
        if len(group) == 1:  # as most are: nothing is drawn, and nothing is left of it
            chosen.append(group[0])
        else:
            left.append(more := list(group))
            chosen.append(_taken(more, draw))
    while len(chosen) < count and (left := [group for group in left if group]):
        chosen += [_taken(group, draw) for group in _drawn(left, count - len(chosen), draw)]
    return chosen


def _drawn(items: list[T], count: int, draw: Draw) -> list[T]:
    """So many of the items, in random order; they are the first of the items from now on."""
    count = max(0, min(count, len(items)))
    for first in range(count):
        other = first + draw(len(items) - first)
        items[first], items[other] = items[other], items[first]
    return items[:count]


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
