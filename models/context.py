"""How much context a host can give: what a model and its contexts take of memory, and the default.

llama.cpp allocates the keys and values of all slots when it loads, so the memory of a context is known
before. Measured with SmolLM2-135M (30 layers, 3 heads of 64 for keys and values): 23,040 bytes a token, which
is the formula to the byte, and 60 MB besides the weights. :func:`memory_at_hand` asks the machine; all else
is pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from p2pnode.errors import ConfigError
from p2pnode.models.gguf import GgufArray, GgufHeader

N_CTX_DEFAULT_MAX: Final = 32_768
"""More is for who asks for it: all of it is taken when the model loads."""
N_CTX_GPU_DEFAULT: Final = 8192
"""Of an engine on a GPU, whose memory shows only when it loads."""
N_CTX_LEAST: Final = 256
"""A default is never less: a shorter context holds no conversation."""
EMBEDDER_CTX_MAX: Final = 1016
EMBEDDER_CTX_LEAST: Final = 248
"""Of a text whose vector is made: a multiple of 256 tokens with the room that llama.cpp needs."""
SHARE: Final = 0.5
"""Of the memory at hand a default takes this much at most: the machine is its owner's."""
_STEP: Final = 256
_SPARE: Final = 8
_KV_BYTES: Final = 2  # keys and values are kept as f16
_FLOAT_BYTES: Final = 4
_PROCESS_BYTES: Final = 64 << 20
_BATCH: Final = 64
_WIDTHS: Final = 8
"""Intermediate results of one token: about so many vectors of the model's widths at once."""


def allocated(n_ctx: int) -> int:
    """The tokens that llama.cpp has to allocate for a slot that is to hold ``n_ctx``.

    It rounds up to a multiple of 256, and needs a few tokens of room of its own.
    """
    return -(-(n_ctx + _SPARE) // _STEP) * _STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What a model takes, in bytes: once, and for each token of context. ``n_ctx_max`` is the context that it
    was trained for, in tokens."""

    fixed: int
    per_token: int
    n_ctx_max: int
    weights: int = 0
    """Of ``fixed``, what the weights take; 0 where that isn't known."""
    per_row: int = 0
    """For each token of a text whose vector is made: all of its tokens are computed together."""

    def needed(self, n_ctx: int, slots: int) -> int:
        """All of it, with ``slots`` contexts of ``n_ctx`` tokens."""
        return self.fixed + self.per_token * allocated(n_ctx) * slots

    def most(self, memory: int, slots: int) -> int:
        """The longest context of which ``slots`` fit into so many bytes; 0 where none does."""
        tokens = max(0, memory - self.fixed) // (max(1, self.per_token) * slots)
        return max(0, min(self.n_ctx_max, tokens // _STEP * _STEP - _SPARE))

    def embedder(self, n_ctx: int) -> int:
        """All of it for a process that makes vectors of texts of ``n_ctx`` tokens, one at a time."""
        return self.needed(n_ctx, 1) + self.per_row * allocated(n_ctx)

    def embedder_context(self, memory: int) -> int:
        """The longest text for whose vector so many bytes are enough; 0 where that is too short."""
        each = max(1, self.per_token + self.per_row)
        tokens = max(0, memory - self.fixed) // each // _STEP * _STEP - _SPARE
        n_ctx = min(tokens, self.n_ctx_max, EMBEDDER_CTX_MAX)
        return n_ctx if n_ctx >= min(EMBEDDER_CTX_LEAST, self.n_ctx_max) else 0


def memory_of(header: GgufHeader, size_bytes: int | None = None) -> ModelMemory:
    """What the model of this file takes. Raises ``ConfigError`` where the file doesn't say.

    ``size_bytes``: of all files of a split one, whose first ``header`` is.
    Of a model that keeps less than all keys and values (by a sliding window, or compressed) this is the most.
    """
    name = header.text("general.architecture")
    layers = header.count(f"{name}.block_count")
    width = header.count(f"{name}.embedding_length")
    heads = _total(header, f"{name}.attention.head_count", layers, layers)
    kv_heads = _total(header, f"{name}.attention.head_count_kv", layers, heads)
    size = width * layers // max(1, heads)
    keys = header.count(f"{name}.attention.key_length", size)
    values = header.count(f"{name}.attention.value_length", size)
    words = header.values.get("tokenizer.ggml.tokens")
    vocabulary = words.count if isinstance(words, GgufArray) else 0
    inner = _total(header, f"{name}.feed_forward_length", layers, 4 * width * layers) // max(1, layers)
    row = _FLOAT_BYTES * (vocabulary + _WIDTHS * width + 2 * inner)
    return ModelMemory(
        fixed=(size_bytes or header.size_bytes) + _PROCESS_BYTES + _BATCH * row,
        per_token=kv_heads * (keys + values) * _KV_BYTES,
        n_ctx_max=header.count(f"{name}.context_length"),
        weights=size_bytes or header.size_bytes,
        # llama.cpp computes the logits of each row, which nobody needs, and keeps a copy of them.
        per_row=row + _FLOAT_BYTES * vocabulary,
    )


def _total(header: GgufHeader, key: str, layers: int, default: int) -> int:
    """The sum of a count over all layers: the file has one for each, or one for all."""
    value = header.values.get(key)
    if isinstance(value, GgufArray):
        return sum(value.integers())
    return default if value is None else header.count(key) * layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextChoice:
    """The context of one request, in tokens, and what it takes with the model, in bytes.

    ``why`` says what it follows from: "asked", "model" (it was trained for no more), "memory" or "default".
    """

    n_ctx: int
    memory: int
    why: str


def choose_context(
    model: ModelMemory, *, asked: int, slots: int, at_hand: int, quantisation: str = ""
) -> ContextChoice:
    """The context for each of ``slots`` requests; ``asked`` is 0 where the user leaves it to us.

    Raises ``ConfigError`` where what was asked, or the least default, can't fit into the ``at_hand`` bytes:
    it says what would fit, with the ``quantisation`` of the weights another one of the same model.
    """
    n_ctx = min(asked, model.n_ctx_max)
    if asked:
        if (needed := model.needed(n_ctx, slots)) > at_hand:
            raise ConfigError(_too_much(model, n_ctx, slots, at_hand, quantisation))
        return ContextChoice(n_ctx=n_ctx, memory=needed, why="asked" if n_ctx == asked else "model")
    n_ctx = min(N_CTX_DEFAULT_MAX, model.most(int(at_hand * SHARE), slots))
    why = "model" if n_ctx == model.n_ctx_max else "default" if n_ctx == N_CTX_DEFAULT_MAX else "memory"
    if n_ctx < N_CTX_LEAST:
        n_ctx = min(N_CTX_LEAST, model.n_ctx_max)
        if (needed := model.needed(n_ctx, slots)) > at_hand:
            raise ConfigError(_too_much(model, n_ctx, slots, at_hand, quantisation))
    return ContextChoice(n_ctx=n_ctx, memory=model.needed(n_ctx, slots), why=why)


_BITS: Final[Mapping[str, float]] = {
    "F32": 32.0, "BF16": 16.0, "F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q5_1": 6.0, "Q5_0": 5.5,
    "Q4_1": 5.0, "Q4_K_M": 4.85, "Q4_0": 4.55, "IQ4_XS": 4.3, "Q3_K_M": 3.9, "Q2_K": 3.0, "IQ2_M": 2.7,
}  # fmt: skip
"""Bits of a weight on the whole, by the name of the quantisation (llama.cpp, tools/quantize/README.md)."""
_OFFERED_BITS: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_M")
"""Those that models are usually to be had in, the best first."""


def quantisation_that_fits(model: ModelMemory, quantisation: str, memory: int) -> str:
    """The best quantisation of the same model of which a short context fits into so many bytes; "" where
    none does, or what the weights are now is unknown."""
    now = _BITS.get(quantisation.upper())
    if now is None or not model.weights:
        return ""
    rest = model.needed(min(N_CTX_LEAST, model.n_ctx_max), 1) - model.weights
    for name in _OFFERED_BITS:
        if _BITS[name] < now and rest + model.weights * _BITS[name] / now <= memory:
            return name
    return ""


def _too_much(model: ModelMemory, n_ctx: int, slots: int, at_hand: int, quantisation: str) -> str:
    needed, fits, alone = model.needed(n_ctx, slots), model.most(at_hand, slots), model.most(at_hand, 1)
    if fits >= N_CTX_LEAST:
        remedy = f"use --n-ctx {fits} or less, or fewer --slots"
    elif alone >= N_CTX_LEAST:
        remedy = f"use --slots 1 with --n-ctx {alone} or less"
    elif smaller := quantisation_that_fits(model, quantisation, at_hand):
        remedy = f"the same model in {smaller} would fit (these weights are {quantisation}), or free memory"
    else:
        remedy = "choose a smaller model, or free memory"
    return (
        f"a context of {n_ctx} tokens for each of {slots} requests takes {gigabytes(needed)} with the model, "
        f"and {gigabytes(at_hand)} of memory are at hand: {remedy}"
    )


def gigabytes(count: int) -> str:
    """Bytes in words, as 1.2 GB."""
    return f"{count / 1e9:.1f} GB"


# ---- what the machine has


def memory_in_all() -> int:
    """The bytes of memory that the machine has."""
    return int(psutil.virtual_memory().total)


def memory_at_hand(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The bytes of memory that a program can take now without swapping, within the limit of its container."""
    at_hand = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        # Pages of files that were not used for a while count as used, and are given up for programs.
        idle = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        free = int(limit) - used + int(idle.get("inactive_file", 0))
    except (OSError, ValueError):  # no container, or one without a limit
        return at_hand
    return max(0, min(at_hand, free))
