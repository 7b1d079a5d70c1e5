"""Small pure helpers that bound things: a token bucket, waits that double, a map that forgets.

Time is an argument, in seconds of any clock that its caller keeps to; a clock that steps back gives nobody
anything and takes nothing. It imports nothing of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
_DOUBLINGS_MAX: Final = 64
"""Beyond any ``max_s``; without it, 2 to the power of the failures would grow without bound."""
_BACKOFFS_MAX: Final = 1024


class TokenBucket:
    """``rate_per_s`` tokens come in each second, at most ``burst`` are kept; it is full at first."""

    __slots__ = ("_at", "_burst", "_left", "_rate_per_s")

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._left, self._at = burst, 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until there is one token; 0 when there is one now."""
        self._fill(now)
        return 0.0 if self._left >= 1 else (1 - self._left) / self._rate_per_s

    def take(self, now: float) -> bool:
        """Take one token; False when there is none."""
        self._fill(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _fill(self, now: float) -> None:
        # Compared, not by min and max: this runs for each message of gossip.
        passed_s = now - self._at
        self._at = now
        if passed_s > 0:
            left = self._left + passed_s * self._rate_per_s
            self._left = left if left < self._burst else self._burst  # noqa: FURB136

    def spend(self, amount: float) -> None:
        """Take so many tokens. It may run into debt, which is paid before the next token is there."""
        self._left -= amount


def backoff_s(failures: int, *, first_s: float, max_s: float) -> float:
    """The wait after a failure that ``failures`` others preceded: ``first_s``, doubled with each of them."""
    return min(max_s, first_s * 2.0 ** min(failures, _DOUBLINGS_MAX))


class Backoff:
    """The waits between attempts that fail in a row."""

    __slots__ = ("_first_s", "_max_s", "failures")

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s, self._max_s = first_s, max_s
        self.failures = 0
        """In a row, up to now."""

    def next_s(self, max_s: float | None = None) -> float:
        """The wait after one more failure; ``max_s`` bounds this one instead of what it was made with."""
        wait_s = backoff_s(
            self.failures, first_s=self._first_s, max_s=self._max_s if max_s is None else max_s
        )
        self.failures += 1
        return wait_s

    def reset(self) -> None:
        """An attempt succeeded."""
        self.failures = 0


class Backoffs(Generic[K]):
    """A :class:`Backoff` for each key that failed lately, of 1024 keys at most."""

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s, self._max_s = first_s, max_s
        self._known: BoundedMap[K, tuple[Backoff, float]] = BoundedMap(_BACKOFFS_MAX)

    def failed(self, key: K, now: float) -> None:
        """It is left alone from ``now`` on, each time longer."""
        backoff, _ = self._known.get(key) or (Backoff(self._first_s, self._max_s), 0.0)
        self._known.put(key, (backoff, now + backoff.next_s()))

    def succeeded(self, key: K) -> None:
        """Its failures are forgotten."""
        self._known.pop(key)

    def waits(self, key: K, now: float) -> bool:
        """Whether it is to be left alone at ``now``."""
        known = self._known.get(key)
        return known is not None and known[1] > now


class BoundedMap(Generic[K, V]):
    """A map of at most ``most`` keys: one more, and the key that was put longest ago is forgotten."""

    __slots__ = ("_items", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: dict[K, V] = {}

    def put(self, key: K, value: V) -> tuple[K, V] | None:
        """Put it as the newest one, also where it is already. Returns what was forgotten for it."""
        self._items.pop(key, None)
        self._items[key] = value
        if len(self._items) <= self._most:
            return None
        oldest = next(iter(self._items))
        return oldest, self._items.pop(oldest)

    def use(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made where there is none; it is the newest one from now on."""
        value = self._items[key] if key in self._items else make()
        self.put(key, value)
        return value

    def get(self, key: K) -> V | None:
        """The value of a key, or None. It stays as old as it is."""
        return self._items.get(key)

    def pop(self, key: K) -> V | None:
        """Remove a key; its value, or None."""
        return self._items.pop(key, None)

    def values(self) -> list[V]:
        """All values, the oldest first."""
        return list(self._items.values())

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        """The keys, the oldest first."""
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
