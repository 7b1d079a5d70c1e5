"""Hands an account's transactions to the node: signs versions, writes them into the book, sends bytes, reads
refusals and receipts, and finds out what used a nonce.

Decides nothing about when; ``sender.py`` and ``watch.py`` do.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.fees import Fees, capped, least_of
from p2pnode.chain.evm.node import EvmNode, Place, Receipt
from p2pnode.chain.evm.order_book import Order, OrderBook, SentOrder, Signed, sign_transaction
from p2pnode.chain.evm.rpc_answers import NO_REASON, RpcError, refusal_of
from p2pnode.chain.ledger import GasTooDearError, RevertedError
from p2pnode.errors import ChainError, StorageError
from p2pnode.protocols.crypto import Signer

_ETHER_DIGITS: Final = 18
Handed: TypeAlias = Literal["taken", "unsure", "nonce_used", "nonce_taken", "fee_too_low"]


class RejectedError(ChainError):
    """A node won't take these bytes. ``doubt``: another may have, in an earlier try of the same request."""

    def __init__(self, message: str, *, doubt: bool) -> None:
        super().__init__(message)
        self.doubt = doubt


@dataclass(frozen=True, slots=True, kw_only=True)
class Courier:
    """One account at one chain. Both bounds are wei: per gas, and for a whole transaction (None: none)."""

    node: EvmNode
    chain_id: int
    account: bytes
    sign: Signer
    book: OrderBook
    gas_price_max_wei: int
    transaction_fee_max_wei: int | None
    gas_margin_percent: int

    async def gas(self, order: Order) -> int:
        """Estimated, with a margin. Raises ``RevertedError``: then it would fail, and need not be sent."""
        needed = await self.node.estimate(order.to, order.data, sender=self.account)
        if needed > order.gas_max:
            msg = f"it would take {needed} gas, more than the {order.gas_max} it may: nothing was sent"
            raise ChainError(msg)
        return min(order.gas_max, needed + needed * self.gas_margin_percent // 100)

    def price_max(self, gas: int, order: Order) -> int:
        """The most that may be offered per gas, by a transaction that may take ``gas``."""
        bounds = [each for each in (self.transaction_fee_max_wei, order.fee_max_wei) if each is not None]
        return min([self.gas_price_max_wei, *(each // gas for each in bounds)])

    async def fees(self, gas: int, order: Order) -> Fees:
        """Today's. Raises ``ChainError`` when even the next block's price is above what may be offered."""
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

    async def hand_over(self, flight: Flight, fees: Fees, *, reserved_wei: int = 0) -> tuple[Handed, bool]:
        """Sign a version, write it into the book, and send it. It counts as sent from here on, whatever the
        node says.

        ``reserved_wei``: what other transactions on their way may take. As ``push`` otherwise.
        """
        signed = sign_transaction(
            chain_id=self.chain_id, account=self.account, sign=self.sign, nonce=flight.nonce,
            to=flight.order.to, data=flight.order.data, gas=flight.gas, fees=fees,
        )  # fmt: skip
        # In the book before it is sent: a process that dies in between leaves an order that can be found.
        await self._booked(flight, signed)
        flight.versions.append(signed)
        try:
            return await self.push(flight, signed, reserved_wei=reserved_wei)
        except RejectedError as error:
            if not error.doubt:
                flight.versions.remove(signed)
                with suppress(StorageError):  # it is looked for in vain then, which costs a question
                    await self.book.refused(signed)
            raise

    async def _booked(self, flight: Flight, signed: Signed) -> None:
        order = SentOrder(
            id=flight.id, chain_id=self.chain_id, account=self.account, nonce=flight.nonce,
            order=flight.order, gas=flight.gas, since_block=flight.since_block,
        )  # fmt: skip
        try:
            await self.book.sending(order, signed)
        except StorageError as error:
            msg = f"nothing was sent, for it could not be written down: {error}"
            raise ChainError(msg) from error

    async def push(self, flight: Flight, signed: Signed, *, reserved_wei: int = 0) -> tuple[Handed, bool]:
        """Send the bytes: what became of it, and whether an earlier try of this may have gone through.

        Raises ``RejectedError`` if they won't be taken as they are.
        """
        flight.taken = False
        try:
            await self.node.send(signed.raw)
        except RpcError as error:
            refusal = refusal_of(error)
            if refusal == "no_ether":
                needed = flight.gas * signed.fees.most + reserved_wei
                raise RejectedError(await self._too_poor(needed), doubt=error.doubt) from error
            if refusal == "other":
                raise RejectedError(str(error), doubt=error.doubt) from error
            if refusal != "known":
                return refusal, error.doubt
        except ChainError:
            return "unsure", True
        flight.taken = True
        return "taken", False

    async def receipt(self, flight: Flight) -> Receipt | None:
        """Of whichever version was mined."""
        for version in reversed(flight.versions):
            receipt = await self.node.receipt(version.hash)
            if receipt is not None:
                return receipt
        return None

    async def place(self, flight: Flight, height: int) -> Place | None:
        """Which transaction used its nonce, where no receipt is shown; None while no node can say."""
        for version in reversed(flight.versions):
            block = await self.node.block_of(version.hash)
            if block is not None:
                return Place(transaction=version.hash, block=block)
        try:
            return await self.node.holder(self.account, flight.nonce, flight.since_block, height)
        except ChainError:
            return None  # it has no state of blocks that old, or can't be asked now

    async def by_effect(self, place: Place) -> Receipt | None:
        """A receipt made of the events that a transaction left; None if it left none, as one that failed."""
        logs = await self.node.logs_of(place)
        if not logs:
            return None
        return Receipt(
            hash=place.transaction, block=place.block, block_hash=None, succeeded=True, gas_used=None,
            fee_wei=None, logs=logs,
        )  # fmt: skip

    async def why(self, flight: Flight, receipt: Receipt) -> RevertedError:
        """The contract's reason: ask again, as a call, after the block it failed in, and before that."""
        for block in (receipt.block, receipt.block - 1):
            try:
                await self.node.call(
                    flight.order.to, flight.order.data, sender=self.account, gas=flight.gas, which=block
                )
            except RevertedError as error:
                return RevertedError(error.reason, receipt.gas_used or 0)
            except RpcError:
                break  # some nodes don't keep yesterday's state
        used = receipt.gas_used or 0
        starved = used >= flight.gas - flight.gas // 64
        return RevertedError("out of gas" if starved else NO_REASON, used)

    async def _too_poor(self, needed_wei: int) -> str:
        """Says how much ether is missing, and where."""
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


# One transaction on its way: what was sent for it, and who waits. State only; ``sender.py`` acts.
#
# A flight has one nonce and any number of versions, each paying more than the one before; any may be mined.


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
