"""What ships is what the sources compile to, wherever they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chain.contracts import build_artifacts


@pytest.mark.long  # the short suite has this by `make check`, in the folder where they lie
def test_the_artifacts_are_what_the_sources_compile_to_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = build_artifacts.CHAIN / "artifacts"
    shutil.copytree(build_artifacts.CHAIN / "contracts", tmp_path / "elsewhere" / "contracts")
    (tmp_path / "elsewhere" / "artifacts").mkdir()
    monkeypatch.setattr(build_artifacts, "CHAIN", tmp_path / "elsewhere")
    assert build_artifacts.main([]) == 0
    for name in build_artifacts.CONTRACTS:
        made = tmp_path / "elsewhere" / "artifacts" / f"{name}.json"
        assert made.read_bytes() == (shipped / f"{name}.json").read_bytes(), "run `make contracts`"


def test_a_changed_contract_with_the_old_artifact_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(build_artifacts.CHAIN / "contracts", tmp_path / "contracts")
    shutil.copytree(build_artifacts.CHAIN / "artifacts", tmp_path / "artifacts")
    monkeypatch.setattr(build_artifacts, "CHAIN", tmp_path)
    monkeypatch.setattr(build_artifacts, "CONTRACTS", ("FAB",))
    assert build_artifacts.main(["--check"]) == 0
    source = tmp_path / "contracts" / "FAB.vy"
    source.write_text(source.read_text().replace("1_000_000_000", "2_000_000_000"))
    assert build_artifacts.main(["--check"]) == 1
    assert "stale for FAB" in capsys.readouterr().err
