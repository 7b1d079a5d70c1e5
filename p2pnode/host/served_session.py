"""``ServedSession``: one stream that a host serves.

What the machine decides about money is handed to ``EscrowIntake``, which writes it to the disk before the
driver goes on. What it asks of the engine is ``SessionWork``, which may outlive the stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from p2pnode.host.session_work import SessionWork
from p2pnode.host.turn_times import TurnTimes
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.sleep import SleepWatch
from p2pnode.payments.escrow import EscrowIntake
from p2pnode.protocols.inference.commands import (
    Alive,
    AskAlive,
    CancelGenerate,
    Count,
    Drain,
    Embed,
    Escrowed,
    Finished,
    Generate,
    HostEmission,
    InUse,
    Issued,
    Kept,
    Leaving,
    NotEscrowed,
    Opened,
    Paid,
    Probe,
    Relay,
    Replaced,
    TurnServed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import CODEC, Refuse
from p2pnode.protocols.inference.open_session import OpenSession
from p2pnode.shares import Origin


class ServedSession:
    """Drives one ``HostSession``. ``work_of`` gives the work of a session once it is open: that of the stream
    before, where it goes on."""

    def __init__(
        self,
        machine: HostSession,
        stream: Stream,
        *,
        limits: Limits,
        work_of: Callable[[Opened], SessionWork | None],
        on_opened: Callable[[Opened], Awaitable[None]],
        on_turn: Callable[[TurnServed, TurnTimes], None],
        on_relay: Callable[[Relay], None] = lambda _order: None,
        on_leaving: Callable[[Leaving], Awaitable[Kept]] | None = None,
        on_claim: Callable[[Probe | Alive], None] = lambda _value: None,
        escrow: EscrowIntake | None = None,
        sleep: SleepWatch | None = None,
        origin: Origin,
    ) -> None:
        self.origin = origin
        """Where the client comes from."""
        self._on_relay, self._escrow = on_relay, escrow
        self._on_leaving, self._on_claim = on_leaving, on_claim
        self._machine, self._stream, self._limits = machine, stream, limits
        self._work_of, self._on_opened, self._on_turn = work_of, on_opened, on_turn
        self._driver = Driver(
            machine,
            MessageChannel(stream, CODEC),
            on_emit=self._emitted,
            write_deadline_s=limits.stall_s,
            sleep=sleep,
        )
        self._work: SessionWork | None = None
        self.session: SessionId | None = None
        self.finished: Finished | None = None
        self.peer, self.address = stream.peer, stream.remote_addr
        self.paid = False
        """Whether it costs its client anything."""
        self.rests_since: float | None = trio.current_time()
        """Since when it asks nothing of the engine; None while a turn is served."""
        self._is_draining = False
        self.is_yielding = False
        """Whether it was told to give way."""

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
            await self._driver.run_to_close(self._stream, self._machine.start(trio.current_time()))
        finally:
            if self._work is not None and self._work.driver is self._driver:
                if self.finished is not None and self.finished.lingers:
                    self._work.detach()
                elif self.finished is not None or not self.paid:
                    self._work.stop()
                    if self.record is not None:
                        self.record.abandon("over")
                # Else this side failed: whoever resumes the session goes on with its work.

    def drain(self) -> None:
        """End after the present turn."""
        self._is_draining = True
        self._driver.command_nowait(Drain())

    def replaced(self) -> None:
        """Another stream has the session now."""
        self._driver.command_nowait(Replaced())

    def ask_alive(self) -> None:
        """Another process of the client has proved that the session is its own: ask this one."""
        self._driver.command_nowait(AskAlive())

    def in_use(self) -> None:
        """The stream that has the session which this one wants has answered."""
        self._driver.command_nowait(InUse())

    def end(self, why: str) -> None:
        """End now, because what follows could not be paid any more."""
        self.tell(NotEscrowed(Refuse(code="payment_required", detail=why)))

    def tell(self, value: Escrowed | NotEscrowed) -> None:
        """Tell the machine what became of the client's deposit."""
        self._driver.command_nowait(value)

    def give_way(self) -> None:
        """End now, or after the turn that is served, so that another client gets the place."""
        self.is_yielding = True
        if self.rests_since is None:
            self.drain()
        # As if its time were up: of these timers the one that is armed says what the session waits for.
        for key in ("open", "idle", "prompt"):
            self._driver.fire_nowait(key)

    async def _emitted(self, value: HostEmission) -> None:
        match value:
            case Opened(session=session):
                self.session = session
                self.paid = self.paid or (self.record is not None and not self.record.channel.free)
                # Before the first await: no report of an engine may be lost between two streams.
                self._work = self._work_of(value)
                if self._work is not None and self.record is not None:
                    self._work.attach(self._driver, self.record)
                self._note_rest()
                await self._on_opened(value)
            case Leaving() if self._on_leaving is not None:
                # Nothing is sent before this returns: that the session is left is on the disk by then.
                self._driver.command_nowait(await self._on_leaving(value))
            case Probe() | Alive():
                self._on_claim(value)
            case Relay() | Issued() | Paid():
                await self._money(value)
            case Count() | Generate() | Embed() | CancelGenerate() | TurnServed():
                if self._work is not None:
                    self._work.perform(value)
                if isinstance(value, TurnServed):
                    now = trio.current_time()
                    times = self._work.take_times(value.turn) if self._work is not None else TurnTimes(now)
                    self._on_turn(value, times)
                elif isinstance(value, Generate | Embed):
                    self.is_yielding = self._is_draining
                self._note_rest()
            case Finished():
                self.finished = value
                self._driver.stop()
            case _:
                pass

    def _note_rest(self) -> None:
        """Note whether the engine is asked for anything."""
        turns = self.record.turns.values() if self.record is not None else ()
        if any(turn.state == "serving" for turn in turns):
            self.rests_since = None
        elif self.rests_since is None:
            self.rests_since = trio.current_time()

    async def _money(self, value: Relay | Issued | Paid) -> None:
        """Write down what the machine decided about money.

        The driver sends and handles nothing before this returns, so that nothing is served or said that a
        crash could make us forget.
        """
        session, escrow = self.session, self._escrow
        match value:
            case Relay():
                self.session, self.paid = value.session, True
                self._on_relay(value)
            case Issued(receipt=receipt) if escrow is not None and session is not None:
                await escrow.issued(session, receipt)
            case Paid(voucher=voucher) if escrow is not None and session is not None:
                await escrow.paid(session, voucher)
            case _:
                pass
