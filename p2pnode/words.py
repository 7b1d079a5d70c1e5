"""Numbers in sentences for people."""

from __future__ import annotations


def count_of(count: int, one: str, many: str | None = None) -> str:
    """``1 node``, ``2 nodes``, ``0 nodes``; ``many`` where an s is not enough."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def span(seconds: float) -> str:
    """About how long that is, in one unit: 90 seconds, 2 hours, 1 day."""
    for name, unit in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 0.95 * unit * (2 if name == "minute" else 1):
            return count_of(max(1, round(seconds / unit)), name)
    return count_of(round(seconds), "second")
