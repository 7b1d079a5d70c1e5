"""The routing table: the peers that this node knows, in buckets by the XOR distance of their ids' SHA-256.

Only peers that were connected and speak the protocol enter. In a full bucket, places are shared out by
origin (:class:`FairShares`), and one that did not answer gives way to anybody; who finds no place waits for
one. Source: Maymounkov and Mazières, "Kademlia", sections 2.2 and 2.4 and 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from p2pnode.bounded import BoundedMap
from p2pnode.ids import PeerId
from p2pnode.protocols.kademlia.messages import K, fit, point_of
from p2pnode.shares import FairShares, Origin

FAILURES_MAX: Final = 2
"""Unanswered questions in a row after which a peer is forgotten; with another one waiting, the first is."""
WAITING_MAX: Final = 8
"""Peers that wait for a place in one bucket."""
T = TypeVar("T")


@dataclass(slots=True)
class Entry:
    """A peer of the table. ``addresses`` are what it says of itself, as binary multiaddrs."""

    peer: PeerId
    point: int
    addresses: tuple[bytes, ...]
    origin: Origin
    connected: bool = True
    failures: int = 0


class _Bucket:
    __slots__ = ("entries", "shares", "waiting")

    def __init__(self, places: int) -> None:
        self.shares: FairShares[PeerId] = FairShares(places)
        self.entries: dict[PeerId, Entry] = {}
        """The longest known first."""
        self.waiting: BoundedMap[PeerId, Entry] = BoundedMap(WAITING_MAX)


class RoutingTable:
    """Of one node, which is not in it. At most ``places`` peers a bucket, and 256 buckets."""

    def __init__(self, own: PeerId, places: int = K) -> None:
        self._own, self._places = own, places
        self._point = point_of(own)
        self._buckets: dict[int, _Bucket] = {}

    def __len__(self) -> int:
        return sum(len(bucket.entries) for bucket in self._buckets.values())

    def __iter__(self) -> Iterator[Entry]:
        for index in sorted(self._buckets):
            yield from self._buckets[index].entries.values()

    def get(self, peer: PeerId) -> Entry | None:
        """A peer that has a place."""
        bucket = self._bucket_of(peer)
        return bucket.entries.get(peer) if bucket is not None else None

    def enter(self, peer: PeerId, addresses: Iterable[bytes], origin: Origin) -> bool:
        """Note a connected peer that speaks the protocol. False where it has to wait for a place."""
        if peer == self._own:
            return False
        entry = Entry(peer, point_of(peer), fit(addresses), origin)
        bucket = self._buckets.setdefault(self._index(entry.point), _Bucket(self._places))
        held = bucket.entries.get(peer)
        if held is not None and held.origin == origin:
            held.addresses, held.connected, held.failures = entry.addresses, True, 0
            return True
        if held is not None:  # it comes from elsewhere now, and has to find a place there
            self._drop(bucket, peer)
        bucket.waiting.pop(peer)
        if self._take_place(bucket, entry):
            return True
        bucket.waiting.put(peer, entry)
        return False

    def disconnected(self, peer: PeerId) -> None:
        """Note that no connection with the peer is open any more. It stays: it may still be there."""
        for known in self._known(peer):
            known.connected = False

    def remove(self, peer: PeerId) -> None:
        """Forget a peer that serves no longer."""
        bucket = self._bucket_of(peer)
        if bucket is not None:
            bucket.waiting.pop(peer)
            if peer in bucket.entries:
                self._drop(bucket, peer)

    def failed(self, peer: PeerId) -> None:
        """Note that the peer didn't answer. It gives way to one that waits, or goes when it fails again."""
        bucket = self._bucket_of(peer)
        if bucket is None:
            return
        bucket.waiting.pop(peer)
        entry = bucket.entries.get(peer)
        if entry is None:
            return
        entry.failures += 1
        newest = list(bucket.waiting)[-1:]
        if newest or entry.failures >= FAILURES_MAX:
            self._drop(bucket, peer)
        for each in newest:
            waiting = bucket.waiting.pop(each)
            if waiting is not None:
                self._take_place(bucket, waiting)

    def answered(self, peer: PeerId) -> None:
        """Note that the peer answered."""
        for known in self._known(peer):
            known.failures = 0

    def closest(
        self, point: int, count: int, *, without: Collection[PeerId] = (), silent_too: bool = False
    ) -> list[Entry]:
        """The closest peers to a point, the closest first; no origin twice while there are others.

        Peers that didn't answer when they were asked last are left out, unless ``silent_too``.
        """
        known = [each for each in self if (silent_too or not each.failures) and each.peer not in without]
        known.sort(key=lambda each: each.point ^ point)
        chosen = spread(known, count, lambda each: each.origin.wide)
        return sorted(chosen, key=lambda each: each.point ^ point)

    def _take_place(self, bucket: _Bucket, entry: Entry) -> bool:
        if not bucket.shares.has_room():
            silent = [each.peer for each in bucket.entries.values() if each.failures]
            if silent:
                self._drop(bucket, silent[0])
        entered, victim = bucket.shares.enter(entry.peer, entry.origin, lambda held: _least(bucket, held))
        if victim is not None:
            del bucket.entries[victim]
        if entered:
            bucket.entries[entry.peer] = entry
        return entered

    @staticmethod
    def _drop(bucket: _Bucket, peer: PeerId) -> None:
        bucket.shares.leave(peer)
        del bucket.entries[peer]

    def _index(self, point: int) -> int:
        return (self._point ^ point).bit_length()

    def _bucket_of(self, peer: PeerId) -> _Bucket | None:
        return self._buckets.get(self._index(point_of(peer)))

    def _known(self, peer: PeerId) -> Iterator[Entry]:
        bucket = self._bucket_of(peer)
        if bucket is not None:
            known = (bucket.entries.get(peer), bucket.waiting.get(peer))
            yield from (each for each in known if each is not None)


def _least(bucket: _Bucket, held: Collection[PeerId]) -> PeerId:
    """Of one origin's peers the one to lose: the newest, rather one without a connection."""
    return min(reversed(list(held)), key=lambda peer: bucket.entries[peer].connected)


def spread(
    candidates: Iterable[T],
    count: int,
    origin: Callable[[T], str],
    *,
    tellers: Callable[[T], Collection[str]] = lambda _each: (),
    charged: Mapping[str, int] | None = None,
    occupied: Mapping[str, int] | None = None,
) -> list[T]:
    """Up to ``count`` of the candidates, in rounds: in each, one more of every origin, in their order.

    So no origin comes twice while there are others. ``tellers`` are the origins of those who named a
    candidate: in a round, the word of one of them must be good for one more. A candidate without tellers is
    one that we know ourselves. ``charged`` is what tellers named before in vain, less what they named well;
    ``occupied`` the places that origins have had before.
    """
    chosen: list[T] = []
    # Mostly the first ones are enough.
    left: Iterable[tuple[T, str, Collection[str]]] = (
        (each, origin(each), tellers(each)) for each in candidates
    )
    taken, told = dict(occupied or ()), dict(charged or ())
    allowed = 0
    while left and len(chosen) < count:
        allowed += 1
        passed = []
        for candidate in left:  # a loop and no generators: it runs for each answer, over all candidates
            each, where, named_by = candidate
            if taken.get(where, 0) >= allowed:
                passed.append(candidate)
                continue
            for by in named_by:
                if told.get(by, 0) < allowed:
                    told[by] = told.get(by, 0) + 1
                    break
            else:
                if named_by:
                    passed.append(candidate)
                    continue
            taken[where] = taken.get(where, 0) + 1
            chosen.append(each)
            if len(chosen) == count:
                return chosen
        left = passed
    return chosen
