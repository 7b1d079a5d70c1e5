"""``TransactionPool``: transactions that wait to be mined on a development chain, with geth's checks.

Those that can run are mined at once, a block each, unless ``automine`` is off: then they wait for ``mine``,
so that a test can see a stuck transaction and replace it. Their number is bounded. This module knows nothing
of JSON.
"""

from __future__ import annotations

from typing import Any, Final

from p2pnode.chain.dev.embedded import BLOCK_GAS, EmbeddedChain
from p2pnode.chain.dev.jsonrpc import REFUSED, RpcRefusedError

WAITING_MAX: Final = 256
_BUMP_PERCENT: Final = 10


class TransactionPool:
    """See the module. Methods raise ``RpcRefusedError`` for a transaction that can't be taken."""

    def __init__(self, chain: EmbeddedChain) -> None:
        self.automine = True
        self._chain = chain
        self._waiting: dict[bytes, dict[int, Any]] = {}

    def submit(self, raw: bytes) -> bytes:
        """Take a signed transaction, and return its hash."""
        transaction = self._decoded(raw)
        self._check(transaction)
        mine = self._waiting.setdefault(bytes(transaction.sender), {})
        held = mine.get(transaction.nonce)
        if held is not None and held.hash == transaction.hash:
            raise RpcRefusedError(REFUSED, "already known")
        if held is not None and not _outbids(transaction, held):
            raise RpcRefusedError(REFUSED, "replacement transaction underpriced")
        if held is None and sum(map(len, self._waiting.values())) >= WAITING_MAX:
            raise RpcRefusedError(REFUSED, "txpool is full")
        mine[transaction.nonce] = transaction
        if self.automine:
            self.mine_ready()
        return bytes(transaction.hash)

    def mine(self) -> None:
        """Mine all that can run, a block each; an empty block if nothing can."""
        if not self.mine_ready():
            self._chain.mine()

    def clear(self) -> None:
        """Forget all transactions that wait."""
        self._waiting.clear()

    def next_nonce(self, account: bytes) -> int:
        """The first nonce that neither a block nor the pool has."""
        nonce, mine = self._chain.nonce(account), self._waiting.get(account, {})
        while nonce in mine:
            nonce += 1
        return nonce

    def find(self, transaction_hash: bytes) -> Any:
        """A waiting transaction, or None."""
        for mine in self._waiting.values():
            for transaction in mine.values():
                if transaction.hash == transaction_hash:
                    return transaction
        return None

    def _decoded(self, raw: bytes) -> Any:
        try:
            transaction = self._chain.evm.get_transaction_builder().decode(raw)
            transaction.validate()
            transaction.check_signature_validity()
            _ = transaction.sender
        except Exception as error:  # py-evm's decoder lets any error through
            msg = f"invalid transaction: {error}"
            raise RpcRefusedError(REFUSED, msg[:300]) from error
        return transaction

    def _check(self, transaction: Any) -> None:
        account = bytes(transaction.sender)
        nonce, held = self._chain.nonce(account), self._chain.ether(account)
        signed_for = transaction.chain_id
        if signed_for not in (None, self._chain.chain_id):
            msg = f"invalid chain id for signer: have {signed_for} want {self._chain.chain_id}"
            raise RpcRefusedError(REFUSED, msg)
        if transaction.nonce < nonce:
            msg = f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}"
            raise RpcRefusedError(REFUSED, msg)
        if transaction.gas > BLOCK_GAS:
            raise RpcRefusedError(REFUSED, "exceeds block gas limit")
        if transaction.gas < transaction.intrinsic_gas:
            msg = f"intrinsic gas too low: gas {transaction.gas}, minimum needed {transaction.intrinsic_gas}"
            raise RpcRefusedError(REFUSED, msg)
        if transaction.max_priority_fee_per_gas > transaction.max_fee_per_gas:
            raise RpcRefusedError(REFUSED, "max priority fee per gas higher than max fee per gas")
        if held < (wanted := _cost(transaction)):
            msg = (
                f"insufficient funds for gas * price + value: address 0x{account.hex()} "
                f"have {held} want {wanted}"
            )
            raise RpcRefusedError(REFUSED, msg)

    def mine_ready(self) -> int:
        """Mine all that can run; returns how many. One that its account can't pay for any more is dropped, as
        by geth."""
        mined = 0
        for account in list(self._waiting):
            mine = self._waiting[account]
            while (transaction := mine.get(nonce := self._chain.nonce(account))) is not None:
                if transaction.max_fee_per_gas < self._chain.base_fee:
                    break
                del mine[nonce]
                if self._chain.ether(account) >= _cost(transaction):
                    self._chain.apply(transaction)
                    mined += 1
            if not mine:
                del self._waiting[account]
        return mined


def _cost(transaction: Any) -> int:
    return int(transaction.value + transaction.gas * transaction.max_fee_per_gas)


def _outbids(new: Any, held: Any) -> bool:
    return all(
        getattr(new, name) * 100 >= getattr(held, name) * (100 + _BUMP_PERCENT)
        for name in ("max_fee_per_gas", "max_priority_fee_per_gas")
    )
