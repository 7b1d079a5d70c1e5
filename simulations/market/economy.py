"""What hosts ask and why they stay: prices, what a host costs its owner, entry and exit. Pure.

Prices are token units (1e-6 USDC) per million tokens, costs token units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypeAlias

from p2pnode.contract_rules import SESSION_FEE_MAX, TOKENS_PER_PRICE, treasury_share
from p2pnode.simulations.parameters import require_not_negative, require_positive, require_shares

Pricing: TypeAlias = Literal["fixed", "undercut", "load"]
_BUSY: Final = 0.8
_QUIET: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Economy:
    """``pricing``: ``fixed`` never changes; ``undercut`` goes below the cheapest other offer that a host has
    heard of; ``load`` asks more when the engine is busy and less when it is not. Both change by at most
    ``reprice_step`` at a time and never ask less than an answer costs their owner.

    ``price_spread`` is the sigma of a lognormal factor by which hosts differ at the beginning. A host leaves
    when it has lost money for ``exit_after_s`` (0: never); another one comes each ``entry_interval_s`` (0:
    none), while the hosts that are there earn more than they cost.
    """

    price_in: int = 200_000
    price_out: int = 600_000
    price_spread: float = 0.2
    session_fee: int = 2_000
    free_share: float = 0.0
    """The share of hosts that ask for nothing."""
    pricing: Pricing = "fixed"
    reprice_interval_s: float = 300.0
    reprice_step: float = 0.05
    host_cost_per_hour: int = 0
    """What an hour costs a host's owner, used or not."""
    cost_in: int = 20_000
    """What a million tokens of input cost the owner."""
    cost_out: int = 100_000
    exit_after_s: float = 0.0
    entry_interval_s: float = 0.0
    wallet: int = 20_000_000
    """What each client has at the beginning, in token units."""

    def __post_init__(self) -> None:
        require_shares(self, "free_share", "reprice_step")
        require_positive(self, "reprice_interval_s")
        require_not_negative(
            self, "price_in", "price_out", "price_spread", "session_fee", "host_cost_per_hour", "cost_in",
            "cost_out", "exit_after_s", "entry_interval_s", "wallet",
        )  # fmt: skip
        if self.session_fee > SESSION_FEE_MAX:
            msg = f"session_fee is {self.session_fee}: the contract takes {SESSION_FEE_MAX} at most"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Prices:
    """What a host asks. All 0: it is free."""

    price_in: int
    price_out: int
    session_fee: int

    @property
    def free(self) -> bool:
        """Whether it asks for nothing."""
        return not (self.price_in or self.price_out)

    def scaled(self, factor: float, economy: Economy) -> Prices:
        """The prices times ``factor``, at least what an answer costs the owner."""
        return Prices(
            max(economy.cost_in, round(self.price_in * factor)),
            max(economy.cost_out, round(self.price_out * factor)),
            self.session_fee,
        )


def spread_by(sigma: float, random: Random) -> float:
    """A lognormal factor whose median is 1."""
    return math.exp(random.gauss(0, sigma)) if sigma else 1.0


def first_prices(economy: Economy, random: Random) -> Prices:
    """What a host asks when it comes."""
    if random.random() < economy.free_share:
        return Prices(0, 0, 0)
    factor = spread_by(economy.price_spread, random)
    return Prices(economy.price_in, economy.price_out, economy.session_fee).scaled(factor, economy)


def reprice(economy: Economy, now: Prices, *, others_out: Iterable[int], busy: float) -> Prices:
    """What a host asks from now on. ``others_out``: output prices of other hosts' offers of its model that it
    knows of; ``busy``: the share of its slots that were used since the last time."""
    if now.free or economy.pricing == "fixed":
        return now
    step = economy.reprice_step
    if economy.pricing == "load":
        factor = 1 + step if busy > _BUSY else 1 - step if busy < _QUIET else 1.0
        return now.scaled(factor, economy)
    cheapest = min((price for price in others_out if price > 0), default=None)
    if cheapest is None or cheapest > now.price_out:
        return now.scaled(1 + step, economy) if busy > _BUSY else now
    wanted = cheapest * (1 - step) / now.price_out
    return now.scaled(max(1 - step, wanted), economy)


@dataclass(slots=True)
class Owner:
    """What a host's owner earned and paid so far, in token units."""

    since_s: float
    earned: int = 0
    """The host's own part, without the treasury's."""
    tokens_in: int = 0
    tokens_out: int = 0
    gas: int = 0
    """What it paid for gas, where the price of ether is known."""
    left: int = 0
    """How often sessions were left with the host."""
    postponed: int = 0
    """How many settlements waited for cheaper gas."""
    losing_since_s: float | None = None

    def settled(self, amount: int, session_fee: int) -> None:
        """A session was settled at ``amount``."""
        self.earned += amount - treasury_share(amount - session_fee)

    def costs(self, economy: Economy, now: float) -> int:
        """What the host cost so far."""
        tokens = self.tokens_in * economy.cost_in + self.tokens_out * economy.cost_out
        running = round(economy.host_cost_per_hour * (now - self.since_s) / 3600)
        return running + tokens // TOKENS_PER_PRICE + self.gas

    def profit(self, economy: Economy, now: float) -> int:
        """Earnings less costs."""
        return self.earned - self.costs(economy, now)

    def leaves(self, economy: Economy, now: float) -> bool:
        """Whether the owner gives up now."""
        if not economy.exit_after_s:
            return False
        if self.profit(economy, now) >= 0:
            self.losing_since_s = None
            return False
        if self.losing_since_s is None:
            self.losing_since_s = now
        return now - self.losing_since_s >= economy.exit_after_s
