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
from itertools import islice
from typing import Final, Literal, TypeAlias

from p2pnode.bounded import BoundedMap
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.protocols.adverts.messages import Advert

UNANSWERED_MAX: Final = 3
"""Questions to one peer that stay without an answer."""
ADVERTS_DRAWN: Final = 256
"""Of the book's adverts, in a round: those whose hosts may be dialled."""
ALONE_TOLD_S: Final = 30.0
"""A node that nobody answered for so long says why."""
_WAIT_FIRST_S: Final = 1.0
_ALONE_WAIT_MAX_S: Final = 60.0
_REASONS_SHOWN: Final = 2
_REASONS: Final = {
    "refused": "refused",
    "no answer": "no answer",
    "is known": "no address to dial",
    "shutting down": "this node is ending",
    "limit": "at a limit of connections",
}
"""What a reason that names a peer is counted as, by words in it."""
Kind: TypeAlias = Literal["last session", "saved", "named", "advert", "local network"]
"""How a node knows of a peer that it dials."""
_KIND_WORDS: Final[dict[Kind, str]] = {
    "last session": "of the last session",
    "saved": "saved earlier",
    "named": "of your --bootstrap, configuration or invites",
    "advert": "that adverts name",
    "local network": "on the local network",
}


@dataclass(frozen=True, slots=True)
class DialCandidate:
    """A peer to dial: where we know it to be, and where strangers say that it is."""

    peer: PeerId
    kind: Kind
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
        self._reasons: dict[Kind, dict[PeerId, str]] = {}
        """Why those that were dialled last did not answer."""

    def wait_s(self, connected: int) -> float:
        """Until the next round: soon at first and while there are few peers, to be on the meshes soon."""
        interval_s = self._limits.peers_interval_s
        if connected >= self._limits.peers_wanted:
            return interval_s
        self._wait_s = min(2 * self._wait_s, interval_s if connected else _ALONE_WAIT_MAX_S)
        return self._wait_s

    def begin_anew(self) -> None:
        """Begin anew with short waits: the network has changed, or the first peer has come."""
        self._wait_s = _WAIT_FIRST_S / 2

    def to_dial(
        self,
        connected: Collection[PeerId],
        *,
        saved: Iterable[tuple[PeerId, tuple[str, ...], Kind]],
        adverts: Iterable[Advert],
        dialable: Callable[[Iterable[str]], tuple[str, ...]],
    ) -> list[DialCandidate]:
        """Whom to dial now: those saved, in their order, those the user named, then hosts of live adverts.

        The user's are always among them. ``dialable`` gives those of a stranger's addresses that a stranger's
        word is enough for.
        """
        wanted = self._wanted(connected)
        if wanted <= 0:
            return []
        named = {peer: DialCandidate(peer, "named", told=(address,)) for peer, address in self._first}
        found: dict[PeerId, DialCandidate] = {}
        for peer, addresses, kind in saved:
            if peer not in named and peer != self._self_peer and peer not in connected:
                found.setdefault(peer, DialCandidate(peer, kind, told=addresses))
        found = dict(islice(found.items(), max(0, 2 * wanted - len(named)))) | named
        known = {self._self_peer, *connected, *found}
        news = (advert for advert in adverts if advert.peer not in known)
        # Those who failed go last: a book of dead ends must not hide the host behind them.
        count = 4 * self._limits.peers_wanted
        for advert in heapq.nsmallest(count, news, key=lambda advert: self._failures.get(advert.peer) or 0):
            if heard := dialable(each.multiaddr for each in advert.addresses):
                found[advert.peer] = DialCandidate(advert.peer, "advert", heard=heard)
            else:
                self.failed(advert.peer)
        others = [each for each in found.values() if each.peer not in {self._self_peer, *connected}]
        return others[: max(2 * wanted, len(self._first))]

    def _wanted(self, connected: Collection[PeerId]) -> int:
        """How many more peers are wanted.

        Half of them this node has to have dialled itself: a host has clients, and an attacker comes as often
        as it likes. Whoever counts these dials nobody any more, and knows of the network what they tell.
        """
        own = sum(peer in self.reached for peer in connected)
        wanted = self._limits.peers_wanted
        return max(wanted - len(connected), wanted // 2 - own)

    def dialled(self, peer: PeerId) -> None:
        """Note that a peer was reached."""
        self._failures.pop(peer)
        self.reached.put(peer, None)
        self._reasons.clear()

    def failed(self, peer: PeerId, kind: Kind = "advert", reason: str = "") -> None:
        """Note that a peer could not be reached, and why."""
        self._failures.put(peer, (self._failures.get(peer) or 0) + 1)
        if reason and len(self._reasons.setdefault(kind, {})) < self._limits.peers_saved_max:
            self._reasons[kind][peer] = next(
                (short for words, short in _REASONS.items() if words in reason), "not a node like this"
            )

    @property
    def has_tried(self) -> bool:
        """Whether somebody was dialled in vain since a peer answered."""
        return any(self._reasons.values())

    def alone_words(self) -> str:
        """Why nobody answers, by how this node knows of those it dialled; and what to do."""
        parts = []
        for kind, words in _KIND_WORDS.items():
            reasons = Counter(self._reasons.get(kind, {}).values())
            if reasons:
                most = "; ".join(f"{count} x {why}" for why, count in reasons.most_common(_REASONS_SHOWN))
                parts.append(f"{reasons.total()} {words} ({most})")
        tried = ", ".join(parts) or "nobody is known to dial"
        return (
            f"no peer answers: {tried}. If this machine is online, ask a friend for an invite "
            "(`p2pnode invite` prints one) and start with --bootstrap INVITE"
        )

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
