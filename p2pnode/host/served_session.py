"""One stream that a host serves: it drives the host machine, and runs one engine request at a time for it.

What the machine decides about money is handed to ``EscrowIntake``, which writes it to the disk before the
driver goes on. An engine's tokens are gathered here, by time and by count, and become the machine's commands;
the machine never sees this clock. The first tokens of a run go out at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog
import trio

from p2pnode.errors import EngineError
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.models.engine import Done, Engine, GenerateRequest, Prefill, Started, Tokens
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.sleep import SleepWatch
from p2pnode.payments.escrow import EscrowIntake
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    Count,
    Counted,
    CountFailed,
    Drain,
    Escrowed,
    Finished,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenStarted,
    GenTokens,
    HostEmission,
    Issued,
    NotEscrowed,
    Opened,
    Paid,
    Relay,
    Replaced,
    TurnServed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, CODEC, PromptBody, Refuse
from p2pnode.protocols.inference.open_session import OpenSession
from p2pnode.protocols.inference.prompt_rules import call_seed
from p2pnode.shares import Origin

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
        escrow: EscrowIntake | None = None,
        sleep: SleepWatch | None = None,
        origin: Origin,
    ) -> None:
        self.origin = origin
        """Where the client comes from."""
        self._on_relay, self._escrow = on_relay, escrow
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
        await self._driver.run_to_close(self._stream, self._machine.start(trio.current_time()))

    def drain(self) -> None:
        """End after the present turn."""
        self._is_draining = True
        self._driver.command_nowait(Drain())

    def replaced(self) -> None:
        """Another stream has the session now."""
        self._driver.command_nowait(Replaced())

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
            case Opened(session=session, resumed=resumed):
                self.session, self.paid = session, self.paid or resumed
                self._engine = await self._on_opened(value)
            case Relay() | Count() | Issued() | Paid():
                await self._money(value)
            case Generate(run=run):
                self.rests_since, self.is_yielding = None, self._is_draining
                # Made here, not in the task: the machine may cancel the run before the task has begun.
                self._scopes[run] = trio.CancelScope()
                self._driver.start_soon(self._generate, value, self._scopes[run])
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
        """Write down what the machine decided about money.

        The driver sends and handles nothing before this returns, so that nothing is served or said that a
        crash could make us forget.
        """
        session, escrow = self.session, self._escrow
        match value:
            case Relay():
                self.session, self.paid = value.session, True
                self._on_relay(value)
            case Count():
                self._driver.start_soon(self._count, value)
            case Issued(receipt=receipt) if escrow is not None and session is not None:
                await escrow.issued(session, receipt)
            case Paid(voucher=voucher) if escrow is not None and session is not None:
                await escrow.paid(session, voucher)
            case _:
                pass

    async def _count(self, order: Count) -> None:
        if self._engine is not None and self.session is not None:
            n_ctx = self.record.granted.n_ctx if self.record is not None else 0
            await count_input(self._engine, order, self.session, n_ctx, self._driver.command)

    def _turns_go_to(self) -> Origin:
        """Slots of the engine go round by payer where a session is paid, else by where the client is."""
        if self.record is None or not self.paid:
            return self.origin
        payer = f"payer/{self.record.channel.terms.payer.hex()}"
        return Origin(payer, payer)

    async def _generate(self, order: Generate, scope: trio.CancelScope) -> None:
        if self._engine is None or self.session is None:
            return
        with scope:
            # One at a time: the run before may still be releasing its slot of the engine.
            async with self._turn:
                requester = Requester(self.session, self._turns_go_to())
                await generate(self._engine, order, requester, self._limits, self._driver.command)
        del self._scopes[order.run]


MachineReport = Callable[[Any], Awaitable[None]]
"""Gives the machine a report of work: ``Driver.command``."""


@dataclass(frozen=True, slots=True)
class Requester:
    """On whose behalf an engine works: see ``GenerateRequest``."""

    cache_key: bytes
    origin: Origin


async def generate(
    engine: Engine, order: Generate, requester: Requester, limits: Limits, report: MachineReport
) -> None:
    """Run ``order`` to its end and report ``HostCommand`` values. Cancelling it frees the engine's slot."""
    try:
        while not await _try(engine, order, requester, limits, report):
            pass
    except EngineError as error:
        await report(GenFailed(order.run, error.code, str(error), error.retry_after_s))
    except Exception:
        # A defect of an engine ends this turn, and nothing else.
        log.exception("engine.failed")
        await report(
            GenFailed(order.run, "internal", "the engine failed: try again or use another host", 1.0)
        )


async def count_input(
    engine: Engine, order: Count, cache_key: bytes, n_ctx: int, report: MachineReport
) -> None:
    """Count a turn's prompt before anything is generated; report ``Counted`` or ``CountFailed``.

    What the cache holds now is not billed, even if it is gone when the engine starts: the report promises it.
    """
    try:
        prompt_ids = (await engine.prompt(order.body)).ids
    except EngineError as error:
        await report(CountFailed(order.turn, error.code, str(error), error.retry_after_s))
        return
    except Exception:
        log.exception("engine.failed")
        detail = "the engine failed: try again or use another host"
        await report(CountFailed(order.turn, "internal", detail, 1.0))
        return
    if len(prompt_ids) >= n_ctx:
        detail = f"the conversation takes {len(prompt_ids)} tokens, this context holds {n_ctx}"
        await report(CountFailed(order.turn, "context_overflow", detail))
        return
    reused = min(engine.reusable(cache_scope(cache_key, order.body), prompt_ids), len(prompt_ids))
    await report(Counted(order.turn, len(prompt_ids), reused))


def cache_scope(session: bytes, body: PromptBody) -> bytes:
    """Whose prefix cache a prompt may use: that of its session and its own key."""
    return session + (body.cache_key or b"")


async def _try(
    engine: Engine, order: Generate, requester: Requester, limits: Limits, report: MachineReport
) -> bool:
    """Run once; False where an answer under way found the queue full: it was admitted before, so it waits."""
    try:
        await _generate(engine, order, requester, limits, report)
    except EngineError as error:
        if error.code != "capacity" or not order.answer_ids:
            raise
        await trio.sleep(min(error.retry_after_s or 1.0, limits.stall_s / 3))
        return False
    return True


async def _generate(
    engine: Engine, order: Generate, requester: Requester, limits: Limits, report: MachineReport
) -> None:
    body = replace(order.body, prefix=(*order.body.prefix, *order.answer_ids))
    prompt = await engine.prompt(body)
    request = GenerateRequest(
        prompt_ids=prompt.ids,
        sampling=replace(body.sampling, tokens_max=order.tokens_max),
        seed=call_seed(body.seed, len(body.prefix)),
        cache_key=cache_scope(requester.cache_key, body),
        origin=requester.origin,
        text_pending=prompt.text_pending,
        grammar=prompt.grammar,
        logprobs=body.logprobs,
    )
    flow = _Coalescer(order.run, len(order.answer_ids), limits, report)
    # With the first of the answer's own ids, the text of those before came too.
    has = None if order.answer_ids else body.text_bytes
    known = _Known(prompt.text, len(prompt.text.encode()) if has is None else has)
    async with engine.generate(request) as events:
        async for event in events:
            match event:
                case Started(tokens_in=tokens_in, reused=reused):
                    # A continuation after lost credit re-reads the answer: the client never pays for that.
                    await report(GenStarted(order.run, tokens_in - len(order.answer_ids), reused))
                case Prefill(processed=processed, total=total):
                    await report(GenProgress(order.run, processed, total))
                case Tokens():
                    await flow.add(replace(event, text=known.add(event.text)))
                case Done(reason=reason):
                    await flow.flush()
                    await report(GenDone(order.run, reason))


class _Known:
    """Leaves out of an answer's text what the client has of it: the first ``has`` bytes."""

    def __init__(self, before: str, has: int) -> None:
        self._waiting = before
        """Text of the prefix that the client lacks, once :meth:`add` has taken the rest away."""
        self._has = has

    def add(self, text: str) -> str:
        """What is new to the client of what was there before and ``text``."""
        text, self._waiting = self._waiting + text, ""
        if not self._has:
            return text
        raw = text.encode(errors="replace")
        rest = raw[self._has :]
        self._has = max(0, self._has - len(raw))
        return rest.decode(errors="ignore")


class _Coalescer:
    """Gathers tokens until the interval, the count or the turn's next checkpoint is reached.

    No report reaches over a checkpoint unless one event of the engine does: the machine would have to send
    the ids of such a report in two parts, the first one without its text.
    """

    def __init__(self, run: int, made: int, limits: Limits, report: MachineReport) -> None:
        self._run, self._made, self._limits, self._report = run, made, limits, report
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._flushed_at = -1.0

    async def add(self, tokens: Tokens) -> None:
        room = CHECKPOINT_EVERY - self._made % CHECKPOINT_EVERY
        if self._ids and len(self._ids) + len(tokens.ids) > room:
            await self.flush()
            room = CHECKPOINT_EVERY - self._made % CHECKPOINT_EVERY
        self._ids.extend(tokens.ids)
        self._texts.append(tokens.text)
        due = trio.current_time() - self._flushed_at >= self._limits.flush_interval_s
        if due or len(self._ids) >= min(room, self._limits.flush_tokens):
            await self.flush()

    async def flush(self) -> None:
        if self._ids or any(self._texts):
            ids, text = tuple(self._ids), "".join(self._texts)
            self._ids.clear()
            self._texts.clear()
            self._made += len(ids)
            await self._report(GenTokens(self._run, ids, text))
        self._flushed_at = trio.current_time()
