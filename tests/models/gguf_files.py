"""Small GGUF files, made for tests."""

from __future__ import annotations

import struct


def text(value: bytes | str) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def string(value: bytes | str) -> bytes:
    return struct.pack("<I", 8) + text(value)


def u32(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def strings(values: list[bytes]) -> bytes:
    return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(text(value) for value in values)


def integers(values: list[int]) -> bytes:
    return struct.pack("<IIQ", 9, 5, len(values)) + struct.pack(f"<{len(values)}i", *values)


def gguf(
    pairs: dict[str, bytes],
    *,
    version: int = 3,
    keys: int | None = None,
    tensors: tuple[bytes, ...] = (),
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs) if keys is None else keys)
    return head + b"".join(text(key) + value for key, value in pairs.items()) + b"".join(tensors)


def tensor(name: str, dimensions: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def with_weights(tensors: tuple[bytes, ...], weights: int) -> bytes:
    """A small model and so many bytes of weights, which begin at a multiple of 32."""
    head = gguf(PAIRS, tensors=tensors)
    return head + b"\0" * (-len(head) % 32) + b"w" * weights


TOKENS = [b"<end>", b"a", "Ġb".encode(), "ä½".encode(), "ł".encode(), b"user_token"]
PAIRS = {
    "general.architecture": string("tiny"),
    "general.file_type": u32(7),
    "tiny.context_length": u32(128),
    "tokenizer.ggml.model": string("gpt2"),
    "tokenizer.ggml.tokens": strings(TOKENS),
    "tokenizer.ggml.token_type": integers([3, 1, 1, 1, 1, 4]),
    "tokenizer.ggml.eos_token_id": u32(0),
    "tokenizer.chat_template": string("{% for m in messages %}<end>{{ m['content'] }}{% endfor %}now"),
}
TINY = gguf(PAIRS)


def u16(value: int) -> bytes:
    return struct.pack("<IH", 2, value)


def part_of_split(number: int, count: int, pairs: dict[str, bytes]) -> bytes:
    """One part of a split GGUF; its number counts from 0, as in the file."""
    split = {"split.no": u16(number), "split.count": u16(count)}
    head = gguf(pairs | split, tensors=(tensor(f"t{number}", (4,), 0, 0),))
    return head + b"\0" * (-len(head) % 32) + bytes(16)


SPLIT = [part_of_split(0, 2, PAIRS), part_of_split(1, 2, {})]
