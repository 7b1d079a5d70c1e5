"""Percentiles, each of them a value that was there. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The least value that at least this share of all values does not pass; None of no values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Where half, 90% and 99% of the values lie: ``p50``, ``p90``, ``p99``; None of no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return {f"p{share}": round(percentile(ordered, share / 100) or 0.0, 3) for share in (50, 90, 99)}
