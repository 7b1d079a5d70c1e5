"""Engines by name. Importing this module imports no engine: ``make_engine`` does that."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias, assert_never, get_args

from p2pnode.errors import ConfigError
from p2pnode.extras import need
from p2pnode.models.engine import Engine
from p2pnode.models.local_models import LocalModel

EngineName: TypeAlias = Literal["llamacpp", "scripted"]
ENGINE_NAMES: Final[tuple[str, ...]] = get_args(EngineName)


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


def parse_engine_name(text: str) -> EngineName:
    """The engine that a user named. Raises ``ConfigError`` when there is none of this name."""
    for name in get_args(EngineName):
        if text == name:
            engine: EngineName = name
            return engine
    raise ConfigError(f"unknown engine {text!r}: use {' or '.join(ENGINE_NAMES)}")


def make_engine(spec: EngineSpec, model: LocalModel | None = None) -> Engine:
    """Make an engine, not loaded yet. ``llamacpp`` needs a model that was pulled and verified."""
    match spec.name:
        case "llamacpp":
            need("the llama.cpp engine", "host")
            from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine

            if model is None:
                raise ConfigError("the llamacpp engine needs a model; name one with --model")
            return LlamaCppEngine(model, LlamaCppConfig(**_given(LlamaCppConfig, spec)))
        case "scripted":
            from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine

            return ScriptedEngine(ScriptedConfig(**_given(ScriptedConfig, spec)))
        case _:
            assert_never(spec.name)


def _given(config: type[Any], spec: EngineSpec) -> dict[str, Any]:
    """The values of ``spec`` that are set, for the fields that ``config`` has."""
    names = {field.name for field in fields(config)} & {field.name for field in fields(spec)}
    values = {name: getattr(spec, name) for name in names - {"name"}}
    return {name: value for name, value in values.items() if value is not None}
