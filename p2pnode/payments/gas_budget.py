"""What gas means in USDC: the session fee that covers it, when a session pays for itself.

Pure integer arithmetic: gas in units, its price in wei, ether's price and all results in token units (1e-6
USDC), prices of tokens in token units per million. Rounded up where a host would otherwise lose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pnode.contract_rules import BPS, TOKENS_PER_PRICE, TREASURY_BPS, treasury_share

WEI_PER_ETHER: Final = 10**18
OPEN_GAS: Final = 122_000
SETTLE_GAS: Final = 81_000
SESSION_GAS: Final = OPEN_GAS + SETTLE_GAS
"""One open and one close, slots warm, as ``bench gas`` measures them."""
SETTLE_IN_BATCH_GAS: Final = 34_000
DAY_S: Final = 86_400


def session_fee_for(gas: int, gas_price_wei: int, ether_price_usdc_units: int) -> int:
    """What this much gas costs in token units, rounded up."""
    return -(-gas * gas_price_wei * ether_price_usdc_units // WEI_PER_ETHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class GasBudget:
    """What gas may cost a host. ``ether_price`` and ``day_max`` are token units; a price of 0 is not known,
    and then nothing is held against it.

    An open costs at most the session's fee; a settlement at most twice the fee (without a fee, a tenth of
    what the voucher is worth) while more than a day remains to its deadline, then more and more, up to
    half of what the voucher is worth: late, it is better to pay than to lose it. A day's budget stops
    opens, never settlements.
    """

    ether_price: int = 0
    day_max: int = 5_000_000

    @property
    def known(self) -> bool:
        """Whether the price of ether is known, so that wei can be compared with USDC."""
        return self.ether_price > 0

    def wei(self, units: int) -> int:
        """The wei that this many token units buy."""
        return units * WEI_PER_ETHER // self.ether_price

    def settle_max_wei(self, *, fee: int, worth: int, left_s: float) -> int:
        """The most a settlement may cost now, with ``left_s`` seconds to its deadline. The price is known."""
        least = 2 * fee or worth // 10
        most = max(least, worth // 2)
        late = int(min(DAY_S, max(0, DAY_S - left_s)))
        return self.wei(least + (most - least) * late // DAY_S)

    def why_not_open(self, *, fee: int, gas_price_wei: int, spent_day_wei: int) -> str:
        """Why no session of this fee is to be opened now; "" where it may."""
        if not self.known:
            return ""
        cost = gas_price_wei * (OPEN_GAS + SETTLE_IN_BATCH_GAS // 2)
        if fee > 0 and cost > self.wei(fee):
            return "gas costs more now than this host's session fee covers"
        if spent_day_wei + cost > self.wei(self.day_max):
            return "this host has spent its day's budget for gas"
        return ""


def settlements_left(ether_wei: int, gas_price_wei: int) -> int | None:
    """How many settlements a wallet can pay for, one by one, at this price of gas; None where it is free."""
    return ether_wei // (gas_price_wei * SETTLE_GAS) if gas_price_wei > 0 else None


def break_even_tokens(cost: int, price_out: int, session_fee: int = 0) -> int | None:
    """Output tokens after which the host's share (all of the fee, 90% of the rest) has paid ``cost`` token
    units; None if it never does."""
    missing = cost - session_fee
    if missing <= 0:
        return 0
    if price_out <= 0:
        return None
    earned = missing * BPS // (BPS - TREASURY_BPS)
    while earned - treasury_share(earned) < missing:
        earned += 1
    while earned - 1 - treasury_share(earned - 1) >= missing:
        earned -= 1
    return (earned - 1) * TOKENS_PER_PRICE // price_out + 1
