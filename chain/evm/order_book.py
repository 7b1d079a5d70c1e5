"""The ``OrderBook`` seam: where an account's orders are written down before they are sent.

An order is one intention (a withdrawal, a settlement, a deployment) with one nonce and every transaction that
was ever signed for it. What stands in the book and has not ended may have been sent: it is looked for by its
hashes and by what used its nonce, and never ordered anew. ``payments/journal`` keeps one on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.fees import Fees
from p2pnode.errors import ChainError
from p2pnode.protocols.crypto import Signer, keccak256, recover_address

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


# EIP-1559 transactions, built and signed here: the key never enters web3. Pure but for ``eth_account``,
# imported when first used, which brings the typed transaction and its RLP.


_V_OFFSET = 27


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done, before nonce and fees: calldata for a contract, and the most gas it may take.

    Without ``to`` the data creates a contract. ``kind`` names the call, ``words`` say it to people.
    """

    to: bytes
    data: bytes
    gas_max: int
    kind: str = ""
    words: str = ""
    nonce: int | None = None
    """The only one that will do; None for any."""
    fee_max_wei: int | None = None
    """The most that it may cost; None for the sender's own bound."""

    def equals(self, other: Order) -> bool:
        """Whether the chain would do the same for both."""
        return (self.to, self.data) == (other.to, other.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A raw transaction, its hash, and what it offers."""

    raw: bytes
    hash: bytes
    fees: Fees


def sign_transaction(
    *, chain_id: int, account: bytes, sign: Signer, nonce: int, to: bytes, data: bytes, gas: int, fees: Fees
) -> Signed:
    """Type 2, no value, no access list. Raises ``ChainError`` if ``sign`` isn't ``account``'s."""
    from eth_account.typed_transactions.dynamic_fee_transaction import DynamicFeeTransaction

    fields = {
        "type": 2, "chainId": chain_id, "nonce": nonce, "to": to, "value": 0, "data": data, "gas": gas,
        "maxFeePerGas": fees.most, "maxPriorityFeePerGas": fees.tip,
    }  # fmt: skip
    digest = DynamicFeeTransaction.from_dict(fields).hash()
    signature = sign(digest)
    if recover_address(digest, signature) != account:
        msg = f"the wallet did not sign as {shown_address(account)}: open the keystore of that account"
        raise ChainError(msg)
    signed = fields | {
        "v": signature[64] - _V_OFFSET,
        "r": int.from_bytes(signature[:32], "big"),
        "s": int.from_bytes(signature[32:64], "big"),
    }
    raw = b"\x02" + DynamicFeeTransaction.from_dict(signed).payload()
    return Signed(raw=raw, hash=keccak256(raw), fees=fees)
