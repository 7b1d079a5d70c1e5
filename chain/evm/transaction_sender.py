"""``TransactionSender``: the one task that owns an account's nonces. It takes orders and returns receipts.

Orders are tried (gas estimate), priced (EIP-1559), signed and sent one after another; several may be
pending. One that isn't mined in time is sent again with the same nonce and a higher fee, up to a cap. A
receipt is returned when it is ``confirmations`` deep, and watched for ``final_blocks`` more. A lost RPC
endpoint only delays: what may have been sent is sent again.

Every order is in the book before it is sent. After a restart the orders that have not ended are followed
like new ones, and the same order given again waits for the pending one. A gap between nonces is filled, so
that nothing waits for ever. This module doesn't know what the orders mean.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from p2pnode.chain.evm.broadcaster import Broadcaster, WaitingOrder
from p2pnode.chain.evm.fees import GWEI
from p2pnode.chain.evm.node import EvmNode, Receipt
from p2pnode.chain.evm.nonce_manager import NonceManager
from p2pnode.chain.evm.order_book import NoOrderBook, Order, OrderBook
from p2pnode.chain.evm.reorg_watcher import ReorgWatcher
from p2pnode.chain.evm.rpc import Jitter
from p2pnode.errors import ChainError
from p2pnode.protocols.crypto import Signer

_log = structlog.get_logger()

_SLOWER: Final = 1.5
_CLOSING: Final = "nothing was sent: the ledger is closing"


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderLimits:
    """Bounds and times. A chain profile's own caps on gas come before these."""

    queue: int = 64
    inflight_max: int = 16
    watched_max: int = 256
    poll_first_s: float = 0.04
    poll_max_s: float = 2.0
    reorg_poll_s: float = 6.0
    replace_after_s: float = 30.0
    unseen_s: float = 120.0
    """How long a used nonce may have no receipt, or no node answer, before ``UnseenError`` is raised."""
    gas_price_max_wei: int = 200 * GWEI
    transaction_fee_max_wei: int | None = 5 * 10**15
    gas_margin_percent: int = 25
    final_blocks: int = 30
    final_s: float = 900.0


class TransactionSender:
    """See the module. ``run`` it in a nursery; ``send`` from any task."""

    def __init__(
        self,
        node: EvmNode,
        *,
        chain_id: int,
        account: bytes,
        sign: Signer,
        confirmations: int,
        jitter: Jitter,
        limits: SenderLimits | None = None,
        book: OrderBook | None = None,
    ) -> None:
        self._limits = limits or SenderLimits()
        self._chain_id, self._account = chain_id, account
        self._book: OrderBook = book or NoOrderBook()
        broadcaster = Broadcaster(
            node=node, chain_id=chain_id, account=account, sign=sign, book=self._book,
            gas_price_max_wei=self._limits.gas_price_max_wei,
            transaction_fee_max_wei=self._limits.transaction_fee_max_wei,
            gas_margin_percent=self._limits.gas_margin_percent,
        )  # fmt: skip
        self._watcher = ReorgWatcher(
            broadcaster, final_blocks=self._limits.final_blocks, final_s=self._limits.final_s,
            watched_max=self._limits.watched_max,
        )  # fmt: skip
        self._nonces = NonceManager(
            broadcaster, self._watcher, confirmations=confirmations,
            replace_after_s=self._limits.replace_after_s, unseen_s=self._limits.unseen_s, jitter=jitter,
        )  # fmt: skip
        self._orders_in, self._orders_out = trio.open_memory_channel[WaitingOrder](self._limits.queue)
        self._running = self._cut_off = False
        self._cut_off_at = 0.0
        self._jitter = jitter
        self._poll_s = self._limits.poll_first_s
        self._poll_at = self._reorg_poll_at = math.inf
        self._wait_scope = trio.CancelScope()

    @property
    def unmined(self) -> int:
        """The number of pending transactions."""
        return len(self._nonces)

    @property
    def last_sent(self) -> tuple[bytes, ...]:
        """The hash of each pending transaction's best-paying version."""
        return self._nonces.hashes

    async def send(self, order: Order) -> Receipt:
        """Send, and wait until mined and deep enough. Raises ``RevertedError`` and other ``ChainError``.

        An order that is cancelled before it was signed is withdrawn; later, it is followed to its end.
        """
        if not self._running:
            msg = "nothing was sent: the ledger's task is not running"
            raise ChainError(msg)
        waiting = WaitingOrder(order)
        try:
            await self._orders_in.send(waiting)
            await waiting.done.wait()
        except trio.BrokenResourceError as error:
            raise ChainError(_CLOSING) from error
        except trio.Cancelled:
            # If it was sent, it is followed to its end, and the same order given again waits for it.
            waiting.withdrawn = True
            raise
        if waiting.receipt is None:
            raise waiting.error or ChainError(_CLOSING)
        return waiting.receipt

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send and follow until cancelled. Then ``ChainError`` is raised in every task that still waits."""
        self._running = True
        await self.take_over()
        task_status.started()
        try:
            while True:
                waiting = await self._next()
                try:
                    if waiting is not None and not waiting.withdrawn:
                        await self._send_new(waiting)
                    await self._poll_if_due()
                except ChainError as error:
                    self._poll_failed(error)
        finally:
            self._stop()

    async def take_over(self) -> None:
        """Follow what was sent by processes that have ended."""
        self._nonces.adopt(await self._book.take_over(self._chain_id, self._account))
        self._schedule(soon=True)
        self._wait_scope.deadline = min(self._poll_at, self._reorg_poll_at)

    # ---- turns

    async def _next(self) -> WaitingOrder | None:
        """The next order, or None when it is time to poll."""
        with trio.CancelScope(deadline=min(self._poll_at, self._reorg_poll_at)) as self._wait_scope:
            if len(self._nonces) >= self._limits.inflight_max:
                await trio.sleep_forever()
            return await self._orders_out.receive()
        return None

    async def _poll_if_due(self) -> None:
        now = trio.current_time()
        if now >= self._poll_at and len(self._nonces):
            await self._nonces.poll()
            if self._cut_off:
                _log.info("chain.available")
            self._cut_off = False
        if now >= self._reorg_poll_at and len(self._watcher):
            await self._watcher.poll()
        self._schedule()

    def _schedule(self, *, soon: bool = False) -> None:
        """Set the times of the next polls: soon after something was sent, then less and less often."""
        now = trio.current_time()
        if soon:
            self._poll_s = self._limits.poll_first_s
        if not len(self._nonces):
            self._poll_at = math.inf
        elif soon or self._poll_at <= now or self._poll_at == math.inf:
            self._poll_at = now + self._poll_s * (0.75 + self._jitter() / 2)
            self._poll_s = min(self._limits.poll_max_s, self._poll_s * _SLOWER)
        if not len(self._watcher):
            self._reorg_poll_at = math.inf
        elif self._reorg_poll_at <= now or self._reorg_poll_at == math.inf:
            self._reorg_poll_at = now + self._limits.reorg_poll_s * (0.75 + self._jitter() / 2)

    def _poll_failed(self, error: ChainError) -> None:
        """Go on later. Logged once until the chain answers again."""
        now = trio.current_time()
        if not self._cut_off:
            _log.warning("chain.unavailable", error=str(error), unmined=len(self._nonces))
            self._cut_off_at = now
        elif now - self._cut_off_at >= self._limits.unseen_s:
            self._nonces.fail_waiting(str(error))
        self._cut_off = True
        self._poll_s = self._limits.poll_max_s
        self._schedule()

    def _stop(self) -> None:
        self._running = False
        self._nonces.stop()
        with suppress(trio.WouldBlock):
            while True:
                self._orders_out.receive_nowait().fail(ChainError(_CLOSING))
        self._orders_out.close()

    async def _send_new(self, waiting: WaitingOrder) -> None:
        """An error before anything was sent is raised in the task that waits."""
        try:
            await self._nonces.send_new(waiting)
        except ChainError as error:
            waiting.fail(error)
        finally:
            if not self._nonces.has(waiting):
                waiting.fail(ChainError(_CLOSING))  # cancelled; after any other error it has failed already
        self._schedule(soon=True)
