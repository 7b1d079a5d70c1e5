"""Which peers a node dials and asks for adverts, so that it stays connected to enough of them.

Pure: who is connected, what is known of others and which addresses may be dialled are arguments, so that a
simulator drives exactly this. Every first peer comes from the user (a multiaddr or an invite), the LAN or an
earlier start: there is no built-in address anywhere. It knows no network: ``peers.py`` acts.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.bounded import BoundedMap
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.protocols.adverts.messages import Advert

UNANSWERED_MAX: Final = 3
"""Questions to one peer that stay without an answer."""
_WAIT_FIRST_S: Final = 1.0
_ALONE_WAIT_MAX_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class DialCandidate:
    """A peer to dial: where we know it to be, and where strangers say that it is."""

    peer: PeerId
    told: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()


class PeerSelection:
    """Wants ``limits.peers_wanted`` connections. ``first`` are the peers that the user named."""

    def __init__(self, self_peer: PeerId, limits: Limits, first: Sequence[tuple[PeerId, str]] = ()) -> None:
        self._self_peer, self._limits, self._first = self_peer, limits, tuple(first)
        self._failures: BoundedMap[PeerId, int] = BoundedMap(limits.book_max)
        self._unanswered: Counter[PeerId] = Counter()
        self._wait_s = _WAIT_FIRST_S / 2
        self.reached: BoundedMap[PeerId, None] = BoundedMap(4 * limits.book_max)
        """Peers that this node dialled itself: these exist, while others may be made up."""

    def wait_s(self, connected: int) -> float:
        """Until the next round: soon at first and while there are few peers, to be on the meshes soon."""
        interval_s = self._limits.peers_interval_s
        if connected >= self._limits.peers_wanted:
            return interval_s
        # Doubled from what it was, not by the count of rounds: who was long alone looks again soon after the
        # first peer came.
        self._wait_s = min(2 * self._wait_s, interval_s if connected else _ALONE_WAIT_MAX_S)
        return self._wait_s

    def to_dial(
        self,
        connected: Collection[PeerId],
        *,
        saved: Iterable[tuple[PeerId, tuple[str, ...]]],
        adverts: Iterable[Advert],
        dialable: Callable[[Iterable[str]], tuple[str, ...]],
    ) -> list[DialCandidate]:
        """Whom to dial now: those the user named, those an earlier start saved, then hosts of live adverts.

        ``dialable`` gives those of a stranger's addresses that a stranger's word is enough for.
        """
        wanted = self._limits.peers_wanted - len(connected)
        if wanted <= 0:
            return []
        found = {peer: DialCandidate(peer, told=(address,)) for peer, address in self._first}
        for peer, addresses in saved:
            found.setdefault(peer, DialCandidate(peer, told=addresses))
        known = {self._self_peer, *connected, *found}
        news = (advert for advert in adverts if advert.peer not in known)
        # Those who failed go last: a book of dead ends must not hide the host behind them.
        count = 4 * self._limits.peers_wanted
        for advert in heapq.nsmallest(count, news, key=lambda advert: self._failures.get(advert.peer) or 0):
            if heard := dialable(each.multiaddr for each in advert.addresses):
                found[advert.peer] = DialCandidate(advert.peer, heard=heard)
            else:
                self.failed(advert.peer)
        others = [each for each in found.values() if each.peer not in {self._self_peer, *connected}]
        return others[: 2 * wanted]

    def dialled(self, peer: PeerId) -> None:
        """Note that a peer was reached."""
        self._failures.pop(peer)
        self.reached.put(peer, None)

    def failed(self, peer: PeerId) -> None:
        """Note that a peer could not be reached."""
        self._failures.put(peer, (self._failures.get(peer) or 0) + 1)

    def to_ask(self, connected: Collection[PeerId]) -> list[PeerId]:
        """Whom to ask for adverts now, all at once.

        They are few: those who never answer must not keep us from dialling others.
        """
        self._unanswered = Counter({peer: self._unanswered[peer] for peer in connected})
        waiting = [peer for peer in connected if self._unanswered[peer] < UNANSWERED_MAX]
        first = sorted(waiting, key=lambda peer: (self._unanswered[peer], peer not in self.reached))
        return first[: 2 * self._limits.peers_wanted]

    def asked(self, peer: PeerId) -> None:
        """Note that a peer is asked for adverts."""
        self._unanswered[peer] += 1

    def answered(self, peer: PeerId) -> None:
        """Note that a peer answered. It is not asked again: gossip brings what is new."""
        self._unanswered[peer] = UNANSWERED_MAX
