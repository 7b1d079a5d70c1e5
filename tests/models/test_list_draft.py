"""What a list is drafted of: names of the catalogue and a file's models, with what was measured here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import ConfigError
from p2pnode.models.catalogue_entry import QUALITIES_MAX, with_quality
from p2pnode.models.list_draft import drafted
from p2pnode.models.manifest import model_id
from p2pnode.models.quality import Quality, TaskResult
from tests.models.lists import entry, manifest_of


def measured(model: str, build: str = "b1") -> Quality:
    return Quality(
        model=model_id(manifest_of(model)),
        task_set="ab" * 32,
        seed=0,
        tasks=(TaskResult(task="reading", right=5, items=10),),
        engine="llama.cpp",
        build=build,
        measured="2026-11-30",
    )


def nothing_to_pull() -> None:
    raise AssertionError


async def test_models_of_a_file_come_first_and_names_are_found_in_the_catalogue(tmp_path: Path) -> None:
    own = measured("a")
    given = [entry("a"), entry("b")]
    found = await drafted(
        given, [DEFAULT_MODEL], tmp_path, measured=[own, measured("c")], before_pull=nothing_to_pull
    )
    assert [each.name for each in found] == ["a", "b", DEFAULT_MODEL]
    assert [each.quality for each in found[:2]] == [(own,), ()]


async def test_a_model_that_is_unknown_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown model"):
        await drafted([], ["nobody"], tmp_path, measured=(), before_pull=nothing_to_pull)
    twice = [entry("a"), replace(entry("b"), name="a")]
    with pytest.raises(ConfigError, match="two models are called a"):
        await drafted(twice, [], tmp_path, measured=(), before_pull=nothing_to_pull)


def test_a_measurement_replaces_what_was_said_of_the_same_and_no_other() -> None:
    said = entry("a", quality=(measured("a"), measured("a", "b2")))
    new = replace(measured("a"), measured="2026-12-01")
    assert with_quality(said, [new, measured("b")]).quality == (new, measured("a", "b2"))
    many = [measured("a", f"b{build}") for build in range(QUALITIES_MAX + 3)]
    assert len(with_quality(said, many).quality) == QUALITIES_MAX
