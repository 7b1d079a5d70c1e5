"""``ModelFolder``: a model as Hugging Face lays it out, in a folder, and the ``Manifest`` that follows.

Which files are part of it: those of ``manifest.FOLDER_FILES`` that are there, and the weights. The weights
are what ``model.safetensors.index.json`` names, where there is one; ExLlama loads every ``*.safetensors`` and
reads no index, so for EXL2 and EXL3 it is all of them, and an index that was left over is no part.

A folder is hostile until its hashes are known: what is read has a bound, and everything wrong becomes a
``ConfigError`` that says what to do. This module hashes no weights, and knows nothing of engines, downloads
or names.

Formats: https://github.com/huggingface/safetensors#format, and ``config.json``, ``tokenizer.json`` as
transformers and tokenizers write them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import ConfigError
from p2pnode.models.gguf import blob_entry
from p2pnode.models.manifest import (
    FILES_MAX,
    FOLDER_FILES,
    FOLDER_NEEDS,
    WEIGHTS_SUFFIX,
    FileHashes,
    Format,
    Manifest,
    ModelFile,
)
from p2pnode.models.template_overhead import template_overhead

FOLDER_TOKENIZER: Final = b"p2pnode/tokenizer/folder/1\0"
"""How the blob of a folder's tokenizer begins."""
_INDEX: Final = "model.safetensors.index.json"
_TOKENIZER_MAX: Final = 32 << 20
_JSON_MAX: Final = 16 << 20
_WEIGHTS_HEADER_MAX: Final = 100_000_000
"""As safetensors itself has it."""
_SHARD: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.safetensors")
_CONTEXT_KEYS: Final = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_DTYPES: Final[Mapping[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_VOCABULARY_SHARE: Final = 0.75
"""Rows of the embeddings that a tokenizer must have ids for: makers pad the rest, by a few hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """What a folder holds. ``names`` are the files that are part of the model, sorted."""

    root: Path
    names: tuple[str, ...]
    format: Format
    quantisation: str
    config: Mapping[str, Any]
    tokenizer: bytes
    """The bytes of ``tokenizer.json``."""
    special: frozenset[str]
    """Texts of its special tokens."""
    chat_template: str
    bos: str
    eos: str


def incomplete(root: Path, reason: str) -> ConfigError:
    """The error for a folder that can't be used, with the remedy."""
    return ConfigError(
        f"{root}: not a usable model folder: {reason}. Fetch it again with `p2pnode models pull`, "
        "or name another folder or a GGUF file"
    )


def read_folder(root: Path) -> ModelFolder:
    """The model in the folder ``root``. Blocks on the disk: call it in a worker thread.

    Raises ``ConfigError``: files that are missing by name, weights that are cut, a tokenizer that is another
    model's.
    """
    try:
        present = {entry.name for entry in root.iterdir() if entry.is_file()}
        for needed in FOLDER_NEEDS:
            if needed not in present:
                raise incomplete(root, f"{needed} is missing")
        config = _json(root, "config.json")
        kind, quantisation = _quantisation(root, config, present)
        weights = _weights(root, present, kind)
        for name in weights:
            _check_weights(root, name)
        tokenizer = _bytes(root, "tokenizer.json", _TOKENIZER_MAX)
        special = _check_tokenizer(root, config, tokenizer)
        settings = _json(root, "tokenizer_config.json") if "tokenizer_config.json" in present else {}
        more = _json(root, "special_tokens_map.json") if "special_tokens_map.json" in present else {}
        names = (present & FOLDER_FILES) - ({_INDEX} if kind in ("exl2", "exl3") else set()) | set(weights)
        return ModelFolder(
            root=root,
            names=tuple(sorted(names)),
            format=kind,
            quantisation=quantisation,
            config=config,
            tokenizer=tokenizer,
            special=special,
            chat_template=_chat_template(root, present, settings),
            bos=_token(settings.get("bos_token")) or _token(more.get("bos_token")),
            eos=_token(settings.get("eos_token")) or _token(more.get("eos_token")),
        )
    except OSError as error:
        raise ConfigError(f"{root}: cannot be read ({error.strerror}); check the path") from error


def describe_folder(folder: ModelFolder, hashes: Mapping[str, FileHashes]) -> Manifest:
    """The manifest of ``folder``, whose files have ``hashes``, by name."""
    config = folder.config
    classes = config.get("architectures")
    architecture = config.get("model_type") or (classes[0] if isinstance(classes, list) and classes else "")
    n_ctx = next((value for key in _CONTEXT_KEYS if (value := _of_text(config, key)) is not None), None)
    if type(n_ctx) is not int or n_ctx < 1:  # true is an int, too
        raise incomplete(folder.root, f"its config.json lacks {_CONTEXT_KEYS[0]}")
    return Manifest(
        architecture=str(architecture),
        quantisation=folder.quantisation,
        n_ctx=n_ctx,
        format=folder.format,
        files=tuple(
            ModelFile(
                path=name,
                size_bytes=(folder.root / name).stat().st_size,
                sha256=hashes[name].sha256,
                chunks=hashes[name].chunks,
            )
            for name in folder.names
        ),
        tokenizer=hashlib.sha256(folder_tokenizer_blob(folder)).hexdigest(),
        chat_template=hashlib.sha256(folder.chat_template.encode()).hexdigest(),
        template_overhead=template_overhead(folder.chat_template, folder.special),
    )


def folder_tokenizer_blob(folder: ModelFolder) -> bytes:
    """``tokenizer.json``, and the names of the tokens that begin and end a text: templates ask for them."""
    return (
        FOLDER_TOKENIZER
        + blob_entry("bos", folder.bos.encode())
        + blob_entry("eos", folder.eos.encode())
        + blob_entry("tokenizer.json", folder.tokenizer)
    )


def _bytes(root: Path, name: str, most: int) -> bytes:
    with (root / name).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise incomplete(root, f"{name} has more than {most >> 20} MiB")
    return data


def _parsed(root: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise incomplete(root, f"{name} is no JSON ({str(error)[:100]})") from error
    if not isinstance(value, dict):
        raise incomplete(root, f"{name} is no object of JSON")
    return value


def _json(root: Path, name: str) -> dict[str, Any]:
    return _parsed(root, name, _bytes(root, name, _JSON_MAX))


def _of_text(config: Mapping[str, Any], key: str) -> Any:
    """A value of the config; models that see, too, keep those of the text in a table of their own."""
    inner = config.get("text_config")
    return config.get(key, inner.get(key) if isinstance(inner, dict) else None)


# ---- weights


def _quantisation(root: Path, config: Mapping[str, Any], present: set[str]) -> tuple[Format, str]:
    told = config.get("quantization_config")
    if told is None and "quantize_config.json" in present:
        told = {"quant_method": "gptq"} | _json(root, "quantize_config.json")
    if not isinstance(told, dict):
        dtype = str(_of_text(config, "torch_dtype") or _of_text(config, "dtype") or "unknown")
        return "safetensors", _word(_DTYPES.get(dtype, dtype))
    method, bits = str(told.get("quant_method", "unknown")), told.get("bits")
    size = f"{bits:g}" if isinstance(bits, int | float) and not isinstance(bits, bool) else ""
    if method in ("exl2", "exl3"):
        return ("exl2" if method == "exl2" else "exl3"), _word(f"{method}-{size}bpw" if size else method)
    group = told.get("group_size")
    name = "-".join(
        [
            method,
            *([f"{size}bit"] if size else []),
            *([f"{group}g"] if isinstance(group, int) and group > 0 else []),
        ]
    )
    return ("gptq" if method == "gptq" else "safetensors"), _word(name)


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", text)[:64]


def _weights(root: Path, present: set[str], kind: Format) -> list[str]:
    """The names of the files of weights. Raises ``ConfigError`` for the first that isn't there."""
    if _INDEX in present and kind not in ("exl2", "exl3"):
        table = _json(root, _INDEX).get("weight_map")
        named = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    else:
        found = sorted(name for name in present if name.endswith(WEIGHTS_SUFFIX))
        named = sorted({shard for name in found for shard in _shards(root, name)})
    if not named:
        raise incomplete(root, f"it has no weights, which are *{WEIGHTS_SUFFIX}")
    if len(named) > FILES_MAX - len(FOLDER_FILES):
        raise incomplete(root, f"it has {len(named)} files of weights")
    for name in named:
        if name not in present:
            raise incomplete(root, f"{name[:128]!r} is missing, one of {len(named)} files of weights")
    return named


def _shards(root: Path, name: str) -> list[str]:
    match = _SHARD.fullmatch(name)
    if match is None:
        return [name]
    count = int(match[3])
    if not 1 <= count <= FILES_MAX:
        raise incomplete(root, f"the name {name} says that there are {count} files of weights")
    return [f"{match[1]}-{number:05}-of-{count:05}{WEIGHTS_SUFFIX}" for number in range(1, count + 1)]


def _check_weights(root: Path, name: str) -> None:
    """Raise ``ConfigError`` for a file that is not as long as its tensors: half of one has a header, too."""
    path = root / name
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _WEIGHTS_HEADER_MAX):  # noqa: PLR2004 - {}
            raise incomplete(root, f"{name} is truncated, or no safetensors file")
        header = _parsed(root, name, file.read(length))
    ends = [0]
    for tensor, told in header.items():
        offsets = told.get("data_offsets") if isinstance(told, dict) else None
        if tensor == "__metadata__":
            continue
        if not isinstance(offsets, list) or not all(isinstance(each, int) for each in offsets):
            raise incomplete(root, f"{name} holds a tensor without offsets")
        ends += offsets
    if 8 + length + max(ends) != size:
        needed = 8 + length + max(ends)
        raise incomplete(root, f"{name} is truncated: it has {size} bytes, and its tensors need {needed}")


# ---- the tokenizer and the template


def _check_tokenizer(root: Path, config: Mapping[str, Any], data: bytes) -> frozenset[str]:
    """The texts of the special tokens. Raises ``ConfigError`` where it is another model's tokenizer."""
    told = _parsed(root, "tokenizer.json", data)
    model, added = told.get("model"), told.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not isinstance(added, list):
        raise incomplete(root, "tokenizer.json has no vocabulary")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    tokens = [each for each in added if isinstance(each, dict)]
    ids += [each.get("id") for each in tokens]
    if not ids or not all(isinstance(each, int) and each >= 0 for each in ids):
        raise incomplete(root, "tokenizer.json has tokens without ids")
    rows, wanted = _of_text(config, "vocab_size"), max(ids) + 1
    if not isinstance(rows, int) or rows < 1:
        raise incomplete(root, "its config.json lacks vocab_size")
    if not _VOCABULARY_SHARE * rows <= wanted <= rows:
        raise incomplete(
            root,
            f"config.json and tokenizer.json do not belong together: the model has {rows} tokens, "
            f"and the tokenizer {wanted}",
        )
    return frozenset(
        str(each.get("content")) for each in tokens if each.get("special") and each.get("content")
    )


def _chat_template(root: Path, present: set[str], settings: Mapping[str, Any]) -> str:
    if "chat_template.jinja" in present:
        try:
            return _bytes(root, "chat_template.jinja", _JSON_MAX).decode()
        except UnicodeDecodeError as error:
            raise incomplete(root, "chat_template.jinja is not UTF-8") from error
    told = settings.get("chat_template")
    if "chat_template.json" in present:
        told = _json(root, "chat_template.json").get("chat_template")
    if isinstance(told, list):  # several by name
        by_name = {each.get("name"): each.get("template") for each in told if isinstance(each, dict)}
        told = by_name.get("default")
    return told if isinstance(told, str) else ""


def _token(value: Any) -> str:
    """The text of a token: as it is, or as the table of one that was added."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
