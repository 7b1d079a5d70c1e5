"""``KademliaNode``: one node of the DHT, as a machine: its table, its records, its server and its lookups.

A shell tells it who comes and goes, hands it what peers ask, and puts the questions that it emits. It learns
nothing of streams but their numbers, and nothing of addresses but what it is told by ``dialable``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.bounded import BoundedMap
from p2pnode.ids import PeerId
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    HalfClosed,
    Received,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.kademlia.lookup import WIDTH, Ask, Candidate, FoundProvider, Goal, Lookup, Parameters
from p2pnode.protocols.kademlia.messages import K, KadPeer, Message, bytes_of, fit, point_of_key
from p2pnode.protocols.kademlia.records import LIFETIME_S, ProviderRecords
from p2pnode.protocols.kademlia.server import Server
from p2pnode.protocols.kademlia.table import RoutingTable
from p2pnode.shares import Draw, Origin

LOOKUP_S: Final = 6.0
STORE_AFTER_S: Final = 4.0
"""A lookup before a ``Provide`` ends after this long, so that time is left to store the record."""
STORES_AT_ONCE: Final = WIDTH
"""All of them: those that are slow to take a record must not keep it from the others."""
SWEEP_S: Final = 60.0
REFRESH_FIRST_S: Final = 30.0
REFRESH_S: Final = 3600.0
LOOKUPS_MAX: Final = 64
PROVIDED_MAX: Final = 4096
OWN_ORIGIN: Final = Origin("own", "own")
_SWEEP, _REFRESH, _LOOKUP, _DEADLINE = "sweep", "refresh", "slow", "deadline"
Mode: TypeAlias = Literal["server", "client"]


@dataclass(frozen=True, slots=True)
class Identified:
    """Command: a connected peer said who it is. ``addresses`` are its own, as binary multiaddrs."""

    peer: PeerId
    addresses: tuple[bytes, ...]
    serves: bool
    """Whether it serves the DHT."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Command: the last connection with a peer is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class FindProviders:
    """Command: look for up to ``limit`` providers of a key. Answered by ``Ended``."""

    id: int
    key: bytes
    limit: int


@dataclass(frozen=True, slots=True)
class Provide:
    """Command: store a record of this node under a key. Answered by ``Ended``."""

    id: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Abandon:
    """Command: nobody waits for this lookup any more."""

    id: int


@dataclass(frozen=True, slots=True)
class Answered:
    """Command: a peer answered an ``AskPeer``, or took what expects no answer."""

    id: int
    peer: PeerId
    answer: Message | None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Command: a peer was not reached, or didn't answer in time, or not with a message."""

    id: int
    peer: PeerId


KademliaCommand: TypeAlias = (
    Identified | Disconnected | FindProviders | Provide | Abandon | Answered | Unanswered
)


@dataclass(frozen=True, slots=True)
class AskPeer:
    """Emitted: put a question to a peer, and report ``Answered`` or ``Unanswered`` within ``ANSWER_S``."""

    id: int
    ask: Ask


@dataclass(frozen=True, slots=True)
class Ended:
    """Emitted: a lookup is over. ``stored``: with how many peers a record was stored."""

    id: int
    providers: tuple[FoundProvider, ...] = ()
    stored: int = 0


@dataclass(slots=True)
class _Running:
    """A lookup, and the key under which a record of ours is stored after it."""

    lookup: Lookup
    limit: int = 0
    stores: bytes | None = None
    looked: bool = False
    to_store: list[PeerId] = field(default_factory=list)
    storing: set[PeerId] = field(default_factory=set)
    stored: int = 0


class KademliaNode:
    """See the module. Begin with :meth:`start`.

    ``origin_of`` says where a connected peer comes from, ``origin_at`` where one seems to be by addresses
    that strangers gave; ``dialable`` returns those of them that may be dialled on a stranger's word;
    ``reached`` says whether this node dialled a peer with success; ``own_addresses`` are what a record of
    this node names.
    """

    def __init__(
        self,
        own: PeerId,
        mode: Mode,
        *,
        draw: Draw,
        origin_of: Callable[[PeerId], Origin],
        origin_at: Callable[[PeerId, Sequence[bytes]], Origin],
        dialable: Callable[[Sequence[bytes]], tuple[bytes, ...]],
        reached: Callable[[PeerId], bool],
        own_addresses: Callable[[], Sequence[bytes]],
        parameters: Parameters | None = None,
    ) -> None:
        self._parameters = parameters or Parameters()
        self._own, self.mode, self._draw = own, mode, draw
        self._origin_of, self._origin_at, self._dialable = origin_of, origin_at, dialable
        self._own_addresses = own_addresses
        self.table = RoutingTable(own, self._parameters.k)
        self.records = ProviderRecords(draw)
        self._server = Server(
            self.table,
            self.records,
            origin_of=origin_of,
            reached=reached,
            own=self._own_record,
            k=self._parameters.k,
        )
        self._running: dict[int, _Running] = {}
        self._provided: BoundedMap[bytes, float] = BoundedMap(PROVIDED_MAX)
        """What this node provides itself, and until when."""
        self._now = 0.0
        self._refreshes = 0

    def start(self, now: float) -> Sequence[Effect]:
        """Begin to forget what expires; a server also looks for its neighbours now and then."""
        effects: list[Effect] = [SetTimer(_SWEEP, now + SWEEP_S)]
        if self.mode == "server":
            effects.append(SetTimer(_REFRESH, now + REFRESH_FIRST_S))
        return effects

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are questions of peers, commands ``KademliaCommand``."""
        self._now = now
        match event:
            case Received():
                return self._server.handle(event, now) if self.mode == "server" else []
            case Command(value=value):
                return self._command(value, now)
            case TimerFired(key=key):
                return self._fired(key, now)
            case HalfClosed() | Closed():
                return []
            case _:
                assert_never(event)

    # ---- what the shell reports

    def _command(self, command: KademliaCommand, now: float) -> Sequence[Effect]:
        match command:
            case Identified(peer=peer, addresses=addresses, serves=serves):
                if serves:
                    self.table.enter(peer, addresses, self._origin_of(peer))
                else:
                    self.table.remove(peer)  # it may have served until now
                return []
            case Disconnected(peer=peer):
                self.table.disconnected(peer)
                return []
            case FindProviders(id=number, key=key, limit=limit):
                lookup = self._lookup("get_providers", key)
                local = self.records.draw(key, K, now)
                told = [KadPeer(peer=each.provider, addresses=each.addresses) for each in local]
                lookup.told(told, OWN_ORIGIN)
                return self._begin(number, _Running(lookup, limit=limit), now)
            case Provide(id=number, key=key):
                self._provided.put(key, now + LIFETIME_S)
                return self._begin(number, _Running(self._lookup("find_node", key), stores=key), now)
            case Abandon(id=number):
                return self._abandon(number)
            case Answered() | Unanswered():
                return self._reported(command, now)
            case _:
                assert_never(command)

    def _fired(self, key: str, now: float) -> Sequence[Effect]:
        if key == _SWEEP:
            self.records.expire(now)
            return [SetTimer(_SWEEP, now + SWEEP_S)]
        if key == _REFRESH:
            return self._refresh(now)
        kind, _, number = key.partition("/")
        running = self._running.get(int(number))
        if running is None:
            return []
        if kind == _DEADLINE:
            return self._looked_up(int(number), running)
        return self._ask(int(number), running, running.lookup.advance(now), now)

    def _refresh(self, now: float) -> Sequence[Effect]:
        """Look for our own neighbours, and each second time for those of a random key."""
        if not len(self.table):
            return [SetTimer(_REFRESH, now + REFRESH_FIRST_S)]
        self._refreshes += 1
        key = bytes_of(self._own) if self._refreshes % 2 else bytes(self._draw(256) for _ in range(32))
        running = _Running(self._lookup("find_node", key))
        # The numbers of the role above are not negative.
        return [SetTimer(_REFRESH, now + REFRESH_S), *self._begin(-self._refreshes, running, now)]

    def _own_record(self, key: bytes) -> tuple[KadPeer, ...]:
        until = self._provided.get(key)
        if until is None or until <= self._now:
            return ()
        return (KadPeer(peer=self._own, addresses=fit(self._own_addresses())),)

    # ---- lookups

    def _lookup(self, goal: Goal, key: bytes) -> Lookup:
        known = self.table.closest(point_of_key(key), self._parameters.width, silent_too=True)
        return Lookup(
            goal,
            key,
            [Candidate(each.peer, self._dialable(each.addresses), each.origin) for each in known],
            own=self._own,
            origin=self._origin_at,
            dialable=self._dialable,
            draw=self._draw,
            parameters=self._parameters,
        )

    def _begin(self, number: int, running: _Running, now: float) -> Sequence[Effect]:
        if len(self._running) >= LOOKUPS_MAX:
            return [Emit(Ended(number))]
        self._running[number] = running
        wait_s = STORE_AFTER_S if running.stores is not None else LOOKUP_S
        asks = running.lookup.start(now)
        return [SetTimer(f"{_DEADLINE}/{number}", now + wait_s), *self._ask(number, running, asks, now)]

    def _reported(self, report: Answered | Unanswered, now: float) -> Sequence[Effect]:
        peer = report.peer
        if isinstance(report, Answered):
            self.table.answered(peer)
        else:
            self.table.failed(peer)
        running = self._running.get(report.id)
        if running is None:
            return []
        if peer in running.storing:
            running.storing.discard(peer)
            running.stored += isinstance(report, Answered)
            return self._store(report.id, running)
        if isinstance(report, Answered) and report.answer is not None:
            asks = running.lookup.answered(peer, report.answer, self._origin_of(peer), now)
        else:
            asks = running.lookup.failed(peer, now)
        return self._ask(report.id, running, asks, now)

    def _ask(self, number: int, running: _Running, asks: Sequence[Ask], now: float) -> Sequence[Effect]:
        if running.looked:
            return []
        if running.lookup.is_over:
            return self._looked_up(number, running)
        effects: list[Effect] = [Emit(AskPeer(number, each)) for each in asks]
        slow_at = running.lookup.slow_at(now)
        if slow_at is not None:
            effects.append(SetTimer(f"{_LOOKUP}/{number}", slow_at))
        return effects

    def _looked_up(self, number: int, running: _Running) -> Sequence[Effect]:
        """The lookup is over: tell what it found, or store a record with the closest who answered."""
        running.looked = True
        result = running.lookup.result(running.limit)
        if running.stores is None:
            return self._ended(number, Ended(number, providers=result.providers))
        running.to_store = list(result.closest)
        return self._store(number, running)

    def _store(self, number: int, running: _Running) -> Sequence[Effect]:
        effects: list[Effect] = []
        me = KadPeer(peer=self._own, addresses=fit(self._own_addresses()))
        record = Message(kind="add_provider", key=running.stores or b"", providers=(me,))
        while running.to_store and len(running.storing) < STORES_AT_ONCE:
            peer = running.to_store.pop(0)
            running.storing.add(peer)
            effects.append(Emit(AskPeer(number, Ask(peer, (), record))))
        if not running.storing:
            effects += self._ended(number, Ended(number, stored=running.stored))
        return effects

    def _ended(self, number: int, ended: Ended) -> Sequence[Effect]:
        return [*self._abandon(number), Emit(ended)]

    def _abandon(self, number: int) -> Sequence[Effect]:
        if self._running.pop(number, None) is None:
            return []
        return [CancelTimer(f"{_DEADLINE}/{number}"), CancelTimer(f"{_LOOKUP}/{number}")]
