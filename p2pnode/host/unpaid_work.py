"""``UnpaidWork``: how much a host does for a payer, and for an origin, before anything is paid;
``CompileTurns``: whose prompt is compiled next.

To count a prompt is work: a template runs, a schema is compiled. Whoever has prompts counted that lead to
nothing (one that is refused, a quote that is not paid, a turn that is cancelled first) is let wait. For a
prompt that an engine then answers, its place is given back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import trio

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.errors import WireCode
from p2pnode.shares import Origin

PAYER_BURST: Final = 32
PAYER_PER_S: Final = 1.0
ORIGIN_BURST: Final = 256
"""An origin may be many people behind one router."""
ORIGIN_PER_S: Final = 8.0
FOLLOW_BYTES: Final = 256 << 10
"""What it costs to follow any grammar: a process is forked. A byte of a grammar costs about 0.1 µs."""
FOLLOWED_PER_S: Final = 4 << 20
"""Bytes of grammars: about a third of a processor. An honest answer goes on some times a second at most."""
FOLLOWED_BURST: Final = 32 << 20
_KNOWN_MAX: Final = 4096
TOO_MUCH: Final[tuple[WireCode, str]] = (
    "rate_limited",
    "too many of your prompts were counted and led to no answer: wait, or ask for less at once",
)


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


class CompileTurns:
    """Who may have a prompt compiled: a payer, or an origin that doesn't pay, has one at a time.

    An engine compiles one prompt after another. So a stranger's prompts wait for one another, and everybody
    else's waits for at most one of each stranger.

    A grammar is followed whenever an engine goes on after a pause, and its client decides how often that is.
    ``UnpaidWork`` counts no such work, so here everybody has so much of it a second, by what is followed.
    """

    def __init__(self) -> None:
        self._locks: dict[str, trio.Lock] = {}
        """Of those who have, or wait for, a turn."""
        self._followed: BoundedMap[str, TokenBucket] = BoundedMap(_KNOWN_MAX)

    @asynccontextmanager
    async def turn_of(self, who: Origin, *, follows: int = 0) -> AsyncIterator[None]:
        """Wait until the earlier prompts of ``who`` are compiled.

        ``follows``: bytes of a grammar that is followed through more of its answer; 0 where none is.
        """
        lock = self._locks.setdefault(who.near, trio.Lock())
        try:
            async with lock:
                if follows:
                    bucket = self._followed.use(who.near, lambda: TokenBucket(FOLLOWED_PER_S, FOLLOWED_BURST))
                    await trio.sleep(bucket.wait_s(trio.current_time()))
                    bucket.spend(FOLLOW_BYTES + follows)
                yield
        finally:
            # A lock that others wait for is theirs already. One that nobody holds is forgotten.
            if not lock.locked():
                self._locks.pop(who.near, None)
