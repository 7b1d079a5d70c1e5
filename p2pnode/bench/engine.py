"""``engine.*``: our engine against llama.cpp's own server, without any network.

Ours is llama.cpp in a child process behind the ``Engine`` seam; the other is llama.cpp's server in another,
whose frames are read and nothing is made of them. Both get the same ids, take turns, and run with the same
threads, slots and rows of a batch. At their defaults they run once more: that is shown, and has no target.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.bench.figure import paired
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.token_clock import question
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import LocalError
from p2pnode.models.calibration import chosen, table
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.child.process import ChildProcess
from p2pnode.models.context import allocated
from p2pnode.models.engine import Engine, GenerateRequest, Tokens
from p2pnode.models.llamacpp.calibrate import timings_of
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine, start_llamacpp
from p2pnode.models.llamacpp.run import SAMPLERS
from p2pnode.models.local_models import LocalModel
from p2pnode.models.pull.pull import pull
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, SamplingParams

_SLOTS: Final = 8
_N_CTX: Final = 512
_TOKENS: Final = {1: 129, 4: 65, 8: 49}
"""Output tokens of each stream, by their number: the first one, and those that are counted."""
_CALIBRATION_S: Final = 60.0
_PREFILLS: Final = 3
_LOAD_S: Final = 120.0
_RUN_S: Final = 180.0
_STALL_S: Final = 60.0
_SHORTEST: Final = 0.9
"""Of what was asked for: an answer that ends earlier would be counted by too few tokens."""
_CONTEXT: Final = (
    "The lighthouse stood on a rock that the sea left bare for two hours a day. Its keeper wrote down the "
    "wind, the ships and the birds, every evening, in a book with a green cover. "
) * 4
"""What a prompt begins with, so that reading it takes long enough to be measured."""
_BARE: Final = "p2pnode.bench.llamacpp_process"


async def measure_engine(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    local = await pull(Catalogue.load().find(DEFAULT_MODEL), options.scratch / "models")
    pairs = 1 if options.quick else options.pairs
    config = LlamaCppConfig(n_ctx=_N_CTX, slots=_SLOTS)
    bare = partial(
        start_llamacpp,
        model=local.weights_path,
        n_ctx=allocated(_N_CTX),
        slots=_SLOTS,
        threads=config.threads,
        runtime_dir=None,
        deadline_s=_LOAD_S,
    )
    async with _beside(local, config, bare) as bench:
        prefill = paired(await bench.prefill(min(pairs, _PREFILLS)))
        read = {f"prefill_{name}": prefill.details[name] for name in ("ours_p50", "baseline_p50")}
        for streams, tokens in _TOKENS.items():
            decode = await bench.decode(pairs, streams, _fewer(tokens, options))
            details = {**bench.said, **read, "prefill_ratio": round(prefill.ratio, 4)}
            take(f"engine.throughput_{streams}", paired(decode, **details))
    config = LlamaCppConfig(n_ctx=_N_CTX)
    async with _beside(local, config, partial(_at_its_defaults, local.weights_path, config.slots)) as bench:
        tokens = _fewer(_TOKENS[4], options)
        take("engine.defaults_decode", paired(await bench.decode(pairs, config.slots, tokens), **bench.said))
        take("engine.defaults_prefill", paired(await bench.prefill(pairs), **bench.said))
    timings = await timings_of(local, seconds=0.0 if options.quick else _CALIBRATION_S)
    best, choice = min(each.total_s for each in timings), chosen(timings)
    details = {"threads": choice.threads, "batch": choice.batch, "grid": table(timings)}
    take("engine.calibrated", paired([(1 / choice.total_s, 1 / best)], **details))


def _fewer(tokens: int, options: BenchOptions) -> int:
    return 1 + (tokens - 1) // 3 if options.quick else tokens


async def _at_its_defaults(model: Path, slots: int) -> ChildProcess:
    config = {"model": str(model), "n_ctx": allocated(_N_CTX), "slots": slots}
    return await ChildProcess.start(_BARE, config, loads=model.name, runtime_dir=None, deadline_s=_LOAD_S)


@asynccontextmanager
async def _beside(
    local: LocalModel,
    config: LlamaCppConfig,
    start_bare: Callable[[], Coroutine[Any, Any, ChildProcess]],
) -> AsyncIterator[_Bench]:
    engine = LlamaCppEngine(local, config)
    try:
        info = await engine.load()
        bare = await start_bare()
        said = {"model": local.name, "threads": config.threads, "slots": info.slots, "batch": info.batch}
        try:
            yield _Bench(engine, bare, said)
        finally:
            await bare.stop()
    finally:
        with trio.CancelScope(shield=True):
            await engine.aclose()


@dataclass(slots=True)
class _Came:
    """The output tokens of one stream: how many had come by when."""

    times: list[tuple[float, int]] = field(default_factory=list)

    def tell(self, tokens: int) -> None:
        if tokens > self.tokens:
            self.times.append((trio.current_time(), tokens))

    @property
    def tokens(self) -> int:
        return self.times[-1][1] if self.times else 0

    def by(self, moment: float) -> int:
        return max((tokens for when, tokens in self.times if when <= moment), default=0)


@dataclass(frozen=True, slots=True)
class _Bench:
    engine: Engine
    bare: ChildProcess
    said: dict[str, Any]
    """How ours runs, for the figures."""

    async def decode(self, count: int, streams: int, tokens: int) -> list[tuple[float, float]]:
        """(ours, the bare server's) output tokens/s once all streams write. The first pair doesn't count."""
        return [await self._pair(number, streams, tokens) for number in range(-1, count)][1:]

    async def prefill(self, count: int) -> list[tuple[float, float]]:
        """(ours, the bare server's) tokens/s of a prompt that is read alone."""
        return [await self._pair(number, 1, 1) for number in range(-1, count)][1:]

    async def _pair(self, number: int, streams: int, tokens: int) -> tuple[float, float]:
        before = _CONTEXT if tokens == 1 else ""
        prompts = [await self._prompt(f"{before}{question(number + 1, stream)}") for stream in range(streams)]
        if number % 2:
            bare = await self._rate(self._bare_stream, prompts, tokens)
            return await self._rate(self._own_stream, prompts, tokens), bare
        ours = await self._rate(self._own_stream, prompts, tokens)
        return ours, await self._rate(self._bare_stream, prompts, tokens)

    async def _prompt(self, text: str) -> tuple[int, ...]:
        body = PromptBody(messages=(ChatMessage.of("user", text),), seed=bytes(16))
        return (await self.engine.prompt(body)).ids

    @staticmethod
    async def _rate(
        stream: Callable[[tuple[int, ...], int, _Came], Coroutine[Any, Any, None]],
        prompts: list[tuple[int, ...]],
        tokens: int,
    ) -> float:
        began, streams = trio.current_time(), [_Came() for _ in prompts]
        with trio.fail_after(_RUN_S):
            async with trio.open_nursery() as nursery:
                for ids, came in zip(prompts, streams, strict=True):
                    nursery.start_soon(stream, ids, tokens, came)
        if (least := min(came.tokens for came in streams)) < tokens * _SHORTEST:
            msg = f"an answer ended after {least} tokens of {tokens}"
            raise LocalError(msg)
        all_began = max(came.times[0][0] for came in streams)
        if tokens == 1:
            return sum(map(len, prompts)) / (all_began - began)
        written = sum(came.tokens - came.by(all_began) for came in streams)
        return written / (max(came.times[-1][0] for came in streams) - all_began)

    async def _own_stream(self, ids: tuple[int, ...], tokens: int, came: _Came) -> None:
        request = GenerateRequest(
            prompt_ids=ids,
            seed=0,
            sampling=SamplingParams(tokens_max=tokens, temperature=0.0),
            cache_key=secrets.token_bytes(32),
        )
        made = 0
        async with self.engine.generate(request) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    made += len(event.ids)
                    came.tell(made)

    async def _bare_stream(self, ids: tuple[int, ...], tokens: int, came: _Came) -> None:
        sampling = SamplingParams()
        body = {
            "prompt": ids,
            "n_predict": tokens,
            "temperature": 0.0,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "samplers": SAMPLERS,
            "stream": True,
            "cache_prompt": False,
        }
        async with aclosing(self.bare.http.stream("/completion", body, stall_s=_STALL_S)) as bulks:
            async for bulk in bulks:
                for frame in bulk:
                    came.tell(int(frame.get("tokens_predicted", 0)))
