"""The CPU form: ExLlamaV2's own generator, a forward pass in torch, and stand-ins for three C++ functions.

It is for checks, not for speed. Scheduling, pages, prefix reuse, sampling order, grammars and cancelling are
the library's and ours, as on a GPU; CUDA kernels, flash-attn, quantised weights and tensor parallelism are
not here. It loads a GGUF file of the architecture ``llama``, whose weights are dequantised once into a cache
of 32-bit floats.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

import torch
from torch.nn.functional import silu

_EXTENSION: Final = "exllamav2_ext"
_RANDOM_SCALE: Final = 0.9998
"""As in the library's C++: softmaxes may sum to a little less than 1."""
_LEAST_PROBABILITY: Final = 1e-6


# ---- the C++ functions


def install_extension() -> None:
    """Let ``import exllamav2`` find stand-ins for its compiled extension. Before it is imported."""
    module = types.ModuleType(_EXTENSION)
    module.__spec__ = importlib.machinery.ModuleSpec(_EXTENSION, None)
    for function in (sample_basic, count_match, cache_rotate):
        setattr(module, function.__name__, function)
    module.__getattr__ = _missing  # type: ignore[method-assign]
    sys.modules[_EXTENSION] = module


def _missing(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def fail(*_: Any, **__: Any) -> NoReturn:
        msg = f"{_EXTENSION}.{name} is not in the CPU form"
        raise NotImplementedError(msg)

    return fail


def count_match(a: Any, b: Any, most: int) -> int:
    """How many leading ids of two tensors of shape (1, n) are the same, at most ``most``."""
    most = min(most, b.shape[1])
    unlike = (a[0, :most] != b[0, :most]).nonzero()
    return int(unlike[0, 0]) if len(unlike) else int(most)


def cache_rotate(cache: Any, order: Any, buffer: Any) -> None:  # noqa: ARG001
    """Give each page of ``order`` what the next one holds, and the last one what the first held."""
    pages = order.tolist()
    first = cache[pages[0]].clone()
    for page, following in pairwise(pages):
        cache[page] = cache[following]
    cache[pages[-1]] = first


def sample_basic(  # noqa: PLR0917
    logits: Any,
    temperature: float,
    top_k: int,
    top_p: float,
    _top_a: float,
    min_p: float,
    _tfs: float,
    _typical: float,
    drawn: float,
    tokens: Any,
    probabilities: Any,
    _k_probabilities: Any,
    _k_tokens: Any,
    _filter: Any,
    _mirostat: bool,
    _mirostat_mu: list[float],
    _mirostat_tau: float,
    _mirostat_eta: float,
    post_temperature: float,
    *_: Any,
) -> list[float]:
    """The library's sampler, as far as we set it: see ``ext_sampling.cpp`` in its wheel."""
    for row in range(logits.shape[0]):
        p, ids = torch.sort(
            torch.softmax(logits[row, 0].float() / temperature, -1), descending=True, stable=True
        )
        if 0 < top_k < len(p):
            p, ids = p[:top_k] / p[:top_k].sum(), ids[:top_k]
        if 0 < top_p < 1:
            p = p[p >= _LEAST_PROBABILITY]
            kept = max(1, int((p.cumsum(0) <= top_p).sum()))
            p, ids = p[:kept] / p[:kept].sum(), ids[:kept]
        if 0 < min_p < 1:
            kept = int((p >= p[0] * min_p).sum())
            p, ids = p[:kept] / p[:kept].sum(), ids[:kept]
        if post_temperature != 1:
            p = torch.softmax(p.log() / post_temperature, -1)
        at = min(int(torch.searchsorted(p.cumsum(0), torch.tensor(drawn * _RANDOM_SCALE))), len(p) - 1)
        while at and not p[at]:
            at -= 1
        tokens[row, 0], probabilities[row, 0] = ids[at], p[at]
    return []


# ---- the model

_Row: TypeAlias = tuple[int, Any]
"""Of one sequence: how many of its tokens are in the cache, and the places of all of them there, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The sizes of a model, from its GGUF file."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    rope_base: float
    n_ctx: int
    vocabulary: int


class TorchLlama:
    """The forward pass of a llama, as the generator calls it: its ``model``. Weights are 32-bit floats.

    Keys and values lie in the library's own FP16 cache, in the pages that the generator chose.
    """

    loaded_tp = False

    def __init__(
        self, shape: LlamaShape, weights: dict[str, Any], *, n_ctx: int, chunk: int, slots: int
    ) -> None:
        self._shape = shape
        self._weights = weights
        self.config = types.SimpleNamespace(
            arch=types.SimpleNamespace(lm=types.SimpleNamespace(mrope=False)),
            vocab_size=shape.vocabulary,
            num_hidden_layers=shape.layers,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_seq_len=n_ctx,
            max_input_len=chunk,
            max_batch_size=slots,
            no_flash_attn=False,
        )
        self.cache_map: dict[int, str] = {}
        pairs = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        angles = torch.outer(torch.arange(n_ctx).float(), shape.rope_base**-pairs)
        self._cos, self._sin = angles.cos(), angles.sin()
        self._output = weights.get("output.weight", weights["token_embd.weight"])

    def forward_chunk(
        self,
        input_ids: Any,
        attn_params: Any = None,
        cache: Any = None,
        preprocess_only: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Logits of shape (batch, tokens, vocabulary); none where only the cache is to be filled."""
        length = input_ids.shape[1]
        if attn_params.paged:
            rows = [
                (known, _places(attn_params.block_index[row].long(), known + length, attn_params.page_size))
                for row, known in enumerate(attn_params.cache_seqlens.tolist())
            ]
        else:
            rows = [(attn_params.past_len, torch.arange(attn_params.past_len + length))]
        with torch.inference_mode():
            states = self._states(input_ids, rows, cache, layers_only=preprocess_only)
            if preprocess_only:
                return {}
            return {"logits": self._normed(states, "output_norm.weight") @ self._output.T}

    def forward(self, input_ids: Any, *, return_last_state: bool) -> tuple[Any, Any]:
        """Logits and last hidden states of a text by itself. Without a cache."""
        assert return_last_state  # noqa: S101 - all that is asked of it
        with torch.inference_mode():
            states = self._states(input_ids, [(0, None)], None, layers_only=False)
            return self._normed(states, "output_norm.weight") @ self._output.T, states

    def _states(self, ids: Any, rows: list[_Row], cache: Any, *, layers_only: bool) -> Any:
        shape = self._shape
        batch, length = ids.shape
        x = self._weights["token_embd.weight"][ids]
        for layer in range(shape.layers):
            name = f"blk.{layer}."
            h = self._normed(x, name + "attn_norm.weight")
            q = (h @ self._weights[name + "attn_q.weight"].T).view(batch, length, shape.heads, shape.head_dim)
            k, v = (
                (h @ self._weights[f"{name}attn_{which}.weight"].T).view(
                    batch, length, shape.kv_heads, shape.head_dim
                )
                for which in "kv"
            )
            seen = torch.stack(
                [self._attend(layer, q[row], k[row], v[row], rows[row], cache) for row in range(batch)]
            )
            if layers_only and layer == shape.layers - 1:
                break
            x = x + seen.reshape(batch, length, -1) @ self._weights[name + "attn_output.weight"].T
            h = self._normed(x, name + "ffn_norm.weight")
            gate = silu(h @ self._weights[name + "ffn_gate.weight"].T)
            up = h @ self._weights[name + "ffn_up.weight"].T
            x = x + (gate * up) @ self._weights[name + "ffn_down.weight"].T
        return x

    def _attend(self, layer: int, q: Any, k: Any, v: Any, row: _Row, cache: Any) -> Any:  # noqa: PLR0917
        known, slots = row
        length = len(q)
        q, k = self._turned(q, known), self._turned(k, known)
        if slots is not None:
            keys, values = cache.key_states[layer][0], cache.value_states[layer][0]
            keys[slots[known:]], values[slots[known:]] = k.half(), v.half()
            k, v = keys[slots].float(), values[slots].float()
        groups = self._shape.heads // self._shape.kv_heads
        mask = torch.ones(length, known + length, dtype=torch.bool).tril(known)
        return torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1),
            k.repeat_interleave(groups, 1).transpose(0, 1),
            v.repeat_interleave(groups, 1).transpose(0, 1),
            attn_mask=mask,
        ).transpose(0, 1)

    def _turned(self, x: Any, known: int) -> Any:
        """Rotary positions. GGUF files have the pairs of a head side by side."""
        cos, sin = (each[known : known + len(x)].unsqueeze(1) for each in (self._cos, self._sin))
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    def _normed(self, x: Any, weight: str) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._shape.epsilon) * self._weights[weight]


def _places(pages: Any, tokens: int, size: int) -> Any:
    """Where the tokens of a sequence are in the cache."""
    at = torch.arange(tokens)
    return pages[at // size] * size + at % size


# ---- the file


def load_gguf(path: Path, cache_dir: Path | None) -> tuple[LlamaShape, dict[str, Any]]:
    """The model of a GGUF file, with its weights as 32-bit floats.

    They are kept in ``cache_dir``, by the file's size and time, where one is given: several bytes for each of
    the file's. Raises ``ValueError`` for an architecture that is not known here.
    """
    from p2pnode.models.gguf import read_header

    header = read_header(path)
    architecture = header.text("general.architecture")
    if architecture != "llama":
        msg = f"the CPU form knows the architecture llama, and the file has {architecture}"
        raise ValueError(msg)
    said = header.values

    def number(key: str) -> float:
        value = said[f"llama.{key}"]
        assert isinstance(value, (int, float))  # noqa: S101 - checked when the file was added
        return value

    heads, width = int(number("attention.head_count")), int(number("embedding_length"))
    weights = _weights(path, cache_dir)
    shape = LlamaShape(
        layers=int(number("block_count")),
        heads=heads,
        kv_heads=int(number("attention.head_count_kv")),
        head_dim=width // heads,
        epsilon=float(number("attention.layer_norm_rms_epsilon")),
        rope_base=float(number("rope.freq_base")) if "llama.rope.freq_base" in said else 10_000.0,
        n_ctx=int(number("context_length")),
        vocabulary=int(weights["token_embd.weight"].shape[0]),
    )
    return shape, weights


def _weights(path: Path, cache_dir: Path | None) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file

    if cache_dir is None:
        return _dequantised(path)
    status = path.stat()
    cached = cache_dir / f"{path.stem}-{status.st_size}-{status.st_mtime_ns}.safetensors"
    if not cached.exists():
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = cached.with_suffix(f".{os.getpid()}.part")
        save_file(_dequantised(path), written)
        written.replace(cached)
    return dict(load_file(cached))


def _dequantised(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    return {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in GGUFReader(path).tensors
    }
