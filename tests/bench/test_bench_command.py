"""``p2pnode bench`` as a script sees it. What it finds is not judged here: only that it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
import trio
from typer.testing import CliRunner

from p2pnode.bench import suites as runner
from p2pnode.bench.figure import GOALS, SUITES, Figure, Measurement
from p2pnode.cli.app import app


def figures_of(name: str, *flags: str) -> tuple[int, list[dict[str, object]]]:
    command = [sys.executable, "-m", "p2pnode", "bench", name, "--quick", "--json", *flags]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["dial", "cli", "storage", "stream", "gossip", "idle", "failover", "engine", "gateway"]
)
def test_a_suite_prints_an_object_for_each_of_its_figures(name: str) -> None:
    code, figures = figures_of(name, "--pairs=1")
    assert [figure["name"] for figure in figures] == [goal.name for goal in GOALS if goal.suite == name]
    assert all(isinstance(figure["value"], float) for figure in figures), figures
    assert code == (0 if all(figure["holds"] for figure in figures) else 1)


def test_the_help_names_each_suite() -> None:
    said = " ".join(CliRunner().invoke(app, ["bench", "--help"]).stdout.split())
    assert f"{', '.join(SUITES)}, or all." in said


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


@pytest.mark.long
def test_it_says_first_how_long_it_takes_and_then_which_suite_is_measured() -> None:
    command = [sys.executable, "-m", "p2pnode", "bench", "dial", "--quick"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False, text=True)
    lines = done.stderr.splitlines()
    assert lines[0] == "measuring 1 suite with --quick (some seconds each, and no verdict)"
    assert any(line.startswith("1 of 1: dial ") for line in lines)
    assert any(line.startswith("dial.to_advert: ") and " x the baseline " in line for line in lines)


def test_a_busy_machine_is_noticed() -> None:
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        share = trio.run(runner.others_share)
    assert share is not None
    assert share >= 0.15


def test_an_unknown_suite_is_a_usage_error() -> None:
    done = CliRunner().invoke(app, ["bench", "everything"])
    assert done.exit_code == 2
    assert "unknown suite 'everything'" in done.stderr
