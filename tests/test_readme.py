"""The README, walked: each block of commands is run as it is printed, in a fresh home, and says what is told.

A block of ``text`` is what the commands before it must print: its lines in this order, ``…`` for anything.
Nodes listen on free ports of loopback, and answers are short. What can't be run here is in ``ELSEWHERE``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2pnode.config import load_config

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {
    "make install": "it is what these tests stand on",
    ". .venv/bin/activate": "the walk's own PATH does that",
    "make demo": "a minute: tests/demo runs it",
    "make test": "it would run this",
}
DEADLINE_S = 180
TOKENS = 12
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip() and bare(line) not in ELSEWHERE]


def bare(line: str) -> str:
    """A command without its comment."""
    return line.partition("  #")[0].strip()


def blocks(text: str = TEXT) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall(text)]


def test_each_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {block.language for block in blocks()}
    assert kinds == {"sh", "text", "python", "toml", "ini"}
    assert TEXT.count("```") == 2 * len(blocks())
    assert [block.language for block in blocks()].count("ini") == 1  # a systemd unit: no command of ours


def test_what_is_not_run_here_stands_in_the_readme() -> None:
    lines = {bare(line) for block in blocks() if block.language == "sh" for line in block.text.splitlines()}
    assert set(ELSEWHERE) <= lines


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_settings_are_settings(tmp_path: Path) -> None:
    (block,) = [block for block in blocks() if block.language == "toml"]
    (tmp_path / "config.toml").write_text(block.text)
    config = load_config(tmp_path / "config.toml", {})
    assert (config.price_in, config.price_out, config.session_fee) == (500_000, 1_500_000, 10_000)


class Walk:
    """A fresh home, and a shell in it whose ``p2pnode`` gives short answers."""

    def __init__(self, home: Path) -> None:
        self.home, self.work = home, home / "clone"
        self.work.mkdir()
        data_dir = home / ".local" / "share" / "p2pnode"
        data_dir.mkdir(parents=True, mode=0o700)
        (data_dir / "config.toml").write_text('listen = ["/ip4/127.0.0.1/tcp/0"]\nmdns = false\n')
        programs = home / "bin"
        programs.mkdir()
        real = f"{sys.executable} -m p2pnode"
        (programs / "p2pnode").write_text(
            f'#!/bin/sh\ncase "$1" in\n'
            f'ask|chat) first=$1; shift; exec {real} "$first" --max-tokens {TOKENS} "$@";;\n'
            f'*) exec {real} "$@";;\nesac\n'
        )
        (programs / "p2pnode").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        self.env = {**kept, "HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "100"}

    def run(self, command: list[str]) -> str:
        """What it prints. Fails when it does not work."""
        ended = subprocess.run(
            command,
            cwd=self.work,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert ended.returncode == 0, f"{command[-1]}\n{ended.stdout}"
        return ended.stdout

    def end(self) -> None:
        """Stop what a failure left running."""
        for stop in ("stop", "stop --data-dir p2pnode-dev/host", "chain stop"):
            subprocess.run(
                ["bash", "-c", f"p2pnode {stop}"],
                cwd=self.work,
                env=self.env,
                capture_output=True,
                check=False,
            )


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    made = Walk(tmp_path)
    yield made
    made.end()
    shutil.rmtree(tmp_path, ignore_errors=True)  # weights


def said(expected: str, printed: str) -> bool:
    """Whether these lines stand in what was printed, in this order."""
    at = 0
    for line in expected.strip().splitlines():
        pattern = re.compile("^" + ".*".join(map(re.escape, line.split("…"))) + r"\s*$", re.MULTILINE)
        if (found := pattern.search(printed, at)) is None:
            return False
        at = found.end()
    return True


def test_every_command_works_as_it_is_printed_and_says_what_the_text_says(walk: Walk) -> None:
    printed = ""
    for block in blocks():
        match block.language:
            case "sh":
                printed = "".join(walk.run(["bash", "-c", command]) for command in block.commands)
            case "python":
                (walk.home / "sample.py").write_text(block.text)
                assert "Usage(" in walk.run([sys.executable, str(walk.home / "sample.py")])
            case "text":
                assert said(block.text, printed), f"expected:\n{block.text}\nprinted:\n{printed}"
            case _:
                pass


def test_a_text_that_is_not_what_a_command_says_is_noticed() -> None:
    assert said("one …\nthree", "zero\none 1\ntwo\nthree\n")
    assert not said("three\none …", "zero\none 1\ntwo\nthree\n")
    assert not said("one", "one 1\n")
