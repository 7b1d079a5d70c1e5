"""Reads the metadata of a GGUF file, whole or split: ``GgufHeader``, and the ``Manifest`` that follows.

The file is hostile until its hash is known: every length is checked against the file and against a bound
before anything is allocated, and everything wrong becomes a ``ConfigError`` that says what to do. Arrays are
kept as raw bytes and decoded only when asked for, so that a header is read in tens of milliseconds. A file
whose tensors reach beyond its end is refused too: half a download has a valid header.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).

This module doesn't hash weights, and knows nothing of engines, downloads or names.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from p2pnode.errors import ConfigError
from p2pnode.models.manifest import (
    FILES_MAX,
    GGUF_PATH,
    FileHashes,
    Manifest,
    ModelFile,
    shard_path,
)
from p2pnode.models.template_overhead import template_overhead

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_HEADER_MAX_BYTES: Final = 256 << 20
_FIRST_READ_BYTES: Final = 4 << 20
_KEYS_MAX: Final = 4096
_KEY_MAX_BYTES: Final = 256
_STRING_MAX_BYTES: Final = 4 << 20
_ELEMENTS_MAX: Final = 4 << 20

_TENSORS_MAX: Final = 1 << 16
_DIMENSIONS_MAX: Final = 8
_ALIGNMENT_KEY: Final = "general.alignment"
_ALIGNMENT: Final = 32
_ALIGNMENT_MAX: Final = 1 << 20

# ggml/src/ggml.c, type_traits: by enum ggml_type, the elements of a block and its bytes
_BLOCKS: Final[Mapping[int, tuple[int, int]]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

_BOOL: Final = 7
_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final[Mapping[int, struct.Struct]] = {
    code: struct.Struct("<" + letter)
    for code, letter in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array as it stands in the file: ``raw`` holds the elements, strings with their lengths."""

    kind: int
    count: int
    raw: bytes

    def strings(self) -> Iterator[bytes]:
        """The elements of an array of strings."""
        if self.kind != _STRING:
            raise ConfigError("GGUF: an array of strings was expected; use another GGUF file")
        position = 0
        for _ in range(self.count):
            (length,) = _U64.unpack_from(self.raw, position)
            position += 8 + length
            yield self.raw[position - length : position]

    def integers(self) -> tuple[int, ...]:
        """The elements of an array of integers."""
        scalar = _SCALARS.get(self.kind)
        if scalar is None or scalar.format[-1] in "fd":
            raise ConfigError("GGUF: an array of integers was expected; use another GGUF file")
        return tuple(value for (value,) in scalar.iter_unpack(self.raw))

    def numbers(self) -> tuple[float, ...]:
        """The elements of an array of numbers."""
        scalar = _SCALARS.get(self.kind)
        if scalar is None:
            raise ConfigError("GGUF: an array of numbers was expected; use another GGUF file")
        return tuple(value for (value,) in scalar.iter_unpack(self.raw))


GgufValue: TypeAlias = str | int | float | bool | GgufArray


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """The metadata of one file. ``raw`` holds each value's bytes as they stand in the file."""

    path: Path
    size_bytes: int
    values: Mapping[str, GgufValue]
    raw: Mapping[str, bytes]

    def text(self, key: str, default: str | None = None) -> str:
        """A string value. Raises ``ConfigError`` when it is missing without a default, or of another type."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise unusable(self.path, f"it lacks {key}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """An integer value of at least 0. Raises ``ConfigError`` like :meth:`text`."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise unusable(self.path, f"it lacks {key}")
        return value

    def array(self, key: str) -> GgufArray:
        """An array value. Raises ``ConfigError`` like :meth:`text`."""
        value = self.values.get(key)
        if not isinstance(value, GgufArray):
            raise unusable(self.path, f"it lacks {key}")
        return value


def unusable(path: Path, reason: str) -> ConfigError:
    """The error for a file that can't be used, with the remedy."""
    return ConfigError(
        f"{path}: not a usable GGUF file: {reason}. Fetch it again with `p2pnode models pull`, "
        "or name another GGUF file"
    )


def read_header(path: Path) -> GgufHeader:
    """The metadata of the GGUF file at ``path``. Blocks on the disk: call it in a worker thread."""
    try:
        size = path.stat().st_size
        wanted = _FIRST_READ_BYTES
        while True:
            with path.open("rb") as file:
                data = file.read(wanted)
            try:
                return _parse(path, size, data)
            except _ShortError as short:
                if len(data) >= size or len(data) < wanted:
                    raise unusable(path, "it is truncated") from short
                if wanted >= _HEADER_MAX_BYTES:
                    raise unusable(path, "its header is larger than 256 MiB") from short
                wanted *= 4
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error


class _ShortError(Exception):
    """The bytes read so far end inside the header."""


def _parse(path: Path, size: int, data: bytes) -> GgufHeader:
    cursor = _Cursor(path, size, data)
    if cursor.take(4) != _MAGIC:
        raise unusable(path, "it doesn't begin with GGUF")
    version = cursor.u32()
    if version not in _VERSIONS:
        raise unusable(path, f"its version is {version}, known are 2 and 3 (little endian)")
    tensors = cursor.u64()
    if tensors > _TENSORS_MAX:
        raise unusable(path, f"it claims {tensors} tensors")
    keys = cursor.u64()
    if keys > _KEYS_MAX:
        raise unusable(path, f"it claims {keys} keys")
    values: dict[str, GgufValue] = {}
    raw: dict[str, bytes] = {}
    for _ in range(keys):
        key = cursor.string(_KEY_MAX_BYTES).decode("utf-8", "replace")
        kind = cursor.u32()
        start = cursor.position
        if key in values:
            raise unusable(path, f"it holds {key!r} twice")
        values[key] = cursor.value(kind)
        raw[key] = _U32.pack(kind) + data[start : cursor.position]
    needed = _weights_end(cursor, tensors, values.get(_ALIGNMENT_KEY, _ALIGNMENT))
    if needed > size:
        raise unusable(path, f"it is truncated: it has {size} bytes, and its tensors need {needed}")
    return GgufHeader(path=path, size_bytes=size, values=values, raw=raw)


def _weights_end(cursor: _Cursor, tensors: int, alignment: GgufValue) -> int:
    """Where the last tensor ends, in bytes from the start of the file."""
    if not isinstance(alignment, int) or not 1 <= alignment <= _ALIGNMENT_MAX:
        raise unusable(cursor.path, f"its alignment is {alignment!r}")
    end = 0
    for _ in range(tensors):
        cursor.string(_KEY_MAX_BYTES)
        dimensions = cursor.u32()
        if dimensions > _DIMENSIONS_MAX:
            raise unusable(cursor.path, f"it holds a tensor of {dimensions} dimensions")
        elements = math.prod(cursor.u64() for _ in range(dimensions))
        # The size of a type that this table doesn't know is counted as 1 byte: only its start is certain.
        in_block, block_bytes = _BLOCKS.get(cursor.u32(), (elements or 1, 1))
        end = max(end, cursor.u64() + -(-elements // in_block) * block_bytes)
    begins = -(-cursor.position // alignment) * alignment
    return begins + end if tensors else cursor.position


class _Cursor:
    """Walks through the bytes. Takes nothing beyond the file or beyond a bound."""

    def __init__(self, path: Path, size: int, data: bytes) -> None:
        self.path = path
        self.size = size
        self.data = data
        self.position = 0

    def take(self, length: int) -> bytes:
        start = self.position
        self._advance(length)
        return self.data[start : self.position]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def string(self, limit: int) -> bytes:
        length = self.u64()
        if length > limit:
            raise unusable(self.path, f"it holds a string of {length} bytes")
        return self.take(length)

    def value(self, kind: int) -> GgufValue:
        if kind == _STRING:
            return self.string(_STRING_MAX_BYTES).decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array()
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise unusable(self.path, f"it holds a value of unknown type {kind}")
        (value,) = scalar.unpack(self.take(scalar.size))
        if kind == _BOOL:
            return bool(value)
        assert isinstance(value, (int, float))  # noqa: S101 - what struct unpacks by construction
        return value

    def _array(self) -> GgufArray:
        kind = self.u32()
        count = self.u64()
        if count > _ELEMENTS_MAX:
            raise unusable(self.path, f"it holds an array of {count} elements")
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return GgufArray(kind, count, self.take(count * scalar.size))
        if kind != _STRING:
            raise unusable(self.path, f"it holds an array of unknown type {kind}")
        # The hot loop: two arrays of 50,000 strings and more. Locals, and one bound check per string.
        data, position, end = self.data, self.position, len(self.data)
        unpack = _U64.unpack_from
        for _ in range(count):
            if position + 8 > end:
                self._advance(position + 8 - self.position)
            (length,) = unpack(data, position)
            position += 8 + length
            if position > end:
                self._advance(position - self.position)
        start = self.position
        self._advance(position - start)
        return GgufArray(kind, count, data[start:position])

    def _advance(self, length: int) -> None:
        self.position += length
        if self.position > self.size:
            raise unusable(self.path, "it is truncated")
        if self.position > len(self.data):
            raise _ShortError


# ---- from a header to a manifest

_CHAT_TEMPLATE: Final = "tokenizer.chat_template"
GGUF_TOKENIZER: Final = b"p2pnode/tokenizer/gguf/1\0"
"""How the blob of a GGUF's tokenizer begins."""
_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
# llama.cpp src/llama-arch.cpp, LLM_KV_SPLIT_*: the number counts from 0
_SPLIT_NUMBER: Final = "split.no"
_SPLIT_COUNT: Final = "split.count"
_CONTROL: Final = 3

# llama.cpp include/llama.h, enum llama_ftype
_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip


def describe(parts: Sequence[GgufHeader], hashes: Sequence[FileHashes]) -> Manifest:
    """The manifest of a GGUF with the headers ``parts``, one for each file, in order.

    ``hashes`` has those of each file. Raises ``ConfigError`` for a file without a model, and for parts
    that are not those of one split file.
    """
    header, count = parts[0], len(parts)
    for number, part in enumerate(parts):
        if (part.count(_SPLIT_NUMBER, 0), max(1, part.count(_SPLIT_COUNT, 1))) != (number, count):
            found = f"part {part.count(_SPLIT_NUMBER, 0) + 1} of {part.count(_SPLIT_COUNT, 1)}"
            raise unusable(part.path, f"it is {found}, and was to be part {number + 1} of {count}")
    architecture = header.text("general.architecture")
    n_ctx = header.count(f"{architecture}.context_length")
    if n_ctx == 0:
        raise unusable(header.path, "its context length is 0")
    template = header.text(_CHAT_TEMPLATE, "")
    file_type = header.values.get("general.file_type")
    known = _FILE_TYPES.get(file_type, f"ftype{file_type}") if isinstance(file_type, int) else "unknown"
    names = [GGUF_PATH] if count == 1 else [shard_path(number + 1, count) for number in range(count)]
    return Manifest(
        architecture=architecture,
        quantisation=known,
        n_ctx=n_ctx,
        format="gguf",
        files=tuple(
            ModelFile(path=name, size_bytes=part.size_bytes, sha256=each.sha256, chunks=each.chunks)
            for name, part, each in zip(names, parts, hashes, strict=True)
        ),
        tokenizer=hashlib.sha256(tokenizer_blob(header)).hexdigest(),
        chat_template=hashlib.sha256(template.encode()).hexdigest(),
        template_overhead=template_overhead(template, _control_tokens(header)),
    )


def shards_of(path: Path) -> list[Path]:
    """The files of the GGUF of which ``path`` is one, in order: itself, where it was not split.

    Raises ``ConfigError`` that names the first part that is not there.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= FILES_MAX:
        raise unusable(path, f"its name says that there are {count} parts")
    shards = [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)
    ]
    for shard in shards:
        if not shard.is_file():
            raise unusable(path, f"it is one of {count} parts, and {shard.name} is missing")
    return shards


def tokenizer_blob(header: GgufHeader) -> bytes:
    """Every ``tokenizer.*`` value but the chat template: key, type and bytes, keys sorted."""
    keys = sorted(key for key in header.raw if key.startswith("tokenizer.") and key != _CHAT_TEMPLATE)
    return GGUF_TOKENIZER + b"".join(blob_entry(key, header.raw[key]) for key in keys)


def header_of_blob(blob: bytes) -> GgufHeader:
    """The header of a file that has only what is in the tokenizer's ``blob``. Raises ``ConfigError``."""
    entries = blob_entries(blob, GGUF_TOKENIZER)
    pairs = (_U64.pack(len(key.encode())) + key.encode() + value for key, value in entries.items())
    data = _MAGIC + _U32.pack(_VERSIONS[-1]) + _U64.pack(0) + _U64.pack(len(entries)) + b"".join(pairs)
    try:
        return _parse(Path("the tokenizer"), len(data), data)
    except _ShortError as error:
        raise bad_blob("a value is cut") from error


def blob_entries(blob: bytes, begin: bytes) -> dict[str, bytes]:
    """The entries of a tokenizer's blob that begins with ``begin``. Raises ``ConfigError``."""
    entries: dict[str, bytes] = {}
    position = len(begin)
    while position < len(blob) or not blob.startswith(begin):
        end = position + 4 + int.from_bytes(blob[position : position + 4], "big")
        key, position = blob[position + 4 : end].decode("utf-8", "replace"), end + 8
        end = position + int.from_bytes(blob[position - 8 : position], "big")
        if not blob.startswith(begin) or end > len(blob) or key in entries or len(entries) > _KEYS_MAX:
            raise bad_blob("its entries are not whole")
        entries[key], position = blob[position:end], end
    return entries


def bad_blob(why: str) -> ConfigError:
    """The error for a tokenizer's blob that can't be used."""
    return ConfigError(
        f"this model's tokenizer can't be used here: {why}; text is counted by its bytes instead"
    )


def blob_entry(key: str, value: bytes) -> bytes:
    """An entry of a tokenizer's blob: both with their lengths, of 4 and of 8 bytes, big-endian."""
    name = key.encode()
    return len(name).to_bytes(4, "big") + name + len(value).to_bytes(8, "big") + value


def _control_tokens(header: GgufHeader) -> frozenset[str]:
    if "tokenizer.ggml.tokens" not in header.values or "tokenizer.ggml.token_type" not in header.values:
        return frozenset()
    kinds = header.array("tokenizer.ggml.token_type").integers()
    tokens = header.array("tokenizer.ggml.tokens").strings()
    return frozenset(
        token.decode("utf-8", "replace")
        for token, kind in zip(tokens, kinds, strict=False)
        if kind == _CONTROL and token
    )
