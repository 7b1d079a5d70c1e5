"""``Allowance``: how much a store does for one peer, and for all of them together.

A peer has one allowance for all its streams. A signature takes a third of a millisecond to check, so they
have a rate of their own. One blob may take more bytes than are left; what it took is paid before the next.
Pure.
"""

from __future__ import annotations

from typing import Final

from p2pnode.bounded import TokenBucket

REQUESTS_PER_S: Final = 500.0
REQUESTS_BURST: Final = 2000.0
CHECKS_PER_S: Final = 100.0
CHECKS_BURST: Final = 400.0
"""Signatures of claims and entries."""
BYTES_PER_S: Final = float(16 << 20)
BYTES_BURST: Final = float(256 << 20)
EVERYONE: Final = 4.0
"""All peers together get so many times what one gets."""


class Allowance:
    """The buckets of one peer; with ``everyone``, those of all peers count too."""

    def __init__(self, everyone: Allowance | None = None) -> None:
        times = EVERYONE if everyone is None else 1.0
        self._everyone = everyone
        self._requests = TokenBucket(REQUESTS_PER_S * times, REQUESTS_BURST * times)
        self._checks = TokenBucket(CHECKS_PER_S * times, CHECKS_BURST * times)
        self._bytes = TokenBucket(BYTES_PER_S * times, BYTES_BURST * times)

    def request(self, now: float) -> float:
        """Seconds to wait before one more request; 0: it is taken."""
        return self._take("_requests", now)

    def check(self, now: float) -> float:
        """Seconds to wait before one more signature is checked; 0: it is taken."""
        return self._take("_checks", now)

    def flow(self, now: float) -> float:
        """Seconds to wait before more bytes may flow; 0: they may, and :meth:`spend` says how many."""
        return max(each.wait_s(now) for each in self._buckets("_bytes"))

    def spend(self, count: int) -> None:
        """So many bytes flow."""
        for each in self._buckets("_bytes"):
            each.spend(count)

    def _take(self, name: str, now: float) -> float:
        buckets = self._buckets(name)
        wait_s = max(each.wait_s(now) for each in buckets)
        if not wait_s:
            for each in buckets:
                each.spend(1)
        return wait_s

    def _buckets(self, name: str) -> list[TokenBucket]:
        return [getattr(each, name) for each in (self, self._everyone) if each is not None]
