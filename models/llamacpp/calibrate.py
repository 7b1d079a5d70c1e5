"""Measures a model on this machine with the settings of ``models/calibration.py``, and keeps the choice.

What is remembered holds for one model, one version of the engine and one machine (its processor and cores).
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil
import trio

from p2pnode.errors import ConfigError, EngineError
from p2pnode.files import read_text_or_none, write_atomic
from p2pnode.models.calibration import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    Timing,
    chosen,
    grid,
    remembered,
    with_choice,
)
from p2pnode.models.engine import GenerateRequest, Prefill, Tokens
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine
from p2pnode.models.local_models import LocalModel, installed
from p2pnode.models.manifest import model_id_text
from p2pnode.platforms import cores_here
from p2pnode.protocols.inference.messages import SamplingParams

FILE: Final = "calibration.json"
_N_CTX: Final = 256
_CPUINFO: Final = Path("/proc/cpuinfo")


async def timings_of(
    model: LocalModel, *, seconds: float, on_timing: Callable[[Timing], None] = lambda _timing: None
) -> list[Timing]:
    """Load ``model`` with one setting after another, and time a question with each; the most promising come
    first, and ``seconds`` is for all of them but the last. Raises ``EngineError``.
    """
    ends = trio.current_time() + seconds
    timings: list[Timing] = []
    for threads, batch in grid(cores_here(), psutil.cpu_count(logical=False)):
        if timings and trio.current_time() >= ends:
            break
        engine = LlamaCppEngine(model, LlamaCppConfig(n_ctx=_N_CTX, slots=1, threads=threads, batch=batch))
        try:
            await engine.load()
            timings.append(await _timed(engine, threads, batch))
        finally:
            with trio.CancelScope(shield=True):
                await engine.aclose()
        on_timing(timings[-1])
    return timings


def read_choice(data_dir: Path, model: LocalModel) -> Timing | None:
    """What was remembered for this model here; None where nothing was."""
    return remembered(read_text_or_none(data_dir / FILE), _key(model))


def weights_per_s(data_dir: Path, models_dir: Path) -> float | None:
    """The most bytes of weights that were read in a second for the tokens of an answer, among the models that
    were calibrated here; None for none. Blocks on the disk."""
    text = read_text_or_none(data_dir / FILE)
    if text is None:
        return None
    here = [each for each in installed(models_dir) if each.manifest.format == "gguf"]
    timed = [(each, remembered(text, _key(each))) for each in here]
    rates = [each.manifest.size_bytes * timing.tokens_per_s for each, timing in timed if timing is not None]
    return max(rates, default=None)


def keep_choice(data_dir: Path, model: LocalModel, timings: list[Timing]) -> Timing:
    """Remember the choice among ``timings``, and return it. Raises ``ConfigError``."""
    path, choice = data_dir / FILE, chosen(timings)
    try:
        text = read_text_or_none(path)
    except ConfigError:
        text = None  # it can't be read, and is written anew
    write_atomic(path, with_choice(text, _key(model), choice).encode())
    return choice


def _key(model: LocalModel) -> str:
    return f"{model_id_text(model.model_id)} {_build()} {_processor()} {cores_here()}"


def _build() -> str:
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return "none"  # of which nothing is remembered


def _processor() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


async def _timed(engine: LlamaCppEngine, threads: int, batch: int) -> Timing:
    word = (await engine.tokenize("sea"))[:1]
    request = GenerateRequest(
        prompt_ids=word * PROMPT_TOKENS,
        sampling=SamplingParams(tokens_max=ANSWER_TOKENS, temperature=1.0),
        seed=1,
        cache_key=b"calibration",
    )
    began = trio.current_time()
    read_at = last_at = began
    made = 0
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, Prefill):
                read_at = trio.current_time()
            elif isinstance(event, Tokens):
                made, last_at = made + len(event.ids), trio.current_time()
    if made < 2 or last_at <= read_at:  # noqa: PLR2004 - one token is no rate
        raise EngineError("the model ended its answer at once, so that its speed can't be measured")
    decode_s = (last_at - read_at) * ANSWER_TOKENS / made
    return Timing(threads=threads, batch=batch, prefill_s=max(read_at - began, 1e-6), decode_s=decode_s)
