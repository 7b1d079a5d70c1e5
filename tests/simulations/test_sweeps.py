"""Sweeps: the same table wherever the runs are made, kept as they end, and resumed where they were."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from p2pnode.errors import ConfigError, UsageError
from p2pnode.simulations.report import Group
from p2pnode.simulations.result import load_run
from p2pnode.simulations.scenario import as_toml, load, scenario_from
from p2pnode.simulations.sweeps import Sweep, execute, load_sweep, sweep
from tests.simulations.small import SMALL

OVER: dict[str, list[Any]] = {"links.jitter_share": [0.0, 0.1, 0.2]}
SEEDS = range(1, 9)
SIMULATE = (sys.executable, "-P", "-m", "p2pnode", "simulate")


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_each_point_runs_with_each_seed_in_order() -> None:
    planned = Sweep(SMALL, {"nodes": [8, 9], "gossip.dials": ["3", "4"]}, seeds=[5, 6])
    assert planned.values == [
        {"nodes": 8, "gossip.dials": 3},
        {"nodes": 8, "gossip.dials": 4},
        {"nodes": 9, "gossip.dials": 3},
        {"nodes": 9, "gossip.dials": 4},
    ]
    assert [task.folder for task in planned.tasks][:3] == ["000-5", "000-6", "001-5"]
    assert planned.tasks[-1].scenario.gossip is not None
    assert (planned.tasks[-1].scenario.nodes, planned.tasks[-1].scenario.gossip.dials) == (9, 4)


@pytest.mark.parametrize(
    ("parameters", "seeds", "said"),
    [
        (
            {"links.jiter_share": [1]},
            [1],
            "links.jiter_share is no parameter: did you mean links.jitter_share",
        ),
        ({"nodes": [10, -1]}, [1], "nodes is -1"),
        ({"nodes": []}, [1], "nodes has no values"),
        ({}, [], "give each once, and one at least"),
        ({}, [3, 3], "give each once"),
        ({"nodes": [9, 10, 9]}, [1], "nodes = 9 is there twice"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_runs(
    parameters: dict[str, Any], seeds: list[int], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Sweep(SMALL, parameters, seeds=seeds)


def test_a_sweep_is_kept_run_by_run_with_its_pages(tmp_path: Path) -> None:
    out = tmp_path / "out"
    heard: list[tuple[int, int]] = []
    found = sweep(
        SMALL, {"gossip.dials": [3, 5]}, seeds=[1, 2], out=out, on_run=lambda *each: heard.append(each)
    )
    assert heard == [(done, 4) for done in range(5)]
    assert {each.name for each in out.iterdir()} == {
        "sweep.json", "runs", "table.parquet", "table.csv", "analysis.txt", "report.html",
    }  # fmt: skip
    assert sorted(each.name for each in (out / "runs").iterdir()) == ["000-1", "000-2", "001-1", "001-2"]
    same(found, pd.read_parquet(out / "table.parquet"))
    assert found["gossip.dials"].tolist() == [3, 3, 5, 5]
    assert found["seed"].tolist() == [1, 2, 1, 2]
    assert found["trace_hash"].tolist() == [
        load_run(out / "runs" / each).trace_hash for each in ("000-1", "000-2", "001-1", "001-2")
    ]
    planned, runs = load_sweep(out)
    groups: list[Group] = planned.groups(runs)
    assert [group.label for group in groups] == ["gossip.dials = 3", "gossip.dials = 5"]
    assert "± " in (out / "analysis.txt").read_text()


def test_a_sweep_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = sweep(SMALL, {"gossip.dials": [3, 5]}, seeds=[1, 2])

    def interrupt(done: int, _of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(SMALL, {"gossip.dials": [3, 5]}, seeds=[1, 2], out=out, on_run=interrupt)
    kept = sorted((out / "runs").iterdir())
    assert [each.name for each in kept] == ["000-1", "000-2"]
    before = [(each / "params.json").stat().st_mtime_ns for each in kept]
    assert not (out / "table.csv").exists()
    same(whole, sweep(SMALL, {"gossip.dials": [3, 5]}, seeds=[1, 2], out=out, resume=True))
    assert [(each / "params.json").stat().st_mtime_ns for each in kept] == before


def test_another_sweep_is_not_taken_for_this_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(SMALL, {}, seeds=[1], out=out)
    with pytest.raises(UsageError, match="exists: name another folder"):
        sweep(SMALL, {}, seeds=[1], out=out)
    with pytest.raises(UsageError, match="holds another sweep: the seeds changed since"):
        sweep(SMALL, {}, seeds=[1, 2], out=out, resume=True)
    plan = json.loads((out / "sweep.json").read_text())
    (out / "sweep.json").write_text(json.dumps({**plan, "code": "other"}))
    with pytest.raises(UsageError, match="the code of p2pnode changed since"):
        sweep(SMALL, {}, seeds=[1], out=out, resume=True)


def test_a_run_that_is_damaged_is_never_taken_for_a_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(SMALL, {}, seeds=[1, 2], out=out)
    (out / "runs" / "000-1" / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"000-1/summary\.json is not JSON"):
        sweep(SMALL, {}, seeds=[1, 2], out=out, resume=True)
    (out / "runs" / "000-1").rename(out / "broken")
    (out / "runs" / "000-2").rename(out / "runs" / "000-1")
    with pytest.raises(ConfigError, match="holds another run: delete it"):
        sweep(SMALL, {}, seeds=[1, 2], out=out, resume=True)


def test_tables_of_a_sweeps_runs_are_kept_where_they_are_wanted(tmp_path: Path) -> None:
    execute(Sweep(SMALL), out=tmp_path / "out", with_tables=True)
    assert len(pd.read_parquet(tmp_path / "out" / "runs" / "000-1" / "nodes.parquet")) == 8


def test_no_more_processes_are_started_than_there_are_runs(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    seen: list[int] = []

    def look(_done: int, _of: int) -> None:
        seen.append(len(set(psutil.Process().children(recursive=True)) - before))

    execute(Sweep(SMALL), jobs=64, on_run=look)
    assert seen == [0, 0]  # a single run is made by this process


@pytest.mark.long
def test_three_values_by_eight_seeds_are_one_table_on_one_process_on_two_and_on_dask() -> None:
    alone = sweep(SMALL, OVER, seeds=SEEDS)
    assert len(alone) == 24
    assert alone["trace_hash"].nunique() == 24
    same(alone, sweep(SMALL, OVER, seeds=SEEDS, jobs=2))
    same(alone, sweep(SMALL, OVER, seeds=SEEDS, jobs=2, cluster="local"))


@pytest.mark.long
def test_a_sweep_whose_process_is_killed_is_the_same_table_once_resumed(tmp_path: Path) -> None:
    file, out = tmp_path / "small.toml", tmp_path / "out"
    scenario = replace(SMALL, duration_s=120.0)  # the kill must come before the last of the runs ends
    file.write_text(as_toml(scenario))
    command = [
        *SIMULATE, str(file), "--sweep", "links.jitter_share=0,0.1,0.2", "--repeat", "8", "--jobs", "2",
        "--out", str(out),
    ]  # fmt: skip
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if json.loads(line).get("done", 0) >= 5:
                    break
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    kept = [each.name for each in (out / "runs").iterdir() if not each.name.startswith(".")]
    assert 5 <= len(kept) < 24
    assert all(load_run(out / "runs" / name).figures["reliability"] == 1.0 for name in kept)
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    same(sweep(scenario, OVER, seeds=SEEDS), pd.read_parquet(out / "table.parquet"))


@pytest.mark.parametrize("cluster", [(), ("--cluster", "local")])
@pytest.mark.long
def test_ctrl_c_keeps_what_is_done_and_leaves_no_process(tmp_path: Path, cluster: tuple[str, ...]) -> None:
    file, out = tmp_path / "small.toml", tmp_path / "out"
    params = {"name": "small", "nodes": 20, "duration_s": 600.0, "gossip": {"publishers": 2}}
    file.write_text(as_toml(scenario_from(params)))
    command = [
        *SIMULATE, str(file), "--repeat", "30", "--jobs", "2", "--json", "--out", str(out), *cluster,
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if json.loads(line).get("done", 0) >= 2:
                    break
            workers = psutil.Process(process.pid).children(recursive=True)
            assert len(workers) >= 2
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes of the group get it
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said == b""
    assert len(list((out / "runs").iterdir())) >= 2
    assert psutil.wait_procs(workers, timeout=30)[1] == []


@pytest.mark.long
def test_the_study_of_churn_finds_the_median_users_two_seconds_where_its_document_says() -> None:
    """The two ends of it, within the intervals of the document, which is of the code that it names."""
    text = (Path(__file__).parents[2] / "docs" / "simulations.md").read_text()
    assert "p2pnode simulate churn --sweep churn.session_mean_s=20,40,80,160,320,640 --repeat 4" in text
    found = sweep(load("churn"), {"churn.session_mean_s": [20.0, 640.0]}, seeds=range(1, 5), jobs=2)
    shares = found.groupby("churn.session_mean_s")["first_token_within_2s"].mean()
    for stays_s, share in shares.items():
        told = re.search(rf"\| {stays_s:g} s \| (\d+) ± (\d+)%", text)
        assert told is not None
        assert abs(100 * share - int(told[1])) <= int(told[2]) + 1
    assert shares[20.0] < 0.5 < shares[640.0]
