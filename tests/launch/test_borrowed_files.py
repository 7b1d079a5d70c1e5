"""A program's own file is put back, however its run ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.errors import ConfigError
from p2pnode.launch.borrowed_files import borrowed, put_back_all

OURS = {"providers": {"p2pnode": {"base_url": "http://127.0.0.1:1/v1"}}}
BEFORE = '{"theme":   "dark", "providers": {"mine": {"base_url": "x"}}}'
CRASH = """
import os, signal, sys
from pathlib import Path
from p2pnode.launch.borrowed_files import borrowed
with borrowed(Path(sys.argv[1]), Path(sys.argv[2]), {"providers": {"p2pnode": {"base_url": "http://127.0.0.1:1/v1"}}}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "launch"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "crush" / "crush.json"
    path.parent.mkdir(parents=True)
    path.write_text(BEFORE)
    return path


def crash(folder: Path, path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", CRASH, folder, path], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_it_stands_in_the_file_for_the_block_and_the_file_is_put_back_to_the_letter(
    folder: Path, path: Path
) -> None:
    path.chmod(0o640)
    with borrowed(folder, path, OURS):
        now = json.loads(path.read_text())
        assert now["theme"] == "dark"
        assert set(now["providers"]) == {"mine", "p2pnode"}
        assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text() == BEFORE
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(folder.glob("*.json")) == []


def test_a_file_that_was_not_there_is_taken_away(folder: Path, path: Path) -> None:
    other = path.parent / "new" / "crush.json"
    with borrowed(folder, other, OURS):
        assert json.loads(other.read_text()) == OURS
        assert other.stat().st_mode & 0o777 == 0o600
    assert not other.exists()


def test_it_is_put_back_when_the_block_raises(folder: Path, path: Path) -> None:
    with pytest.raises(RuntimeError), borrowed(folder, path, OURS):
        raise RuntimeError
    assert path.read_text() == BEFORE


def test_after_a_crash_the_next_run_puts_it_back(folder: Path, path: Path) -> None:
    crash(folder, path)
    assert "p2pnode" in path.read_text()
    assert put_back_all(folder) == [path]
    assert path.read_text() == BEFORE
    assert put_back_all(folder) == []


def test_after_a_crash_the_same_file_can_be_borrowed_again_and_is_as_before_in_the_end(
    folder: Path, path: Path
) -> None:
    crash(folder, path)
    with borrowed(folder, path, {"other": 1}):
        now = json.loads(path.read_text())
        assert now["other"] == 1
        assert set(now["providers"]) == {"mine"}
    assert path.read_text() == BEFORE


def test_what_the_program_wrote_meanwhile_stays(folder: Path, path: Path) -> None:
    with borrowed(folder, path, OURS):
        now = json.loads(path.read_text())
        now["recent"] = ["a"]
        path.write_text(json.dumps(now))
    assert json.loads(path.read_text()) == {**json.loads(BEFORE), "recent": ["a"]}


def test_a_file_that_the_program_broke_or_removed_is_left_so(folder: Path, path: Path) -> None:
    with borrowed(folder, path, OURS):
        path.write_text("{broken")
    assert path.read_text() == "{broken"
    path.write_text(BEFORE)
    with borrowed(folder, path, OURS):
        path.unlink()
    assert not path.exists()


def test_two_runs_share_a_change_and_the_last_one_takes_it_out(folder: Path, path: Path) -> None:
    with borrowed(folder, path, OURS):
        with borrowed(folder, path, OURS):
            assert put_back_all(folder) == []
        assert "p2pnode" in path.read_text(), "the first one still needs it"
        with pytest.raises(ConfigError, match="another run"), borrowed(folder, path, {"other": 1}):
            pass
        assert "p2pnode" in path.read_text()
    assert path.read_text() == BEFORE


@pytest.mark.parametrize("text", ["// comment\n{}", "[1]", "", "{"])
def test_what_is_no_json_object_is_left_alone(folder: Path, path: Path, text: str) -> None:
    path.write_text(text)
    if text == "":
        with borrowed(folder, path, OURS):
            assert json.loads(path.read_text()) == OURS
    else:
        with pytest.raises(ConfigError, match="connect"), borrowed(folder, path, OURS):
            pass
    assert path.read_text() == text
    assert put_back_all(folder) == []


def test_where_the_file_is_a_link_the_one_that_it_leads_to_is_changed(folder: Path, path: Path) -> None:
    link = path.parent / "link.json"
    link.symlink_to(path)
    with borrowed(folder, link, OURS):
        assert "p2pnode" in path.read_text()
    assert link.is_symlink()
    assert path.read_text() == BEFORE


def test_a_file_that_can_not_be_read_is_told(folder: Path, path: Path) -> None:
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="can't be read"), borrowed(folder, path, OURS):
        pass
    assert not list(folder.iterdir())
