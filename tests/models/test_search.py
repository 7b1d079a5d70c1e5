"""Searching catalogues: by words, size, licence, architecture and task; the best first."""

from __future__ import annotations

import pytest

from p2pnode.models.manifest import Manifest, ModelFile, model_id
from p2pnode.models.quality import Quality, TaskResult
from p2pnode.models.search import Search, found, score_of
from tests.models.lists import entry, manifest_of


def scored(name: str, right: int, items: int, task: str = "code") -> Quality:
    return Quality(
        model=model_id(manifest_of(name)), task_set="ab" * 32, seed=0, engine="llama.cpp",
        tasks=(TaskResult(task=task, right=right, items=items),), measured="2026-11-30",
    )  # fmt: skip


def sized(name: str, size: int, **more: str) -> Manifest:
    file = ModelFile(path="model.gguf", size_bytes=size, sha256="11" * 32, chunks="44" * 32)
    return manifest_of(name, files=(file,), **more)


ENTRIES = [
    entry("talk", manifest=sized("talk", 900), description="For small talk", tasks=("chat",)),
    entry("coder", manifest=sized("coder", 500, architecture="qwen2"), licence="MIT", aliases=("writer",)),
    entry("lucky", manifest=sized("lucky", 100), quality=(scored("lucky", 3, 3),)),
    entry("steady", manifest=sized("steady", 700), quality=(scored("steady", 80, 100),)),
]


def names(search: Search) -> list[str]:
    return [each.name for each in found(ENTRIES, search)]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (Search(), ["steady", "lucky", "coder", "talk"]),
        (Search(words=("TALK",)), ["talk"]),
        (Search(words=("small", "talk")), ["talk"]),
        (Search(words=("small", "coder")), []),
        (Search(words=("writer",)), ["coder"]),
        (Search(words=("llama",)), ["steady", "lucky", "talk"]),
        (Search(size_max=500), ["lucky", "coder"]),
        (Search(licences=frozenset({"mit"})), ["coder"]),
        (Search(architectures=frozenset({"qwen2", "gemma"})), ["coder"]),
        (Search(task="code"), ["steady", "lucky"]),
        (Search(task="chat"), ["talk"]),
        (Search(task="dance"), []),
    ],
)
def test_all_that_is_asked_for_has_to_fit(search: Search, expected: list[str]) -> None:
    assert names(search) == expected


def test_three_right_answers_of_three_are_no_better_than_eighty_of_a_hundred() -> None:
    lucky, steady = (next(each for each in ENTRIES if each.name == name) for name in ("lucky", "steady"))
    low, high = score_of(lucky), score_of(steady)
    assert low is not None
    assert high is not None
    assert low < high < 0.8
    assert score_of(steady, "chat") is None
    assert score_of(ENTRIES[0]) is None
