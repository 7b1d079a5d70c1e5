"""How a host has an engine count and answer one turn, and what its machine hears of that.

An engine's tokens are gathered here, by time and by count, and read into pieces by channel; the machine never
sees this clock. The first tokens of a run go out at once. It knows nothing of streams or of other turns.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import structlog
import trio

from p2pnode.errors import EngineError, EngineLostError, ProtocolError, WireCode
from p2pnode.host.turn_times import TurnTimes
from p2pnode.host.unpaid_work import CompileTurns
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
from p2pnode.protocols.inference.commands import (
    Count,
    Counted,
    CountFailed,
    Embed,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenTokens,
    GenVector,
    Grown,
)
from p2pnode.protocols.inference.embeddings import texts_hash, vector_bytes
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    EMBED_TOKENS_MAX,
    FinishReason,
    PromptBody,
    TokenLogprob,
    TopToken,
)
from p2pnode.protocols.inference.prompt_rules import cache_scope, call_seed, check_prompt
from p2pnode.protocols.inference.receipts import ids_hash
from p2pnode.protocols.inference.replay import Piece
from p2pnode.shares import Origin

log = structlog.get_logger()
_LOGPROB_LEAST: Final = 1e6
_READ_AT_ONCE: Final = 2048
"""Letters of a text that are read before others get their turn."""
NO_PROMPT: Final = CompiledPrompt(ids=())
"""Of a turn that was not counted."""
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


MachineReport = Callable[[Any], Awaitable[None]]
"""Gives the machine a report of work: ``SessionWork.report``."""


@dataclass(frozen=True, slots=True)
class Requester:
    """On whose behalf an engine works: see ``GenerateRequest``."""

    cache_key: bytes
    origin: Origin
    compiling: CompileTurns
    times: TurnTimes
    """Of the turn."""


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
        return CountFailed(order.turn, error.code, str(error), error.retry_after_s), NO_PROMPT
    except Exception:
        log.exception("engine.failed")
        return CountFailed(order.turn, *_BROKEN), NO_PROMPT
    tokens_in = len(prompt.ids)
    if tokens_in >= n_ctx:
        detail = f"the conversation takes {tokens_in} tokens, this context holds {n_ctx}"
        return CountFailed(order.turn, "context_overflow", detail), NO_PROMPT
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
                case Started():  # what it found in its cache changes no quote
                    requester.times.started(trio.current_time())
                case Prefill(processed=processed, total=total):
                    if processed < total:  # what is made says that all is read, and comes at once
                        await report(GenProgress(order.run, processed, total))
                case Tokens():
                    requester.times.made(len(event.ids), trio.current_time())
                    await flow.add(event)
                    if pieces.is_over:  # one call was asked for: what would follow is nobody's
                        await flow.finish("stop")
                        return
                case Done(reason=reason, stop=stop):
                    await flow.finish(reason, stop)


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
                    requester.times.made(1, trio.current_time())
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
        self._flushed_at = float("-inf")
        """What comes first does not wait: where the prompt was in a cache, it comes soon."""

    async def begin(self, lacking: list[Said]) -> None:
        """Report what the client lacks of what earlier calls made."""
        await self._tell(lacking)

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

    async def finish(self, reason: FinishReason, stop: str = "") -> None:
        """The engine is done; ``stop`` is the stop string that it came to."""
        await self.flush()
        await self._tell(self._pieces.finish(whole=reason == "stop"))
        called = reason == "stop" and self._pieces.calls
        await self._report(GenDone(self._run, "tool_calls") if called else GenDone(self._run, reason, stop))

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
