"""One search for hosts of a model, as a machine: it decides whom to dial, and when to give up.

Dials are capped in all and at once. While other sources are still to speak, a source gets a quarter of the
dials and the rest of its hints wait their turn: neither a full provider record nor a lying one can spend the
whole search, and one that lies about a peer's addresses can't hide the addresses another source knows. Those
are dialled first whom most origins name: whoever makes up hosts has few origins to name them from. It knows
nothing of ranking: a found host is handed up at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, assert_never

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.events import CancelTimer, Command, Effect, Emit, Event, SetTimer, TimerFired
from p2pnode.protocols.lookup.messages import (
    Contact,
    Contacted,
    Exhausted,
    Found,
    Hint,
    LookupCommand,
    Source,
    SourceDone,
)

ADDRESSES_MAX: Final = 8
"""Addresses of one hint that are looked at."""
FAILURES_MAX: Final = 64
SLOW_S: Final = 0.5
"""A dial that takes longer holds up no other: whoever names dead addresses must not use up the time."""


class Search:
    """A search from hints to verified hosts. Begin it with :meth:`start`."""

    def __init__(
        self,
        model: ModelId,
        sources: frozenset[Source],
        *,
        self_peer: PeerId,
        dials_max: int = 16,
        dials_at_once: int = 4,
        deadline_s: float = 10.0,
        usable: Callable[[str, bool], bool] = lambda _address, _local: True,
    ) -> None:
        self._model, self._self_peer, self._waiting_for = model, self_peer, set(sources)
        self._dials_max, self._dials_at_once, self._deadline_s = dials_max, dials_at_once, deadline_s
        self._usable = usable
        self._queue: list[Hint] = []
        self._queued: Counter[Source] = Counter()
        """How many hints of each source are in the queue."""
        self._held: dict[Source, dict[str, int]] = {}
        """Of these, how many each teller stands behind."""
        self._tellers: dict[PeerId, set[str]] = {}
        """Of the peers in the queue."""
        self._tried: dict[PeerId, set[str]] = {}
        self._answered: set[PeerId] = set()
        self._per_source: Counter[Source] = Counter()
        self._dialling: dict[PeerId, float] = {}
        """By peer, when its dial began."""
        self._slow_at: float | None = None
        """When the timer ``slow`` fires, where it is set."""
        self._dialled = 0
        self._failures: dict[PeerId, str] = {}
        self._over = False

    def start(self, now: float) -> Sequence[Effect]:
        """Begin: sets the deadline (and ends at once when there is no source)."""
        return [SetTimer("deadline", now + self._deadline_s), *self._advance(now)]

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Commands are ``LookupCommand``; the timers are ``deadline`` and ``slow``."""
        if self._over:
            return []
        match event:
            case Command(value=value):
                return self._command(value, now)
            case TimerFired(key=key) if key == "slow":
                self._slow_at = None
                return self._advance(now)
            case TimerFired():
                for peer in sorted(self._dialling):
                    self._fail(peer, "no answer in time: not running, or behind a router or firewall")
                return self._finish()
            case _:
                return []

    def _command(self, command: LookupCommand, now: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        match command:
            case Hint():
                self._take(command)
            case SourceDone(source=source):
                self._waiting_for.discard(source)
            case Contacted(peer=peer):
                if peer in self._dialling:
                    effects.extend(self._contacted(command))
            case _:
                assert_never(command)
        return [*effects, *self._advance(now)]

    def _contacted(self, outcome: Contacted) -> Sequence[Effect]:
        peer, advert = outcome.peer, outcome.advert
        self._dialling.pop(peer, None)
        if advert is None:
            self._fail(peer, outcome.failure or "no advert")
            return []
        self._answered.add(peer)
        if advert.peer != peer:
            self._fail(peer, "answered with another peer's advert")
        elif advert.offer(self._model) is None:
            serves = any(offer.n_ctx for offer in advert.offers)
            others = "serves other models, and not this one" if serves else "serves no model now"
            self._fail(peer, others)
        elif advert.draining:
            self._fail(peer, "draining")
        else:
            self._failures.pop(peer, None)
            return [Emit(Found(advert))]
        return []

    def _take(self, hint: Hint) -> None:
        """Queue a hint. No source can fill the queue with more than could ever be dialled."""
        if hint.peer == self._self_peer or hint.peer in self._answered:
            return
        offered = hint.addresses[:ADDRESSES_MAX]
        addresses = tuple(each for each in offered if self._usable(each, hint.local))
        if offered and not addresses:
            # What became of a dial, here or still to come, says more of the peer.
            if hint.peer not in self._failures and hint.peer not in self._tried:
                self._fail(
                    hint.peer,
                    "only private addresses, and not of this network: behind a router that lets nobody in",
                )
            return
        if self._queued[hint.source] < self._dials_max or self._displace(hint):
            kept = replace(hint, addresses=addresses) if addresses != hint.addresses else hint
            self._queue.append(kept)
            self._note(kept, 1)
            self._tellers.setdefault(hint.peer, set())
        if hint.peer in self._tellers:
            self._tellers[hint.peer].update(hint.tellers)

    def _displace(self, newcomer: Hint) -> bool:
        """Whether one of the same source went for it: the last of a teller that has two more than its own."""
        held = self._held.get(newcomer.source, {})
        own = min((held.get(teller, 0) for teller in newcomer.tellers), default=0)
        if max(held.values(), default=0) < own + 2:
            return False  # found without a look at the queue: a stranger may tell of any number of peers
        for queued in reversed(self._queue):
            if queued.source != newcomer.source or not queued.tellers:
                continue
            if min(held[teller] for teller in queued.tellers) >= own + 2:
                self._take_out(queued)
                return True
        return False

    def _take_out(self, hint: Hint) -> None:
        """This object is in the queue, and goes."""
        for place, queued in enumerate(self._queue):  # to compare what hints say takes longer than all else
            if queued is hint:
                del self._queue[place]
                break
        self._note(hint, -1)

    def _note(self, hint: Hint, by: int) -> None:
        """The queue has one hint more, or one less (-1)."""
        self._queued[hint.source] += by
        held = self._held.setdefault(hint.source, {})
        for teller in hint.tellers:
            held[teller] = held.get(teller, 0) + by
            if not held[teller]:
                del held[teller]

    def _advance(self, now: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        while self._dialled < self._dials_max and self._quick(now) < self._dials_at_once:
            hint = self._next()
            if hint is None:
                break
            if hint.addresses or not hint.local:  # else it is asked over a connection that is open: no dial
                self._per_source[hint.source] += 1
                self._dialled += 1
            self._dialling[hint.peer] = now
            self._tried.setdefault(hint.peer, set()).update(hint.addresses)
            effects.append(Emit(Contact(hint.peer, hint.addresses, hint.local)))
        spent = self._dialled >= self._dials_max or not (self._queue or self._waiting_for)
        if spent and not self._dialling:
            return [*effects, *self._finish()]
        if self._queue:
            slow_at = [began + SLOW_S for began in self._dialling.values() if began + SLOW_S > now]
            if slow_at and (at := min(slow_at)) != self._slow_at:  # most hints don't change it
                self._slow_at = at
                effects.append(SetTimer("slow", at))
        return effects

    def _quick(self, now: float) -> int:
        """How many dials are open and not yet slow."""
        return len([began for began in self._dialling.values() if began + SLOW_S > now])

    def _next(self) -> Hint | None:
        """The hint to dial now: local ones first, then those that most origins name, then in their order.

        Those that say nothing new are dropped.
        """
        for hint in [each for each in self._queue if not self._news(each)]:
            self._take_out(hint)
        queued = {hint.peer for hint in self._queue}
        self._tellers = {peer: tellers for peer, tellers in self._tellers.items() if peer in queued}
        open_now = [
            hint
            for hint in self._queue
            if hint.peer not in self._dialling and not self._over_share(hint.source)
        ]
        if not open_now:
            return None
        best = min(open_now, key=lambda hint: (not hint.local, -len(self._tellers[hint.peer])))
        self._take_out(best)
        return best

    def _news(self, hint: Hint) -> bool:
        tried = self._tried.get(hint.peer)
        if tried is None:
            return True
        return hint.peer not in self._answered and not tried.issuperset(hint.addresses)

    def _over_share(self, source: Source) -> bool:
        others = self._waiting_for - {source}
        return bool(others) and self._per_source[source] >= max(1, self._dials_max // 4)

    def _fail(self, peer: PeerId, why: str) -> None:
        if peer in self._failures or len(self._failures) < FAILURES_MAX:
            self._failures[peer] = why

    def _finish(self) -> Sequence[Effect]:
        self._over = True
        return [CancelTimer("deadline"), CancelTimer("slow"), Emit(Exhausted(dict(self._failures)))]
