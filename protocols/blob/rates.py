"""How much a store does for one peer, and for all of them together.

A peer has one allowance for all its streams. Signatures cost a third of a millisecond each, so they have
a rate of their own; bytes may run into debt by one blob, which is paid before the next. Pure.
"""

from __future__ import annotations

from typing import Final

REQUESTS_PER_S: Final = 500.0
REQUESTS_BURST: Final = 2000.0
CHECKS_PER_S: Final = 100.0
CHECKS_BURST: Final = 400.0
"""Signatures of claims and entries."""
BYTES_PER_S: Final = float(16 << 20)
BYTES_BURST: Final = float(256 << 20)
EVERYONE: Final = 4.0
"""All peers together get so many times what one gets."""


class Meter:
    """A token bucket that tells how long to wait."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, 0.0

    def wait_s(self, now: float) -> float:
        """0 when something may be taken now."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        return 0.0 if self._left >= 1 else (1 - self._left) / self._rate

    def take(self, amount: float) -> None:
        """Take it, into debt where it has to be."""
        self._left -= amount


class Allowance:
    """The meters of one peer; with ``everyone``, those of all peers count too."""

    def __init__(self, everyone: Allowance | None = None) -> None:
        times = EVERYONE if everyone is None else 1.0
        self._everyone = everyone
        self._requests = Meter(REQUESTS_PER_S * times, REQUESTS_BURST * times)
        self._checks = Meter(CHECKS_PER_S * times, CHECKS_BURST * times)
        self._bytes = Meter(BYTES_PER_S * times, BYTES_BURST * times)

    def request(self, now: float) -> float:
        """Seconds to wait before one more request; 0: it is taken."""
        return self._take("_requests", now)

    def check(self, now: float) -> float:
        """Seconds to wait before one more signature is checked; 0: it is taken."""
        return self._take("_checks", now)

    def flow(self, now: float) -> float:
        """Seconds to wait before more bytes may flow; 0: they may, and :meth:`spend` says how many."""
        return max(each.wait_s(now) for each in self._meters("_bytes"))

    def spend(self, count: int) -> None:
        """So many bytes flow."""
        for each in self._meters("_bytes"):
            each.take(count)

    def _take(self, name: str, now: float) -> float:
        meters = self._meters(name)
        wait_s = max(each.wait_s(now) for each in meters)
        if not wait_s:
            for each in meters:
                each.take(1)
        return wait_s

    def _meters(self, name: str) -> list[Meter]:
        return [getattr(each, name) for each in (self, self._everyone) if each is not None]
