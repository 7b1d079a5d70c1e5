"""``SessionWork``: the counts and engine requests of a session, and to whom they report.

A paid session's work goes on when its stream is lost. It knows what an order is and when it ends; how one is
run is in ``generation.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from p2pnode.errors import EngineError
from p2pnode.host.admission import origin_of_payer
from p2pnode.host.generation import NO_PROMPT, Requester, Texts, TurnPrompt, answer, counted
from p2pnode.host.model_pool import Hold, HoldModel
from p2pnode.host.prompt_filter import FILTERED_RETRY_S, PromptFilter
from p2pnode.host.turn_times import TurnTimes
from p2pnode.host.unpaid_work import TOO_MUCH, CompileTurns, UnpaidWork
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.engine import Engine
from p2pnode.node.driver import Driver
from p2pnode.payments.escrow import EscrowIntake
from p2pnode.protocols.events import Emit
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    Count,
    CountFailed,
    Embed,
    Generate,
    GenFailed,
    GenTokens,
    GenVector,
    GiveWay,
    Issued,
    TurnServed,
)
from p2pnode.protocols.inference.open_session import OpenSession
from p2pnode.shares import Origin


class SessionWork:
    """The counts and engine requests of one session. A paid one's go on when its stream is lost.

    What they report goes to the driver of the stream that has the session; while there is none, to the
    session itself, which keeps it for whoever resumes it. ``start_soon`` runs a task that outlives streams.
    ``hold`` holds the session's model, which may have to be loaded.
    """

    def __init__(
        self,
        hold: HoldModel,
        origin: Origin,
        *,
        limits: Limits,
        start_soon: Callable[..., None],
        escrow: EscrowIntake | None,
        on_turn: Callable[[TurnServed, TurnTimes], None],
        unpaid: UnpaidWork,
        compiling: CompileTurns,
        prompt_filter: PromptFilter | None = None,
    ) -> None:
        self._hold, self._origin, self._limits = hold, origin, limits
        self._holds: dict[int, Hold] = {}
        """By turn, from its count to its end: the model isn't unloaded under it."""
        self._unpaid, self._compiling, self._filter = unpaid, compiling, prompt_filter
        self._unrewarded: set[int] = set()
        """Turns whose count has led to nothing yet."""
        self._start_soon, self._escrow, self._on_turn = start_soon, escrow, on_turn
        self._record: OpenSession | None = None
        self.driver: Driver | None = None
        """Of the stream that has the session."""
        self._rerouted = trio.Event()
        """Set when reports have somewhere else to go; then made anew."""
        self._missed: deque[Any] = deque()
        """Reports that no driver gave to its machine, the oldest first."""
        self._detached = trio.Lock()
        self._prompts: dict[int, TurnPrompt | Texts] = {}
        """Of each turn, once it was counted."""
        self._scopes: dict[int, trio.CancelScope] = {}
        """Of the engine requests that run, by their numbers."""
        self._times: dict[int, TurnTimes] = {}
        """Of each turn whose prompt came."""
        self._calls: dict[int, trio.Lock] = {}
        """By turn: held while a request of it has, or releases, its slot of the engine."""
        self._is_over = False

    @property
    def session(self) -> SessionId | None:
        """Whose work it is."""
        return self._record.session if self._record is not None else None

    def attach(self, driver: Driver, record: OpenSession) -> None:
        """A stream has the session now. What the one before was not told is told to this one, first."""
        if self.driver is not None:
            self._missed.extend(self.driver.take_reports())
        self.driver, self._record = driver, record
        record.granted.memory.give_way = self._give_way
        while self._missed:
            driver.command_nowait(self._missed.popleft())
        # Again, for the stream before may have ended before it heard it: to the others this means nothing.
        for turn in record.leaving:
            driver.command_nowait(GiveWay(turn))
        self._reroute()

    def detach(self) -> None:
        """No stream has the session: the turns go on as far as their credit reaches."""
        if self.driver is not None:
            self._missed.extend(self.driver.take_reports())
        if self._record is not None:
            self._missed.extend(map(GiveWay, self._record.leaving))
        self.driver = None
        self._start_soon(self._catch_up)
        self._reroute()

    def stop(self) -> None:
        """The session is over."""
        self._is_over = True
        if self._record is not None:
            self._record.granted.memory.forget_role()  # the session may be kept, and this must not be then
        for scope in self._scopes.values():
            scope.cancel()
        for turn in list(self._holds):
            self._release(turn)
        self._reroute()

    def perform(self, value: Count | Generate | Embed | CancelGenerate | TurnServed) -> None:
        """Do what the machine asks for."""
        match value:
            case Count(turn=turn):
                self._times[turn] = TurnTimes(trio.current_time())
                self._run(-turn, self._count, value)
            case Generate(run=run) | Embed(run=run):
                self._run(run, self._answer, value)
            case CancelGenerate(run=run):
                self._cancel(run)
            case TurnServed(turn=turn):
                self._cancel(-turn)
                self._release(turn)
                self._prompts.pop(turn, None)
                self._unrewarded.discard(turn)
                self._calls.pop(turn, None)

    def take_times(self, turn: int) -> TurnTimes:
        """Where the time of a turn that is over went."""
        return self._times.pop(turn, None) or TurnTimes(trio.current_time())

    def _give_way(self, turn: int) -> None:
        # No report, which would wait as long as the client takes nothing: it must not hold up who needs room.
        if self.driver is not None:
            self.driver.command_nowait(GiveWay(turn))
        else:
            self._start_soon(self.report, GiveWay(turn))

    def _run(
        self, number: int, function: Callable[..., Awaitable[None]], order: Count | Generate | Embed
    ) -> None:
        # Made here, not in the task: the machine may cancel the work before the task has begun.
        scope = self._scopes[number] = trio.CancelScope()
        self._start_soon(self._work, number, scope, function, order)

    def _cancel(self, number: int) -> None:
        if (scope := self._scopes.get(number)) is not None:
            scope.cancel()

    async def _work(
        self,
        number: int,
        scope: trio.CancelScope,
        function: Callable[..., Awaitable[None]],
        order: Count | Generate | Embed,
    ) -> None:
        try:
            with scope:
                await function(order)
        finally:
            del self._scopes[number]

    def _reroute(self) -> None:
        self._rerouted.set()
        self._rerouted = trio.Event()

    # ---- reports

    async def report(self, value: Any) -> None:
        """Tell whoever has the session."""
        while not self._is_over:
            driver, rerouted = self.driver, self._rerouted
            if driver is not None:
                if await driver.command(value):
                    return
                if self.driver is driver:
                    await rerouted.wait()  # its stream is over: another one comes, or none does
                continue
            async with self._detached:
                if self.driver is None:
                    self._missed.append(value)
                    await self._tell_missed()
                    return

    async def _catch_up(self) -> None:
        async with self._detached:
            await self._tell_missed()

    async def _tell_missed(self) -> None:
        while self._missed and self.driver is None:
            await self._tell_record(self._missed.popleft())

    async def _tell_record(self, value: Any) -> None:
        """Give a report to the session itself, and do what it decides. There is nobody to send to."""
        record = self._record
        if record is None:
            return
        for effect in record.report_detached(value, trio.current_time()):
            match effect:
                case Emit(value=(Count() | Generate() | Embed() | CancelGenerate() | TurnServed()) as order):
                    self.perform(order)
                    if isinstance(order, TurnServed):
                        self._on_turn(order, self.take_times(order.turn))
                case Emit(value=Issued(receipt=receipt)) if self._escrow is not None:
                    await self._escrow.issued(record.session, receipt)
                case _:
                    pass

    # ---- the engine

    async def _count(self, order: Count) -> None:
        record = self._record
        if record is None:
            return
        wait_s = self._unpaid.begin(self._origin, self._payer(record), trio.current_time())
        if wait_s:
            await self.report(CountFailed(order.turn, *TOO_MUCH, wait_s))
            return
        self._unrewarded.add(order.turn)
        if self._filter is not None and (why := await self._filter.refusal(order.body)):
            # No code that calls the question wrong: another host may well serve it.
            await self.report(CountFailed(order.turn, "capacity", why, FILTERED_RETRY_S))
            return
        try:
            engine = await self._engine_of(order.turn, embeds=bool(order.body.embed))
        except EngineError as error:  # its model is cold, and can't be had in time
            await self.report(CountFailed(order.turn, error.code, str(error), error.retry_after_s))
            return
        async with self._compiling.turn_of(self._turns_go_to(record)):
            news, prompt = await counted(engine, order, record.session, record.granted.n_ctx)
        if isinstance(prompt, CompiledPrompt):
            self._prompts[order.turn] = TurnPrompt(prompt, order.body.text_bytes)
        else:
            self._prompts[order.turn] = prompt
        if (times := self._times.get(order.turn)) is not None:
            times.counted(trio.current_time())
        await self.report(news)

    async def _answer(self, order: Generate | Embed) -> None:
        record = self._record
        if record is None:
            return

        async def report(value: Any) -> None:
            # From here on it is no work for nothing. Not before: in a free session nothing is paid for it.
            if isinstance(value, GenTokens | GenVector) and order.turn in self._unrewarded:
                self._unrewarded.remove(order.turn)
                self._unpaid.paid(self._origin, self._payer(record))
            await self.report(value)

        # One at a time: the run before may still be releasing its slot of the engine.
        async with self._calls.setdefault(order.turn, trio.Lock()):
            times = self._times.get(order.turn) or TurnTimes(trio.current_time())
            times.ordered(trio.current_time())
            requester = Requester(record.session, self._turns_go_to(record), self._compiling, times)
            prompt = self._prompts.get(order.turn) or TurnPrompt(NO_PROMPT, 0)
            try:
                engine = await self._engine_of(order.turn, embeds=isinstance(order, Embed))
            except EngineError as error:
                await report(GenFailed(order.run, error.code, str(error), error.retry_after_s))
                return
            await answer(engine, order, prompt, requester, limits=self._limits, report=report)

    async def _engine_of(self, turn: int, *, embeds: bool) -> Engine:
        """The engine that a turn works with, held until the turn is over. Raises ``EngineError``."""
        held = self._holds.get(turn)
        if held is None:
            held = await self._hold(embeds=embeds)
            # Nothing runs between here and the end of the wait: a turn that is over has cancelled it.
            self._holds[turn] = held
        return held.engine

    def _release(self, turn: int) -> None:
        if (held := self._holds.pop(turn, None)) is not None:
            held.release()

    def _turns_go_to(self, record: OpenSession) -> Origin:
        """Slots of the engine go round by payer where a session is paid, else by where the client is."""
        return self._payer(record) or self._origin

    @staticmethod
    def _payer(record: OpenSession) -> Origin | None:
        """Who pays; None in a free session."""
        return None if record.channel.free else origin_of_payer(record.channel.terms)
