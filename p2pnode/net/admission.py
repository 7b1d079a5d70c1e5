"""``Admission``: which inbound connections are accepted: caps in all, per IP address, and on handshakes
under way.

A connection takes a handshake's place only after its first byte, and then waits when too many handshakes are
under way. A handshake that has lasted ``PATIENCE_S`` is dropped when another waits, and when too many
connections have sent nothing the oldest of them is dropped: an honest handshake takes milliseconds, so silent
and slow peers can't keep others out. This module knows nothing of sockets or peers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.limits import Limits

PATIENCE_S: Final = 1.0
PENDING_PER_HANDSHAKE: Final = 8
"""At most this many seconds of patience stand before the last in the queue: less than the deadline."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The place of one inbound connection; given back with :meth:`Admission.leave`."""

    ip: str
    drop: Callable[[], object]
    since: float = 0.0


class Admission:
    """Gives places to inbound connections."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._per_ip: Counter[str] = Counter()
        self._pending: dict[int, Ticket] = {}
        self._freed = trio.Event()
        self.handshakes: dict[int, Ticket] = {}
        self.refused: Counter[str] = Counter()

    def enter(self, ip: str, drop: Callable[[], object]) -> Ticket | None:
        """A ticket; None where the connection is refused, with the reason counted.

        ``drop`` must end that connection's handshake.
        """
        if self._per_ip[ip] >= self._limits.connections_inbound_per_ip:
            self.refused["per_ip"] += 1
            return None
        if len(self._pending) >= PENDING_PER_HANDSHAKE * self._limits.inbound_handshakes_max:
            oldest = self._pending.pop(next(iter(self._pending)))
            self.refused["silent"] += 1
            oldest.drop()
        ticket = Ticket(ip, drop)
        self._pending[id(ticket)] = ticket
        self._per_ip[ip] += 1
        return ticket

    async def begin(self, ticket: Ticket) -> None:
        """Wait until the handshake may begin. Call it after the first byte; the deadline is the caller's
        scope."""
        while len(self.handshakes) >= self._limits.inbound_handshakes_max:
            oldest = next(iter(self.handshakes.values()))
            if trio.current_time() >= oldest.since + PATIENCE_S:
                self.refused["slow_handshakes"] += 1
                self.settle(oldest)
                oldest.drop()
            else:
                with trio.move_on_at(oldest.since + PATIENCE_S):
                    await self._freed.wait()
        # No await since the loop found a place: two tasks can't take the same one.
        self._pending.pop(id(ticket), None)
        ticket.since = trio.current_time()
        self.handshakes[id(ticket)] = ticket

    def settle(self, ticket: Ticket) -> None:
        """Note that the handshake is over, whether it succeeded or not."""
        if self.handshakes.pop(id(ticket), None) is not None:
            self._freed.set()
            self._freed = trio.Event()

    def leave(self, ticket: Ticket) -> None:
        """Note that the connection is gone."""
        self.settle(ticket)
        self._pending.pop(id(ticket), None)
        self._per_ip[ticket.ip] -= 1
        if self._per_ip[ticket.ip] <= 0:
            del self._per_ip[ticket.ip]
