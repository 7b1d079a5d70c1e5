"""``p2pnode bench`` as a script sees it. What it finds is not judged here: only that it says so."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from p2pnode.bench import runner
from p2pnode.bench.figure import GOALS, Figure, Measurement
from p2pnode.cli.app import app


def figures_of(name: str, *flags: str) -> tuple[int, list[dict[str, object]]]:
    command = [sys.executable, "-m", "p2pnode", "bench", name, "--quick", "--json", *flags]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", ["cli", "dial", "storage"])
def test_a_suite_prints_an_object_for_each_of_its_figures(name: str) -> None:
    code, figures = figures_of(name)
    assert [figure["name"] for figure in figures] == [goal.name for goal in GOALS if goal.suite == name]
    assert all(isinstance(figure["value"], float) for figure in figures), figures
    assert code == (0 if all(figure["holds"] for figure in figures) else 1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["stream", "gossip", "idle", "failover"])
def test_the_longer_suites_do_too(name: str) -> None:
    code, figures = figures_of(name, "--pairs=1")
    assert [figure["name"] for figure in figures] == [goal.name for goal in GOALS if goal.suite == name]
    assert all(isinstance(figure["value"], float) for figure in figures), figures
    assert code == (0 if all(figure["holds"] for figure in figures) else 1)


@pytest.mark.parametrize(("value", "code"), [(0.1, 0), (99.0, 1)])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_exit_code_says_whether_all_hold(
    value: float, code: int, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_suites(names: object, report: object, **_: object) -> bool:
        found = Measurement(value=value, baseline=1.0, ratio=value)
        figure = Figure(goal=next(goal for goal in GOALS if goal.name == "cli.help"), measurement=found)
        report(figure)  # type: ignore[operator]
        return figure.holds

    monkeypatch.setattr(runner, "run_suites", run_suites)
    done = CliRunner().invoke(app, ["bench", "cli", *(["--json"] if as_json else [])])
    assert done.exit_code == code
    if as_json:
        assert json.loads(done.stdout)["holds"] is (code == 0)
    else:
        assert ("yes" if code == 0 else "NO") in done.stdout


def test_an_unknown_suite_is_a_usage_error() -> None:
    done = CliRunner().invoke(app, ["bench", "everything"])
    assert done.exit_code == 2
    assert "unknown suite 'everything'" in done.stderr
