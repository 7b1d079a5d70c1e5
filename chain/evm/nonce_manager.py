"""``NonceManager``: an account's pending transactions in the order of their nonces. It sends them, follows
them until they are deep enough, replaces what is stuck, and takes another nonce where somebody took ours.

A used nonce is never a reason to send an order anew: our own transaction may have used it, at a node that
shows no receipt yet. Another nonce is taken only when the chain shows which other transaction used this one.
``poll`` decides what to do; ``sender.py`` decides when it is called.
"""

from __future__ import annotations

import secrets
from typing import Final

import structlog
import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.broadcaster import (
    Broadcaster,
    PendingTransaction,
    RejectedError,
    Submission,
    WaitingOrder,
)
from p2pnode.chain.evm.fees import Fees, raised
from p2pnode.chain.evm.node import MinedTransaction, Receipt
from p2pnode.chain.evm.order_book import Ending, Order, SentOrder
from p2pnode.chain.evm.reorg_watcher import ReorgWatcher, note_move, restore
from p2pnode.chain.evm.rpc import Jitter
from p2pnode.chain.ledger import UnseenError
from p2pnode.errors import ChainError, StorageError

_log = structlog.get_logger()

_TRIES: Final = 5
_PLAIN_GAS: Final = 21_000


class NonceManager:
    """See the module. What is mined and deep enough is handed to ``watcher``."""

    def __init__(
        self,
        broadcaster: Broadcaster,
        watcher: ReorgWatcher,
        *,
        confirmations: int,
        replace_after_s: float,
        unseen_s: float,
        jitter: Jitter,
    ) -> None:
        self._broadcaster, self._node, self._watcher = broadcaster, broadcaster.node, watcher
        self._confirmations, self._replace_after_s, self._jitter = confirmations, replace_after_s, jitter
        self._unseen_s = unseen_s
        self._pending: dict[int, PendingTransaction] = {}
        self._nonce = 0
        self._gap_since: float | None = None

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The hash of each pending transaction's best-paying version, the lowest nonce first."""
        return tuple(self._pending[nonce].last.hash for nonce in sorted(self._pending))

    def has(self, waiting: WaitingOrder) -> bool:
        """Whether a transaction for it is pending."""
        return any(sent.waiting is waiting for sent in self._pending.values())

    def stop(self) -> None:
        """Raise ``ChainError`` in every task that waits. What was sent stays sent."""
        for sent in self._pending.values():
            if sent.waiting is not None and sent.versions:
                msg = (
                    f"the ledger closed before transaction 0x{sent.last.hash.hex()} was mined: it may "
                    "still be, look at the session before sending again"
                )
                sent.waiting.fail(ChainError(msg))

    def adopt(self, orders: list[SentOrder]) -> None:
        """Follow what an earlier process sent, as if this one had sent it."""
        for each in orders:
            if each.versions and each.nonce not in self._pending:
                sent = PendingTransaction(each.id, None, each.order, each.nonce, each.gas, each.since_block)
                sent.versions += each.versions
                self._pending[each.nonce] = sent
                self._nonce = max(self._nonce, each.nonce + 1)
                _log.info("chain.adopted", nonce=each.nonce, transaction=sent.last.hash.hex())

    def joined(self, waiting: WaitingOrder) -> bool:
        """Let ``waiting`` wait for a pending transaction that does the same and that nobody waits for.

        Returns whether there was one.
        """
        for sent in self._pending.values():
            unattended = sent.waiting is None or not sent.waiting.waits
            if unattended and sent.versions and sent.order.equals(waiting.order):
                sent.waiting, sent.order = waiting, waiting.order  # the new order may allow a higher fee
                if sent.unseen_since is not None:
                    # The new one gets the whole patience, not what the first one left of it.
                    sent.unseen_since = trio.current_time()
                return True
        return False

    def fail_waiting(self, why: str) -> None:
        """Raise ``UnseenError`` in every task that waits: the chain can't be asked, because of ``why``."""
        for sent in self._pending.values():
            if sent.waiting is not None and sent.versions:
                sent.waiting.fail(UnseenError(sent.order.words, sent.last.hash, why))

    async def send_new(self, waiting: WaitingOrder) -> None:
        """Estimate, price, sign, write into the book, send. Raises ``ChainError`` if nothing was sent."""
        if self.joined(waiting):
            return
        gas = await self._broadcaster.gas(waiting.order)
        fees = await self._broadcaster.fees(gas, waiting.order)
        since = await self._node.height()
        if waiting.withdrawn:
            return
        nonce = await self._free_nonce()
        for _ in range(_TRIES):
            if waiting.order.nonce not in (None, nonce):
                msg = (
                    f"the next nonce of {shown_address(self._broadcaster.account)} is {nonce}, and this must "
                    f"have {waiting.order.nonce}: is another program using the key? Stop it, and start again"
                )
                raise ChainError(msg)
            sent = PendingTransaction(_new_id(), waiting, waiting.order, nonce, gas, since)
            # Noted before the first await: if that is cancelled, it may have been sent, and must be followed.
            self._pending[nonce] = sent
            try:
                submission, doubt = await self._broadcast(sent, fees)
            except ChainError as error:
                if isinstance(error, RejectedError) and error.doubt:
                    submission, doubt = "unsure", True
                else:
                    del self._pending[nonce]
                    raise
            # "Nonce too low" may be about these very bytes, which a load balancer before the node sent twice.
            # The chain will show whose transaction used the nonce.
            if submission in ("taken", "unsure", "nonce_used") or doubt:
                self._nonce = max(self._nonce, nonce + 1)
                _log.info("chain.sent", nonce=nonce, transaction=sent.last.hash.hex(), taken=sent.taken)
                return
            del self._pending[nonce]
            await self._ended(sent, "displaced")
            if submission == "fee_too_low":
                better = raised(
                    fees, await self._node.fees(), self._broadcaster.price_max(gas, waiting.order)
                )
                if better is None:
                    break
                fees = better
            else:
                _log.warning(
                    "chain.nonce_used_elsewhere", nonce=nonce, account=self._broadcaster.account.hex()
                )
                nonce = max(nonce + 1, await self._free_nonce())
        msg = (
            "no node takes the transaction, because of its nonce or its fee: is another program using the "
            f"key of {shown_address(self._broadcaster.account)}? Stop it, and try again"
        )
        raise ChainError(msg)

    async def _ended(
        self, sent: PendingTransaction, ending: Ending, transaction: bytes | None = None
    ) -> None:
        try:
            await self._broadcaster.book.ended(sent.id, ending, transaction)
        except StorageError as error:  # the order stays open in the book, and the next start looks for it
            _log.warning("chain.order_not_noted", nonce=sent.nonce, error=str(error))

    async def _free_nonce(self) -> int:
        """The first unused nonce.

        A node may not know yet what was sent lately. So while anything of ours is pending or watched, our own
        count holds where it is higher; otherwise the node's count holds.
        """
        pending = await self._node.nonce(self._broadcaster.account, "pending")
        recent = self._pending or len(self._watcher)
        self._nonce = max(self._nonce, pending) if recent else pending
        return self._nonce

    async def _broadcast(self, sent: PendingTransaction, fees: Fees) -> tuple[Submission, bool]:
        others = (other for other in self._pending.values() if other is not sent)
        reserved = sum(other.gas * other.last.fees.most for other in others if other.versions)
        sent.replace_at = trio.current_time() + self._replace_after_s * (1 + self._jitter() / 4)
        return await self._broadcaster.broadcast(sent, fees, reserved_wei=reserved)

    async def poll(self) -> None:
        """Ask the chain for each of them, and act. Only the lowest nonce that isn't mined can be stuck."""
        used = await self._node.nonce(self._broadcaster.account)
        height = await self._node.height()
        await self._fill_gap(used)
        for sent in sorted(self._pending.values(), key=lambda one: one.nonce):
            if sent.nonce < used:
                await self._follow(sent, height)
            elif sent.mined is not None:
                await restore(self._broadcaster, sent)
            elif not sent.taken:
                await self._send_again(sent)
            elif sent.nonce == used and trio.current_time() >= sent.replace_at:
                await self._replace(sent)

    async def _follow(self, sent: PendingTransaction, height: int) -> None:
        """Its nonce is used: find the version that was mined, and how deep it is."""
        receipt = await self._broadcaster.receipt(sent) or await self._unseen(sent, height)
        if receipt is None:
            return
        if sent.mined is not None:
            note_move(sent, receipt)
        sent.seen(receipt)
        if height - receipt.block + 1 >= self._confirmations:
            await self._finish(sent, receipt)

    async def _unseen(self, sent: PendingTransaction, height: int) -> Receipt | None:
        """Its nonce is used and no node shows a receipt: ask which transaction used it, and what that did."""
        now = trio.current_time()
        if not sent.unseen(now):
            return None
        used_by = await self._broadcaster.nonce_user(sent, height)
        if used_by is not None and any(used_by.transaction == version.hash for version in sent.versions):
            found = await self._broadcaster.receipt_from_logs(used_by)
            if found is not None:
                return found
        elif used_by is not None:
            if height - used_by.block + 1 >= self._confirmations:
                await self._displaced(sent, used_by)
            return None
        since = sent.unseen_since
        if since is not None and now - since >= self._unseen_s and sent.waiting is not None:
            sent.waiting.fail(UnseenError(sent.order.words, sent.last.hash))
        return None

    async def _finish(self, sent: PendingTransaction, receipt: Receipt) -> None:
        error = None if receipt.succeeded else await self._broadcaster.revert_of(sent, receipt)
        del self._pending[sent.nonce]
        _log.info(
            "chain.mined", nonce=sent.nonce, transaction=receipt.hash.hex(), block=receipt.block,
            gas=receipt.gas_used, reverted=None if error is None else error.reason,
        )  # fmt: skip
        await self._ended(sent, "done" if error is None else "failed", receipt.hash)
        if error is None:
            self._watcher.add(sent, receipt)
        if sent.waiting is not None and error is not None:
            sent.waiting.fail(error)
        elif sent.waiting is not None:
            sent.waiting.finish(receipt)

    async def _replace(self, sent: PendingTransaction) -> None:
        """It is stuck: send it with the same nonce and a higher fee, or, at the cap, the same bytes again."""
        old = sent.last.fees
        fees = raised(old, await self._node.fees(), self._broadcaster.price_max(sent.gas, sent.order))
        if fees is None:
            _log.warning("chain.stuck_at_fee_limit", nonce=sent.nonce, fee_wei=old.most)
            sent.replace_at = trio.current_time() + self._replace_after_s
            await self._send_again(sent)
            return
        _log.warning("chain.replaced", nonce=sent.nonce, fee_wei=fees.most, was_wei=old.most)
        await self._outbid(sent, fees)

    async def _outbid(self, sent: PendingTransaction, fees: Fees) -> None:
        """Offer more for a nonce that the pool has already, ours or not; double the fee while refused."""
        for _ in range(_TRIES):
            try:
                submission, _ = await self._broadcast(sent, fees)
            except ChainError as error:
                # For example, the wallet can't pay it. The older versions can still be mined.
                _log.warning("chain.not_replaced", nonce=sent.nonce, error=str(error))
                submission = "taken"
            sent.taken = submission != "unsure"
            doubled = Fees(most=2 * fees.most, tip=2 * fees.tip)
            more = raised(fees, doubled, self._broadcaster.price_max(sent.gas, sent.order))
            if submission not in ("nonce_taken", "fee_too_low") or more is None:
                return
            fees = more

    async def _send_again(self, sent: PendingTransaction) -> None:
        """Send the same bytes. A refusal is no failure: the bytes may have been taken before."""
        try:
            submission, _ = await self._broadcaster.send(sent, sent.last)
        except RejectedError as error:
            _log.warning("chain.not_resent", nonce=sent.nonce, error=str(error))
            submission = "taken"
        # The next poll shows a used nonce; a taken one needs a better offer than that of the one that has it.
        sent.taken = submission != "unsure"

    async def _displaced(self, sent: PendingTransaction, used_by: MinedTransaction) -> None:
        """The chain shows that another transaction used our nonce: no version of ours can be mined.

        Take another nonce.
        """
        _log.warning(
            "chain.nonce_used_elsewhere", nonce=sent.nonce, account=self._broadcaster.account.hex(),
            transaction=used_by.transaction.hex(),
        )  # fmt: skip
        del self._pending[sent.nonce]
        await self._ended(sent, "displaced", used_by.transaction)
        if sent.waiting is None or not sent.waiting.waits:
            return
        try:
            await self.send_new(sent.waiting)
        except ChainError as error:
            sent.waiting.fail(error)

    async def _fill_gap(self, used: int) -> None:
        """Send an empty transaction with nonce ``used`` where that has been missing for a while.

        Nothing of ours can be mined while a lower nonce is missing, or is stuck from an earlier process.
        """
        now = trio.current_time()
        if not self._pending or used >= min(self._pending):
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = now
        elif now - self._gap_since >= self._replace_after_s:
            self._gap_since = None
            _log.warning("chain.gap_filled", nonce=used, account=self._broadcaster.account.hex())
            words = f"nothing, to fill the gap at nonce {used}"
            nothing = Order(
                to=self._broadcaster.account, data=b"", gas_max=_PLAIN_GAS, kind="gap", words=words
            )
            sent = PendingTransaction(_new_id(), None, nothing, used, _PLAIN_GAS, await self._node.height())
            await self._outbid(sent, await self._broadcaster.fees(_PLAIN_GAS, nothing))
            if sent.versions:
                self._pending[used] = sent


def _new_id() -> str:
    return secrets.token_hex(8)
