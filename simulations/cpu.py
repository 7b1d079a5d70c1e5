"""CPU time: what work costs a node, and that it does one thing after another. ``Cpu`` are the parameters.

The defaults are what ``p2pnode simulate calibrate`` measured on one of two virtual cores of an Intel Xeon
with CPython 3.11. A scenario without ``Cpu`` has nodes that work in no time. Not modelled: the engines' own
processors, and several cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2pnode.simulations.event_loop import EventLoop
from p2pnode.simulations.parameters import require_not_negative, require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Seconds of one core for each piece of work; ``speed`` 2 is a core that is twice as fast."""

    message_s: float = 23e-6
    """Reading, deciding about and handing on one message, without what follows."""
    decode_s: float = 6.4e-6
    """Parsing an RPC or an advert that was not seen before."""
    sign_s: float = 38e-6
    check_s: float = 118e-6
    """An Ed25519 signature."""
    speed: float = 1.0

    def __post_init__(self) -> None:
        require_not_negative(self, "message_s", "decode_s", "sign_s", "check_s")
        require_positive(self, "speed")

    def seconds(self, work_s: float) -> float:
        """How long this core takes for work of so many seconds."""
        return work_s / self.speed


class CpuQueue:
    """One node's core: what comes while it is busy waits, in order."""

    __slots__ = ("_charged_s", "_loop", "_waiting", "busy_s", "free_at")

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[float, Callable[..., object], tuple[Any, ...]]] = deque()
        self._charged_s = 0.0
        self.free_at = 0.0
        self.busy_s = 0.0
        """In all, so far."""

    def charge(self, seconds: float) -> None:
        """The piece of work that is being done costs so much more."""
        self._charged_s += seconds

    def run(self, cost_s: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do a piece of work as soon as the core is free. What it sends leaves when it is done."""
        if self._waiting or self.free_at > self._loop.now:
            if not self._waiting:
                self._loop.at(self.free_at, self._next)
            self._waiting.append((cost_s, action, arguments))
        else:
            self._do(cost_s, action, arguments)

    def done_at(self) -> float:
        """When the work that is being done will be done, with what it was charged so far."""
        return self._loop.now + self._charged_s

    def _do(self, cost_s: float, action: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._charged_s = cost_s
        action(*arguments)
        self.busy_s += self._charged_s
        self.free_at = self._loop.now + self._charged_s
        self._charged_s = 0.0

    def _next(self) -> None:
        self._do(*self._waiting.popleft())
        if self._waiting:
            self._loop.at(self.free_at, self._next)
