"""Runs a task set: asks item after item, and counts what was right.

Whoever answers is an ``Asker``: an engine here (``engine_asker``), or a host of the network. Answers are
greedy and come one at a time, because what is computed together could round differently, so that a run that
is repeated on one engine gives the same figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from p2pnode.errors import EngineLostError
from p2pnode.models.answer import Text, reader_of
from p2pnode.models.engine import Engine, EngineInfo, GenerateRequest, Logprob, Tokens
from p2pnode.models.evaluation.task_set import Item
from p2pnode.models.quality import TaskResult
from p2pnode.protocols.inference.messages import (
    LOGPROBS_MAX,
    ChatMessage,
    PromptBody,
    ResponseFormat,
    SamplingParams,
)

Asker: TypeAlias = Callable[[Item], Awaitable[str]]
"""Gives the text that answers an item; of a choice its letter is enough."""
N_CTX: Final = 2048
"""The context that an item and its answer fit into, in tokens, also where the model thinks."""
_THOUGHT_MAX: Final = 1024
"""Tokens that a model that reasons may think before its answer."""
_CACHE_KEY: Final = b"evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An item and what was answered. ``lost``: the engine died at it, and nothing was."""

    item: Item
    answer: str
    lost: bool = False

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return not self.lost and self.item.is_right(self.answer)


async def evaluate(items: Sequence[Item], ask: Asker) -> AsyncGenerator[Answered, None]:
    """Ask the items one after the other. An item at which the engine dies counts as wrong.

    Raises what ``ask`` raises besides.
    """
    for item in items:
        try:
            yield Answered(item=item, answer=await ask(item))
        except EngineLostError:  # it starts again, and the others can be asked
            yield Answered(item=item, answer="", lost=True)


def results(answered: Sequence[Answered]) -> tuple[TaskResult, ...]:
    """What was right in each task, sorted by its name."""
    names = sorted({each.item.task for each in answered})
    of = {name: [each.right for each in answered if each.item.task == name] for name in names}
    return tuple(TaskResult(task=name, right=sum(of[name]), items=len(of[name])) for name in names)


def sampling_of(item: Item, *, thinks: bool) -> SamplingParams:
    """Greedy, with room for thoughts where the model has any."""
    return SamplingParams(tokens_max=item.tokens_max + (_THOUGHT_MAX if thinks else 0), temperature=0)


def format_of(item: Item) -> ResponseFormat:
    """The form that the engine is to hold the answer to, where the item has one."""
    if item.schema is None:
        return ResponseFormat()
    return ResponseFormat(kind="json_schema", body=json.dumps(item.schema))


def engine_asker(engine: Engine, info: EngineInfo) -> Asker:
    """Asks an engine that was loaded. A choice goes by log-probabilities where it has them."""

    async def ask(item: Item) -> str:
        body = PromptBody(
            messages=(ChatMessage.of("user", item.text),),
            response_format=format_of(item) if "schema" in info.features else ResponseFormat(),
            sampling=sampling_of(item, thinks=False),
            seed=bytes(16),
        )
        prompt = await engine.prompt(body)
        thinks = prompt.reasons or prompt.thinking
        by_logprobs = bool(item.options) and not thinks and "logprobs" in info.features
        sampling = sampling_of(item, thinks=thinks)
        request = GenerateRequest(
            prompt_ids=prompt.ids,
            sampling=replace(sampling, tokens_max=1) if by_logprobs else sampling,
            seed=0,
            cache_key=_CACHE_KEY,
            text_pending=prompt.text_pending,
            grammar=prompt.grammar,
            logprobs=LOGPROBS_MAX if by_logprobs else -1,
        )
        reader = reader_of("", (), reasons=prompt.reasons, thinking=prompt.thinking)
        parts, first = [], None
        async with engine.generate(request) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    parts += reader.feed(event.text)
                    first = first or next(iter(event.logprobs), None)
        if first is not None and (letter := await _likeliest_letter(engine, item, first)):
            return letter
        parts += reader.finish()
        return "".join(each.text for each in parts if isinstance(each, Text) and each.channel == "content")

    return ask


async def _likeliest_letter(engine: Engine, item: Item, first: Logprob) -> str:
    """The option whose letter is the likeliest first token; "" where none is among those that are told."""
    known = dict(first.top)
    best, letter = -math.inf, ""
    for each in item.letters:
        for spelling in (each, f" {each}"):
            ids = await engine.tokenize(spelling)
            if len(ids) == 1 and known.get(ids[0], -math.inf) > best:
                best, letter = known[ids[0]], each
    return letter
