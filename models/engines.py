"""Engines by name: which one loads a model, which ones can be used here, and the engine itself.

Importing this module imports no engine: ``make_engine`` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, assert_never, get_args

from p2pnode.errors import ConfigError
from p2pnode.extras import need, why_missing
from p2pnode.models.engine import Engine
from p2pnode.models.gguf import GgufHeader
from p2pnode.models.local_models import LocalModel
from p2pnode.models.manifest import Format

EngineName: TypeAlias = Literal["llamacpp", "exllama", "scripted"]
ENGINE_NAMES: Final[tuple[str, ...]] = get_args(EngineName)
ANY_ENGINE: Final = "auto"
"""What a user says who leaves it to the model's format."""
_BY_FORMAT: Final[Mapping[Format, EngineName | None]] = {
    "gguf": "llamacpp",
    "safetensors": "exllama",
    "exl2": "exllama",
    "exl3": "exllama",
    "gptq": "exllama",
    "upstream": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Which engine, and its settings. ``None`` leaves the engine's own default."""

    name: EngineName = "llamacpp"
    n_ctx: int | None = None
    slots: int | None = None
    threads: int | None = None
    queue_max: int | None = None
    tokens_per_s: float | None = None
    """Of a scripted engine, for each slot."""
    cache: str | None = None
    """How keys and values are kept, see ``models/exllama/memory.py`` and ``models/llamacpp/server.py``."""
    batch: int | None = None
    """Of llama.cpp: rows that are computed together."""
    speculation: bool | None = None
    """Of llama.cpp: whether repetitions are guessed."""
    tensor_parallel: bool | None = None
    """Of exllama: each layer on all GPUs."""
    device: str | None = None
    """Of exllama: ``cpu`` for its CPU form, which tests use."""
    cache_dir: Path | None = None
    """Of exllama's CPU form: where it keeps dequantised weights."""


def parse_engine_name(text: str) -> EngineName:
    """The engine that a user named. Raises ``ConfigError`` when there is none of this name."""
    for name in get_args(EngineName):
        if text == name:
            engine: EngineName = name
            return engine
    raise ConfigError(f"unknown engine {text!r}: use {' or '.join(ENGINE_NAMES)}")


def engine_name_for(model: LocalModel, asked: str = ANY_ENGINE) -> EngineName:
    """The engine that loads ``model``: by its format, or ``asked`` where that one can.

    Raises ``ConfigError`` where it can't.
    """
    kind = model.manifest.format
    found = _BY_FORMAT[kind]
    if asked == ANY_ENGINE and found is not None:
        return found
    name = parse_engine_name(asked) if asked != ANY_ENGINE else None
    if name is None or name != found:
        loads = {engine: [each for each, by in _BY_FORMAT.items() if by == engine] for engine in ENGINE_NAMES}
        told = "; ".join(f"{engine} loads {', '.join(kinds)}" for engine, kinds in loads.items() if kinds)
        raise ConfigError(f"{model.name} has the format {kind}, which {asked} doesn't load: {told}")
    return name


def available_engines() -> dict[EngineName, str]:
    """The engines that load models, and why each can't be used here; "" for one that can.

    As far as it shows without loading anything: a GPU's memory and age show when a model is loaded.
    """
    from p2pnode.models.exllama.requirements import missing

    return {
        "llamacpp": why_missing("the llama.cpp engine", "host"),
        "exllama": missing("exllamav2") if missing("exllamav3") else "",
    }


def require_engine(name: EngineName) -> None:
    """Raise ``ConfigError`` that says what is missing where this engine can't be used here."""
    if words := available_engines().get(name, ""):
        raise ConfigError(words)


def make_engine(spec: EngineSpec, model: LocalModel | None = None) -> Engine:
    """Make an engine, not loaded yet. All but ``scripted`` need a model that was pulled and verified."""
    if model is None and spec.name != "scripted":
        raise ConfigError(f"the {spec.name} engine needs a model; name one with --model")
    match spec.name:
        case "llamacpp":
            need("the llama.cpp engine", "host")
            from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine

            assert model is not None  # noqa: S101 - see above
            return LlamaCppEngine(model, LlamaCppConfig(**_given(LlamaCppConfig, spec)))
        case "exllama":
            from p2pnode.models.exllama.engine import ExllamaConfig, ExllamaEngine
            from p2pnode.models.exllama.settings import Library

            assert model is not None  # noqa: S101 - see above
            library: Library = "exllamav3" if model.manifest.format == "exl3" else "exllamav2"
            return ExllamaEngine(model, ExllamaConfig(library=library, **_given(ExllamaConfig, spec)))
        case "scripted":
            from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine

            return ScriptedEngine(ScriptedConfig(**_given(ScriptedConfig, spec)))
        case _:
            assert_never(spec.name)


def make_embedder(spec: EngineSpec, model: LocalModel, n_ctx: int) -> Engine:
    """What makes vectors of texts of at most ``n_ctx`` tokens for a model of llama.cpp, not loaded yet."""
    need("the llama.cpp engine", "host")
    from p2pnode.models.llamacpp.embedder import EmbedderConfig, LlamaCppEmbedder

    given = _given(EmbedderConfig, replace(spec, n_ctx=n_ctx))
    return LlamaCppEmbedder(model, EmbedderConfig(**given))


def only_embeds(header: GgufHeader) -> bool:
    """Whether a model of llama.cpp makes vectors of texts and writes no answers. Raises ``ConfigError`` for
    one that does neither."""
    from p2pnode.models.llamacpp.embedder import pooling_in

    return pooling_in(header) is not None


def _given(config: type[Any], spec: EngineSpec) -> dict[str, Any]:
    """The values of ``spec`` that are set, for the fields that ``config`` has."""
    names = {field.name for field in fields(config)} & {field.name for field in fields(spec)}
    values = {name: getattr(spec, name) for name in names - {"name"}}
    return {name: value for name, value in values.items() if value is not None}
