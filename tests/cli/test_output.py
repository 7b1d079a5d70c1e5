"""What is printed can be typed as it stands: a hint names the data dir that was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.cli.output import Output
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
