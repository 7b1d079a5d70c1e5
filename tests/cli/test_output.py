"""What is printed can be typed as it stands: a hint names the data dir that was given. Events are listed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2pnode
from p2pnode.cli import output
from p2pnode.cli.client import ClientReporter
from p2pnode.cli.output import Output, wrapped
from p2pnode.node.datadir import DataDir
from tests.cli.support import run


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("see `p2pnode funds`", "see `p2pnode funds --data-dir '/a b'`"),
        ("`p2pnode stop --data-dir x` ends it", "`p2pnode stop --data-dir x` ends it"),
        ("make a chain with `p2pnode chain dev`", "make a chain with `p2pnode chain dev`"),
        ("`pip install 'p2pnode[pay]'`", "`pip install 'p2pnode[pay]'`"),
        ("`p2pnode bench gas` and `p2pnode demo`", "`p2pnode bench gas` and `p2pnode demo`"),
    ],
)
def test_commands_in_a_text_are_for_the_data_dir_that_was_given(said: str, shown: str) -> None:
    assert Output(as_json=False, data_dir=Path("/a b")).with_data_dir(said) == shown
    assert Output(as_json=False).with_data_dir(said) == said


def test_hints_of_commands_are_for_the_data_dir_that_was_given(data_dir: Path) -> None:
    for command, hint in (
        (("hosts", "--no-mdns"), "join"),
        (("wallet", "show"), "wallet new"),
        (("sessions", "close", "00", "--yes"), "sessions list"),
        (("doctor", "--no-mdns"), "join"),
        (("models", "list"), "models pull smollm2-135m-instruct"),
    ):
        ran = run(*command, "--data-dir", data_dir)
        assert f"`p2pnode {hint} --data-dir {data_dir}`" in ran.out + ran.err, command


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 8, ["one two", "  three"]),
        ("one two", 7, ["one two"]),
        (
            "of it  this\n       and that more",
            12,
            ["of it  this", "       and", "       that", "       more"],
        ),
        ("peer id    one two", 15, ["peer id    one", "           two"]),
        ("PROBLEM  disk      one two", 23, ["PROBLEM  disk      one", " " * 19 + "two"]),
        ("at    /ip4/192.0.2.7/tcp/4001 here", 12, ["at    /ip4/192.0.2.7/tcp/4001", "      here"]),
        ("see `p2pnode ask x`: it helps", 18, ["see", "  `p2pnode ask x`:", "  it helps"]),
        ("see `p2pnode ask x` then", 9, ["see `p2pnode ask x`", "  then"]),
        ("\u70b9" * 3 + " two", 7, ["\u70b9" * 3, "  two"]),
        ("x" * 12, 5, ["x" * 12]),
        ("", 5, [""]),
    ],
)
def test_lines_on_a_terminal_break_between_words_and_never_in_a_command(
    text: str, width: int, lines: list[str]
) -> None:
    assert wrapped(text, width).split("\n") == lines


TELLS = {"event", "report", "tell", "_report"}
"""What an event is told with: its name is the first argument."""


def names_told() -> Iterator[str]:
    """Names of events, as they stand in the source."""
    root = Path(p2pnode.__file__).parent
    for folder in ("cli", "client", "host/join.py", "payments"):
        path = root / folder
        for file in [path] if path.is_file() else path.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                    continue
                name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                if node.func.attr in TELLS and isinstance(name, str) and name:
                    yield name


def test_each_event_of_a_script_stands_in_the_list() -> None:
    told = set(names_told())
    assert {"done", "session.gone", "ready", "funded"} <= told
    listed = output.__doc__ or ""
    assert [name for name in sorted(told) if not re.search(rf"(?<![\w.]){re.escape(name)}\{{", listed)] == []


@pytest.mark.parametrize(("paid", "fee"), [(True, True), (False, False)])
def test_a_fee_is_told_only_where_a_paid_session_is_gone(
    paid: bool, fee: bool, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = ClientReporter(Output(as_json=False), DataDir(data_dir))
    reporter("session.gone", {"peer": "12D3KooWabcdefghij", "paid": paid, "reason": "bad_request"})
    assert ("the next one has a fee" in capsys.readouterr().err) == fee
