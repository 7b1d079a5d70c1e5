"""The one function that says which extra is missing, and its table of what each extra brings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from p2pnode import extras
from p2pnode.extras import MODULES, MissingExtraError, need, why_missing

ROOT = Path(__file__).parent.parent
OPTIONAL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_modules_of_each_extra_are_those_that_it_installs() -> None:
    distributions = packages_distributions()

    def installed(extra: str) -> Iterator[str]:
        for requirement in OPTIONAL[extra]:
            name = requirement.partition(">")[0].partition("[")[0].strip()
            if name == "p2pnode":
                yield from installed(requirement.partition("[")[2].partition("]")[0])
            else:
                yield name.lower().replace("_", "-")

    for extra, modules in MODULES.items():
        by_modules = {distributions[module][0].lower().replace("_", "-") for module in modules}
        assert by_modules - {"py-evm"} == set(installed(extra)), extra


def test_all_is_every_extra_that_is_asked_for() -> None:
    assert OPTIONAL["all"] == ["p2pnode[host,pay,s5,gateway,metrics,dev-chain,sim,cluster]"]
    assert set(MODULES) == {"host", "pay", "s5", "gateway", "metrics", "dev-chain", "sim", "cluster"}


def test_what_is_installed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.MODULES, "s5", ("json",))
    need("the S5 API", "s5")
    assert why_missing("the S5 API", "s5") == ""


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.MODULES, "s5", ("json", "no_such_b"))
    monkeypatch.setitem(extras.MODULES, "pay", ("no_such_a",))
    with pytest.raises(
        MissingExtraError, match=r"\(no_such_a, no_such_b\): `pip install 'p2pnode\[s5,pay\]'`"
    ):
        need("this", "s5", "pay")
