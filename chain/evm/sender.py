"""The one task that owns an account's nonces: orders go in, mined transactions come out.

Orders are tried (gas estimate), priced (EIP-1559), signed and sent in their turn; several may be on their
way. One that isn't mined in time is sent again with the same nonce and a higher fee, up to a cap. What is
reported is ``confirmations`` deep, and watched for ``final_blocks`` more. A lost RPC endpoint only delays:
what may have been sent is sent again.

Every order is in the book before it is sent. After a restart those that have not ended are followed as if
they were ours, and the same order given again waits for the one that is on its way. A gap between nonces is
filled, so that nothing waits for ever. Knows nothing of what the orders mean.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from p2pnode.chain.evm.broadcaster import Courier, Job
from p2pnode.chain.evm.fees import GWEI
from p2pnode.chain.evm.node import EvmNode, Receipt
from p2pnode.chain.evm.nonce_manager import Fleet
from p2pnode.chain.evm.order_book import NoOrderBook, Order, OrderBook
from p2pnode.chain.evm.reorg_watcher import Watch
from p2pnode.chain.evm.rpc import Jitter
from p2pnode.errors import ChainError
from p2pnode.protocols.crypto import Signer

_log = structlog.get_logger()

_SLOWER: Final = 1.5
_CLOSING: Final = "nothing was sent: the ledger is closing"


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderLimits:
    """Bounds, and how patient to be. A profile's own caps on gas come before these."""

    queue: int = 64
    inflight_max: int = 16
    watched_max: int = 256
    poll_first_s: float = 0.04
    poll_max_s: float = 2.0
    watch_poll_s: float = 6.0
    replace_after_s: float = 30.0
    unseen_s: float = 120.0
    """A nonce is used and nobody shows a receipt, or nobody answers: so long until whoever waits is told."""
    gas_price_max_wei: int = 200 * GWEI
    transaction_fee_max_wei: int | None = 5 * 10**15
    gas_margin_percent: int = 25
    final_blocks: int = 30
    final_s: float = 900.0


class Sender:
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
        courier = Courier(
            node=node, chain_id=chain_id, account=account, sign=sign, book=self._book,
            gas_price_max_wei=self._limits.gas_price_max_wei,
            transaction_fee_max_wei=self._limits.transaction_fee_max_wei,
            gas_margin_percent=self._limits.gas_margin_percent,
        )  # fmt: skip
        self._watch = Watch(
            courier, final_blocks=self._limits.final_blocks, final_s=self._limits.final_s,
            watched_max=self._limits.watched_max,
        )  # fmt: skip
        self._fleet = Fleet(
            courier, self._watch, confirmations=confirmations,
            replace_after_s=self._limits.replace_after_s, unseen_s=self._limits.unseen_s, jitter=jitter,
        )  # fmt: skip
        self._jobs_in, self._jobs_out = trio.open_memory_channel[Job](self._limits.queue)
        self._running = self._cut_off = False
        self._cut_off_at = 0.0
        self._jitter = jitter
        self._poll_s = self._limits.poll_first_s
        self._look_at = self._watch_at = math.inf
        self._nap = trio.CancelScope()

    @property
    def unmined(self) -> int:
        """Transactions on their way."""
        return len(self._fleet)

    @property
    def last_sent(self) -> tuple[bytes, ...]:
        """The hash of each one's best-paying version."""
        return self._fleet.hashes

    async def send(self, order: Order) -> Receipt:
        """Wait until mined and deep enough. Raises ``RevertedError`` and other ``ChainError``.

        Cancelled before it was signed, the order is withdrawn; after that, it is followed to its end.
        """
        if not self._running:
            msg = "nothing was sent: the ledger's task is not running"
            raise ChainError(msg)
        job = Job(order)
        try:
            await self._jobs_in.send(job)
            await job.done.wait()
        except trio.BrokenResourceError as error:
            raise ChainError(_CLOSING) from error
        except trio.Cancelled:
            job.withdrawn = True  # followed to its end all the same, and the same order joins it
            raise
        if job.receipt is None:
            raise job.error or ChainError(_CLOSING)
        return job.receipt

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Those who still wait are then told; what was sent stays sent."""
        self._running = True
        await self.take_over()
        task_status.started()
        try:
            while True:
                job = await self._next()
                try:
                    if job is not None and not job.withdrawn:
                        await self._launch(job)
                    await self._look_if_due()
                except ChainError as error:
                    self._troubled(error)
        finally:
            self._stop()

    async def take_over(self) -> None:
        """Follow what was sent by processes that have ended since."""
        self._fleet.adopt(await self._book.take_over(self._chain_id, self._account))
        self._schedule(soon=True)
        self._nap.deadline = min(self._look_at, self._watch_at)

    # ---- turns

    async def _next(self) -> Job | None:
        """The next order, or None when it's time to look."""
        with trio.CancelScope(deadline=min(self._look_at, self._watch_at)) as self._nap:
            if len(self._fleet) >= self._limits.inflight_max:
                await trio.sleep_forever()
            return await self._jobs_out.receive()
        return None

    async def _look_if_due(self) -> None:
        now = trio.current_time()
        if now >= self._look_at and len(self._fleet):
            await self._fleet.look()
            if self._cut_off:
                _log.info("chain.available")
            self._cut_off = False
        if now >= self._watch_at and len(self._watch):
            await self._watch.look()
        self._schedule()

    def _schedule(self, *, soon: bool = False) -> None:
        """When to look again: soon after something happened, less and less often while nothing does."""
        now = trio.current_time()
        if soon:
            self._poll_s = self._limits.poll_first_s
        if not len(self._fleet):
            self._look_at = math.inf
        elif soon or self._look_at <= now or self._look_at == math.inf:
            self._look_at = now + self._poll_s * (0.75 + self._jitter() / 2)
            self._poll_s = min(self._limits.poll_max_s, self._poll_s * _SLOWER)
        if not len(self._watch):
            self._watch_at = math.inf
        elif self._watch_at <= now or self._watch_at == math.inf:
            self._watch_at = now + self._limits.watch_poll_s * (0.75 + self._jitter() / 2)

    def _troubled(self, error: ChainError) -> None:
        """A look failed: go on later. Said once."""
        now = trio.current_time()
        if not self._cut_off:
            _log.warning("chain.unavailable", error=str(error), unmined=len(self._fleet))
            self._cut_off_at = now
        elif now - self._cut_off_at >= self._limits.unseen_s:
            self._fleet.tell_unseen(str(error))
        self._cut_off = True
        self._poll_s = self._limits.poll_max_s
        self._schedule()

    def _stop(self) -> None:
        self._running = False
        self._fleet.stop()
        with suppress(trio.WouldBlock):
            while True:
                self._jobs_out.receive_nowait().fail(ChainError(_CLOSING))
        self._jobs_out.close()

    async def _launch(self, job: Job) -> None:
        """What fails before anything was sent is the caller's to hear."""
        try:
            await self._fleet.launch(job)
        except ChainError as error:
            job.fail(error)
        finally:
            if not self._fleet.carries(job):
                job.fail(ChainError(_CLOSING))  # cancelled; otherwise it was told already
        self._schedule(soon=True)
