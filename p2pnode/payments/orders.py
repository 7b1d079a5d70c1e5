"""A wallet's orders to the chain, for its owner's commands: waited for, found again, never given twice.

The journal has what was sent, the ledger's sender follows it. Here a command waits for an order, reports what
is sent and not seen yet, and finds what an earlier command sent. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from p2pnode.chain.evm.order_book import Ending, SentOrder, SignedTransaction
from p2pnode.chain.ledger import Call, Outcome
from p2pnode.errors import ChainError
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.journal.orders import WalletOnChain
from p2pnode.tasks import background_task

if TYPE_CHECKING:
    from p2pnode.chain.evm.ledger import EvmLedger

NOTICE_S: Final = 10.0
"""How long a command waits before it reports that its order is not seen yet."""
_POLL_S: Final = 0.25
_TAKE_OVER_S: Final = 5.0
Tell: TypeAlias = Callable[[SentOrder], None]
"""Told of an order that is sent and not seen yet."""


@dataclass(frozen=True, slots=True)
class JournalOrders:
    """The ``OrderBook`` of a journal, for one chain. ``wall`` gives epoch seconds."""

    journal: Journal
    wall: Callable[[], float]
    genesis: bytes = b""
    """As in ``WalletOnChain``."""

    async def sending(self, order: SentOrder, version: SignedTransaction) -> None:
        """As ``OrderBook``."""
        noted = replace(order, sent_at=int(self.wall()), genesis=self.genesis)
        await self.journal.order_sending(noted, version)

    async def refused(self, version: SignedTransaction) -> None:
        """As ``OrderBook``."""
        await self.journal.order_refused(version)

    async def ended(self, order: str, ending: Ending, transaction: bytes | None = None) -> None:
        """As ``OrderBook``."""
        await self.journal.order_ended(order, ending, transaction)

    async def take_over(self, chain_id: int, account: bytes) -> list[SentOrder]:
        """As ``OrderBook``."""
        return await self.journal.orders_taken_over(WalletOnChain(chain_id, account, self.genesis))


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders of one wallet on one chain."""

    journal: Journal
    ledger: EvmLedger
    wallet: WalletOnChain
    tell: Tell = lambda _order: None
    """Told of an order that is sent and not seen yet."""

    def waiting(self, *kinds: str) -> list[SentOrder]:
        """Orders that were sent and are not known to have ended, of these kinds or of any."""
        return self.journal.orders(self.wallet, *kinds)

    async def look_up(self) -> list[SentOrder]:
        """Ask the chain what became of them; the ones still not seen. For a ledger that sends nothing."""
        for each in self.waiting():
            found = await self.ledger.ending(each)
            if found is not None:
                await self.journal.order_ended(each.id, *found)
        return self.waiting()

    async def transact(self, call: Call) -> Outcome:
        """Carry out ``call``, once: where the same call is on its way already, wait for that one.

        What is sent and not seen is reported after a while, and when cancelled. Raises as the ledger does.
        """
        for each in await self.earlier(type(call).__name__, same=call):
            if each.ending == "done" and each.transaction is not None:
                return await self.ledger.outcome(each)
        before = {each.id for each in self.waiting()}

        def tell() -> None:
            for each in self.waiting(type(call).__name__):
                if each.id not in before:
                    before.add(each.id)
                    self.tell(each)

        async def tell_later(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await trio.sleep(NOTICE_S)
            tell()

        async with background_task(tell_later):
            try:
                return await self.ledger.transact(call)
            except trio.Cancelled:
                tell()
                raise

    async def earlier(self, *kinds: str, same: Call | None = None) -> list[SentOrder]:
        """Wait for the orders of these kinds that are on their way already; what became of them.

        ``same``: only for those that are exactly this call. A process that still runs may have ordered them,
        or one that has ended: then they are followed here.
        """
        found = [each for each in self.waiting(*kinds) if same is None or self.ledger.is_order_of(each, same)]
        for each in found:
            self.tell(each)
        return [await self._end_of(each) for each in found]

    async def carried_out(self, call: Call) -> Outcome | None:
        """The outcome of an earlier order of exactly this call, once it has ended; None if there was none."""
        await self.earlier(type(call).__name__, same=call)
        done = self.journal.orders_done(self.wallet, type(call).__name__)
        found = next((each for each in done if self.ledger.is_order_of(each, call)), None)
        return None if found is None else await self.ledger.outcome(found)

    async def give_up(self, *kinds: str) -> None:
        """Stop waiting for these orders. Their owner asked for it, and may pay twice."""
        for each in self.waiting(*kinds):
            await self.journal.order_ended(each.id, "given up")

    async def _end_of(self, order: SentOrder) -> SentOrder:
        while True:
            with trio.move_on_after(_TAKE_OVER_S):
                while True:
                    now = self.journal.order(order.id)
                    if now is None:
                        msg = "the order was taken back, for no node took it: run the command again"
                        raise ChainError(msg)
                    if now.ending is not None:
                        return now
                    await trio.sleep(_POLL_S)
            await self.ledger.take_over()  # its process may have ended meanwhile
