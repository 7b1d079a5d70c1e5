"""The ``OrderBook`` seam: where an account's orders are written down before they are sent.

An order is one intention (a withdrawal, a settlement, a deployment) with one nonce and every transaction that
was ever signed for it. What stands in the book and has not ended may have been sent: it is looked for by its
hashes and by what used its nonce, and never ordered anew. ``payments/journal`` keeps one on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from p2pnode.chain.evm.transaction import Order, Signed

Ending: TypeAlias = Literal["done", "failed", "displaced", "given up"]
"""It was carried out; the contract refused it; another transaction has its nonce; its owner gave it up."""
HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SentOrder:
    """An order and all transactions signed for it, the cheapest first.

    ``since_block`` is the chain's height before it was sent.
    """

    id: str
    chain_id: int
    account: bytes
    nonce: int
    order: Order
    gas: int
    since_block: int
    versions: tuple[Signed, ...] = ()
    sent_at: int = 0
    """Epoch seconds."""
    genesis: bytes = b""
    """Of its chain, where that is known: one that was made anew has another, and the same number."""
    ending: Ending | None = None
    transaction: bytes | None = None
    """The one that was mined."""


class OrderBook(Protocol):
    """See the module. What is awaited is durable when it returns; it may raise ``StorageError``."""

    async def sending(self, order: SentOrder, version: Signed) -> None:
        """A transaction that is about to be sent for an order."""

    async def refused(self, version: Signed) -> None:
        """No node took it: it can't be mined."""

    async def ended(self, order: str, ending: Ending, transaction: bytes | None = None) -> None:
        """Nothing more is to be expected of an order."""

    async def take_over(self, chain_id: int, account: bytes) -> list[SentOrder]:
        """Orders that have not ended, of processes that have; the lowest nonce first. They are ours now."""


class NoOrderBook:
    """Of an account whose orders needn't outlive the process: tests, and chains in memory."""

    async def sending(self, order: SentOrder, version: Signed) -> None:
        """Not written down."""

    async def refused(self, version: Signed) -> None:
        """Not written down."""

    async def ended(self, order: str, ending: Ending, transaction: bytes | None = None) -> None:
        """Not written down."""

    async def take_over(self, chain_id: int, account: bytes) -> list[SentOrder]:
        """None."""
        del chain_id, account
        return []
