"""What is set for each program, and how its own file is changed and changed back."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import UsageError
from p2pnode.launch.programs import (
    PROGRAMS,
    Program,
    Settings,
    arguments_of,
    environment_of,
    fill,
    merged,
    program_named,
    unmerged,
)

SETTINGS = Settings(url="http://127.0.0.1:8080", key="p2p-" + "0" * 48, model="smollm2", context=8192)
UNKNOWN = Settings(url="http://127.0.0.1:8080", key="p2p-" + "0" * 48, model="smollm2")
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("abc", max_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text("abc", max_size=1), values, max_size=3)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.name)
@pytest.mark.parametrize("settings", [SETTINGS, UNKNOWN])
def test_no_name_is_left_unfilled_and_the_key_is_no_argument(program: Program, settings: Settings) -> None:
    arguments, environment = arguments_of(program, settings), environment_of(program, settings)
    file = fill(program.file.merge, settings) if program.file is not None else {}
    said = json.dumps([arguments, environment, file])
    for name in ("{url}", "{key}", "{model}", "{context}"):
        assert name not in said
    assert settings.url in said
    assert settings.model in said
    assert settings.key in environment.values()
    # Other users of the machine see arguments, and a crash may leave a file.
    assert settings.key not in json.dumps([arguments, file])
    assert program.source.startswith("https://")


def test_codex_gets_a_provider_that_speaks_responses() -> None:
    program = program_named("codex")
    given_ = arguments_of(program, SETTINGS)
    assert given_[::2] == ["-c"] * 7
    config = tomllib.loads("\n".join(given_[1::2]))
    assert (config["model"], config["model_provider"]) == ("smollm2", "p2pnode")
    assert config["model_context_window"] == 8192
    provider = config["model_providers"]["p2pnode"]
    assert (provider["base_url"], provider["wire_api"]) == ("http://127.0.0.1:8080/v1", "responses")
    assert environment_of(program, SETTINGS)[provider["env_key"]] == SETTINGS.key
    assert not any("context" in each for each in arguments_of(program, UNKNOWN))


def test_claude_gets_no_path_in_its_address_and_no_key_of_its_makers() -> None:
    program = program_named("Claude")
    environment = environment_of(program, SETTINGS)
    assert environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8080"
    assert environment["ANTHROPIC_AUTH_TOKEN"] == SETTINGS.key
    assert "ANTHROPIC_API_KEY" in program.unset


def test_opencode_reads_its_provider_as_json() -> None:
    config = json.loads(environment_of(program_named("opencode"), SETTINGS)["OPENCODE_CONFIG_CONTENT"])
    assert config["model"] == "p2pnode/smollm2"
    options = config["provider"]["p2pnode"]["options"]
    assert options == {"baseURL": "http://127.0.0.1:8080/v1", "apiKey": "{env:P2PNODE_API_KEY}"}
    assert list(config["provider"]["p2pnode"]["models"]) == ["smollm2"]


def test_what_is_not_known_is_left_out_with_its_name() -> None:
    program = program_named("crush")
    assert program.file is not None
    (model,) = fill(program.file.merge, SETTINGS)["providers"]["p2pnode"]["models"]
    assert model["context_window"] == 8192
    (model,) = fill(program.file.merge, UNKNOWN)["providers"]["p2pnode"]["models"]
    assert "context_window" not in model


def test_an_unknown_program_is_told_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="codex, claude, opencode, aider, goose, crush"):
        program_named("vim")


@given(objects, objects)
def test_what_was_put_into_a_file_is_taken_out_to_the_letter(before: Any, ours: Any) -> None:
    now = merged(before, ours)
    assert merged(now, ours) == now
    assert unmerged(now, ours, before) == before


def test_what_was_changed_meanwhile_stays() -> None:
    before = {"theme": "dark", "models": {"large": {"provider": "openai", "model": "x"}}}
    ours = {
        "providers": {"p2pnode": {"url": "u"}},
        "models": {"large": {"provider": "p2pnode", "model": "m"}},
    }
    now = json.loads(json.dumps(merged(before, ours)))
    now["theme"], now["providers"]["mine"], now["new"] = "light", {"url": "v"}, 1
    assert unmerged(now, ours, before) == {
        "theme": "light",
        "models": {"large": {"provider": "openai", "model": "x"}},
        "providers": {"mine": {"url": "v"}},
        "new": 1,
    }
