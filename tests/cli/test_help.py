"""Every command and every option explains itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer.main

from p2pnode.cli.app import app
from p2pnode.cli.options import model_names
from tests.cli.support import run


def _commands() -> dict[str, Any]:
    """By the words a user types."""
    group = typer.main.get_command(app)
    found: dict[str, Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        if words:
            found[" ".join(words)] = command
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*words, name))

    walk(group, ())
    return found


COMMANDS = _commands()


def test_the_commands_are_those_of_the_design() -> None:
    top = {name for name in COMMANDS if " " not in name}
    assert {"join", "ask", "chat", "hosts", "invite", "models", "status", "doctor", "bench", "demo"} <= top
    assert {"models list", "models pull", "models verify"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_each_of_its_options_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for option in command.params:
        if not getattr(option, "hidden", False):
            assert getattr(option, "help", None), option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_printed_for_people(name: str) -> None:
    ran = run(*name.split(), "--help")
    assert ran.code == 0
    assert "Usage: p2pnode " + name in ran.out


@pytest.mark.parametrize("group", ["", *(name for name in COMMANDS if hasattr(COMMANDS[name], "commands"))])
def test_what_a_command_is_for_is_not_cut_in_the_help_of_its_group(group: str) -> None:
    listed = run(*group.split(), "--help", columns=80).out.partition("Commands:")[2]
    assert "..." not in listed
    assert max(map(len, listed.splitlines())) <= 80


def test_without_a_command_the_help_is_shown() -> None:
    ran = run()
    assert "Usage: p2pnode" in ran.out + ran.err
    assert ran.code == 2


def test_a_shell_completes_models_of_the_catalogue_where_one_is_meant_and_nothing_else(
    data_dir: Path,
) -> None:
    context = SimpleNamespace(params={"data_dir": data_dir})
    assert model_names(cast("typer.Context", context), "smol") == ["smollm2-135m-instruct"]
    assert model_names(cast("typer.Context", context), "no such") == []
    assert not data_dir.exists()
    for words, name in (("join", "models"), ("join", "model"), ("ask", "model")):
        parameter = next(each for each in COMMANDS[words].params if each.name == name)
        shown = [each.value for each in parameter.shell_complete(_context(words, data_dir), "smollm2")]
        assert shown == ["smollm2-135m-instruct"], words


def _context(words: str, data_dir: Path) -> Any:
    context = typer.main.get_command(app).make_context("p2pnode", [words], resilient_parsing=True)
    context.params["data_dir"] = data_dir
    return context
