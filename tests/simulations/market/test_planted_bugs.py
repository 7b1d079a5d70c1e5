"""Bugs planted in copies of machines are found by shipped scenarios, and found again by the same seed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from p2pnode.compiled import PURE
from tests.simulations.market.planted import MUTANTS

SEEDS: Final = ("7", "8", "9", "10")
CPU_MAX_S: Final = 60.0


def _run(name: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulations.market.planted", name, *SEEDS],
        cwd=Path(__file__).parents[3],
        # A compiled module would not ask for the one with the bug.
        env={**os.environ, "PYTHONHASHSEED": str(len(name)), PURE: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found_within_a_minute_and_its_seed_shows_it_again(name: str) -> None:
    before = _children_s()
    found = _run(name)
    took_s = _children_s() - before
    assert re.match(r"seed \d+: at ", found)
    assert took_s < CPU_MAX_S
    assert _run(name) == found


@pytest.mark.long
@pytest.mark.parametrize("scenario", sorted({mutant.scenario for mutant in MUTANTS.values()}))
def test_where_nothing_is_planted_nothing_is_found(scenario: str) -> None:
    assert _run(scenario) == ""


def _children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def test_each_bug_is_planted_in_a_text_that_is_there_once() -> None:
    root = Path(__file__).parents[3]
    for name, mutant in MUTANTS.items():
        path = root.joinpath(*mutant.module.split(".")).with_suffix(".py")
        assert path.read_text().count(mutant.before) == 1, name
        assert mutant.before != mutant.after
