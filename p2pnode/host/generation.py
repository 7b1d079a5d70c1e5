"""One engine request on behalf of a session: the engine's events become the machine's commands.

Tokens are coalesced here, by time and by count; the machine never sees this clock. The first tokens
of a run go out at once. No report reaches over a checkpoint where the engine's events don't: the machine
would have to send its ids in two parts, the first without text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from p2pnode.errors import EngineError
from p2pnode.limits import Limits
from p2pnode.models.engine import Done, Engine, GenerateRequest, Prefill, Sampling, Started, Tokens
from p2pnode.protocols.inference.commands import (
    Count,
    Counted,
    CountFailed,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenStarted,
    GenTokens,
)
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, PromptBody

log = structlog.get_logger()
Report = Callable[[Any], Awaitable[None]]


async def generate(engine: Engine, order: Generate, cache_key: bytes, limits: Limits, report: Report) -> None:
    """Run ``order`` to its end, reporting ``HostCommand`` values. Cancelling it frees the engine's slot."""
    try:
        while not await _try(engine, order, cache_key, limits, report):
            pass
    except EngineError as error:
        await report(GenFailed(order.run, error.code, str(error), error.retry_after_s))
    except Exception:
        # An engine's bug costs this turn, never the node.
        log.exception("engine.failed")
        await report(
            GenFailed(order.run, "internal", "the engine failed: try again or use another host", 1.0)
        )


async def count_input(engine: Engine, order: Count, cache_key: bytes, n_ctx: int, report: Report) -> None:
    """Count a turn's prompt before anything is generated; report ``Counted`` or ``CountFailed``.

    What the cache holds now is promised not to be billed, even if it is gone when the engine starts.
    """
    try:
        prompt_ids = await _prompt_ids(engine, order.body)
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
    reused = min(engine.reusable(cache_key, prompt_ids), len(prompt_ids))
    await report(Counted(order.turn, len(prompt_ids), reused))


async def _prompt_ids(engine: Engine, body: PromptBody) -> tuple[int, ...]:
    messages = [{"role": message.role, "content": message.content} for message in body.messages]
    return (*await engine.render(messages), *body.prefix)


async def _try(engine: Engine, order: Generate, cache_key: bytes, limits: Limits, report: Report) -> bool:
    """False when an answer that is under way found the queue full: it was admitted once, so it waits."""
    try:
        await _generate(engine, order, cache_key, limits, report)
    except EngineError as error:
        if error.code != "capacity" or not order.answer_ids:
            raise
        await trio.sleep(min(error.retry_after_s or 1.0, limits.stall_s / 3))
        return False
    return True


async def _generate(
    engine: Engine, order: Generate, cache_key: bytes, limits: Limits, report: Report
) -> None:
    body = order.body
    prompt_ids = (*await _prompt_ids(engine, body), *order.answer_ids)
    request = GenerateRequest(
        prompt_ids=prompt_ids,
        sampling=_sampling(body, order.tokens_max),
        cache_key=cache_key,
        untold=0 if order.answer_ids else body.untold,  # told with the first of the answer's own ids
    )
    flow = _Coalescer(order.run, len(order.answer_ids), limits, report)
    async with engine.generate(request) as events:
        async for event in events:
            match event:
                case Started(tokens_in=tokens_in, reused=reused):
                    # A continuation after lost credit re-reads the answer: the client never pays for that.
                    await report(GenStarted(order.run, tokens_in - len(order.answer_ids), reused))
                case Prefill(processed=processed, total=total):
                    await report(GenProgress(order.run, processed, total))
                case Tokens():
                    await flow.add(event)
                case Done(reason=reason):
                    await flow.flush()
                    await report(GenDone(order.run, reason))


def _sampling(body: PromptBody, tokens_max: int) -> Sampling:
    asked = body.sampling
    return Sampling(
        tokens_max=tokens_max,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        repeat_penalty=asked.repeat_penalty,
        seed=asked.seed,
        stop=asked.stop,
    )


class _Coalescer:
    """Gathers tokens until the interval, the count or the turn's next checkpoint is reached."""

    def __init__(self, run: int, made: int, limits: Limits, report: Report) -> None:
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
