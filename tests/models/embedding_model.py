"""A model that is made to embed: a BERT of two layers with random weights, as a GGUF file."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Final

from tests.models.gguf_files import gguf, integers, string, strings, tensor, u32

WIDTH: Final = 32
CONTEXT: Final = 128
_INNER: Final = 64
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_WORDS: Final = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(f"\u2581{letter}" for letter in f"{_LETTERS}.,!?"),
    *_LETTERS,
    *("\u2581the", "\u2581sea", "\u2581cat"),
]
_F32: Final = 0
MEAN: Final = 1
RANK: Final = 4


def write_embedding_model(path: Path, *, pooling: int = MEAN) -> Path:
    """Write it; returns ``path``."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (WIDTH, len(_WORDS)),
        "token_types.weight": (WIDTH, 2),
        "position_embd.weight": (WIDTH, CONTEXT),
        "token_embd_norm.weight": (WIDTH,),
        "token_embd_norm.bias": (WIDTH,),
    }
    for layer in ("blk.0", "blk.1"):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= {f"{layer}.{name}.weight": (WIDTH, WIDTH), f"{layer}.{name}.bias": (WIDTH,)}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"{layer}.{name}.weight": (WIDTH,), f"{layer}.{name}.bias": (WIDTH,)}
        shapes |= {f"{layer}.ffn_up.weight": (WIDTH, _INNER), f"{layer}.ffn_up.bias": (_INNER,)}
        shapes |= {f"{layer}.ffn_down.weight": (_INNER, WIDTH), f"{layer}.ffn_down.bias": (WIDTH,)}
    draw = random.Random(0)
    infos, weights = [], b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        infos.append(tensor(name, shape, _F32, len(weights)))
        weights += struct.pack(f"<{count}f", *(draw.gauss(0, 0.2) for _ in range(count)))
    head = gguf(_pairs(pooling), tensors=tuple(infos))
    path.write_bytes(head + bytes(-len(head) % 32) + weights)
    return path


def _pairs(pooling: int) -> dict[str, bytes]:
    return {
        "general.architecture": string("bert"),
        "general.name": string("tiny embedding model"),
        "general.file_type": u32(0),
        "bert.block_count": u32(2),
        "bert.context_length": u32(CONTEXT),
        "bert.embedding_length": u32(WIDTH),
        "bert.feed_forward_length": u32(_INNER),
        "bert.attention.head_count": u32(2),
        "bert.attention.layer_norm_epsilon": struct.pack("<If", 6, 1e-12),
        "bert.attention.causal": struct.pack("<IB", 7, 0),
        "bert.pooling_type": u32(pooling),
        "tokenizer.ggml.model": string("bert"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": strings([word.encode() for word in _WORDS]),
        "tokenizer.ggml.token_type": integers([3 if word.startswith("[") else 1 for word in _WORDS]),
        "tokenizer.ggml.token_type_count": u32(2),
        "tokenizer.ggml.bos_token_id": u32(2),
        "tokenizer.ggml.eos_token_id": u32(3),
        "tokenizer.ggml.unknown_token_id": u32(1),
        "tokenizer.ggml.seperator_token_id": u32(3),  # as the format spells it
        "tokenizer.ggml.padding_token_id": u32(0),
        "tokenizer.ggml.cls_token_id": u32(2),
    }
