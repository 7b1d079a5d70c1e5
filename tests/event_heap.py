"""A shell for many machines in one thread, on a clock of its own: a heap of what is due, and nothing else.

It drives the very machines that the node drives, thousands of them, without tasks, sockets or waiting. A
message arrives after the latency of its link; messages of one link stay in order. Two runs from one seed do
the same.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from p2pnode.ids import PeerId
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Effect,
    Emit,
    Event,
    Machine,
    Received,
    Send,
    SetTimer,
    StreamRef,
    TimerFired,
)


class EventHeap:
    """What is due, in the order in which it is due; of what is due at once, the first that was asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0
        """How many actions ran."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._due)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run ``action`` at ``when``, or now where that is over."""
        heapq.heappush(self._due, (max(when, self.now), next(self._numbers), action))

    def run_until(self, end: float) -> None:
        """Run what is due up to ``end``, also what comes up meanwhile. Then it is ``end``."""
        while self._due and self._due[0][0] <= end:
            self.now, _, action = heapq.heappop(self._due)
            self.done += 1
            action()
        self.now = max(self.now, end)


Emitted = Callable[[PeerId, Any], None]
Carry = Callable[[Any], Any]
"""What becomes of a message on its way: for example its bytes, decoded again."""


class MachineWorld:
    """Machines by peer id, and links between them.

    A message to somebody who isn't there is lost. ``latency_s`` gives the seconds from one peer to another;
    ``on_emit`` gets what a machine tells its role, and ``carry`` what travels.
    """

    def __init__(
        self,
        *,
        latency_s: Callable[[PeerId, PeerId], float] = lambda _from, _to: 0.05,
        on_emit: Emitted = lambda _peer, _value: None,
        carry: Carry = lambda message: message,
    ) -> None:
        self.heap = EventHeap()
        self.machines: dict[PeerId, Machine] = {}
        self.sent = 0
        """Messages that machines sent so far."""
        self._latency_s, self._on_emit, self._carry = latency_s, on_emit, carry
        self._timers: dict[tuple[PeerId, str], int] = {}
        self._settings = itertools.count()

    @property
    def now(self) -> float:
        """The seconds since the start."""
        return self.heap.now

    def add(self, peer: PeerId, machine: Machine, start: Iterable[Effect] = ()) -> None:
        """A machine; ``start`` is what it begins with."""
        self.machines[peer] = machine
        self._perform(peer, start)

    def remove(self, peer: PeerId) -> None:
        """It is gone, as after a crash: its timers are forgotten, and nobody is told."""
        del self.machines[peer]
        for key in [each for each in self._timers if each[0] == peer]:
            del self._timers[key]

    def give(self, peer: PeerId, event: Event) -> None:
        """Hand an event to a machine now, and perform what it answers; nothing happens where it is gone."""
        machine = self.machines.get(peer)
        if machine is not None:
            self._perform(peer, machine.handle(event, self.now))

    def at(self, when: float, peer: PeerId, event: Event) -> None:
        """Hand it over at ``when``."""
        self.heap.at(when, lambda: self.give(peer, event))

    def close(self, peer: PeerId, other: PeerId, stream: StreamRef = 0) -> None:
        """Tell ``peer`` that its stream with ``other`` is gone."""
        self.give(peer, Closed(other, stream, "lost"))

    def run_until(self, end: float) -> None:
        """Let time pass."""
        self.heap.run_until(end)

    def run_for(self, seconds: float) -> None:
        """The same, from now."""
        self.heap.run_until(self.now + seconds)

    def _perform(self, peer: PeerId, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer=to, stream=stream, message=message):
                    self.sent += 1
                    arrives = self.now + self._latency_s(peer, to)
                    carried = Received(peer, stream, self._carry(message))
                    self.heap.at(arrives, lambda to=to, carried=carried: self.give(to, carried))  # type: ignore[misc]
                case SetTimer(key=key, at=when):
                    setting = self._timers[peer, key] = next(self._settings)
                    self.heap.at(when, lambda key=key, setting=setting: self._fire(peer, key, setting))  # type: ignore[misc]
                case CancelTimer(key=key):
                    self._timers.pop((peer, key), None)
                case Emit(value=value):
                    self._on_emit(peer, value)

    def _fire(self, peer: PeerId, key: str, setting: int) -> None:
        if self._timers.get((peer, key)) == setting:
            del self._timers[peer, key]
            self.give(peer, TimerFired(key))
