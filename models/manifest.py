"""``Manifest``: what a model *is*, and the id that is its hash.

``ModelId = sha256("p2pnode/model/1\\0" + canonical JSON of the manifest)``, so that one model has one id
under every name and on every engine. Canonical JSON: keys sorted, no spaces, ASCII strings, integers. The
scripted engine has an id of its own, which is the hash of no manifest, so that it is never taken for a real
model.

A client bounds what a host may bill for a prompt without having the tokenizer: ``tokens_in <= UTF-8 bytes of
all contents + fixed + per_message x messages`` (see :class:`TemplateOverhead`), because no token of a text
spans less than one of its bytes.

This module knows nothing of files, engines or the network.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId

_DOMAIN: Final = b"p2pnode/model/1\0"
_TEXT_PREFIX: Final = "m1"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_COUNT_MAX: Final = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOverhead:
    """Upper bounds of the tokens a chat template adds: once, and for each message."""

    fixed: int
    per_message: int

    def tokens_max(self, messages: int, content_bytes: int) -> int:
        """The most tokens an honest host can bill for this many messages and UTF-8 bytes."""
        return content_bytes + self.fixed + self.per_message * messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The identity of a model. All hashes are lower-case hex SHA-256.

    ``tokenizer`` covers every ``tokenizer.*`` value of a GGUF file but the chat template, which
    ``chat_template`` covers (the hash of the empty string when there is none). ``n_ctx`` is the
    trained context in tokens.
    """

    weights: str
    size_bytes: int
    architecture: str
    quantisation: str
    n_ctx: int
    tokenizer: str
    chat_template: str
    template_overhead: TemplateOverhead

    def __post_init__(self) -> None:
        for field in ("weights", "tokenizer", "chat_template"):
            _require(_SHA256.fullmatch(str(getattr(self, field))), field, "64 lower-case hex digits")
        for field in ("architecture", "quantisation"):
            _require(_WORD.fullmatch(str(getattr(self, field))), field, "a word of at most 64 characters")
        for field in ("size_bytes", "n_ctx"):
            _require(_is_count(getattr(self, field), least=1), field, "a positive integer")
        for field in ("fixed", "per_message"):
            ok = _is_count(getattr(self.template_overhead, field), least=0)
            _require(ok, f"template_overhead.{field}", "an integer of at least 0")

    def canonical(self) -> bytes:
        """The bytes whose hash is the model's id."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Manifest:
        """The manifest of a decoded TOML or JSON table. Raises ``ConfigError`` when it isn't one."""
        try:
            return cls(**{**values, "template_overhead": TemplateOverhead(**values["template_overhead"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"model manifest: {error}; compare it with models/catalogue.toml") from error


def model_id(manifest: Manifest) -> ModelId:
    """The id of the model that ``manifest`` describes."""
    return ModelId(hashlib.sha256(_DOMAIN + manifest.canonical()).digest())


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


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _COUNT_MAX


def _require(ok: object, field: str, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"model manifest: {field} must be {wanted}")


SCRIPTED: Final = "scripted"


def scripted_model_id() -> ModelId:
    """The id under which hosts advertise the scripted engine."""
    return ModelId(hashlib.sha256(b"p2pnode/model/1\0scripted").digest())
