"""Which programs can be started, and what each of them reads to find the gateway. Pure data and text.

``{url}``, ``{key}`` and ``{model}`` in it stand for the gateway's address without a path, the secret of a key
and the model. ``{context}`` alone is a number, or nothing where it isn't known: then it is left out with its
name. Each entry names the document that it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from p2pnode.errors import UsageError

Json: TypeAlias = Any
_CONTEXT: Final = "{context}"
KEY_VARIABLE: Final = "P2PNODE_API_KEY"
"""For programs that are told the name of a variable, and not the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a program is to use. ``context`` is the model's, in tokens, where it is known."""

    url: str
    key: str
    model: str
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonFile:
    """A file that a program reads and that has no other name: ``merge`` is put into it for a while.

    ``path`` is below the folder that the variable ``root`` names, or else below ``root_default``.
    """

    root: str
    root_default: str
    path: str
    merge: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program. Values of ``environment`` that are no text become JSON; ``unset`` is taken away."""

    name: str
    command: str
    environment: Mapping[str, Json] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """Come before the user's own."""
    file: JsonFile | None = None
    install: str
    source: str
    """Where its makers say what it reads."""


PROGRAMS: Final = (
    Program(
        name="codex",
        command="codex",
        environment={KEY_VARIABLE: "{key}"},
        arguments=(
            "-c",
            'model="{model}"',
            "-c",
            'model_provider="p2pnode"',
            "-c",
            'model_providers.p2pnode.name="p2pnode"',
            "-c",
            'model_providers.p2pnode.base_url="{url}/v1"',
            "-c",
            f'model_providers.p2pnode.env_key="{KEY_VARIABLE}"',
            "-c",
            'model_providers.p2pnode.wire_api="responses"',
            "-c",
            "model_context_window={context}",
        ),
        install="npm install -g @openai/codex",
        source="https://developers.openai.com/codex/config-advanced",
    ),
    Program(
        name="claude",
        command="claude",
        environment={
            "ANTHROPIC_BASE_URL": "{url}",
            "ANTHROPIC_AUTH_TOKEN": "{key}",
            "ANTHROPIC_MODEL": "{model}",
            "ANTHROPIC_DEFAULT_OPUS_MODEL": "{model}",
            "ANTHROPIC_DEFAULT_SONNET_MODEL": "{model}",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": "{model}",
            "CLAUDE_CODE_SUBAGENT_MODEL": "{model}",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        unset=("ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX"),
        install="npm install -g @anthropic-ai/claude-code",
        source="https://docs.anthropic.com/en/docs/claude-code/llm-gateway",
    ),
    Program(
        name="opencode",
        command="opencode",
        environment={
            KEY_VARIABLE: "{key}",
            "OPENCODE_CONFIG_CONTENT": {
                "model": "p2pnode/{model}",
                "small_model": "p2pnode/{model}",
                "provider": {
                    "p2pnode": {
                        "npm": "@ai-sdk/openai-compatible",
                        "name": "p2pnode",
                        "options": {"baseURL": "{url}/v1", "apiKey": f"{{env:{KEY_VARIABLE}}}"},
                        "models": {"{model}": {"name": "{model}"}},
                    }
                },
            },
        },
        install="npm install -g opencode-ai",
        source="https://opencode.ai/v1/docs/config.md",
    ),
    Program(
        name="aider",
        command="aider",
        environment={
            "OPENAI_API_BASE": "{url}/v1",
            "OPENAI_API_KEY": "{key}",
            "AIDER_MODEL": "openai/{model}",
        },
        unset=("AIDER_OPENAI_API_BASE", "AIDER_OPENAI_API_KEY"),
        install="python -m pip install aider-install && aider-install",
        source="https://aider.chat/docs/llms/openai-compat.html",
    ),
    Program(
        name="goose",
        command="goose",
        environment={
            "GOOSE_PROVIDER": "openai",
            "GOOSE_MODEL": "{model}",
            "OPENAI_HOST": "{url}",
            "OPENAI_BASE_PATH": "v1/chat/completions",
            "OPENAI_API_KEY": "{key}",
        },
        install="https://block.github.io/goose/docs/getting-started/installation",
        source="https://goose-docs.ai/docs/guides/environment-variables",
    ),
    Program(
        name="crush",
        command="crush",
        environment={KEY_VARIABLE: "{key}"},
        file=JsonFile(
            root="XDG_CONFIG_HOME",
            root_default="~/.config",
            path="crush/crush.json",
            merge={
                "providers": {
                    "p2pnode": {
                        "name": "p2pnode",
                        "type": "openai-compat",
                        "base_url": "{url}/v1",
                        "api_key": f"${KEY_VARIABLE}",
                        "models": [{"id": "{model}", "name": "{model}", "context_window": _CONTEXT}],
                    }
                },
                "models": {
                    "large": {"provider": "p2pnode", "model": "{model}"},
                    "small": {"provider": "p2pnode", "model": "{model}"},
                },
            },
        ),
        install="npm install -g @charmland/crush",
        source="https://github.com/charmbracelet/crush/blob/main/README.md",
    ),
)


def program_named(name: str) -> Program:
    """The program of this name. Raises ``UsageError`` that names those there are."""
    for program in PROGRAMS:
        if program.name == name.lower():
            return program
    known = ", ".join(each.name for each in PROGRAMS)
    raise UsageError(
        f"{name[:40]!r} is no program that is known here: there are {known}. Any other one that can be given "
        "an address and a key finds the gateway with `p2pnode keys new NAME`"
    )


def arguments_of(program: Program, settings: Settings) -> list[str]:
    """The program's own arguments, without those that need a context which isn't known."""
    made: list[str] = []
    for flag, value in zip(program.arguments[::2], program.arguments[1::2], strict=True):
        if _CONTEXT in value and settings.context is None:
            continue
        made += [flag, _text(value, settings)]
    return made


def environment_of(program: Program, settings: Settings) -> dict[str, str]:
    """What is set in the program's environment."""
    made = {}
    for name, value in program.environment.items():
        filled = fill(value, settings)
        made[name] = filled if isinstance(filled, str) else json.dumps(filled)
    return made


def fill(value: Json, settings: Settings) -> Json:
    """The value with what the names in it stand for; without what has a number that isn't known."""
    if isinstance(value, Mapping):
        filled = {_text(name, settings): fill(each, settings) for name, each in value.items()}
        return {name: each for name, each in filled.items() if each is not None}
    if isinstance(value, list | tuple):
        return [fill(each, settings) for each in value]
    if value == _CONTEXT:
        return settings.context
    return _text(value, settings) if isinstance(value, str) else value


def _text(value: str, settings: Settings) -> str:
    context = "" if settings.context is None else str(settings.context)
    for name, text in (
        ("{url}", settings.url), ("{key}", settings.key), ("{model}", settings.model), (_CONTEXT, context),
    ):  # fmt: skip
        value = value.replace(name, text)
    return value


# ---- what is put into a program's JSON file, and taken out again


def merged(before: Json, ours: Json) -> Json:
    """``before`` with all that ``ours`` has; an object is merged, anything else is replaced."""
    if not (isinstance(before, dict) and isinstance(ours, dict)):
        return ours
    return {**before, **{name: merged(before.get(name), each) for name, each in ours.items()}}


def unmerged(now: Json, ours: Json, before: Json) -> Json:
    """``now`` without what ``ours`` put into ``before``: what was changed since stays as it is now."""
    if now == merged(before, ours):
        return before
    if not (isinstance(now, dict) and isinstance(ours, dict)):
        return now
    known = before if isinstance(before, dict) else {}
    left = dict(now)
    for name, each in ours.items():
        if name not in now:
            continue
        value = unmerged(now[name], each, known.get(name))
        if name not in known and value in (None, {}):
            del left[name]
        else:
            left[name] = value
    return left
