"""Amounts of USDC in words. Integers all the way: no float touches money."""

from __future__ import annotations

from typing import Final

USDC: Final = 1_000_000
"""Token units in one USDC."""


def usdc_text(units: int) -> str:
    """``1250000`` is ``1.250000 USDC``: always six decimals, exact at any size."""
    whole, rest = divmod(abs(units), USDC)
    return f"{'-' if units < 0 else ''}{whole}.{rest:06d} USDC"
