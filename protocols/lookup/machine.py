"""One search for hosts of a model, as a machine: it decides whom to dial, and when to give up.

Dials are capped in all and at once, and a source gets at most half of them while others are still
to speak: neither a full provider record nor a lying one can spend the whole search. It knows
nothing of ranking: a found host is handed up at once, and the role decides what it wants.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import assert_never

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


class Search:
    """A search from hints to verified hosts. Feed it ``Start`` by calling :meth:`start`."""

    def __init__(
        self,
        model: ModelId,
        sources: frozenset[Source],
        *,
        self_peer: PeerId,
        dials_max: int = 12,
        dials_at_once: int = 4,
        deadline_s: float = 10.0,
        usable: Callable[[str, bool], bool] = lambda _address, _local: True,
    ) -> None:
        self._model, self._waiting_for = model, set(sources)
        self._dials_max, self._dials_at_once, self._deadline_s = dials_max, dials_at_once, deadline_s
        self._usable = usable
        self._queue: deque[Contact] = deque()
        self._known: set[PeerId] = {self_peer}
        self._per_source: Counter[Source] = Counter()
        self._dialling: set[PeerId] = set()
        self._dialled = 0
        self._failures: dict[PeerId, str] = {}
        self._over = False

    def start(self, now: float) -> Sequence[Effect]:
        """Begin: sets the deadline (and ends at once when there is no source)."""
        return [SetTimer("deadline", now + self._deadline_s), *self._advance()]

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Commands are ``LookupCommand``; the timer is ``deadline``."""
        del now
        if self._over:
            return []
        match event:
            case Command(value=value):
                return self._command(value)
            case TimerFired():
                for peer in self._dialling:
                    self._failures[peer] = "no answer before the deadline"
                return self._finish()
            case _:
                return []

    def _command(self, command: LookupCommand) -> Sequence[Effect]:
        effects: list[Effect] = []
        match command:
            case Hint():
                self._take(command)
            case SourceDone(source=source):
                self._waiting_for.discard(source)
            case Contacted(peer=peer, advert=advert, failure=failure):
                self._dialling.discard(peer)
                if advert is None:
                    self._failures[peer] = failure or "no advert"
                elif advert.peer != peer:
                    self._failures[peer] = "answered with another peer's advert"
                elif advert.offer(self._model) is None:
                    self._failures[peer] = "does not serve the model (a stale hint)"
                elif advert.draining:
                    self._failures[peer] = "draining"
                else:
                    effects.append(Emit(Found(advert)))
            case _:
                assert_never(command)
        return [*effects, *self._advance()]

    def _take(self, hint: Hint) -> None:
        if hint.peer in self._known:
            return
        alone = not self._waiting_for - {hint.source}
        if not alone and self._per_source[hint.source] >= max(1, self._dials_max // 2):
            return
        addresses = tuple(each for each in hint.addresses if self._usable(each, hint.local))
        if hint.addresses and not addresses:
            self._failures[hint.peer] = "only private addresses, and it is not on this network"
            return
        self._known.add(hint.peer)
        self._per_source[hint.source] += 1
        self._queue.append(Contact(hint.peer, addresses))

    def _advance(self) -> Sequence[Effect]:
        effects: list[Effect] = []
        while self._queue and len(self._dialling) < self._dials_at_once and self._dialled < self._dials_max:
            contact = self._queue.popleft()
            self._dialling.add(contact.peer)
            self._dialled += 1
            effects.append(Emit(contact))
        spent = self._dialled >= self._dials_max or not (self._queue or self._waiting_for)
        if spent and not self._dialling:
            effects.extend(self._finish())
        return effects

    def _finish(self) -> Sequence[Effect]:
        self._over = True
        return [CancelTimer("deadline"), Emit(Exhausted(dict(self._failures)))]
