"""What a model of an ExLlama folder takes of a GPU's memory, and what would fit. Pure but for reading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, get_args

from p2pnode.errors import ConfigError

CacheType: TypeAlias = Literal["FP16", "Q8", "Q6", "Q4"]
CACHE_TYPES: Final[tuple[CacheType, ...]] = get_args(CacheType)
# One scale of 16 bits for 32 values where it is quantised; Q6 has keys of 8 bits and values of 4.
CACHE_BITS: Final[Mapping[CacheType, float]] = {"FP16": 16.0, "Q8": 8.5, "Q6": 6.5, "Q4": 4.5}
"""Bits that a key or a value takes, on average."""


def parse_cache(text: str) -> CacheType:
    """How keys and values are kept, as a user says it. Raises ``ConfigError``."""
    for kind in CACHE_TYPES:
        if text == kind:
            return kind
    raise ConfigError(f"keys and values are kept as {', '.join(CACHE_TYPES)}, not as {text}: see --kv-cache")


SPARE_BYTES: Final = 512 << 20
"""Kernels, and intermediate results."""
_STEPS: Final = (8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5)
"""Bits a weight that people quantise models to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """``weights`` in bytes, as they lie on the disk; ``parameters`` 0 where the folder doesn't say."""

    weights: int
    parameters: int
    layers: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """The sizes of the model in ``folder``. Blocks on the disk. What is not said is 0."""
        said: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        said = {**said, **said.get("text_config", {})}

        def number(*names: str) -> int:
            return next((int(said[name]) for name in names if isinstance(said.get(name), int)), 0)

        heads, width = (
            number("num_attention_heads", "n_heads", "n_head"),
            number("hidden_size", "d_model", "n_embd"),
        )
        layers, vocabulary = number("num_hidden_layers", "n_layers", "n_layer"), number("vocab_size")
        head_dim = number("head_dim") or (width // heads if heads else 0)
        kv_heads = number("num_key_value_heads") or heads
        inner = number("intermediate_size", "n_inner") or 4 * width
        tied = 1 if said.get("tie_word_embeddings") else 2
        layer = 2 * width * head_dim * (heads + kv_heads) + 3 * width * inner
        return cls(
            weights=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            parameters=layers * layer + tied * vocabulary * width,
            layers=layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
        )

    def cache_bits_per_token(self, bits: float) -> int:
        """Bits of the cache that one token takes, with so many for a key or value."""
        return int(2 * self.layers * self.kv_heads * self.head_dim * bits)

    def needed(self, tokens: int, cache: CacheType) -> int:
        """Bytes that weights, cache and what is computed take together."""
        return self.weights + tokens * self.cache_bits_per_token(CACHE_BITS[cache]) // 8 + SPARE_BYTES


def too_large(sizes: ModelSizes, *, tokens: int, cache: CacheType, free: int) -> tuple[str, str] | None:
    """Why the model doesn't fit into ``free`` bytes, and what would; None where it fits."""
    needed = sizes.needed(tokens, cache)
    if needed <= free:
        return None
    kept = needed - sizes.weights - SPARE_BYTES
    what = (
        f"it needs about {_gb(needed)} of GPU memory ({_gb(sizes.weights)} of weights, {_gb(kept)} for the "
        f"{cache} cache of {tokens} tokens), and {_gb(free)} are free"
    )
    for smaller in CACHE_TYPES[CACHE_TYPES.index(cache) + 1 :]:
        if sizes.needed(tokens, smaller) <= free:
            return what, f"A {smaller} cache would fit; or take fewer slots, or a smaller --n-ctx"
    left = free - SPARE_BYTES - (sizes.needed(tokens, "Q4") - sizes.weights - SPARE_BYTES)
    bits = left * 8 / sizes.parameters if sizes.parameters else 0.0
    fits = next((step for step in _STEPS if step <= bits), None)
    if sizes.needed(0, cache) <= free:
        return what, "Take fewer slots, or a smaller --n-ctx"
    if fits is None:
        return (
            what,
            "No quantisation of it would fit: take a smaller model, or more GPUs with --tensor-parallel",
        )
    return what, f"The same model quantised to {fits:g} bits a weight or fewer would fit, with a Q4 cache"


def _gb(size: int) -> str:
    return f"{max(0, size) / 1e9:.1f} GB"
