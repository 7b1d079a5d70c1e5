"""Orders, the EIP-1559 transactions signed for them, and the ``OrderBook`` seam, where both are written down
before they are sent.

An order is one intention (a withdrawal, a settlement, a deployment) with one nonce and every transaction that
was ever signed for it. An order in the book that has not ended may have been sent: it is looked for by its
hashes and by what used its nonce, and never ordered anew. ``payments/journal`` keeps a book on the disk.

Transactions are signed here, so that the key never enters web3. ``eth_account`` encodes them; it is imported
when the first one is signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.fees import Fees
from p2pnode.errors import ChainError
from p2pnode.protocols.crypto import Signer, keccak256, recover_address

Ending: TypeAlias = Literal["done", "failed", "displaced", "given up"]
"""It was carried out; the contract refused it; another transaction used its nonce; its owner gave it up."""
HASH_BYTES: Final = 32
_V_OFFSET: Final = 27


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done, without nonce and fees: calldata for a contract, and the most gas it may take.

    Without ``to`` the data creates a contract. ``kind`` names the call; ``words`` describe it to people.
    """

    to: bytes
    data: bytes
    gas_max: int
    kind: str = ""
    words: str = ""
    nonce: int | None = None
    """The only nonce it may have; None for any."""
    fee_max_wei: int | None = None
    """The most that it may cost; None where only the sender's own bound holds."""

    def equals(self, other: Order) -> bool:
        """Whether the chain would do the same for both."""
        return (self.to, self.data) == (other.to, other.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransaction:
    """A raw transaction, its hash, and the fees it offers."""

    raw: bytes
    hash: bytes
    fees: Fees


def sign_transaction(
    *, chain_id: int, account: bytes, sign: Signer, nonce: int, to: bytes, data: bytes, gas: int, fees: Fees
) -> SignedTransaction:
    """Sign one of type 2, without value or access list. Raises ``ChainError`` if another key signed."""
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
    return SignedTransaction(raw=raw, hash=keccak256(raw), fees=fees)


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
    versions: tuple[SignedTransaction, ...] = ()
    sent_at: int = 0
    """Epoch seconds."""
    genesis: bytes = b""
    """Its chain's first block's hash, where known: a chain made anew has another, and the same number."""
    ending: Ending | None = None
    transaction: bytes | None = None
    """The hash of the one that was mined."""


class OrderBook(Protocol):
    """See the module. What a method wrote is durable when it returns. Each may raise ``StorageError``."""

    async def sending(self, order: SentOrder, version: SignedTransaction) -> None:
        """Note a transaction that is about to be sent for an order."""

    async def refused(self, version: SignedTransaction) -> None:
        """Note that no node took it, so that it can't be mined."""

    async def ended(self, order: str, ending: Ending, transaction: bytes | None = None) -> None:
        """Note that an order has ended, and how."""

    async def take_over(self, chain_id: int, account: bytes) -> list[SentOrder]:
        """Take over the open orders of processes that have ended; the lowest nonce comes first."""


class NoOrderBook:
    """For an account whose orders needn't outlive the process: in tests, and on chains in memory."""

    async def sending(self, order: SentOrder, version: SignedTransaction) -> None:
        """Not written down."""

    async def refused(self, version: SignedTransaction) -> None:
        """Not written down."""

    async def ended(self, order: str, ending: Ending, transaction: bytes | None = None) -> None:
        """Not written down."""

    async def take_over(self, chain_id: int, account: bytes) -> list[SentOrder]:
        """No orders."""
        del chain_id, account
        return []
