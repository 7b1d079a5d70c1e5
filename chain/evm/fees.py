"""EIP-1559 fees: what to offer, and how to raise an offer that was too low. Pure.

A replacement must raise both numbers: nodes ask for 10 % (geth) to 12.5 % (others).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

GWEI: Final = 10**9
TIP_FREE: Final = GWEI // 10
"""A tip up to this is offered whatever the base fee is."""
_RAISE_NUMERATOR: Final = 1125
_RAISE_DENOMINATOR: Final = 1000
_BLOCKS_OF_RISE: Final = 2
"""The offer covers a base fee that doubles, about six full blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """Wei per unit of gas: the most in all, and the block maker's part of it."""

    most: int
    tip: int


def offer(base_fee: int, tips: Sequence[int]) -> Fees:
    """For the next block: twice its base fee, and the median of the tips seen lately (1 wei at least).

    No more than the base fee, or a tenth of a gwei where that is more: a node that tells of higher tips,
    truly or not, must not make us burn what a session earns.
    """
    most = max(base_fee, TIP_FREE)
    tip = min(most, max(1, sorted(tips)[len(tips) // 2] if tips else 0))
    return Fees(most=_BLOCKS_OF_RISE * base_fee + tip, tip=tip)


def least_of(fees: Fees) -> int:
    """What the next block asks of an ``offer``."""
    return (fees.most - fees.tip) // _BLOCKS_OF_RISE + fees.tip


def capped(fees: Fees, most: int) -> Fees:
    """No more than ``most`` in all."""
    return Fees(most=min(fees.most, most), tip=min(fees.tip, most))


def raised(old: Fees, now: Fees, most: int) -> Fees | None:
    """A replacement's offer: an eighth above the old one, or today's if that is more; None if that is
    above ``most``."""
    least = Fees(most=_eighth_more(old.most), tip=_eighth_more(old.tip))
    if least.most > most:
        return None
    return capped(Fees(most=max(least.most, now.most), tip=max(least.tip, now.tip)), most)


def _eighth_more(wei: int) -> int:
    return -(-wei * _RAISE_NUMERATOR // _RAISE_DENOMINATOR) + (wei == 0)
