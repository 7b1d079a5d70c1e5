"""The figures of `tests/house.py`: each is right for a tree that was made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import ROOT, Recorder, cut_figures, cycles, read_modules, repeated, single_importers

FILES = {
    "p2pnode/__init__.py": "",
    "p2pnode/shop/__init__.py": "",
    "p2pnode/shop/door.py": "from p2pnode.shop.lock import turn\n",
    "p2pnode/shop/lock.py": "# The key comes first.\nimport p2pnode.storage.shelf\n\nx = 1  # noqa: X1\n",
    "p2pnode/shop/sign.py": (
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from p2pnode.shop import door, window\n"
    ),
    "p2pnode/shop/window.py": "def look():\n    from p2pnode.shop import sign\n    return sign\n",
    "storage/__init__.py": "",
    "storage/shelf.py": '"""A shelf."""\n',
    "tests/door.py": "from p2pnode.shop import door\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package with one area behind a link, as ours has."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "p2pnode" / "storage").symlink_to("../storage")
    return tmp_path


def test_each_module_is_found_once_and_with_what_it_imports(tree: Path) -> None:
    modules = read_modules(tree)
    assert sorted(modules) == [
        "p2pnode.__init__",
        "p2pnode.shop.__init__",
        "p2pnode.shop.door",
        "p2pnode.shop.lock",
        "p2pnode.shop.sign",
        "p2pnode.shop.window",
        "p2pnode.storage.__init__",
        "p2pnode.storage.shelf",
    ]
    assert modules["p2pnode.shop.lock"].imports == {"p2pnode.storage.shelf"}
    assert modules["p2pnode.shop.window"].imports == {"p2pnode.shop.sign"}  # also where it is lazy
    assert modules["p2pnode.shop.sign"].imports == set()
    assert modules["p2pnode.shop.sign"].typing_only == {"p2pnode.shop.door", "p2pnode.shop.window"}


def test_a_module_with_one_importer_counts_only_in_the_folder_of_that_one(tree: Path) -> None:
    assert single_importers(read_modules(tree)) == {
        "p2pnode.shop.door": "p2pnode.shop.sign",
        "p2pnode.shop.lock": "p2pnode.shop.door",
        "p2pnode.shop.sign": "p2pnode.shop.window",
        "p2pnode.shop.window": "p2pnode.shop.sign",
    }


def test_a_circle_that_an_import_for_type_checkers_hides_is_seen_too(tree: Path) -> None:
    modules = read_modules(tree)
    assert cycles(modules, typing_too=False) == []
    assert cycles(modules, typing_too=True) == [["p2pnode.shop.sign", "p2pnode.shop.window"]]


def test_a_basename_may_be_there_three_times_and_not_four(tree: Path) -> None:
    for folder in ("chain", "models"):
        (tree / folder).mkdir()
        (tree / folder / "door.py").write_text("")
    assert repeated(read_modules(tree)) == {}
    (tree / "storage" / "door.py").write_text("")
    assert repeated(read_modules(tree)) == {"door": 4}


def test_a_comment_that_speaks_to_a_tool_gives_no_reason(tree: Path) -> None:
    assert [read_modules(tree)["p2pnode.shop.lock"].comments] == [1]
    figures = cut_figures(tree)
    assert (figures["modules"], figures["lines"]) == (5, 13)


@pytest.mark.long
def test_our_own_tree_is_read_whole() -> None:
    modules = read_modules()
    assert len(modules) == sum(
        len([path for path in (ROOT / area).rglob("*.py") if path.resolve().is_relative_to(ROOT / area)])
        for area in ("p2pnode", "chain", "models", "protocols", "simulations", "storage")
    )


def test_a_flow_that_never_began_is_no_flow_of_no_files() -> None:
    recorder = Recorder()
    recorder.begin_at("protocols/nothing.py", "never")
    with pytest.raises(LookupError, match="never"):
        recorder.end()
