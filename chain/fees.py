"""What gas means in USDC: the session fee that covers it, when a session pays for itself, what to ask.

Pure integer arithmetic: gas in units, its price in wei, ether's price and all results in token units (1e-6
USDC), prices of tokens in token units per million. Rounded up where a host would otherwise lose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pnode.chain.memory.market_rules import SESSION_FEE_MAX

WEI_PER_ETHER: Final = 10**18
USDC_DIGITS: Final = 6
TOKENS_PER_PRICE: Final = 10**6
SESSION_GAS: Final = 122_000 + 81_000
"""One open and one close, slots warm, as ``bench gas`` measures them."""


def session_fee_for(gas: int, gas_price_wei: int, ether_price_usdc_units: int) -> int:
    """What this gas costs in token units, rounded up."""
    return -(-gas * gas_price_wei * ether_price_usdc_units // WEI_PER_ETHER)


def break_even_tokens(cost: int, price_out: int, session_fee: int = 0) -> int | None:
    """Output tokens after which the host's share (all of the fee, 90% of the rest) has paid ``cost`` token
    units; None if it never does."""
    missing = cost - session_fee
    if missing <= 0:
        return 0
    if price_out <= 0:
        return None
    earned = missing * 10 // 9
    while earned - earned // 10 < missing:
        earned += 1
    while earned - 1 - (earned - 1) // 10 >= missing:
        earned -= 1
    return (earned - 1) * TOKENS_PER_PRICE // price_out + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """``price_in`` and ``price_out`` are the market's medians over ``asked`` offers (None: nobody asks for
    money). ``session_fee`` covers ``gas_cost``, unless that is above what the contract allows."""

    price_in: int | None
    price_out: int | None
    asked: int
    session_fee: int
    gas_cost: int

    @property
    def fee_covers_gas(self) -> bool:
        """False where gas is so dear that a short session loses money."""
        return self.session_fee >= self.gas_cost


def suggest_price(
    offers: Iterable[tuple[int, int]],
    *,
    gas_price_wei: int,
    ether_price_usdc_units: int,
    gas: int = SESSION_GAS,
) -> Suggestion:
    """From the offers seen for a model (price in, price out) and what a session's gas costs. Free offers are
    left out: they say nothing of a price."""
    paid = [offer for offer in offers if offer != (0, 0)]
    cost = session_fee_for(gas, gas_price_wei, ether_price_usdc_units)
    return Suggestion(
        price_in=_median([price_in for price_in, _ in paid]),
        price_out=_median([price_out for _, price_out in paid]),
        asked=len(paid),
        session_fee=min(cost, SESSION_FEE_MAX),
        gas_cost=cost,
    )


def _median(values: list[int]) -> int | None:
    """Of an even number, the mean of the two in the middle, rounded down."""
    if not values:
        return None
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2
