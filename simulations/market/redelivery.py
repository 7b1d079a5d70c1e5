"""Vouchers delivered again: a host that is back gets the last voucher of a session that it was left with.

When that is tried, and in which order, is as ``p2pnode/payments/redelivery.py`` has it: once when a client
starts, and again around each turn that it pays for. ``ClientSession`` resumes the session only to pay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from p2pnode.protocols.inference.client_turn import HeldSession, held_from_journal
from p2pnode.protocols.inference.commands import Accepted, End, Ended, SessionFailed, Start
from p2pnode.simulations.market.session import Bought, SessionOwner
from p2pnode.simulations.world import Link, Shell


class Payer(SessionOwner, Protocol):
    """What it needs of the client that owes."""

    def owed(self) -> list[Bought]:
        """Sessions that nobody uses and whose hosts may lack the last voucher, the newest first."""
        ...


class Redeliverer:
    """Of one start of a client."""

    def __init__(self, client: Payer) -> None:
        self._client = client
        self._waiting: list[Bought] = []
        self._running = 0

    def soon(self) -> None:
        """Deliver what is owed, a few vouchers at once, unless that is under way."""
        if self._running:
            return
        self._waiting = self._client.owed()[: self._client.market.limits.redeliveries_max]
        self._go_on()

    def close(self, bought: Bought) -> None:
        """Have the host of a session that was left settle it."""
        Redelivery(self._client, bought, lambda: None, held=bought.held_left).begin()

    def _go_on(self) -> None:
        while self._waiting and self._running < self._client.market.limits.redeliveries_at_once:
            self._running += 1
            Redelivery(self._client, self._waiting.pop(0), self._over).begin()

    def _over(self) -> None:
        self._running -= 1
        self._go_on()


class Redelivery:
    """One attempt to hand over the last voucher of a session, and to end it. ``held``: it was left."""

    def __init__(
        self, client: Payer, bought: Bought, then: Callable[[], None], *, held: HeldSession | None = None
    ) -> None:
        self._client, self._bought, self._then, self._held = client, bought, then, held
        self._shell: Shell | None = None
        self._is_over = False

    def begin(self) -> None:
        """Dial, and resume the session only to pay."""
        client, bought = self._client, self._bought
        bought.is_used = True
        client.after(client.market.limits.redelivery_deadline_s, self._over)
        host = client.world.by_peer.get(bought.host)
        client.world.dial(client.node, host, client.guarded(self._dialled))

    def _dialled(self, link: Link | None) -> None:
        client, bought = self._client, self._bought
        host = client.market.hosts.get(bought.host)
        held, voucher = self._held, bought.voucher
        if held is None and voucher is not None:
            held = held_from_journal(bought.payment, bought.receipts.get(voucher.root), voucher)
        if self._is_over or link is None or host is None or held is None or not link.is_open:
            self._over()
            return
        machine = client.market.new_client_session(
            self,
            host=bought.host,
            stream=0,
            model=bought.payment.terms.model,
            salt=b"",
            holder=client.holder,
            times=client.market.client_times,
            resume=held,
            peer=client.node.peer,
        )
        self._shell = client.join(machine, self._emitted, host, link)
        client.after(client.world.stream_s(link), self._shell.command, Start())

    def _emitted(self, value: Any) -> None:
        bought = self._bought
        match value:
            case Accepted():
                if bought.voucher is not None:
                    bought.delivered = max(bought.delivered, bought.voucher.amount)
                self._client.later(self._end)
            case SessionFailed() | Ended():
                self._client.later(self._over)
            case _:
                return

    def _end(self) -> None:
        if self._shell is not None and not self._shell.is_over:
            self._shell.command(End())

    def _over(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._bought.is_used = False
        if self._shell is not None:
            self._client.leave_stream(self._shell)
        self._then()
