"""``UnpaidWork``: how much a host does for a payer, and for an origin, before anything is paid.

To count a prompt is work: a template runs, a schema is compiled. Whoever has prompts counted that lead to
nothing (one that is refused, a quote that is not paid, a turn that is cancelled first) is let wait. For a
prompt that an engine then answers, its place is given back. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.shares import Origin

PAYER_BURST: Final = 32
PAYER_PER_S: Final = 1.0
ORIGIN_BURST: Final = 256
"""An origin may be many people behind one router."""
ORIGIN_PER_S: Final = 8.0
_KNOWN_MAX: Final = 4096


class UnpaidWork:
    """Of one host."""

    def __init__(self) -> None:
        self._buckets: BoundedMap[str, TokenBucket] = BoundedMap(_KNOWN_MAX)

    def begin(self, origin: Origin, payer: Origin | None, now: float) -> float:
        """A prompt is to be counted. Returns 0, or the seconds after which it may be asked again."""
        buckets = list(self._of(origin, payer))
        wait_s = max(bucket.wait_s(now) for bucket in buckets)
        if not wait_s:
            for bucket in buckets:
                bucket.spend(1)
        return wait_s

    def paid(self, origin: Origin, payer: Origin | None) -> None:
        """The prompt's answer begins: its count was no work for nothing."""
        for bucket in self._of(origin, payer):
            bucket.spend(-1)

    def _of(self, origin: Origin, payer: Origin | None) -> Iterable[TokenBucket]:
        yield self._buckets.use(origin.near, lambda: TokenBucket(ORIGIN_PER_S, ORIGIN_BURST))
        if payer is not None:
            yield self._buckets.use(payer.near, lambda: TokenBucket(PAYER_PER_S, PAYER_BURST))
