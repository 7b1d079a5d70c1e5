"""`models evaluate` and what it leaves: figures, also after Ctrl-C, that other commands show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.cli.hosts import print_qualities
from p2pnode.cli.output import Output
from p2pnode.cli.quality import known_quality, quality_text
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.catalogue_entry import MemoryHint
from p2pnode.models.evaluation.task_set import task_set
from p2pnode.models.manifest import model_id_text, scripted_model_id
from p2pnode.models.model_list import list_blob
from p2pnode.models.quality import Quality, TaskResult, with_quality
from p2pnode.models.subscriptions import Subscriptions
from p2pnode.node.datadir import DataDir
from tests.cli.support import Ran, run, start
from tests.models.gguf_files import TINY
from tests.models.lists import entry, head, pointer

ITEMS = 2 * len(task_set().tasks)


def evaluate(data_dir: Path, *arguments: object) -> Ran:
    return run("models", "evaluate", "scripted", *arguments, "--data-dir", data_dir)


def test_an_evaluation_tells_each_item_and_the_figures_twice_alike(data_dir: Path) -> None:
    first, again = (evaluate(data_dir, "--limit", 2, "--json") for _ in range(2))
    assert first.code == 0
    assert first.named("item") == again.named("item")
    (told,) = first.named("evaluated")
    assert len(first.named("item")) == told["asked"] == told["answered"] == told["overall"]["items"] == ITEMS
    assert told["task_set"] == task_set().id
    assert told["engine"] == "scripted"
    assert set(told["tasks"]) == set(told["scores"]) == set(task_set().tasks)
    right = sum(each["right"] for each in first.named("item"))
    assert right == sum(each for each, _ in told["tasks"].values())
    assert told["overall"]["low"] <= told["overall"]["score"] <= told["overall"]["high"]


def test_people_see_a_table_with_intervals_and_what_guessing_gives(data_dir: Path) -> None:
    ran = evaluate(data_dir, "--tasks", "logic,strings", "--limit", 2)
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "logic", "strings", "all", "task"]
    assert "25%" in lines[1]
    assert f"task set {task_set().id[:8]}, seed 0, scripted" in lines[-1]


def test_figures_of_fewer_items_do_not_replace_those_of_more(data_dir: Path) -> None:
    assert evaluate(data_dir, "--limit", 2).code == 0
    ran = evaluate(data_dir, "--limit", 1)
    assert "an earlier figure of more items is kept" in ran.err
    (kept,) = json.loads((data_dir / "quality.json").read_text())["qualities"]
    assert sum(items for _, items in kept["tasks"].values()) == ITEMS


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "spelling"], "'spelling' is no task: choose of arithmetic"),
        (["--limit", "-1"], "--limit"),
        (["--seed", str(2**32)], "--seed"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(data_dir: Path, flags: list[str], said: str) -> None:
    ran = evaluate(data_dir, *flags)
    assert ran.code == 2
    assert said in ran.err
    assert not data_dir.exists()


def test_an_engine_that_does_not_load_the_model_is_refused(data_dir: Path) -> None:
    ran = run("models", "evaluate", DEFAULT_MODEL, "--engine", "exllama", "--data-dir", data_dir)
    assert ran.code == 2
    assert "has the format gguf, which exllama doesn't load" in ran.err


@pytest.mark.long
def test_ctrl_c_keeps_the_figures_of_what_was_done(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    command = ["models", "evaluate", DEFAULT_MODEL, "--json", "--data-dir", data_dir]
    with start(tmp_path, "evaluate", command) as program:
        program.wait_event("item", count=9)
        program.ctrl_c()
        assert program.wait() == 130
        told = program.wait_event("evaluated")
    assert 9 <= told["answered"] < told["asked"]
    (row,) = run("models", "list", "--data-dir", data_dir, "--json").named("model")
    assert row["quality"]["overall"]["items"] == told["answered"]
    assert row["quality"]["by"] == ""
    listed = run("models", "list", "--data-dir", data_dir).out
    assert f"of {told['answered']} items, measured here" in listed


def test_models_are_recommended_with_reasons_licence_and_what_is_known_of_them(data_dir: Path) -> None:
    fits = run("models", "recommend", "--data-dir", data_dir, "--json")
    assert fits.code == 0
    (machine,) = fits.named("machine")
    (found,) = fits.named("recommendation")
    assert machine["cores"] >= 1
    assert (found["name"], found["fits"], found["licence"]) == (DEFAULT_MODEL, True, "Apache-2.0")
    assert found["quality"] is None
    assert not data_dir.exists()
    told = run("models", "recommend", "--data-dir", data_dir, "--memory", "1MB")
    (row,) = told.out.splitlines()[1:]
    assert "takes 0.4 GB of memory, 0.4 GB more than there is" in row
    assert "not measured" in row
    assert run("models", "recommend", "--memory", "much", "--data-dir", data_dir).code == 2


def test_what_was_measured_here_goes_before_what_a_list_says(data_dir: Path) -> None:
    of_list = Quality.from_mapping({
        "model": model_id_text(scripted_model_id()),
        "task_set": task_set().id,
        "seed": 0,
        "tasks": {"logic": [9, 32]},
        "engine": "other",
        "measured": "2026-11-01",
    })  # fmt: skip
    own = replace(of_list, engine="scripted", tasks=(TaskResult(task="logic", right=1, items=2),))
    listed = [("worse", replace(own, engine="x")), ("curated", of_list)]
    model = scripted_model_id()
    assert known_quality([own], model, listed) == (own, "")
    assert known_quality([], model, listed) == (of_list, "curated")
    assert known_quality([], model, []) is None
    said = quality_text((of_list, "curated"))
    assert said == "28% (16 to 45%) of 32 items, says the list curated on 2026-11-01"
    assert quality_text((of_list, "a\nb")).count("\n") == 0


def test_one_model_is_shown_in_full(data_dir: Path) -> None:
    before = run("models", "show", DEFAULT_MODEL, "--data-dir", data_dir)
    assert before.code == 0
    assert f"`p2pnode models evaluate {DEFAULT_MODEL} --data-dir {data_dir}` measures" in before.err
    known = Catalogue.load().find(DEFAULT_MODEL).model_id
    assert known is not None
    record = {"task_set": task_set().id, "seed": 0, "engine": "llamacpp", "measured": "2026-11-30"}
    of_it = Quality.from_mapping({**record, "model": model_id_text(known), "tasks": {"json": [15, 32]}})
    data_dir.mkdir()
    (data_dir / "quality.json").write_text(with_quality(None, of_it)[0])
    told = run("models", "show", DEFAULT_MODEL, "--data-dir", data_dir).out
    for part in ("licence Apache-2.0", "context 8192 tokens", "fits    yes: takes 0.4 GB", "15 of 32"):
        assert part in told
    (row,) = run("models", "show", DEFAULT_MODEL, "--data-dir", data_dir, "--json").named("model")
    assert row["manifest"]["n_ctx"] == 8192
    assert [(each["by"], each["tasks"]) for each in row["qualities"]] == [("", {"json": [15, 32]})]
    assert run("models", "show", "no-such-model", "--data-dir", data_dir).code == 2


def test_a_file_is_shown_before_it_is_pulled(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(TINY)
    (row,) = run("models", "show", path, "--data-dir", data_dir, "--json").named("model")
    assert (row["name"], row["path"], row["here"]) == ("tiny", str(path), True)
    assert not data_dir.exists()


def test_what_a_subscribed_list_says_is_shown_with_its_name_where_hosts_and_models_are(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = entry("served", tasks=("code",), memory=MemoryHint(bytes=5_000_000, n_ctx=8192))
    assert served.model_id is not None
    record = {"task_set": task_set().id, "seed": 0, "engine": "llamacpp", "measured": "2026-11-30"}
    said = Quality.from_mapping(
        {**record, "model": model_id_text(served.model_id), "tasks": {"json": [15, 32]}}
    )
    blob = list_blob(head(), [replace(served, quality=(said,))])
    data = DataDir(data_dir)
    Subscriptions(data.models).take(pointer(blob), blob, 0)
    print_qualities(Output(as_json=False), data, [served.model_id])
    assert "right answers 47% (31 to 64%) of 32 items, says the list small on" in capsys.readouterr().out
    found = run("models", "recommend", "--task-hint", "code", "--data-dir", data_dir, "--json")
    first, second = found.named("recommendation")
    assert (first["name"], first["fits"], first["memory"]) == ("small/served", True, 5_000_000)
    assert (first["quality"]["by"], first["tasks"]) == ("small", ["code"])
    assert second["name"] == DEFAULT_MODEL
    (shown,) = run("models", "show", "small/served", "--data-dir", data_dir, "--json").named("model")
    assert [each["by"] for each in shown["qualities"]] == ["small"]
