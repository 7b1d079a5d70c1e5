"""``Manifest``: what a model *is*, and the id that is its hash.

A model is a set of files: one GGUF, a split GGUF, or a folder as Hugging Face lays it out. ``ModelId =
sha256("p2pnode/model/1\\0" + canonical JSON of the manifest)``, so that one model has one id under every name
and on every engine. Canonical JSON: keys sorted, no spaces, ASCII strings, integers. The scripted engine has
an id of its own, which is the hash of no manifest, so that it is never taken for a real model.

A client bounds what a host may bill for a prompt without having the tokenizer: ``tokens_in <= UTF-8 bytes of
all contents + fixed + per_message x messages`` (see :class:`TemplateOverhead`), because no token of a text
spans less than one of its bytes.

A manifest may come from a stranger: its paths are checked before anything is written under them. This module
reads no files, and knows nothing of engines or the network.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId

_DOMAIN: Final = b"p2pnode/model/1\0"
_TEXT_PREFIX: Final = "m1"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_NAME: Final = re.compile(r"[ -~]{0,128}")
_COUNT_MAX: Final = 1 << 48
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
FILES_MAX: Final = 1024
"""Files of one model, at most."""
PATH_MAX: Final = 128
_PATH: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*")
_DEVICE: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows takes for devices, in every folder and with every ending."""

Format: TypeAlias = Literal["gguf", "safetensors", "exl2", "exl3", "gptq", "upstream"]
FORMATS: Final[tuple[str, ...]] = get_args(Format)
CHUNK_BYTES: Final = 1 << 20
"""Bytes of a file that are checked for themselves, where it comes from strangers."""
GGUF_PATH: Final = "model.gguf"
"""The path of a GGUF that is one file, whatever it is called on a disk."""
FOLDER_NEEDS: Final = ("config.json", "tokenizer.json")
FOLDER_FILES: Final = frozenset({
    *FOLDER_NEEDS, "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "model.safetensors.index.json", "quantize_config.json", "special_tokens_map.json", "tokenizer.model",
    "tokenizer_config.json",
})  # fmt: skip
"""What decides, besides ``*.safetensors``, what the model of a folder computes: no programs, no pickles."""
WEIGHTS_SUFFIX: Final = ".safetensors"


def shard_path(number: int, count: int) -> str:
    """The path of the part ``number``, from 1, of a GGUF that was split in ``count``."""
    return f"model-{number:05}-of-{count:05}.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOverhead:
    """Upper bounds of the tokens a chat template adds: once, and for each message."""

    fixed: int
    per_message: int

    def tokens_max(self, messages: int, content_bytes: int) -> int:
        """The most tokens an honest host can bill for this many messages and UTF-8 bytes."""
        return content_bytes + self.fixed + self.per_message * messages


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHashes:
    """What names a file's content. ``sha256`` is of all of it.

    ``chunks`` is the SHA-256 of its *chunk list*: the SHA-256 of each ``CHUNK_BYTES`` of it, one after the
    other, the last for what is left. So a file can be taken from strangers, and each chunk be checked when it
    comes.
    """

    sha256: str
    chunks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model. ``path`` is its name; hashes are lower-case hex, see :class:`FileHashes`."""

    path: str
    size_bytes: int
    sha256: str
    chunks: str

    def __post_init__(self) -> None:
        check_path(self.path)
        ok = _is_count(self.size_bytes, least=0)
        _require(ok, f"the size_bytes of {self.path}", "an integer of at least 0")
        for field in ("sha256", "chunks"):
            ok = _is_hash(getattr(self, field))
            _require(ok, f"the {field} of {self.path}", "64 lower-case hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The identity of a model. All hashes are lower-case hex SHA-256.

    ``files`` are sorted by path. ``tokenizer`` is the hash of the tokenizer's blob (``models/SPEC.md``), and
    ``chat_template`` that of the template's UTF-8, of the empty string where there is none; both can be
    fetched alone by these hashes. ``n_ctx`` is the trained context in tokens. ``name`` is "" but for
    ``upstream``: a host says what it serves, and shows no files of it.
    """

    architecture: str
    quantisation: str
    n_ctx: int
    format: Format
    files: tuple[ModelFile, ...]
    tokenizer: str
    chat_template: str
    template_overhead: TemplateOverhead
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("tokenizer", "chat_template"):
            _require(_is_hash(getattr(self, field)), field, "64 lower-case hex digits")
        for field in ("architecture", "quantisation"):
            word = getattr(self, field)
            named = isinstance(word, str) and _WORD.fullmatch(word) is not None
            _require(named, field, "a word of at most 64 characters")
        _require(_is_count(self.n_ctx, least=1), "n_ctx", "a positive integer")
        for field in ("fixed", "per_message"):
            ok = _is_count(getattr(self.template_overhead, field), least=0)
            _require(ok, f"template_overhead.{field}", "an integer of at least 0")
        _require(self.format in FORMATS, "format", " or ".join(FORMATS))
        named = isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None
        _require(named, "name", "at most 128 printable characters of ASCII")
        _require(bool(self.name) == (self.format == "upstream"), "name", "given for upstream, and only there")
        _check_files(self.format, [file.path for file in self.files])
        _require(_is_count(self.size_bytes, least=self.verified), "the size of all files", "at least 1 byte")

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def verified(self) -> bool:
        """Whether it says which weights the model has: ``upstream`` is what a host says of itself."""
        return self.format != "upstream"

    def canonical(self) -> bytes:
        """The manifest as canonical JSON."""
        return _CANONICAL.encode(self.to_mapping()).encode("ascii")

    def to_mapping(self) -> dict[str, Any]:
        """The manifest as a table of JSON, the inverse of :meth:`from_mapping`. Lists have ten thousand."""
        values = {name: getattr(self, name) for name in self.__slots__}
        files = [{name: getattr(file, name) for name in file.__slots__} for file in self.files]
        overhead = {name: getattr(self.template_overhead, name) for name in self.template_overhead.__slots__}
        return {**values, "files": files, "template_overhead": overhead}

    def blob(self) -> bytes:
        """The bytes whose SHA-256 is the model's id."""
        return _DOMAIN + self.canonical()

    @classmethod
    def of_blob(cls, blob: bytes) -> Manifest:
        """The inverse of :meth:`blob`. Raises ``ConfigError`` for other bytes."""
        try:
            made = cls.from_mapping(json.loads(blob.removeprefix(_DOMAIN)))
        except (ValueError, RecursionError, TypeError) as error:
            raise ConfigError(f"model manifest: it is no JSON ({str(error)[:100]})") from error
        if made.blob() != blob:
            raise ConfigError("model manifest: it is not written in the one form that it has")
        return made

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Manifest:
        """The manifest of a decoded TOML or JSON table. Raises ``ConfigError`` when it isn't one."""
        try:
            read = {
                "files": tuple(ModelFile(**file) for file in values["files"][: FILES_MAX + 1]),
                "template_overhead": TemplateOverhead(**values["template_overhead"]),
            }
            return cls(**{**values, **read})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"model manifest: {error}; compare it with models/catalogue.toml") from error


def check_path(path: str) -> None:
    """Raise ``ConfigError`` unless ``path`` names a file in a model's own folder, on every system."""
    if not isinstance(path, str) or not 1 <= len(path) <= PATH_MAX:
        raise _bad_path(path, f"it must have 1 to {PATH_MAX} characters")
    if "/" in path or "\\" in path or ":" in path or path in (".", ".."):
        raise _bad_path(path, "it leads out of the model's folder, or into another one")
    if not _PATH.fullmatch(path) or path.endswith("."):
        raise _bad_path(path, "it is of A-Za-z0-9._+- and neither begins nor ends with a dot")
    if _DEVICE.fullmatch(path):
        raise _bad_path(path, "Windows takes it for a device")


def _bad_path(path: object, why: str) -> ConfigError:
    return ConfigError(
        f"model manifest: {str(path)[:PATH_MAX]!r} is no name of a model's file: {why}. Nothing was written; "
        "take the model from another source"
    )


def _check_files(kind: str, paths: Sequence[str]) -> None:
    if kind == "upstream":
        _require(not paths, "files", "empty for upstream")
        return
    _require(1 <= len(paths) <= FILES_MAX, "files", f"1 to {FILES_MAX} files")
    _require(sorted(paths) == list(paths), "files", "sorted by path")
    names = [path.lower() for path in paths]
    _require(len(set(names)) == len(names), "files", "named once each, whatever the case")
    if kind == "gguf":
        count = len(paths)
        whole = [GGUF_PATH] if count == 1 else [shard_path(n + 1, count) for n in range(count)]
        _require(list(paths) == whole, "files", f"{GGUF_PATH}, or {shard_path(1, 2)} and so on, for gguf")
        return
    for needed in FOLDER_NEEDS:
        _require(needed in paths, "files", f"a whole folder: {needed} is missing")
    _require(
        any(path.endswith(WEIGHTS_SUFFIX) for path in paths), "files", f"with weights: *{WEIGHTS_SUFFIX}"
    )
    for path in paths:
        known = path in FOLDER_FILES or path.endswith(WEIGHTS_SUFFIX)
        _require(known, "files", f"such as decide what a model computes, and {path} is none")


def model_id(manifest: Manifest) -> ModelId:
    """The id of the model that ``manifest`` describes."""
    return ModelId(hashlib.sha256(manifest.blob()).digest())


def model_id_text(value: ModelId) -> str:
    """``m1`` and 52 lower-case base32 characters: the form that people copy."""
    return _TEXT_PREFIX + base64.b32encode(value).decode("ascii").rstrip("=").lower()


def parse_model_id(text: str) -> ModelId:
    """The inverse of :func:`model_id_text`. Raises ``ConfigError`` for any other text."""
    try:
        if text.startswith(_TEXT_PREFIX):
            raw = base64.b32decode(text[len(_TEXT_PREFIX) :].upper() + "====")
            value = ModelId(raw)
            # The last character carries one spare bit: only the canonical spelling is an id.
            if len(raw) == hashlib.sha256().digest_size and model_id_text(value) == text:
                return value
    except (binascii.Error, ValueError):
        pass
    raise ConfigError(f"{text!r} is no model id: it is m1 followed by 52 characters of a-z and 2-7")


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _COUNT_MAX


def _require(ok: object, field: str, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"model manifest: {field} must be {wanted}")


SCRIPTED: Final = "scripted"


def scripted_model_id() -> ModelId:
    """The id under which hosts advertise the scripted engine."""
    return ModelId(hashlib.sha256(b"p2pnode/model/1\0scripted").digest())
