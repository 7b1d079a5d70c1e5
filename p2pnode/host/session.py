"""The shell of one served stream: the host machine, the stream, and one engine request at a time.

What a paid machine decides about money goes to the till, which makes it durable before this goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from p2pnode.host.generation import count_input, generate
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.models.engine import Engine
from p2pnode.net.stream import Stream
from p2pnode.node.channel import MessageChannel
from p2pnode.node.driver import Driver
from p2pnode.node.sleep import SleepWatch
from p2pnode.payments.escrow import Cashier
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    Count,
    Drain,
    Escrowed,
    Finished,
    Generate,
    HostEmission,
    Issued,
    NotEscrowed,
    Opened,
    Paid,
    Relay,
    Replaced,
    TurnServed,
)
from p2pnode.protocols.inference.machine import HostSession
from p2pnode.protocols.inference.messages import CODEC, Refuse
from p2pnode.protocols.inference.session import OpenSession

log = structlog.get_logger()


class ServedSession:
    """Drives one ``HostSession``. ``on_opened`` gives the engine once the session is open."""

    def __init__(
        self,
        machine: HostSession,
        stream: Stream,
        *,
        limits: Limits,
        on_opened: Callable[[Opened], Awaitable[Engine | None]],
        on_turn: Callable[[TurnServed], None],
        on_relay: Callable[[Relay], None] = lambda _order: None,
        cashier: Cashier | None = None,
        sleep: SleepWatch | None = None,
    ) -> None:
        self._on_relay, self._cashier = on_relay, cashier
        self._machine, self._stream, self._limits = machine, stream, limits
        self._on_opened, self._on_turn = on_opened, on_turn
        self._driver = Driver(
            machine,
            MessageChannel(stream, CODEC),
            on_emit=self._emitted,
            write_deadline_s=limits.stall_s,
            sleep=sleep,
        )
        self._engine: Engine | None = None
        self.session: SessionId | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self.finished: Finished | None = None
        self.peer, self.address = stream.peer, stream.remote_addr
        self.paid = False
        """Does it cost its client anything?"""
        self.rests_since: float | None = trio.current_time()
        """Since when it asks nothing of the engine; None while a turn is served."""
        self.yielding = False
        """Was it told to give way?"""

    @property
    def fault(self) -> str | None:
        """What the peer did against the protocol, if anything."""
        if self.finished is not None and self.finished.fault:
            return self.finished.reason
        return self._driver.fault

    @property
    def record(self) -> OpenSession | None:
        """What outlives this stream, once the session is open."""
        return self._machine.session

    async def run(self) -> None:
        """Serve until the session is over, then close the stream."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._driver.run(self._machine.start(trio.current_time()))
                nursery.cancel_scope.cancel()
        finally:
            # Also where the peer broke the protocol: it was told, and a reset could overtake the word.
            if self._driver.fault is None and self.finished is not None:
                await self._stream.aclose()
            else:
                await self._stream.reset()

    def drain(self) -> None:
        """End after the present turn."""
        self._driver.command_nowait(Drain())

    def replaced(self) -> None:
        """Another stream has the session now."""
        self._driver.command_nowait(Replaced())

    def end(self, why: str) -> None:
        """End now: what it would go on with can't be paid any more."""
        self.tell(NotEscrowed(Refuse(code="payment_required", detail=why)))

    def tell(self, value: Escrowed | NotEscrowed) -> None:
        """How its deposit fares."""
        self._driver.command_nowait(value)

    def give_way(self) -> None:
        """End now unless a turn is served: others wait for its place."""
        self.yielding = True
        for key in ("open", "idle", "prompt"):
            self._driver.fire_nowait(key)

    async def _emitted(self, value: HostEmission) -> None:
        match value:
            case Opened(session=session, resumed=resumed):
                self.session, self.paid = session, self.paid or resumed
                self._engine = await self._on_opened(value)
            case Relay() | Count() | Issued() | Paid():
                await self._money(value)
            case Generate(run=run):
                self.rests_since, self.yielding = None, False
                if self._nursery is not None:
                    # Made here, not in the task: a run may be cancelled while it waits for the one before.
                    self._scopes[run] = trio.CancelScope()
                    self._nursery.start_soon(self._generate, value, self._scopes[run])
            case CancelGenerate(run=run):
                self._scopes.get(run, trio.CancelScope()).cancel()
            case TurnServed():
                self.rests_since = trio.current_time()
                self._on_turn(value)
            case Finished():
                self.finished = value
                for scope in self._scopes.values():
                    scope.cancel()
                self._driver.stop()

    async def _money(self, value: Relay | Count | Issued | Paid) -> None:
        """Nothing that follows from it is sent or served before this returns."""
        session, cashier = self.session, self._cashier
        match value:
            case Relay():
                self.session, self.paid = value.session, True
                self._on_relay(value)
            case Count() if self._nursery is not None:
                self._nursery.start_soon(self._count, value)
            case Issued(receipt=receipt) if cashier is not None and session is not None:
                await cashier.issued(session, receipt)
            case Paid(voucher=voucher) if cashier is not None and session is not None:
                await cashier.paid(session, voucher)
            case _:
                pass

    async def _count(self, order: Count) -> None:
        if self._engine is not None and self.session is not None:
            n_ctx = self.record.granted.n_ctx if self.record is not None else 0
            await count_input(self._engine, order, self.session, n_ctx, self._driver.command)

    async def _generate(self, order: Generate, scope: trio.CancelScope) -> None:
        if self._engine is None or self.session is None:
            return
        with scope:
            # One at a time: the one before may still be giving its slot back.
            async with self._turn:
                await generate(self._engine, order, self.session, self._limits, self._driver.command)
        del self._scopes[order.run]
