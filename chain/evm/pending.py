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

_LOOK_FIRST_S: Final = 4.0
_LOOK_MAX_S: Final = 60.0


@dataclass(slots=True, eq=False)
class Job:
    """An order and whoever waits for it."""

    order: Order
    done: trio.Event = field(default_factory=trio.Event)
    receipt: Receipt | None = None
    error: ChainError | None = None
    withdrawn: bool = False

    @property
    def waits(self) -> bool:
        """Whether anybody waits for it."""
        return not self.withdrawn and not self.done.is_set()

    def finish(self, receipt: Receipt) -> None:
        """It is mined, deep enough."""
        if not self.done.is_set():
            self.receipt = receipt
            self.done.set()

    def fail(self, error: ChainError) -> None:
        """It won't be, or nobody knows."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


@dataclass(slots=True, eq=False)
class Flight:
    """See the module. ``job`` is None where nobody waits: one that only fills a gap between nonces, and one
    that an earlier process sent. ``id`` is the order's name in the book."""

    id: str
    job: Job | None
    order: Order
    nonce: int
    gas: int
    since_block: int
    versions: list[Signed] = field(default_factory=list)
    taken: bool = False
    """A node has taken the last version."""
    replace_at: float = 0.0
    mined: Receipt | None = None
    unseen_since: float | None = None
    """Its nonce is used, and no node shows a receipt since then."""
    look_at: float = 0.0
    look_s: float = _LOOK_FIRST_S
    until_block: int = 0
    until: float = 0.0

    @property
    def last(self) -> Signed:
        """The best-paying version."""
        return self.versions[-1]

    def version(self, hash_: bytes) -> Signed:
        """The one that was mined."""
        return next(version for version in self.versions if version.hash == hash_)

    def seen(self, receipt: Receipt) -> None:
        """A node shows it in a block."""
        self.mined, self.unseen_since, self.look_s = receipt, None, _LOOK_FIRST_S

    def unseen(self, now: float) -> bool:
        """Whether it is time to ask in other ways what used its nonce, of which no receipt is shown.

        Nodes know a block sooner than its receipts, so the first time it is not; then less and less often.
        """
        if self.unseen_since is None:
            self.unseen_since, self.look_at = now, now + self.look_s
        if now < self.look_at:
            return False
        self.look_s = min(_LOOK_MAX_S, self.look_s * 2)
        self.look_at = now + self.look_s
        return True
