"""The book of adverts: what this node believes about hosts, bounded per peer and in all.

It holds one live advert of each peer. Cheap checks come before the signature, and a bad signature is charged
to whoever brought it, never to the peer it names: a forger can't silence its victim. An eighth of the book is
kept for privileged peers (staked, or dialled by us), so that Sybils can't crowd them out; they lose no place,
up to half of the book. Who takes our dials without a stake can't fill what staked hosts are kept: these lose
no place up to an eighth more.

The other places are shared out by origin. What can't be forged of an advert is where its peer is connected
from: each such origin has a share. Adverts of all others, whose addresses may be made up, have one share
together. Nobody is kept out because others came earlier: under pressure, chance decides who goes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, Literal, TypeAlias

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.errors import ProtocolError
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.messages import Advert, SignedAdvert
from p2pnode.protocols.adverts.signatures import CLOCK_SKEW_S, AdvertChecks, is_live
from p2pnode.shares import Draw, FairShares, Origin, one_of_each, origin_of

MIN_INTERVAL_S: Final = 1.0
"""A peer's adverts closer together than this are ignored."""
TTL_MAX_S: Final = 3 * 3600 + 300
STRANGERS_PER_S: Final = 16.0
STRANGERS_BURST: Final = 256.0
SOURCE_SHARE: Final = 0.5
"""One source gets at most this part of the strangers' rate: a flooder leaves room for others."""
FORGERIES_MAX: Final = 16
"""Bad signatures one source may bring in a minute before its adverts are dropped unread."""
FORGERY_WINDOW_S: Final = 60.0
SOURCES_MAX: Final = 1024
SEEN_PER_S: Final = 4.0
SEEN_BURST: Final = 64.0
"""Of the connected peers of one origin, beside what strangers may bring."""
RENEWALS_PER_S: Final = 64.0
RENEWALS_BURST: Final = 256.0
"""Of peers whose live advert is held, beside what strangers may bring: who floods under new names must not
keep known hosts from going on. The binding of a known host isn't checked again, so it costs less, too."""
RENEWAL_AFTER_S: Final = 10.0
"""Since the last advert of the same peer that gossip brought; sooner it counts as a stranger's."""
GROUPED_S: Final = 1.0
_GROUPED_MAX: Final = 16
_ORIGINS_REMEMBERED: Final = 4096
UNSEEN: Final = "unseen"
"""The wide origin of all adverts of peers that are not connected."""
Verdict: TypeAlias = Literal[
    "accepted",
    "malformed",
    "expired",
    "future",
    "stale",
    "too_often",
    "rate",
    "lapsed",
    "forged",
    "muted",
    "full",
]


class Entry:
    """A live advert, as it came and as it reads. Nobody changes one once it is made."""

    # No record: a book makes one for each advert that it takes, and asks each of them whether it is live.
    __slots__ = (
        "_live_until", "advert", "gossiped_at", "kept_until", "late_s", "models", "origin", "signed",
    )  # fmt: skip

    def __init__(
        self,
        signed: SignedAdvert,
        advert: Advert,
        *,
        gossiped_at: float,
        late_s: float,
        origin: Origin,
        kept_until: float,
    ) -> None:
        self.signed, self.advert = signed, advert
        self.gossiped_at = gossiped_at
        """When gossip last brought one of this peer; what we asked for ourselves does not count."""
        self.late_s = late_s
        """By how much the host's clock may be behind ours: the least age at which one of its adverts came."""
        self.origin = origin
        """Where its peer is connected from; of others ``UNSEEN``, and what their first address says."""
        self.kept_until = kept_until
        """After ``expires_at`` where an earlier advert would have lived longer: it must not be replayed."""
        self.models = frozenset([offer.model for offer in advert.offers if offer.n_ctx])
        """Those that it offers."""
        self._live_until = -math.inf if advert.withdrawn else advert.expires_at + late_s

    def says(self, signed: SignedAdvert, late_s: float, origin: Origin, kept_until: float) -> bool:
        """Whether one of these would be the same: most of what a sample brings is held already."""
        return (
            self.late_s == late_s
            and self.kept_until == kept_until
            and _is_same(self.origin, origin)
            and self.holds(signed)
        )

    def holds(self, signed: SignedAdvert) -> bool:
        """Whether it is this very advert."""
        mine = self.signed
        return mine is signed or (mine.signature == signed.signature and mine.body == signed.body)

    def is_live(self, now: float) -> bool:
        """Whether it says that the host is there now, by the host's own clock."""
        return now < self._live_until


_Groups: TypeAlias = tuple[list[list[Entry]], list[list[Entry]]]


class Book:
    """Keeps live adverts. Times are wall-clock seconds, given with each call."""

    def __init__(
        self,
        *,
        size_max: int = 4096,
        privileged: Callable[[PeerId], bool] = lambda _peer: False,
        staked: Callable[[PeerId], bool] = lambda _peer: False,
        believed: Callable[[Advert, Advert | None], None] = lambda _advert, _before: None,
        origin_of: Callable[[PeerId], Origin | None] = lambda _peer: None,
        draw: Draw = lambda _count: 0,
        checks: AdvertChecks | None = None,
    ) -> None:
        """``origin_of`` says where a peer is or was connected from, as we saw it; None for one we never
        met. A staked peer is privileged, too. ``believed`` is told of each advert that was accepted, and of
        the live one that was held of the same peer before."""
        self.counts: Counter[str] = Counter()
        self._entries: dict[PeerId, Entry] = {}
        self._first_ends_at = math.inf
        """Nothing expires before. A full book is asked for each newcomer, and to walk over it takes long."""
        self._size_max = size_max
        self._reserve = size_max // 8
        self._dialled, self._staked, self._believed = privileged, staked, believed
        self.checks = checks or AdvertChecks()
        self._sources = Sources()
        self._origin_of, self._draw = origin_of, draw
        self._shares: FairShares[PeerId] = FairShares(size_max - self._reserve)
        """Of those that were not privileged when they came."""
        self._models: Counter[ModelId] = Counter()
        """How many entries offer each model."""
        self._changes = 0
        self._groups: BoundedMap[ModelId | None, tuple[int, float, _Groups]] = BoundedMap(_GROUPED_MAX)

    def __len__(self) -> int:
        return len(self._entries)

    def offer_gossip(self, data: bytes, source: PeerId, now: float) -> tuple[Verdict, Advert | None]:
        """Judge an advert that ``source`` brought by gossip."""
        try:
            signed = self.checks.decode(data)
        except ProtocolError:
            self.counts["malformed"] += 1
            return "malformed", None
        return self.offer(signed, source, now)

    def offer(
        self, signed: SignedAdvert, source: PeerId, now: float, *, asked: bool = False
    ) -> tuple[Verdict, Advert | None]:
        """Judge an advert; ``asked`` ones (the answer to our own question) skip the stranger rate."""
        verdict, advert, origin = self._judge(signed, source, now, asked=asked)
        self.counts[verdict] += 1
        if advert is not None and origin is not None:
            held = self._entries.get(advert.peer)
            until = max(advert.expires_at + CLOCK_SKEW_S, held.kept_until if held is not None else 0)
            unasked = held.gossiped_at if held is not None else -math.inf
            late_s = min(float(CLOCK_SKEW_S), max(0.0, now - advert.issued_at))
            before = held.advert if held is not None and held.is_live(now) else None
            if held is not None and (advert is before or not advert.withdrawn):  # what is live isn't
                late_s = min(late_s, held.late_s)
            if held is None or not (asked and held.says(signed, late_s, origin, until)):
                held = Entry(
                    signed,
                    advert,
                    gossiped_at=unasked if asked else now,
                    late_s=late_s,
                    origin=origin,
                    kept_until=until,
                )
            self._put(advert.peer, held)
            self._believed(advert, before)
        return verdict, advert

    def _judge(
        self, signed: SignedAdvert, source: PeerId, now: float, *, asked: bool
    ) -> tuple[Verdict, Advert | None, Origin | None]:
        """The verdict; of an advert that is accepted, its origin, too."""
        if self._sources.muted(source, now):
            return "muted", None, None
        try:
            advert = self.checks.parse(signed)
        except ProtocolError:
            return "malformed", None, None
        if advert.issued_at > now + CLOCK_SKEW_S or advert.expires_at > now + TTL_MAX_S:
            return "future", None, None
        held = self._entries.get(advert.peer)
        is_held = held is not None and held.holds(signed)
        if asked and held is not None and is_held and held.is_live(now):
            # As most of what a sample brings. It was verified when it came.
            seen = self._origin_of(advert.peer)
            if seen is None and held.origin.wide == UNSEEN:
                seen = held.origin  # which says what its address does
            return "accepted", advert, self._origin(advert, seen)
        if (untimely := _untimely(advert, held, now, asked=asked, is_held=is_held)) is not None:
            return untimely, None if untimely == "expired" else advert, None
        seen = self._origin_of(advert.peer)
        if is_held:
            return "accepted", advert, self._origin(advert, seen)  # asked again; it was verified when it came
        privileged = self._privileged(advert.peer)
        renews = held is not None and held.is_live(now) and now - held.gossiped_at >= RENEWAL_AFTER_S
        if not (privileged or asked or self._sources.admit(source, seen, now, renews=renews)):
            return "rate", None, None
        if not is_live(advert.binding, now):  # by our clock: its bearer may have another
            return "lapsed", None, None
        # A binding lives for weeks: it is checked once, and not again with each advert.
        known = held is not None and _is_same(held.advert.binding, advert.binding)
        if not (
            self.checks.verify(signed, advert)
            and (known or self.checks.is_bound(advert.peer, advert.binding))
        ):
            self._sources.charge(source, now)
            return "forged", None, None
        origin = self._origin(advert, seen)
        if not self._take_place(advert.peer, origin, now, privileged=privileged):
            return "full", None, None
        return "accepted", advert, origin

    def _origin(self, advert: Advert, seen: Origin | None) -> Origin:
        if seen is not None:
            return seen
        return _said_origin(advert.addresses[0].multiaddr if advert.addresses else "", advert.peer)

    def _take_place(self, peer: PeerId, origin: Origin, now: float, *, privileged: bool) -> bool:
        """Whether there is a place, which may be another's until now. Who has one keeps it."""
        held = self._entries.get(peer)
        if held is not None and (peer not in self._shares or held.origin == origin):
            return True
        if held is None and len(self._entries) >= self._size_max - (0 if privileged else self._reserve):
            self.expire(now)
        kept = len(self._entries) - len(self._shares)
        self._shares.leave(peer)  # it was seen elsewhere since
        # Whoever takes our dials becomes privileged in time: half of the book is for others all the same,
        # less an eighth that only staked hosts can fill.
        most = max(1, self._size_max // 2) + (self._reserve if self._staked(peer) else 0)
        if privileged and kept < most:
            if held is None and len(self._entries) >= self._size_max:
                return self._replace(self._shares.holders_within())
            return True
        self._shares.places = self._size_max - max(self._reserve, kept)
        entered, victim = self._shares.enter(peer, origin, self._any)
        if not entered:
            # Nobody has much more than its share. That must not keep out who comes late.
            own = self._shares.holders(origin) or self._shares.holders_within(origin.wide)
            if not self._replace(own or self._shares.holders_within()):
                return False
            self._shares.enter(peer, origin, self._any)
        if victim is not None:
            self._put(victim, None)
        return True

    def _replace(self, holders: Sequence[PeerId]) -> bool:
        """Give up the place of one of these, at random; False where there are none."""
        if not holders:
            return False
        self.forget(self._any(holders))
        return True

    def _any(self, holders: Collection[PeerId]) -> PeerId:
        return list(holders)[self._draw(len(holders))]

    def sample(self, count: int, now: float, model: ModelId | None = None, *, caps: int = 0) -> list[Entry]:
        """Up to ``count`` live adverts, drawn: by turns of a peer that was seen and of one that wasn't, and
        of each kind one of every origin before a second of any. ``caps`` of a model's offers leaves out those
        that lack any of them."""
        grouped = self._grouped(now, model)
        if caps and model is not None:
            able = [
                [[entry for entry in group if entry.advert.serves(model, caps)] for group in groups]
                for groups in grouped
            ]
            grouped = ([group for group in able[0] if group], [group for group in able[1] if group])
        kinds = [one_of_each(groups, count, self._draw) for groups in grouped]
        turns = (kind[index] for index in range(count) for kind in kinds if index < len(kind))
        return list(islice(turns, count))

    def _grouped(self, now: float, model: ModelId | None) -> _Groups:
        """Live adverts by origin: of peers that were seen, and of others. Kept until the book changes, for at
        most a second: strangers ask for samples, and to walk over a full book takes long."""
        known = self._groups.get(model)
        if known is not None and known[0] == self._changes and 0 <= now - known[1] < GROUPED_S:
            return known[2]
        seen: dict[str, list[Entry]] = {}
        unseen: dict[str, list[Entry]] = {}
        for entry in self._entries.values() if model is None or model in self._models else ():
            if not entry.is_live(now) or (model is not None and model not in entry.models):
                continue
            origin = entry.origin
            group = (
                unseen.setdefault(origin.near, [])
                if origin.wide == UNSEEN
                else seen.setdefault(origin.wide, [])
            )
            group.append(entry)
        groups = (list(seen.values()), list(unseen.values()))
        self._groups.put(model, (self._changes, now, groups))
        return groups

    def expire(self, now: float) -> list[PeerId]:
        """Drop what has expired; returns whom."""
        if now < self._first_ends_at:
            return []
        gone = [peer for peer, entry in self._entries.items() if entry.kept_until <= now]
        for peer in gone:
            self.forget(peer)
        self._first_ends_at = min((entry.kept_until for entry in self._entries.values()), default=math.inf)
        return gone

    def forget(self, peer: PeerId) -> None:
        """Drop one peer's advert (it withdrew, or is banned)."""
        self._put(peer, None)
        self._shares.leave(peer)

    def _put(self, peer: PeerId, entry: Entry | None) -> None:
        """Hold this instead of what was held of the peer, or nothing."""
        before = self._entries.pop(peer, None) if entry is None else self._entries.get(peer)
        if entry is not None:
            self._entries[peer] = entry
            self._first_ends_at = min(self._first_ends_at, entry.kept_until)
        self._changes += 1
        if before is not None and entry is not None and before.models == entry.models:
            return
        if entry is not None:
            for model in entry.models:
                self._models[model] += 1
        if before is not None:
            for model in before.models:
                self._models[model] -= 1
                if not self._models[model]:
                    del self._models[model]

    def get(self, peer: PeerId, now: float) -> Entry | None:
        """A peer's live advert."""
        entry = self._entries.get(peer)
        return entry if entry is not None and entry.is_live(now) else None

    def live(self, now: float, model: ModelId | None = None) -> Iterator[Entry]:
        """Live adverts, of one model or of all, in the order they came."""
        if model is not None and model not in self._models:
            return
        for entry in self._entries.values():
            if entry.is_live(now) and (model is None or model in entry.models):
                yield entry

    def _privileged(self, peer: PeerId) -> bool:
        return self._dialled(peer) or self._staked(peer)

    def population(self, now: float, model: ModelId) -> int:
        """Hosts of a model that count for stretching: privileged ones only, so that Sybils don't."""
        return sum(1 for entry in self.live(now, model) if self._privileged(entry.advert.peer))


def _untimely(
    advert: Advert, held: Entry | None, now: float, *, asked: bool, is_held: bool
) -> Literal["expired", "stale", "too_often"] | None:
    """Why this advert comes at the wrong time, before anything is spent on its signature."""
    newer = held is None or _is_newer(advert, held.advert)
    if advert.withdrawn or advert.expires_at + CLOCK_SKEW_S <= now:
        # A host withdraws by an advert that is over when it is made: it still replaces a live one.
        withdraws = advert.withdrawn and held is not None and held.is_live(now) and newer and not asked
        return None if withdraws else "expired"
    if held is None:
        return None
    if not newer:
        return None if asked and is_held else "stale"
    too_soon = 0 <= now - held.gossiped_at < MIN_INTERVAL_S and not asked
    return "too_often" if too_soon else None


def _is_same(one: object, other: object) -> bool:
    return one is other or one == other


def _is_newer(one: Advert, other: Advert) -> bool:
    mine, its = one.binding.seq, other.binding.seq
    return one.seq > other.seq if mine == its else mine > its


# ---- how much a node listens


class _Source:
    __slots__ = ("bucket", "forgeries", "since")

    def __init__(self) -> None:
        self.bucket = TokenBucket(STRANGERS_PER_S * SOURCE_SHARE, STRANGERS_BURST * SOURCE_SHARE)
        self.forgeries = 0
        self.since = 0.0


class Sources:
    """What each source of adverts, and all strangers together, may still bring.

    Times are wall-clock seconds and may step back; nobody gains or loses by that. Of more than
    ``SOURCES_MAX`` sources the oldest are forgotten.
    """

    def __init__(self) -> None:
        self._all = TokenBucket(STRANGERS_PER_S, STRANGERS_BURST)
        self._renewals = TokenBucket(RENEWALS_PER_S, RENEWALS_BURST)
        self._sources: BoundedMap[PeerId, _Source] = BoundedMap(SOURCES_MAX)
        self._seen: BoundedMap[str, TokenBucket] = BoundedMap(SOURCES_MAX)

    def admit(self, source: PeerId, seen: Origin | None, now: float, *, renews: bool = False) -> bool:
        """Whether this source may bring one more advert of a stranger. ``seen``: where that peer is connected
        from; ``renews``: whether it has had a live advert for a while."""
        if renews and self._renewals.take(now):
            return True
        if seen is not None:
            of_origin = self._seen.use(seen.wide, lambda: TokenBucket(SEEN_PER_S, SEEN_BURST))
            if of_origin.take(now):
                return True
        return self._of(source).bucket.take(now) and self._all.take(now)

    def muted(self, source: PeerId, now: float) -> bool:
        """Whether it brought too many forgeries within the last minute."""
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


@lru_cache(_ORIGINS_REMEMBERED)
def _said_origin(address: str, peer: PeerId) -> Origin:
    """Where a peer says it is; asked for each advert, and mostly the same."""
    said = address.split("/")[2:3]
    return Origin(wide=UNSEEN, near=origin_of("".join(said) or None, peer).near)
