"""One transaction on its way: what was sent for it, and who waits. State only; ``sender.py`` acts.

A flight has one nonce and any number of versions, each paying more than the one before; any may be mined.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

from p2pnode.chain.evm.node import Receipt
from p2pnode.chain.evm.transaction import Order, Signed
from p2pnode.errors import ChainError

MISSED_S: Final = 15.0
"""A nonce is used and none of our versions is found: so long, until it is believed. Nodes know a block
sooner than its receipts, and an order believed lost is carried out once more."""


@dataclass(slots=True, eq=False)
class Job:
    """An order and whoever waits for it."""

    order: Order
    done: trio.Event = field(default_factory=trio.Event)
    receipt: Receipt | None = None
    error: ChainError | None = None
    withdrawn: bool = False

    def finish(self, receipt: Receipt) -> None:
        """It is mined, deep enough."""
        self.receipt = receipt
        self.done.set()

    def fail(self, error: ChainError) -> None:
        """It won't be."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


@dataclass(slots=True, eq=False)
class Flight:
    """See the module. ``job`` is None for one that only fills a gap between nonces."""

    job: Job | None
    order: Order
    nonce: int
    gas: int
    versions: list[Signed] = field(default_factory=list)
    taken: bool = False
    """A node has taken the last version."""
    replace_at: float = 0.0
    mined: Receipt | None = None
    missed: tuple[float, int] | None = None
    until_block: int = 0
    until: float = 0.0

    @property
    def last(self) -> Signed:
        """The best-paying version."""
        return self.versions[-1]

    def version(self, hash_: bytes) -> Signed:
        """The one that was mined."""
        return next(version for version in self.versions if version.hash == hash_)

    def miss(self, now: float, height: int, confirmations: int) -> bool:
        """Another transaction seems to have our nonce: is it certain by now?"""
        if self.missed is None:
            self.missed = now, height
        since, block = self.missed
        return now >= since + MISSED_S and height >= block + confirmations - 1
