"""``Broadcaster``: sends an account's transactions to the node. It signs them, writes them into the order
book, sends their bytes, reads refusals and receipts, and finds out which transaction used a nonce.

``PendingTransaction`` is the state of one of them: one nonce and any number of versions. Each version pays
more than the one before, and any of them may be mined. When something is done is decided elsewhere:
in ``nonce_manager.py`` and ``reorg_watcher.py``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.fees import Fees, capped, least_of
from p2pnode.chain.evm.node import EvmNode, MinedTransaction, Receipt
from p2pnode.chain.evm.order_book import Order, OrderBook, SentOrder, SignedTransaction, sign_transaction
from p2pnode.chain.evm.rpc_answers import RpcError, refusal_of
from p2pnode.chain.ledger import NO_REASON, GasTooDearError, RevertedError
from p2pnode.errors import ChainError, StorageError
from p2pnode.protocols.crypto import Signer

_ETHER_DIGITS: Final = 18
Submission: TypeAlias = Literal["taken", "unsure", "nonce_used", "nonce_taken", "fee_too_low"]
"""How a node answered: it took the transaction; it may have; the nonce is in a block already; the nonce is
another transaction's in the pool; the fee is too low for it."""
_ASK_FIRST_S: Final = 4.0
_ASK_MAX_S: Final = 60.0


@dataclass(slots=True, eq=False)
class WaitingOrder:
    """An order, and the task that waits for its end."""

    order: Order
    done: trio.Event = field(default_factory=trio.Event)
    receipt: Receipt | None = None
    error: ChainError | None = None
    withdrawn: bool = False

    @property
    def waits(self) -> bool:
        """Whether the task still waits."""
        return not self.withdrawn and not self.done.is_set()

    def finish(self, receipt: Receipt) -> None:
        """Give the receipt of a transaction that is mined and deep enough."""
        if not self.done.is_set():
            self.receipt = receipt
            self.done.set()

    def fail(self, error: ChainError) -> None:
        """Raise ``error`` in the task that waits."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


@dataclass(slots=True, eq=False)
class PendingTransaction:
    """See the module. ``id`` is the order's name in the book.

    ``waiting`` is None where nobody waits: the transaction only fills a gap between nonces, or an earlier
    process sent it.
    """

    id: str
    waiting: WaitingOrder | None
    order: Order
    nonce: int
    gas: int
    since_block: int
    versions: list[SignedTransaction] = field(default_factory=list)
    taken: bool = False
    """A node has taken the last version."""
    replace_at: float = 0.0
    mined: Receipt | None = None
    unseen_since: float | None = None
    """Since when its nonce is used and no node shows a receipt."""
    ask_at: float = 0.0
    """When to ask next, in other ways, which transaction used its nonce."""
    ask_pause_s: float = _ASK_FIRST_S
    until_block: int = 0
    """Watched for reorganisations up to this block, or up to the time ``until``."""
    until: float = 0.0

    @property
    def last(self) -> SignedTransaction:
        """The best-paying version."""
        return self.versions[-1]

    def version(self, hash_: bytes) -> SignedTransaction:
        """The version with this hash."""
        return next(version for version in self.versions if version.hash == hash_)

    def seen(self, receipt: Receipt) -> None:
        """Note that a node shows it in a block."""
        self.mined, self.unseen_since, self.ask_pause_s = receipt, None, _ASK_FIRST_S

    def unseen(self, now: float) -> bool:
        """Whether it is time to ask in other ways which transaction used its nonce.

        Nodes know a block sooner than its receipts, so the first call says no; later calls say yes less and
        less often.
        """
        if self.unseen_since is None:
            self.unseen_since, self.ask_at = now, now + self.ask_pause_s
        if now < self.ask_at:
            return False
        self.ask_pause_s = min(_ASK_MAX_S, self.ask_pause_s * 2)
        self.ask_at = now + self.ask_pause_s
        return True


class RejectedError(ChainError):
    """A node refuses these bytes. ``doubt``: another node may have taken them in an earlier try."""

    def __init__(self, message: str, *, doubt: bool) -> None:
        super().__init__(message)
        self.doubt = doubt


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcaster:
    """One account on one chain. Both bounds are in wei: per gas, and per transaction (None: no bound)."""

    node: EvmNode
    chain_id: int
    account: bytes
    sign: Signer
    book: OrderBook
    gas_price_max_wei: int
    transaction_fee_max_wei: int | None
    gas_margin_percent: int

    async def gas(self, order: Order) -> int:
        """The estimate, with a margin. Raises ``RevertedError`` where the transaction would fail."""
        needed = await self.node.estimate(order.to, order.data, sender=self.account)
        if needed > order.gas_max:
            msg = f"it would take {needed} gas, more than the {order.gas_max} it may: nothing was sent"
            raise ChainError(msg)
        return min(order.gas_max, needed + needed * self.gas_margin_percent // 100)

    def price_max(self, gas: int, order: Order) -> int:
        """The most that a transaction which may take ``gas`` may offer, in wei per gas."""
        bounds = [each for each in (self.transaction_fee_max_wei, order.fee_max_wei) if each is not None]
        return min([self.gas_price_max_wei, *(each // gas for each in bounds)])

    async def fees(self, gas: int, order: Order) -> Fees:
        """The fees to offer now. Raises ``ChainError`` when the next block costs more than may be offered."""
        fees, most = await self.node.fees(), self.price_max(gas, order)
        if order.fee_max_wei is not None and least_of(fees) > most:
            msg = f"gas costs {least_of(fees)} wei now: to {order.words} would cost more than it is worth yet"
            raise GasTooDearError(msg)
        least = least_of(fees)
        if least > most:
            msg = (
                f"gas costs {least} wei now, and {gas} gas may cost at most {most} wei each: nothing was "
                "sent, try again later, or raise gas_price_max_wei or transaction_fee_max_wei in the chain "
                "profile"
            )
            raise ChainError(msg)
        return capped(fees, most)

    async def broadcast(
        self, sent: PendingTransaction, fees: Fees, *, reserved_wei: int = 0
    ) -> tuple[Submission, bool]:
        """Sign a new version, write it into the book, and send it. It counts as sent whatever the node says.

        ``reserved_wei``: what other pending transactions may take. Returns and raises what ``send`` does.
        """
        signed = sign_transaction(
            chain_id=self.chain_id, account=self.account, sign=self.sign, nonce=sent.nonce,
            to=sent.order.to, data=sent.order.data, gas=sent.gas, fees=fees,
        )  # fmt: skip
        # In the book before it is sent: a process that dies in between leaves an order that the next process
        # finds. In the other order, what was sent could be paid for twice.
        await self._booked(sent, signed)
        sent.versions.append(signed)
        try:
            return await self.send(sent, signed, reserved_wei=reserved_wei)
        except RejectedError as error:
            if not error.doubt:
                sent.versions.remove(signed)
                with suppress(StorageError):  # later a node is asked for it in vain, which costs one request
                    await self.book.refused(signed)
            raise

    async def _booked(self, sent: PendingTransaction, signed: SignedTransaction) -> None:
        order = SentOrder(
            id=sent.id, chain_id=self.chain_id, account=self.account, nonce=sent.nonce,
            order=sent.order, gas=sent.gas, since_block=sent.since_block,
        )  # fmt: skip
        try:
            await self.book.sending(order, signed)
        except StorageError as error:
            msg = f"nothing was sent, because the order could not be written to disk: {error}"
            raise ChainError(msg) from error

    async def send(
        self, sent: PendingTransaction, signed: SignedTransaction, *, reserved_wei: int = 0
    ) -> tuple[Submission, bool]:
        """Send the bytes. Returns the node's answer, and whether an earlier try may have been taken.

        Raises ``RejectedError`` where the node refuses these bytes for good.
        """
        sent.taken = False
        try:
            await self.node.send(signed.raw)
        except RpcError as error:
            refusal = refusal_of(error)
            if refusal == "no_ether":
                needed = sent.gas * signed.fees.most + reserved_wei
                raise RejectedError(await self._too_poor(needed), doubt=error.doubt) from error
            if refusal == "other":
                raise RejectedError(str(error), doubt=error.doubt) from error
            if refusal != "known":
                return refusal, error.doubt
        except ChainError:
            return "unsure", True
        sent.taken = True
        return "taken", False

    async def receipt(self, sent: PendingTransaction) -> Receipt | None:
        """The receipt of the version that was mined; None if no node shows one."""
        for version in reversed(sent.versions):
            receipt = await self.node.receipt(version.hash)
            if receipt is not None:
                return receipt
        return None

    async def nonce_user(self, sent: PendingTransaction, height: int) -> MinedTransaction | None:
        """The transaction that used its nonce, where no receipt is shown; None while no node can say."""
        for version in reversed(sent.versions):
            block = await self.node.block_of(version.hash)
            if block is not None:
                return MinedTransaction(transaction=version.hash, block=block)
        try:
            return await self.node.holder(self.account, sent.nonce, sent.since_block, height)
        except ChainError:
            return None  # the node has no state of blocks that old, or can't be reached now

    async def receipt_from_logs(self, used_by: MinedTransaction) -> Receipt | None:
        """A receipt made from a transaction's events; None if it left none, as a transaction that failed."""
        logs = await self.node.logs_of(used_by)
        if not logs:
            return None
        return Receipt(
            hash=used_by.transaction, block=used_by.block, block_hash=None, succeeded=True, gas_used=None,
            fee_wei=None, logs=logs,
        )  # fmt: skip

    async def revert_of(self, sent: PendingTransaction, receipt: Receipt) -> RevertedError:
        """Why it failed. Asks it again as a call, on the state after the block it failed in, then before."""
        for block in (receipt.block, receipt.block - 1):
            try:
                await self.node.call(
                    sent.order.to, sent.order.data, sender=self.account, gas=sent.gas, which=block
                )
            except RevertedError as error:
                return RevertedError(error.reason, receipt.gas_used or 0)
            except RpcError:
                break  # the node has no state of that block any more
        used = receipt.gas_used or 0
        starved = used >= sent.gas - sent.gas // 64
        return RevertedError("out of gas" if starved else NO_REASON, used)

    async def _too_poor(self, needed_wei: int) -> str:
        """A message that says how much ether is missing, and at which address."""
        try:
            short = max(1, needed_wei - await self.node.ether(self.account))
        except ChainError:
            short = 1
        digits = f"{short:0{_ETHER_DIGITS + 1}d}"
        ether = f"{digits[:-_ETHER_DIGITS]}.{digits[-_ETHER_DIGITS:]}".rstrip("0")
        return (
            f"the wallet lacks at least {ether} ether for gas on chain {self.chain_id}: "
            f"send it to {shown_address(self.account)}"
        )
