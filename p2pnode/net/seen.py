"""Which messages were seen lately: bounded in time and number, on trio's clock.

Stands in for the library's cache, which starts a thread for each pubsub and never ends it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import trio

SEEN_MAX: Final = 16384


class SeenMessages:
    """``add`` says whether the id is new."""

    def __init__(self, ttl: int, sweep_interval: int = 60) -> None:
        del sweep_interval  # in the library's signature
        self._ttl_s = ttl
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, key: bytes) -> bool:
        """Seen now; forgotten ``ttl`` seconds later, or when too many came after it."""
        self._sweep()
        new = key not in self._until
        self._until[key] = trio.current_time() + self._ttl_s
        self._until.move_to_end(key)
        if len(self._until) > SEEN_MAX:
            self._until.popitem(last=False)
        return new

    def has(self, key: bytes) -> bool:
        """Whether it was seen within ``ttl``."""
        return self._until.get(key, 0.0) > trio.current_time()

    def length(self) -> int:
        """How many are kept."""
        return len(self._until)

    def stop(self) -> None:
        """There is nothing to stop."""

    def _sweep(self) -> None:
        now = trio.current_time()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
