"""Numbers in sentences for people."""

from __future__ import annotations


def count_of(count: int, one: str, many: str | None = None) -> str:
    """``1 node``, ``2 nodes``, ``0 nodes``; ``many`` where an s is not enough."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"
