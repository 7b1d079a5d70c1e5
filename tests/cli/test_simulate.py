"""``p2pnode simulate``: a scenario from the command line to a folder, and what is said when it can't be."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.simulations.result import load_run
from p2pnode.simulations.scenario import as_toml, load, names
from tests.cli.support import Ran, run
from tests.file_size import file_size_limit
from tests.simulations.small import SMALL


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with the scenario ``small.toml``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(as_toml(SMALL))
    return tmp_path


def simulate(*arguments: object) -> Ran:
    return run("simulate", *arguments)


def test_a_run_is_kept_and_its_analysis_printed(here: Path) -> None:
    ran = simulate("small.toml", "--seed", 4)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "small: 8 nodes for 6 s, seed 4"
    assert ran.out.splitlines()[2].startswith("reliability  100% of deliveries")
    assert "the report is small-4/report.html" in ran.err
    kept = load_run(here / "small-4")
    assert (kept.seed, kept.scenario) == (4, SMALL)
    again = simulate("small-4/params.json")
    assert again.code == 0
    assert "the trace is the same as in params.json" in again.err
    assert load_run(here / "small-4-2").trace_hash == kept.trace_hash


def test_a_trace_that_is_not_that_of_its_params_is_told(here: Path) -> None:
    simulate("small.toml", "--out", "one")
    path = here / "one" / "params.json"
    path.write_text(path.read_text().replace(load_run(here / "one").trace_hash, "0" * 64))
    ran = simulate(path, "--out", "two")
    assert ran.code == 1
    assert "the trace is not that of params.json" in ran.err


def test_values_are_set_and_the_size_is_changed(here: Path) -> None:
    ran = simulate(
        "small.toml", "--nodes", 9, "--duration", 7, "--out", "run",
        "--set", "links.jitter_share=0.5", "--set", "gossip.dials=4",
    )  # fmt: skip
    assert ran.code == 0
    found = load_run(here / "run").scenario
    assert (found.nodes, found.duration_s, found.links.jitter_share) == (9, 7.0, 0.5)
    assert found.gossip is not None
    assert found.gossip.dials == 4


def test_a_sweep_is_kept_and_compared(here: Path) -> None:
    ran = simulate("small.toml", "--sweep", "gossip.dials=3,5", "--repeat", 2, "--json")
    assert ran.code == 0
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert [each.get("done") for each in events] == [0, 1, 2, 3, 4, None]
    assert events[-1] == {"event": "result", "out": "small-sweep", "runs": 4}
    assert {each.name for each in (here / "small-sweep" / "runs").iterdir()} >= {"000-1", "001-2"}
    both = simulate("compare", "small-sweep/runs/000-1", "small-sweep/runs/001-1", "--out", "both.html")
    assert both.code == 0
    assert both.out.splitlines()[0].split()[:2] == ["figure", "small-sweep/runs/000-1"]
    assert "<svg" in (here / "both.html").read_text()
    over = simulate("compare", "small-sweep", "small-sweep")
    assert over.code == 1
    assert "is a sweep over gossip.dials" in over.err


def test_the_library_is_listed_and_one_of_it_is_shown_as_a_file_of_ones_own(here: Path) -> None:
    listed = simulate("list")
    assert all(name in listed.out for name in names())
    shown = simulate("show", "host-failover", "--set", "duration_s=777")
    (here / "mine.toml").write_text(shown.out)
    assert load(here / "mine.toml") == replace(load("host-failover"), duration_s=777.0)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["stedy"], 2, "there is no scenario 'stedy': did you mean steady?"),
        (["none.toml"], 2, "there is no file none.toml"),
        (["none.json"], 2, "there is no none.json"),
        (
            ["small.toml", "--set", "links.jiter_share=1"],
            2,
            "--set: links.jiter_share is no parameter: did you mean",
        ),
        (["small.toml", "--set", "jitter"], 2, "--set: 'jitter' must be KEY=VALUE"),
        (["small.toml", "--nodes", "3"], 2, "gossip.dials is 3: of 3 nodes a node can dial 2 others"),
        (["small.toml", "--duration", "-1"], 2, "duration_s is -1.0: it must be above 0"),
        (["small.toml", "--duration", "inf"], 2, "duration_s is inf: it must be a finite number"),
        (["small.toml", "--sweep", "nodes=10,-1"], 2, "--sweep: nodes is -1"),
        (["small.toml", "--sweep", "nodes=[1"], 2, "is no list of values"),
        (["small.toml", "--sweep", "nodes=9,10,9"], 2, "nodes = 9 is there twice: give each value once"),
        (["small.toml", "--sweep", "links.loss_share=0.1,0.10"], 2, "links.loss_share = 0.1 is there twice"),
        (["small.toml", "--sweep", "nodes=9", "--sweep", "nodes=10"], 2, "--sweep: nodes is given twice"),
        (["small.toml", "--cluster", "nowhere"], 2, "--cluster: 'nowhere' is no address of a scheduler"),
        (["small.toml", "--cluster", "http://host:80"], 2, "is no address of a scheduler"),
        (["small.toml", "--resume"], 2, "give --sweep or --repeat as before"),
        (["small.toml", "--repeat", "2", "--resume"], 2, "--resume needs --out"),
        (["small.toml", "--out", "."], 2, "exists: name another folder"),
        (["small.toml", "--out", "small.toml/below"], 2, "small.toml/below can't be written"),
        (["show", "stedy"], 2, "there is no scenario 'stedy': did you mean steady?"),
        (["show", "steady", "--set", "nods=1"], 2, "--set: nods is no parameter"),
        (["xyzzy"], 2, ". For a file of your own, write ./xyzzy.toml"),
        (["./"], 2, "is a folder: name a file in it"),
        (["compare", ".", ".", "--out", "small.toml"], 2, "or overwrite this one with --force"),
        (["compare", ".", "none"], 1, "there is no params.json: name the folder of a run that ended"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(
    here: Path, arguments: list[str], code: int, said: str
) -> None:
    ran = simulate(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert [each.name for each in here.iterdir()] == ["small.toml"]


def test_a_disk_that_is_full_leaves_nothing_that_looks_like_a_result(here: Path) -> None:
    with file_size_limit(3000):
        one = simulate("small.toml", "--out", "one")
        sweep = simulate("small.toml", "--repeat", 2, "--out", "sweep")
    assert one.code == 2
    assert "can't be written (File too large): free some space, or name another folder" in one.err
    assert one.out == ""
    assert sweep.code == 1
    assert "sweep can't be written (File too large): free some space" in sweep.err
    assert "the same command with --resume --out sweep goes on" in sweep.err
    assert sorted(each.name for each in here.iterdir()) == ["small.toml", "sweep"]
    assert {each.name for each in (here / "sweep").rglob("*")} == {"sweep.json", "runs"}
    assert simulate("small.toml", "--repeat", 2, "--out", "sweep", "--resume").code == 0


_FULL_DISK = """
set -eu  # without the mount nothing is to be filled
mount -t tmpfs -o size=84k tmpfs disk
set +e
$P simulate small.toml --repeat 8 --out disk > told 2>&1; echo "mounted $?"
$P simulate small.toml --repeat 8 --jobs "$1" --out disk/sweep > full 2>&1; echo "full $?"
ls -A disk disk/sweep
for run in disk/sweep/runs/*; do ls "$run" | wc -l; done | sort | uniq
dd if=/dev/zero of=disk/fill bs=1k 2> /dev/null
$P simulate small.toml --out disk/one > one 2>&1; echo "one $?"
ls -A disk
rm disk/fill
mount -o remount,size=2m disk
$P simulate small.toml --repeat 8 --out disk/sweep --resume > /dev/null 2>&1; echo "resumed $?"
$P simulate small.toml --repeat 8 --out undisturbed > /dev/null 2>&1
cmp disk/sweep/table.parquet undisturbed/table.parquet && echo equal
"""


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_disk_that_is_really_full_costs_no_run_that_was_kept(here: Path, jobs: int) -> None:
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a disk of his own: unshare --user --mount fails")
    (here / "disk").mkdir()
    command = shlex.join([sys.executable, "-m", "p2pnode"])
    script = _FULL_DISK.replace("$P", command)
    ran = subprocess.run(
        [*apart, "sh", "-c", script, "sh", str(jobs)],
        capture_output=True, text=True, check=False, cwd=here, timeout=240,
    )  # fmt: skip
    told = ran.stdout.splitlines()
    assert told[:2] == ["mounted 2", "full 1"]
    assert "a file system is mounted at disk: name a folder in it" in (here / "told").read_text()
    assert "No space left on device" in (here / "full").read_text()
    assert "with --resume --out disk/sweep goes on" in (here / "full").read_text()
    assert (here / "full").read_text().count("\n") == 1
    assert told[2:] == [
        *("disk:", "sweep", "", "disk/sweep:", "runs", "sweep.json"),
        "4",  # files of each run that was kept
        *("one 2", "fill", "sweep"),
        *("resumed 0", "equal"),
    ]
    assert "disk/one can't be written (No space left on device)" in (here / "one").read_text()


def test_figures_are_told_though_their_folder_cannot_be_kept(here: Path) -> None:
    with file_size_limit(6000):  # enough for the file that is tried first, too little for the report
        ran = simulate("small.toml", "--out", "one")
        told = simulate("small.toml", "--out", "one", "--json")
    assert (ran.code, told.code) == (2, 2)
    assert "one can't be written (File too large)" in ran.err
    assert ran.out.splitlines()[0] == "small: 8 nodes for 6 s, seed 1"
    assert "the report is" not in ran.err
    event = json.loads(told.out.splitlines()[0])
    assert (event["event"], event["out"], event["figures"]["reliability"]) == ("result", None, 1.0)
    assert [each.name for each in here.iterdir()] == ["small.toml"]


def test_a_comparison_is_written_over_an_older_one_if_it_is_forced(here: Path) -> None:
    assert simulate("small.toml", "--out", "one").code == 0
    (here / "both.html").write_text("older")
    assert simulate("compare", "one", "one", "--out", "both.html").code == 2
    assert (here / "both.html").read_text() == "older"
    assert simulate("compare", "one", "one", "--out", "both.html", "--force").code == 0
    assert "<svg" in (here / "both.html").read_text()


@pytest.mark.long
def test_a_scheduler_that_never_answers_is_not_waited_for(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        ran = simulate("small.toml", "--repeat", 2, "--cluster", f"127.0.0.1:{deaf.getsockname()[1]}")
    assert ran.code == 1
    assert "no scheduler answers at 127.0.0.1:" in ran.err
    assert [each.name for each in here.iterdir()] == ["small.toml"]


@pytest.mark.long
def test_the_check_of_determinism_keeps_nothing(here: Path) -> None:
    ran = simulate("small.toml", "--nodes", 8, "--duration", 6, "--check-determinism")
    assert ran.code == 0
    assert "the same: " in ran.err
    assert [each.name for each in here.iterdir()] == ["small.toml"]


@pytest.mark.long
def test_what_is_measured_of_this_machine_is_a_part_of_a_scenario(here: Path) -> None:
    ran = simulate("calibrate")
    assert ran.code == 0
    (here / "mine.toml").write_text(f"nodes = 20\n{ran.out}")
    cpu = load(here / "mine.toml").cpu
    assert cpu is not None
    assert all(1e-7 < each < 0.01 for each in (cpu.message_s, cpu.decode_s, cpu.sign_s, cpu.check_s))
