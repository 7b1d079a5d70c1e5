"""Which connections and streams of strangers find a place: handshakes, open connections, inbound streams.

All places are shared out by origin (``p2pnode/shares.py``): nobody is refused while one is free, and when all
are taken, who comes from an origin with few takes the place of one of the origin with most. Who gives way is
decided by what was done on a connection or a stream, never by that it is open. This module knows nothing of
sockets, and of peers only their ids and where they come from.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

import trio

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.yamux import YamuxStream
from p2pnode.shares import FairShares, Origin

# ---- before and during the handshake

PATIENCE_S: Final = 1.0
"""A handshake takes two or three round trips. One that has lasted so long is dropped when another waits."""
FIRST_PATIENCE_S: Final = 3.0
"""The same for the first handshake of an origin in a minute. Round trips to a peer far away take most of a
second, and who floods has few origins."""
PENDING_PER_HANDSHAKE: Final = 8
TURNS_PER_S: Final = 16.0
"""Of a public prefix that has used up one turn for each place that this node has."""
_RATES_MAX: Final = 1024
COUNTED_S: Final = 60.0
_COUNTED_MAX: Final = 1 << 16


@dataclass(slots=True, eq=False)
class Ticket:
    """One inbound connection from its first packet to its end; given back with :meth:`Handshakes.leave`."""

    origin: Origin
    drop: Callable[[], object]
    until: float = 0.0
    """So long its handshake may last while others wait."""
    begun: trio.Event = field(default_factory=trio.Event)
    stirred: trio.Event = field(default_factory=trio.Event)
    """It has begun, or has come to be the one that waits longest."""
    waits: bool = False
    """It has sent its first byte."""


class Handshakes:
    """Gives turns to connections that have sent a byte, and few places to those that haven't.

    A turn goes to the origin with the fewest turns in the last minute, by chance among equals. So an origin
    that opens a hundred connections a second waits behind everybody else, and not before them. Whole
    handshakes cost CPU, so a public prefix that had as many as there are connections gets a few a second from
    then on. ``draw`` gives numbers from 0 to 1.
    """

    def __init__(self, limits: Limits, draw: Callable[[], float]) -> None:
        self._at_once = limits.inbound_handshakes_max
        self._deadline_s = limits.handshake_deadline_s
        self._new_rate = partial(TokenBucket, TURNS_PER_S, limits.connections_max)
        self._rates: BoundedMap[str, TokenBucket] = BoundedMap(_RATES_MAX)
        self._draw = draw
        self._pending: FairShares[Ticket] = FairShares(PENDING_PER_HANDSHAKE * self._at_once)
        self._waiting: dict[Ticket, None] = {}
        self._begun: deque[tuple[float, Origin]] = deque()
        self._by_wide: Counter[str] = Counter()
        self._by_near: Counter[str] = Counter()
        """How many of ``_begun`` each origin has: kept with it, since it may be long when turns come fast."""
        self.under_way: dict[Ticket, None] = {}
        self.refused: Counter[str] = Counter()

    def enter(self, origin: Origin, drop: Callable[[], object]) -> Ticket | None:
        """A ticket; None where the connection is refused. ``drop`` must end that connection's handshake."""
        ticket = Ticket(origin, drop)
        entered, victim = self._pending.enter(ticket, origin, _longest_silent)
        if not entered:
            # Its origin has the largest share: then only one of its own that says nothing leaves for it.
            victim = next((each for each in self._pending.holders(origin) if not each.waits), None)
            if victim is None:
                self.refused["handshakes"] += 1
                return None
            self._pending.leave(victim)
            self._pending.enter(ticket, origin, _longest_silent)
        if victim is not None:
            self._forget_waiter(victim)
            self.refused["silent"] += 1
            victim.drop()
        return ticket

    async def begin(self, ticket: Ticket) -> None:
        """Wait for the turn. Call it after the first byte; the deadline is the caller's cancel scope."""
        ticket.waits = True
        await self._space(ticket)
        self._waiting[ticket] = None
        self._next()
        while not ticket.begun.is_set():
            # When the oldest handshake has lasted too long, one waiter must wake: the one that waits longest.
            is_first = next(iter(self._waiting), None) is ticket
            until = min(each.until for each in self.under_way) if is_first else math.inf
            ticket.stirred = trio.Event()
            with trio.move_on_at(until):
                await ticket.stirred.wait()
            self._next()

    async def _space(self, ticket: Ticket) -> None:
        """Hold up an origin that has had a turn for every connection that this node takes, and wants more."""
        if not ticket.origin.is_prefix:
            return
        rate = self._rates.use(ticket.origin.wide, self._new_rate)
        wait_s = rate.wait_s(trio.current_time())
        if wait_s > self._deadline_s:
            self.refused["handshake_rate"] += 1
            ticket.drop()
            await trio.sleep_forever()
        rate.spend(1)
        await trio.sleep(wait_s)

    def settle(self, ticket: Ticket) -> None:
        """Note that the handshake is over, whether it succeeded or not."""
        if ticket in self.under_way:
            del self.under_way[ticket]
            self._next()

    def leave(self, ticket: Ticket) -> None:
        """Note that the connection is gone."""
        self._pending.leave(ticket)
        self._forget_waiter(ticket)
        self.settle(ticket)

    def _forget_waiter(self, ticket: Ticket) -> None:
        self._waiting.pop(ticket, None)
        if (first := next(iter(self._waiting), None)) is not None:
            first.stirred.set()

    def _next(self) -> None:
        now = trio.current_time()
        while self._waiting:
            if len(self.under_way) >= self._at_once:
                slowest = min(self.under_way, key=_until)
                if now < slowest.until:
                    return
                del self.under_way[slowest]
                self.refused["slow_handshakes"] += 1
                slowest.drop()
            self._forget_turns(now)
            ticket = self._whose_turn()
            self._forget_waiter(ticket)
            self._pending.leave(ticket)
            self._note_turn(ticket.origin, now)
            ticket.until = now + (FIRST_PATIENCE_S if self._by_wide[ticket.origin.wide] == 1 else PATIENCE_S)
            self.under_way[ticket] = None
            ticket.begun.set()
            ticket.stirred.set()

    def _note_turn(self, origin: Origin, now: float) -> None:
        self._begun.append((now, origin))
        self._by_wide[origin.wide] += 1
        self._by_near[origin.near] += 1

    def _forget_turns(self, now: float) -> None:
        while self._begun and (self._begun[0][0] <= now - COUNTED_S or len(self._begun) > _COUNTED_MAX):
            _, gone = self._begun.popleft()
            for counts, name in ((self._by_wide, gone.wide), (self._by_near, gone.near)):
                counts[name] -= 1
                if not counts[name]:
                    del counts[name]

    def _whose_turn(self) -> Ticket:
        if len(self._waiting) == 1:
            return next(iter(self._waiting))
        wide, near = self._by_wide, self._by_near
        first: dict[Origin, Ticket] = {}
        for ticket in self._waiting:
            first.setdefault(ticket.origin, ticket)
        turn = min(first, key=lambda each: (wide[each.wide], near[each.near], self._draw()))
        return first[turn]


def _until(ticket: Ticket) -> float:
    return ticket.until


def _longest_silent(tickets: Collection[Ticket]) -> Ticket | None:
    """One that has sent nothing; where all have, the one that waits longest."""
    return next((each for each in tickets if not each.waits), next(iter(tickets), None))


# ---- open connections

RESERVED: Final = 1 / 8
"""Of all places, for the peers that we dialled; as many for payers."""
CONNECTIONS_PER_PAYER: Final = 2

Standing: TypeAlias = Literal["stranger", "served", "payer"]
"""``served``: work for this peer is under way. ``payer``: it has an open escrow with us, and has paid."""


class Held(Hashable, Protocol):
    """A connection that holds a place."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def inbound(self) -> bool:
        """Whether the peer dialled."""
        ...

    @property
    def active_at(self) -> float:
        """When bytes of a stream last came or went."""
        ...


H = TypeVar("H", bound=Held)


class ConnectionPlaces(FairShares[H]):
    """``Limits.connections_max`` places, a part of them reserved: see ``RESERVED``.

    Who has a reserved place can't lose it, and takes the place of a stranger when all are taken.
    ``standing_of`` says what the node's role knows of a peer.
    """

    def __init__(self, places: int, standing_of: Callable[[PeerId], Standing]) -> None:
        super().__init__(places)
        self._standing_of = standing_of
        self._reserved = max(1, int(places * RESERVED))

    def admit(self, newcomer: H, origin: Origin) -> tuple[bool, H | None]:
        """Whether a connection has a place now, and which one must be closed for it."""
        safe = self._safe() if not self.has_room() else set()

        def idlest(holders: Iterable[H]) -> H | None:
            standings = ((self._standing_of(each.peer) != "stranger", each) for each in holders)
            open_to_all = [(served, each.active_at, each) for served, each in standings if each not in safe]
            return min(open_to_all, key=lambda one: one[:2])[2] if open_to_all else None

        entered, victim = self.enter(newcomer, origin, idlest)
        if entered:
            return True, victim
        if self._may_reserve(newcomer):
            victim = self.largest(idlest)
        else:
            # Among origins with as few each, and within its own, a newcomer replaces what lies idle.
            others = (each for each in self if each not in safe and self._yields(each, origin))
            victim = min(others, key=lambda each: each.active_at, default=None)
        if victim is None:
            return False, None
        self.leave(victim)
        return self.enter(newcomer, origin, idlest)[0], victim

    def _yields(self, holder: H, origin: Origin) -> bool:
        theirs = self.origin(holder)
        if self._standing_of(holder.peer) != "stranger" or trio.current_time() - holder.active_at < IDLE_S:
            return False
        return theirs == origin or self.holds_more(theirs, origin)

    def _may_reserve(self, newcomer: H) -> bool:
        if not newcomer.inbound:
            return sum(not each.inbound for each in self) < self._reserved
        payers = [each for each in self if each.inbound and self._standing_of(each.peer) == "payer"]
        mine = sum(each.peer == newcomer.peer for each in payers)
        return (
            self._standing_of(newcomer.peer) == "payer"
            and mine < CONNECTIONS_PER_PAYER
            and len(payers) < self._reserved
        )

    def _safe(self) -> set[H]:
        """Those in reserved places: of each kind the ones that were active last."""
        dialled = sorted((each for each in self if not each.inbound), key=lambda each: -each.active_at)
        safe = set(dialled[: self._reserved])
        payers: dict[PeerId, list[H]] = {}
        for each in sorted(self, key=lambda one: -one.active_at):
            if each.inbound and self._standing_of(each.peer) == "payer":
                payers.setdefault(each.peer, []).append(each)
        both = [each for mine in payers.values() for each in mine[:CONNECTIONS_PER_PAYER]]
        return safe | set(both[: self._reserved])


IDLE_S: Final = 1.0
"""A connection on which nothing came or went for so long lies idle, whatever is open on it."""


# ---- streams


class StreamPlaces(FairShares[YamuxStream]):
    """Places for streams that peers opened, in all or of one protocol."""

    def __init__(self, places: int, standing_of: Callable[[PeerId], Standing]) -> None:
        super().__init__(places)
        self._standing_of = standing_of

    def admit(self, newcomer: YamuxStream, origin: Origin) -> tuple[bool, YamuxStream | None]:
        """Whether a stream has a place now, and which one must be reset for it.

        Of the origin that has most, the stream on which nothing came or went for longest gives way, and one
        of a peer that is served or pays only after the others: it may wait for its answer.
        """

        def idlest(streams: Collection[YamuxStream]) -> YamuxStream | None:
            return min(streams, key=lambda each: (self._standing_of(each.peer) != "stranger", each.active_at))

        return self.enter(newcomer, origin, idlest)
