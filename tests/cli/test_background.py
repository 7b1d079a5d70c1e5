"""Commands that go on without a terminal, and how they are ended. The README's walk starts and stops them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from p2pnode.chain.profile import load_profile
from tests.cli.support import run


def test_a_node_that_does_not_run_can_not_be_stopped(data_dir: Path) -> None:
    for command in (("stop",), ("chain", "stop")):
        ran = run(*command, "--data-dir", data_dir)
        assert ran.code == 1
        assert "runs on" in ran.err


def test_what_does_not_start_in_the_background_says_why_and_fails(tmp_path: Path, profile: Path) -> None:
    (taken,) = load_profile(profile).rpc_urls
    # A module in the folder where the command is given isn't run.
    (tmp_path / "trio.py").write_text("raise SystemExit('the wrong trio')\n")
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "p2pnode", "chain", "dev", "--background",
         "--port", taken.rpartition(":")[2], "--data-dir", tmp_path],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "choose another with --port" in ended.stderr
    assert "chain.log says why" in ended.stderr
