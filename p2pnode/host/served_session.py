"""One stream that a host serves, and the work of a session: its counts and engine requests.

What the machine decides about money is handed to ``EscrowIntake``, which writes it to the disk before the
driver goes on. An engine's tokens are gathered here, by time and by count, and become the machine's commands;
the machine never sees this clock. The first tokens of a run go out at once.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import structlog
import trio

from p2pnode.errors import EngineError, EngineLostError, ProtocolError, WireCode
from p2pnode.host.admission import origin_of_payer
from p2pnode.host.unpaid_work import CompileTurns, UnpaidWork
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.models.answer import (
    CALLS_MAX,
    AnswerPieces,
    Said,
    joined,
    reader_of,
    said_bytes,
    without_first,
)
from p2pnode.models.compiled_prompt import GROWTH_BYTES, CompiledPrompt
from p2pnode.models.engine import (
    Done,
    Embedding,
    EmbedRequest,
    Engine,
    GenerateRequest,
    Logprob,
    Prefill,
    Started,
    Tokens,
)
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.sleep import SleepWatch
from p2pnode.payments.escrow import EscrowIntake
from p2pnode.protocols.events import Emit
from p2pnode.protocols.inference.commands import (
    Alive,
    AskAlive,
    CancelGenerate,
    Count,
    Counted,
    CountFailed,
    Drain,
    Embed,
    Escrowed,
    Finished,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenTokens,
    GenVector,
    GiveWay,
    Grown,
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
from p2pnode.protocols.inference.embeddings import texts_hash, vector_bytes
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    CODEC,
    EMBED_TOKENS_MAX,
    FinishReason,
    PromptBody,
    Refuse,
    TokenLogprob,
    TopToken,
)
from p2pnode.protocols.inference.open_session import OpenSession
from p2pnode.protocols.inference.prompt_rules import cache_scope, call_seed, check_prompt
from p2pnode.protocols.inference.receipts import ids_hash
from p2pnode.protocols.inference.replay import Piece
from p2pnode.shares import Origin

log = structlog.get_logger()
TOO_MUCH: Final[tuple[WireCode, str]] = (
    "rate_limited",
    "too many of your prompts were counted and led to no answer: wait, or ask for less at once",
)
_LOGPROB_LEAST: Final = 1e6
_READ_AT_ONCE: Final = 2048
"""Letters of a text that are read before others get their turn."""
_NO_PROMPT: Final = CompiledPrompt(ids=())
_BROKEN: Final[tuple[WireCode, str, float]] = (
    "internal",
    "the engine failed: try again or use another host",
    1.0,
)
Texts: TypeAlias = tuple[tuple[int, ...], ...]
"""Of an embeddings turn: the ids of each text."""


@dataclass(slots=True)
class TurnPrompt:
    """What a turn's prompt was compiled to: kept as long as the turn lives, growing with the answer.

    An engine is paused whenever its client's credit runs out, so an answer is made by many calls of it. What
    the calls before have made is read once, here; each call goes on with a copy of that reader, because what
    a call made and nobody kept is not part of the answer.
    """

    prompt: CompiledPrompt
    has: int | None
    """Bytes of the answer that its client had before the turn; None: all that the prefix says."""
    pieces: AnswerPieces | None = None
    """Has read the text of ``prompt``, but for what was added since."""
    more: int = 0
    """Bytes of its grammar beyond what it was counted for."""
    _counted: int = field(init=False)
    """What that was."""
    _read: int = 0
    """How many letters of the text ``pieces`` has read."""
    _lacking: list[Said] = field(default_factory=list)
    """Of what was read: the end, which the client may lack."""

    def __post_init__(self) -> None:
        self._counted = self.grammar_bytes + GROWTH_BYTES

    @property
    def grammar_bytes(self) -> int:
        """Bytes of its grammar; 0 where it has none."""
        return self.prompt.grammar.held_bytes if self.prompt.grammar is not None else 0

    def has_grown(self) -> bool:
        """Whether ``more``, which this brings up to date, is another number now."""
        before, self.more = self.more, max(0, self.grammar_bytes - self._counted)
        return self.more != before

    async def read_on(self, body: PromptBody, sent: int) -> tuple[AnswerPieces, list[Said]]:
        """Read what was added to the text. Returns a reader of what follows, and what the client lacks.

        ``sent``: bytes of the answer that were kept for the client since the turn began.
        """
        pieces = self.pieces = self.pieces or _pieces(self.prompt, body)
        had = sys.maxsize if self.has is None else self.has + sent
        begins = pieces.bytes - sum(map(said_bytes, self._lacking))
        self._lacking = without_first(self._lacking, max(0, had - begins))
        text = self.prompt.text
        while self._read < len(text):
            part, before = text[self._read : self._read + _READ_AT_ONCE], pieces.bytes
            self._lacking += without_first(pieces.feed(part), max(0, had - before))
            self._read += len(part)
            await trio.lowlevel.checkpoint()  # a prefix may be long, and others wait
        if self.has is None:
            self.has = had = pieces.bytes
        return pieces.copy(has=max(0, had - pieces.bytes)), joined(self._lacking)


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
        on_turn: Callable[[TurnServed], None],
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
                    self._on_turn(value)
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


class SessionWork:
    """The counts and engine requests of one session. A paid one's go on when its stream is lost.

    What they report goes to the driver of the stream that has the session; while there is none, to the
    session itself, which keeps it for whoever resumes it. ``start_soon`` runs a task that outlives streams.
    """

    def __init__(
        self,
        engine: Engine,
        origin: Origin,
        *,
        limits: Limits,
        start_soon: Callable[..., None],
        escrow: EscrowIntake | None,
        on_turn: Callable[[TurnServed], None],
        unpaid: UnpaidWork,
        compiling: CompileTurns,
    ) -> None:
        self._engine, self._origin, self._limits = engine, origin, limits
        self._unpaid, self._compiling = unpaid, compiling
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
        self._reroute()

    def perform(self, value: Count | Generate | Embed | CancelGenerate | TurnServed) -> None:
        """Do what the machine asks for."""
        match value:
            case Count(turn=turn):
                self._run(-turn, self._count, value)
            case Generate(run=run) | Embed(run=run):
                self._run(run, self._answer, value)
            case CancelGenerate(run=run):
                self._cancel(run)
            case TurnServed(turn=turn):
                self._cancel(-turn)
                self._prompts.pop(turn, None)
                self._unrewarded.discard(turn)
                self._calls.pop(turn, None)

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
                        self._on_turn(order)
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
        async with self._compiling.turn_of(self._turns_go_to(record)):
            news, prompt = await counted(self._engine, order, record.session, record.granted.n_ctx)
        if isinstance(prompt, CompiledPrompt):
            self._prompts[order.turn] = TurnPrompt(prompt, order.body.text_bytes)
        else:
            self._prompts[order.turn] = prompt
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
            requester = Requester(record.session, self._turns_go_to(record), self._compiling)
            prompt = self._prompts.get(order.turn) or TurnPrompt(_NO_PROMPT, 0)
            await answer(self._engine, order, prompt, requester, limits=self._limits, report=report)

    def _turns_go_to(self, record: OpenSession) -> Origin:
        """Slots of the engine go round by payer where a session is paid, else by where the client is."""
        return self._payer(record) or self._origin

    @staticmethod
    def _payer(record: OpenSession) -> Origin | None:
        """Who pays; None in a free session."""
        return None if record.channel.free else origin_of_payer(record.channel.terms)


MachineReport = Callable[[Any], Awaitable[None]]
"""Gives the machine a report of work: ``SessionWork.report``."""


@dataclass(frozen=True, slots=True)
class Requester:
    """On whose behalf an engine works: see ``GenerateRequest``."""

    cache_key: bytes
    origin: Origin
    compiling: CompileTurns


async def answer(
    engine: Engine,
    order: Generate | Embed,
    prompt: TurnPrompt | Texts,
    requester: Requester,
    *,
    limits: Limits,
    report: MachineReport,
) -> None:
    """Run ``order`` to its end and report ``HostCommand`` values. Cancelling it frees the engine's slot."""
    try:
        while not await _try(engine, order, prompt, requester, limits=limits, report=report):
            pass
    except EngineError as error:
        lost = isinstance(error, EngineLostError)
        await report(GenFailed(order.run, error.code, str(error), error.retry_after_s, lost))
    except Exception:
        # A defect of an engine ends this turn, and nothing else.
        log.exception("engine.failed")
        await report(GenFailed(order.run, *_BROKEN))


async def counted(
    engine: Engine, order: Count, cache_key: bytes, n_ctx: int
) -> tuple[Counted | CountFailed, CompiledPrompt | Texts]:
    """What a turn's prompt takes, before anything is generated; and the prompt as the engine takes it.

    What the cache holds now is not billed, even if it is gone when the engine starts: the count promises it.
    """
    try:
        if order.body.embed:
            return await _counted_texts(engine, order, n_ctx)
        prompt = await engine.prompt(order.body)
    except EngineError as error:
        return CountFailed(order.turn, error.code, str(error), error.retry_after_s), _NO_PROMPT
    except Exception:
        log.exception("engine.failed")
        return CountFailed(order.turn, *_BROKEN), _NO_PROMPT
    tokens_in = len(prompt.ids)
    if tokens_in >= n_ctx:
        detail = f"the conversation takes {tokens_in} tokens, this context holds {n_ctx}"
        return CountFailed(order.turn, "context_overflow", detail), _NO_PROMPT
    reused = min(engine.reusable(cache_scope(cache_key, order.body), prompt.ids), tokens_in)
    news = Counted(
        order.turn,
        tokens_in,
        reused,
        prompt_hash=ids_hash(prompt.ids),
        format=prompt.format,
        reasons=prompt.reasons,
        thinking=prompt.thinking,
        held=prompt.held_bytes,
    )
    return news, prompt


async def _counted_texts(engine: Engine, order: Count, n_ctx: int) -> tuple[Counted | CountFailed, Texts]:
    try:
        check_prompt(order.body)
    except ProtocolError as error:
        return CountFailed(order.turn, "bad_request", str(error)), ()
    texts = await engine.embed_ids(order.body.embed)
    longest, total = max(map(len, texts)), sum(map(len, texts))
    if longest > n_ctx:
        detail = f"a text takes {longest} tokens, this context holds {n_ctx}: cut it"
        return CountFailed(order.turn, "context_overflow", detail), ()
    if total > EMBED_TOKENS_MAX:
        detail = f"the texts take {total} tokens, a turn {EMBED_TOKENS_MAX}: embed fewer at once"
        return CountFailed(order.turn, "bad_request", detail), ()
    return Counted(order.turn, total, prompt_hash=texts_hash(texts)), texts


async def _try(
    engine: Engine,
    order: Generate | Embed,
    prompt: TurnPrompt | Texts,
    requester: Requester,
    *,
    limits: Limits,
    report: MachineReport,
) -> bool:
    """Run once; False where an answer under way found the queue full: it was admitted before, so it waits."""
    try:
        if isinstance(order, Embed):
            await _embed(engine, order, prompt, requester, report=report)
        elif isinstance(prompt, TurnPrompt):
            await _generate(engine, order, prompt, requester, limits=limits, report=report)
    except EngineError as error:
        if error.code != "capacity" or not order.start:
            raise
        await trio.sleep(min(error.retry_after_s or 1.0, limits.stall_s / 3))
        return False
    return True


async def _generate(
    engine: Engine,
    order: Generate,
    prompt: TurnPrompt,
    requester: Requester,
    *,
    limits: Limits,
    report: MachineReport,
) -> None:
    body, made = order.body, prompt.prompt.made
    if len(order.answer_ids) > made:
        async with requester.compiling.turn_of(requester.origin, follows=prompt.grammar_bytes):
            prompt.prompt = await engine.extend(prompt.prompt, order.answer_ids[made:])
        if prompt.has_grown():
            await report(Grown(order.turn, prompt.more))
    compiled = prompt.prompt
    request = GenerateRequest(
        prompt_ids=compiled.ids,
        sampling=replace(body.sampling, tokens_max=order.tokens_max),
        seed=call_seed(body.seed, len(body.prefix) + len(order.answer_ids)),
        cache_key=cache_scope(requester.cache_key, body),
        session=requester.cache_key,
        origin=requester.origin,
        text_pending=compiled.text_pending,
        grammar=compiled.grammar,
        logprobs=body.logprobs,
    )
    pieces, lacking = await prompt.read_on(body, order.answer_text_bytes)
    flow = _AnswerFlow(order.run, len(order.answer_ids), pieces, limits, report)
    await flow.begin(lacking)
    async with engine.generate(request) as events:
        async for event in events:
            match event:
                case Started():
                    pass  # what it found in its cache changes no quote
                case Prefill(processed=processed, total=total):
                    await report(GenProgress(order.run, processed, total))
                case Tokens():
                    await flow.add(event)
                    if pieces.is_over:  # one call was asked for: what would follow is nobody's
                        await flow.finish("stop")
                        return
                case Done(reason=reason):
                    await flow.finish(reason)


async def _embed(
    engine: Engine,
    order: Embed,
    prompt: TurnPrompt | Texts,
    requester: Requester,
    *,
    report: MachineReport,
) -> None:
    texts = () if isinstance(prompt, TurnPrompt) else prompt
    request = EmbedRequest(texts=texts[order.first :], session=requester.cache_key, origin=requester.origin)
    before, total = sum(map(len, texts[: order.first])), sum(map(len, texts))
    async with engine.embed(request) as events:
        async for event in events:
            match event:
                case Prefill(processed=processed):
                    await report(GenProgress(order.run, before + processed, total))
                case Embedding(numbers=numbers):
                    await report(GenVector(order.run, vector_bytes(numbers)))
    await report(GenDone(order.run, "stop"))


def _pieces(prompt: CompiledPrompt, body: PromptBody) -> AnswerPieces:
    tools = [tool.name for tool in body.tools]
    reader = reader_of(prompt.format, tools, reasons=prompt.reasons, thinking=prompt.thinking)
    return AnswerPieces(reader, calls_max=CALLS_MAX if body.parallel_tool_calls else 1)


class _AnswerFlow:
    """Gathers tokens until the interval, the count or the turn's next checkpoint is reached, and reports them
    in pieces by channel. The first piece has the ids.

    No report reaches over a checkpoint unless one event of the engine does: the machine would have to send
    the ids of such a report in two parts, the first one without its text.
    """

    def __init__(
        self, run: int, made: int, pieces: AnswerPieces, limits: Limits, report: MachineReport
    ) -> None:
        self._run, self._made, self._pieces = run, made, pieces
        self._limits, self._report = limits, report
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._flushed_at = -1.0

    async def begin(self, lacking: list[Said]) -> None:
        """Report what the client lacks of what earlier calls made."""
        await self._tell(lacking)
        self._flushed_at = trio.current_time()

    async def add(self, tokens: Tokens) -> None:
        """Take what the engine made."""
        room = CHECKPOINT_EVERY - self._made % CHECKPOINT_EVERY
        # A report's text completes all of its ids: ids without text can't follow ids with text in one.
        lags = bool(tokens.ids) and not tokens.text and any(self._texts)
        if self._ids and (lags or len(self._ids) + len(tokens.ids) > room):
            await self.flush()
            room = CHECKPOINT_EVERY - self._made % CHECKPOINT_EVERY
        self._ids.extend(tokens.ids)
        self._texts.append(tokens.text)
        self._logprobs += map(_logprob, tokens.logprobs)
        due = trio.current_time() - self._flushed_at >= self._limits.flush_interval_s
        if due or len(self._ids) >= min(room, self._limits.flush_tokens):
            await self.flush()

    async def flush(self) -> None:
        """Report what was gathered."""
        if self._ids or any(self._texts):
            ids, text, logprobs = tuple(self._ids), "".join(self._texts), tuple(self._logprobs)
            self._ids.clear()
            self._texts.clear()
            self._logprobs.clear()
            self._made += len(ids)
            await self._tell(self._pieces.feed(text), ids, logprobs)
        self._flushed_at = trio.current_time()

    async def finish(self, reason: FinishReason) -> None:
        """The engine is done."""
        await self.flush()
        await self._tell(self._pieces.finish(whole=reason == "stop"))
        called = reason == "stop" and self._pieces.calls
        await self._report(GenDone(self._run, "tool_calls" if called else reason))

    async def _tell(
        self, said: list[Said], ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] = ()
    ) -> None:
        first = said[0] if said else Said("content", "")
        pieces = [Piece(ids=ids, logprobs=logprobs, **_fields(first))] if said or ids else []
        for piece in [*pieces, *(Piece(ids=(), **_fields(each)) for each in said[1:])]:
            await self._report(GenTokens(self._run, piece))


def _fields(said: Said) -> dict[str, Any]:
    return {"text": said.text, "channel": said.channel, "call": said.call, "name": said.name}


def _logprob(told: Logprob) -> TokenLogprob:
    top = tuple(TopToken(id=token, logprob=_bounded(logprob)) for token, logprob in told.top)
    return TokenLogprob(logprob=_bounded(told.own), top=top)


def _bounded(logprob: float) -> float:
    """Within what the wire carries: rounding makes some a little more than 0."""
    return max(-_LOGPROB_LEAST, min(0.0, logprob))
