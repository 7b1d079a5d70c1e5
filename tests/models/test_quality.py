"""Records of a measured quality: intervals, what a stranger may write, and the file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId
from p2pnode.models.quality import (
    Quality,
    TaskResult,
    best_known,
    figure,
    qualities,
    share,
    wilson,
    with_quality,
)

MODEL = ModelId(b"\x11" * 32)
SET = "ab" * 32


def measured(right: int = 12, items: int = 40, **more: Any) -> Quality:
    values: dict[str, Any] = {
        "model": MODEL,
        "task_set": SET,
        "seed": 0,
        "tasks": (
            TaskResult(task="arithmetic", right=right, items=items),
            TaskResult(task="reading", right=5, items=10),
        ),
        "engine": "llama.cpp",
        "build": "b1",
        "measured": "2026-11-30",
    }
    return Quality(**{**values, **more})


# From the tables of R: prop.test(x, n, correct = FALSE)$conf.int
@pytest.mark.parametrize(
    ("right", "items", "low", "high"),
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (15, 50, 0.191034, 0.437505), (1, 1, 0.206549, 1.0)],
)
def test_the_interval_is_the_one_that_other_programs_give(
    right: int, items: int, low: float, high: float
) -> None:
    assert wilson(right, items) == pytest.approx((low, high), abs=1e-5)


@given(st.integers(1, 10_000), st.data())
def test_the_interval_holds_the_score_and_narrows_with_more_items(items: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, items))
    low, high = wilson(right, items)
    assert 0 <= low <= right / items <= high <= 1
    more_low, more_high = wilson(4 * right, 4 * items)
    assert more_high - more_low < high - low


def test_all_items_together_have_equal_weight() -> None:
    assert measured().overall == TaskResult(task="all", right=17, items=50)


def test_a_figure_for_people_has_its_interval() -> None:
    assert share(TaskResult(task="all", right=15, items=50)) == "30% (19 to 44%)"
    assert figure(measured(right=10)) == "30% (19 to 44%) of 50 items"


def test_a_record_is_the_same_after_json() -> None:
    record = measured()
    assert Quality.from_mapping(record.to_mapping()) == record
    assert record.to_mapping()["tasks"] == {"arithmetic": [12, 40], "reading": [5, 10]}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("task_set", "AB" * 32, "task_set"),
        ("task_set", 3, "task_set"),
        ("seed", -1, "seed"),
        ("seed", True, "seed"),
        ("tasks", {}, "tasks"),
        ("tasks", {f"t{n}": [1, 1] for n in range(40)}, "tasks"),
        ("tasks", {"arithmetic": [2, 1]}, "right"),
        ("tasks", {"arithmetic": [0, 0]}, "items"),
        ("tasks", {"arithmetic": [0.5, 1]}, "right"),
        ("tasks", {"arithmetic": [1]}, "quality record"),
        ("tasks", {"arithmetic": [1, 1, 1]}, "quality record"),
        ("tasks", {"\x1b[2J": [1, 1]}, "name"),
        ("tasks", ["arithmetic"], "quality record"),
        ("engine", "", "engine"),
        ("engine", "a\nb", "engine"),
        ("build", "x" * 65, "build"),
        ("measured", "2026-13-01", "measured"),
        ("measured", "20261130", "measured"),
        ("model", "m1aaaa", "model id"),
        ("colour", "red", "colour"),
    ],
)
def test_what_a_stranger_wrote_wrongly_is_named(field: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Quality.from_mapping({**measured().to_mapping(), field: value})


@pytest.mark.parametrize("field", ["model", "tasks", "engine", "measured", "task_set", "seed"])
def test_a_record_without_a_field_is_none(field: str) -> None:
    values = measured().to_mapping()
    del values[field]
    with pytest.raises(ConfigError, match="quality record"):
        Quality.from_mapping(values)


def test_a_newer_record_replaces_that_of_the_same_engine_and_no_other() -> None:
    text, _ = with_quality(None, measured())
    text, _ = with_quality(text, measured(engine="exllama"))
    newer = measured(right=13, measured="2026-12-01")
    text, taken = with_quality(text, newer)
    assert taken
    assert qualities(text) == [measured(engine="exllama"), newer]


def test_a_record_of_fewer_items_does_not_replace_a_larger_one() -> None:
    text, _ = with_quality(None, measured())
    again, taken = with_quality(text, measured(right=1, items=2))
    assert not taken
    assert qualities(again) == [measured()]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"version": 9, "qualities": [{}]}', '{"version": 1}'])
def test_a_file_that_makes_no_sense_has_no_records_and_is_written_anew(text: str | None) -> None:
    assert qualities(text) == []
    assert qualities(with_quality(text, measured())[0]) == [measured()]


def test_one_bad_record_of_a_file_does_not_hide_the_others() -> None:
    text = with_quality(None, measured())[0].replace('"qualities": [', '"qualities": [{"model": 1},')
    assert qualities(text) == [measured()]


def test_the_file_is_bounded() -> None:
    records = [measured(build=str(number)).to_mapping() for number in range(300)]
    text, _ = with_quality(json.dumps({"version": 1, "qualities": records}), measured(build="new"))
    found = qualities(text)
    assert len(found) == 256
    assert (found[0].build, found[-1].build) == ("45", "new")


def test_the_record_that_says_most_is_of_the_known_task_set_and_has_the_most_items() -> None:
    other_set = measured(items=900, task_set="cd" * 32)
    small, large = measured(items=20), measured(build="b2")
    other_model = measured(items=5000, model=ModelId(b"\x22" * 32))
    assert best_known([other_set, small, large, other_model], MODEL, SET) == large
    assert best_known([other_set], MODEL, SET) == other_set
    assert best_known([other_model], MODEL, SET) is None
    newest = replace(large, measured="2026-12-02")
    assert best_known([newest, large], MODEL, SET) == newest
