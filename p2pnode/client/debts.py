"""When a client pays what it owes to hosts that vanished: as it starts, and again after each turn.

How that is done is ``repayment.py``'s. A free client opens no journal. It knows nothing of conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from p2pnode.client.runtime import Runtime
from p2pnode.errors import LocalError, P2PNodeError, first_error

if TYPE_CHECKING:
    from p2pnode.payments.payer import OpenPurse
    from p2pnode.payments.redelivery import Delivery

log = structlog.get_logger()


class Debts:
    """Of one client: tried once when it starts, and again after each turn of a paying one."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._tried: trio.Event | None = None
        self._bringing = False

    def pay_first(self) -> None:
        """Hosts that vanished from earlier runs, or from another machine, may be back."""
        if self._runtime.pays:
            self._tried = trio.Event()
            self._runtime.tasks.start_soon(self._runtime.node.network.guard.run, self._pay_first, self._tried)

    async def wait_tried(self) -> None:
        """Until they were tried, where there were any."""
        if self._tried is not None:
            await self._tried.wait()

    def pay_soon(self) -> None:
        """Hosts that vanished in this run. A free client owes nothing."""
        opened = self._runtime.payer.opened if self._runtime.payer is not None else None
        if opened is None or self._bringing:
            return
        from p2pnode.payments.redelivery import owed

        if owed(opened.journal, opened.purse.now()):
            self._bringing = True
            self._runtime.tasks.start_soon(self._runtime.node.network.guard.run, self._pay, opened)

    async def _pay_first(self, tried: trio.Event) -> None:
        from p2pnode.payments.redelivery import pay_debts

        try:
            self._tell(await pay_debts(self._runtime.config, self._runtime.node))
        except P2PNodeError as error:  # what was not delivered stays owed
            log.warning("vouchers.not_delivered", reason=str(error))
        finally:
            tried.set()

    async def _pay(self, opened: OpenPurse) -> None:
        from p2pnode.payments.redelivery import deliver_all

        network, limits = self._runtime.node.network, self._runtime.limits
        now, market = opened.purse.now(), opened.purse.market
        try:
            self._tell(await deliver_all(opened.journal, market, network, limits=limits, now=now))
        except* LocalError as group:
            log.warning("vouchers.not_delivered", reason=str(first_error(group)))
        finally:
            self._bringing = False

    def _tell(self, deliveries: Sequence[Delivery]) -> None:
        for each in deliveries:
            told = {"session": each.session.hex(), "outcome": each.outcome, "detail": each.detail}
            self._runtime.tell("voucher", {**told})
