"""Hosts for one question, best first, while the search for more still runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import trio

from p2pnode.client.ranking import Candidate, Filters, Measured, Payable, Ranking, is_priced, rank, unpaid
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import Limits
from p2pnode.node.finder import FoundHost


class HostSearch:
    """Collects what a lookup finds; :meth:`next` gives the best host not tried yet."""

    def __init__(
        self,
        model: ModelId,
        filters: Filters,
        *,
        measured: Mapping[PeerId, Measured],
        limits: Limits,
        wall: Callable[[], float],
        look: Callable[[HostSearch], None],
        payable: Payable = unpaid,
        has_session: Callable[[PeerId], bool] = lambda _peer: False,
    ) -> None:
        self._has_session = has_session
        self._standby: PeerId | None = None
        self._model, self._filters = model, filters
        self._measured, self._limits, self._wall = measured, limits, wall
        self._payable = payable
        self._found: dict[PeerId, FoundHost] = {}
        self._changed = trio.Event()
        self._first_at: float | None = None
        self._exhausted = False
        self._tried: set[PeerId] = set()
        self._look: Callable[[HostSearch], None] | None = look
        self._started = False
        self._kept: PeerId | None = None
        self.failures: dict[PeerId, str] = {}
        """Why other peers were not found, or failed when they were tried."""

    def keep(self, host: FoundHost) -> None:
        """Try this host first, without a lookup: a session with it is open."""
        self._kept = host.advert.peer
        self._found[host.advert.peer] = host

    def start(self) -> None:
        """Begin the lookup, once."""
        if self._look is not None and not self._started:
            self._started = True
            self._look(self)

    def look_again(self) -> None:
        """Begin another lookup once the last one is over: who was not there then may be now."""
        if self._look is not None and self._exhausted:
            self._exhausted = False
            self._look(self)

    def found(self, host: FoundHost) -> None:
        """A lookup found a host."""
        self._found[host.advert.peer] = host
        if self._first_at is None:
            self._first_at = trio.current_time()
        self._wake()

    def exhausted(self, failures: Mapping[PeerId, str]) -> None:
        """The lookup is over."""
        self.failures.update(failures)
        self._exhausted = True
        self._wake()

    def only(self) -> None:
        """Nothing but what was found already: no lookup."""
        self._look = None
        self.exhausted({})

    def failed(self, peer: PeerId, reason: str) -> None:
        """A host was tried in vain."""
        self.failures[peer] = reason

    def pass_over(self, peer: PeerId, reason: str) -> None:
        """A host is not there after all: don't try it."""
        self._tried.add(peer)
        self.failures[peer] = reason

    def need_context(self, tokens: int) -> None:
        """Leave out hosts whose context is smaller: they would refuse, perhaps after taking a fee."""
        self._filters = replace(self._filters, n_ctx_min=max(tokens, self._filters.n_ctx_min))

    def stand_by(self, peer: PeerId | None) -> None:
        """This one is ready: it goes before its equals."""
        self._standby = peer

    def best(self, *, ready_first: bool = True) -> Candidate | None:
        """The next one to try, as far as is known now.

        By rank, but among those that ask for money one with an open session goes first: it takes no second
        fee. Among the others one that stands by does (``ready_first``).
        """

        def order(candidate: Candidate) -> tuple[bool, bool, bool]:
            peer, priced = candidate.advert.peer, is_priced(candidate.offer)
            ready = ready_first and peer == self._standby
            return priced, not (priced and self._has_session(peer)), not ready

        untried = (each for each in self.ranking().chosen if each.advert.peer not in self._tried)
        return min(untried, key=order, default=None)

    def fit(self, peer: PeerId) -> bool:
        """Is this one still to be tried, and allowed?"""
        return peer not in self._tried and any(c.advert.peer == peer for c in self.ranking().chosen)

    async def wait_changed(self) -> None:
        """Until something is found, or a lookup is over."""
        await self._changed.wait()

    @property
    def hopeful(self) -> bool:
        """May :meth:`next` still give a host?"""
        untried = any(candidate.advert.peer not in self._tried for candidate in self.ranking().chosen)
        return untried or not self._exhausted

    async def wait_over(self) -> None:
        """Until the lookup is exhausted."""
        while not self._exhausted:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def ranking(self) -> Ranking:
        """Everything found so far."""
        adverts = [host.advert for host in self._found.values()]
        return rank(adverts, self._model, self._measured, self._filters, self._wall(), payable=self._payable)

    async def next(self) -> Candidate | None:
        """The best host not tried yet; None when there is none and none will come.

        After the first find it waits a moment for others, so that the nearest answer doesn't always win.
        """
        kept, self._kept = self._kept, None
        for candidate in self.ranking().chosen if kept is not None else ():
            if candidate.advert.peer == kept:
                self._tried.add(kept)
                return candidate
        self.start()
        while True:
            if self._first_at is not None and not self._exhausted:
                with trio.move_on_at(self._first_at + self._limits.found_grace_s):
                    while not self._exhausted:
                        await self._changed.wait()
            best = self.best()
            if best is not None:
                self._tried.add(best.advert.peer)
                return best
            if self._exhausted:
                return None
            await self._changed.wait()
