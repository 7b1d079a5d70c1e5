"""The suite for a GPU, as far as it shows without one: what it measures, and what it asks for first."""

from __future__ import annotations

import inspect

import pytest
from typer.testing import CliRunner

from p2pnode.bench import exllama
from p2pnode.bench.exllama import EXLLAMA, EXLLAMA_GOALS
from p2pnode.bench.figure import SUITES
from p2pnode.bench.suites import seconds_of, suite, suites_named
from p2pnode.cli.app import app
from p2pnode.models import engines


def test_it_measures_each_of_its_goals_and_is_no_part_of_all() -> None:
    assert suite(EXLLAMA) is exllama.measure_exllama
    source = inspect.getsource(exllama)
    assert all(goal.suite == EXLLAMA and goal.name.rstrip("18") in source for goal in EXLLAMA_GOALS)
    assert EXLLAMA not in SUITES
    assert EXLLAMA not in suites_named("all")
    assert seconds_of([EXLLAMA]) > 0


@pytest.mark.parametrize(
    ("flags", "missing", "code", "words"),
    [
        (["dial", "--engine", "exllama"], "", 2, "it is for `bench stream`"),
        (["stream", "--engine", "vllm"], "", 2, "exllama or llamacpp"),
        (["stream", "--engine", "exllama"], "", 2, "needs --model FOLDER"),
        (["stream", "--engine", "exllama", "--model", "x"], "there is no GPU", 1, "there is no GPU"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_measured(
    flags: list[str], missing: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "available_engines", lambda: {"exllama": missing})
    done = CliRunner().invoke(app, ["bench", *flags])
    assert done.exit_code == code
    assert words in " ".join(done.output.split())
