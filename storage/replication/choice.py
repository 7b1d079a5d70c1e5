"""Which replicas are written to and asked, and in which order.

Replicas are preferred in the order of the user's own list, then by their distance to what is kept, as
Kademlia measures it: each of the user's machines, knowing nothing of the others, comes to the same few nodes.
Pure: it sees names, places and hashes, and asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from p2pnode.ids import PeerId
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.replication.quorum import Counted
from p2pnode.storage.store import Placed

R = TypeVar("R", bound=Placed)

COPIES: Final = 3
"""Replicas on nodes that are neither this machine nor the serving host, where there are so many."""


def distance(key: EntryKey, peer: PeerId) -> int:
    """The XOR of the hashes of both."""
    return int.from_bytes(hash_of(key), "big") ^ int.from_bytes(hash_of(peer.encode()), "big")


def nearest(key: EntryKey, peers: Iterable[PeerId], most: int) -> list[PeerId]:
    """At most so many of the peers, the nearest to the key first."""
    return sorted(peers, key=lambda peer: distance(key, peer))[:most]


def in_order_of_preference(key: EntryKey, found: Iterable[R], configured: Sequence[PeerId]) -> list[R]:
    """First the configured ones, in the user's order; then the others, the nearest to the key first."""
    rank = {peer: place for place, peer in enumerate(configured)}

    def preference(replica: R) -> tuple[int, int]:
        peer = PeerId(replica.name)
        return rank.get(peer, len(rank)), distance(key, peer)

    return sorted(found, key=preference)


def to_write_to(candidates: Iterable[R]) -> list[R]:
    """Of candidates in order of preference: the serving host, and the first ``COPIES`` independent ones.

    The node on the user's own data dir has the same disk as we: it is none.
    """
    chosen: list[R] = []
    independent = 0
    for replica in candidates:
        independent += replica.place == "other"
        if replica.place == "serving" or (replica.place == "other" and independent <= COPIES):
            chosen.append(replica)
    return chosen


def ours_first(own: R, others: Iterable[R], most: int) -> list[R]:
    """At most ``most`` replicas with different names, our own first."""
    named = {replica.name: replica for replica in (own, *others)}
    return list(named.values())[:most]


def worth_a_write(replicas: Sequence[R], judged: Counted, failed_lately: Callable[[str], bool]) -> list[R]:
    """Without those that failed lately, where enough are left to reach the quorum; else all."""
    fit = [replica for replica in replicas if not failed_lately(replica.name)]
    return fit if judged.reached(frozenset(each.name for each in fit)) else list(replicas)


def fit_first(replicas: Iterable[R], failed_lately: Callable[[str], bool]) -> list[R]:
    """In the order to ask for bytes: those that failed lately come last."""
    return sorted(replicas, key=lambda replica: failed_lately(replica.name))
