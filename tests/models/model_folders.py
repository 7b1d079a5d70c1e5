"""Small model folders, as Hugging Face lays them out, made for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "tiny",
    "max_position_embeddings": 128,
    "vocab_size": 8,
    "torch_dtype": "bfloat16",
}
TOKENS = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ã": 4, "©": 5}
ADDED = [
    {"id": 6, "content": "<s>", "special": True},
    {"id": 7, "content": "</s>", "special": True},
]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {**each, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for each in ADDED
    ],
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": TOKENS, "merges": [["a", "b"]]},
}
TEMPLATE = "{{ bos_token }}{% for m in messages %}<s>{{ m['content'] }}{% endfor %}now"
SETTINGS: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}


def safetensors(weights: int, name: str = "w") -> bytes:
    """A file with one tensor of so many bytes."""
    header = json.dumps({name: {"dtype": "U8", "shape": [weights], "data_offsets": [0, weights]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"w" * weights


def text(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


FILES: dict[str, bytes] = {
    "config.json": text(CONFIG),
    "model.safetensors": safetensors(64),
    "tokenizer.json": text(TOKENIZER),
    "tokenizer_config.json": text(SETTINGS),
}
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = text({"weight_map": {f"layer.{number}": name for number, name in enumerate(SHARDS)}})
SHARDED: dict[str, bytes] = {
    **{name: data for name, data in FILES.items() if name != "model.safetensors"},
    **{name: safetensors(64 + number) for number, name in enumerate(SHARDS)},
    "model.safetensors.index.json": INDEX,
}


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Make the folder ``root`` with these files."""
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root
