"""``exllama.*``: tokens through the network against ExLlama's generator alone, on a GPU.

It is no part of ``all``, for it needs a device: ``bench stream --engine exllama --model FOLDER`` runs it. The
baseline is the library's own loop in the engine's process, without our frames, sockets and sessions.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from p2pnode.bench.figure import Goal, compared, paired
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.stream import hosting

EXLLAMA: Final = "exllama"
_TOKENS: Final = 257
_FIRST_TOKENS: Final = 30
_SLOTS: Final = 8
EXLLAMA_GOALS: Final = (
    Goal(
        name="exllama.throughput_1",
        unit="ratio",
        bound="at least",
        target=0.95,
        meaning="tokens/s over the network against the library's generator alone, one stream",
        baseline="its iterate() in the engine's process, paired runs; 1 means as fast",
    ),
    Goal(
        name="exllama.throughput_8",
        unit="ratio",
        bound="at least",
        target=0.95,
        meaning="the same with eight streams at once",
        baseline="the same, eight jobs at once",
    ),
    Goal(
        name="exllama.first_token_overhead",
        unit="ms",
        bound="at most",
        target=25.0,
        meaning="the first token in an open session, from asking to holding it (p50)",
        baseline="a TCP echo of the same bytes and the library's own first token (p50 of each)",
    ),
)


async def measure_exllama(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    config: dict[str, Any] = {"engine": EXLLAMA, "slots": _SLOTS, "n_ctx": 2048, "bare": True}
    config |= {"model": options.model, "device": options.device}
    tokens = 17 if options.quick else _TOKENS
    async with hosting(options, config) as bench:
        for streams in (1, _SLOTS):
            await bench.run(-1, streams, tokens)  # kernels that are tuned by their first use
            pairs = await bench.pairs(options.pairs, streams, tokens)
            take(f"exllama.throughput_{streams}", paired(pairs, tokens=tokens - 1, model=bench.model))
        ours, engine, echo = await bench.first_tokens(3 if options.quick else _FIRST_TOKENS)
        parts = {"engine_ms": round(median(engine) * 1e3, 3), "echo_ms": round(median(echo) * 1e3, 3)}
        found = compared(median(ours) * 1e3, (median(engine) + median(echo)) * 1e3, **parts)
        take("exllama.first_token_overhead", found)
