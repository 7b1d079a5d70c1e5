"""How a client finds hosts: its first peers, the network, or a host that the user named; and how hosts did.

One ``HostSearch`` serves one question: it gives the best host while its lookup still runs. Which host is best
is decided in ``ranking.py``. ``Searches`` begins the lookups, and notes in a ``HostMemory`` how hosts did.
Nothing here opens a session.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, TypeAlias

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.client.failover import nobody
from p2pnode.client.hedging import Hedging
from p2pnode.client.host_memory import HostMemory
from p2pnode.client.ranking import (
    Candidate,
    Filters,
    HostChoice,
    Payable,
    Ranking,
    TurnBound,
    why_not_free,
)
from p2pnode.client.reputation import Measured
from p2pnode.client.reuse import PrefixMemory
from p2pnode.client.runtime import Runtime
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import (
    ClockError,
    NoHostError,
    RefusedError,
    RemoteError,
    StorageError,
    UnreachableError,
)
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.limits import Limits
from p2pnode.models.catalogue import shown_name
from p2pnode.net.multiaddrs import split_peer
from p2pnode.net.saved_peers import SavedPeers
from p2pnode.node.adverts import failure_of
from p2pnode.node.finder import FoundHost
from p2pnode.protocols.adverts.messages import Advert, Sheet, capability_names
from p2pnode.protocols.inference.commands import Quoted
from p2pnode.protocols.inference.messages import PromptBody
from p2pnode.words import one_line

log = structlog.get_logger()
_SAVED_PEERS_TRIED: Final = 8
_LOOKUPS_MAX: Final = 64
_TOO_SLOW: Final = "it did not answer in time"


class HostSearch:
    """The hosts that a lookup finds for one question; :meth:`next` gives the best one not tried yet.

    ``start_lookup`` begins a lookup, or takes one that is under way or was over within so many seconds. It
    calls :meth:`found` and, at its end, :meth:`lookup_ended`.
    """

    def __init__(
        self,
        model: ModelId,
        filters: Filters,
        *,
        measured: Mapping[PeerId, Measured],
        limits: Limits,
        wall: Callable[[], float],
        start_lookup: StartLookup,
        payable: Payable = why_not_free,
        has_session: Callable[[PeerId], bool] = lambda _peer: False,
        has_left: Callable[[PeerId], bool] = lambda _peer: False,
        stake_of: Callable[[Advert], int] = lambda _advert: 0,
        under_way: Callable[[PeerId], int] = lambda _peer: 0,
    ) -> None:
        self._choice = HostChoice(
            model,
            filters,
            measured=measured,
            payable=payable,
            has_session=has_session,
            has_left=has_left,
            stake_of=stake_of,
            under_way=under_way,
        )
        self._limits, self._wall = limits, wall
        self._model, self._caps = model, filters.caps
        self.trusts_some = bool(filters.rules.trust)
        """Whether the user named any hosts as ones to trust."""
        self._changed = trio.Event()
        """Set at each change, and then made anew."""
        self._first_found_at: float | None = None
        self._looked_at = self._wanted_at = -math.inf
        """When the last lookup began, and since when it must have to say who is there."""
        self._start_lookup: StartLookup | None = start_lookup
        self._started = self._ended = False
        self._awaited: set[PeerId] = set()
        """Hosts that are waited for, a moment: no fee is due there."""
        self.failures: dict[PeerId, str] = {}
        """Why other peers were not found, or failed when they were tried."""
        self.alone = False
        """Whether the lookup met no other node, and knew of none."""

    # ---- the lookup

    def start(self, recent_s: float = 0.0) -> None:
        """Begin the lookup, once. What another search found less than ``recent_s`` ago is good enough."""
        if self._start_lookup is not None and not self._started:
            self._started = True
            self._looked_at = self._wanted_at = trio.current_time()
            self._start_lookup(self, recent_s)

    def look_again(self, recent_s: float = 0.0) -> None:
        """Begin another lookup if the last one is over: it may find hosts that were not there then."""
        if self._start_lookup is not None and self._ended:
            self._ended = False
            self._looked_at = trio.current_time()
            self._start_lookup(self, recent_s)

    def joins(self, began_at: float) -> None:
        """The lookup is another search's, too, and began then."""
        self._looked_at = began_at

    def found(self, host: FoundHost) -> None:
        """A lookup found a host, or a newer advert of one."""
        self._choice.found(host.advert)
        if self._first_found_at is None:
            self._first_found_at = trio.current_time()
        self._wake()

    def wait_for(self, peers: Collection[PeerId]) -> None:
        """Give no other host, for a moment, until :meth:`heard_of` each of these."""
        self._awaited.update(peers)

    def heard_of(self, peer: PeerId) -> None:
        """This host was found, or is not there."""
        self._awaited.discard(peer)
        self._wake()

    def lacks(self, advert: Advert) -> None:
        """A lookup heard of a host that lacks what is needed, and did not dial it."""
        self._choice.found(advert)

    def lookup_ended(self, failures: Mapping[PeerId, str], *, alone: bool = False) -> None:
        """The lookup is over; ``failures`` says why peers could not be asked. ``alone``: nobody was there."""
        self.failures.update(failures)
        self.alone = alone
        self._ended = True
        self._wake()

    def disable_lookup(self) -> None:
        """Use nothing but what was found already."""
        self._start_lookup = None
        self.lookup_ended({})

    async def wait_changed(self) -> None:
        """Until a host is found, or a lookup is over."""
        await self._changed.wait()

    async def wait_over(self) -> None:
        """Until the lookup is over."""
        while not self._ended:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # ---- what is known of hosts

    def try_first(self, host: FoundHost) -> None:
        """Give this host first, without a lookup: a session with it is open."""
        self._choice.try_first(host.advert)

    def failed(self, peer: PeerId, reason: str) -> None:
        """A host was tried and failed."""
        self.failures[peer] = reason
        self._wanted_at = trio.current_time()

    def pass_over(self, peer: PeerId, reason: str) -> None:
        """A host is not there after all: don't give it."""
        self._choice.pass_over(peer)
        self.failures[peer] = reason

    def need_context(self, tokens: int) -> None:
        """Leave out hosts whose context is smaller: they would refuse, perhaps after taking a fee."""
        self._choice.need_context(tokens)

    def keep_to_trusted(self) -> None:
        """A host that the user trusts knows what was said: no stranger is to learn it."""
        self._choice.keep_to_trusted()

    def ask_for(self, turn: TurnBound) -> None:
        """This is the most that is asked of the next host."""
        self._choice.turn = turn

    def may_ask_again(self, peer: PeerId) -> bool:
        """See ``HostChoice.may_ask_again``."""
        return self._choice.may_ask_again(peer, self._wall())

    @property
    def standby(self) -> PeerId | None:
        """The host that is kept ready; it goes before its equals."""
        return self._choice.standby

    @standby.setter
    def standby(self, peer: PeerId | None) -> None:
        self._choice.standby = peer

    # ---- the choice

    def best(self, *, standby_first: bool = True, resting: bool = True) -> Candidate | None:
        """The host that :meth:`next` would give as far as is known now; see ``HostChoice.best``."""
        return self._choice.best(self._wall(), standby_first=standby_first, resting=resting)

    def may_use(self, peer: PeerId) -> bool:
        """Whether this host was not tried yet, and is allowed."""
        return self._choice.may_use(peer, self._wall())

    @property
    def may_give_more(self) -> bool:
        """Whether :meth:`next` may still give a host."""
        return self._choice.has_untried(self._wall()) or not self._ended

    def ranking(self) -> Ranking:
        """All hosts found so far."""
        return self._choice.ranking(self._wall())

    def no_host(self) -> NoHostError:
        """What the user is told where no host was found, or none that may be used."""
        return nobody(self.ranking(), self.failures, see=self.command, alone=self.alone)

    @property
    def command(self) -> str:
        """The command that shows all hosts that could be meant."""
        name = shown_name(self._model)
        model = [] if name == DEFAULT_MODEL else [f"--model {name}"]
        return " ".join(
            ["hosts --why", *model, *(f"--needs {each}" for each in capability_names(self._caps))]
        )

    async def next(self) -> Candidate | None:
        """The best host not tried yet; None when there is none and none will come.

        After the first find it waits ``found_grace_s`` for others, so that the nearest does not always win,
        and ``reconnect_patience_s`` before it gives a host that rests. A lookup that was begun before this
        search, or before a host failed, says little of who is there now: where nobody is left there is one
        more.
        """
        first = self._choice.take_first(self._wall())
        if first is not None:
            return first
        self.start()
        with trio.move_on_after(self._limits.reconnect_patience_s):
            while self._awaited:
                await self._changed.wait()
        self._awaited.clear()
        while True:
            if self._first_found_at is not None and not self._ended:
                with trio.move_on_at(self._first_found_at + self._limits.found_grace_s):
                    await self.wait_over()
            found_at = math.inf if self._first_found_at is None else self._first_found_at
            rests_until = found_at + self._limits.reconnect_patience_s
            resting = self._ended or trio.current_time() >= rests_until
            best = self._choice.best(self._wall(), resting=resting)
            # Strangers come when it is sure that no host is there that the user trusts.
            if best is not None and (best.trusted or self._ended or not self.trusts_some):
                return self._choice.take_best(self._wall(), resting=resting)
            if self._ended and self._looked_at < self._wanted_at:
                self.look_again()
            if self._ended:
                return None
            with trio.move_on_at(math.inf if resting else rests_until):
                await self._changed.wait()

    async def second(self, allows: Callable[[Candidate], bool]) -> Candidate | None:
        """The best host not tried yet that ``allows`` takes; None when there is none and none will come."""
        self.start()
        while True:
            found = self._choice.take_second(self._wall(), allows)
            if found is not None or self._ended:
                return found
            await self._changed.wait()


StartLookup: TypeAlias = Callable[[HostSearch, float], None]


class _Lookup:
    """One lookup for all searches that want the same hosts at the same time: each hears what it finds.

    Peers answer few questions a second of one client, and many programs may ask it at once.
    """

    def __init__(self) -> None:
        self._searches: list[HostSearch] = []
        self._found: list[FoundHost] = []
        self._lacking: list[Advert] = []
        self._failures: Mapping[PeerId, str] = {}
        self._alone = False
        self._began_at = trio.current_time()
        self._over_at: float | None = None

    def serves(self, recent_s: float) -> bool:
        """Whether it is under way, or was over less than ``recent_s`` ago."""
        return self._over_at is None or trio.current_time() - self._over_at < recent_s

    def join(self, search: HostSearch) -> None:
        """Tell a search what was found, and, while this goes on, what will be."""
        search.joins(self._began_at)
        for host in self._found:
            search.found(host)
        for advert in self._lacking:
            search.lacks(advert)
        if self._over_at is None:
            self._searches.append(search)
        else:
            search.lookup_ended(self._failures, alone=self._alone)

    def found(self, host: FoundHost) -> None:
        """As ``HostSearch.found``."""
        self._found.append(host)
        for search in self._searches:
            search.found(host)

    def lacks(self, advert: Advert) -> None:
        """As ``HostSearch.lacks``."""
        self._lacking.append(advert)
        for search in self._searches:
            search.lacks(advert)

    def ended(self, failures: Mapping[PeerId, str], *, alone: bool) -> None:
        """As ``HostSearch.lookup_ended``."""
        self._over_at, self._failures, self._alone = trio.current_time(), failures, alone
        for search in self._searches:
            search.lookup_ended(failures, alone=alone)
        self._searches.clear()


class IdleSessions(Protocol):
    """What a search asks of the sessions that are kept open between turns."""

    def peers(self, model: ModelId) -> Sequence[PeerId]:
        """Hosts with an open session of this model, the one that was used last at the end."""

    def has(self, peer: PeerId, model: ModelId) -> bool:
        """Whether there is an idle session with this host."""

    def has_left(self, peer: PeerId, model: ModelId) -> bool:
        """Whether a session was left with this host."""

    def under_way(self, peer: PeerId, model: ModelId) -> int:
        """How many turns this host has now, or is about to be asked."""

    def left_hosts(self, model: ModelId) -> Mapping[PeerId, Sequence[str]]:
        """Hosts with which sessions of a model were left that are dialled first, and where they were then."""


class Searches:
    """The searches of one client. ``memory`` is what it knows of hosts from its own dealings with them.

    ``in_thread``: see ``files.off_the_loop``.
    """

    def __init__(
        self, runtime: Runtime, sessions: IdleSessions, memory: HostMemory, *, in_thread: bool = True
    ) -> None:
        self._runtime, self._sessions, self._in_thread = runtime, sessions, in_thread
        self.memory = memory
        self._prefixes = PrefixMemory()
        self._lookups: BoundedMap[tuple[tuple[ModelId, ...], int], _Lookup] = BoundedMap(_LOOKUPS_MAX)
        """The last one for each set of models, by them and the capabilities."""
        self.hedging = Hedging()
        """When a second host is asked for an answer."""
        self._unreached: set[PeerId] = set()

    @property
    def measured(self) -> Mapping[PeerId, Measured]:
        """What is known of hosts now."""
        return self.memory.measured

    # ---- searches for hosts of a model

    def new(
        self,
        model: ModelId,
        filters: Filters,
        *,
        measured: Mapping[PeerId, Measured] | None = None,
        caps: int = 0,
    ) -> HostSearch:
        """A search by lookup, which begins when the first host is asked for.

        Hosts without all of ``caps`` are not dialled where that is known before.
        """

        def start_lookup(search: HostSearch, recent_s: float) -> None:
            if not self._runtime.discovers:
                search.lookup_ended({})
                return
            guard = self._runtime.node.network.guard
            left = self._sessions.left_hosts(model)
            search.wait_for(left)
            for peer, addresses in left.items():
                self._runtime.tasks.start_soon(guard.run, self._look_at, search, peer, addresses)
            models = (model, *filters.equivalents)
            lookup = self._lookups.get((models, caps))
            if lookup is None or not lookup.serves(recent_s):
                lookup = _Lookup()
                self._lookups.put((models, caps), lookup)
                self._runtime.tasks.start_soon(guard.run, self._look_up, lookup, models, caps)
            lookup.join(search)

        return HostSearch(
            model,
            filters,
            measured=self.measured if measured is None else measured,
            limits=self._runtime.limits,
            wall=self._runtime.node.wall,
            start_lookup=start_lookup,
            payable=self._runtime.payable,
            has_session=lambda peer: self._sessions.has(peer, model),
            has_left=lambda peer: self._sessions.has_left(peer, model),
            stake_of=self._runtime.stake_of,
            under_way=lambda peer: self._sessions.under_way(peer, model),
        )

    def with_idle_sessions(
        self, model: ModelId, filters: Filters, *, prefer: PeerId | None = None
    ) -> HostSearch:
        """A search that gives a host first with which a session is open; then no lookup is needed.

        Of several it is ``prefer``, or the one that was used last. While turns are under way it is the best
        of all hosts that are known, where there is a session with that one.
        """
        search, peers = self.new(model, filters, caps=filters.caps), list(self._sessions.peers(model))
        book, now = self._runtime.node.adverts.book, self._runtime.node.wall()
        first = prefer if prefer in peers else next(reversed(peers), None)
        if first != prefer and any(self._sessions.under_way(peer, model) for peer in peers):
            known = self.new(model, filters)
            for each in book.live(now, model):
                known.found(FoundHost(each.advert, 0.0))
            best = known.best()
            first = best.advert.peer if best is not None and best.advert.peer in peers else None
        entry = book.get(first, now) if first is not None else None
        # A session with a stranger must not go before a host that the user trusts, and isn't found yet.
        if entry is not None and (not filters.rules.trust or filters.rules.trusts(entry.advert)):
            search.try_first(FoundHost(entry.advert, 0.0))
        return search

    async def of_named_host(self, multiaddr: str, model: ModelId, filters: Filters) -> HostSearch:
        """A search that gives the host at this address and no other.

        Raises ``UnreachableError``, or ``RefusedError`` where that host can't serve the model as asked.
        """
        # With nothing measured: earlier failures are no reason to refuse the host that the user insists on.
        search = self.new(model, replace(filters, reputation_min=0.0), measured={})
        started = trio.current_time()
        advert = await self.advert_of([multiaddr])
        if advert is None:
            msg = "that peer serves no model: it is a client or still starting"
            raise RefusedError("model_not_available", msg)
        offers = (advert.offer(each) for each in (model, *filters.equivalents))
        offer = next((each for each in offers if each is not None), None)
        if offer is None:
            names = ", ".join(shown_name(offer.model) for offer in advert.offers if offer.n_ctx)
            msg = f"that host serves {names or 'nothing'}: choose it with --model, or another host"
            raise RefusedError("model_not_available", msg)
        if advert.draining:
            raise RefusedError("shutting_down", "that host is about to leave: choose another")
        if why := self._runtime.payable(advert, offer):
            raise RefusedError("payment_required", f"that host {why}")
        search.found(FoundHost(advert, trio.current_time() - started))
        search.disable_lookup()
        excluded = search.ranking().excluded
        if excluded:
            raise RefusedError("model_not_available", f"that host: {one_line(excluded[0].excluded)}")
        return search

    async def _look_at(self, search: HostSearch, peer: PeerId, addresses: Sequence[str]) -> None:
        """Find a host where it was: a lookup may find others first, which cost a fee."""
        began = trio.current_time()
        try:
            with trio.move_on_after(self._runtime.limits.standby_reach_s):
                advert = await self._runtime.node.finder.contact(peer, addresses)
                if advert is not None:
                    search.found(FoundHost(advert, trio.current_time() - began))
        except RemoteError as error:
            log.debug("host.not_where_it_was", peer=peer, reason=str(error))
        finally:
            search.heard_of(peer)

    async def _look_up(self, lookup: _Lookup, models: Sequence[ModelId], caps: int) -> None:
        def on_found(host: FoundHost) -> None:
            self.memory.note(host.advert.peer, partial(Measured.connected, seconds=host.connect_s))
            lookup.found(host)

        failures: dict[PeerId, str] = {}
        alone = False
        try:
            seeds = await self.first_peers()
            for model in models:
                failures |= await self._runtime.node.finder.find(
                    model, seeds=seeds, on_found=on_found, on_lacking=lookup.lacks, caps=caps
                )
            alone = not (seeds or failures or self._runtime.node.network.connected_peers())
        finally:
            self._unreached.update(failures)
            lookup.ended(failures, alone=alone)

    # ---- what was measured

    def note_answer(
        self, peer: PeerId, ttft_s: float, tokens_per_s: float | None, *, whole: bool = True
    ) -> None:
        """A host answered a turn: its first token came after ``ttft_s``; ``whole`` as ``Measured.answered``
        has it."""
        self.memory.note(
            peer, partial(Measured.answered, ttft_s=ttft_s, tokens_per_s=tokens_per_s, whole=whole)
        )

    def note_late(self, peer: PeerId, waited_s: float) -> None:
        """A host had not sent its first token after so long, when another one had."""
        self.memory.note(peer, partial(Measured.late, waited_s=waited_s))

    def note_quote(
        self, peer: PeerId, session: SessionId, body: PromptBody, quoted: Quoted, prefix: int
    ) -> None:
        """A host counted a prompt, with ``prefix`` ids of a partial answer after its messages."""
        quote = quoted.quote
        share = self._prefixes.quoted(session, body, tokens=quote.tokens_in - prefix, reused=quote.reused)
        if share is not None:
            self.memory.note(peer, partial(Measured.reused, share=share))

    def note_closed_early(self, peer: PeerId) -> None:
        """A host closed a session that was left with it, before its time."""
        self.memory.note(peer, Measured.closed_early)

    def note_receipts(self, peer: PeerId, tokens: int) -> None:
        """A host's receipts over so many output tokens were checked."""
        self.memory.note(peer, partial(Measured.proved, tokens=tokens))

    def note_failure(
        self,
        peer: PeerId,
        *,
        asked_s: float = -math.inf,
        turn: bool,
        fault: bool = False,
        took_for_nothing: bool = False,
    ) -> None:
        """A host, or a ``turn`` that it had begun, failed, which was asked so many seconds ago; the rest is
        as in ``Measured.failed``."""
        now = self._runtime.node.wall()
        change = partial(
            Measured.failed,
            now=now,
            began=now - asked_s,
            turn=turn,
            fault=fault,
            took_for_nothing=took_for_nothing,
        )
        self.memory.note(peer, change)

    # ---- peers

    async def first_peers(self) -> list[str]:
        """Multiaddrs in the order to try: the node on this data dir, the user's, those of earlier runs."""
        first = list(dict.fromkeys((*self._runtime.local[:1], *self._runtime.bootstrap)))
        if self._runtime.owns_node and self._runtime.data.peers.exists():
            store = await self._saved_peers()
            drawn = store.to_try(_SAVED_PEERS_TRIED, secrets.SystemRandom().randrange)
            first += [saved.addrs[0] for saved in drawn if saved.addrs]
        return list(dict.fromkeys(first))

    async def save_peers(self) -> None:
        """Write down for the next run which peers were reached, so that a first peer is given only once.

        A peer that could not be reached while others could is forgotten: the others know it once it is back.
        A disk that can't take the file costs a log line only.
        """
        network = self._runtime.node.network
        reached = network.connected_peers()
        if not reached:
            return  # there was no network: that says nothing of any peer
        store = await self._saved_peers()
        for peer in self._unreached.difference(reached):
            store.forget(peer)
        for peer in reached:
            store.remember(peer, network.addresses_of(peer), now=self._runtime.node.wall())
        try:
            await store.save()
        except StorageError as error:
            log.debug("saved_peers.not_saved", reason=str(error))

    async def _saved_peers(self) -> SavedPeers:
        """As the file has them now: other processes write it too."""
        store = SavedPeers(self._runtime.data.peers, limits=self._runtime.limits, in_thread=self._in_thread)
        await store.load()
        return store

    async def advert_of(self, multiaddrs: Sequence[str]) -> Advert | None:
        """The current advert of the peer at these addresses. Raises ``RemoteError``."""
        address, peer = split_peer(multiaddrs[0])
        addresses = (address, *(split_peer(each)[0] for each in multiaddrs[1:]))
        patience_s = self._runtime.limits.dial_deadline_s
        try:
            with trio.fail_after(patience_s):
                return await self._runtime.node.finder.contact(peer, (), told=addresses)
        except trio.TooSlowError:
            msg = (
                f"{multiaddrs[0]} did not answer within {patience_s:g} s: it is not running, or a router or "
                "firewall lets nobody in (its owner can forward the port: see `p2pnode doctor` there)"
            )
            raise UnreachableError(msg) from None

    async def known_adverts(self) -> list[Advert]:
        """Live adverts of every model that the first peers and those on the local network know of."""
        node = self._runtime.node
        await self.connect_first_peers()
        await self.connect_neighbours()
        async with trio.open_nursery() as nursery:
            for peer in node.network.connected_peers():
                nursery.start_soon(node.network.guard.run, self._sample, peer)
        return [entry.advert for entry in node.adverts.book.live(node.wall())]

    async def sheets(self, adverts: Iterable[Advert]) -> dict[PeerId, Sheet]:
        """What these hosts say at length, asked of all at once; those that don't answer are left out."""
        node, found = self._runtime.node, dict[PeerId, Sheet]()

        async def ask(advert: Advert) -> None:
            try:
                with trio.fail_after(self._runtime.limits.request_deadline_s):
                    sheet = await node.adverts.sheet(advert)
            except (RemoteError, trio.TooSlowError) as error:
                log.debug("sheet.not_fetched", peer=advert.peer, reason=str(error))
            else:
                found.update({advert.peer: sheet} if sheet is not None else {})

        async with trio.open_nursery() as nursery:
            for advert in adverts:
                nursery.start_soon(node.network.guard.run, ask, advert)
        return found

    async def clock_offsets(self) -> list[float]:
        """By how many seconds the clock of each connected host is ahead of ours, asked of all at once.

        The node on this data dir is not asked.
        """
        node, found = self._runtime.node, list[float]()

        async def ask(peer: PeerId) -> None:
            try:
                with trio.fail_after(self._runtime.limits.request_deadline_s):
                    advert = await node.adverts.fetch(peer)
            except ClockError as error:
                found.append(error.offset_s)
            except (RemoteError, trio.TooSlowError) as error:
                log.debug("clock.not_asked", peer=peer, reason=str(error))
            else:
                found.extend([advert.clock_offset_s(node.wall())] if advert is not None else [])

        own = {split_peer(each)[1] for each in self._runtime.local}
        async with trio.open_nursery() as nursery:
            for peer in node.network.connected_peers():
                if peer not in own:
                    nursery.start_soon(node.network.guard.run, ask, peer)
        return found

    async def connect_first_peers(self) -> dict[PeerId, str]:
        """Dial the node on this data dir, the user's first peers and those of earlier runs, all at once.

        Once one is reached the others have ``replica_grace_s``: a dead one would take its whole deadline.
        Returns why each peer that was not reached was not.
        """
        grace_s = self._runtime.limits.replica_grace_s
        failed: dict[PeerId, str] = {}

        async def connect(peer: PeerId, address: str) -> None:
            failed[peer] = _TOO_SLOW
            failure = await self._connect(peer, (address,))
            if failure:
                failed[peer] = failure
                return
            del failed[peer]
            nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + grace_s)

        first = await self.first_peers()
        async with trio.open_nursery() as nursery:
            for address, peer in map(split_peer, first):
                nursery.start_soon(connect, peer, address)
        reached = self._runtime.node.network.connected_peers()
        unreached = {peer: why for peer, why in failed.items() if peer not in reached}
        self._unreached.update(unreached)
        return unreached

    async def connect_neighbours(self) -> None:
        """Dial the nodes that make themselves known on the local network, where it is searched."""
        if self._runtime.browses:
            with trio.move_on_after(self._runtime.limits.mdns_wait_s):
                async for found in self._runtime.node.network.discovered():
                    await self._connect(found.peer, found.addrs)

    async def _sample(self, peer: PeerId) -> None:
        try:
            with trio.fail_after(self._runtime.limits.request_deadline_s):
                await self._runtime.node.adverts.sample(peer)
        except (RemoteError, trio.TooSlowError) as error:
            log.debug("exchange.failed", peer=peer, reason=str(error))

    async def _connect(self, peer: PeerId, addresses: Sequence[str]) -> str:
        """Why it can't be reached; "" where it was."""
        try:
            with trio.fail_after(self._runtime.limits.dial_deadline_s):
                await self._runtime.node.network.connect_peer(peer, (), trusted=addresses)
        except (RemoteError, trio.TooSlowError) as error:
            failure = failure_of(error) if isinstance(error, RemoteError) else _TOO_SLOW
            log.debug("peer.unreachable", peer=peer, reason=failure)
            self._unreached.add(peer)
            return failure
        return ""
