"""EIP-1559 fees: what to offer, and how to raise an offer that was too low. Pure.

A replacement must raise both numbers: geth asks for 10 % more, other nodes for up to 12.5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

GWEI: Final = 10**9
TIP_FREE: Final = GWEI // 10
"""A tip up to this many wei may be offered even where the base fee is lower."""
_RAISE_NUMERATOR: Final = 1125
_RAISE_DENOMINATOR: Final = 1000
_BLOCKS_OF_RISE: Final = 2
"""An offer covers twice the base fee, which takes about six full blocks to double."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """Wei per unit of gas: the most that is paid, and the block maker's part of it."""

    most: int
    tip: int


def offer(base_fee: int, tips: Sequence[int]) -> Fees:
    """The fees for the next block: twice its base fee plus a tip, the median of recent ``tips``.

    The tip is at least 1 wei, and at most the base fee, or a tenth of a gwei where that is more: a node that
    reports high tips must not make us spend what a session earns.
    """
    most = max(base_fee, TIP_FREE)
    tip = min(most, max(1, sorted(tips)[len(tips) // 2] if tips else 0))
    return Fees(most=_BLOCKS_OF_RISE * base_fee + tip, tip=tip)


def least_of(fees: Fees) -> int:
    """What the next block takes of an ``offer``: its base fee and the tip."""
    return (fees.most - fees.tip) // _BLOCKS_OF_RISE + fees.tip


def capped(fees: Fees, most: int) -> Fees:
    """The same fees, but no more than ``most`` in all."""
    return Fees(most=min(fees.most, most), tip=min(fees.tip, most))


def raised(old: Fees, now: Fees, most: int) -> Fees | None:
    """A replacement's fees: an eighth above ``old``, or ``now`` if that is more; None if above ``most``."""
    least = Fees(most=_eighth_more(old.most), tip=_eighth_more(old.tip))
    if least.most > most:
        return None
    return capped(Fees(most=max(least.most, now.most), tip=max(least.tip, now.tip)), most)


def _eighth_more(wei: int) -> int:
    return -(-wei * _RAISE_NUMERATOR // _RAISE_DENOMINATOR) + (wei == 0)
